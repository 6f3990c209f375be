//! The command line of `walden`.

mod copy;
mod queries;
mod retention;
mod verify;

use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;

use clap::{Args, Parser, Subcommand, ValueEnum};
use jiff::Timestamp;
use walden_model::BackupId;
use walden_model::target::{
    RecoveryTarget, TargetAction, TargetKind, TargetTimeline, parse_target_time,
};
use walden_pg::{Lsn, SystemIdentifier};

pub use copy::CopyArguments;
pub use queries::{
    ArchivedIs, ConflictsArguments, ConflictsCommand, FindArguments, ResolveArguments, WalCommand,
    WalListArguments, WalShowArguments, WindowsArguments,
};
pub use retention::{ExpireArguments, PinArguments, UnpinArguments};

pub use verify::{VerifyArguments, VerifyMode};

use crate::command::Place;
use crate::config::{LogLevel, Span};

/// Backs up PostgreSQL clusters, and brings them back to any moment that backups and archived WAL cover.
#[derive(Debug, Parser)]
#[command(name = "walden", version, after_help = EXIT_CODES)]
pub struct Arguments {
    #[command(flatten)]
    pub place: Place,
    /// What is logged: error, warn, info, debug or trace [default: the configuration's log_level]
    #[arg(long, global = true, value_name = "LEVEL", hide_possible_values = true)]
    pub log_level: Option<LogLevel>,
    /// Log more; may be repeated
    #[arg(short, long, global = true, action = clap::ArgAction::Count)]
    pub verbose: u8,
    #[command(subcommand)]
    pub command: Command,
}

const EXIT_CODES: &str = "\
Exit codes:
  0  done
  1  failed
  2  the command line or the configuration is wrong
  3  the backup was taken and is kept, but blocks of the cluster are damaged
  8  everything was copied but what is damaged or in conflict, which is named
 10  verify: something is damaged, or not there (before 11, 12 and 13)
 11  verify: nothing is damaged, but WAL is missing
 12  verify: nothing wrong was found, but not everything could be looked at
 13  verify: nothing wrong was found, but not everything could be proven

Results go to standard output, everything else to standard error.
walden-wal-push and walden-wal-fetch are PostgreSQL's archive_command and restore_command.";

/// What to do.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Make the repositories, and register the cluster in each
    Init(InitArguments),
    /// Take a base backup
    Backup(BackupArguments),
    /// Show the backups, and until where each can be restored
    ListBackups(ListArguments),
    /// Show from when until when the cluster can be restored, to the exact last commit
    Windows(WindowsArguments),
    /// Find what took data away, with the command that goes back to just before it
    Find(Box<FindArguments>),
    /// Plan a restore, and carry it out
    Restore(Box<RestoreArguments>),
    /// Read what is stored, and prove it
    Verify(VerifyArguments),
    /// Make one repository hold what another holds
    Copy(CopyArguments),
    /// Archive from a server's pg_wal what nobody archived, after a failover for instance
    PushMissing(PushMissingArguments),
    /// Show WAL files of one name and different content, from two servers, and say whose they are
    Conflicts(ConflictsArguments),
    /// Remove the backups and the WAL that retention does not keep
    Expire(ExpireArguments),
    /// Keep a backup, whatever retention says
    Pin(PinArguments),
    /// Leave a pinned backup to retention again
    Unpin(UnpinArguments),
    /// Look at archived WAL
    #[command(subcommand)]
    Wal(WalCommand),
}

#[derive(Debug, Args)]
pub struct InitArguments {
    /// The data directory [default: the configuration's pgdata]
    #[arg(long, value_name = "DIR")]
    pub pgdata: Option<PathBuf>,
    /// The only repository to make and to register in [default: all of the configuration]
    #[arg(long, value_name = "NAME")]
    pub repository: Option<String>,
    /// Register another system identifier under the cluster's name, after pg_upgrade or a new initdb
    #[arg(long)]
    pub new_system_identifier: bool,
}

#[derive(Debug, Args)]
pub struct BackupArguments {
    /// How the server's checkpoint before the backup goes: at once, or spread as the server's settings say
    #[arg(long, value_enum, default_value = "fast", value_name = "MODE")]
    pub checkpoint: CheckpointMode,
    /// The most the server sends in a second, as pg_basebackup takes it: a number of kilobytes, or with suffix k or M
    #[arg(long, value_name = "RATE")]
    pub max_rate: Option<MaxRate>,
    /// A remark that list-backups shows; may be repeated
    #[arg(long, value_name = "KEY=VALUE")]
    pub annotate: Vec<Annotation>,
    /// The backup's label
    #[arg(long, default_value = "walden")]
    pub label: String,
    /// How long to wait for the WAL that the backup needs to be archived [default: the configuration's backup.wal_timeout]
    #[arg(long, value_name = "TIME")]
    pub wal_timeout: Option<Span>,
    /// Print JSON
    #[arg(long)]
    pub json: bool,
}

/// pg_basebackup's `--checkpoint`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum CheckpointMode {
    /// At once.
    Fast,
    /// Over `checkpoint_completion_target` of the server's checkpoint interval.
    Spread,
}

#[derive(Debug, Args)]
pub struct ListArguments {
    /// Print JSON
    #[arg(long)]
    pub json: bool,
}

#[derive(Debug, Args)]
pub struct PushMissingArguments {
    /// The server's data directory; it may run or not [default: the configuration's pgdata]
    #[arg(long, value_name = "DIR")]
    pub pgdata: Option<PathBuf>,
    /// Say what is missing, and push nothing
    #[arg(long)]
    pub dry_run: bool,
    /// Print JSON
    #[arg(long)]
    pub json: bool,
}

#[derive(Debug, Args)]
pub struct RestoreArguments {
    /// The data directory to restore into: absent or empty
    pub target_dir: PathBuf,

    /// Recover until this time, with a zone: '2026-11-22 17:50:07+01:00', or with Z for UTC
    #[arg(long, value_name = "TIME", group = "target", group = "excludable", help_heading = TARGET, value_parser = parse_target_time, allow_hyphen_values = true)]
    pub target_time: Option<Timestamp>,
    /// Recover until this write-ahead log location
    #[arg(long, value_name = "LSN", group = "target", group = "excludable", help_heading = TARGET)]
    pub target_lsn: Option<Lsn>,
    /// Recover until this transaction has ended
    #[arg(long, value_name = "XID", group = "target", group = "excludable", help_heading = TARGET, value_parser = TargetKind::parse_xid)]
    pub target_xid: Option<TargetKind>,
    /// Recover until this restore point, made with pg_create_restore_point()
    #[arg(long, value_name = "NAME", group = "target", help_heading = TARGET, value_parser = TargetKind::parse_name)]
    pub target_name: Option<TargetKind>,
    /// End recovery as soon as the backup is consistent
    #[arg(long, group = "target", help_heading = TARGET)]
    pub target_immediate: bool,
    /// Which timeline to recover along: latest, current (the backup's), or its number
    #[arg(long, value_name = "TIMELINE", default_value = "latest", help_heading = TARGET)]
    pub target_timeline: TargetTimeline,
    /// Stop just before the target instead of just after
    #[arg(long, requires = "excludable", help_heading = TARGET)]
    pub target_exclusive: bool,
    /// What the server does at the target: pause, promote or shutdown [default: pause]
    #[arg(long, value_name = "ACTION", requires = "target", help_heading = TARGET)]
    pub target_action: Option<TargetAction>,

    /// The backup to begin with [default: the newest that can reach the target]
    #[arg(long, value_name = "ID")]
    pub backup: Option<BackupId>,
    /// Put the tablespace of directory OLD into NEW; may be repeated. Write \= for = in a directory's name
    #[arg(long, value_name = "OLD=NEW")]
    pub tablespace_map: Vec<TablespaceMap>,
    /// Where to put the write-ahead log, with a link to it in the data directory
    #[arg(long, value_name = "DIR", value_parser = absolute)]
    pub waldir: Option<PathBuf>,
    /// Start as a standby, which goes on following
    #[arg(long)]
    pub standby: bool,
    /// Go on archiving: this is the cluster from now on, not a copy
    #[arg(long)]
    pub take_over: bool,
    /// Which of the cluster's system identifiers [default: the one that was registered last]
    #[arg(long, value_name = "ID")]
    pub system_identifier: Option<SystemIdentifier>,
    /// Print the plan, and do nothing
    #[arg(long)]
    pub dry_run: bool,
    /// Print the plan as JSON, once the restore is done
    #[arg(long)]
    pub json: bool,
}

const TARGET: &str = "Recovery target (default: the end of the archived WAL)";

impl RestoreArguments {
    /// What is asked for, as the planner takes it.
    #[must_use]
    pub fn target(&self) -> RecoveryTarget {
        let kind = self
            .target_time
            .map(TargetKind::Time)
            .or(self.target_lsn.map(TargetKind::Lsn))
            .or_else(|| self.target_xid.clone())
            .or_else(|| self.target_name.clone())
            .or(self.target_immediate.then_some(TargetKind::Immediate))
            .unwrap_or(TargetKind::Latest);
        RecoveryTarget {
            kind,
            inclusive: !self.target_exclusive,
            timeline: self.target_timeline,
            action: self.target_action.unwrap_or(TargetAction::Pause),
        }
    }
}

fn absolute(text: &str) -> Result<PathBuf, String> {
    let path = PathBuf::from(text);
    if path.is_absolute() {
        Ok(path)
    } else {
        Err("write an absolute path".to_owned())
    }
}

/// `KEY=VALUE`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Annotation {
    /// Before the first `=`.
    pub key: String,
    /// Behind it.
    pub value: String,
}

impl FromStr for Annotation {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text.split_once('=') {
            Some((key, value)) if !key.is_empty() && !text.chars().any(char::is_control) => {
                Ok(Self {
                    key: key.to_owned(),
                    value: value.to_owned(),
                })
            }
            _ => Err("write KEY=VALUE on one line, as in reason=upgrade".to_owned()),
        }
    }
}

/// `OLD=NEW`, both absolute, `\=` for an `=` in a name, as pg_basebackup's `--tablespace-mapping` (`tablespace_list_append`).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TablespaceMap {
    /// Where the tablespace was when the backup was taken.
    pub old: PathBuf,
    /// Where it is restored.
    pub new: PathBuf,
}

impl FromStr for TablespaceMap {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = || {
            r"write OLD=NEW, two absolute directories, as in /srv/ts1=/restore/ts1 (\= for = in a name)".to_owned()
        };
        let mut sides = vec![String::new()];
        let mut characters = text.chars().peekable();
        while let Some(character) = characters.next() {
            let side = sides.last_mut().ok_or_else(wrong)?;
            match character {
                '\\' if characters.next_if_eq(&'=').is_some() => side.push('='),
                '=' => sides.push(String::new()),
                other => side.push(other),
            }
        }
        match sides.as_slice() {
            [old, new] => Ok(Self {
                old: absolute(old).map_err(|_| wrong())?,
                new: absolute(new).map_err(|_| wrong())?,
            }),
            _ => Err(wrong()),
        }
    }
}

/// pg_basebackup's `--max-rate` (`parse_max_rate`), in kilobytes a second.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MaxRate(pub u32);

impl fmt::Display for MaxRate {
    /// As pg_basebackup takes it.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}k", self.0)
    }
}

impl FromStr for MaxRate {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (number, factor) = match (text.strip_suffix('M'), text.strip_suffix('k')) {
            (Some(number), _) => (number, 1024),
            (None, Some(number)) => (number, 1),
            (None, None) => (text, 1),
        };
        // replication/basebackup.h: MAX_RATE_LOWER and MAX_RATE_UPPER.
        number
            .parse::<u32>()
            .ok()
            .and_then(|number| number.checked_mul(factor))
            .filter(|rate| (32..=1_048_576).contains(rate))
            .map(Self)
            .ok_or_else(|| "write a rate from 32k to 1024M a second".to_owned())
    }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    fn restore(more: &[&str]) -> Result<RecoveryTarget, String> {
        let arguments = ["walden", "restore", "/restored"].iter().chain(more);
        match Arguments::try_parse_from(arguments)
            .map_err(|e| e.to_string())?
            .command
        {
            Command::Restore(restore) => Ok(restore.target()),
            other => panic!("restore was asked for: {other:?}"),
        }
    }

    fn kind(more: &[&str]) -> TargetKind {
        restore(more)
            .unwrap_or_else(|e| panic!("{more:?} is a target: {e}"))
            .kind
    }

    #[test]
    fn clap_finds_nothing_wrong_with_the_definition() {
        Arguments::command().debug_assert();
    }

    #[test]
    fn each_target_option_means_its_target() {
        assert_eq!(kind(&[]), TargetKind::Latest);
        assert_eq!(kind(&["--target-immediate"]), TargetKind::Immediate);
        assert_eq!(
            kind(&["--target-lsn", "0/16B3748"]),
            TargetKind::Lsn(Lsn(0x16B_3748))
        );
        assert_eq!(kind(&["--target-xid", "731"]), TargetKind::Xid(731));
        assert_eq!(
            kind(&["--target-name", "before upgrade"]),
            TargetKind::Name("before upgrade".to_owned())
        );
        let time = "2026-11-22T16:50:07Z".parse().expect("a time");
        assert_eq!(
            kind(&["--target-time", "2026-11-22 17:50:07+01"]),
            TargetKind::Time(time)
        );
        let target = restore(&[
            "--target-xid",
            "731",
            "--target-exclusive",
            "--target-action",
            "promote",
            "--target-timeline",
            "3",
        ]);
        let target = target.expect("a whole target");
        assert!(!target.inclusive, "--target-exclusive");
        assert_eq!(target.action, TargetAction::Promote);
        assert_eq!(
            target.timeline,
            TargetTimeline::Number(walden_pg::TimelineId(3))
        );
        assert_eq!(
            restore(&[]),
            Ok(RecoveryTarget::default()),
            "the defaults are the planner's"
        );
    }

    #[test]
    fn what_postgresql_would_refuse_is_refused_here() {
        for (more, says) in [
            (
                &["--target-lsn", "0/1", "--target-immediate"][..],
                "cannot be used with",
            ),
            (&["--target-time", "2026-11-22 17:50:07"], "has no zone"),
            (
                &["--target-exclusive"],
                "required arguments were not provided",
            ),
            (
                &["--target-exclusive", "--target-immediate"],
                "required arguments were not provided",
            ),
            (
                &["--target-action", "pause"],
                "required arguments were not provided",
            ),
            (&["--target-lsn", "16B3748"], "invalid value"),
            (&["--target-xid", "2"], "is not a transaction id"),
            (&["--target-timeline", "newest"], "is not a timeline"),
            (&["--backup", "latest"], "is not a backup's id"),
            (&["--waldir", "pg_wal"], "write an absolute path"),
            (&["--tablespace-map", "/a=/b=/c"], "write OLD=NEW"),
        ] {
            let said = restore(more).expect_err("this should have been refused");
            assert!(said.contains(says), "{more:?} should say {says:?}: {said}");
        }
    }

    #[test]
    fn pairs_are_split_where_they_should_be() {
        let map = |old: &str, new: &str| {
            Ok(TablespaceMap {
                old: old.into(),
                new: new.into(),
            })
        };
        assert_eq!("/a=/b".parse(), map("/a", "/b"));
        assert_eq!(r"/a\=1=/b\=2".parse(), map("/a=1", "/b=2"));
        assert_eq!(r"/a\b=/c".parse(), map(r"/a\b", "/c"));
        for wrong in ["", "/a", "/a=", "=/b", "a=/b", "/a=b"] {
            assert!(
                wrong.parse::<TablespaceMap>().is_err(),
                "{wrong:?} maps nothing"
            );
        }
        let annotation: Annotation = "why=a=b".parse().expect("an annotation");
        assert_eq!(
            (annotation.key.as_str(), annotation.value.as_str()),
            ("why", "a=b"),
            "the first = counts"
        );
        for wrong in ["", "why", "=x", "a=b\nc"] {
            assert!(
                wrong.parse::<Annotation>().is_err(),
                "{wrong:?} annotates nothing"
            );
        }
    }

    #[test]
    fn rates_are_those_of_pg_basebackup() {
        for (text, rate) in [
            ("32", 32),
            ("32k", 32),
            ("100M", 102_400),
            ("1024M", 1_048_576),
        ] {
            assert_eq!(text.parse(), Ok(MaxRate(rate)), "{text}");
        }
        for wrong in ["", "31", "1025M", "5G", "-1", "4194304M", "1.5M"] {
            assert!(wrong.parse::<MaxRate>().is_err(), "{wrong:?} is no rate");
        }
    }
}
