//! What single WAL records say, as far as a person who wants data back could ask for it.

use serde::{Deserialize, Serialize};

use crate::{Lsn, TimelineId};

/// A moment by the server's clock (`TimestampTz` in `datatype/timestamp.h`): microseconds since 2000-01-01 00:00 UTC.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct PgTimestamp(pub i64);

impl PgTimestamp {
    /// Microseconds since 1970-01-01 00:00 UTC; `None` beyond what 64 bits hold.
    #[must_use]
    pub fn unix_micros(self) -> Option<i64> {
        /// `POSTGRES_EPOCH_JDATE - UNIX_EPOCH_JDATE` days.
        const EPOCHS_APART: i64 = 10_957 * 86_400 * 1_000_000;
        self.0.checked_add(EPOCHS_APART)
    }
}

/// Which file a relation's content stands in (`RelFileLocator` in `storage/relfilelocator.h`, `RelFileNode` up to version 15).
/// In JSON `[tablespace, database, number]`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(from = "(u32, u32, u32)", into = "(u32, u32, u32)")]
pub struct RelFileLocator {
    /// The tablespace's OID; 1664 is `pg_global`.
    pub tablespace: u32,
    /// The database's OID; 0 for what all share.
    pub database: u32,
    /// The file's number: `pg_class.relfilenode`, which is the relation's OID only until its first rewrite.
    pub number: u32,
}

impl From<(u32, u32, u32)> for RelFileLocator {
    fn from((tablespace, database, number): (u32, u32, u32)) -> Self {
        Self {
            tablespace,
            database,
            number,
        }
    }
}

impl From<RelFileLocator> for (u32, u32, u32) {
    fn from(file: RelFileLocator) -> Self {
        (file.tablespace, file.database, file.number)
    }
}

/// A relation by its OID, which it keeps for life. In JSON `[database, relation]`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(from = "(u32, u32)", into = "(u32, u32)")]
pub struct RelationOid {
    /// The database's OID; 0 for what all share.
    pub database: u32,
    /// The relation's OID.
    pub relation: u32,
}

impl From<(u32, u32)> for RelationOid {
    fn from((database, relation): (u32, u32)) -> Self {
        Self { database, relation }
    }
}

impl From<RelationOid> for (u32, u32) {
    fn from(oid: RelationOid) -> Self {
        (oid.database, oid.relation)
    }
}

/// How a transaction ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EndKind {
    /// COMMIT or COMMIT PREPARED.
    Commit,
    /// ROLLBACK, an error, or ROLLBACK PREPARED.
    Abort,
}

/// The end of a transaction (`xl_xact_parsed_commit` and `xl_xact_parsed_abort` in `access/xact.h`). Only top-level transactions have one;
/// a subtransaction that aborts alone has an abort record of its own, too.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TransactionEnd {
    /// How.
    pub kind: EndKind,
    /// The transaction: of a prepared one, the id in the record's payload (`XACT_XINFO_HAS_TWOPHASE`), for its header has another or none.
    pub xid: u32,
    /// Whether it was prepared before.
    pub prepared: bool,
    /// When, by the server's clock.
    pub time: PgTimestamp,
    /// Its subtransactions that ended with it.
    pub subxids: Vec<u32>,
    /// The database (`XACT_XINFO_HAS_DBINFO`), else 0.
    pub database: u32,
    /// Files that go with this end: of a commit, what it dropped; of an abort, what it had created.
    pub dropped_files: Vec<RelFileLocator>,
    /// Relations whose statistics go with this end (`XACT_XINFO_HAS_DROPPED_STATS`, from version 15 on; `PGSTAT_KIND_RELATION` alone).
    pub dropped_stats: Vec<RelationOid>,
    /// Relations whose cached descriptions become invalid (`SharedInvalRelcacheMsg` in `storage/sinval.h`), each once.
    pub invalidated: Vec<RelationOid>,
}

/// A checkpoint (`CheckPoint` in `catalog/pg_control.h`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Checkpoint {
    /// Whether the server was shut down with it.
    pub shutdown: bool,
    /// Where recovery from it begins.
    pub redo: Lsn,
    /// The timeline.
    pub timeline: TimelineId,
    /// The timeline before; differs from `timeline` where a new one begins.
    pub previous_timeline: TimelineId,
    /// The next transaction id, with its epoch.
    pub next_xid: u64,
    /// When, by the server's clock; whole seconds.
    pub time: PgTimestamp,
}

/// What a heap record did (`access/heapam_xlog.h`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HeapChange {
    /// Rows came in: INSERT, COPY.
    Insert,
    /// A row was deleted; moves between partitions and taken-back speculative inserts are not told.
    Delete,
    /// A row was updated.
    Update,
    /// A row was changed in place (`XLOG_HEAP_INPLACE`): catalogs alone.
    Inplace,
}

/// What a record says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// A transaction, or a subtransaction alone, ended.
    End(TransactionEnd),
    /// Subtransactions of a transaction that is under way (`XLOG_XACT_ASSIGNMENT`).
    Assignment {
        /// The transaction.
        top: u32,
        /// Its subtransactions.
        subxids: Vec<u32>,
    },
    /// `pg_create_restore_point` (`xl_restore_point`).
    RestorePoint {
        /// When, by the server's clock.
        time: PgTimestamp,
        /// Its name; bytes that are no UTF-8 are replaced.
        name: String,
    },
    /// A checkpoint ended.
    Checkpoint(Checkpoint),
    /// A promotion without a checkpoint (`xl_end_of_recovery`).
    EndOfRecovery {
        /// When, by the server's clock.
        time: PgTimestamp,
        /// The timeline that begins.
        timeline: TimelineId,
        /// The one before.
        previous_timeline: TimelineId,
    },
    /// The rest of the segment is empty (`XLOG_SWITCH`).
    Switch,
    /// A database's directory is removed (`xl_dbase_drop_rec`).
    DatabaseDropped {
        /// Its OID.
        database: u32,
    },
    /// A relation's main fork is created (`xl_smgr_create`), or an unlogged one's init fork: of these the main fork's creation is not told.
    FileCreated(RelFileLocator),
    /// Rows of a heap changed.
    Heap {
        /// How.
        change: HeapChange,
        /// Whose.
        file: RelFileLocator,
        /// How many.
        rows: u32,
    },
    /// TRUNCATE, as logical decoding sees it (`xl_heap_truncate`; only with `wal_level = logical`).
    Truncate {
        /// The database's OID.
        database: u32,
        /// The relations' OIDs.
        relations: Vec<u32>,
    },
    /// Whole pages of a main fork were written (`XLOG_FPI`): bulk content, of a rewrite or an index build.
    Pages(RelFileLocator),
    /// AccessExclusiveLocks (`XLOG_STANDBY_LOCK`): who holds them, and on what. Temporary relations have them, too.
    Locks(Vec<(u32, RelationOid)>),
    /// Which transactions run (`xl_running_xacts`).
    RunningXacts {
        /// The next transaction id, without its epoch.
        next_xid: u32,
    },
}
