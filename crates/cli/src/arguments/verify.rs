//! The command line of `verify`.

use clap::{Args, ValueEnum};
use walden_model::BackupId;
use walden_pg::SystemIdentifier;

#[derive(Debug, Args)]
pub struct VerifyArguments {
    /// How much is read: names (nothing but the listing), new (what was stored since the last good verify), all
    #[arg(
        long,
        value_enum,
        default_value = "all",
        value_name = "MODE",
        hide_possible_values = true
    )]
    pub mode: VerifyMode,
    /// Only this repository [default: each of the configuration, one after the other]
    #[arg(long, value_name = "NAME")]
    pub repository: Option<String>,
    /// Only this one of the cluster's system identifiers [default: all]
    #[arg(long, value_name = "ID")]
    pub system_identifier: Option<SystemIdentifier>,
    /// Only this backup, and the WAL that it needs itself
    #[arg(long, value_name = "ID")]
    pub backup: Option<BackupId>,
    /// Objects that are read at the same time [default: one for each core]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u8).range(1..))]
    pub jobs: Option<u8>,
    /// Print JSON
    #[arg(long)]
    pub json: bool,
}

/// How much is read.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum VerifyMode {
    /// Names, sizes, gaps.
    Names,
    /// Names, and what was stored since the last good verify.
    New,
    /// Everything.
    All,
}
