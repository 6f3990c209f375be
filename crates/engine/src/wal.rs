//! `walden wal list` and `walden wal show`: the archived WAL files, and what segments' indexes say.

use std::collections::BTreeSet;
use std::ops::ControlFlow;

use futures::TryStreamExt;
use walden_model::index::{Crossing, Moment, SegmentIndex, crossing};
use walden_model::keys::parse_wal_key;
use walden_model::{
    Catalog, ClusterName, Gap, IdentityDocument, Sha256Digest, SystemKeys, WalName,
};
use walden_pg::{SegmentName, SystemIdentifier, TimelineId, WalSegmentSize};
use walden_store::ObjectMeta;

use crate::archive::{Archive, OutRepository};
use crate::catalog::{self, CatalogError};
use crate::index::{Indexes, read_tail};
use crate::repository::{RepositoryError, RepositorySettings, Trouble};

/// Tails that are read at the same time.
const LANES: usize = 16;
/// Files between two segments that wait for the second, so that all are told in order. PostgreSQL makes one or two.
const WAITING: usize = 64;

/// Which WAL files to list.
#[derive(Debug, Clone)]
pub struct WalListRequest {
    /// The repositories, in the order in which they are asked.
    pub repositories: Vec<RepositorySettings>,
    /// The cluster's name in it.
    pub cluster: ClusterName,
    /// Which of its system identifiers; without one, that which was registered last.
    pub system: Option<SystemIdentifier>,
    /// Only this timeline's.
    pub timeline: Option<TimelineId>,
}

/// An archived WAL file.
#[derive(Debug, Clone)]
pub struct ArchivedWal {
    /// Which.
    pub name: WalName,
    /// Bytes in the repository.
    pub stored_size: u64,
    /// Whether another file of its name was set aside, so that nobody can tell which is this cluster's.
    pub conflict: bool,
    /// The segments that are missing between the one before and this one.
    pub missing_before: Option<Gap>,
    /// What its index says.
    pub index: Indexed,
}

/// What a WAL file's index says.
#[derive(Debug, Clone)]
pub enum Indexed {
    /// The file holds no records, and so has no index.
    NoRecords,
    /// There is none, or none that this program can use.
    Nothing,
    /// This, and what the record says that goes on in the next segment, where that is archived.
    Said(Box<SegmentIndex>),
    /// The object's tail cannot be believed.
    Damaged(String),
}

/// Why archived WAL was not shown.
#[derive(Debug, thiserror::Error)]
pub enum WalError {
    /// The repository cannot be opened, or does not answer.
    #[error("cannot look at the archived WAL")]
    Repository(#[from] RepositoryError),
    /// The cluster's registration cannot be read.
    #[error("cannot look at the archived WAL")]
    Catalog(#[from] CatalogError),
    /// There is no such segment.
    #[error(
        "{segment} of system identifier {system} is not archived; walden wal list shows what is"
    )]
    NotArchived {
        /// The segment.
        segment: SegmentName,
        /// Where it was looked for.
        system: SystemIdentifier,
    },
}

/// The archived WAL files of one system identifier, not read yet.
#[derive(Debug)]
pub struct WalListing {
    /// Its registration.
    pub identity: IdentityDocument,
    archive: Archive,
    keys: SystemKeys,
    timeline: Option<TimelineId>,
    conflicts: BTreeSet<SegmentName>,
}

impl WalListing {
    /// Finds out whose files to list.
    ///
    /// # Errors
    /// As [`catalog::registration`].
    pub async fn open(request: &WalListRequest) -> Result<Self, WalError> {
        let archive = Archive::open(&request.repositories).await?;
        let found = catalog::registered(&archive, &request.cluster, request.system).await?;
        let (identity, archive) = found;
        let keys = SystemKeys {
            cluster: request.cluster.clone(),
            system: identity.system_identifier,
        };
        Ok(Self {
            conflicts: catalog::quarantined(&archive, &keys, identity.archive_id).await?,
            timeline: request.timeline,
            identity,
            archive,
            keys,
        })
    }

    /// Repositories that are not read: what they alone hold is not listed.
    #[must_use]
    pub fn out(&self) -> &[OutRepository] {
        self.archive.out()
    }

    /// Gives every file to `visit` in the order of the keys, until it has seen enough. Memory does not grow with their number.
    ///
    /// # Errors
    /// The repository does not answer. A damaged object is told as such and hides no other.
    pub async fn each(
        &self,
        visit: impl FnMut(ArchivedWal) -> ControlFlow<()>,
    ) -> Result<(), WalError> {
        let prefixes = match self.timeline {
            None => vec![self.keys.wal_prefix()],
            Some(timeline) => vec![
                self.keys.wal(&WalName::History(timeline)),
                self.keys.wal_timeline_prefix(timeline),
            ],
        };
        let mut order = Order {
            visit,
            size: self.identity.wal_segment_size,
            waiting: Vec::new(),
            last: None,
        };
        for prefix in prefixes {
            let files = self
                .archive
                .list_all(&prefix)
                .try_filter_map(|object| std::future::ready(Ok(self.name(object))))
                .map_ok(|(name, size)| self.file(name, size))
                .try_buffered(LANES);
            let mut files = std::pin::pin!(files);
            while let Some(file) = files.try_next().await? {
                if order.take(file).is_break() {
                    return Ok(());
                }
            }
        }
        let _ = order.flush();
        Ok(())
    }

    fn name(&self, object: ObjectMeta) -> Option<(WalName, u64)> {
        let below = object.key.as_str().strip_prefix(&self.keys.wal_prefix())?;
        Some((parse_wal_key(below)?, object.size))
    }

    async fn file(&self, name: WalName, stored_size: u64) -> Result<ArchivedWal, RepositoryError> {
        let index = match name {
            WalName::History(_) | WalName::Backup { .. } => Indexed::NoRecords,
            WalName::Segment(_) | WalName::Partial { .. } => {
                let key = self.keys.wal(&name);
                match read_tail(&self.archive, self.identity.archive_id, &key).await {
                    Ok((_, read)) => read.tail.index.map_or(Indexed::Nothing, Indexed::Said),
                    Err(e) => Indexed::Damaged(damage(e)?),
                }
            }
        };
        Ok(ArchivedWal {
            conflict: matches!(name, WalName::Segment(segment) if self.conflicts.contains(&segment)),
            name,
            stored_size,
            missing_before: None,
            index,
        })
    }
}

/// What is wrong with one object, which must not hide the others; or what is wrong with the repository.
fn damage(error: RepositoryError) -> Result<String, RepositoryError> {
    match error.trouble() {
        Trouble::Damage | Trouble::Configuration => {
            let cause = std::error::Error::source(&error).map(ToString::to_string);
            Ok(cause.unwrap_or_else(|| error.to_string()))
        }
        // It was there a moment ago.
        Trouble::Absent => Ok("it is no longer there".to_owned()),
        Trouble::Outage | Trouble::Local => Err(error),
    }
}

/// Tells files in order, and segments with what only the next one knows: a record that goes on there counts where it begins.
struct Order<F> {
    visit: F,
    size: WalSegmentSize,
    /// The last segment, and what came after it.
    waiting: Vec<ArchivedWal>,
    /// The last segment.
    last: Option<SegmentName>,
}

impl<F: FnMut(ArchivedWal) -> ControlFlow<()>> Order<F> {
    fn take(&mut self, mut file: ArchivedWal) -> ControlFlow<()> {
        if let WalName::Segment(segment) = file.name {
            file.missing_before = self.last.and_then(|last| self.missing(last, segment));
            if self.last.and_then(|last| last.next(self.size)) == Some(segment) {
                self.join(&file);
            }
            self.last = Some(segment);
        }
        if matches!(file.name, WalName::Segment(_)) || self.waiting.len() >= WAITING {
            self.flush()?;
        }
        self.waiting.push(file);
        ControlFlow::Continue(())
    }

    fn flush(&mut self) -> ControlFlow<()> {
        self.waiting.drain(..).try_for_each(&mut self.visit)
    }

    /// Adds what the record says that begins in the last segment and goes on in this one.
    fn join(&mut self, next: &ArchivedWal) {
        let last = self.last.map(WalName::Segment);
        let last = self.waiting.iter_mut().find(|file| Some(file.name) == last);
        if let (Some(Indexed::Said(last)), Indexed::Said(next)) =
            (last.map(|last| &mut last.index), &next.index)
        {
            absorb(last, next);
        }
    }

    fn missing(&self, last: SegmentName, next: SegmentName) -> Option<Gap> {
        let first = last.next(self.size)?;
        let before = next.number(self.size)?.checked_sub(1)?;
        let missing = last.timeline == next.timeline && first < next;
        missing.then(|| Gap {
            timeline: next.timeline,
            first,
            last: SegmentName::from_number(next.timeline, before, self.size),
            conflict: None,
            broken: None,
        })
    }
}

/// Adds what the record says that goes on in the next segment, if that is there in full.
fn absorb(index: &mut SegmentIndex, next: &SegmentIndex) {
    let crossing = crossing(index, &[next]);
    if matches!(crossing, Crossing::Said(_)) {
        index.absorb(&crossing);
    }
}

/// Which segment to show.
#[derive(Debug, Clone)]
pub struct WalShowRequest {
    /// The repositories, in the order in which they are asked.
    pub repositories: Vec<RepositorySettings>,
    /// The cluster's name in it.
    pub cluster: ClusterName,
    /// Which of its system identifiers; without one, that which was registered last.
    pub system: Option<SystemIdentifier>,
    /// The segment.
    pub segment: SegmentName,
    /// Whether to read all of it, instead of its index alone.
    pub read: bool,
}

/// An archived segment, and what it says.
#[derive(Debug, Clone)]
pub struct ShownSegment {
    /// The registration of its system identifier.
    pub identity: IdentityDocument,
    /// Which.
    pub name: SegmentName,
    /// Its key from the repository's root.
    pub key: String,
    /// Bytes in the repository.
    pub stored_size: u64,
    /// Bytes of content.
    pub content_size: u64,
    /// The content's digest.
    pub sha256: Option<Sha256Digest>,
    /// Whether another file of its name was set aside.
    pub conflict: bool,
    /// What its index says; `None` where there is none that this program can use.
    pub index: Option<Box<SegmentIndex>>,
    /// Every commit, abort and restore point, in WAL order, where all of it was read.
    pub moments: Option<Vec<Moment>>,
}

/// Shows one archived segment.
///
/// # Errors
/// It is not archived, or is damaged.
pub async fn show(request: &WalShowRequest) -> Result<ShownSegment, WalError> {
    let archive = Archive::open(&request.repositories).await?;
    let found = catalog::registered(&archive, &request.cluster, request.system).await?;
    let (identity, archive) = found;
    let keys = SystemKeys {
        cluster: request.cluster.clone(),
        system: identity.system_identifier,
    };
    let key = keys.wal(&WalName::Segment(request.segment));
    let (stored_size, read) = match read_tail(&archive, identity.archive_id, &key).await {
        Err(e) if e.trouble() == Trouble::Absent => {
            return Err(WalError::NotArchived {
                segment: request.segment,
                system: identity.system_identifier,
            });
        }
        read => read?,
    };
    let conflicts = catalog::quarantined(&archive, &keys, identity.archive_id).await?;
    let following = request.segment.next(identity.wal_segment_size);
    let (index, moments) = if request.read {
        let catalog = Catalog::empty(
            request.cluster.clone(),
            identity.system_identifier,
            identity.archive_id,
            identity.wal_segment_size,
        );
        let indexes = Indexes::new(&archive, &catalog);
        let detail = indexes.detail(request.segment, following).await?;
        (Some(Box::new(detail.index)), Some(detail.moments))
    } else {
        let mut index = read.tail.index;
        if let (Some(index), Some(next)) = (&mut index, following) {
            // The record that goes on in the next segment is told with this one, as far as that is archived and can be read.
            let next = keys.wal(&WalName::Segment(next));
            let next = read_tail(&archive, identity.archive_id, &next).await;
            let next = next.ok().and_then(|(_, read)| read.tail.index);
            if let Some(next) = next {
                absorb(index, &next);
            }
        }
        (index, None)
    };
    Ok(ShownSegment {
        name: request.segment,
        stored_size,
        content_size: read.tail.content_size,
        sha256: read.tail.sha256,
        conflict: conflicts.contains(&request.segment),
        index,
        moments,
        identity,
        key,
    })
}
