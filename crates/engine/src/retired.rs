//! What `walden expire` is removing, for those who must not lean on it.

use std::collections::BTreeSet;

use walden_model::keys::RetiredKey;
use walden_model::retention::{RetiredWalDocument, Retirement, RetirementConflict};
use walden_model::{BackupId, StartedDocument, SystemKeys};
use walden_store::StoreErrorKind;

use crate::backup::BackupError;
use crate::repository::{Repository, RepositoryError};

/// The backups that are being removed.
pub(crate) async fn backups(
    repository: &Repository,
    keys: &SystemKeys,
) -> Result<BTreeSet<BackupId>, RepositoryError> {
    let objects = repository.list(&keys.retired_prefix()).await?;
    let named = objects
        .iter()
        .filter_map(|object| keys.parse_retired(object.key.as_str()));
    Ok(named
        .filter_map(|key| match key {
            RetiredKey::Backup(id, _) => Some(id),
            RetiredKey::Wal(_) => None,
        })
        .collect())
}

/// Holds a backup whose `started.json` stands against what is being removed: from then on expiry sees the backup, and what expiry had
/// begun before is seen here.
///
/// # Errors
/// The backup may need what is being removed; or it cannot be told what that is.
pub(crate) async fn check(
    repository: &Repository,
    keys: &SystemKeys,
    started: &StartedDocument,
) -> Result<(), BackupError> {
    for object in repository.list(&keys.retired_prefix()).await? {
        let key = object.key.as_str();
        let retirement = match keys.parse_retired(key) {
            Some(RetiredKey::Backup(id, _)) => Retirement::Backup(id),
            Some(RetiredKey::Wal(_)) => {
                match repository.document::<RetiredWalDocument>(key).await? {
                    Some(document) => Retirement::WalBefore(document.before),
                    // Done meanwhile.
                    None => continue,
                }
            }
            None => continue,
        };
        retirement.check(started)?;
    }
    // What was removed to the end is in no document any more; its commit document went before its packs.
    for parent in &started.parents {
        let key = repository.key(&keys.commit(parent))?;
        match repository.store().head(&key).await {
            Ok(_) => {}
            Err(e) if e.kind() == StoreErrorKind::NotFound => {
                return Err(RetirementConflict::Parent(parent.clone()).into());
            }
            Err(e) => return Err(repository.failed(e).into()),
        }
    }
    Ok(())
}
