//! Every object that stands by itself: WAL files, documents, roll-ups, what was set aside. What belongs to a backup is proven with it.

use std::collections::{HashMap, HashSet};
use std::future;
use std::io;
use std::sync::{Arc, Mutex, PoisonError};

use futures::{StreamExt, TryStreamExt, stream};
use walden_model::event::AnyEvent;
use walden_model::{
    Affected, BackupId, Document, FindingKind, HeadKind, StartedDocument, Stored, VerifyMode,
    WalName, keys,
};
use walden_pg::{LongPageHeader, SegmentName, WalFileName, check_segment};
use walden_store::{ListOptions, ObjectMeta};

use super::Check;
use crate::codec::{CodecError, DecodedObject, Expected};
use crate::repository::RepositoryError;

/// Packs and shards that some backup names, small: there may be millions.
#[derive(Default)]
struct Named {
    backups: HashMap<BackupId, u32>,
    objects: HashSet<(u32, u8, u32)>,
}

const PACK: u8 = 0;
const FILE_MAP: u8 = 1;
const NAMES: u8 = 2;

impl Named {
    fn add(&mut self, id: &BackupId, sort: u8, number: u32) {
        let next = self.backups.len() as u32;
        let backup = *self.backups.entry(id.clone()).or_insert(next);
        self.objects.insert((backup, sort, number));
    }

    fn has(&self, id: &BackupId, sort: u8, number: u32) -> bool {
        let backup = self.backups.get(id);
        backup.is_some_and(|backup| self.objects.contains(&(*backup, sort, number)))
    }
}

impl Check<'_> {
    fn named(&self) -> Named {
        let mut named = Named::default();
        for record in &self.catalog.backups {
            for pack in &record.packs {
                named.add(&pack.backup, PACK, pack.number);
            }
            for shard in &record.file_map {
                named.add(&record.backup_id, FILE_MAP, shard.number);
            }
            for shard in record.names.iter().flat_map(|names| &names.shards) {
                named.add(&record.backup_id, NAMES, shard.number);
            }
        }
        named
    }

    /// Looks at every object's name and, as far as the mode says, at its bytes. Memory does not grow with the number of objects.
    pub(super) async fn objects(&self) {
        if let Some(id) = &self.request.backup {
            return self.needed(id).await;
        }
        self.progress.phase("WAL and documents", None);
        let named = self.named();
        let (above, folders) = match self.top().await {
            Ok(top) => top,
            Err(e) => {
                let (prefix, damage) = (self.keys.prefix(), FindingKind::Unreachable);
                return self.failed(&prefix, damage, Affected::default(), &e);
            }
        };
        // Folder by folder, so that each is cut into lanes as finely as it allows.
        let pages = stream::iter(&folders)
            .map(|folder| self.repository.list_pages(folder))
            .flatten();
        let objects = stream::iter([Ok(above)])
            .chain(pages)
            .map_ok(|page| stream::iter(page.into_iter().map(Ok)))
            .try_flatten();
        let named = &named;
        objects
            .map(|object| async move {
                match object {
                    Ok(meta) => self.object(&meta, named).await,
                    Err(e) => {
                        let prefix = self.keys.prefix();
                        let damage = FindingKind::Unreachable;
                        self.failed(&prefix, damage, Affected::default(), &e);
                    }
                }
            })
            .buffer_unordered(self.jobs())
            .for_each(|()| future::ready(()))
            .await;
    }

    /// What stands directly below the system identifier's prefix, and the folders there.
    async fn top(&self) -> Result<(Vec<ObjectMeta>, Vec<String>), RepositoryError> {
        let prefix = self.keys.prefix();
        let (mut objects, mut folders) = (Vec::new(), Vec::new());
        let mut after = None;
        loop {
            let options = ListOptions {
                prefix: &prefix,
                start_after: after.as_deref(),
                delimiter: true,
                limit: 1000,
            };
            let page = self.repository.store().list(options).await;
            let page = page.map_err(|e| self.repository.failed(e))?;
            objects.extend(page.objects);
            folders.extend(page.prefixes);
            match page.next {
                Some(next) => after = Some(next),
                None => return Ok((objects, folders)),
            }
        }
    }

    /// The WAL that one backup needs itself.
    async fn needed(&self, id: &BackupId) {
        let Some(record) = self.catalog.backup(id) else {
            return;
        };
        if self.request.mode == VerifyMode::Names {
            return;
        }
        self.progress.phase("the backup's own WAL", None);
        let size = self.identity.wal_segment_size;
        let segments = record.needed_segments(size).into_iter();
        let stored = segments.filter_map(|name| {
            let wal = self.catalog.wal.get(&name.timeline)?;
            Some((name, *wal.segments.get(&name.number(size)?)?))
        });
        stream::iter(stored)
            .map(|(name, bytes)| async move {
                let name = WalName::Segment(name);
                self.wal(&self.keys.wal(&name), &name, bytes).await;
            })
            .buffer_unordered(self.jobs())
            .for_each(|()| future::ready(()))
            .await;
    }

    async fn object(&self, meta: &ObjectMeta, named: &Named) {
        let key = meta.key.as_str();
        let stored = self.keys.stored(key, self.identity.wal_segment_size);
        {
            let mut tally = self.tally();
            // What events say is not what they are about.
            if !matches!(stored, Stored::Event(_)) {
                tally.newest = tally.newest.max(Some(meta.modified));
            }
            if let Some(id) = self.keys.parse_backup(key) {
                let newest = tally.backups.entry(id).or_insert(meta.modified);
                *newest = meta.modified.max(*newest);
            }
            if tally.named.contains(key) {
                return;
            }
        }
        let (sort, id, number) = match &stored {
            Stored::Pack(id, number) => (PACK, id, *number),
            Stored::FileMap(id, number) => (FILE_MAP, id, *number),
            Stored::Names(id, number) => (NAMES, id, *number),
            Stored::Reserved => return,
            Stored::Stray => {
                let what = "this version of Walden does not know what it is".to_owned();
                return self.add(FindingKind::Stray, key, what, Affected::default());
            }
            _ => {
                let is_new = self.since.is_none_or(|since| meta.modified > since);
                if is_new && self.request.mode != VerifyMode::Names && !self.gave_up() {
                    self.alone(key, &stored, meta.size).await;
                }
                return;
            }
        };
        // A backup that is not whole names nothing yet; its commit document, if it is damaged, is a finding of its own.
        if !named.has(id, sort, number) && self.catalog.backup(id).is_some() {
            let what = format!("it stands in the folder of backup {id}, and no backup names it");
            self.add(FindingKind::Stray, key, what, Affected::default());
        }
    }

    async fn alone(&self, key: &str, stored: &Stored, size: u64) {
        let none = Affected::default();
        match stored {
            Stored::Wal(name) => self.wal(key, name, size).await,
            Stored::Quarantine => {
                let read = self.read_framed(key, HeadKind::Wal).await;
                self.told(key, FindingKind::WalFileDamaged, none, size, read.map(drop));
            }
            Stored::RollUp => {
                let read = self.read_framed(key, HeadKind::RollUp).await;
                self.told(key, FindingKind::RollUpDamaged, none, size, read.map(drop));
            }
            Stored::Started(id) => {
                let read = self.document::<StartedDocument>(key).await.and_then(|one| {
                    let fits = one.backup_id == *id && one.archive_id == self.identity.archive_id;
                    fits.then_some(()).ok_or_else(|| elsewhere(key))
                });
                self.told(key, FindingKind::DocumentDamaged, none, size, read);
            }
            Stored::Event(name) => {
                let read = self.document::<AnyEvent>(key).await.and_then(|one| {
                    let fits = one.event_id == name.id
                        && one.event == name.kind
                        && one.archive_id == self.identity.archive_id;
                    fits.then_some(()).ok_or_else(|| elsewhere(key))
                });
                self.told(key, FindingKind::DocumentDamaged, none, size, read);
            }
            // The catalog has read it.
            Stored::Commit(_) => self.read(size),
            _ => {}
        }
    }

    fn told(
        &self,
        key: &str,
        damage: FindingKind,
        affected: Affected,
        size: u64,
        read: Result<(), RepositoryError>,
    ) {
        match read {
            Ok(()) => self.read(size),
            Err(e) => self.failed(key, damage, affected, &e),
        }
    }

    async fn document<T: Document>(&self, key: &str) -> Result<T, RepositoryError> {
        let read = self.repository.document(key).await?;
        read.ok_or_else(|| damaged(key, "it was listed, and is gone".to_owned()))
    }

    /// Proves a framed object, and gives what its content begins with: as much as a segment's header has.
    async fn read_framed(
        &self,
        key: &str,
        kind: HeadKind,
    ) -> Result<(DecodedObject, Vec<u8>), RepositoryError> {
        let begin = Arc::new(Mutex::new(Vec::new()));
        let sink = {
            let begin = begin.clone();
            move |content: Vec<u8>| {
                let mut begin = begin.lock().unwrap_or_else(PoisonError::into_inner);
                let wanted = LongPageHeader::LENGTH.saturating_sub(begin.len());
                begin.extend(content.iter().take(wanted));
                Ok::<_, io::Error>(())
            }
        };
        let expected = self.expected(kind, key);
        let object = self.repository.read_object(key, expected, sink).await?;
        let begin = std::mem::take(&mut *begin.lock().unwrap_or_else(PoisonError::into_inner));
        Ok((object, begin))
    }

    pub(super) fn expected(&self, kind: HeadKind, key: &str) -> Expected {
        Expected {
            kind,
            archive_id: self.identity.archive_id,
            key: keys::below_cluster(key).to_owned(),
        }
    }

    async fn wal(&self, key: &str, name: &WalName, size: u64) {
        let read = self.read_framed(key, HeadKind::Wal).await;
        let read = read.and_then(|(object, begin)| self.fits(key, name, &object, &begin));
        let (damage, affected) = match (&read, name) {
            (Ok(()), _) => return self.read(size),
            (Err(_), WalName::Segment(segment)) => (
                FindingKind::SegmentDamaged,
                self.catalog.affected_by(*segment),
            ),
            (Err(_), WalName::History(timeline)) => (
                FindingKind::HistoryDamaged,
                self.catalog.affected_by_history(*timeline),
            ),
            (Err(_), _) => (FindingKind::WalFileDamaged, Affected::default()),
        };
        self.told(key, damage, affected, size, read);
    }

    /// Holds a whole object's content against its name, as a push does.
    fn fits(
        &self,
        key: &str,
        name: &WalName,
        object: &DecodedObject,
        begin: &[u8],
    ) -> Result<(), RepositoryError> {
        let refused = |e: &dyn std::error::Error| Err(damaged(key, crate::catalog::whole_text(e)));
        if let WalName::Partial { digest, .. } = name
            && object.tail.sha256.map(|found| found.short()) != Some(*digest)
        {
            return Err(damaged(
                key,
                "its content is not of the digest in its name".to_owned(),
            ));
        }
        let segment: SegmentName = match name.file() {
            WalFileName::Segment(segment) | WalFileName::Partial(segment) => segment,
            _ => return Ok(()),
        };
        let facts = match check_segment(&segment, begin, object.tail.content_size) {
            Ok(facts) => facts,
            Err(e) => return refused(&e),
        };
        let found = (facts.header.system_identifier, facts.size);
        let expected = (
            self.identity.system_identifier,
            self.identity.wal_segment_size,
        );
        if found == expected {
            return Ok(());
        }
        let what = format!(
            "its first page is of system identifier {} and segments of {}, the registration's are {} and {}",
            found.0, found.1, expected.0, expected.1
        );
        Err(damaged(key, what))
    }
}

pub(super) fn damaged(key: &str, what: String) -> RepositoryError {
    RepositoryError::Object {
        key: key.to_owned(),
        source: CodecError::Damaged { what },
    }
}

fn elsewhere(key: &str) -> RepositoryError {
    damaged(key, "the document belongs elsewhere".to_owned())
}
