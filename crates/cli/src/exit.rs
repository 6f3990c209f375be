//! The exit codes of the three programs.

/// What `walden` and `walden-wal-push` say with their exit code.
///
/// PostgreSQL counts 1 to 125 from an `archive_command` as a failure and tries again; above that its archiver
/// restarts (pgarch.c, `pgarch_archiveXlog`), so no code here is larger.
pub mod common {
    /// Done.
    pub const OK: u8 = 0;
    /// It was tried and failed.
    pub const FAILURE: u8 = 1;
    /// The command line or the configuration is wrong: nothing was tried.
    pub const USAGE: u8 = 2;
    /// The backup was taken and can be restored, but blocks of the cluster are damaged.
    pub const DAMAGED_BLOCKS: u8 = 3;
    /// Everything was copied but what is damaged in the one repository, or in conflict in the other.
    pub const NOT_WHOLE: u8 = 8;
    /// A verify found that what is stored is damaged, or not there.
    pub const VERIFY_DAMAGE: u8 = 10;
    /// A verify found no damage, but WAL is missing.
    pub const VERIFY_GAPS: u8 = 11;
    /// A verify found neither, but could not look at everything.
    pub const VERIFY_OUTAGE: u8 = 12;
    /// A verify found nothing wrong, but could not prove everything: it is encrypted, or a newer Walden wrote it.
    pub const VERIFY_UNPROVEN: u8 = 13;
}

/// What `walden-wal-fetch` says with its exit code.
///
/// PostgreSQL takes 1 to 125 from a `restore_command` for "the archive ends here" and may then open the database
/// (xlogarchive.c, `RestoreArchivedFile`); from 126 on it stops. 129 to 192 are left to shells, which report a
/// signal's number plus 128: 143 would be taken for a shutdown that somebody asked for.
pub mod fetch {
    use walden_engine::fetch::Verdict;

    /// The file is there, whole and verified.
    pub const RESTORED: u8 = 0;
    /// The repository was asked, is the right one, and has no such file, nor any that would come after it. Also what a
    /// standby is told while the repository does not answer, because it asks again.
    pub const ABSENT: u8 = 1;
    /// The repository could not be reached or does not answer.
    pub const OUTAGE: u8 = 200;
    /// What is stored is not what was stored once.
    pub const DAMAGE: u8 = 201;
    /// The file is missing although later ones are there.
    pub const HOLE: u8 = 202;
    /// The command line or the configuration is wrong.
    pub const USAGE: u8 = 203;
    /// This machine failed (a full disk), or Walden has a defect.
    pub const INTERNAL: u8 = 204;

    /// The code that tells PostgreSQL a verdict.
    #[must_use]
    pub fn of(verdict: Verdict) -> u8 {
        match verdict {
            Verdict::Absent => ABSENT,
            Verdict::Outage => OUTAGE,
            Verdict::Damage => DAMAGE,
            Verdict::Hole => HOLE,
            Verdict::Configuration => USAGE,
            Verdict::Internal => INTERNAL,
        }
    }

    #[cfg(test)]
    mod tests {
        use super::*;

        #[test]
        fn only_a_proven_absence_ends_a_recovery() {
            for verdict in [
                Verdict::Outage,
                Verdict::Damage,
                Verdict::Hole,
                Verdict::Configuration,
                Verdict::Internal,
            ] {
                let code = of(verdict);
                assert!(
                    code >= 126 && !(129..=192).contains(&code),
                    "{verdict:?} exits {code}, which PostgreSQL or a shell would take for something else"
                );
            }
            assert_eq!(
                of(Verdict::Absent),
                1,
                "PostgreSQL goes on without a file that is not there"
            );
        }
    }
}
