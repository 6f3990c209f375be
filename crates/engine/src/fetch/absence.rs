//! The proof that a file is not there because the archive ends before it.
//!
//! PostgreSQL opens the database when it is told that, so whatever in the archive speaks against it makes a [`Hole`] of it.

use std::fmt;

use walden_model::{HeadKind, IdentityDocument, SystemKeys, WalName, keys};
use walden_pg::history::TimelineHistory;
use walden_pg::{Lsn, SegmentName, TimelineId, WalFileName};
use walden_store::{ListOptions, ListPage};

use super::FetchError;
use crate::archive::Archive;
use crate::catalog::MAX_HISTORY;
use crate::codec::Expected;
use crate::repository::{Repository, RepositoryError};

/// What in the archive shows that a missing file was there once, or should have been.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Hole {
    /// A later segment of the same timeline; the first that there is.
    Later(SegmentName),
    /// A timeline that left this one further on.
    Fork {
        /// The later timeline.
        child: TimelineId,
        /// Where it begins.
        at: Lsn,
    },
    /// Of a history file: a segment of its timeline.
    Timeline(SegmentName),
}

impl fmt::Display for Hole {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Hole::Later(later) => write!(
                f,
                "later segments of its timeline are archived (the first is {later})"
            ),
            Hole::Fork { child, at } => {
                write!(f, "timeline {child} left its timeline further on, at {at}")
            }
            Hole::Timeline(segment) => write!(
                f,
                "segments of its timeline are archived (the first is {segment})"
            ),
        }
    }
}

/// Proves that every configured repository is there, and holds this archive: then what none of them has is nowhere.
///
/// # Errors
/// One is not.
pub(super) async fn all_there(
    archive: &Archive,
    identity: &IdentityDocument,
) -> Result<(), FetchError> {
    if let Some(out) = archive.out().first() {
        return Err(FetchError::Out {
            name: out.name.clone(),
            source: out.error.clone(),
        });
    }
    let (cluster, system) = (&identity.cluster, identity.system_identifier);
    for repository in archive.repositories() {
        repository.root().await?;
        if !archive.has_several() {
            continue;
        }
        let found = repository.registration(cluster, system).await?.archive_id;
        if found != identity.archive_id {
            return Err(FetchError::Repository(RepositoryError::OtherArchive {
                name: repository.name().to_owned(),
                other: archive.first().name().to_owned(),
                cluster: cluster.clone(),
                system,
                found,
                expected: identity.archive_id,
            }));
        }
    }
    Ok(())
}

/// Looks for what speaks against the archive ending before this file, in every repository. `None`: nothing does.
pub(super) async fn hole(
    archive: &Archive,
    identity: &IdentityDocument,
    system: &SystemKeys,
    file: WalFileName,
) -> Result<Option<Hole>, FetchError> {
    for repository in archive.repositories() {
        if let Some(hole) = hole_in(repository, identity, system, file).await? {
            return Ok(Some(hole));
        }
    }
    Ok(None)
}

async fn hole_in(
    repository: &Repository,
    identity: &IdentityDocument,
    system: &SystemKeys,
    file: WalFileName,
) -> Result<Option<Hole>, FetchError> {
    let hole = match file {
        WalFileName::Segment(segment) => {
            let prefix = system.wal_timeline_prefix(segment.timeline);
            let this = system.wal(&WalName::Segment(segment));
            match first_segment(repository, system, &prefix, Some(this)).await? {
                Some(later) => Some(Hole::Later(later)),
                None => later_fork(repository, identity, system, &segment).await?,
            }
        }
        // The first timeline has none, and PostgreSQL may ask for it all the same.
        WalFileName::History(timeline) if timeline > TimelineId(1) => {
            let prefix = system.wal_timeline_prefix(timeline);
            first_segment(repository, system, &prefix, None)
                .await?
                .map(Hole::Timeline)
        }
        WalFileName::History(_) | WalFileName::Partial(_) | WalFileName::Backup { .. } => None,
    };
    if hole.is_none()
        && list(repository, &system.wal_prefix(), None, 1)
            .await?
            .objects
            .is_empty()
    {
        return Err(FetchError::EmptyArchive(repository.name().to_owned()));
    }
    Ok(hole)
}

async fn list(
    repository: &Repository,
    prefix: &str,
    start_after: Option<&str>,
    limit: usize,
) -> Result<ListPage, RepositoryError> {
    let options = ListOptions {
        prefix,
        start_after,
        delimiter: false,
        limit,
    };
    repository
        .store()
        .list(options)
        .await
        .map_err(|e| repository.failed(e))
}

/// The first segment below a prefix, after a key.
async fn first_segment(
    repository: &Repository,
    system: &SystemKeys,
    prefix: &str,
    mut after: Option<String>,
) -> Result<Option<SegmentName>, RepositoryError> {
    loop {
        let page = list(repository, prefix, after.as_deref(), 100).await?;
        let names = page
            .objects
            .iter()
            .filter_map(|object| object.key.as_str().strip_prefix(&system.wal_prefix()));
        let segment = names
            .filter_map(keys::parse_wal_key)
            .find_map(|name| match name {
                WalName::Segment(segment) => Some(segment),
                _ => None,
            });
        match (segment, page.next) {
            (Some(segment), _) => return Ok(Some(segment)),
            (None, Some(next)) => after = Some(next),
            (None, None) => return Ok(None),
        }
    }
}

/// A timeline that was forked off behind this segment: then the segment was written, whole, and recovery along that timeline needs it. Not the
/// fork's own segment, which the old timeline may have as `.partial` alone.
async fn later_fork(
    repository: &Repository,
    identity: &IdentityDocument,
    system: &SystemKeys,
    segment: &SegmentName,
) -> Result<Option<Hole>, FetchError> {
    let prefix = system.wal_prefix();
    let mut after: Option<String> = None;
    loop {
        let page = repository
            .store()
            .list(ListOptions {
                prefix: &prefix,
                start_after: after.as_deref(),
                delimiter: true,
                limit: 1000,
            })
            .await
            .map_err(|e| repository.failed(e))?;
        for object in &page.objects {
            let name = object
                .key
                .as_str()
                .strip_prefix(&prefix)
                .and_then(keys::parse_wal_key);
            let Some(WalName::History(child)) =
                name.filter(|name| is_above(name, segment.timeline))
            else {
                continue;
            };
            let key = object.key.as_str();
            let expected = Expected {
                kind: HeadKind::Wal,
                archive_id: identity.archive_id,
                key: keys::below_cluster(key).to_owned(),
            };
            let text = repository.read_small(key, expected, MAX_HISTORY).await?;
            let history = TimelineHistory::parse(child, &text).map_err(FetchError::History)?;
            let fork = history.end_of(segment.timeline);
            let size = identity.wal_segment_size;
            if let Some(at) =
                fork.filter(|at| SegmentName::containing(segment.timeline, *at, size) > *segment)
            {
                return Ok(Some(Hole::Fork { child, at }));
            }
        }
        match page.next {
            Some(next) => after = Some(next),
            None => return Ok(None),
        }
    }
}

fn is_above(name: &WalName, timeline: TimelineId) -> bool {
    matches!(name, WalName::History(child) if *child > timeline)
}
