//! The command line of `walden copy`.

use clap::Args;

#[derive(Debug, Args)]
pub struct CopyArguments {
    /// The repository to copy from, by its name in the configuration
    #[arg(long, value_name = "NAME")]
    pub from: String,
    /// The repository to copy to, by its name in the configuration
    #[arg(long, value_name = "NAME")]
    pub to: String,
    /// Say what would be copied, and copy nothing
    #[arg(long)]
    pub dry_run: bool,
    /// Also hold objects against each other that have the same name and size in both
    #[arg(long)]
    pub compare: bool,
    /// How many objects are copied at the same time, 1 to 64; to a bucket, each may take up to 160 MiB of memory
    #[arg(long, value_name = "N", default_value = "4", value_parser = clap::value_parser!(u8).range(1..=64))]
    pub jobs: u8,
    /// Print JSON
    #[arg(long)]
    pub json: bool,
}
