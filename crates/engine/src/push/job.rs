//! One file's way into the repository.

use std::future::Future;
use std::path::PathBuf;
use std::sync::Arc;

use walden_model::index::{IndexedObject, SegmentIndex, SegmentIndexer, StopReason};
use walden_model::{Head, HeadKind, IdentityDocument, SystemKeys, Tail, WalName, keys};
use walden_pg::{SystemIdentifier, WalFileName};
use walden_store::{PutMode, StoreErrorKind};

use super::compare::{self, Comparison};
use super::error::source_error;
use super::mark::Statement;
use super::source::WalSource;
use super::{PushError, PushOutcome, PushReport, PushRequest};
use crate::codec::{CodecError, encode_head, encode_tail};
use crate::host;
use crate::pipeline::Compressors;
use crate::repository::{Repository, RepositoryError, Trouble};

/// Content of a frame. A segment gives enough of them for every core, and what a compressor and a stream have in memory grows with it.
const FRAME: usize = 1024 * 1024;

/// A WAL file on its way.
pub(super) struct Job<'a> {
    pub request: &'a PushRequest,
    pub source: Arc<WalSource>,
    path: PathBuf,
    system: SystemIdentifier,
}

/// How to store it.
#[derive(Debug, Clone)]
pub(super) struct Way {
    /// What compresses, for this file and others.
    pub compressors: Compressors,
    /// Frames under way at once.
    pub depth: usize,
}

enum JobError {
    Push(Box<PushError>),
    Repository(RepositoryError),
    Encode(CodecError),
}

impl From<PushError> for JobError {
    fn from(error: PushError) -> Self {
        JobError::Push(Box::new(error))
    }
}

impl From<RepositoryError> for JobError {
    fn from(error: RepositoryError) -> Self {
        JobError::Repository(error)
    }
}

impl From<CodecError> for JobError {
    fn from(error: CodecError) -> Self {
        JobError::Encode(error)
    }
}

/// Runs what blocks on a thread of its own.
pub(super) async fn blocking<T: Send + 'static>(
    path: &std::path::Path,
    work: impl FnOnce() -> T + Send + 'static,
) -> Result<T, PushError> {
    tokio::task::spawn_blocking(work)
        .await
        .map_err(|source| PushError::Internal {
            path: path.to_owned(),
            source,
        })
}

/// A segment says itself whose it is. History files do not, so the data directory is asked.
fn system_of(
    request: &PushRequest,
    path: &std::path::Path,
    source: &WalSource,
) -> Result<SystemIdentifier, PushError> {
    if let Some(facts) = &source.facts {
        return Ok(facts.header.system_identifier);
    }
    let file = source.file;
    let pgdata =
        host::find_pgdata(request.pgdata.as_deref(), path).ok_or(PushError::NoPgdata { file })?;
    host::system_identifier(&pgdata).map_err(|source| PushError::Control { file, source })
}

/// A segment that was damaged before it came here is the only one there is, and so archived all the same; somebody should know.
fn damage(index: &SegmentIndex) -> Option<String> {
    let stopped = index.stopped?;
    (stopped.why == StopReason::Damaged).then(|| {
        format!(
            "damaged before it was archived: what stands at {} is no WAL record, and recovery will end there. It is archived as it is; \
            take a new base backup, and look at the disk",
            stopped.at
        )
    })
}

impl<'a> Job<'a> {
    /// Opens the file and checks that it is what its name says.
    pub async fn open(request: &'a PushRequest, path: PathBuf) -> Result<Self, PushError> {
        let opened = blocking(&path, {
            let path = path.clone();
            move || WalSource::open(&path)
        });
        let source = opened.await?.map_err(|e| source_error(&path, e))?;
        let system = system_of(request, &path, &source)?;
        Ok(Job {
            request,
            source: Arc::new(source),
            path,
            system,
        })
    }

    /// What failed in the repository, as the push's error.
    pub fn failed(&self, source: RepositoryError) -> PushError {
        PushError::Repository {
            file: self.source.file.to_string(),
            source,
        }
    }

    pub fn report(&self, key: String, outcome: PushOutcome) -> PushReport {
        PushReport {
            file: self.source.file,
            key,
            outcome,
            size: self.source.size,
            stored: 0,
            taken_along: 0,
            warning: self.source.warning(),
        }
    }

    fn keys(&self) -> SystemKeys {
        SystemKeys {
            cluster: self.request.cluster.clone(),
            system: self.system,
        }
    }

    /// What can be said now of the file and of its object in the repository; `None` where the object is not there, or where the name does
    /// not lead to one object alone.
    ///
    /// # Errors
    /// Where the repository does not answer: whoever would store the file then waits for the same in vain.
    pub async fn statement(
        &self,
        repository: &Repository,
    ) -> Result<Option<(String, String)>, RepositoryError> {
        let Some(name) = WalName::of_file(self.source.file) else {
            return Ok(None);
        };
        let key = self.keys().wal(&name);
        let place = repository.key(&key)?;
        // At once: in a bucket each waits for an answer.
        let object = repository.store().head(&place);
        let (root, object) = futures::join!(repository.root(), object);
        let (root, object) = match (root, object.map_err(|e| repository.failed(e))) {
            (Ok(root), Ok(object)) => (root, object),
            (Err(error), _) | (_, Err(error)) => {
                return match error.trouble() {
                    Trouble::Outage => Err(error),
                    _ => Ok(None),
                };
            }
        };
        let statement = Statement {
            file: self.source.file,
            stamp: &self.source.stamp,
            system: self.system,
            cluster: &self.request.cluster,
            location: &repository.location(),
            repository: root.repository_id,
            object: &object,
        };
        Ok(Some((key, statement.to_string())))
    }

    /// Stores the file. Its object gets its name no sooner than `turn` has come.
    pub async fn run(
        &self,
        repository: &Repository,
        way: &Way,
        turn: impl Future<Output = ()>,
    ) -> Result<PushReport, PushError> {
        let outcome = self.archive(repository, way, turn).await;
        outcome.map_err(|e| match e {
            JobError::Push(e) => *e,
            JobError::Repository(source) => self.failed(source),
            JobError::Encode(source) => PushError::Encode {
                file: self.source.file,
                source,
            },
        })
    }

    async fn archive(
        &self,
        repository: &Repository,
        way: &Way,
        turn: impl Future<Output = ()>,
    ) -> Result<PushReport, JobError> {
        let request = self.request;
        let identity = repository
            .registration(&request.cluster, self.system)
            .await?;
        let system_keys = self.keys();
        let file = self.source.file;
        self.check_size(&identity)?;
        if request.quarantine
            && let Some(archived) = self.not_in_conflict(repository, &identity).await?
        {
            return Ok(self.report(archived, PushOutcome::AlreadyThere));
        }
        // The keys of partial files and of quarantine hold a piece of the digest, so those are read once more, before.
        let digest = match file {
            WalFileName::Partial(_) => Some(self.digest().await?),
            _ if request.quarantine => Some(self.digest().await?),
            _ => None,
        };
        let key = match (&digest, WalName::of_file(file)) {
            (Some(digest), _) if request.quarantine => system_keys.quarantine(&file, digest),
            (Some(digest), _) => system_keys.wal(&WalName::new(file, digest)),
            (None, Some(name)) => system_keys.wal(&name),
            (None, None) => {
                return Err(CodecError::Damaged {
                    what: format!("{file} has no key"),
                }
                .into());
            }
        };
        let mut report = self.report(key, PushOutcome::Stored);
        let stored = self
            .store(repository, &identity, &report.key, digest, way, turn)
            .await;
        match stored {
            Ok((stored, warning)) => {
                report.stored = stored;
                report.warning = report.warning.or(warning);
            }
            Err(JobError::Repository(e)) if e.is_already_exists() => {
                report.outcome = match self
                    .settle(repository, &identity, &system_keys, &report.key)
                    .await
                {
                    // Nothing stands there: it is claimed, which the store's own error explains.
                    Err(JobError::Repository(none)) if none.trouble() == Trouble::Absent => {
                        return Err(e.into());
                    }
                    settled => settled?,
                };
            }
            Err(e) => return Err(e),
        }
        Ok(report)
    }

    async fn digest(&self) -> Result<walden_model::Sha256Digest, JobError> {
        let source = self.source.clone();
        let read = blocking(&self.path, move || source.digest()).await?;
        Ok(read.map_err(|e| source_error(&self.path, e))?)
    }

    /// Reads, hashes, indexes, compresses and uploads in one pass, and puts the object in place. Gives the stored bytes, and what a person
    /// should know of the file.
    async fn store(
        &self,
        repository: &Repository,
        identity: &IdentityDocument,
        key: &str,
        digest: Option<walden_model::Sha256Digest>,
        way: &Way,
        turn: impl Future<Output = ()>,
    ) -> Result<(u64, Option<String>), JobError> {
        let head = encode_head(&Head::new(
            HeadKind::Wal,
            identity.archive_id,
            keys::below_cluster(key),
            Some(self.source.size),
            host::writer(),
        ))?;
        let failed = |e| JobError::Repository(repository.failed(e));
        let mut upload = repository
            .store()
            .begin(&repository.key(key)?, PutMode::Create)
            .await
            .map_err(failed)?;
        let mut stored = head.len() as u64;
        upload.write(head.into()).await.map_err(failed)?;

        let (sink, mut frames) = way.compressors.stream(way.depth);
        let source = self.source.clone();
        let reading = tokio::task::spawn_blocking(move || {
            let mut indexer = source.indexer();
            let digest = source.read(FRAME, |content| {
                if let Some(indexer) = &mut indexer {
                    indexer.feed(&content);
                }
                sink.push(content).map_err(std::io::Error::other)
            })?;
            Ok((digest, indexer.map(SegmentIndexer::finish)))
        });
        let mut tail = Tail {
            content_size: self.source.size,
            index: None,
            sha256: None,
            frames: Vec::new(),
        };
        while let Some(frame) = frames.next().await {
            let frame = frame?;
            stored += frame.stored.len() as u64;
            tail.frames.push(frame.entry);
            upload.write(frame.stored.into()).await.map_err(failed)?;
        }
        let internal = |source| PushError::Internal {
            path: self.path.clone(),
            source,
        };
        let (content, index) = reading
            .await
            .map_err(internal)?
            .map_err(|e| source_error(&self.path, e))?;
        if digest.is_some_and(|before| before != content) {
            return Err(PushError::Changed {
                path: self.path.clone(),
            }
            .into());
        }
        tail.sha256 = Some(content);
        let warning = index.as_ref().and_then(damage);
        let of = IndexedObject {
            archive_id: identity.archive_id,
            key: keys::below_cluster(key).to_owned(),
        };
        tail.index = index.map(|index| {
            Box::new(SegmentIndex {
                of: Some(of),
                ..index
            })
        });
        let (tail, _) = encode_tail(&tail)?;
        stored += tail.len() as u64;
        upload.write(tail.into()).await.map_err(failed)?;
        // Not its bytes: the head names this call, and a call that was cut off comes again as another one.
        upload.means(content.0);
        turn.await;
        upload.commit().await.map_err(failed)?;
        Ok((stored, warning))
    }

    /// The name is taken. The same bytes are a success once they are surely durable: whoever wrote them may have been killed
    /// before the last fsync. Other bytes are a conflict, unless a person has set the newcomer aside.
    async fn settle(
        &self,
        repository: &Repository,
        identity: &IdentityDocument,
        system_keys: &SystemKeys,
        key: &str,
    ) -> Result<PushOutcome, JobError> {
        let file = self.source.file;
        let comparison = self.compare(repository, identity, key).await?;
        let (offset, theirs) = match comparison {
            Comparison::Same => {
                self.confirm(repository, key).await?;
                return Ok(PushOutcome::AlreadyThere);
            }
            Comparison::Different { offset, writer } => (offset, writer),
        };
        let digest = self.digest().await?;
        let aside = system_keys.quarantine(&file, &digest);
        match compare::compare(repository, identity, &aside, &self.source).await {
            Ok(Comparison::Same) => {
                self.confirm(repository, &aside).await?;
                Ok(PushOutcome::SetAside)
            }
            _ => Err(PushError::Conflict {
                file,
                path: self.path.clone(),
                difference: self.source.difference_at(offset),
                theirs: Box::new(theirs),
                ours: Box::new(host::writer()),
            }
            .into()),
        }
    }

    /// A segment of another size than the registered one would be read by its name as another stretch of the log.
    fn check_size(&self, identity: &IdentityDocument) -> Result<(), PushError> {
        let registered = identity.wal_segment_size;
        match self.source.facts.as_ref().map(|facts| facts.size) {
            Some(found) if found != registered => Err(PushError::SegmentSize {
                file: self.source.file,
                registered,
                found,
            }),
            _ => Ok(()),
        }
    }

    /// Only what is in conflict may be set aside: everything else would be missing from the archive while PostgreSQL hears that it is safe.
    /// Gives the key under which the same bytes are archived, if they are.
    async fn not_in_conflict(
        &self,
        repository: &Repository,
        identity: &IdentityDocument,
    ) -> Result<Option<String>, JobError> {
        let file = self.source.file;
        let no_conflict = || PushError::NoConflict { file };
        let name = WalName::of_file(file).ok_or_else(no_conflict)?;
        let archived = self.keys().wal(&name);
        match self.compare(repository, identity, &archived).await {
            Ok(Comparison::Same) => {
                self.confirm(repository, &archived).await?;
                Ok(Some(archived))
            }
            Ok(Comparison::Different { .. }) => Ok(None),
            Err(JobError::Repository(e)) if e.trouble() == Trouble::Absent => {
                Err(no_conflict().into())
            }
            Err(e) => Err(e),
        }
    }

    async fn compare(
        &self,
        repository: &Repository,
        identity: &IdentityDocument,
        key: &str,
    ) -> Result<Comparison, JobError> {
        let compared = compare::compare(repository, identity, key, &self.source).await;
        compared.map_err(|source| match source.trouble() {
            Trouble::Damage => PushError::DamagedObject {
                file: self.source.file,
                key: key.to_owned(),
                source,
            }
            .into(),
            _ => source.into(),
        })
    }

    async fn confirm(&self, repository: &Repository, key: &str) -> Result<(), JobError> {
        match repository
            .store()
            .confirm_durable(&repository.key(key)?)
            .await
        {
            // Gone in between: the next try stores it.
            Err(e) if e.kind() == StoreErrorKind::NotFound => Err(repository.failed(e).into()),
            other => Ok(other.map_err(|e| repository.failed(e))?),
        }
    }
}
