//! `walden list-backups`: the backups there are, and how far WAL carries each.

use walden_model::catalog::{DamagedDocument, MissingHistory, UnfinishedBackup, Window};
use walden_model::{BackupRecord, ClusterName, IdentityDocument};
use walden_pg::SegmentName;

use crate::catalog::{self, CatalogError, SystemCatalog};
use crate::repository::{Repository, RepositoryError, RepositorySettings};

/// Whose backups to list.
#[derive(Debug, Clone)]
pub struct ListRequest {
    /// The repository.
    pub repository: RepositorySettings,
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
    /// Backups that have begun and have no commit document.
    pub unfinished: Vec<UnfinishedBackup>,
    /// Documents, history files and heads that cannot be read.
    pub damaged_documents: Vec<DamagedDocument>,
    /// Archived segments of which another file was set aside: nobody can tell which of the two is this cluster's. No window holds one.
    pub conflicts: Vec<SegmentName>,
}

/// A backup, and what stands behind it.
#[derive(Debug, Clone)]
pub struct ListedBackup {
    /// Its commit document.
    pub record: BackupRecord,
    /// How far WAL carries it; not to be told where a history file is missing or damaged.
    pub window: Result<Window, MissingHistory>,
    /// Keys of its packs and shards that are missing or have another size. Such a backup cannot be restored.
    pub missing_packs: Vec<String>,
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
    let repository = Repository::open(&request.repository)?;
    let (systems, damaged) = catalog::load_readable(&repository, &request.cluster).await?;
    Ok(Listing {
        cluster: request.cluster.clone(),
        systems: systems.into_iter().map(listing).collect(),
        damaged_registrations: damaged,
    })
}

fn listing(system: SystemCatalog) -> SystemListing {
    let SystemCatalog { identity, catalog } = system;
    let backups = catalog
        .ordered_backups()
        .into_iter()
        .map(|record| ListedBackup {
            record: record.clone(),
            window: catalog.window(record),
            missing_packs: catalog
                .missing_packs
                .get(&record.backup_id)
                .cloned()
                .unwrap_or_default(),
        })
        .collect();
    SystemListing {
        identity,
        backups,
        conflicts: catalog.conflicts(),
        unfinished: catalog.unfinished,
        damaged_documents: catalog.damaged_documents,
    }
}
