//! What took data away, and where to end a recovery so that it is still there: verdicts on the facts of a segment's index
//! (`docs/ARCHITECTURE.md`, "The way of one search").

mod gather;
mod judge;
mod scene;
#[cfg(test)]
mod tests;

use std::fmt;

use jiff::Timestamp;
use walden_pg::Lsn;
use walden_pg::wal_record::{RelFileLocator, RelationOid};

use crate::names::{NamedRelation, RelationKind};

pub use gather::{Gathering, Transaction};
pub use judge::{Judge, Limits};

/// Something that took data away, or may have.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Incident {
    /// When its transaction committed, by the server's clock.
    pub time: Timestamp,
    /// Its transaction: the 32 bits that stand in the WAL.
    pub xid: u32,
    /// Where its first destructive record begins: a recovery that ends before it has all that was taken away.
    pub lsn: Lsn,
    /// Where the commit's record begins.
    pub committed_at: Lsn,
    /// What was done.
    pub action: Action,
    /// To what.
    pub object: Object,
    /// How many more relations went along of which no backup knows what they are: its indexes, or tables of their own.
    pub along: usize,
    /// How many rows, at least; `None` where nothing tells.
    pub rows: Option<u64>,
    /// Why it may have been something else.
    pub doubt: Option<Doubt>,
    /// Why a recovery to before it does not bring back what was taken away.
    pub lost: Option<Lost>,
}

/// What was done.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Action {
    /// DROP of a relation; of which kind, its [`Object`] says.
    Drop,
    /// TRUNCATE.
    Truncate,
    /// DROP DATABASE.
    DropDatabase,
    /// DELETE.
    Delete,
    /// UPDATE.
    Update,
}

/// To what it was done.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Object {
    /// A relation that a backup has the name of.
    Named {
        /// Its database's name, quoted as SQL does where it must be; the OID where no backup knows the name.
        database: String,
        /// The relation.
        relation: Box<NamedRelation>,
    },
    /// A relation that was created after one backup and gone before the next: no backup has its name.
    Unnamed {
        /// Its database's name, or OID.
        database: String,
        /// Its OID, where the WAL tells.
        oid: Option<RelationOid>,
        /// The file in which its content stood, where the WAL tells.
        file: Option<RelFileLocator>,
    },
    /// A database: its name, or OID.
    Database(String),
}

/// Why something may have been something else than it is called.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Doubt {
    /// The transaction also rewrote tables, and nothing tells which.
    Rewritten,
    /// The transaction also truncated or dropped others, and nothing tells which was which.
    DroppedOrTruncated,
    /// An index may have been rebuilt.
    Rebuilt,
    /// Another relation that the transaction locked may be meant.
    AnotherRelation,
    /// The database may have been moved to another tablespace.
    Moved,
    /// It may be an index, or another part, of a table that stayed.
    PartOfTable,
}

impl fmt::Display for Doubt {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Rewritten => {
                "the WAL does not tell it from a rewrite (VACUUM FULL, CLUSTER, REFRESH, ALTER TABLE)"
            }
            Self::DroppedOrTruncated => "the WAL does not tell DROP from TRUNCATE here",
            Self::Rebuilt => "the WAL does not tell it from REINDEX",
            Self::AnotherRelation => {
                "the transaction locked other relations, too, and the WAL does not tell which of them it was"
            }
            Self::Moved => {
                "the WAL does not tell it from ALTER DATABASE SET TABLESPACE"
            }
            Self::PartOfTable => {
                "no backup knows its name: it may have been only an index or another part of a table that stayed"
            }
        })
    }
}

/// Why a recovery to before an incident does not bring back what was taken away.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Lost {
    /// Unlogged tables have no WAL, and come back empty.
    Unlogged,
    /// Where it began lies before what was searched.
    BeginningUnknown,
}

impl fmt::Display for Lost {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Unlogged => "an unlogged table comes back empty: its rows are not in the WAL",
            Self::BeginningUnknown => {
                "where it began is not in the WAL that was searched: restore to a time some minutes earlier"
            }
        })
    }
}

impl fmt::Display for Object {
    /// `database.schema.name`, as SQL writes it; numbers where there is no name.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Named { database, relation } => write!(f, "{database}.{relation}"),
            Self::Unnamed {
                database,
                oid: Some(oid),
                ..
            } => write!(f, "{database}, OID {}", oid.relation),
            Self::Unnamed {
                database,
                file: Some(file),
                ..
            } => write!(f, "{database}, file {}", file.number),
            Self::Unnamed { database, .. } => write!(f, "{database}, unknown"),
            Self::Database(name) => f.write_str(name),
        }
    }
}

impl Object {
    /// What kind of relation it is, where a backup knows.
    #[must_use]
    pub fn kind(&self) -> Option<RelationKind> {
        match self {
            Self::Named { relation, .. } => Some(relation.kind),
            Self::Unnamed { .. } | Self::Database(_) => None,
        }
    }
}

impl Incident {
    /// What was done, in SQL's words: `DROP TABLE`, `DELETE`; `DROP` alone where nobody knows of what.
    #[must_use]
    pub fn statement(&self) -> String {
        match self.action {
            Action::Drop => match self.object.kind() {
                Some(kind) => format!("DROP {}", kind.to_string().to_uppercase()),
                None => "DROP".to_owned(),
            },
            Action::Truncate => "TRUNCATE".to_owned(),
            Action::DropDatabase => "DROP DATABASE".to_owned(),
            Action::Delete => "DELETE".to_owned(),
            Action::Update => "UPDATE".to_owned(),
        }
    }
}
