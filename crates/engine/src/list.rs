//! `walden list-backups`: the backups there are, and how far WAL carries each.

use std::collections::BTreeMap;

use walden_model::catalog::{DamagedDocument, MissingHistory, UnfinishedBackup, Window};
use walden_model::index::End;
use walden_model::{
    BackupId, BackupRecord, Catalog, ClusterName, Event, IdentityDocument, Lack, SystemKeys,
    Verified,
};
use walden_pg::SegmentName;

use crate::archive::Archive;
use crate::catalog::{self, CatalogError, SystemCatalog};
use crate::index::{Indexes, RunEnd, mark_breaks};
use crate::repository::{RepositoryError, RepositorySettings};
use crate::verify::last_event;
use crate::windows::{self, RestoreWindow};

/// Whose backups to list.
#[derive(Debug, Clone)]
pub struct ListRequest {
    /// The repositories, in the order in which they are asked.
    pub repositories: Vec<RepositorySettings>,
    /// The cluster's name in it.
    pub cluster: ClusterName,
}

/// The backups of a cluster.
#[derive(Debug, Clone)]
pub struct Listing {
    /// The cluster.
    pub cluster: ClusterName,
    /// One for each registered system identifier, in the order of registration.
    pub systems: Vec<SystemListing>,
    /// Registrations that cannot be read: what belongs to them is not listed.
    pub damaged_registrations: Vec<DamagedDocument>,
}

/// The backups of one system identifier.
#[derive(Debug, Clone)]
pub struct SystemListing {
    /// Its registration.
    pub identity: IdentityDocument,
    /// Oldest first, in WAL order.
    pub backups: Vec<ListedBackup>,
    /// The last verify of all of it, in each repository that has one.
    pub verified: Vec<ListedVerify>,
    /// Backups that have begun and have no commit document.
    pub unfinished: Vec<UnfinishedBackup>,
    /// Documents, history files and heads that cannot be read.
    pub damaged_documents: Vec<DamagedDocument>,
    /// The newest window of the newest timeline that has WAL; `None` where nothing of that timeline can be restored.
    pub newest: Option<RestoreWindow>,
    /// Archived segments of which another file was set aside: nobody can tell which of the two is this cluster's. No window holds one.
    pub conflicts: Vec<SegmentName>,
    /// What each repository holds; empty where only one is configured.
    pub repositories: Vec<ListedRepository>,
}

/// One of several repositories.
#[derive(Debug, Clone)]
pub struct ListedRepository {
    /// Its name in the configuration.
    pub name: String,
    /// What it lacks, or why it was not read, with all causes: then nobody can tell.
    pub lack: Result<Lack, String>,
    /// Where what it lacks can be copied from.
    pub copy_from: Option<String>,
}

/// The last verify of everything in one repository.
#[derive(Debug, Clone)]
pub struct ListedVerify {
    /// Its name in the configuration.
    pub repository: String,
    /// What was found.
    pub event: Event<Verified>,
}

/// A backup, and what stands behind it.
#[derive(Debug, Clone)]
pub struct ListedBackup {
    /// Its commit document.
    pub record: BackupRecord,
    /// How far WAL carries it; not to be told where a history file is missing or damaged.
    pub window: Result<Window, MissingHistory>,
    /// The last commit to which it can be restored; `None` where the run of WAL from its start has none, or it cannot be told.
    pub until: Option<End>,
    /// Keys of its packs and shards that are missing or have another size. Such a backup cannot be restored.
    pub missing_packs: Vec<String>,
    /// The repositories that hold all of it; empty where only one is configured.
    pub repositories: Vec<String>,
}

/// Why nothing was listed.
#[derive(Debug, thiserror::Error)]
pub enum ListError {
    /// The repository cannot be opened.
    #[error("cannot open the repository")]
    Repository(#[from] RepositoryError),
    /// The repository cannot be listed.
    #[error("cannot list the backups")]
    Catalog(#[from] CatalogError),
}

/// Lists a cluster's backups.
pub async fn list(request: &ListRequest) -> Result<Listing, ListError> {
    let archive = Archive::open(&request.repositories).await?;
    list_in(&archive, &request.cluster).await
}

/// Lists a cluster's backups in an open archive.
pub async fn list_in(
    archive: impl Into<Archive>,
    cluster: &ClusterName,
) -> Result<Listing, ListError> {
    let (loaded, damaged) = catalog::load_readable(archive, cluster).await?;
    let mut systems = Vec::new();
    for system in loaded {
        systems.push(listing(system).await?);
    }
    Ok(Listing {
        cluster: cluster.clone(),
        systems,
        damaged_registrations: damaged,
    })
}

pub(crate) async fn listing(system: SystemCatalog) -> Result<SystemListing, RepositoryError> {
    let SystemCatalog {
        identity,
        mut catalog,
        archive,
    } = system;
    let roll_ups = mark_breaks(&archive, &mut catalog).await?;
    let indexes = Indexes::new(&archive, &catalog).knowing(roll_ups);
    // Runs that end with the same segment end with the same commit.
    let mut ends: BTreeMap<SegmentName, RunEnd> = BTreeMap::new();
    let newest = windows::newest(&archive, &catalog, &indexes).await?;
    if let Some(newest) = &newest {
        ends.insert(newest.window.last_segment, newest.end);
    }
    let mut backups = Vec::new();
    for record in catalog.ordered_backups() {
        let window = catalog.window(record);
        let missing_packs = catalog.missing_packs.get(&record.backup_id).cloned();
        let missing_packs = missing_packs.unwrap_or_default();
        let mut until = None;
        if let Ok(window) = &window
            && let Some(last) = window.last_segment.filter(|_| window.whole)
            && let Ok(path) = catalog.path(window.timeline)
            && let Some(number) = last.number(catalog.segment_size)
        {
            let end = match ends.get(&last) {
                Some(end) => *end,
                None => {
                    let ranges = path.ranges(path.first_segment(record), number);
                    let end = indexes.run_end(ranges.collect()).await?;
                    ends.insert(last, end);
                    end
                }
            };
            until = end.commit.known();
        }
        backups.push(ListedBackup {
            repositories: whole_in(&archive, &catalog, &record.backup_id),
            record: record.clone(),
            window,
            until,
            missing_packs,
        });
    }
    Ok(SystemListing {
        repositories: repositories(&archive, &catalog),
        verified: last_verified(&archive, &catalog, &identity).await,
        identity,
        backups,
        newest,
        conflicts: catalog.conflicts(),
        unfinished: catalog.unfinished,
        damaged_documents: catalog.damaged_documents,
    })
}

/// The names of the repositories that hold all of a backup, where several are configured.
pub(crate) fn whole_in(archive: &Archive, catalog: &Catalog, id: &BackupId) -> Vec<String> {
    if !archive.is_one_of_several() {
        return Vec::new();
    }
    if catalog.holdings.is_empty() {
        let whole = !catalog.missing_packs.contains_key(id);
        let names = archive.repositories().filter(|_| whole);
        return names.map(|one| one.name().to_owned()).collect();
    }
    let whole = catalog.holdings.iter().filter(|holding| {
        let missing = holding.backups.get(id);
        missing.is_some_and(Vec::is_empty)
    });
    whole.map(|holding| holding.repository.clone()).collect()
}

fn repositories(archive: &Archive, catalog: &Catalog) -> Vec<ListedRepository> {
    if !archive.is_one_of_several() {
        return Vec::new();
    }
    let lacks: Vec<(&str, Lack)> = match catalog.holdings.as_slice() {
        // One alone lacks nothing that is known.
        [] => vec![(archive.first().name(), Lack::default())],
        holdings => holdings
            .iter()
            .map(|holding| (holding.repository.as_str(), catalog.lack_of(holding)))
            .collect(),
    };
    let read = lacks.iter().map(|(name, lack)| {
        let others = lacks.iter().filter(|(other, _)| other != name);
        let fullest = others.min_by_key(|(_, lack)| (lack.segments, lack.backups.len()));
        ListedRepository {
            name: (*name).to_owned(),
            lack: Ok(lack.clone()),
            copy_from: fullest
                .filter(|_| !lack.is_empty())
                .map(|(other, _)| (*other).to_owned()),
        }
    });
    let out = archive.out().iter().map(|out| ListedRepository {
        name: out.name.clone(),
        lack: Err(out.why()),
        copy_from: None,
    });
    read.chain(out).collect()
}

/// In each repository by itself: what one holds says nothing of another. It is no part of the list: one that cannot be read is no reason to
/// have none.
async fn last_verified(
    archive: &Archive,
    catalog: &Catalog,
    identity: &IdentityDocument,
) -> Vec<ListedVerify> {
    let keys = SystemKeys {
        cluster: catalog.cluster.clone(),
        system: catalog.system_identifier,
    };
    let mut verified = Vec::new();
    for repository in archive.repositories() {
        let last = async {
            let id = repository.root().await?.repository_id;
            last_event(repository, id, &keys, identity, |_| true).await
        };
        match last.await {
            Ok(event) => verified.extend(event.map(|event| ListedVerify {
                repository: repository.name().to_owned(),
                event,
            })),
            Err(error) => tracing::warn!(
                error = &error as &dyn std::error::Error,
                "cannot see what was verified in repository \"{}\"",
                repository.name()
            ),
        }
    }
    verified
}
