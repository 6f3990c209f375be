//! Removing objects, some at a time, and counting what the store keeps.

use futures::{Stream, TryStreamExt};
use walden_model::BackupId;
use walden_store::{Key, ObjectMeta, StoreErrorKind};

use crate::catalog::whole_text;
use crate::repository::{Repository, RepositoryError};

/// Objects that are removed at the same time.
const LANES: usize = 16;

/// Objects that the store did not remove, and that are named.
const MOST_LEFT: usize = 1000;

/// An object that the store did not remove.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Left {
    /// Its key.
    pub key: String,
    /// Why not.
    pub why: String,
}

/// What became of a plan.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Removed {
    /// Backups that are none any more.
    pub backups: Vec<BackupId>,
    /// Backups that had never ended and were closed.
    pub abandoned: Vec<BackupId>,
    /// Backups that were to go, and stay because somebody pinned them meanwhile.
    pub spared: Vec<BackupId>,
    /// Objects that were removed.
    pub objects: u64,
    /// Their stored bytes.
    pub bytes: u64,
    /// Objects that the store did not remove, the first 1000 of them.
    pub left: Vec<Left>,
    /// How many there are in all.
    pub left_count: u64,
}

impl Removed {
    pub(super) fn keeps(&mut self, key: &str, why: &dyn std::error::Error) {
        self.left_count += 1;
        if self.left.len() < MOST_LEFT {
            self.left.push(Left {
                key: key.to_owned(),
                why: whole_text(why),
            });
        }
    }

    /// Removes objects, and gives the keys of those that the store keeps: by Object Lock, or for lack of rights. One that is absent is gone.
    ///
    /// # Errors
    /// The store is out, or objects cannot be listed.
    pub(super) async fn remove(
        &mut self,
        repository: &Repository,
        objects: impl Stream<Item = Result<ObjectMeta, RepositoryError>>,
    ) -> Result<Vec<Key>, RepositoryError> {
        let removed = objects
            .map_ok(|object| async move {
                let outcome = repository.store().delete(&object.key).await;
                Ok::<_, RepositoryError>((object, outcome))
            })
            .try_buffer_unordered(LANES);
        let mut removed = std::pin::pin!(removed);
        let mut kept = Vec::new();
        while let Some((object, outcome)) = removed.try_next().await? {
            match outcome {
                Ok(()) => {
                    self.objects += 1;
                    self.bytes = self.bytes.saturating_add(object.size);
                }
                Err(e) if is_refusal(e.kind()) => {
                    self.keeps(object.key.as_str(), &e);
                    // Millions may be refused; what is told apart by them are the few of a backup.
                    if kept.len() < MOST_LEFT {
                        kept.push(object.key);
                    }
                }
                Err(e) => return Err(repository.failed(e)),
            }
        }
        Ok(kept)
    }
}

/// Whether the store is there and does not want to.
pub(super) fn is_refusal(kind: StoreErrorKind) -> bool {
    matches!(
        kind,
        StoreErrorKind::PermissionDenied | StoreErrorKind::Invalid
    )
}
