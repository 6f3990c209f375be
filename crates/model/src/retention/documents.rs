//! What expiry says before it removes anything, and how a backup that runs meets it.
//!
//! A backup first writes `started.json`, with its parents and the LSN before which it needs no WAL, and then looks at what is retired;
//! expiry first retires, and then looks at what has started. So one of them sees the other, in whichever order their steps come.

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use walden_pg::Lsn;

use crate::document::Document;
use crate::keys::BackupId;
use crate::records::{RandomId, StartedDocument};

/// `retired/<id>/<random>.json`: this backup is being removed. It is none any more, whatever is still there of it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RetiredDocument {
    /// The backup.
    pub backup_id: BackupId,
    /// The registration's archive id.
    pub archive_id: RandomId,
    /// By the clock of `host`.
    pub retired_at: Timestamp,
    /// Where that was decided.
    pub host: String,
    /// By which a writer recognises its own document after a lost reply.
    pub write_token: RandomId,
}

impl Document for RetiredDocument {
    const KIND: &'static str = "retired";
}

/// `retired/wal/<random>.json`: WAL is being removed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RetiredWalDocument {
    /// The registration's archive id.
    pub archive_id: RandomId,
    /// Segments that begin before this may go, of every timeline.
    pub before: Lsn,
    /// By the clock of `host`.
    pub retired_at: Timestamp,
    /// Where that was decided.
    pub host: String,
    /// By which a writer recognises its own document after a lost reply.
    pub write_token: RandomId,
}

impl Document for RetiredWalDocument {
    const KIND: &'static str = "retired-wal";
}

/// What is being removed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Retirement {
    /// A backup.
    Backup(BackupId),
    /// WAL before an LSN.
    WalBefore(Lsn),
}

/// A backup that runs would need what is being removed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RetirementConflict {
    /// A parent.
    #[error(
        "backup {0}, on which this one leans, is removed by walden expire: take a full backup, or one that leans on a later backup"
    )]
    Parent(BackupId),
    /// WAL.
    #[error(
        "walden expire is removing WAL before {before}, and this backup may need it from {from} on: take the backup again once that has ended, \
         from a server that lags behind less"
    )]
    Wal {
        /// What is removed ends here.
        before: Lsn,
        /// What is needed begins here.
        from: Lsn,
    },
}

impl Retirement {
    /// Whether a backup that has said so in `started.json` can go on.
    ///
    /// # Errors
    /// It may need what is being removed.
    pub fn check(&self, started: &StartedDocument) -> Result<(), RetirementConflict> {
        match self {
            Self::Backup(id) if started.parents.contains(id) => {
                Err(RetirementConflict::Parent(id.clone()))
            }
            Self::WalBefore(before) => match started.wal_from {
                Some(from) if from < *before => Err(RetirementConflict::Wal {
                    before: *before,
                    from,
                }),
                _ => Ok(()),
            },
            Self::Backup(_) => Ok(()),
        }
    }
}
