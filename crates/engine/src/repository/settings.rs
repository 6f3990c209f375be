//! What the configuration says of a repository.

use std::fmt;
use std::path::PathBuf;
use std::time::Duration;

use crate::encryption::AgeKeys;
use walden_model::RandomId;
#[cfg(feature = "s3")]
use walden_store::{S3Settings, S3Store, StoreErrorKind};

#[cfg(feature = "s3")]
use super::RepositoryError;

/// Where a repository is, as the configuration says.
#[derive(Debug, Clone)]
pub struct RepositorySettings {
    /// For people.
    pub name: String,
    /// A folder or a bucket.
    pub place: Place,
    /// The repository id that must be found there, if the configuration pins it.
    pub id: Option<RandomId>,
    /// Whether a WAL file counts as archived, and a backup as taken, only once it is here too.
    pub required: bool,
    /// For whom objects are encrypted, and what opens them.
    pub keys: AgeKeys,
}

/// What keeps a repository's objects. Displayed, it is where the repository is, for people.
#[derive(Debug, Clone)]
pub enum Place {
    /// An absolute path.
    Folder(PathBuf),
    /// A bucket, or what is below a prefix in it.
    #[cfg(feature = "s3")]
    Bucket(Box<S3Settings>),
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Place::Folder(path) => path.display().fmt(f),
            #[cfg(feature = "s3")]
            Place::Bucket(s3) => f.write_str(&s3.location()),
        }
    }
}

impl RepositorySettings {
    /// For a caller who has no more time than this: no operation in a bucket waits longer for the store, where it moves few bytes. But one
    /// request always has its own deadline's time, or a store that is slow would never answer in time.
    #[must_use]
    pub fn within(mut self, time: Duration) -> Self {
        match &mut self.place {
            Place::Folder(_) => {}
            #[cfg(feature = "s3")]
            Place::Bucket(s3) => {
                s3.operation_deadline = s3.operation_deadline.min(time.max(s3.request_deadline));
            }
        }
        self
    }
}

/// The bucket that a repository is in.
#[cfg(feature = "s3")]
pub(crate) async fn open_bucket(name: &str, s3: &S3Settings) -> Result<S3Store, RepositoryError> {
    let name = name.to_owned();
    S3Store::open(s3.clone())
        .await
        .map_err(|source| match source.kind() {
            StoreErrorKind::Invalid => RepositoryError::Settings { name, source },
            _ => RepositoryError::Store { name, source },
        })
}
