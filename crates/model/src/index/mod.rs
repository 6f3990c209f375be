//! The commit index: what a segment's WAL records say, in some kilobytes, kept in the segment's own object.
//!
//! Transaction ids are the 32 bits that stand in the records; [`SegmentIndex::next_xid`] and backups' snapshots tell their epoch.

mod claim;
mod crossing;
mod detail;
mod ends;
mod gather;
mod indexer;
mod limit;
mod matter;
mod rows;
mod summary;
#[cfg(test)]
mod tests;
mod xid;

pub use claim::claim;
pub use crossing::{Crossing, crossing};
pub use detail::{DetailReader, Moment, MomentKind, SegmentDetail};
pub use indexer::SegmentIndexer;
pub use summary::Summary;
pub use xid::{full_xid, precedes};

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use walden_pg::wal_record::{RelFileLocator, RelationOid};
use walden_pg::{Lsn, TimelineId};

use crate::records::RandomId;

/// The version of the index that this program writes. One of another version is as good as none.
pub const INDEX_VERSION: u32 = 1;

/// Bytes of JSON that a reader takes for an index. A writer stays far below.
const MOST_JSON: usize = 512 * 1024;

/// What one segment says. Records belong to the segment in which they begin; one that goes on in the next segment is in neither index, but
/// its parts are: [`SegmentIndex::tail`] and the next segment's [`SegmentIndex::head`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SegmentIndex {
    /// [`INDEX_VERSION`].
    pub version: u32,
    /// The object that it is the index of. A tail that is read alone says nothing else of where it belongs.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub of: Option<IndexedObject>,
    /// PostgreSQL's major version, by the pages' magic.
    pub pg_version: u16,
    /// Where the first record begins that begins here.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub first_lsn: Option<Lsn>,
    /// Behind the last whole record that begins here.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub end_lsn: Option<Lsn>,
    /// How many whole records begin here.
    pub records: u64,
    /// Why reading ended before the segment did.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stopped: Option<Stopped>,
    /// The part of a record that an earlier segment began.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub head: Option<Fragment>,
    /// The part of a record that goes on in the next segment.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tail: Option<Fragment>,
    /// Commits and aborts.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ends: Option<Ends>,
    /// The next transaction id with its epoch, as the last checkpoint here has it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub next_xid: Option<u64>,
    /// Restore points, in WAL order.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub restore_points: Vec<RestorePoint>,
    /// Checkpoints, in WAL order.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub checkpoints: Vec<CheckpointMark>,
    /// Where timelines begin, in WAL order.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub switches: Vec<TimelineSwitch>,
    /// Transactions that took something away, or may have, by their first record here.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub transactions: Vec<TransactionFacts>,
    /// Some of what belongs into [`Self::transactions`] (but see [`Self::left_out`]), one of their lists or [`Self::restore_points`] did not
    /// fit: who needs all of it reads the segment.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub incomplete: bool,
    /// Rows deleted and updated that are not told in [`Self::transactions`], for want of room or because they are few.
    #[serde(default, skip_serializing_if = "LeftOut::is_empty")]
    pub left_out: LeftOut,
}

impl SegmentIndex {
    /// Reads an index; `None` if this program cannot use it.
    #[must_use]
    pub fn decode(json: &str) -> Option<Self> {
        let index: Self = (json.len() <= MOST_JSON)
            .then(|| serde_json::from_str(json).ok())
            .flatten()?;
        (index.version == INDEX_VERSION).then_some(index)
    }

    /// Whether it says that it is this object's. One that does not is not believed: its object may be a copy from another archive, or of
    /// another segment.
    #[must_use]
    pub fn is_of(&self, archive_id: RandomId, key: &str) -> bool {
        self.of
            .as_ref()
            .is_some_and(|of| of.archive_id == archive_id && of.key == key)
    }

    /// The index of a segment that says nothing.
    #[must_use]
    pub fn empty() -> Self {
        Self {
            version: INDEX_VERSION,
            of: None,
            pg_version: 0,
            first_lsn: None,
            end_lsn: None,
            records: 0,
            stopped: None,
            head: None,
            tail: None,
            ends: None,
            next_xid: None,
            restore_points: Vec::new(),
            checkpoints: Vec::new(),
            switches: Vec::new(),
            transactions: Vec::new(),
            incomplete: false,
            left_out: LeftOut::default(),
        }
    }
}

/// An object, as its head names it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct IndexedObject {
    /// The archive's id.
    pub archive_id: RandomId,
    /// The key below the cluster ([`crate::keys::below_cluster`]).
    pub key: String,
}

/// The most rows that one transaction, with its subtransactions as far as they are known, deleted from or updated in one file here without
/// being told. Such rows do not make an index [`SegmentIndex::incomplete`].
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct LeftOut {
    /// Deleted.
    #[serde(default)]
    pub deleted: u64,
    /// Updated.
    #[serde(default)]
    pub updated: u64,
}

impl LeftOut {
    /// Counts rows that are left out.
    pub(crate) fn note(&mut self, deleted: u64, updated: u64) {
        self.deleted = self.deleted.max(deleted);
        self.updated = self.updated.max(updated);
    }

    /// Whether nothing was left out.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }
}

/// Where reading ended before the segment did, and why.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Stopped {
    /// Where the record or the page should begin that is none.
    pub at: Lsn,
    /// Why.
    pub why: StopReason,
}

/// Why reading ended before the segment did.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum StopReason {
    /// After `pg_switch_wal`, or `archive_timeout`, the rest is empty.
    Switch,
    /// The timeline ends here: the rest is empty, or older content.
    EndOfWal,
    /// Records were expected, and what stands there is none: the segment was damaged before it was archived.
    Damaged,
    /// Records of a version that this program does not know.
    UnknownVersion,
}

/// A part of a record that crosses a segment's edge.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Fragment {
    /// Where the record begins; only known of its first part.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub lsn: Option<Lsn>,
    /// Of a first part: where the first record of its transaction begins in this segment.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub first_lsn: Option<Lsn>,
    /// Of a first part: behind the record, once it is whole.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub end_lsn: Option<Lsn>,
    /// Bytes of the record that stand in this segment.
    pub length: u64,
    /// CRC32C of these bytes, of a first part without the record's header (24 bytes): parts' values combine, so that the record can be
    /// proven without its bytes.
    pub crc32c: u32,
    /// The bytes, or of a first part as many as there are of its header, in hexadecimal; `None` or less than `length` where they would not fit
    /// or cannot matter.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub bytes: String,
}

/// Commits and aborts, of which both end a recovery to a time.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ends {
    /// How many commits.
    pub commits: u64,
    /// How many aborts.
    pub aborts: u64,
    /// The first of either in WAL order.
    pub first: End,
    /// The last of either in WAL order.
    pub last: End,
    /// The last commit in WAL order.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_commit: Option<End>,
    /// The earliest time of either. Times are not in order.
    pub min_time: Timestamp,
    /// The latest time of either.
    pub max_time: Timestamp,
    /// The transactions that ended.
    pub xids: XidRange,
    /// Their subtransactions.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub subxids: Option<XidRange>,
}

/// A commit or an abort.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct End {
    /// Which.
    pub kind: Outcome,
    /// The transaction.
    pub xid: u32,
    /// Where its record begins.
    pub lsn: Lsn,
    /// Behind its record.
    pub end_lsn: Lsn,
    /// When, by the server's clock.
    pub time: Timestamp,
}

/// How a transaction ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Outcome {
    /// It counts.
    Commit,
    /// It does not.
    Abort,
}

/// Transaction ids between two, both included, in the circular order of `TransactionIdPrecedes` (transam.c). More may be covered than there are.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(from = "(u32, u32)", into = "(u32, u32)")]
pub struct XidRange {
    /// The oldest.
    pub oldest: u32,
    /// The newest.
    pub newest: u32,
}

impl From<(u32, u32)> for XidRange {
    fn from((oldest, newest): (u32, u32)) -> Self {
        Self { oldest, newest }
    }
}

impl From<XidRange> for (u32, u32) {
    fn from(range: XidRange) -> Self {
        (range.oldest, range.newest)
    }
}

/// A restore point (`pg_create_restore_point`).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RestorePoint {
    /// Its name; not unique.
    pub name: String,
    /// Where its record begins.
    pub lsn: Lsn,
    /// Behind its record: what `pg_create_restore_point` returned.
    pub end_lsn: Lsn,
    /// When, by the server's clock.
    pub time: Timestamp,
}

/// A checkpoint.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct CheckpointMark {
    /// Where its record begins.
    pub lsn: Lsn,
    /// Where recovery from it begins.
    pub redo: Lsn,
    /// Whether the server was shut down with it.
    pub shutdown: bool,
    /// When, by the server's clock, in whole seconds.
    pub time: Timestamp,
}

/// The beginning of a timeline.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct TimelineSwitch {
    /// Where the record begins that says so.
    pub lsn: Lsn,
    /// The timeline that begins.
    pub timeline: TimelineId,
    /// The one before.
    pub previous: TimelineId,
    /// When, by the server's clock.
    pub time: Timestamp,
}

/// What one transaction, or one subtransaction, did in one segment, as far as it may have taken something away. Facts, no verdicts: those
/// need what it did in other segments, and how it ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TransactionFacts {
    /// Its id, as it stands in its records: a subtransaction's facts stand under its own, but the rows under its transaction's if that committed here. Under 0 stand facts of transactions that had no id
    /// yet: files that CREATE INDEX created, and rows of `pg_database` that were changed in place.
    pub xid: u32,
    /// Where its first record here begins, be it of interest or not.
    pub first_lsn: Lsn,
    /// The transaction that it is a part of, where a record here says so.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub top: Option<u32>,
    /// AccessExclusiveLocks it took.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub locks: Vec<At<RelationOid>>,
    /// Main forks it created.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub created: Vec<CreatedFile>,
    /// Databases whose directory it removed.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub databases_dropped: Vec<At<u32>>,
    /// What it did to `pg_database`, if that still has its first file (1262): what DROP DATABASE does first lies before a checkpoint, and so
    /// perhaps some segments before the removal of the directory.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub database_rows: Vec<At<DatabaseRow>>,
    /// Relations whose TRUNCATE logical decoding was told.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub truncated: Vec<At<RelationOid>>,
    /// Rows it deleted, by file; catalogs (files numbered below 16384) only as [`Self::class_rows`].
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub deleted: Vec<RowsOf>,
    /// Rows it updated, by file; the same.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub updated: Vec<RowsOf>,
    /// What it did to `pg_class`, if that still has its first file (1259).
    #[serde(default, skip_serializing_if = "ClassRows::is_empty")]
    pub class_rows: ClassRows,
    /// How it ended, if it did so here.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub end: Option<TransactionOutcome>,
}

impl TransactionFacts {
    /// Of a transaction of which nothing is known yet.
    pub(crate) fn new(xid: u32, first_lsn: Lsn) -> Self {
        Self {
            xid,
            first_lsn,
            top: None,
            locks: Vec::new(),
            created: Vec::new(),
            databases_dropped: Vec::new(),
            database_rows: Vec::new(),
            truncated: Vec::new(),
            deleted: Vec::new(),
            updated: Vec::new(),
            class_rows: ClassRows::default(),
            end: None,
        }
    }
}

/// Something, and where the record begins that says so.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct At<T> {
    /// What.
    pub what: T,
    /// Where.
    pub lsn: Lsn,
}

/// A main fork that a transaction created.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct CreatedFile {
    /// The file.
    pub file: RelFileLocator,
    /// Where the record begins that says so.
    pub lsn: Lsn,
    /// Whether rows came into it afterwards (INSERT, COPY), in this segment and by this transaction: only tables and materialized views
    /// have such records.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub rows: bool,
    /// Whether whole pages came into it afterwards, in this segment and by this transaction: of an index build, VACUUM FULL or CLUSTER, or a move to another tablespace.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub pages: bool,
}

/// What was done to a row of `pg_database`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum DatabaseRow {
    /// It was changed in place: DROP DATABASE marks it invalid so, before anything else and whether the transaction commits or not; VACUUM does it, too.
    Inplace,
    /// It was deleted.
    Deleted,
}

/// Rows of one file.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct RowsOf {
    /// The file.
    pub file: RelFileLocator,
    /// How many.
    pub rows: u64,
    /// Where the first such record begins.
    pub lsn: Lsn,
}

/// Rows of `pg_class`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ClassRows {
    /// That came in: relations were created.
    pub inserted: u32,
    /// That changed.
    pub updated: u32,
    /// That went: relations were dropped, a rewrite's temporary one among them.
    pub deleted: u32,
}

impl ClassRows {
    /// Whether there is nothing to say.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }
}

/// How a transaction ended, and what it dropped with that.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TransactionOutcome {
    /// Its end.
    #[serde(flatten)]
    pub end: End,
    /// Its subtransactions, in ranges without holes.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub subxids: Vec<XidRange>,
    /// The database in which it ran, where the record says so.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub database: u32,
    /// Files that go with it.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub dropped_files: Vec<RelFileLocator>,
    /// Relations whose statistics go with it (version 15 and later).
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub dropped_stats: Vec<RelationOid>,
    /// Relations whose cached descriptions became invalid.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub invalidated: Vec<RelationOid>,
}

fn is_zero(number: &u32) -> bool {
    *number == 0
}
