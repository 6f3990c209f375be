//! What a repository holds of a cluster, found by listing it. Nothing of it is kept: every call looks anew.

mod wal;

pub use wal::quarantined;
pub(crate) use wal::{InConflict, archived_at, in_conflict, load_wal};

use std::collections::{BTreeSet, HashMap};

use futures::{StreamExt, TryStreamExt, stream};
use walden_model::catalog::{Catalog, DamagedDocument, UnfinishedBackup};
use walden_model::{
    AbandonedDocument, BackupId, BackupRecord, ClusterName, Document, DocumentError,
    IdentityDocument, StartedDocument, SystemKeys, keys,
};
use walden_pg::SystemIdentifier;

use crate::repository::{Repository, RepositoryError, Trouble};
use crate::retired;

/// Documents that are read at the same time.
const LANES: usize = 8;
/// A history file has a line for each promotion.
pub(crate) const MAX_HISTORY: usize = 1 << 20;

/// One system identifier of a cluster. Two are never merged: their LSNs have nothing to do with each other.
#[derive(Debug, Clone)]
pub struct SystemCatalog {
    /// Its registration.
    pub identity: IdentityDocument,
    /// What the repository holds of it.
    pub catalog: Catalog,
}

/// Why there is no catalog.
#[derive(Debug, thiserror::Error)]
pub enum CatalogError {
    /// Nobody registered the cluster.
    #[error(
        "cluster \"{cluster}\" is not registered in repository \"{name}\"; register it with: walden init --cluster {cluster}"
    )]
    NoCluster {
        /// The repository.
        name: String,
        /// The cluster's name in the configuration.
        cluster: ClusterName,
    },
    /// A registration cannot be read, and none was named.
    #[error(
        "the registration {} is damaged ({}), so nobody can tell what belongs to it: put the document back from a copy of the repository, \
         or name another registration with --system-identifier{}", damaged.key, damaged.why, known_text(known)
    )]
    DamagedIdentity {
        /// The registration.
        damaged: DamagedDocument,
        /// Those that can be read.
        known: Vec<SystemIdentifier>,
    },
    /// The repository's own error.
    #[error("cannot see what the repository holds of cluster \"{cluster}\"")]
    Repository {
        /// The cluster's name in the configuration.
        cluster: ClusterName,
        /// Why.
        #[source]
        source: RepositoryError,
    },
}

fn known_text(known: &[SystemIdentifier]) -> String {
    match known {
        [] => String::new(),
        known => {
            let known: Vec<String> = known.iter().map(ToString::to_string).collect();
            format!(": {}", known.join(" or "))
        }
    }
}

/// Lists everything of a cluster, or of one of its system identifiers; in the order of registration, never empty.
///
/// # Errors
/// Without a named system identifier, a registration that cannot be read: it may be the one that was meant.
pub async fn load(
    repository: &Repository,
    cluster: &ClusterName,
    system: Option<SystemIdentifier>,
) -> Result<Vec<SystemCatalog>, CatalogError> {
    let failed = |source| CatalogError::Repository {
        cluster: cluster.clone(),
        source,
    };
    // An unmounted folder lists as empty; only the root document tells it from an empty archive.
    repository.root().await.map_err(failed)?;
    let identities = chosen(repository, cluster, system).await?;
    load_each(repository, cluster, identities).await
}

/// The registration that is meant: the named one, else the one that was registered last.
///
/// # Errors
/// As [`load`].
pub async fn registration(
    repository: &Repository,
    cluster: &ClusterName,
    system: Option<SystemIdentifier>,
) -> Result<IdentityDocument, CatalogError> {
    let root = repository.root().await;
    root.map_err(|source| CatalogError::Repository {
        cluster: cluster.clone(),
        source,
    })?;
    let mut identities = chosen(repository, cluster, system).await?;
    identities.pop().ok_or_else(|| CatalogError::NoCluster {
        name: repository.name().to_owned(),
        cluster: cluster.clone(),
    })
}

/// The registrations that are meant, in order.
async fn chosen(
    repository: &Repository,
    cluster: &ClusterName,
    system: Option<SystemIdentifier>,
) -> Result<Vec<IdentityDocument>, CatalogError> {
    let Some(system) = system else {
        let (identities, damaged) = identities(repository, cluster).await?;
        return match damaged.into_iter().next() {
            None => Ok(identities),
            Some(damaged) => Err(CatalogError::DamagedIdentity {
                damaged,
                known: identities.iter().map(|i| i.system_identifier).collect(),
            }),
        };
    };
    let identity = repository.registration(cluster, system).await;
    let identity = identity.map_err(|source| CatalogError::Repository {
        cluster: cluster.clone(),
        source,
    })?;
    Ok(vec![identity])
}

/// Lists everything of a cluster that can be read, and names the registrations that cannot; in the order of registration.
///
/// # Errors
/// Nobody registered the cluster, or the repository cannot be asked.
pub async fn load_readable(
    repository: &Repository,
    cluster: &ClusterName,
) -> Result<(Vec<SystemCatalog>, Vec<DamagedDocument>), CatalogError> {
    let root = repository.root().await;
    root.map_err(|source| CatalogError::Repository {
        cluster: cluster.clone(),
        source,
    })?;
    let (identities, damaged) = identities(repository, cluster).await?;
    let systems = load_each(repository, cluster, identities).await?;
    Ok((systems, damaged))
}

/// The registrations of a cluster, in order, and those that cannot be read; one of either at least.
///
/// # Errors
/// As [`load_readable`].
pub(crate) async fn identities(
    repository: &Repository,
    cluster: &ClusterName,
) -> Result<(Vec<IdentityDocument>, Vec<DamagedDocument>), CatalogError> {
    let failed = |source| CatalogError::Repository {
        cluster: cluster.clone(),
        source,
    };
    let prefix = keys::identity_prefix(cluster);
    let (mut whole, mut damaged) = (Vec::new(), Vec::new());
    for object in repository.list(&prefix).await.map_err(failed)? {
        let key = object.key.as_str();
        if keys::parse_identity(cluster, key).is_none() {
            continue;
        }
        match sort(key, repository.document(key).await).map_err(failed)? {
            Read::Whole(identity) => whole.push(identity),
            Read::Damaged(document) => damaged.push(document),
            Read::Nothing => {}
        }
    }
    if whole.is_empty() && damaged.is_empty() {
        return Err(CatalogError::NoCluster {
            name: repository.name().to_owned(),
            cluster: cluster.clone(),
        });
    }
    whole.sort_by_key(|identity: &IdentityDocument| identity.created_at);
    Ok((whole, damaged))
}

async fn load_each(
    repository: &Repository,
    cluster: &ClusterName,
    identities: Vec<IdentityDocument>,
) -> Result<Vec<SystemCatalog>, CatalogError> {
    let mut systems = Vec::new();
    for identity in identities {
        let catalog = load_one(repository, cluster, &identity).await;
        let catalog = catalog.map_err(|source| CatalogError::Repository {
            cluster: cluster.clone(),
            source,
        })?;
        systems.push(SystemCatalog { identity, catalog });
    }
    Ok(systems)
}

async fn load_one(
    repository: &Repository,
    cluster: &ClusterName,
    identity: &IdentityDocument,
) -> Result<Catalog, RepositoryError> {
    let (loader, mut catalog) = Loader::new(repository, cluster, identity);
    // Commit documents first, then what they name: a backup that is committed meanwhile shows as running, never as incomplete.
    let closed = loader.commits(&mut catalog).await?;
    catalog.retiring = retired::backups(repository, &loader.keys).await?;
    let Catalog {
        backups, retiring, ..
    } = &mut catalog;
    backups.retain(|record| !retiring.contains(&record.backup_id));
    loader.backups(&mut catalog, &closed).await?;
    loader.wal(&mut catalog).await?;
    Ok(catalog)
}

/// What a document's key gave.
enum Read<T> {
    Whole(T),
    Damaged(DamagedDocument),
    /// Not there any more, or a mark that there is nothing.
    Nothing,
}

struct Loader<'a> {
    repository: &'a Repository,
    identity: &'a IdentityDocument,
    keys: SystemKeys,
}

impl<'a> Loader<'a> {
    /// With a catalog that holds nothing yet.
    fn new(
        repository: &'a Repository,
        cluster: &ClusterName,
        identity: &'a IdentityDocument,
    ) -> (Self, Catalog) {
        let loader = Self {
            repository,
            identity,
            keys: SystemKeys {
                cluster: cluster.clone(),
                system: identity.system_identifier,
            },
        };
        let catalog = Catalog::empty(
            cluster.clone(),
            identity.system_identifier,
            identity.archive_id,
            identity.wal_segment_size,
        );
        (loader, catalog)
    }

    /// Reads the commit documents. Returns the ids whose commit key is taken by anything, be it readable or not.
    async fn commits(&self, catalog: &mut Catalog) -> Result<BTreeSet<BackupId>, RepositoryError> {
        let objects = self.repository.list(&self.keys.commits_prefix()).await?;
        let ids: Vec<_> = objects
            .iter()
            .filter_map(|object| self.keys.parse_commit(object.key.as_str()))
            .collect();
        let read = stream::iter(ids.clone())
            .map(|id| self.commit(id))
            .buffered(LANES);
        for record in read.try_collect::<Vec<_>>().await? {
            match record {
                Read::Whole(record) => catalog.backups.push(record),
                Read::Damaged(damaged) => catalog.damaged_documents.push(damaged),
                Read::Nothing => {}
            }
        }
        Ok(ids.into_iter().collect())
    }

    async fn commit(&self, id: BackupId) -> Result<Read<BackupRecord>, RepositoryError> {
        let key = self.keys.commit(&id);
        let read = match self.repository.document(&key).await {
            Err(RepositoryError::Document {
                source: DocumentError::WrongKind { found, .. },
                ..
            }) if found == AbandonedDocument::KIND => {
                return Ok(Read::Nothing);
            }
            other => sort(&key, other)?,
        };
        Ok(match read {
            Read::Whole(record) => match self.misplaced(&id, &record) {
                Some(why) => Read::Damaged(DamagedDocument { key, why }),
                None => Read::Whole(record),
            },
            other => other,
        })
    }

    /// Why a whole commit document does not belong to this key. The cluster's name may differ: a cluster is renamed by moving its folder.
    fn misplaced(&self, id: &BackupId, record: &BackupRecord) -> Option<String> {
        let rows = [
            ("backup_id", record.backup_id.to_string(), id.to_string()),
            (
                "archive_id",
                record.archive_id.to_string(),
                self.identity.archive_id.to_string(),
            ),
            (
                "system_identifier",
                record.system_identifier.to_string(),
                self.identity.system_identifier.to_string(),
            ),
            (
                "wal_segment_size",
                record.wal_segment_size.to_string(),
                self.identity.wal_segment_size.to_string(),
            ),
        ];
        rows.into_iter()
            .find(|(_, found, expected)| found != expected)
            .map(|(field, found, expected)| {
                format!(
                    "the document belongs elsewhere: its {field} is {found}, expected {expected}"
                )
            })
    }

    /// Holds the commit documents against the packs and shards that are there, and finds backups without a commit document.
    async fn backups(
        &self,
        catalog: &mut Catalog,
        closed: &BTreeSet<BackupId>,
    ) -> Result<(), RepositoryError> {
        let objects = self.repository.list(&self.keys.backups_prefix()).await?;
        let sizes: HashMap<&str, u64> = objects
            .iter()
            .map(|object| (object.key.as_str(), object.size))
            .collect();
        for record in &catalog.backups {
            let packs = record
                .packs
                .iter()
                .map(|pack| (self.keys.pack(&pack.backup, pack.number), pack.size));
            let shards = record.file_map.iter().map(|shard| {
                (
                    self.keys.file_map(&record.backup_id, shard.number),
                    shard.size,
                )
            });
            let missing: Vec<_> = packs
                .chain(shards)
                .filter(|(key, size)| sizes.get(key.as_str()) != Some(size))
                .map(|(key, _)| key)
                .collect();
            if !missing.is_empty() {
                catalog
                    .missing_packs
                    .insert(record.backup_id.clone(), missing);
            }
        }
        let open: BTreeSet<BackupId> = objects
            .iter()
            .filter_map(|object| self.keys.parse_backup(object.key.as_str()))
            .filter(|id| !closed.contains(id) && !catalog.retiring.contains(id))
            .collect();
        let read = stream::iter(open)
            .map(|id| async move {
                let key = self.keys.started(&id);
                sort(
                    &key,
                    self.repository.document::<StartedDocument>(&key).await,
                )
            })
            .buffered(LANES);
        for started in read.try_collect::<Vec<_>>().await? {
            match started {
                Read::Whole(started) => catalog.unfinished.push(UnfinishedBackup {
                    id: started.backup_id,
                    started_at: started.started_at,
                    host: started.host,
                }),
                Read::Damaged(damaged) => catalog.damaged_documents.push(damaged),
                Read::Nothing => {}
            }
        }
        Ok(())
    }
}

/// Tells what is wrong with one object, which must not hide the others, from what is wrong with the repository.
fn sort<T>(
    key: &str,
    read: Result<Option<T>, RepositoryError>,
) -> Result<Read<T>, RepositoryError> {
    match read {
        Ok(Some(value)) => Ok(Read::Whole(value)),
        Ok(None) => Ok(Read::Nothing),
        Err(e) if e.trouble() == Trouble::Absent => Ok(Read::Nothing),
        Err(e) if matches!(e.trouble(), Trouble::Damage | Trouble::Configuration) => {
            Ok(damaged(key, &e))
        }
        Err(e) => Err(e),
    }
}

/// The catalog keeps text: the whole chain of the error.
fn damaged<T>(key: &str, error: &dyn std::error::Error) -> Read<T> {
    Read::Damaged(DamagedDocument {
        key: key.to_owned(),
        why: whole_text(error),
    })
}

/// An error with its causes, for where there is room for text alone.
pub(crate) fn whole_text(error: &dyn std::error::Error) -> String {
    let chain = std::iter::successors(Some(error), |e| e.source());
    let texts: Vec<_> = chain.map(ToString::to_string).collect();
    texts.join(": ")
}
