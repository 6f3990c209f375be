//! Reading the commit index: of one segment from its tail, of many from roll-ups, and in full from a segment's own bytes.
//! What is to be looked into, and what follows from it, `walden_model` decides.

mod breaks;
mod last;
mod record;
mod rollup;
#[cfg(test)]
mod tests;
mod walk;

pub use breaks::mark_breaks;
pub use last::{LastCommit, RunEnd};
pub use rollup::{KnownRollUps, RollUpReport, roll_up, write_roll_ups};
pub use walk::Summaries;

use std::collections::BTreeMap;
use std::io;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::OnceCell;
use walden_model::index::{DetailReader, SegmentDetail, SegmentIndex};
use walden_model::{Catalog, HeadKind, RandomId, SystemKeys, WalName, keys};
use walden_pg::wal_record::RelFileLocator;
use walden_pg::{SegmentName, TimelineId};

use self::walk::Direction;
use crate::archive::Archive;
use crate::codec::{CodecError, Expected, ReadTail};
use crate::repository::{RepositoryError, Trouble};

/// Tails and roll-ups that are read at the same time. They are small, so what counts is how long an answer takes.
const LANES: usize = 32;

/// The indexes of one system identifier's archived segments.
#[derive(Debug)]
pub struct Indexes<'a> {
    archive: Archive,
    catalog: &'a Catalog,
    keys: SystemKeys,
    /// Listed when they are first needed.
    roll_ups: OnceCell<KnownRollUps>,
    /// Of each timeline the first segment that was met encrypted, with nothing to open it.
    sealed: Mutex<BTreeMap<TimelineId, u64>>,
    /// Whether a segment was left out because it cannot be opened.
    unopened: AtomicBool,
}

impl<'a> Indexes<'a> {
    /// Those of the catalog's segments.
    #[must_use]
    pub fn new(archive: impl Into<Archive>, catalog: &'a Catalog) -> Self {
        Self {
            archive: archive.into(),
            catalog,
            keys: SystemKeys {
                cluster: catalog.cluster.clone(),
                system: catalog.system_identifier,
            },
            roll_ups: OnceCell::new(),
            sealed: Mutex::default(),
            unopened: AtomicBool::new(false),
        }
    }

    /// The same, where the roll-ups are listed already.
    #[must_use]
    pub fn knowing(self, roll_ups: Option<KnownRollUps>) -> Self {
        Self {
            roll_ups: OnceCell::new_with(roll_ups),
            ..self
        }
    }

    /// What a segment's index says. `None`: it has none that this program can use, its object is damaged, or there is no such object.
    ///
    /// # Errors
    /// The repository cannot be asked.
    pub async fn segment(
        &self,
        name: SegmentName,
    ) -> Result<Option<SegmentIndex>, RepositoryError> {
        let read = read_tail(&self.archive, self.catalog.archive_id, &self.key(name)).await;
        if let Err(RepositoryError::Object { source, .. }) = &read {
            self.note_unopened(name, source);
        }
        match unless_unusable(read)? {
            Some((_, read)) => {
                let index = read.tail.index.map(|index| *index);
                Ok(index.filter(|index| self.is_within(index, name)))
            }
            None => Ok(None),
        }
    }

    fn note_unopened(&self, name: SegmentName, why: &CodecError) {
        let cannot_open = matches!(why, CodecError::NoIdentity | CodecError::WrongIdentity);
        if cannot_open {
            self.unopened.store(true, Ordering::Relaxed);
        }
        // Which of them the wrong identity opens, each says itself.
        if matches!(why, CodecError::NoIdentity)
            && let Some(number) = name.number(self.catalog.segment_size)
        {
            let mut sealed = lock(&self.sealed);
            let first = sealed.entry(name.timeline).or_insert(number);
            *first = number.min(*first);
        }
    }

    /// Whether asking for a segment, or a roll-up that begins with it, is in vain, because WAL is encrypted from an earlier one on and nothing
    /// opens it. Nobody knows how early that is before it was met, so who goes back asks for nothing more.
    fn is_sealed(&self, timeline: TimelineId, number: u64, direction: Direction) -> bool {
        let behind = || {
            let sealed = lock(&self.sealed);
            sealed.get(&timeline).is_some_and(|first| number >= *first)
        };
        let is_sealed = self.archive.is_locked() && (direction == Direction::Back || behind());
        if is_sealed {
            self.unopened.store(true, Ordering::Relaxed);
        }
        is_sealed
    }

    /// Everything a segment says, from its own bytes; the record that goes on in the segments `following` it, mostly one, is joined.
    ///
    /// # Errors
    /// The segment is missing or damaged in the repository ([`RepositoryError::trouble`]), or the repository cannot be asked. A following
    /// segment that is missing or damaged is no error: the record that goes on there does not count.
    pub async fn detail(
        &self,
        name: SegmentName,
        following: impl IntoIterator<Item = SegmentName>,
    ) -> Result<SegmentDetail, RepositoryError> {
        self.detail_watching(name, following, []).await
    }

    /// As [`Self::detail`], looking for content that comes into these files, too ([`DetailReader::watch`]).
    ///
    /// # Errors
    /// As [`Self::detail`].
    pub async fn detail_watching(
        &self,
        name: SegmentName,
        following: impl IntoIterator<Item = SegmentName>,
        files: impl IntoIterator<Item = RelFileLocator>,
    ) -> Result<SegmentDetail, RepositoryError> {
        let mut reader = DetailReader::new(name, self.catalog.segment_size);
        reader.watch(files);
        let reader = Arc::new(Mutex::new(reader));
        self.feed(name, &reader, false).await?;
        for next in following {
            let joined = {
                let mut reader = lock(&reader);
                reader.next_segment();
                reader.is_joined()
            };
            if joined || unless_unusable(self.feed(next, &reader, true).await)?.is_none() {
                break;
            }
        }
        let mut reader = lock(&reader);
        let read = DetailReader::new(name, self.catalog.segment_size);
        Ok(std::mem::replace(&mut *reader, read).finish())
    }

    /// Feeds a segment's content; with `until_joined` only as much as the record needs that goes on in it.
    async fn feed(
        &self,
        name: SegmentName,
        reader: &Arc<Mutex<DetailReader>>,
        until_joined: bool,
    ) -> Result<(), RepositoryError> {
        let key = self.key(name);
        let expected = self.expected(HeadKind::Wal, &key);
        // Another repository's content begins where this one's began.
        let start = self.archive.has_several().then(|| lock(reader).clone());
        let sink = || {
            if let Some(start) = &start {
                lock(reader).clone_from(start);
            }
            let fed = reader.clone();
            move |content: Vec<u8>| {
                let mut reader = lock(&fed);
                reader.feed(&content);
                match until_joined && reader.is_joined() {
                    true => Err(io::Error::other("no more is needed")),
                    false => Ok(()),
                }
            }
        };
        match self.archive.read_object(&key, &expected, None, sink).await {
            Err(RepositoryError::Sink { .. }) => Ok(()),
            read => read.map(drop),
        }
    }

    fn key(&self, name: SegmentName) -> String {
        self.keys.wal(&WalName::Segment(name))
    }

    fn expected(&self, kind: HeadKind, key: &str) -> Expected {
        Expected {
            kind,
            archive_id: self.catalog.archive_id,
            key: keys::below_cluster(key).to_owned(),
        }
    }

    /// Whether an index speaks of this segment's stretch of WAL alone.
    fn is_within(&self, index: &SegmentIndex, name: SegmentName) -> bool {
        let size = self.catalog.segment_size;
        let Some(start) = name.start(size) else {
            return false;
        };
        let segment = start.0..=start.0.saturating_add(size.bytes());
        [index.first_lsn, index.end_lsn]
            .into_iter()
            .flatten()
            .all(|lsn| segment.contains(&lsn.0))
    }
}

/// A WAL file's tail, and its stored size; with an index only where that says that it is this object's.
pub(crate) async fn read_tail(
    archive: &Archive,
    archive_id: RandomId,
    key: &str,
) -> Result<(u64, ReadTail), RepositoryError> {
    let (stored, mut read) = archive.read_tail(key).await?;
    let below = keys::below_cluster(key);
    read.tail
        .index
        .take_if(|index| !index.is_of(archive_id, below));
    Ok((stored, read))
}

/// Nothing else is done under the lock that could break off.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// `None` for an object that is missing or cannot be believed. Keys that are configured and cannot be had are an error: nobody would look for
/// them behind an archive that says less than it holds.
pub(crate) fn unless_unusable<T>(
    read: Result<T, RepositoryError>,
) -> Result<Option<T>, RepositoryError> {
    match read {
        Ok(read) => Ok(Some(read)),
        Err(
            e @ RepositoryError::Object {
                source: CodecError::Keys(_),
                ..
            },
        ) => Err(e),
        Err(e) => match e.trouble() {
            Trouble::Absent | Trouble::Damage | Trouble::Configuration => Ok(None),
            Trouble::Outage | Trouble::Local => Err(e),
        },
    }
}
