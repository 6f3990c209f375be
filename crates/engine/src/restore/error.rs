//! Why a restore is not planned, or not finished.

use std::path::PathBuf;

use walden_model::Unreachable;
use walden_pg::conf::UnquotableValue;
use walden_pg::tablespace_map::TablespaceMapError;

use super::contents::ContentError;
use super::map::FileMapError;
use super::places::PlaceError;
use crate::archive::OutRepository;
use crate::catalog::CatalogError;
use crate::repository::RepositoryError;
use crate::resolve::ResolveError;

/// Why a restore is not planned, or not finished.
#[derive(Debug, thiserror::Error)]
pub enum RestoreError {
    /// The repository's own error.
    #[error("the backup cannot be read")]
    Repository(#[from] RepositoryError),
    /// What there is cannot be seen.
    #[error("the restore cannot be planned")]
    Catalog(#[from] CatalogError),
    /// The target cannot be reached.
    #[error("the target cannot be reached")]
    Unreachable(#[from] Box<Unreachable>),
    /// The target cannot be reached with what answers.
    #[error(
        "the target cannot be reached with what the other repositories hold, and {} not read ({why}): bring {} back, and try again",
        out_text(out), if out.len() == 1 { "it" } else { "them" }
    )]
    UnreachableWithout {
        /// The names of the repositories that were not read.
        out: Vec<String>,
        /// Why the first of them was not.
        why: String,
        /// What is missing in the others.
        #[source]
        source: Box<Unreachable>,
    },
    /// There is no place for it.
    #[error("the restore has no place to go")]
    Place(#[from] PlaceError),
    /// The file map is hostile or was written wrongly.
    #[error("the backup's file map is refused")]
    FileMap(#[from] FileMapError),
    /// A pack does not hold what the file map says.
    #[error("pack {key} and the file map do not fit together")]
    Content {
        /// The pack's key.
        key: String,
        /// What is missing.
        #[source]
        source: ContentError,
    },
    /// A file could not be written, or is not what it should be.
    #[error("the files cannot be restored")]
    Files(#[from] ContentError),
    /// A file that was just written cannot be read.
    #[error("cannot read \"{}\" back", path.display())]
    ReadBack {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// A configuration file that is none.
    #[error("\"{}\" has {size} bytes, more than a file of its kind has", path.display())]
    TooLong {
        /// The file.
        path: PathBuf,
        /// In bytes.
        size: u64,
    },
    /// The backup's `tablespace_map` is damaged.
    #[error("the backup's tablespace_map cannot be used")]
    TablespaceMap(#[source] TablespaceMapError),
    /// The backup's `tablespace_map` would lead PostgreSQL to a place that the restore does not know.
    #[error("the backup's tablespace_map names tablespace {0}, which its commit document does not")]
    StrangeTablespace(u32),
    /// A value that no configuration file can hold.
    #[error("a recovery setting cannot be written")]
    Setting(#[source] UnquotableValue),
    /// A task of ours broke off.
    #[error("the restore broke off inside Walden; please report this")]
    Internal(#[source] tokio::task::JoinError),
    /// Something failed when writing had begun.
    #[error(
        "the restore into \"{}\" failed: what is there is unusable and may be removed. PostgreSQL cannot start from it, for global/pg_control \
         is written last", directory.display()
    )]
    Unusable {
        /// PGDATA.
        directory: PathBuf,
        /// Why.
        #[source]
        source: Box<RestoreError>,
    },
}

fn out_text(out: &[String]) -> String {
    match out {
        [one] => format!("repository \"{one}\" was"),
        several => format!("repositories \"{}\" were", several.join("\", \"")),
    }
}

impl RestoreError {
    /// Without what some repositories may hold, nobody knows that a target cannot be reached.
    pub(super) fn unplanned(error: ResolveError, out: &[OutRepository]) -> Self {
        match (Self::from(error), out.first()) {
            (Self::Unreachable(source), Some(first)) => Self::UnreachableWithout {
                out: out.iter().map(|out| out.name.clone()).collect(),
                why: first.why(),
                source,
            },
            (error, _) => error,
        }
    }
}

impl From<ResolveError> for RestoreError {
    fn from(error: ResolveError) -> Self {
        match error {
            ResolveError::Unreachable(unreachable) => Self::Unreachable(unreachable),
            ResolveError::Repository(source) => Self::Repository(source),
        }
    }
}
