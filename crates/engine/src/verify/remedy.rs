//! What a person can do about a finding.

use walden_model::FindingKind;

/// In words; `subject` is the finding's, `repository` the repository's name.
pub(super) fn of(kind: FindingKind, subject: &str, repository: &str) -> String {
    let again = format!(
        "remove {subject} from the repository, then bring it from another one with walden copy --from OTHER --to {repository}"
    );
    match kind {
        FindingKind::SegmentDamaged => format!(
            "{again}, or archive it again with walden-wal-push on a server whose pg_wal still has it; else take a new backup, \
             from whose end on everything can be restored"
        ),
        FindingKind::HistoryDamaged | FindingKind::WalFileDamaged => format!(
            "{again}, or archive it again with walden-wal-push on a server whose pg_wal has it"
        ),
        FindingKind::PackDamaged
        | FindingKind::FileMapDamaged
        | FindingKind::CommitDamaged => {
            format!("{again}; else take a new backup and do not count on this one")
        }
        FindingKind::PackMissing => format!(
            "if an object is there under that key, remove it; bring it from another repository with walden copy --from OTHER --to \
             {repository}; else take a new backup and do not count on this one"
        ),
        FindingKind::FilesDamaged | FindingKind::ManifestMismatch => {
            "take a new backup and do not count on this one; where no object of it is damaged, please report this".to_owned()
        }
        FindingKind::RegistrationDamaged => {
            format!("put {subject} back from a copy of the repository, then verify again")
        }
        FindingKind::NamesDamaged => format!(
            "no restore needs it: walden find tells numbers instead of names. If you want it: {again}"
        ),
        FindingKind::RollUpDamaged => {
            format!("it is derived: remove {subject}, and the next walden backup writes it anew")
        }
        FindingKind::DocumentDamaged => {
            format!("no restore needs it: {again}, or do without it")
        }
        FindingKind::SegmentsMissing => format!(
            "bring them from another repository with walden copy --from OTHER --to {repository}, or archive them with walden \
             push-missing on a server whose pg_wal still has them; else take a new backup, from whose end on everything can be restored"
        ),
        FindingKind::SegmentsInConflict | FindingKind::SegmentBroken => {
            "take a new backup, from whose end on everything can be restored".to_owned()
        }
        FindingKind::HistoryMissing => format!(
            "bring it from another repository with walden copy --from OTHER --to {repository}, or archive it with walden-wal-push on a \
             server that has been on this timeline"
        ),
        FindingKind::Unreachable => {
            "mend what the message names, and verify again: nothing is known of what could not be read".to_owned()
        }
        FindingKind::Vanished => {
            "if walden expire was running, all is well: verify again; else it was removed by somebody else".to_owned()
        }
        FindingKind::BackupUnknown => "walden list-backups shows what there is".to_owned(),
        FindingKind::NotReadable => {
            "verify again where an identity is at hand, or with the newer Walden that the message asks for".to_owned()
        }
        FindingKind::BackupRunning => "none: it runs, or was killed lately".to_owned(),
        FindingKind::BackupAbandoned => {
            "none: it cannot be mistaken for a backup; walden expire removes it".to_owned()
        }
        FindingKind::BlocksDamaged => {
            "look at the server's disks; walden list-backups --json names the blocks".to_owned()
        }
        FindingKind::NoBackup => "take a backup with walden backup".to_owned(),
        FindingKind::Stray => "none: nothing reads it, and nothing deletes it".to_owned(),
    }
}
