//! Listing a system identifier's WAL.

use std::collections::BTreeSet;
use std::pin::pin;

use futures::{StreamExt, TryStreamExt, stream};
use jiff::Timestamp;
use walden_model::catalog::{Catalog, DamagedDocument};
use walden_model::{
    ClusterName, HeadKind, IdentityDocument, RandomId, Sha256Digest, ShortDigest, SystemKeys,
    WalName, keys,
};
use walden_pg::history::TimelineHistory;
use walden_pg::{SegmentName, TimelineId};

use super::{LANES, Loader, MAX_HISTORY, Read, damaged, sort};
use crate::archive::Archive;
use crate::codec::{CodecError, Expected, ObjectDecoder};
use crate::conflicts::Decisions;
use crate::repository::{End, Repository, RepositoryError, Trouble};

/// A head is some hundred bytes long.
const HEAD_GUESS: u64 = 4096;

/// The segments that are in conflict: another server's file of the same name was refused and set aside by a person
/// (`walden-wal-push --quarantine`), so nobody can tell whether what is archived under the name is this cluster's. A file that was set
/// aside and has the archived bytes after all is none.
///
/// # Errors
/// The repository cannot be asked.
pub async fn quarantined(
    archive: impl Into<Archive>,
    keys: &SystemKeys,
    archive_id: RandomId,
) -> Result<BTreeSet<SegmentName>, RepositoryError> {
    let conflicts = conflicts(&archive.into(), keys, archive_id)
        .await?
        .into_iter();
    Ok(conflicts
        .filter_map(|name| match name {
            WalName::Segment(segment) => Some(segment),
            _ => None,
        })
        .collect())
}

/// The archived files of which another was set aside, in whichever repository, unless a person said that the archived one is this cluster's.
async fn conflicts(
    archive: &Archive,
    keys: &SystemKeys,
    archive_id: RandomId,
) -> Result<Vec<WalName>, RepositoryError> {
    let mut conflicts = in_conflict(archive, keys).await?;
    if !conflicts.is_empty() {
        let decisions = Decisions::of(archive, keys, archive_id).await?;
        conflicts.retain(|conflict| {
            let archived = conflict.archived.as_ref();
            archived.is_none_or(|archived| {
                !decisions.are_ours(conflict.name.file(), archived, conflict.aside)
            })
        });
    }
    let mut names: Vec<WalName> = Vec::new();
    for conflict in conflicts {
        if !names.contains(&conflict.name) {
            names.push(conflict.name);
        }
    }
    Ok(names)
}

/// An archived file of which another was set aside.
pub(crate) struct InConflict {
    pub name: WalName,
    /// What names have a piece of, the archived content's digest or keyed digest; `None` where the object cannot be read.
    pub archived: Option<Sha256Digest>,
    /// The key of the one that was set aside.
    pub aside_key: String,
    /// The beginning of its content's digest.
    pub aside: ShortDigest,
}

/// All of them, whatever a person said. What stands aside in one repository disputes what is archived in any.
pub(crate) async fn in_conflict(
    archive: impl Into<Archive>,
    keys: &SystemKeys,
) -> Result<Vec<InConflict>, RepositoryError> {
    let archive = archive.into();
    let mut conflicts = Vec::new();
    let prefix = keys.quarantine_prefix();
    let mut quarantine = archive.list_all(&prefix);
    while let Some(object) = quarantine.try_next().await? {
        let aside = keys.parse_quarantine(object.key.as_str());
        let Some((name, aside)) =
            aside.and_then(|(file, digest)| Some((WalName::of_file(file)?, digest)))
        else {
            continue;
        };
        let key = keys.wal(&name);
        for repository in archive.repositories() {
            let archived = match repository.read_end(&key).await {
                Ok((_, End::Tail(read))) => read.tail.sha256,
                Ok((_, End::Seal(seal))) => seal.content_hmac.map(|digest| Sha256Digest(digest.0)),
                Err(e) => match e.trouble() {
                    // Not archived there at all: missing, like any other.
                    Trouble::Absent => continue,
                    Trouble::Damage | Trouble::Configuration => None,
                    Trouble::Outage | Trouble::Local => return Err(e),
                },
            };
            if archived.map(|digest| digest.short()) != Some(aside) {
                conflicts.push(InConflict {
                    name,
                    archived,
                    aside_key: object.key.as_str().to_owned(),
                    aside,
                });
            }
        }
    }
    Ok(conflicts)
}

/// Says in the catalog what is in conflict.
pub(super) async fn mark_conflicts(
    archive: &Archive,
    catalog: &mut Catalog,
) -> Result<(), RepositoryError> {
    let keys = SystemKeys {
        cluster: catalog.cluster.clone(),
        system: catalog.system_identifier,
    };
    for name in conflicts(archive, &keys, catalog.archive_id).await? {
        match name {
            WalName::Segment(segment) => catalog.dispute(segment),
            WalName::History(timeline) => {
                catalog.disputed_histories.insert(timeline);
                catalog.damaged_documents.push(DamagedDocument {
                    key: keys.wal(&name),
                    why: "in conflict: another file of that name was set aside in quarantine"
                        .to_owned(),
                });
            }
            WalName::Partial { .. } | WalName::Backup { .. } => {}
        }
    }
    Ok(())
}

/// What the repository holds of a system identifier's WAL, and nothing of its backups.
pub(crate) async fn load_wal(
    repository: &Repository,
    cluster: &ClusterName,
    identity: &IdentityDocument,
) -> Result<Catalog, RepositoryError> {
    let (loader, mut catalog) = Loader::new(repository, cluster, identity);
    loader.wal(&mut catalog).await?;
    mark_conflicts(&repository.into(), &mut catalog).await?;
    Ok(catalog)
}

/// When a segment was written, by its writer's clock; `None` where its head cannot be read.
pub(crate) async fn archived_at(
    archive: &Archive,
    catalog: &Catalog,
    segment: SegmentName,
) -> Result<Option<Timestamp>, RepositoryError> {
    let keys = SystemKeys {
        cluster: catalog.cluster.clone(),
        system: catalog.system_identifier,
    };
    for repository in archive.repositories() {
        if let Read::Whole(at) = head_time(repository, &keys, catalog.archive_id, segment).await? {
            return Ok(Some(at));
        }
    }
    Ok(None)
}

async fn head_time(
    repository: &Repository,
    keys: &SystemKeys,
    archive_id: RandomId,
    segment: SegmentName,
) -> Result<Read<Timestamp>, RepositoryError> {
    let key = keys.wal(&WalName::Segment(segment));
    let store = repository.store();
    let stored = repository.key(&key)?;
    let first = async {
        let size = store.head(&stored).await?.size;
        store.get_range(&stored, 0..size.min(HEAD_GUESS)).await
    };
    let first = match first.await.map_err(|e| repository.failed(e)) {
        Ok(first) => first,
        Err(e) => return sort(&key, Err(e)),
    };
    let mut decoder = ObjectDecoder::new(expected(archive_id, &key));
    let fed = decoder.feed(&first, |_| Ok::<_, CodecError>(()));
    Ok(match (decoder.head(), fed) {
        (Some(head), _) => Read::Whole(head.writer.started_at),
        (None, Ok(())) => damaged(&key, &CodecError::Truncated { what: "the head" }),
        (None, Err(e)) => damaged(&key, &e),
    })
}

fn expected(archive_id: RandomId, key: &str) -> Expected {
    Expected {
        kind: HeadKind::Wal,
        archive_id,
        key: keys::below_cluster(key).to_owned(),
    }
}

impl Loader<'_> {
    /// Lists the WAL folder, and says which history files are in it.
    async fn segments(&self, catalog: &mut Catalog) -> Result<Vec<TimelineId>, RepositoryError> {
        let prefix = self.keys.wal_prefix();
        let size = self.identity.wal_segment_size;
        let mut histories = Vec::new();
        let mut pages = pin!(self.repository.list_pages(&prefix));
        while let Some(page) = pages.try_next().await? {
            for object in page {
                let name = object
                    .key
                    .as_str()
                    .strip_prefix(&prefix)
                    .and_then(keys::parse_wal_key);
                match name {
                    Some(WalName::Segment(segment)) => {
                        if let Some(number) = segment.number(size) {
                            let wal = catalog.wal.entry(segment.timeline).or_default();
                            wal.segments.insert(number, object.size);
                        }
                    }
                    Some(WalName::Partial { segment, .. }) => catalog.partials.push(segment),
                    Some(WalName::History(timeline)) => histories.push(timeline),
                    Some(WalName::Backup { .. }) | None => {}
                }
            }
        }
        catalog.partials.sort_unstable();
        Ok(histories)
    }

    pub(super) async fn wal(&self, catalog: &mut Catalog) -> Result<(), RepositoryError> {
        let mut histories = self.segments(catalog).await?;
        histories.sort_unstable();
        let histories = stream::iter(histories)
            .map(|timeline| self.history(timeline))
            .buffered(LANES);
        for history in histories.try_collect::<Vec<_>>().await? {
            match history {
                Read::Whole(history) => {
                    catalog.histories.insert(history.timeline, history);
                }
                Read::Damaged(damaged) => catalog.damaged_documents.push(damaged),
                Read::Nothing => {}
            }
        }
        let newest: Vec<SegmentName> = catalog
            .wal
            .iter()
            .filter_map(|(timeline, wal)| {
                let last = wal.last()?;
                Some(SegmentName::from_number(
                    *timeline,
                    last,
                    catalog.segment_size,
                ))
            })
            .collect();
        for segment in newest {
            let archive_id = self.identity.archive_id;
            match head_time(self.repository, &self.keys, archive_id, segment).await? {
                Read::Whole(at) => {
                    catalog.newest_archived_at.insert(segment.timeline, at);
                }
                Read::Damaged(damaged) => catalog.damaged_documents.push(damaged),
                Read::Nothing => {}
            }
        }
        Ok(())
    }

    async fn history(
        &self,
        timeline: TimelineId,
    ) -> Result<Read<TimelineHistory>, RepositoryError> {
        let key = self.keys.wal(&WalName::History(timeline));
        let read = self
            .repository
            .read_small(&key, expected(self.identity.archive_id, &key), MAX_HISTORY)
            .await;
        let read = match read {
            Ok(read) => read,
            Err(e @ RepositoryError::Sink { .. }) => return Ok(damaged(&key, &e)),
            Err(e) => return sort(&key, Err(e)),
        };
        Ok(match TimelineHistory::parse(timeline, &read) {
            Ok(history) => Read::Whole(history),
            Err(e) => damaged(&key, &e),
        })
    }
}
