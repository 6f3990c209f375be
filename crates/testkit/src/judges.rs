//! PostgreSQL's own judges of a data directory.

use std::path::Path;

use anyhow::{Result, bail};
use walden_pg::{Lsn, SegmentName, TimelineId, WalSegmentSize};

use crate::cluster::Cluster;
use crate::install::PgInstall;
use crate::process::run;

/// `pg_verifybackup -n` on a directory that no server has run in; `args` come before it.
///
/// # Errors
/// Where it finds anything, with what it says.
pub fn pg_verifybackup(install: &PgInstall, directory: &Path, args: &[&str]) -> Result<()> {
    let mut command = install.command("pg_verifybackup");
    // The WAL is in the repository, not here.
    run(command.arg("--no-parse-wal").args(args).arg(directory)).map(drop)
}

/// `pg_amcheck` on all tables and indexes of the database `postgres`, which must have the extension
/// (a [`crate::Ledger`] makes it). Works on a server in recovery too.
///
/// # Errors
/// Where it finds corruption, with what it says.
pub fn pg_amcheck(cluster: &Cluster) -> Result<()> {
    let mut command = cluster.install().command("pg_amcheck");
    command.args(["--heapallindexed", "--username=postgres", "--host"]);
    command.arg(cluster.socket_dir());
    command.arg(format!("--port={}", cluster.port()));
    run(command.arg("postgres")).map(drop)
}

/// `pg_waldump` of the records of one timeline from `start` on that end at or before `end`.
///
/// # Errors
/// Where the WAL between the two is not whole in `directory`.
pub fn pg_waldump(
    install: &PgInstall,
    directory: &Path,
    timeline: TimelineId,
    start: Lsn,
    end: Lsn,
) -> Result<String> {
    // Told no segment, it learns their size from any file in the folder, and that may be one without a byte of WAL yet.
    let size = segment_size(directory)?;
    let segment = |lsn| SegmentName::containing(timeline, lsn, size).to_string();
    let mut command = install.command("pg_waldump");
    command.arg(format!("--start={start}"));
    command.arg(format!("--end={end}"));
    command.arg("--path").arg(directory);
    command.args([segment(start), segment(Lsn(end.0.saturating_sub(1)))]);
    run(&mut command)
}

/// A segment's length is what `initdb` was told.
fn segment_size(directory: &Path) -> Result<WalSegmentSize> {
    for entry in std::fs::read_dir(directory)? {
        let entry = entry?;
        let name = entry.file_name();
        if name
            .to_str()
            .is_some_and(|name| name.parse::<SegmentName>().is_ok())
        {
            return Ok(WalSegmentSize::new(entry.metadata()?.len())?);
        }
    }
    bail!("no segment in {}", directory.display())
}
