//! How a push fails.

use std::path::PathBuf;
use std::time::Duration;

use walden_model::Writer;
use walden_pg::{Lsn, SegmentMismatch, WalFileName, WalSegmentSize};

use super::source::SourceError;
use crate::codec::CodecError;
use crate::host;
use crate::repository::RepositoryError;

/// Why a push failed. The file stays with PostgreSQL, which will try again.
#[derive(Debug, thiserror::Error)]
pub enum PushError {
    /// The name is not one of a WAL file.
    #[error("{} does not name a WAL file; walden-wal-push takes what PostgreSQL gives for %p", path.display())]
    Name {
        /// The path.
        path: PathBuf,
        /// Why.
        #[source]
        source: walden_pg::wal_name::ParseWalNameError,
    },
    /// The file cannot be read.
    #[error("cannot read {}", path.display())]
    Read {
        /// The path.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// The file changed between its beginning and its end.
    #[error("{} changed while it was read; it was not archived", path.display())]
    Changed {
        /// The path.
        path: PathBuf,
    },
    /// The content does not fit the name.
    #[error("{} is not what its name says; it was not archived", path.display())]
    Mismatch {
        /// The path.
        path: PathBuf,
        /// Which statement of the header contradicts.
        #[source]
        source: SegmentMismatch,
    },
    /// No control file to take the system identifier from.
    #[error(
        "cannot tell which cluster {file} belongs to: there is no global/pg_control in the working directory or above the file; \
         name the data directory with --pgdata"
    )]
    NoPgdata {
        /// The file.
        file: WalFileName,
    },
    /// The control file cannot be read.
    #[error("cannot tell which cluster {file} belongs to")]
    Control {
        /// The file.
        file: WalFileName,
        /// Why.
        #[source]
        source: host::ControlError,
    },
    /// The repository's own error.
    #[error("{file} was not archived")]
    Repository {
        /// The file.
        file: String,
        /// Why.
        #[source]
        source: RepositoryError,
    },
    /// Compression or encoding failed.
    #[error("{file} cannot be encoded")]
    Encode {
        /// The file.
        file: WalFileName,
        /// Why.
        #[source]
        source: CodecError,
    },
    /// Other bytes stand under the same name.
    #[error(
        "{file} is archived already with other bytes: they differ first at {difference}. \
         Archived by {theirs}; now offered by {ours}. Two servers write into one archive (a clone, or a split brain): stop one of them, or give it a \
         cluster name of its own. What is archived stays. To set this file aside under quarantine/ and let archiving go on: \
         walden-wal-push --quarantine {}; recovery cannot go past it then, so take a new backup at once", path.display()
    )]
    Conflict {
        /// The file.
        file: WalFileName,
        /// Its path.
        path: PathBuf,
        /// Where the bytes differ first.
        difference: Difference,
        /// Who wrote what is archived.
        theirs: Box<Writer>,
        /// Who offers the newcomer: this process.
        ours: Box<Writer>,
    },
    /// Nothing stands against the file.
    #[error(
        "{file} is in conflict with nothing that is archived, so it is not set aside: push it without --quarantine"
    )]
    NoConflict {
        /// The file.
        file: WalFileName,
    },
    /// Not the segment size that was registered.
    #[error(
        "{file} has {found}, and the cluster is registered with WAL segments of {registered}. After pg_resetwal --wal-segsize names \
         mean other stretches of the log: register the cluster under another name in the configuration and take a new backup"
    )]
    SegmentSize {
        /// The file.
        file: WalFileName,
        /// What `walden init` saw.
        registered: WalSegmentSize,
        /// What the segment's header says.
        found: WalSegmentSize,
    },
    /// What is archived under this name is damaged.
    #[error(
        "{file} is archived already, but what is archived is damaged. Nothing was overwritten and the good file is still with PostgreSQL: \
         move the damaged object {key} out of the repository, and the next try archives the good one"
    )]
    DamagedObject {
        /// The file.
        file: WalFileName,
        /// The object.
        key: String,
        /// What is wrong with it.
        #[source]
        source: RepositoryError,
    },
    /// Some required repository lacks the file.
    #[error(
        "{file} was archived in {}, but not in {}; the next try goes on from there",
        named(stored_in), named(std::iter::once(repository).chain(others.iter().map(|(name, _)| name)))
    )]
    Incomplete {
        /// The file.
        file: WalFileName,
        /// The repositories that have it.
        stored_in: Vec<String>,
        /// The first required repository that does not.
        repository: String,
        /// Further ones, and why.
        others: Vec<(String, String)>,
        /// Why the first does not.
        #[source]
        source: Box<PushError>,
    },
    /// A repository that is not required kept the others waiting.
    #[error("it did not have the file {} s after the others", limit.as_secs_f32())]
    TooSlow {
        /// `push.optional_wait`.
        limit: Duration,
    },
    /// A repository that is not required, and had not taken another file.
    #[error("it did not take an earlier file of the same call")]
    PassedOver,
    /// A thread of ours broke off.
    #[error("reading {} broke off inside Walden; please report this", path.display())]
    Internal {
        /// The path.
        path: PathBuf,
        /// The panic.
        #[source]
        source: tokio::task::JoinError,
    },
}

/// Where two files of one name differ first.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Difference {
    /// In WAL.
    Lsn(Lsn),
    /// In a history file.
    Byte(u64),
    /// What is archived is encrypted, and not opened for this.
    Unknown,
}

impl std::fmt::Display for Difference {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Difference::Lsn(lsn) => write!(f, "LSN {lsn}"),
            Difference::Byte(offset) => write!(f, "byte {offset}"),
            Difference::Unknown => {
                f.write_str("a place that is not known here, because what is archived is encrypted")
            }
        }
    }
}

/// Repositories' names, for people.
fn named<'a>(names: impl IntoIterator<Item = &'a String>) -> String {
    let names: Vec<_> = names
        .into_iter()
        .map(|name| format!("\"{name}\""))
        .collect();
    if names.is_empty() {
        "no repository".to_owned()
    } else {
        names.join(" and ")
    }
}

pub(super) fn source_error(path: &std::path::Path, error: SourceError) -> PushError {
    let path = path.to_path_buf();
    match error {
        SourceError::Name(source) => PushError::Name { path, source },
        SourceError::Read(source) => PushError::Read { path, source },
        SourceError::Changed => PushError::Changed { path },
        SourceError::Mismatch(source) => PushError::Mismatch { path, source },
    }
}
