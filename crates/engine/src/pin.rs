//! `walden pin` and `walden unpin`: backups that retention leaves alone.

use walden_model::retention::{Pin, Pinned, Pins, Unpinned};
use walden_model::{
    BackupId, BackupRecord, ClusterName, EventBody, EventId, EventName, RandomId, SystemKeys,
};

use crate::catalog::whole_text;
use crate::event;
use crate::repository::{Repository, RepositoryError, RepositorySettings, Trouble};

/// Which backup to pin, or unpin.
#[derive(Debug, Clone)]
pub struct PinRequest {
    /// The repository.
    pub repository: RepositorySettings,
    /// The cluster's name in it.
    pub cluster: ClusterName,
    /// The backup.
    pub backup: BackupId,
}

/// Why a pin was not set or taken out.
#[derive(Debug, thiserror::Error)]
pub enum PinError {
    /// The repository's own error.
    #[error("the repository did not take the pin")]
    Repository(#[from] RepositoryError),
    /// No such backup.
    #[error(
        "repository \"{repository}\" has no backup {backup} of cluster \"{cluster}\"; walden list-backups shows which there are"
    )]
    NoBackup {
        /// The repository.
        repository: String,
        /// The cluster.
        cluster: ClusterName,
        /// What was asked for.
        backup: BackupId,
    },
    /// It is too late.
    #[error("backup {0} is being removed by walden expire, and is not pinned")]
    Retired(BackupId),
    /// There is no pin.
    #[error("backup {0} is not pinned")]
    NotPinned(BackupId),
    /// A pin cannot be read.
    #[error("a pin cannot be read ({}), so nobody can tell which backup it pins: {}", .0.key, .0.why)]
    Unreadable(Unreadable),
}

/// An object that may say what must stay, and cannot be read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Unreadable {
    /// Its key.
    pub key: String,
    /// What is wrong.
    pub why: String,
}

/// Pins a backup, in the place of the pins that it had.
///
/// # Errors
/// There is no such backup, it is being removed, or the repository does not take it.
pub async fn pin(request: &PinRequest, until: Pin) -> Result<(), PinError> {
    let (repository, keys, archive_id) = find(request).await?;
    let replaces = standing(&repository, &keys, archive_id).await?;
    let event = Pinned {
        backup_id: request.backup.clone(),
        until: match until {
            Pin::Until(until) => Some(until),
            Pin::Forever => None,
        },
        replaces: replaces
            .map_err(PinError::Unreadable)?
            .events(&request.backup),
    };
    let written = event::append(&repository, &keys, archive_id, event).await?;
    // Now that it stands, an expiry that has not told yet what goes sees it; one that has is seen here.
    let retired = repository
        .list(&keys.retired_backup_prefix(&request.backup))
        .await?;
    let there = repository
        .document::<BackupRecord>(&keys.commit(&request.backup))
        .await?;
    if retired.is_empty() && there.is_some() {
        return Ok(());
    }
    let event = Unpinned {
        backup_id: request.backup.clone(),
        pins: vec![written.event_id],
    };
    event::append(&repository, &keys, archive_id, event).await?;
    Err(PinError::Retired(request.backup.clone()))
}

/// Takes a backup's pins out.
///
/// # Errors
/// It has none, or the repository does not take it.
pub async fn unpin(request: &PinRequest) -> Result<(), PinError> {
    let (repository, keys, archive_id) = find(request).await?;
    let pins = standing(&repository, &keys, archive_id).await?;
    let pins = pins.map_err(PinError::Unreadable)?.events(&request.backup);
    if pins.is_empty() {
        return Err(PinError::NotPinned(request.backup.clone()));
    }
    let event = Unpinned {
        backup_id: request.backup.clone(),
        pins,
    };
    event::append(&repository, &keys, archive_id, event).await?;
    Ok(())
}

/// The system identifier that the backup is of.
async fn find(request: &PinRequest) -> Result<(Repository, SystemKeys, RandomId), PinError> {
    let repository = Repository::open(&request.repository).await?;
    repository.root().await?;
    for identity in repository.registrations(&request.cluster).await? {
        let keys = SystemKeys {
            cluster: request.cluster.clone(),
            system: identity.system_identifier,
        };
        let key = keys.commit(&request.backup);
        if repository.document::<BackupRecord>(&key).await?.is_some() {
            return Ok((repository, keys, identity.archive_id));
        }
    }
    Err(PinError::NoBackup {
        repository: request.repository.name.clone(),
        cluster: request.cluster.clone(),
        backup: request.backup.clone(),
    })
}

/// The pins that stand. Inside, a pin that cannot be read; an unpin that cannot be read takes nothing out.
///
/// # Errors
/// The repository's.
pub async fn standing(
    repository: &Repository,
    keys: &SystemKeys,
    archive_id: RandomId,
) -> Result<Result<Pins, Unreadable>, RepositoryError> {
    let names = event::names(repository, keys).await?;
    let (mut pinned, mut unpinned): (Vec<(EventId, Pinned)>, Vec<Unpinned>) = Default::default();
    for name in names {
        if name.kind == Pinned::EVENT {
            match read(repository, keys, archive_id, &name).await? {
                Ok(Some(pin)) => pinned.push((name.id, pin)),
                Ok(None) => {}
                Err(unreadable) => return Ok(Err(unreadable)),
            }
        } else if name.kind == Unpinned::EVENT {
            match read(repository, keys, archive_id, &name).await? {
                Ok(event) => unpinned.extend(event),
                Err(Unreadable { key, why }) => {
                    tracing::warn!(key, why, "an unpin cannot be read: the backup stays pinned");
                }
            }
        }
    }
    Ok(Ok(Pins::of(&pinned, &unpinned)))
}

async fn read<T: EventBody>(
    repository: &Repository,
    keys: &SystemKeys,
    archive_id: RandomId,
    name: &EventName,
) -> Result<Result<Option<T>, Unreadable>, RepositoryError> {
    match event::read::<T>(repository, keys, archive_id, name).await {
        Ok(event) => Ok(Ok(event.map(|event| event.body))),
        Err(e) if matches!(e.trouble(), Trouble::Damage | Trouble::Configuration) => {
            Ok(Err(Unreadable {
                key: keys.event(name),
                why: whole_text(&e),
            }))
        }
        Err(e) => Err(e),
    }
}
