//! What a repository holds of a cluster, found by listing it. Nothing of it is kept: every call looks anew.

mod wal;

pub use wal::quarantined;
pub(crate) use wal::{InConflict, archived_at, in_conflict, load_wal};

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;

use futures::future::join_all;
use futures::{StreamExt, TryStreamExt, stream};
use walden_model::catalog::{Catalog, DamagedDocument, UnfinishedBackup};
use walden_model::{
    AbandonedDocument, BackupId, BackupRecord, ClusterName, Document, DocumentError,
    IdentityDocument, StartedDocument, SystemKeys, keys,
};
use walden_pg::SystemIdentifier;

use crate::archive::{Archive, OutRepository};
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
    /// What the archive's repositories hold of it.
    pub catalog: Catalog,
    /// The repositories that the catalog tells of, and those that it does not.
    pub archive: Archive,
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
        source: Arc<RepositoryError>,
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

/// Lists everything of a cluster, or of one of its system identifiers; in the order of registration, never empty. Of several repositories
/// those count that answer.
///
/// # Errors
/// Without a named system identifier, a registration that cannot be read: it may be the one that was meant.
pub async fn load(
    archive: impl Into<Archive>,
    cluster: &ClusterName,
    system: Option<SystemIdentifier>,
) -> Result<Vec<SystemCatalog>, CatalogError> {
    let registered = Registered::find(archive.into(), cluster, system).await?;
    registered.all_readable()?.load(cluster).await
}

/// The registration that is meant: the named one, else the one that was registered last.
///
/// # Errors
/// As [`load`].
pub async fn registration(
    archive: impl Into<Archive>,
    cluster: &ClusterName,
    system: Option<SystemIdentifier>,
) -> Result<IdentityDocument, CatalogError> {
    let (identity, _) = registered(archive, cluster, system).await?;
    Ok(identity)
}

/// The same, and the repositories to read for it.
///
/// # Errors
/// As [`load`].
pub(crate) async fn registered(
    archive: impl Into<Archive>,
    cluster: &ClusterName,
    system: Option<SystemIdentifier>,
) -> Result<(IdentityDocument, Archive), CatalogError> {
    let registered = Registered::find(archive.into(), cluster, system).await?;
    let name = registered.archive.first().name().to_owned();
    let last = registered.all_readable()?.systems.pop();
    last.ok_or_else(|| CatalogError::NoCluster {
        name,
        cluster: cluster.clone(),
    })
}

/// Lists everything of a cluster that can be read, and names the registrations that cannot; in the order of registration.
///
/// # Errors
/// Nobody registered the cluster, or no repository can be asked.
pub async fn load_readable(
    archive: impl Into<Archive>,
    cluster: &ClusterName,
) -> Result<(Vec<SystemCatalog>, Vec<DamagedDocument>), CatalogError> {
    let mut registered = Registered::find(archive.into(), cluster, None).await?;
    let damaged = std::mem::take(&mut registered.damaged);
    Ok((registered.load(cluster).await?, damaged))
}

/// Of each system identifier the registration that counts, and the repositories to read for it.
type Systems = Vec<(IdentityDocument, Archive)>;

/// The registrations of a cluster.
struct Registered {
    /// Those that answered.
    archive: Archive,
    /// In the order of registration.
    systems: Systems,
    /// Registrations that no repository has whole.
    damaged: Vec<DamagedDocument>,
}

impl Registered {
    /// Asks all repositories. There is at least one registration, whole or damaged.
    async fn find(
        archive: Archive,
        cluster: &ClusterName,
        system: Option<SystemIdentifier>,
    ) -> Result<Self, CatalogError> {
        let failed = |source| CatalogError::Repository {
            cluster: cluster.clone(),
            source,
        };
        let asked = archive
            .repositories()
            .map(|repository| identities_in(repository, cluster, system));
        let (archive, found) = archive.answering(join_all(asked).await).map_err(failed)?;
        let named = archive.repositories().map(|repository| repository.name());
        let mut whole: Vec<(String, IdentityDocument)> = Vec::new();
        let mut damaged = Vec::new();
        for (name, found) in named.zip(found) {
            whole.extend(found.whole.into_iter().map(|i| (name.to_owned(), i)));
            damaged.extend(found.damaged);
        }
        damaged.retain(|document: &DamagedDocument| {
            let system = keys::parse_identity(cluster, &document.key);
            !whole
                .iter()
                .any(|(_, identity)| Some(identity.system_identifier) == system)
        });
        if whole.is_empty() && damaged.is_empty() {
            // Where one is out, nobody knows that the cluster is not registered.
            return Err(match (archive.out().first(), system) {
                (Some(out), _) => failed(out.error.clone()),
                (None, Some(system)) => failed(Arc::new(RepositoryError::NotRegistered {
                    name: archive.first().name().to_owned(),
                    cluster: cluster.clone(),
                    system,
                })),
                (None, None) => CatalogError::NoCluster {
                    name: archive.first().name().to_owned(),
                    cluster: cluster.clone(),
                },
            });
        }
        Ok(Self {
            systems: systems(&archive, cluster, whole).map_err(failed)?,
            damaged,
            archive,
        })
    }

    fn all_readable(mut self) -> Result<Self, CatalogError> {
        match self.damaged.pop() {
            None => Ok(self),
            Some(damaged) => {
                let known = self.systems.iter();
                Err(CatalogError::DamagedIdentity {
                    damaged,
                    known: known
                        .map(|(identity, _)| identity.system_identifier)
                        .collect(),
                })
            }
        }
    }

    async fn load(self, cluster: &ClusterName) -> Result<Vec<SystemCatalog>, CatalogError> {
        let mut systems = Vec::new();
        for (identity, archive) in self.systems {
            let loaded = load_one(archive, cluster, identity).await;
            systems.push(loaded.map_err(|source| CatalogError::Repository {
                cluster: cluster.clone(),
                source,
            })?);
        }
        Ok(systems)
    }
}

/// The first registration of each system identifier counts. A repository in which it has another archive id holds another archive under the
/// same name, and is left out of it.
fn systems(
    archive: &Archive,
    cluster: &ClusterName,
    whole: Vec<(String, IdentityDocument)>,
) -> Result<Systems, Arc<RepositoryError>> {
    let mut systems: Vec<(String, IdentityDocument, Vec<OutRepository>)> = Vec::new();
    for (name, identity) in whole {
        let system = identity.system_identifier;
        let known = systems
            .iter_mut()
            .find(|(_, known, _)| known.system_identifier == system);
        match known {
            None => systems.push((name, identity, Vec::new())),
            Some((_, known, _)) if known.archive_id == identity.archive_id => {}
            Some((other, known, refused)) => {
                let error = RepositoryError::OtherArchive {
                    name: name.clone(),
                    other: other.clone(),
                    cluster: cluster.clone(),
                    system,
                    found: identity.archive_id,
                    expected: known.archive_id,
                };
                refused.push(OutRepository::new(&name, error));
            }
        }
    }
    systems.sort_by_key(|(_, identity, _)| identity.created_at);
    let narrowed = systems
        .into_iter()
        .map(|(_, identity, refused)| Ok((identity, archive.without(refused)?)));
    narrowed.collect()
}

/// The registrations of a cluster in one repository, in order, and those that cannot be read; one of either at least.
///
/// # Errors
/// As [`load_readable`].
pub(crate) async fn identities(
    repository: &Repository,
    cluster: &ClusterName,
) -> Result<(Vec<IdentityDocument>, Vec<DamagedDocument>), CatalogError> {
    let registered = Registered::find(repository.into(), cluster, None).await?;
    let whole = registered.systems.into_iter();
    Ok((
        whole.map(|(identity, _)| identity).collect(),
        registered.damaged,
    ))
}

/// What one repository has of registrations.
struct Identities {
    whole: Vec<IdentityDocument>,
    damaged: Vec<DamagedDocument>,
}

async fn identities_in(
    repository: &Repository,
    cluster: &ClusterName,
    system: Option<SystemIdentifier>,
) -> Result<Identities, RepositoryError> {
    // An unmounted folder lists as empty; only the root document tells it from an empty archive.
    repository.root().await?;
    let keys = match system {
        Some(system) => vec![keys::identity(cluster, system)],
        None => {
            let objects = repository.list(&keys::identity_prefix(cluster)).await?;
            let names = objects.into_iter().map(|object| object.key.to_string());
            names
                .filter(|key| keys::parse_identity(cluster, key).is_some())
                .collect()
        }
    };
    let (mut whole, mut damaged) = (Vec::new(), Vec::new());
    for key in keys {
        match sort(&key, repository.document(&key).await)? {
            Read::Whole(identity) => whole.push(identity),
            Read::Damaged(document) => damaged.push(document),
            Read::Nothing => {}
        }
    }
    Ok(Identities { whole, damaged })
}

async fn load_one(
    archive: Archive,
    cluster: &ClusterName,
    identity: IdentityDocument,
) -> Result<SystemCatalog, Arc<RepositoryError>> {
    let several = archive.has_several();
    let asked = archive.repositories().map(|repository| {
        let identity = &identity;
        async move {
            let mut part = load_part(repository, cluster, identity).await?;
            if several {
                for document in &mut part.damaged_documents {
                    document.why =
                        format!("in repository \"{}\": {}", repository.name(), document.why);
                }
            }
            Ok(part)
        }
    });
    let (archive, parts) = archive.answering(join_all(asked).await)?;
    let names = archive
        .repositories()
        .map(|repository| repository.name().to_owned());
    let union = Catalog::union(names.zip(parts).collect());
    let mut catalog = union.ok_or_else(|| Arc::new(RepositoryError::NoRepository))?;
    wal::mark_conflicts(&archive, &mut catalog).await?;
    Ok(SystemCatalog {
        identity,
        catalog,
        archive,
    })
}

/// What one repository holds, but for conflicts: those an archive has as a whole.
async fn load_part(
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
