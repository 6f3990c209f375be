//! The commands that only look: `windows`, `find`, `wal list`, `wal show`.

use std::path::PathBuf;

use clap::{Args, Subcommand, ValueEnum};
use jiff::Timestamp;
use walden_model::target::{BadTarget, TargetKind, parse_target_time};
use walden_pg::{SegmentName, SystemIdentifier, TimelineId, WalFileName};

#[derive(Debug, Args)]
pub struct WindowsArguments {
    /// Print JSON
    #[arg(long)]
    pub json: bool,
}

#[derive(Debug, Args)]
pub struct FindArguments {
    /// Dropped tables, other dropped relations, and dropped databases
    #[arg(long, help_heading = KINDS)]
    pub dropped: bool,
    /// Truncated tables
    #[arg(long, help_heading = KINDS)]
    pub truncated: bool,
    /// Transactions that deleted more than N rows of a table
    #[arg(long, value_name = "N", help_heading = KINDS)]
    pub deleted_more_than: Option<u64>,
    /// Transactions that updated more than N rows of a table
    #[arg(long, value_name = "N", help_heading = KINDS)]
    pub updated_more_than: Option<u64>,
    /// Restore points, made with pg_create_restore_point(); all, or those of one name
    #[arg(long, value_name = "NAME", num_args = 0..=1, help_heading = KINDS, value_parser = restore_point)]
    #[allow(clippy::option_option, reason = "absent, without a name, with one")]
    pub restore_point: Option<Option<String>>,

    /// Only what was committed between two times, both with a zone: '2026-11-22 14:00Z' '2026-11-22 15:00Z'
    #[arg(long, value_names = ["FROM", "TO"], num_args = 2, value_parser = parse_target_time, allow_hyphen_values = true)]
    pub between: Vec<Timestamp>,
    /// Which timeline to look along, with its ancestors [default: the newest archived one]
    #[arg(long, value_name = "TIMELINE")]
    pub target_timeline: Option<TimelineId>,
    /// Which directory the printed commands restore into [default: beside the configuration's pgdata, one for each finding]
    #[arg(long, value_name = "DIR")]
    pub target_dir: Option<PathBuf>,
    /// Which of the cluster's system identifiers [default: the one that was registered last]
    #[arg(long, value_name = "ID")]
    pub system_identifier: Option<SystemIdentifier>,
    /// Print JSON
    #[arg(long)]
    pub json: bool,
}

const KINDS: &str = "What to look for (default: everything that took data away)";

fn restore_point(text: &str) -> Result<String, BadTarget> {
    TargetKind::parse_name(text).map(|_| text.to_owned())
}

#[derive(Debug, Args)]
#[command(args_conflicts_with_subcommands = true)]
pub struct ConflictsArguments {
    /// Also show what the archiver of this data directory is refused
    #[arg(long, value_name = "DIR")]
    pub pgdata: Option<PathBuf>,
    /// Which of the cluster's system identifiers [default: the one that was registered last]
    #[arg(long, value_name = "ID")]
    pub system_identifier: Option<SystemIdentifier>,
    /// Print JSON
    #[arg(long)]
    pub json: bool,
    #[command(subcommand)]
    pub command: Option<ConflictsCommand>,
}

/// What to do with a conflict.
#[derive(Debug, Subcommand)]
pub enum ConflictsCommand {
    /// Write down whose an archived file is, of whose name another was set aside
    Resolve(ResolveArguments),
}

#[derive(Debug, Args)]
pub struct ResolveArguments {
    /// The file's name, as walden conflicts shows it
    #[arg(value_name = "FILE")]
    pub file: WalFileName,
    /// Whose the archived file is: ours, so that restores go across it, or foreign
    #[arg(long, value_enum, value_name = "WHOSE")]
    pub archived_is: ArchivedIs,
    /// Which of the cluster's system identifiers [default: the one that was registered last]
    #[arg(long, value_name = "ID")]
    pub system_identifier: Option<SystemIdentifier>,
    /// Print JSON
    #[arg(long)]
    pub json: bool,
}

/// Whose an archived file is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum ArchivedIs {
    /// This cluster's.
    Ours,
    /// Another server's.
    Foreign,
}

/// What to do with archived WAL.
#[derive(Debug, Subcommand)]
pub enum WalCommand {
    /// Show the archived WAL files, and what each segment's index says
    List(WalListArguments),
    /// Show all that a segment's index says
    Show(WalShowArguments),
}

#[derive(Debug, Args)]
pub struct WalListArguments {
    /// Only this timeline
    #[arg(long, value_name = "TIMELINE")]
    pub timeline: Option<TimelineId>,
    /// Which of the cluster's system identifiers [default: the one that was registered last]
    #[arg(long, value_name = "ID")]
    pub system_identifier: Option<SystemIdentifier>,
    /// Print JSON
    #[arg(long)]
    pub json: bool,
}

#[derive(Debug, Args)]
pub struct WalShowArguments {
    /// The segment's name: 24 hexadecimal digits
    #[arg(value_name = "SEGMENT")]
    pub segment: SegmentName,
    /// Read the whole segment instead of its index, which may leave out what did not fit
    #[arg(long)]
    pub read: bool,
    /// Which of the cluster's system identifiers [default: the one that was registered last]
    #[arg(long, value_name = "ID")]
    pub system_identifier: Option<SystemIdentifier>,
    /// Print JSON
    #[arg(long)]
    pub json: bool,
}
