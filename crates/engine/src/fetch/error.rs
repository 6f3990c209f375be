//! Why nothing was fetched, and what that means.

use std::path::PathBuf;
use std::sync::Arc;

use walden_pg::history::HistoryError;
use walden_pg::wal_name::ParseWalNameError;
use walden_pg::{SegmentMismatch, SystemIdentifier};

use super::{Hole, Verdict};
use crate::archive::Troubled;
use crate::host;
use crate::repository::{RepositoryError, Trouble};

/// Why nothing was fetched.
#[derive(Debug, thiserror::Error)]
pub enum FetchError {
    /// `%f` is no WAL file's name.
    #[error(
        "it does not name a WAL file; walden-wal-fetch takes what PostgreSQL gives for %f and %p"
    )]
    Name(#[source] ParseWalNameError),
    /// Proven absent.
    #[error("it is not in the archive, which ends before it")]
    Absent,
    /// A hole in the archive.
    #[error(
        "it is missing, but {0}: a hole, not the archive's end. Recovery cannot go past it; look for the file in the pg_wal of the primary \
         and of standbys (but not for the newest segment there, which may be unfinished) and push it with walden-wal-push, or restore to a target before it"
    )]
    Hole(Hole),
    /// The archive has no WAL of this cluster at all.
    #[error(
        "repository \"{0}\" has no WAL of this cluster at all, as if a folder below it were not mounted; nobody asks an archive that was never \
         written to. If this one never was, take it out of the configuration"
    )]
    EmptyArchive(String),
    /// An archived history file that cannot be read.
    #[error(
        "an archived history file cannot be read, so that nobody can tell whether a timeline goes on"
    )]
    History(#[source] HistoryError),
    /// No system identifier to be had.
    #[error(
        "cannot tell which of the cluster's system identifiers is meant ({}): there is no global/pg_control in the working directory or above \
         the destination; name the data directory with --pgdata", known.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ")
    )]
    WhichSystem {
        /// Those that are registered.
        known: Vec<SystemIdentifier>,
    },
    /// The control file cannot be read.
    #[error("cannot tell which cluster asks")]
    Control(#[source] host::ControlError),
    /// The repository's own error.
    #[error("the repository did not give it; PostgreSQL resumes recovery when it is started again")]
    Repository(#[source] RepositoryError),
    /// A repository that may have it was not read.
    #[error(
        "repository \"{name}\" may have it and cannot be asked; PostgreSQL resumes recovery when it is started again"
    )]
    Out {
        /// Its name.
        name: String,
        /// Why.
        #[source]
        source: Arc<RepositoryError>,
    },
    /// The stored segment is whole but is not what its name says.
    #[error("the archived file is not what its name says")]
    Mismatch(#[source] SegmentMismatch),
    /// The stored segment belongs to another cluster.
    #[error("the archived segment belongs to system identifier {found}, expected {expected}")]
    OtherSystem {
        /// What its header says.
        found: SystemIdentifier,
        /// Who asks.
        expected: SystemIdentifier,
    },
    /// Another file of the same name was set aside.
    #[error(
        "another server's segment of this name was set aside under quarantine/, so nobody can tell which of the two is this cluster's; \
         restore to a target before it, or from a backup that was taken after the conflict; if you know whose it is, see: walden conflicts"
    )]
    InConflict,
    /// The destination cannot be written.
    #[error("cannot write {}", path.display())]
    Write {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
}

impl FetchError {
    pub(super) fn verdict(&self) -> Verdict {
        match self {
            FetchError::Absent => Verdict::Absent,
            FetchError::Hole(_) => Verdict::Hole,
            FetchError::EmptyArchive(_) => Verdict::Outage,
            FetchError::Mismatch(_)
            | FetchError::InConflict
            | FetchError::OtherSystem { .. }
            | FetchError::History(_) => Verdict::Damage,
            FetchError::Name(_) | FetchError::WhichSystem { .. } | FetchError::Control(_) => {
                Verdict::Configuration
            }
            FetchError::Write { .. } => Verdict::Internal,
            FetchError::Repository(e) => verdict_of(e),
            FetchError::Out { source, .. } => verdict_of(source),
        }
    }
}

fn verdict_of(error: &RepositoryError) -> Verdict {
    match error.trouble() {
        // An absence of anything but the file itself (`get` tells that apart) proves nothing.
        Trouble::Absent | Trouble::Outage => Verdict::Outage,
        Trouble::Damage => Verdict::Damage,
        Trouble::Configuration => Verdict::Configuration,
        Trouble::Local => Verdict::Internal,
    }
}

impl Troubled for FetchError {
    fn trouble(&self) -> Trouble {
        match self {
            FetchError::Repository(e) => e.trouble(),
            FetchError::Out { source, .. } => source.trouble(),
            FetchError::Mismatch(_) | FetchError::OtherSystem { .. } | FetchError::History(_) => {
                Trouble::Damage
            }
            FetchError::Absent => Trouble::Absent,
            FetchError::EmptyArchive(_) => Trouble::Outage,
            // Another repository would not change it.
            FetchError::InConflict
            | FetchError::Hole(_)
            | FetchError::Name(_)
            | FetchError::WhichSystem { .. }
            | FetchError::Control(_)
            | FetchError::Write { .. } => Trouble::Local,
        }
    }
}

impl From<RepositoryError> for FetchError {
    fn from(error: RepositoryError) -> Self {
        FetchError::Repository(error)
    }
}
