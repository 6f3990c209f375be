//! `walden windows`: from when until when a cluster can be restored, on each timeline, to the exact last commit.

use jiff::{SignedDuration, Timestamp};
use walden_model::catalog::{DamagedDocument, MissingHistory};
use walden_model::{Catalog, ClusterName, IdentityDocument, TimelineWindow};
use walden_pg::{SegmentName, TimelineId};

use crate::archive::{Archive, OutRepository};
use crate::catalog::{self, SystemCatalog};
use crate::index::{Indexes, RunEnd, mark_breaks};
use crate::list::{ListError, ListRequest};
use crate::repository::RepositoryError;

/// The windows of a cluster.
#[derive(Debug, Clone)]
pub struct Windows {
    /// The cluster.
    pub cluster: ClusterName,
    /// One for each registered system identifier, in the order of registration.
    pub systems: Vec<SystemWindows>,
    /// Registrations that cannot be read: what belongs to them is not told.
    pub damaged_registrations: Vec<DamagedDocument>,
}

/// The windows of one system identifier.
#[derive(Debug, Clone)]
pub struct SystemWindows {
    /// Its registration.
    pub identity: IdentityDocument,
    /// Every timeline that has WAL, in order. The last is the one on which the server is, as far as the archive knows.
    pub timelines: Vec<TimelineWindows>,
    /// Documents, history files and heads that cannot be read.
    pub damaged_documents: Vec<DamagedDocument>,
    /// Archived segments of which another file was set aside: no window holds one.
    pub conflicts: Vec<SegmentName>,
    /// Repositories that were not read: what they alone hold is not told.
    pub out: Vec<OutRepository>,
}

/// The windows of one timeline.
#[derive(Debug, Clone)]
pub struct TimelineWindows {
    /// The timeline.
    pub timeline: TimelineId,
    /// Oldest first; none where no whole backup leads to it. Not to be told where a history file is missing or damaged.
    pub windows: Result<Vec<RestoreWindow>, MissingHistory>,
    /// When its newest segment was archived, by the archiving host's clock.
    pub newest_archived_at: Option<Timestamp>,
}

/// An unbroken range of moments that can be restored.
#[derive(Debug, Clone)]
pub struct RestoreWindow {
    /// Where it begins, and what it consists of.
    pub window: TimelineWindow,
    /// The last commit that can be restored, and where WAL ends.
    pub end: RunEnd,
    /// When its last segment was archived, by the archiving host's clock; `None` where that segment's head cannot be read.
    pub archived_at: Option<Timestamp>,
}

impl RestoreWindow {
    /// Until when no commit is missing: the last commit's time, at least the end of the first backup; of an archive without indexes the time
    /// at which the last segment was archived.
    #[must_use]
    pub fn until(&self) -> Option<Timestamp> {
        use crate::index::LastCommit::{Known, None, Unknown};
        match self.end.commit {
            Known(end) => Some(end.time.max(self.window.from.at)),
            None => Some(self.window.from.at),
            Unknown => self.archived_at,
        }
    }

    /// How much time's commits would be lost at most if the server, at `now`, were lost with everything it has not archived: of the newest
    /// window of its timeline. `None` where [`Self::until`] is not known.
    #[must_use]
    pub fn would_be_lost(&self, now: Timestamp) -> Option<SignedDuration> {
        Some(now.duration_since(self.until()?).max(SignedDuration::ZERO))
    }
}

impl SystemWindows {
    /// The newest window of the newest timeline; `None` where nothing of that timeline can be restored.
    #[must_use]
    pub fn newest(&self) -> Option<&RestoreWindow> {
        self.timelines.last()?.windows.as_ref().ok()?.last()
    }
}

/// Tells a cluster's windows.
///
/// # Errors
/// The repository cannot be asked, or does not know the cluster.
pub async fn windows(request: &ListRequest) -> Result<Windows, ListError> {
    let archive = Archive::open(&request.repositories).await?;
    windows_in(&archive, &request.cluster).await
}

/// Tells a cluster's windows from an open archive.
///
/// # Errors
/// The repository cannot be asked, or does not know the cluster.
pub async fn windows_in(
    archive: impl Into<Archive>,
    cluster: &ClusterName,
) -> Result<Windows, ListError> {
    let (loaded, damaged) = catalog::load_readable(archive, cluster).await?;
    let mut systems = Vec::new();
    for system in loaded {
        systems.push(of_system(system).await?);
    }
    Ok(Windows {
        cluster: cluster.clone(),
        systems,
        damaged_registrations: damaged,
    })
}

pub(crate) async fn of_system(system: SystemCatalog) -> Result<SystemWindows, RepositoryError> {
    let SystemCatalog {
        identity,
        mut catalog,
        archive,
    } = system;
    let roll_ups = mark_breaks(&archive, &mut catalog).await?;
    let indexes = Indexes::new(&archive, &catalog).knowing(roll_ups);
    let mut timelines = Vec::new();
    for timeline in catalog.timelines_with_wal() {
        let windows = match catalog.windows(timeline) {
            Ok(windows) => Ok(with_ends(&archive, &catalog, &indexes, windows).await?),
            Err(missing) => Err(missing),
        };
        timelines.push(TimelineWindows {
            timeline,
            windows,
            newest_archived_at: catalog.newest_archived_at.get(&timeline).copied(),
        });
    }
    Ok(SystemWindows {
        conflicts: catalog.conflicts(),
        identity,
        timelines,
        damaged_documents: catalog.damaged_documents,
        out: archive.out().to_vec(),
    })
}

/// The newest window of the newest timeline.
pub(crate) async fn newest(
    archive: &Archive,
    catalog: &Catalog,
    indexes: &Indexes<'_>,
) -> Result<Option<RestoreWindow>, RepositoryError> {
    let timeline = catalog.timelines_with_wal().next_back();
    let windows = timeline.and_then(|timeline| catalog.windows(timeline).ok());
    let last = windows.unwrap_or_default().pop();
    let mut ended = with_ends(archive, catalog, indexes, last).await?;
    Ok(ended.pop())
}

async fn with_ends(
    archive: &Archive,
    catalog: &Catalog,
    indexes: &Indexes<'_>,
    windows: impl IntoIterator<Item = TimelineWindow>,
) -> Result<Vec<RestoreWindow>, RepositoryError> {
    let mut ended = Vec::new();
    for window in windows {
        ended.push(RestoreWindow {
            end: indexes.run_end(window.ranges.clone()).await?,
            archived_at: archived_at(archive, catalog, window.last_segment).await?,
            window,
        });
    }
    Ok(ended)
}

/// When a segment was archived; mostly the catalog knows.
async fn archived_at(
    archive: &Archive,
    catalog: &Catalog,
    segment: SegmentName,
) -> Result<Option<Timestamp>, RepositoryError> {
    let wal = catalog.wal.get(&segment.timeline);
    if wal.and_then(|wal| wal.last()) == segment.number(catalog.segment_size) {
        return Ok(catalog.newest_archived_at.get(&segment.timeline).copied());
    }
    catalog::archived_at(archive, catalog, segment).await
}
