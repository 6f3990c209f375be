//! The commands that only look.

use clap::{Args, Subcommand};
use walden_pg::{SegmentName, SystemIdentifier, TimelineId};

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
