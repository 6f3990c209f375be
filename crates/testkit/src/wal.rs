//! What `pg_waldump` tells of transactions' ends and restore points, in WAL order.

use anyhow::{Context, Result, bail};
use jiff::Timestamp;
use walden_pg::Lsn;

/// A commit or abort record.
#[derive(Debug, Clone)]
pub struct Outcome {
    /// The transaction: the lower half of what `pg_current_xact_id()` answers.
    pub xid: u32,
    /// The ledger's number of the transaction; `None` for what others wrote.
    pub number: Option<u64>,
    /// Commit, or abort.
    pub committed: bool,
    /// Where the record starts: what an LSN target is compared with.
    pub start: Lsn,
    /// Where the record before it starts.
    pub prev: Lsn,
    /// The time in the record: what a time target is compared with.
    pub time: Timestamp,
}

/// A record of `pg_create_restore_point`.
#[derive(Debug, Clone)]
pub struct RestorePoint {
    /// Its name.
    pub name: String,
    /// Where the record starts.
    pub start: Lsn,
}

/// What one line of `pg_waldump` is to the ledger.
#[derive(Debug)]
pub(crate) enum Record {
    Outcome(Outcome),
    RestorePoint(RestorePoint),
    Other,
}

/// Reads a line such as
/// `rmgr: Transaction len (rec/tot): 34/ 34, tx: 733, lsn: 0/0194B5E8, prev 0/0194B5A0, desc: COMMIT 2026-11-22 19:00:00.123456 UTC`
/// and returns where its record starts.
pub(crate) fn parse(line: &str) -> Result<(Lsn, Record)> {
    let understood = || -> Option<(Lsn, Record)> {
        let start = field(line, "lsn: ")?.parse().ok()?;
        let (_, what) = line.split_once("desc: ")?;
        let manager = line.strip_prefix("rmgr: ")?.split_whitespace().next()?;
        let (kind, rest) = what.split_once(' ').unwrap_or((what, ""));
        let record = match (manager, kind) {
            ("XLOG", "RESTORE_POINT") => Record::RestorePoint(RestorePoint {
                name: rest.to_owned(),
                start,
            }),
            ("Transaction", "COMMIT" | "ABORT") => Record::Outcome(Outcome {
                xid: field(line, "tx:")?.trim().parse().ok()?,
                number: None,
                committed: kind == "COMMIT",
                start,
                prev: field(line, "prev ")?.parse().ok()?,
                time: time(rest)?,
            }),
            _ => Record::Other,
        };
        Some((start, record))
    };
    let (start, record) =
        understood().with_context(|| format!("odd line of pg_waldump: {line}"))?;
    if line.contains("desc: COMMIT_PREPARED") || line.contains("desc: ABORT_PREPARED") {
        bail!("the ledger does not judge prepared transactions: {line}");
    }
    Ok((start, record))
}

/// Reads `2026-11-22 19:00:00.123456 UTC` at the start of a description.
fn time(text: &str) -> Option<Timestamp> {
    let (time, _) = text.split_once(" UTC")?;
    format!("{time}Z").parse().ok()
}

/// What stands between `name` and the next comma.
fn field<'a>(line: &'a str, name: &str) -> Option<&'a str> {
    let (_, rest) = line.split_once(name)?;
    rest.split(',').next()
}
