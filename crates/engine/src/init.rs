//! `walden init`: makes the repository and registers a cluster in it.

use std::fs;
use std::path::{Path, PathBuf};

use jiff::Timestamp;
use walden_model::keys::{self, ROOT_KEY};
use walden_model::{ClusterName, Encryption, IdentityDocument, RandomId, RepositoryDocument};
use walden_pg::control::{ControlFile, ControlFileError};
use walden_pg::{SystemIdentifier, WalSegmentSize};
use walden_store::{LocalStore, StoreError};

use crate::host;
use crate::repository::{Place, Repository, RepositoryError, RepositorySettings};

/// What to register, and where.
#[derive(Debug, Clone)]
pub struct InitRequest {
    /// The repository.
    pub repository: RepositorySettings,
    /// The cluster's name in it.
    pub cluster: ClusterName,
    /// The data directory, whose control file says which cluster it is.
    pub pgdata: PathBuf,
    /// The explicit word for a second system identifier under the same name, after pg_upgrade or a new initdb.
    pub new_system_identifier: bool,
}

/// What stands after `init`.
#[derive(Debug, Clone)]
pub struct InitReport {
    /// The repository's id, which the configuration may pin as `id`.
    pub repository_id: RandomId,
    /// Whether this call made the repository.
    pub repository_made: bool,
    /// The registration.
    pub identity: IdentityDocument,
    /// Whether this call registered it.
    pub registered: bool,
}

/// Why nothing was registered.
#[derive(Debug, thiserror::Error)]
pub enum InitError {
    /// The data directory cannot be read.
    #[error("cannot read {}; is it the data directory, and may this user read it?", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// The control file is not one of a supported version.
    #[error("cannot use {}", path.display())]
    Control {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: ControlFileError,
    },
    /// `PG_VERSION` or the control file says something impossible.
    #[error("{} says {value:?}, which is no {what}", path.display())]
    Nonsense {
        /// The file.
        path: PathBuf,
        /// What it says.
        value: String,
        /// What was expected there.
        what: &'static str,
    },
    /// The folder cannot be made.
    #[error("cannot make the repository's folder")]
    Folder(#[source] StoreError),
    /// The configuration pins an id, and there is no repository.
    #[error(
        "{place} holds no repository, but the configuration pins repository {id}: it is probably {}; to make a new repository there, remove \
         \"id\" from the configuration first", if matches!(place, Place::Folder(_)) {
            "not mounted. Mount it"
        } else {
            "another bucket, prefix or endpoint. Correct it"
        }
    )]
    NotMounted {
        /// The folder or bucket.
        place: Place,
        /// The pinned id.
        id: RandomId,
    },
    /// The store does not do what the configuration says of it.
    #[error(
        "{place} overwrites an object that it is asked to put only where none is (If-None-Match: *), so that one writer could destroy \
         what another has stored: set \"create_only: claims\" under s3, on every machine that writes to this bucket"
    )]
    Overwrites {
        /// The bucket.
        place: Place,
    },
    /// The repository's own error.
    #[error("cannot register the cluster")]
    Repository(#[from] RepositoryError),
    /// Another cluster has the name.
    #[error(
        "cluster \"{cluster}\" is registered with system identifier {}, and {} has {found}. If this is another cluster, give it another name. \
         After pg_upgrade or a new initdb, register it beside the old one: walden init --cluster {cluster} --new-system-identifier",
        known.iter().map(ToString::to_string).collect::<Vec<_>>().join(", "), pgdata.display()
    )]
    OtherSystem {
        /// The name.
        cluster: ClusterName,
        /// What is registered under it.
        known: Vec<SystemIdentifier>,
        /// What the data directory says.
        found: SystemIdentifier,
        /// The data directory.
        pgdata: PathBuf,
    },
}

/// Makes the repository where there is none, and registers the cluster. A second call changes nothing and is no error.
pub async fn init(request: &InitRequest) -> Result<InitReport, InitError> {
    let facts = Facts::read(&request.pgdata)?;
    let (repository, root, repository_made) = make_repository(&request.repository).await?;
    let registrations = repository.registrations(&request.cluster).await?;
    let report = |identity, registered| InitReport {
        repository_id: root.repository_id,
        repository_made,
        identity,
        registered,
    };
    if let Some(known) = registrations
        .iter()
        .find(|r| r.system_identifier == facts.system)
    {
        return Ok(report(known.clone(), false));
    }
    if !registrations.is_empty() && !request.new_system_identifier {
        return Err(InitError::OtherSystem {
            cluster: request.cluster.clone(),
            known: registrations.iter().map(|r| r.system_identifier).collect(),
            found: facts.system,
            pgdata: request.pgdata.clone(),
        });
    }
    let identity = IdentityDocument {
        cluster: request.cluster.clone(),
        system_identifier: facts.system,
        archive_id: host::random_id(),
        wal_segment_size: facts.segment_size,
        pg_version: facts.major,
        created_at: Timestamp::now(),
        host: host::host_name(),
        encryption: Encryption::None,
    };
    match repository
        .put_document(&keys::identity(&request.cluster, facts.system), &identity)
        .await
    {
        Ok(()) => Ok(report(identity, true)),
        // Another init was faster; what it registered counts.
        Err(e) if e.is_already_exists() => Ok(report(
            repository
                .registration(&request.cluster, facts.system)
                .await?,
            false,
        )),
        Err(e) => Err(e.into()),
    }
}

/// Opens the repository, or makes the root document, and for that the folder. A crash between the two leaves an empty folder, which
/// the next call fills.
async fn make_repository(
    settings: &RepositorySettings,
) -> Result<(Repository, RepositoryDocument, bool), InitError> {
    let place = &settings.place;
    let there = match (Repository::open(settings).await, place) {
        (Ok(repository), _) => match repository.root().await {
            Ok(root) => Some((repository, root)),
            Err(RepositoryError::NoRoot { .. }) => None,
            Err(e) => return Err(e.into()),
        },
        (Err(_), Place::Folder(path)) if !path.exists() => None,
        // What is wrong there, making the folder says.
        (Err(_), Place::Folder(path)) => {
            LocalStore::create_root(path).map_err(InitError::Folder)?;
            None
        }
        #[cfg(feature = "s3")]
        (Err(e), Place::Bucket(_)) => return Err(e.into()),
    };
    if let (None, Some(id)) = (&there, settings.id) {
        return Err(InitError::NotMounted {
            place: place.clone(),
            id,
        });
    }
    #[cfg(feature = "s3")]
    prove_create_only(settings).await?;
    if let Some((repository, root)) = there {
        return Ok((repository, root, false));
    }
    if let Place::Folder(path) = place {
        LocalStore::create_root(path).map_err(InitError::Folder)?;
    }
    let repository = Repository::open(settings).await?;
    let root = RepositoryDocument {
        repository_id: host::random_id(),
        created_at: Timestamp::now(),
    };
    match repository.put_document(ROOT_KEY, &root).await {
        Ok(()) => Ok((repository, root, true)),
        Err(e) if e.is_already_exists() => {
            let root = repository.root().await?;
            Ok((repository, root, false))
        }
        Err(e) => Err(e.into()),
    }
}

/// Tries out whether a bucket that is to honour conditions does, before anything of worth is in it. Claims hold in every
/// bucket, and a folder has links.
#[cfg(feature = "s3")]
async fn prove_create_only(settings: &RepositorySettings) -> Result<(), InitError> {
    use crate::repository::{CreateOnly, open_bucket};

    let Place::Bucket(s3) = &settings.place else {
        return Ok(());
    };
    if s3.create_only == CreateOnly::Claims {
        return Ok(());
    }
    let store = open_bucket(&settings.name, s3).await?;
    let found = store.probe_create_only().await;
    match found.map_err(|source| RepositoryError::Store {
        name: settings.name.clone(),
        source,
    })? {
        CreateOnly::Conditional => Ok(()),
        CreateOnly::Claims => Err(InitError::Overwrites {
            place: settings.place.clone(),
        }),
    }
}

/// What the data directory says of itself.
struct Facts {
    system: SystemIdentifier,
    segment_size: WalSegmentSize,
    major: u16,
}

impl Facts {
    fn read(pgdata: &Path) -> Result<Self, InitError> {
        let read = |path: PathBuf| match fs::read(&path) {
            Ok(bytes) => Ok((path, bytes)),
            Err(source) => Err(InitError::Read { path, source }),
        };
        let (control_path, bytes) = read(pgdata.join(host::CONTROL))?;
        let control = ControlFile::parse(&bytes).map_err(|source| InitError::Control {
            path: control_path.clone(),
            source,
        })?;
        let segment_size =
            WalSegmentSize::new(u64::from(control.wal_segment_size)).map_err(|e| {
                InitError::Nonsense {
                    path: control_path,
                    value: e.0.to_string(),
                    what: "size of a WAL segment",
                }
            })?;
        let (version_path, bytes) = read(pgdata.join("PG_VERSION"))?;
        let text = String::from_utf8_lossy(&bytes);
        let major = text.trim().parse().map_err(|_| InitError::Nonsense {
            path: version_path,
            value: text.trim().to_owned(),
            what: "version of PostgreSQL that Walden knows",
        })?;
        Ok(Facts {
            system: control.system_identifier,
            segment_size,
            major,
        })
    }
}
