//! `walden find`: what took data away, when, and the command that ends just before it.

mod search;
mod way;

use std::path::PathBuf;

use jiff::Timestamp;
use walden_model::catalog::MissingHistory;
use walden_model::incident::Incident;
use walden_model::{Catalog, ClusterName, Gap, Unreachable};
use walden_pg::{Lsn, SegmentName, SystemIdentifier, TimelineId};

use search::Search;

use crate::archive::{Archive, OutRepository};
use crate::catalog::{self, CatalogError, SystemCatalog};
use crate::index::mark_breaks;
use crate::repository::{RepositoryError, RepositorySettings};

/// What to look for, and where.
#[derive(Debug, Clone)]
pub struct FindRequest {
    /// The repositories, in the order in which they are asked.
    pub repositories: Vec<RepositorySettings>,
    /// The cluster's name in it.
    pub cluster: ClusterName,
    /// Which of the cluster's system identifiers; else the one that was registered last.
    pub system: Option<SystemIdentifier>,
    /// Along which timeline; else the newest with WAL.
    pub timeline: Option<TimelineId>,
    /// Only what committed, or restore points that were made, between these two, both included.
    pub between: Option<(Timestamp, Timestamp)>,
    /// What to look for.
    pub sought: Sought,
    /// Where the restore commands shall restore to; else beside the original data directory, or in the working directory.
    pub target_directory: Option<PathBuf>,
    /// The original's data directory, if it is known.
    pub pgdata: Option<PathBuf>,
}

/// What to look for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Sought {
    /// DROP of a relation, and DROP DATABASE.
    pub dropped: bool,
    /// TRUNCATE.
    pub truncated: bool,
    /// Transactions that deleted more rows of a table than this.
    pub deleted_more_than: Option<u64>,
    /// Transactions that updated more rows of a table than this.
    pub updated_more_than: Option<u64>,
    /// Restore points.
    pub restore_points: Option<Points>,
}

impl Sought {
    /// The rows from which on a deletion is told where nobody says otherwise.
    pub const MANY_ROWS: u64 = 1000;

    /// What is looked for where nobody says otherwise: everything but updates, and of deletions those of more than [`Sought::MANY_ROWS`] rows.
    #[must_use]
    pub fn everything() -> Self {
        Self {
            dropped: true,
            truncated: true,
            deleted_more_than: Some(Self::MANY_ROWS),
            updated_more_than: None,
            restore_points: Some(Points::All),
        }
    }

    /// Nothing yet.
    #[must_use]
    pub fn nothing() -> Self {
        Self {
            dropped: false,
            truncated: false,
            deleted_more_than: None,
            updated_more_than: None,
            restore_points: None,
        }
    }
}

/// Which restore points.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Points {
    /// All of them.
    All,
    /// Those of this name.
    Named(String),
}

/// What was found.
#[derive(Debug, Clone)]
pub struct FindReport {
    /// The cluster.
    pub cluster: ClusterName,
    /// Its system identifier.
    pub system: SystemIdentifier,
    /// The timeline along which was searched.
    pub timeline: TimelineId,
    /// Where the search began and ended; `None` where nothing is archived.
    pub searched: Option<(Lsn, Lsn)>,
    /// In WAL order.
    pub findings: Vec<Finding>,
    /// There is more than a report holds: narrow the question.
    pub more: bool,
    /// Missing segments: what lies in them cannot be told.
    pub gaps: Vec<Gap>,
    /// Segments that cannot be read, or hold damage: what lies in or behind it cannot be told. The first few.
    pub unreadable: Vec<SegmentName>,
    /// No backup recorded names: there are only numbers.
    pub nameless: bool,
    /// Repositories that were not read: what they alone hold was not searched.
    pub out: Vec<OutRepository>,
}

/// One thing that was found.
#[derive(Debug, Clone)]
pub struct Finding {
    /// When, by the server's clock: of an incident its commit.
    pub time: Timestamp,
    /// Its transaction, with its epoch where the archive tells that; `None` of a restore point.
    pub xid: Option<u64>,
    /// Where a recovery ends so that nothing of it has happened yet; of a restore point where its record begins.
    pub lsn: Lsn,
    /// The timeline on which it stands.
    pub timeline: TimelineId,
    /// What it is.
    pub what: What,
    /// The way back: the arguments of `walden`, from `restore` on.
    pub restore: Result<Vec<String>, NoWayBack>,
}

/// What was found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum What {
    /// Something that took data away, or may have.
    Incident(Incident),
    /// A restore point, by its name.
    RestorePoint(String),
}

/// Why there is no command that leads back.
#[derive(Debug, Clone, thiserror::Error)]
pub enum NoWayBack {
    /// A recovery to there cannot be done.
    #[error("no restore ends there: {0}")]
    Unreachable(#[from] Unreachable),
    /// A recovery to there would not bring back what was taken away.
    #[error("{0}")]
    Lost(walden_model::incident::Lost),
}

/// Why nothing was searched.
#[derive(Debug, thiserror::Error)]
pub enum FindError {
    /// The repository cannot be opened, or not be read any further.
    #[error("cannot search the repository")]
    Repository(#[from] RepositoryError),
    /// The repository cannot be listed.
    #[error("cannot list the archive")]
    Catalog(#[from] CatalogError),
    /// The way to the timeline is unknown.
    #[error("cannot search timeline {timeline}")]
    Timeline {
        /// It.
        timeline: TimelineId,
        /// Why.
        #[source]
        source: MissingHistory,
    },
    /// The request's timeline has no archived WAL.
    #[error("no WAL of timeline {0} is archived: name one that list-backups or windows shows")]
    NoTimeline(TimelineId),
}

/// Searches the archive.
///
/// # Errors
/// The repository cannot be asked, or does not know the cluster or the timeline. A segment that is missing or cannot be read is no error:
/// the report names it.
pub async fn find(request: &FindRequest) -> Result<FindReport, FindError> {
    let archive = Archive::open(&request.repositories).await?;
    let mut systems = catalog::load(&archive, &request.cluster, request.system).await?;
    let Some(SystemCatalog {
        catalog, archive, ..
    }) = systems.pop()
    else {
        return Err(CatalogError::NoCluster {
            name: archive.first().name().to_owned(),
            cluster: request.cluster.clone(),
        }
        .into());
    };
    let timeline = match request.timeline {
        Some(timeline) => timeline,
        None => newest(&catalog).unwrap_or(TimelineId(1)),
    };
    if request.timeline.is_some() && !has_wal(&catalog, timeline) {
        return Err(FindError::NoTimeline(timeline));
    }
    let path = catalog
        .path(timeline)
        .map_err(|source| FindError::Timeline { timeline, source })?;
    // The search goes on behind WAL that recovery does not get past; the ways back do not.
    let mut passable = catalog.clone();
    mark_breaks(&archive, &mut passable).await?;
    let search = Search::new(request, &archive, &catalog, &passable, &path, timeline);
    Ok(search.run().await?)
}

fn has_wal(catalog: &Catalog, timeline: TimelineId) -> bool {
    let wal = catalog.wal.get(&timeline);
    wal.is_some_and(|wal| !wal.segments.is_empty())
}

fn newest(catalog: &Catalog) -> Option<TimelineId> {
    let mut timelines = catalog.wal.keys().rev();
    timelines
        .find(|timeline| has_wal(catalog, **timeline))
        .copied()
}
