//! Carrying out a plan, step by step. What the steps are for is told in `mod.rs`; `walden_model`'s tests walk through every order in which
//! they meet those of backups, pins and other expiries.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use futures::{StreamExt as _, TryStreamExt as _, stream};
use jiff::Timestamp;
use walden_model::keys::{self, BackupObject};
use walden_model::retention::{
    ExpirePlan, Expired, KeptWal, NeededPacks, RetiredDocument, RetiredWalDocument, Staying,
};
use walden_model::{
    AbandonedDocument, BackupId, BackupRecord, DocumentError, IdentityDocument, RandomId,
    SystemKeys,
};
use walden_pg::{Lsn, WalFileName};
use walden_store::ObjectMeta;

use super::look::{self, Commit, Look};
use super::remove::is_refusal;
use super::{Removed, SystemExpiry, span};
use crate::pin::Unreadable;
use crate::repository::{Repository, RepositoryError};
use crate::{event, host};

/// It could be read a moment ago, or is new: either way nobody knows what it needs.
fn believed<T>(read: Result<T, Unreadable>) -> Result<T, RepositoryError> {
    read.map_err(|unreadable| RepositoryError::Document {
        key: unreadable.key,
        source: DocumentError::Damaged(unreadable.why),
    })
}

/// One expiry of one system identifier.
pub(super) struct Run<'a> {
    repository: &'a Repository,
    keys: &'a SystemKeys,
    identity: &'a IdentityDocument,
    records: &'a BTreeMap<BackupId, BackupRecord>,
    abandoned_after: Duration,
    /// Tells its documents from those of others.
    who: RandomId,
}

impl<'a> Run<'a> {
    pub fn new(
        repository: &'a Repository,
        keys: &'a SystemKeys,
        expiry: &'a SystemExpiry,
        abandoned_after: Duration,
    ) -> Self {
        Self {
            repository,
            keys,
            identity: &expiry.identity,
            records: &expiry.records,
            abandoned_after,
            who: host::random_id(),
        }
    }

    /// # Errors
    /// The store is out. What was begun goes on with the next expiry.
    pub async fn carry_out(&self, plan: &ExpirePlan) -> Result<Removed, RepositoryError> {
        let mut removed = Removed::default();
        let floor = Lsn(plan
            .kept_wal
            .floor()
            .saturating_mul(self.identity.wal_segment_size.bytes()));
        let mut going: BTreeSet<BackupId> =
            plan.removed.iter().chain(&plan.begun).cloned().collect();

        self.tell(plan, &going, floor).await?;
        for id in &plan.abandoned {
            if self.close(id, &mut removed).await? {
                removed.abandoned.push(id.clone());
            }
        }

        let look = self.look_again(&going).await?;
        let mut spared = Vec::new();
        let pinned: Vec<BackupId> = going
            .iter()
            .filter(|id| look.committed.contains_key(id) && look.is_pinned(id))
            .cloned()
            .collect();
        for id in pinned {
            // Only one's own: whoever else removes it has told so before the pin, or takes it back, too.
            let own = self.repository.key(&self.keys.retired(&id, &self.who))?;
            let taken_back = self.repository.store().delete(&own).await;
            taken_back.map_err(|e| self.repository.failed(e))?;
            going.remove(&id);
            if !self.records.contains_key(&id)
                && let Commit::Backup(record) =
                    believed(look::commit(self.repository, self.keys, &id).await?)?
            {
                spared.push(*record);
            }
            removed.spared.push(id);
        }
        let committed = self.records.values().chain(&look.fresh).chain(&spared);
        let size = self.identity.wal_segment_size;
        let Staying {
            packs: needed,
            wal: kept_wal,
        } = Staying::new(&plan.kept_wal, committed, &going, &look.open, size);

        self.commits(&look, &mut going, &mut removed).await?;
        let folders = going.iter().chain(&look.closed);
        let emptied = self.folders(&look, &needed, folders, &mut removed).await?;
        self.wal(&kept_wal, &mut removed).await?;
        self.rollups(&kept_wal, &mut removed).await?;
        self.untell(&look, &emptied, &mut removed).await?;
        Ok(removed)
    }

    /// Says what goes, before anything does.
    async fn tell(
        &self,
        plan: &ExpirePlan,
        going: &BTreeSet<BackupId>,
        floor: Lsn,
    ) -> Result<(), RepositoryError> {
        let host = host::host_name();
        let now = Timestamp::now();
        stream::iter(going)
            .map(|id| {
                let document = RetiredDocument {
                    backup_id: id.clone(),
                    archive_id: self.identity.archive_id,
                    retired_at: now,
                    host: host.clone(),
                    write_token: self.who,
                };
                async move {
                    let key = self.keys.retired(id, &self.who);
                    self.repository.put_document(&key, &document).await
                }
            })
            .buffer_unordered(16)
            .try_collect::<()>()
            .await?;
        if floor > Lsn::INVALID {
            let document = RetiredWalDocument {
                archive_id: self.identity.archive_id,
                before: floor,
                retired_at: now,
                host,
                write_token: self.who,
            };
            let key = self.keys.retired_wal(&self.who);
            self.repository.put_document(&key, &document).await?;
        }
        if plan.removed.is_empty() && plan.abandoned.is_empty() && plan.wal.is_empty() {
            return Ok(());
        }
        let event = Expired {
            backups: plan.removed.clone(),
            abandoned: plan.abandoned.clone(),
            wal_before: floor,
            segments: plan
                .wal
                .iter()
                .map(|range| range.last - range.first + 1)
                .sum(),
            wal_bytes: plan.wal_bytes,
        };
        let archive = self.identity.archive_id;
        event::append(self.repository, self.keys, archive, event).await?;
        Ok(())
    }

    /// Takes the commit key of a backup that does not run any more. If it was committed after all, it keeps it.
    async fn close(&self, id: &BackupId, removed: &mut Removed) -> Result<bool, RepositoryError> {
        let document = AbandonedDocument {
            backup_id: id.clone(),
            archive_id: self.identity.archive_id,
            abandoned_at: Timestamp::now(),
            host: host::host_name(),
            write_token: self.who,
        };
        let key = self.keys.commit(id);
        match self.repository.put_document(&key, &document).await {
            Ok(()) => Ok(true),
            Err(e) if e.is_already_exists() => Ok(false),
            Err(RepositoryError::Store { source, .. }) if is_refusal(source.kind()) => {
                removed.keeps(&key, &source);
                Ok(false)
            }
            Err(e) => Err(e),
        }
    }

    async fn look_again(&self, going: &BTreeSet<BackupId>) -> Result<Look, RepositoryError> {
        let known = self.records.keys().chain(going).cloned().collect();
        believed(Look::new(self.repository, self.keys, self.identity, &known).await?)
    }

    /// Removes commit documents. A backup whose document the store keeps is left as it is, behind its document in `retired/`.
    async fn commits(
        &self,
        look: &Look,
        going: &mut BTreeSet<BackupId>,
        removed: &mut Removed,
    ) -> Result<(), RepositoryError> {
        let mut objects = Vec::new();
        for id in going.iter().filter(|id| look.committed.contains_key(id)) {
            let key = self.repository.key(&self.keys.commit(id))?;
            let modified = Timestamp::UNIX_EPOCH;
            objects.push(Ok(ObjectMeta {
                key,
                size: 0,
                modified,
            }));
            removed.backups.push(id.clone());
        }
        let kept = removed
            .remove(self.repository, stream::iter(objects))
            .await?;
        for key in kept {
            if let Some(id) = self.keys.parse_commit(key.as_str()) {
                going.remove(&id);
                removed.backups.retain(|gone| *gone != id);
            }
        }
        Ok(())
    }

    /// Empties backups' folders of all that nobody else needs, and says which are empty. `started.json` goes last: by it a folder is known.
    async fn folders<'i>(
        &self,
        look: &Look,
        needed: &NeededPacks,
        ids: impl Iterator<Item = &'i BackupId>,
        removed: &mut Removed,
    ) -> Result<BTreeSet<BackupId>, RepositoryError> {
        let (mut first, mut last) = (Vec::new(), Vec::new());
        let mut emptied = BTreeSet::new();
        for id in ids {
            emptied.insert(id.clone());
            for object in look.folders.get(id).into_iter().flatten() {
                match self.keys.parse_backup_object(object.key.as_str()) {
                    Some((_, BackupObject::Started)) => last.push(object.clone()),
                    Some((_, BackupObject::Pack(number))) if needed.needs(id, number) => {
                        emptied.remove(id);
                    }
                    Some(_) => first.push(Ok(object.clone())),
                    // Not understood, so not removed.
                    None => {
                        emptied.remove(id);
                    }
                }
            }
        }
        for key in removed.remove(self.repository, stream::iter(first)).await? {
            if let Some(id) = self.keys.parse_backup(key.as_str()) {
                emptied.remove(&id);
            }
        }
        last.retain(|object| {
            let id = self.keys.parse_backup(object.key.as_str());
            id.is_some_and(|id| emptied.contains(&id))
        });
        let last = stream::iter(last.into_iter().map(Ok));
        for key in removed.remove(self.repository, last).await? {
            if let Some(id) = self.keys.parse_backup(key.as_str()) {
                emptied.remove(&id);
            }
        }
        Ok(emptied)
    }

    /// Removes segments, what belongs to them, and what was set aside for one of their names. History files stay: they are small, and say
    /// which timelines' numbers are taken.
    async fn wal(&self, kept: &KeptWal, removed: &mut Removed) -> Result<(), RepositoryError> {
        if kept.floor() == 0 {
            return Ok(());
        }
        let size = self.identity.wal_segment_size;
        let stays = |file: WalFileName| {
            let segment = match file {
                WalFileName::Segment(segment)
                | WalFileName::Partial(segment)
                | WalFileName::Backup { segment, .. } => segment,
                WalFileName::History(_) => return true,
            };
            let number = segment.number(size);
            number.is_none_or(|number| kept.keeps(segment.timeline, number))
        };
        let prefix = self.keys.wal_prefix();
        let archived = |object: &ObjectMeta| {
            let name = object.key.as_str().strip_prefix(&prefix);
            name.and_then(keys::parse_wal_key)
                .is_some_and(|name| !stays(name.file()))
        };
        self.listed(&prefix, archived, removed).await?;
        let aside = |object: &ObjectMeta| {
            let name = self.keys.parse_quarantine(object.key.as_str());
            name.is_some_and(|(file, _)| !stays(file))
        };
        let prefix = self.keys.quarantine_prefix();
        self.listed(&prefix, aside, removed).await
    }

    async fn rollups(&self, kept: &KeptWal, removed: &mut Removed) -> Result<(), RepositoryError> {
        let size = self.identity.wal_segment_size;
        let goes = |object: &ObjectMeta| {
            let block = self.keys.parse_rollup(object.key.as_str(), size);
            block.is_some_and(|block| !kept.keeps_all(&block))
        };
        self.listed(&self.keys.rollups_prefix(), goes, removed)
            .await
    }

    /// Removes those of the listed that go, while they are listed.
    async fn listed(
        &self,
        prefix: &str,
        goes: impl Fn(&ObjectMeta) -> bool,
        removed: &mut Removed,
    ) -> Result<(), RepositoryError> {
        let pages = self.repository.list_pages(prefix);
        let objects = pages
            .map_ok(|page| {
                let going: Vec<_> = page.into_iter().filter(|object| goes(object)).collect();
                stream::iter(going.into_iter().map(Ok))
            })
            .try_flatten();
        removed.remove(self.repository, objects).await.map(drop)
    }

    /// Takes out of `retired/` what is done. What a run left there that ended long ago nobody acts upon any more.
    async fn untell(
        &self,
        look: &Look,
        emptied: &BTreeSet<BackupId>,
        removed: &mut Removed,
    ) -> Result<(), RepositoryError> {
        let newest = look
            .retired
            .values()
            .flatten()
            .map(|(_, since)| *since)
            .max();
        // Either clock may run ahead.
        let now = Timestamp::now();
        let is_old = |since: &Timestamp| {
            newest.is_some_and(|newest| {
                newest.min(now).duration_since(*since) > span(self.abandoned_after)
            })
        };
        let mut keys = Vec::new();
        for (id, all) in &look.retired {
            // Pinned before it was told, by somebody who did not live to take it back.
            let forgotten = look.committed.contains_key(id)
                && look.is_pinned(id)
                && all.iter().all(|(_, since)| is_old(since));
            if emptied.contains(id) || forgotten {
                keys.extend(all.iter().map(|(who, _)| self.keys.retired(id, who)));
            }
        }
        let wal = look
            .retired_wal
            .iter()
            .filter(|(who, since)| *who == self.who || is_old(since));
        keys.extend(wal.map(|(who, _)| self.keys.retired_wal(who)));
        let mut objects = Vec::new();
        for key in keys {
            objects.push(Ok(ObjectMeta {
                key: self.repository.key(&key)?,
                size: 0,
                modified: Timestamp::UNIX_EPOCH,
            }));
        }
        // One's own notes are nothing that was removed from the archive.
        let (objects_before, bytes_before) = (removed.objects, removed.bytes);
        let kept = removed.remove(self.repository, stream::iter(objects)).await;
        (removed.objects, removed.bytes) = (objects_before, bytes_before);
        kept.map(drop)
    }
}
