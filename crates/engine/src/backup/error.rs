//! Everything that can end a backup.

use std::path::PathBuf;
use std::time::Duration;

use walden_model::names::NameEntryError;
use walden_model::retention::RetirementConflict;
use walden_model::{ClusterName, FileEntryError};
use walden_pg::{SegmentName, WalFileName, WalSegmentSize};

use super::{ChildError, ServerError, StreamError};
use crate::codec::CodecError;
use crate::repository::RepositoryError;

/// Why there is no backup. What was stored so far has no commit document.
#[derive(Debug, thiserror::Error)]
pub enum BackupError {
    /// The repository's own error.
    #[error("the repository did not take the backup")]
    Repository(#[from] RepositoryError),
    /// The server refused, or is not fit.
    #[error("no backup was taken")]
    Server(#[from] ServerError),
    /// The archive is empty.
    #[error(
        "no WAL of cluster \"{cluster}\" was archived yet, so a backup could not be restored. Is archive_command = {archive_command:?} the one that calls \
         walden-wal-push? See pg_stat_archiver and the server's log; SELECT pg_switch_wal() gives it something to archive"
    )]
    NothingArchived {
        /// The cluster.
        cluster: ClusterName,
        /// The server's setting.
        archive_command: String,
    },
    /// The timeline's history is not archived.
    #[error(
        "{file}, without which a backup on this timeline cannot be restored, is not in the repository. If the server was promoted before it archived here, \
         it will not archive that file by itself; as PostgreSQL's user, run: walden-wal-push {data_directory}/pg_wal/{file}"
    )]
    HistoryMissing {
        /// The file.
        file: WalFileName,
        /// Where it is on the server.
        data_directory: String,
    },
    /// A repository that is not required lacks WAL.
    #[error(
        "the backup is stored, but not the WAL that it needs, {} s after the others had it, so it is not committed there; \
         walden copy brings both", waited.as_secs()
    )]
    WalLate {
        /// How long it was waited for.
        waited: Duration,
    },
    /// The registration says otherwise.
    #[error(
        "cluster \"{cluster}\" is registered with WAL segments of {registered}, and the server has {found} bytes; was it another pg_resetwal or initdb?"
    )]
    SegmentSize {
        /// The cluster.
        cluster: ClusterName,
        /// What `walden init` saw.
        registered: WalSegmentSize,
        /// What the server says.
        found: u64,
    },
    /// Tablespaces and no place for them.
    #[error(
        "the cluster has {count} tablespaces, for which pg_basebackup needs a folder on disk: set spool_dir to one with room for what the disk takes slower than the server sends; what was stored is given back on the way"
    )]
    NoSpool {
        /// How many.
        count: usize,
    },
    /// The spool folder.
    #[error("cannot use the spool folder {}", path.display())]
    Spool {
        /// The folder.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// pg_basebackup itself.
    #[error("pg_basebackup gave no backup")]
    Child(#[from] ChildError),
    /// Its stream.
    #[error("what pg_basebackup sent cannot be stored")]
    Stream(#[source] StreamError),
    /// The server waits for its archiver.
    #[error(
        "the files are stored, but for {} s the server has been waiting for its archiver to archive the backup's WAL{}. \
         Mend archive_command (the server's log has its errors) and take the backup again", waited.as_secs(),
        failing.as_ref().map(|file| format!("; it fails on {file}")).unwrap_or_default()
    )]
    ArchiverStuck {
        /// How long.
        waited: Duration,
        /// What `pg_stat_archiver` says.
        failing: Option<String>,
    },
    /// The WAL did not come.
    #[error(
        "the backup is stored, but {first}{} did not reach the repository within {} s, so it is not committed. {}",
        if *count > 1 { format!(" and {} more", count - 1) } else { String::new() }, waited.as_secs(),
        if *standby {
            "The primary archives it when its segment is full: run pg_switch_wal() there, or set primary_connection"
        } else {
            "See pg_stat_archiver and the server's log"
        }
    )]
    WalMissing {
        /// The first missing file.
        first: WalFileName,
        /// How many are missing.
        count: usize,
        /// The bound.
        waited: Duration,
        /// Whether the backup is a standby's.
        standby: bool,
    },
    /// Another server's WAL stands in the place of this one's.
    #[error(
        "the backup needs {segment}, under whose name another server's WAL is archived; this server's was set aside under quarantine/. \
         The backup is not committed. Make sure that the other server archives no more, and take the backup again"
    )]
    WalInConflict {
        /// The segment.
        segment: SegmentName,
    },
    /// What the backup needs is being removed.
    #[error("the backup is not committed")]
    Retired(#[from] RetirementConflict),
    /// The stream is of another cluster.
    #[error("the stream is of system identifier {found}, expected {expected}")]
    OtherSystem {
        /// Its `pg_control`.
        found: walden_pg::SystemIdentifier,
        /// The server's answer.
        expected: walden_pg::SystemIdentifier,
    },
    /// The manifest has no WAL range.
    #[error("the backup's manifest names no WAL")]
    NoWalRange,
    /// Compression or encoding failed.
    #[error("the backup cannot be encoded")]
    Encode(#[source] CodecError),
    /// A file map entry cannot be written.
    #[error("the file map cannot be written")]
    Entry(#[source] FileEntryError),
    /// An entry of the names cannot be written.
    #[error("the names of relations cannot be written")]
    Name(#[source] NameEntryError),
    /// A thread of ours broke off.
    #[error("a part of the backup broke off inside Walden; please report this")]
    Internal(#[source] tokio::task::JoinError),
}
