//! What a person must know of a restore that can be done.

use std::fmt;

use crate::coverage::Gap;
use crate::index::End;
use crate::keys::BackupId;
use crate::records::ControlSettings;
use crate::resolve::RecordSpan;
use crate::target::{TargetAction, TargetKind, postgres_time};
use crate::unreachable::CannotReach;

use walden_pg::TimelineId;

/// One thing to know; shown with the plan and after the restore.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Note {
    /// What PostgreSQL does when it has reached the target.
    AtTarget(TargetAction),
    /// Without a target, recovery ends with the archive and the cluster accepts writes on a new timeline.
    OpensAtEnd,
    /// A standby goes on asking the archive for WAL.
    StaysStandby {
        /// Whether it also follows to a timeline that begins later.
        follows: bool,
    },
    /// The settings of the target stay until they are taken out.
    ResetSettings,
    /// The copy does not archive.
    ArchivingOff,
    /// The copy archives into this repository.
    ArchivingOn {
        /// The server's `postgresql.conf`, where that was kept outside PGDATA.
        configuration: Option<String>,
    },
    /// With which settings the copy archives, where a `postgresql.conf` had to be made for it.
    ArchivesWith {
        /// `archive_command`, or `archive_library` where that is set.
        command: String,
    },
    /// The `postgresql.conf` that had to be made says nothing of archiving, although the copy takes over.
    ArchivesNotYet,
    /// The copy's `postgresql.conf` names another data directory, which PostgreSQL would open (guc.c, `SelectConfigFiles`).
    LeadsElsewhere {
        /// Which.
        directory: String,
    },
    /// The copy's subscriptions do not run.
    SubscriptionsOff,
    /// What else in the original's configuration acts in the copy.
    OtherJobs,
    /// Replay makes tablespaces at their original places.
    NewTablespaces {
        /// Whether the copy takes the original's place.
        take_over: bool,
    },
    /// Unlogged tables are not in the WAL.
    UnloggedTables,
    /// Replication slots are not in a backup.
    SlotsLost,
    /// What has to be the same where the copy runs.
    MustFit {
        /// PostgreSQL's major version.
        pg_version: u16,
    },
    /// Settings that PostgreSQL must have at least, or it refuses to recover.
    ParametersNeeded(ControlSettings),
    /// Names and LSNs alone cannot prove that the target is in the archived WAL.
    TargetNotProven(TargetKind),
    /// An LSN that is reached with the first record that begins there or later: that one is replayed, too.
    ReplaysRecord {
        /// The record.
        record: RecordSpan,
        /// The commit that it is.
        commit: Option<End>,
    },
    /// The WAL breaks off; the target is reached only if it lies before.
    GapBehind(Gap),
    /// A newer backup was passed over.
    BackupSkipped {
        /// Which.
        backup: BackupId,
        /// Why.
        why: CannotReach,
    },
    /// Blocks of the backup whose checksums did not fit.
    DamagedBlocks(u64),
    /// Configuration files from outside PGDATA are restored beside it.
    Extras(Vec<String>),
    /// Timelines that this restore does not follow, although they are newer.
    OtherTimelines(Vec<TimelineId>),
}

impl fmt::Display for Note {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::AtTarget(TargetAction::Pause) => f.write_str(
                "At the target PostgreSQL pauses, read-only, so that you can look: SELECT pg_wal_replay_resume() then ends recovery and \
                 accepts writes; to try another target, stop it and restore again. While it is paused, a transaction that had not ended at the \
                 target (a DROP TABLE, say) keeps its locks, and queries on its tables wait: --target-action promote frees them.",
            ),
            Self::AtTarget(TargetAction::Promote) => {
                f.write_str("At the target PostgreSQL ends recovery and accepts writes, on a new timeline.")
            }
            Self::AtTarget(TargetAction::Shutdown) => {
                f.write_str("At the target PostgreSQL shuts down; it does so again on each start until recovery.signal is removed.")
            }
            Self::OpensAtEnd => f.write_str(
                "There is no target: PostgreSQL replays all archived WAL, then ends recovery and accepts writes, on a new timeline.",
            ),
            Self::StaysStandby { follows: true } => f.write_str(
                "The copy is a standby: it goes on asking the archive for WAL until it is promoted. It follows a failover, on to the timeline that \
                 begins there (recovery_target_timeline = 'latest'); every other restore gets its timeline's number, so that the history of a \
                 test clone cannot lead it elsewhere.",
            ),
            Self::StaysStandby { follows: false } => f.write_str(
                "The copy is a standby: it goes on asking the archive for WAL until it is promoted. It does not follow a failover: for that, \
                 ALTER SYSTEM SET recovery_target_timeline = 'latest' and restart it.",
            ),
            Self::ResetSettings => f.write_str(
                "The recovery settings stay in postgresql.auto.conf and do no harm while no signal file is there. A comment in that file has \
                 the line for psql that takes them all out after recovery.",
            ),
            Self::ArchivingOff => f.write_str(
                "The copy does not archive (archive_mode = off), so that it cannot mix its WAL into the original's, and waits for no synchronous \
                 standby. If it is the new primary, restore with --take-over; postgresql.auto.conf also has the line that takes these settings out.",
            ),
            Self::ArchivingOn { configuration: None } => f.write_str(
                "The copy takes over: it archives as its configuration says. The original must not run any more.",
            ),
            Self::ArchivingOn { configuration: Some(file) } => write!(
                f,
                "The copy takes over: it archives as its configuration says. The original must not run any more. The server had that in {file}, \
                 outside its data directory. Put it back there and start the copy with it; or start the copy with a small postgresql.conf \
                 that this restore makes in the data directory, where there is none: it has {file}'s archive_mode, archive_command and \
                 archive_library, but nothing that {file} includes.",
            ),
            Self::ArchivesWith { command } => write!(
                f,
                "Started with the postgresql.conf that was made in the data directory, the copy archives with: {command}"
            ),
            Self::ArchivesNotYet => f.write_str(
                "Started with the postgresql.conf that was made in the data directory, the copy does NOT archive: neither the server's own \
                 postgresql.conf nor postgresql.auto.conf says how. Set archive_mode = on and archive_command in it before you start it.",
            ),
            Self::LeadsElsewhere { directory } => write!(
                f,
                "postgresql.conf says data_directory = '{directory}': PostgreSQL would open that one and not the copy. Take the line out before \
                 you start it."
            ),
            Self::SubscriptionsOff => f.write_str(
                "Subscriptions do not run in the copy (max_logical_replication_workers = 0): they would take the changes that the original's \
                 wait for. Before DROP SUBSCRIPTION there: ALTER SUBSCRIPTION ... DISABLE, then ... SET (slot_name = NONE), or it drops the \
                 original's slot.",
            ),
            Self::OtherJobs => f.write_str(
                "All else acts as the original's configuration says: libraries of shared_preload_libraries run their jobs (pg_cron) in the copy \
                 too, once it accepts writes, and log_directory and external_pid_file may be the original's. Look through it before the start.",
            ),
            Self::NewTablespaces { take_over: true } => f.write_str(
                "A tablespace that was made after the backup is made again by the replay, at its original path, where a directory must be. What \
                 lies there is taken over.",
            ),
            Self::NewTablespaces { take_over: false } => f.write_str(
                "A tablespace that was made after the backup is made again by the replay, at its original path, where a directory must be; \
                 --tablespace-map cannot move it. Never start the copy where that is another server's tablespace.",
            ),
            Self::UnloggedTables => f.write_str("Unlogged tables come back empty."),
            Self::SlotsLost => f.write_str("Replication slots are lost: make them again for the standbys and subscribers that need them."),
            Self::MustFit { pg_version } => write!(
                f,
                "Start it with PostgreSQL {pg_version} on the same architecture; collations (glibc, ICU) and extensions must have the versions \
                 of the original, else rebuild the indexes that depend on them."
            ),
            Self::ParametersNeeded(needed) => write!(
                f,
                "Recovery needs at least max_connections = {}, max_worker_processes = {}, max_wal_senders = {}, \
                 max_prepared_transactions = {}, max_locks_per_transaction = {}.",
                needed.max_connections,
                needed.max_worker_processes,
                needed.max_wal_senders,
                needed.max_prepared_transactions,
                needed.max_locks_per_transaction
            ),
            Self::TargetNotProven(TargetKind::Time(_)) => f.write_str(
                "Names alone cannot prove that a commit later than the target is in the archived WAL. If there is none, PostgreSQL replays \
                 everything and then stops with \"recovery ended before configured recovery target was reached\": restore without a target then.",
            ),
            Self::TargetNotProven(target) => write!(
                f,
                "Names alone cannot prove that {target} is in the archived WAL. If it is not, PostgreSQL replays everything and then stops with \
                 \"recovery ended before configured recovery target was reached\"."
            ),
            Self::ReplaysRecord { record, commit } => {
                write!(f, "The record that begins at {} is replayed, too", record.lsn)?;
                if let Some(commit) = commit {
                    write!(f, ": transaction {} commits with it, {}", commit.xid, postgres_time(commit.time))?;
                }
                f.write_str(
                    ". If the target is what pg_current_wal_lsn() said, that is the first record behind what was there then: --target-exclusive \
                     ends before it.",
                )
            }
            Self::GapBehind(gap) if gap.begins_in_conflict() => write!(
                f,
                "WAL is in conflict: {gap}. If the target does not lie before that, the copy may hold what another server wrote: look \
                 before you use it."
            ),
            Self::GapBehind(gap) => write!(
                f,
                "WAL is {}: {gap}. If the target does not lie before that, PostgreSQL will stop there with an error.",
                if gap.broken.is_some() { "broken" } else { "missing" }
            ),
            Self::BackupSkipped { backup, why } => write!(f, "The newer backup {backup} was passed over: {why}."),
            Self::DamagedBlocks(count) => {
                write!(f, "{count} blocks of the cluster were damaged already when the backup was taken; `walden list-backups --json` names them.")
            }
            Self::Extras(paths) => write!(
                f,
                "Configuration that the server keeps outside its data directory is restored beside it: {}.",
                paths.join(", ")
            ),
            Self::OtherTimelines(timelines) => {
                let list: Vec<String> = timelines.iter().map(ToString::to_string).collect();
                write!(
                    f,
                    "The repository also knows of timeline {}, which this restore does not follow: --target-timeline chooses it.",
                    list.join(", ")
                )
            }
        }
    }
}
