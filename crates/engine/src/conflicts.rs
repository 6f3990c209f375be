//! `walden conflicts`: WAL files of one name and different content, and what a person says of them. Two servers have written into one archive: a
//! clone, or a split brain.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{Arc, Mutex, PoisonError};

use walden_model::unarchived::Compared;
use walden_model::{
    Catalog, ClusterName, Event, EventBody, HeadKind, IdentityDocument, RandomId, Resolved,
    Sha256Digest, ShortDigest, SystemKeys, WalName, Whose, Writer, keys,
};
use walden_pg::{Lsn, SegmentName, SystemIdentifier, WalFileName};

use crate::archive::Archive;
use crate::catalog::{self, CatalogError, InConflict};
use crate::codec::{Expected, keyed};
use crate::event;
use crate::host;
use crate::index::unless_unusable;
use crate::push::{self, Difference, PushError};
use crate::push_missing::{self, PushMissingError};
use crate::repository::{Repository, RepositoryError, RepositorySettings, Trouble};

/// Portions of one file's content that wait for the other's.
const DEPTH: usize = 4;

/// Whose conflicts to show.
#[derive(Debug, Clone)]
pub struct ConflictsRequest {
    /// The repositories: each is looked at.
    pub repositories: Vec<RepositorySettings>,
    /// The cluster's name in them.
    pub cluster: ClusterName,
    /// Which of its system identifiers; without one, that which was registered last.
    pub system: Option<SystemIdentifier>,
    /// A data directory: what its archiver is refused is shown, too.
    pub pgdata: Option<PathBuf>,
}

/// The conflicts in one repository.
#[derive(Debug)]
pub struct RepositoryConflicts {
    /// The repository.
    pub repository: String,
    /// Whose.
    pub system: SystemIdentifier,
    /// Files that were set aside, with the archived ones.
    pub set_aside: Vec<Conflict>,
    /// Files that wait for the archiver, and that it is refused.
    pub refused: Vec<Refused>,
    /// Segments of which several partial files are archived: that many servers left a timeline in them. No harm is in that.
    pub partials: BTreeMap<SegmentName, usize>,
}

/// An archived file, and another of its name in quarantine.
#[derive(Debug)]
pub struct Conflict {
    /// The name.
    pub file: WalFileName,
    /// The archived one.
    pub archived: Side,
    /// The other.
    pub aside: Side,
    /// Where they differ first, if both can be read.
    pub difference: Option<Difference>,
    /// What a person said last.
    pub decision: Option<Event<Resolved>>,
}

/// One of two files.
#[derive(Debug)]
pub struct Side {
    /// Its key.
    pub key: String,
    /// What it holds, and who wrote it; or why it cannot be read.
    pub read: Result<SideFacts, String>,
}

/// What a stored file says of itself.
#[derive(Debug)]
pub struct SideFacts {
    /// Bytes of content.
    pub size: u64,
    /// The content's digest.
    pub sha256: Option<Sha256Digest>,
    /// Who wrote it.
    pub writer: Writer,
}

/// A file that the archiver is refused.
#[derive(Debug)]
pub struct Refused {
    /// The name.
    pub file: WalFileName,
    /// Where it differs first from the archived one, and who wrote that; or why that cannot be told.
    pub archived: Result<(Difference, Writer), String>,
}

/// Why there is nothing to show.
#[derive(Debug, thiserror::Error)]
pub enum ConflictsError {
    /// The repository's own error.
    #[error("cannot look for conflicts")]
    Repository(#[from] RepositoryError),
    /// The cluster.
    #[error("cannot look for conflicts")]
    Catalog(#[from] CatalogError),
    /// The data directory is another cluster's.
    #[error("{} belongs to system identifier {found}, and the repository was asked for {expected}", pgdata.display())]
    OtherSystem {
        /// The data directory.
        pgdata: PathBuf,
        /// Whose it is.
        found: SystemIdentifier,
        /// Who was asked for.
        expected: SystemIdentifier,
    },
    /// The data directory cannot be read.
    #[error("cannot tell whose {} is", pgdata.display())]
    Control {
        /// The data directory.
        pgdata: PathBuf,
        /// Why.
        #[source]
        source: host::ControlError,
    },
    /// What waits for the archiver cannot be listed.
    #[error("cannot read {}", path.display())]
    Read {
        /// The folder.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// A file that waits for the archiver cannot be compared.
    #[error("cannot compare what waits for the archiver")]
    Compare(#[source] Box<PushMissingError>),
    /// There is nothing to decide.
    #[error(
        "no file {0} was set aside, so there is nothing to decide; walden conflicts shows what there is"
    )]
    NoConflict(WalFileName),
    /// Nobody can say whose a damaged file is.
    #[error("{key} cannot be read, so nobody can tell whose it is")]
    Unreadable {
        /// Which of the two.
        key: String,
    },
}

/// What people said of files in conflict.
pub(crate) struct Decisions(Vec<Event<Resolved>>);

impl Decisions {
    /// Reads them. One that cannot be believed says nothing: what it is about stays in conflict.
    pub(crate) async fn read(
        repository: &Repository,
        keys: &SystemKeys,
        archive_id: RandomId,
    ) -> Result<Self, RepositoryError> {
        let mut decisions = Vec::new();
        for name in event::names(repository, keys).await? {
            if name.kind == Resolved::EVENT {
                let read = event::read(repository, keys, archive_id, &name).await;
                decisions.extend(unless_unusable(read)?.flatten());
            }
        }
        // Names tell seconds alone.
        decisions.sort_by_key(|decision: &Event<Resolved>| std::cmp::Reverse(decision.at));
        Ok(Self(decisions))
    }

    /// Reads them from every repository that answers. One that is not heard says nothing, either.
    pub(crate) async fn of(
        archive: &Archive,
        keys: &SystemKeys,
        archive_id: RandomId,
    ) -> Result<Self, RepositoryError> {
        let mut decisions = Vec::new();
        for repository in archive.repositories() {
            match Self::read(repository, keys, archive_id).await {
                Ok(Self(read)) => decisions.extend(read),
                Err(e) if archive.has_several() && e.trouble() == Trouble::Outage => {}
                Err(e) => return Err(e),
            }
        }
        decisions.sort_by_key(|decision| std::cmp::Reverse(decision.at));
        Ok(Self(decisions))
    }

    /// The last one about these two.
    fn last(
        &self,
        file: WalFileName,
        archived: &Sha256Digest,
        aside: ShortDigest,
    ) -> Option<&Event<Resolved>> {
        // The newest stands first.
        let mut decisions = self.0.iter();
        decisions.find(|decision| decision.body.is_of(file, archived, aside))
    }

    /// Whether the archived file may be recovered with.
    pub(crate) fn are_ours(
        &self,
        file: WalFileName,
        archived: &Sha256Digest,
        aside: ShortDigest,
    ) -> bool {
        self.last(file, archived, aside)
            .is_some_and(|decision| decision.body.archived_is == Whose::Ours)
    }
}

/// An open repository, and whose conflicts are meant in it.
struct Place {
    repository: Repository,
    identity: IdentityDocument,
    keys: SystemKeys,
}

impl Place {
    async fn open(
        settings: &RepositorySettings,
        cluster: &ClusterName,
        system: Option<SystemIdentifier>,
    ) -> Result<Self, ConflictsError> {
        let repository = Repository::open(settings).await?;
        let identity = catalog::registration(&repository, cluster, system).await?;
        let keys = SystemKeys {
            cluster: cluster.clone(),
            system: identity.system_identifier,
        };
        Ok(Self {
            repository,
            identity,
            keys,
        })
    }

    fn expected(&self, key: &str) -> Expected {
        Expected {
            kind: HeadKind::Wal,
            archive_id: self.identity.archive_id,
            key: keys::below_cluster(key).to_owned(),
        }
    }

    async fn decisions(&self) -> Result<Decisions, RepositoryError> {
        Decisions::read(&self.repository, &self.keys, self.identity.archive_id).await
    }

    /// Reads both files at the same time, in portions, and holds one against the other.
    async fn compare(&self, found: &InConflict) -> Result<Conflict, RepositoryError> {
        let key = self.keys.wal(&found.name);
        let (send, receive) = sync_channel(DEPTH);
        let first = Arc::new(Mutex::new(None));
        let mut holding = Holding {
            other: receive,
            rest: Vec::new(),
            offset: 0,
            first: first.clone(),
        };
        let (archived, aside) = futures::join!(
            self.side(key, move |content| pass_on(&send, content)),
            self.side(found.aside_key.clone(), move |content| holding
                .take(&content)),
        );
        let (archived, aside) = (archived?, aside?);
        let offset = *first.lock().unwrap_or_else(PoisonError::into_inner);
        let difference = match (&archived.read, &aside.read) {
            // The shorter one is the other's beginning.
            (Ok(a), Ok(b)) => Some(offset.unwrap_or(a.size.min(b.size))),
            _ => None,
        };
        let file = found.name.file();
        Ok(Conflict {
            difference: difference.map(|offset| self.place_of(file, offset)),
            file,
            archived,
            aside,
            decision: None,
        })
    }

    async fn side(
        &self,
        key: String,
        sink: impl FnMut(Vec<u8>) -> io::Result<()> + Send + 'static,
    ) -> Result<Side, RepositoryError> {
        let read = self.repository.read_object(&key, self.expected(&key), sink);
        let read = match read.await {
            Ok(object) => Ok(SideFacts {
                size: object.tail.content_size,
                sha256: object.tail.sha256,
                writer: object.head.writer,
            }),
            Err(e) => match e.trouble() {
                Trouble::Absent | Trouble::Damage | Trouble::Configuration => {
                    Err(catalog::whole_text(&e))
                }
                Trouble::Outage | Trouble::Local => return Err(e),
            },
        };
        Ok(Side { key, read })
    }

    fn place_of(&self, file: WalFileName, offset: u64) -> Difference {
        let start = match file {
            WalFileName::Segment(name) => name.start(self.identity.wal_segment_size),
            _ => None,
        };
        start.map_or(Difference::Byte(offset), |start| {
            Difference::Lsn(Lsn(start.0.saturating_add(offset)))
        })
    }

    /// What the archiver of a data directory is refused: what waits for it and is archived with other content.
    async fn refused(
        &self,
        pgdata: &Path,
        catalog: &Catalog,
    ) -> Result<Vec<Refused>, ConflictsError> {
        let pg_wal = pgdata.join("pg_wal");
        let mut refused = Vec::new();
        for file in waiting(&pg_wal.join("archive_status"))? {
            let archived = match file {
                WalFileName::Segment(name) => {
                    let wal = catalog.wal.get(&name.timeline);
                    let number = name.number(catalog.segment_size);
                    wal.zip(number)
                        .is_some_and(|(wal, number)| wal.segments.contains_key(&number))
                }
                // Few, so each is asked for.
                WalFileName::History(_) | WalFileName::Backup { .. } => true,
                // Several of one name do not stand against each other.
                WalFileName::Partial(_) => false,
            };
            let path = pg_wal.join(file.to_string());
            let (true, Some(name)) = (archived, WalName::of_file(file)) else {
                continue;
            };
            let compared = push_missing::compare(&self.repository, catalog, file, &path).await;
            let compared = compared.map_err(|e| ConflictsError::Compare(Box::new(e)))?;
            if matches!(compared, Some(Compared::Different | Compared::Unreadable)) {
                let key = self.keys.wal(&name);
                let difference = push::difference(&self.repository, &self.identity, &key, &path);
                match difference.await {
                    Ok(Some(archived)) => refused.push(Refused {
                        file,
                        archived: Ok(archived),
                    }),
                    Ok(None) => {}
                    Err(e) => refused.push(Refused {
                        file,
                        archived: Err(unless_outage(e)?),
                    }),
                }
            }
        }
        Ok(refused)
    }
}

/// Why a file cannot be compared; but an outage is the repository's, not the file's.
fn unless_outage(error: PushError) -> Result<String, ConflictsError> {
    match error {
        PushError::Repository { source, .. }
            if matches!(source.trouble(), Trouble::Outage | Trouble::Local) =>
        {
            Err(source.into())
        }
        error => Ok(catalog::whole_text(&error)),
    }
}

/// The files that PostgreSQL has ready for its archiver, by name (xlogarchive.c, `XLogArchiveNotify`).
fn waiting(status: &Path) -> Result<Vec<WalFileName>, ConflictsError> {
    let failed = |source| ConflictsError::Read {
        path: status.to_owned(),
        source,
    };
    let mut files = Vec::new();
    for entry in fs::read_dir(status).map_err(failed)? {
        let name = entry.map_err(failed)?.file_name();
        let file = name.to_str().and_then(|name| name.strip_suffix(".ready"));
        files.extend(file.and_then(|file| file.parse::<WalFileName>().ok()));
    }
    files.sort_unstable();
    Ok(files)
}

/// Whoever compares may have seen enough, or have failed: then nobody listens, and the file is read to its end all the same.
fn pass_on(to: &SyncSender<Vec<u8>>, content: Vec<u8>) -> io::Result<()> {
    let _ = to.send(content);
    Ok(())
}

/// Holds content against another file's, both in portions of any size.
struct Holding {
    other: Receiver<Vec<u8>>,
    /// Of the other's content, what was not compared yet.
    rest: Vec<u8>,
    offset: u64,
    first: Arc<Mutex<Option<u64>>>,
}

impl Holding {
    fn take(&mut self, mut content: &[u8]) -> io::Result<()> {
        let mut first = self.first.lock().unwrap_or_else(PoisonError::into_inner);
        while first.is_none() && !content.is_empty() {
            if self.rest.is_empty() {
                match self.other.recv() {
                    Ok(more) => self.rest = more,
                    // The other one has ended.
                    Err(_) => break,
                }
            }
            let length = content.len().min(self.rest.len());
            let (now, later) = content.split_at(length);
            let differ = now.iter().zip(&self.rest).position(|(a, b)| a != b);
            *first = differ.map(|at| self.offset + at as u64);
            self.rest.drain(..length);
            self.offset += length as u64;
            content = later;
        }
        if first.is_some() {
            // The other one need not wait.
            while self.other.recv().is_ok() {}
        }
        Ok(())
    }
}

/// Shows the conflicts in each repository.
///
/// # Errors
/// A repository cannot be asked.
pub async fn conflicts(
    request: &ConflictsRequest,
) -> Result<Vec<RepositoryConflicts>, ConflictsError> {
    let mut told = Vec::new();
    for settings in &request.repositories {
        let place = Place::open(settings, &request.cluster, request.system).await?;
        let mut set_aside = Vec::new();
        let found = catalog::in_conflict(&place.repository, &place.keys).await?;
        if !found.is_empty() {
            let decisions = place.decisions().await?;
            for found in &found {
                let mut conflict = place.compare(found).await?;
                conflict.decision = found
                    .archived
                    .as_ref()
                    .and_then(|archived| decisions.last(conflict.file, archived, found.aside))
                    .cloned();
                set_aside.push(conflict);
            }
        }
        let catalog =
            catalog::load_wal(&place.repository, &request.cluster, &place.identity).await?;
        let mut partials = BTreeMap::new();
        for segment in &catalog.partials {
            *partials.entry(*segment).or_insert(0) += 1;
        }
        partials.retain(|_, count| *count > 1);
        let refused = match &request.pgdata {
            None => Vec::new(),
            Some(pgdata) => {
                let found = host::system_identifier(pgdata);
                let found = found.map_err(|source| ConflictsError::Control {
                    pgdata: pgdata.clone(),
                    source,
                })?;
                if found != place.keys.system {
                    return Err(ConflictsError::OtherSystem {
                        pgdata: pgdata.clone(),
                        found,
                        expected: place.keys.system,
                    });
                }
                place.refused(pgdata, &catalog).await?
            }
        };
        told.push(RepositoryConflicts {
            repository: place.repository.name().to_owned(),
            system: place.keys.system,
            set_aside,
            refused,
            partials,
        });
    }
    Ok(told)
}

/// What a person says.
#[derive(Debug, Clone)]
pub struct ResolveRequest {
    /// The repositories: it is written down in each that has the conflict.
    pub repositories: Vec<RepositorySettings>,
    /// The cluster's name in them.
    pub cluster: ClusterName,
    /// Which of its system identifiers; without one, that which was registered last.
    pub system: Option<SystemIdentifier>,
    /// The file.
    pub file: WalFileName,
    /// Whose the archived one is.
    pub archived_is: Whose,
}

/// Writes down whose an archived file is. Nothing is removed or overwritten; a later word counts instead of an earlier one.
///
/// # Errors
/// No such file was set aside, one of the two cannot be read, or a repository does not take it.
pub async fn resolve(
    request: &ResolveRequest,
) -> Result<Vec<(String, Event<Resolved>)>, ConflictsError> {
    let mut written = Vec::new();
    for settings in &request.repositories {
        let place = Place::open(settings, &request.cluster, request.system).await?;
        for found in catalog::in_conflict(&place.repository, &place.keys).await? {
            if found.name.file() != request.file {
                continue;
            }
            // Both as wholes, not by what their tails say: this is what recovery will rely on.
            let conflict = place.compare(&found).await?;
            let digest = |side: &Side| {
                let facts = side.read.as_ref().ok();
                facts
                    .and_then(|facts| facts.sha256)
                    .ok_or_else(|| ConflictsError::Unreadable {
                        key: side.key.clone(),
                    })
            };
            let archive_id = place.identity.archive_id;
            // The word stands in clear: of an encrypted file it tells the keyed digest.
            let named = |content: Sha256Digest, piece: Option<ShortDigest>| match piece {
                Some(piece) if piece != content.short() => {
                    Sha256Digest(keyed(archive_id, &content).0)
                }
                _ => content,
            };
            let archived = found.archived.map(|digest| digest.short());
            let resolved = Resolved {
                file: request.file,
                archived: named(digest(&conflict.archived)?, archived),
                aside: named(digest(&conflict.aside)?, Some(found.aside)),
                archived_is: request.archived_is,
            };
            let event = event::append(&place.repository, &place.keys, archive_id, resolved).await?;
            written.push((place.repository.name().to_owned(), event));
        }
    }
    match written.is_empty() {
        true => Err(ConflictsError::NoConflict(request.file)),
        false => Ok(written),
    }
}
