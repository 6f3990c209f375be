//! What expiry sees of backups beside the catalog.

use std::collections::{BTreeMap, BTreeSet};

use jiff::Timestamp;
use walden_model::keys::RetiredKey;
use walden_model::retention::{OpenBackup, Pins, Verdict};
use walden_model::{
    AbandonedDocument, BackupId, BackupRecord, Catalog, Document, DocumentError, EventBody,
    IdentityDocument, RandomId, StartedDocument, SystemKeys, Verified, WalName,
};
use walden_pg::SegmentName;
use walden_store::ObjectMeta;

use crate::catalog::whole_text;
use crate::event;
use crate::pin::{self, Unreadable};
use crate::repository::{Repository, RepositoryError, Trouble};

/// One look at backups' folders, commit documents and pins.
pub(super) struct Look {
    /// Every backup's folder, whatever became of the backup.
    pub folders: BTreeMap<BackupId, Vec<ObjectMeta>>,
    /// Ids under whose commit key something stands, and since when.
    pub committed: BTreeMap<BackupId, Timestamp>,
    /// Backups with a commit document that were not known.
    pub fresh: Vec<BackupRecord>,
    /// Backups that were closed because they never ended, and of which objects are left.
    pub closed: BTreeSet<BackupId>,
    /// Backups without a commit document.
    pub open: Vec<OpenBackup>,
    /// Who says of what that it is being removed, and since when.
    pub retired: BTreeMap<BackupId, Vec<(RandomId, Timestamp)>>,
    /// Who removes WAL, and since when.
    pub retired_wal: Vec<(RandomId, Timestamp)>,
    /// Pins.
    pub pins: Pins,
    /// When the newest of all these was stored.
    newest: Timestamp,
}

/// What may stand under a commit key.
pub(super) enum Commit {
    Backup(Box<BackupRecord>),
    Closed,
    Gone,
}

impl Look {
    /// Looks; the commit documents of `known` need not be read, whatever else says of a backup that it goes. Inside, what cannot be read and may say what must stay.
    pub async fn new(
        repository: &Repository,
        keys: &SystemKeys,
        identity: &IdentityDocument,
        known: &BTreeSet<BackupId>,
    ) -> Result<Result<Self, Unreadable>, RepositoryError> {
        // Folders before commit documents: a backup that is committed in between is in both.
        let objects = repository.list(&keys.backups_prefix()).await?;
        let commits = repository.list(&keys.commits_prefix()).await?;
        let retirements = repository.list(&keys.retired_prefix()).await?;
        let pins = match pin::standing(repository, keys, identity.archive_id).await? {
            Ok(pins) => pins,
            Err(unreadable) => return Ok(Err(unreadable)),
        };
        let everything = objects.iter().chain(&commits).chain(&retirements);
        let mut look = Self {
            newest: everything
                .map(|object| object.modified)
                .max()
                .unwrap_or(Timestamp::MIN),
            folders: BTreeMap::new(),
            committed: BTreeMap::new(),
            fresh: Vec::new(),
            closed: BTreeSet::new(),
            open: Vec::new(),
            retired: BTreeMap::new(),
            retired_wal: Vec::new(),
            pins,
        };
        for object in retirements {
            match keys.parse_retired(object.key.as_str()) {
                Some(RetiredKey::Backup(id, who)) => {
                    let all = look.retired.entry(id).or_default();
                    all.push((who, object.modified));
                }
                Some(RetiredKey::Wal(who)) => look.retired_wal.push((who, object.modified)),
                None => {}
            }
        }
        for object in objects {
            if let Some(id) = keys.parse_backup(object.key.as_str()) {
                look.folders.entry(id).or_default().push(object);
            }
        }
        let ids = commits.iter();
        look.committed = ids
            .filter_map(|object| Some((keys.parse_commit(object.key.as_str())?, object.modified)))
            .collect();
        let unknown: Vec<BackupId> = look
            .committed
            .keys()
            .filter(|id| !known.contains(id))
            .cloned()
            .collect();
        for id in unknown {
            match commit(repository, keys, &id).await? {
                Ok(Commit::Backup(record)) => look.fresh.push(*record),
                Ok(Commit::Closed) if look.folders.contains_key(&id) => {
                    look.closed.insert(id);
                }
                Ok(Commit::Closed | Commit::Gone) => {}
                Err(unreadable) => return Ok(Err(unreadable)),
            }
        }
        for (id, objects) in &look.folders {
            if look.committed.contains_key(id) || look.retired.contains_key(id) {
                continue;
            }
            let newest = objects.iter().map(|object| object.modified).max();
            let started = started(repository, keys, id).await?;
            look.open.push(OpenBackup {
                id: id.clone(),
                newest: newest.unwrap_or(Timestamp::MAX),
                wal_from: started.as_ref().and_then(|started| started.wal_from),
                parents: started.map(|started| started.parents),
            });
        }
        Ok(Ok(look))
    }

    /// Whether a pin holds now.
    pub fn is_pinned(&self, id: &BackupId) -> bool {
        let pin = self.pins.of_backup(id);
        pin.is_some_and(|pin| pin.holds(Timestamp::now()))
    }

    /// What verifies found: backups that it proved, and those that cannot be restored.
    pub async fn verified(
        &self,
        repository: &Repository,
        keys: &SystemKeys,
        identity: &IdentityDocument,
    ) -> Result<(BTreeSet<BackupId>, BTreeSet<BackupId>), RepositoryError> {
        let here = repository.root().await?.repository_id;
        let names = event::names(repository, keys).await?;
        let mut verdict = Verdict::default();
        for name in names.iter().filter(|name| name.kind == Verified::EVENT) {
            let read = event::read::<Verified>(repository, keys, identity.archive_id, name).await;
            match read {
                // Another repository's, which a copy brought, says nothing of this one.
                Ok(Some(event)) if event.body.repository_id == here => verdict.add(event.body),
                Ok(_) => continue,
                Err(e) if matches!(e.trouble(), Trouble::Damage | Trouble::Configuration) => {
                    continue;
                }
                Err(e) => return Err(e),
            }
            if verdict.is_whole() {
                break;
            }
        }
        let (lost, until) = (verdict.lost, verdict.proven_until);
        let proven = self.committed.iter();
        let proven = proven.filter(|(_, since)| until.is_some_and(|until| **since <= until));
        let proven = proven.map(|(id, _)| id.clone());
        Ok((proven.filter(|id| !lost.contains(id)).collect(), lost))
    }

    /// The store's clock, or a little before it: when the newest thing was stored that is looked at. Nobody else's clock tells how long a
    /// backup has been silent.
    pub async fn store_now(
        &self,
        repository: &Repository,
        keys: &SystemKeys,
        catalog: &Catalog,
    ) -> Result<Timestamp, RepositoryError> {
        let mut now = self.newest;
        for (timeline, wal) in &catalog.wal {
            let Some(last) = wal.last() else { continue };
            let name = SegmentName::from_number(*timeline, last, catalog.segment_size);
            let key = repository.key(&keys.wal(&WalName::Segment(name)))?;
            match repository.store().head(&key).await {
                Ok(meta) => now = now.max(meta.modified),
                Err(e) => {
                    let e = repository.failed(e);
                    if e.trouble() != Trouble::Absent {
                        return Err(e);
                    }
                }
            }
        }
        Ok(now)
    }
}

pub(super) async fn commit(
    repository: &Repository,
    keys: &SystemKeys,
    id: &BackupId,
) -> Result<Result<Commit, Unreadable>, RepositoryError> {
    let key = keys.commit(id);
    Ok(match repository.document::<BackupRecord>(&key).await {
        Ok(Some(record)) => Ok(Commit::Backup(Box::new(record))),
        Ok(None) => Ok(Commit::Gone),
        Err(RepositoryError::Document {
            source: DocumentError::WrongKind { found, .. },
            ..
        }) if found == AbandonedDocument::KIND => Ok(Commit::Closed),
        Err(e) if matches!(e.trouble(), Trouble::Damage | Trouble::Configuration) => {
            Err(Unreadable {
                why: whole_text(&e),
                key,
            })
        }
        Err(e) => return Err(e),
    })
}

/// `None` where there is none, or it cannot be believed.
async fn started(
    repository: &Repository,
    keys: &SystemKeys,
    id: &BackupId,
) -> Result<Option<StartedDocument>, RepositoryError> {
    match repository.document(&keys.started(id)).await {
        Err(e) if matches!(e.trouble(), Trouble::Damage | Trouble::Configuration) => Ok(None),
        other => other,
    }
}
