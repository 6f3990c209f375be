//! `walden init`: makes the repositories, and registers a cluster in each.
//!
//! Order in each repository: the folder, the root document, the registration. A crash between two of them leaves what the next call goes on
//! from, and one between two repositories the same: a cluster's archive has one id everywhere, which the first registration has at random,
//! and every other one takes over from whatever repository has it.
//!
//! So a new id is made only where *every* configured repository was looked into and none knows the cluster. One that does not answer may
//! hold the only copy of the archive, whether it is required or not: a required one may have been lost and replaced by an empty one since.
//! Two ids cannot be made one again, and an archive's objects belong to the id in their heads. Where one repository has the registration, the
//! others take it over whichever of them is out: an id that they may hold as well is the same one, or else the two were never one archive, and
//! that is refused by the first call that sees both.

use std::fs;
use std::path::{Path, PathBuf};

use futures::future::join_all;
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
    /// Every configured repository.
    pub repositories: Vec<RepositorySettings>,
    /// The only one to make and to register in, by its name; the others are looked into all the same.
    pub only: Option<String>,
    /// The cluster's name in them.
    pub cluster: ClusterName,
    /// The data directory, whose control file says which cluster it is.
    pub pgdata: PathBuf,
    /// The explicit word for a second system identifier under the same name, after pg_upgrade or a new initdb.
    pub new_system_identifier: bool,
}

/// What stands after `init`.
#[derive(Debug)]
pub struct InitReport {
    /// The registration, the same in every repository.
    pub identity: IdentityDocument,
    /// The repositories that have it now, in the configuration's order.
    pub repositories: Vec<Registered>,
    /// Those that do not, in the same order.
    pub failed: Vec<Unregistered>,
}

/// A repository that knows the cluster.
#[derive(Debug, Clone)]
pub struct Registered {
    /// Its name.
    pub name: String,
    /// Where it is.
    pub place: Place,
    /// Its id, which the configuration may pin as `id`.
    pub id: RandomId,
    /// Whether this call made the repository.
    pub made: bool,
    /// Whether this call registered the cluster.
    pub registered: bool,
}

/// A repository that was not made, or did not take the registration.
#[derive(Debug)]
pub struct Unregistered {
    /// Its name.
    pub name: String,
    /// Whether files count as archived only once they are there.
    pub required: bool,
    /// Why.
    pub why: InitError,
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
    /// No repository of that name.
    #[error(
        "the configuration has no repository \"{wanted}\"; it has {}",
        known.iter().map(|name| format!("\"{name}\"")).collect::<Vec<_>>().join(", ")
    )]
    NoSuchRepository {
        /// What was asked for.
        wanted: String,
        /// The repositories that there are.
        known: Vec<String>,
    },
    /// A new archive id may only be made where none is.
    #[error(
        "repository \"{repository}\" cannot be looked into, and no other one knows cluster \"{cluster}\". It may hold the cluster's archive, whose id \
         all repositories share, so none was made anew: run walden init again when the repository is there, or take it out of the configuration \
         if it never will be"
    )]
    MayBeThere {
        /// The repository that is out.
        repository: String,
        /// The cluster.
        cluster: ClusterName,
        /// Why it is out.
        #[source]
        source: Box<InitError>,
    },
    /// Two archives under one name.
    #[error(
        "cluster \"{cluster}\" has two archives, which cannot be one: {} in repository \"{}\", {} in repository \"{}\". Give one of them another \
         cluster name, or another folder or prefix", ids[0], repositories[0], ids[1], repositories[1]
    )]
    TwoArchives {
        /// The cluster.
        cluster: ClusterName,
        /// Two repositories.
        repositories: [String; 2],
        /// The archive's id in each.
        ids: [RandomId; 2],
    },
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

/// Makes the repositories that are not there, and registers the cluster in each. A second call changes nothing and is no error.
///
/// # Errors
/// Where the cluster is registered nowhere afterwards, or may not be. What fails in one repository alone stands in the report.
pub async fn init(request: &InitRequest) -> Result<InitReport, InitError> {
    let facts = Facts::read(&request.pgdata)?;
    for settings in &request.repositories {
        // Those that a person cannot have meant are refused before anything is made.
        let recipients = settings.keys.recipients();
        recipients.map_err(RepositoryError::Recipients)?;
    }
    if let Some(only) = &request.only
        && !request.repositories.iter().any(|known| known.name == *only)
    {
        return Err(InitError::NoSuchRepository {
            wanted: only.clone(),
            known: request
                .repositories
                .iter()
                .map(|known| known.name.clone())
                .collect(),
        });
    }
    let looks = request
        .repositories
        .iter()
        .map(|settings| look(settings, &request.cluster));
    let looked: Vec<_> = join_all(looks).await;
    let (mut whose, mut identity, looked) = match known_identity(request, &facts, &looked)? {
        Some((name, known)) => (Some(name), known, looked),
        None => (None, facts.identity(request), all_known(request, looked)?),
    };
    let mut report = InitReport {
        identity: identity.clone(),
        repositories: Vec::new(),
        failed: Vec::new(),
    };
    let wanted = |settings: &RepositorySettings| {
        request
            .only
            .as_ref()
            .is_none_or(|only| *only == settings.name)
    };
    for (settings, found) in request.repositories.iter().zip(looked) {
        if !wanted(settings) {
            continue;
        }
        let registered = match found {
            Ok(found) => register(settings, found, &identity).await,
            Err(why) => Err(why),
        };
        match registered {
            Ok((registered, theirs)) => {
                if theirs.archive_id != identity.archive_id
                    && let Some(first) = whose
                {
                    return Err(InitError::TwoArchives {
                        cluster: request.cluster.clone(),
                        repositories: [first, registered.name],
                        ids: [identity.archive_id, theirs.archive_id],
                    });
                }
                whose.get_or_insert_with(|| settings.name.clone());
                // Another init was faster; what it registered counts, here and in the repositories to come.
                identity = theirs;
                report.repositories.push(registered);
            }
            Err(why) => report.failed.push(Unregistered {
                name: settings.name.clone(),
                required: settings.required,
                why,
            }),
        }
    }
    report.identity = identity;
    if report.repositories.is_empty() && !report.failed.is_empty() {
        return Err(report.failed.swap_remove(0).why);
    }
    Ok(report)
}

/// A repository's folder or bucket before anything is made.
struct Found {
    /// `None`: there is no repository yet.
    there: Option<(Repository, RepositoryDocument)>,
    /// What is registered under the cluster's name.
    registrations: Vec<IdentityDocument>,
}

/// Looks into a repository, and writes nothing. An error means that what it holds is not known.
async fn look(settings: &RepositorySettings, cluster: &ClusterName) -> Result<Found, InitError> {
    let place = &settings.place;
    let there = match (Repository::open(settings).await, place) {
        (Ok(repository), _) => match repository.root().await {
            Ok(root) => Some((repository, root)),
            Err(RepositoryError::NoRoot { .. }) => None,
            Err(e) => return Err(e.into()),
        },
        (Err(_), Place::Folder(path)) if !path.exists() => None,
        (Err(e), _) => return Err(e.into()),
    };
    if let (None, Some(id)) = (&there, settings.id) {
        return Err(InitError::NotMounted {
            place: place.clone(),
            id,
        });
    }
    let registrations = match &there {
        Some((repository, _)) => repository.registrations(cluster).await?,
        None => Vec::new(),
    };
    Ok(Found {
        there,
        registrations,
    })
}

/// The cluster's registration and the first repository that has it, if any has that was looked into.
fn known_identity(
    request: &InitRequest,
    facts: &Facts,
    looked: &[Result<Found, InitError>],
) -> Result<Option<(String, IdentityDocument)>, InitError> {
    let mut known: Option<(&String, &IdentityDocument)> = None;
    let mut others: Vec<SystemIdentifier> = Vec::new();
    for (settings, found) in request.repositories.iter().zip(looked) {
        let Ok(found) = found else { continue };
        for registration in &found.registrations {
            if registration.system_identifier != facts.system {
                others.push(registration.system_identifier);
                continue;
            }
            match known {
                Some((name, first)) if first.archive_id != registration.archive_id => {
                    return Err(InitError::TwoArchives {
                        cluster: request.cluster.clone(),
                        repositories: [name.clone(), settings.name.clone()],
                        ids: [first.archive_id, registration.archive_id],
                    });
                }
                Some(_) => {}
                None => known = Some((&settings.name, registration)),
            }
        }
    }
    if known.is_none() && !others.is_empty() && !request.new_system_identifier {
        others.sort_unstable();
        others.dedup();
        return Err(InitError::OtherSystem {
            cluster: request.cluster.clone(),
            known: others,
            found: facts.system,
            pgdata: request.pgdata.clone(),
        });
    }
    Ok(known.map(|(name, identity)| (name.clone(), identity.clone())))
}
/// The repositories as they were found, if not one of them is out.
fn all_known(
    request: &InitRequest,
    looked: Vec<Result<Found, InitError>>,
) -> Result<Vec<Result<Found, InitError>>, InitError> {
    let alone = looked.len() == 1;
    let mut known = Vec::new();
    for (settings, found) in request.repositories.iter().zip(looked) {
        known.push(Ok(found.map_err(|source| match alone {
            true => source,
            false => InitError::MayBeThere {
                repository: settings.name.clone(),
                cluster: request.cluster.clone(),
                source: Box::new(source),
            },
        })?));
    }
    Ok(known)
}

/// Makes the repository where there is none, and registers the cluster; gives what is registered there.
async fn register(
    settings: &RepositorySettings,
    found: Found,
    identity: &IdentityDocument,
) -> Result<(Registered, IdentityDocument), InitError> {
    #[cfg(feature = "s3")]
    prove_create_only(settings).await?;
    let (repository, root, made) = match found.there {
        Some((repository, root)) => (repository, root, false),
        None => make(settings).await?,
    };
    let report = |registered| Registered {
        name: settings.name.clone(),
        place: settings.place.clone(),
        id: root.repository_id,
        made,
        registered,
    };
    let system = identity.system_identifier;
    let mut registrations = found.registrations.into_iter();
    if let Some(known) = registrations.find(|known| known.system_identifier == system) {
        return Ok((report(false), known));
    }
    let key = keys::identity(&identity.cluster, system);
    match repository.put_document(&key, identity).await {
        Ok(()) => Ok((report(true), identity.clone())),
        Err(e) if e.is_already_exists() => {
            let theirs = repository.registration(&identity.cluster, system).await?;
            Ok((report(false), theirs))
        }
        Err(e) => Err(e.into()),
    }
}

/// Makes the folder, where it is one, and the root document. A crash between the two leaves an empty folder, which the next call fills.
async fn make(
    settings: &RepositorySettings,
) -> Result<(Repository, RepositoryDocument, bool), InitError> {
    if let Place::Folder(path) = &settings.place {
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
    /// A registration of its own.
    fn identity(&self, request: &InitRequest) -> IdentityDocument {
        IdentityDocument {
            cluster: request.cluster.clone(),
            system_identifier: self.system,
            archive_id: host::random_id(),
            wal_segment_size: self.segment_size,
            pg_version: self.major,
            created_at: Timestamp::now(),
            host: host::host_name(),
            encryption: match request
                .repositories
                .iter()
                .any(|known| known.keys.encrypts())
            {
                true => Encryption::Age,
                false => Encryption::None,
            },
        }
    }

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
