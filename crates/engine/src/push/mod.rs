//! `walden-wal-push`: stores one WAL file, once and durably. The contract is that of `archive_command`
//! (PostgreSQL: backup/shell_archive.c, postmaster/pgarch.c).

mod compare;
mod source;

use std::path::PathBuf;
use std::sync::Arc;

use walden_model::{
    ClusterName, Head, HeadKind, IdentityDocument, SystemKeys, Tail, WalName, Writer, keys,
};
use walden_pg::{Lsn, SegmentMismatch, SystemIdentifier, WalFileName};
use walden_store::{PutMode, StoreErrorKind};

use crate::codec::{CodecError, MAX_FRAME_CONTENT, encode_head, encode_tail};
use crate::repository::{Repository, RepositoryError, RepositorySettings};
use crate::{host, pipeline};
use compare::Comparison;
use source::{SourceError, WalSource};

/// What to push, and where.
#[derive(Debug, Clone)]
pub struct PushRequest {
    /// The repository.
    pub repository: RepositorySettings,
    /// The cluster's name in it.
    pub cluster: ClusterName,
    /// The file, as PostgreSQL gives it in `%p`.
    pub path: PathBuf,
    /// PGDATA, where it is neither the working directory nor above the file's `pg_wal`.
    pub pgdata: Option<PathBuf>,
    /// zstd's level.
    pub level: i32,
    /// Set the file aside under `quarantine/` instead of archiving it: a person's way out of a conflict.
    pub quarantine: bool,
}

/// What became of the file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum PushOutcome {
    /// It is stored now.
    Stored,
    /// It was there already, with the same bytes.
    AlreadyThere,
    /// Other bytes are archived under its name, and a person had set these aside: nothing more to do.
    SetAside,
}

/// A push that succeeded.
#[derive(Debug, Clone)]
pub struct PushReport {
    /// The file's name.
    pub file: WalFileName,
    /// Its key in the repository.
    pub key: String,
    /// What became of it.
    pub outcome: PushOutcome,
    /// Bytes of the file.
    pub size: u64,
    /// Bytes stored by this call.
    pub stored: u64,
    /// What a person should know although nothing failed.
    pub warning: Option<String>,
}

/// Why a push failed. The file stays with PostgreSQL, which will try again.
#[derive(Debug, thiserror::Error)]
pub enum PushError {
    /// The name is not one of a WAL file.
    #[error("{} does not name a WAL file; walden-wal-push takes what PostgreSQL gives for %p", path.display())]
    Name {
        /// The path.
        path: PathBuf,
        /// Why.
        #[source]
        source: walden_pg::wal_name::ParseWalNameError,
    },
    /// The file cannot be read.
    #[error("cannot read {}", path.display())]
    Read {
        /// The path.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// The file changed between its beginning and its end.
    #[error("{} changed while it was read; it was not archived", path.display())]
    Changed {
        /// The path.
        path: PathBuf,
    },
    /// The content does not fit the name.
    #[error("{} is not what its name says; it was not archived", path.display())]
    Mismatch {
        /// The path.
        path: PathBuf,
        /// Which statement of the header contradicts.
        #[source]
        source: SegmentMismatch,
    },
    /// No control file to take the system identifier from.
    #[error(
        "cannot tell which cluster {file} belongs to: there is no global/pg_control in the working directory or above the file; \
         name the data directory with --pgdata"
    )]
    NoPgdata {
        /// The file.
        file: WalFileName,
    },
    /// The control file cannot be read.
    #[error("cannot tell which cluster {file} belongs to")]
    Control {
        /// The file.
        file: WalFileName,
        /// Why.
        #[source]
        source: host::ControlError,
    },
    /// The repository's own error.
    #[error("{file} was not archived")]
    Repository {
        /// The file.
        file: String,
        /// Why.
        #[source]
        source: RepositoryError,
    },
    /// Compression or encoding failed.
    #[error("{file} cannot be encoded")]
    Encode {
        /// The file.
        file: WalFileName,
        /// Why.
        #[source]
        source: CodecError,
    },
    /// Other bytes stand under the same name.
    #[error(
        "{file} is archived already with other bytes: they differ first at {difference}. \
         Archived by {theirs}; now offered by {ours}. Two servers write into one archive (a clone, or a split brain): stop one of them, or give it a \
         cluster name of its own. What is archived stays. To set this file aside under quarantine/ and let archiving go on: \
         walden-wal-push --quarantine {}", path.display()
    )]
    Conflict {
        /// The file.
        file: WalFileName,
        /// Its path.
        path: PathBuf,
        /// Where the bytes differ first.
        difference: Difference,
        /// Who wrote what is archived.
        theirs: Box<Writer>,
        /// Who offers the newcomer: this process.
        ours: Box<Writer>,
    },
    /// What is archived under this name is damaged.
    #[error(
        "{file} is archived already, but what is archived is damaged. Nothing was overwritten and the good file is still with PostgreSQL: \
         move the damaged object {key} out of the repository, and the next try archives the good one"
    )]
    DamagedObject {
        /// The file.
        file: WalFileName,
        /// The object.
        key: String,
        /// What is wrong with it.
        #[source]
        source: RepositoryError,
    },
    /// A thread of ours broke off.
    #[error("reading {} broke off inside Walden; please report this", path.display())]
    Internal {
        /// The path.
        path: PathBuf,
        /// The panic.
        #[source]
        source: tokio::task::JoinError,
    },
}

/// Where two files of one name differ first.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Difference {
    /// In WAL.
    Lsn(Lsn),
    /// In a history file.
    Byte(u64),
}

impl std::fmt::Display for Difference {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Difference::Lsn(lsn) => write!(f, "LSN {lsn}"),
            Difference::Byte(offset) => write!(f, "byte {offset}"),
        }
    }
}

/// Pushes one WAL file. `Ok` means: durable in the repository.
pub async fn push(request: &PushRequest) -> Result<PushReport, PushError> {
    let path = &request.path;
    let source = blocking(request, {
        let path = path.clone();
        move || WalSource::open(&path)
    })
    .await?
    .map_err(|e| source_error(path, e))?;
    let system = system_of(request, &source)?;
    let job = Job {
        request,
        source: Arc::new(source),
        system,
    };
    let file = job.source.file;
    job.run().await.map_err(|e| match e {
        JobError::Push(e) => *e,
        JobError::Repository(source) => PushError::Repository {
            file: file.to_string(),
            source,
        },
        JobError::Encode(source) => PushError::Encode { file, source },
    })
}

/// Runs what blocks on a thread of its own.
async fn blocking<T: Send + 'static>(
    request: &PushRequest,
    work: impl FnOnce() -> T + Send + 'static,
) -> Result<T, PushError> {
    tokio::task::spawn_blocking(work)
        .await
        .map_err(|source| PushError::Internal {
            path: request.path.clone(),
            source,
        })
}

fn source_error(path: &std::path::Path, error: SourceError) -> PushError {
    let path = path.to_path_buf();
    match error {
        SourceError::Name(source) => PushError::Name { path, source },
        SourceError::Read(source) => PushError::Read { path, source },
        SourceError::Changed => PushError::Changed { path },
        SourceError::Mismatch(source) => PushError::Mismatch { path, source },
    }
}

/// A segment says itself whose it is. History files do not, so the data directory is asked.
fn system_of(request: &PushRequest, source: &WalSource) -> Result<SystemIdentifier, PushError> {
    if let Some(facts) = &source.facts {
        return Ok(facts.header.system_identifier);
    }
    let file = source.file;
    let pgdata = host::find_pgdata(request.pgdata.as_deref(), &request.path)
        .ok_or(PushError::NoPgdata { file })?;
    host::system_identifier(&pgdata).map_err(|source| PushError::Control { file, source })
}

struct Job<'a> {
    request: &'a PushRequest,
    source: Arc<WalSource>,
    system: SystemIdentifier,
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

impl Job<'_> {
    async fn run(self) -> Result<PushReport, JobError> {
        let request = self.request;
        let repository = Repository::open(&request.repository)?;
        let identity = repository
            .registration(&request.cluster, self.system)
            .await?;
        let system_keys = SystemKeys {
            cluster: request.cluster.clone(),
            system: self.system,
        };
        let file = self.source.file;
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
        let mut report = PushReport {
            file,
            outcome: PushOutcome::Stored,
            size: self.source.size,
            stored: 0,
            warning: self.source.warning(),
            key,
        };
        match self
            .store(&repository, &identity, &report.key, digest)
            .await
        {
            Ok(stored) => report.stored = stored,
            Err(JobError::Repository(e)) if e.is_already_exists() => {
                report.outcome = self
                    .settle(&repository, &identity, &system_keys, &report.key)
                    .await?;
            }
            Err(e) => return Err(e),
        }
        Ok(report)
    }

    async fn digest(&self) -> Result<walden_model::Sha256Digest, JobError> {
        let source = self.source.clone();
        let read = blocking(self.request, move || {
            source.read(MAX_FRAME_CONTENT, |_| Ok(()))
        })
        .await?;
        Ok(read.map_err(|e| source_error(&self.request.path, e))?)
    }

    /// Reads, hashes, compresses and uploads in one pass, and puts the object in place. Gives the stored bytes.
    async fn store(
        &self,
        repository: &Repository,
        identity: &IdentityDocument,
        key: &str,
        digest: Option<walden_model::Sha256Digest>,
    ) -> Result<u64, JobError> {
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

        let frames_wanted = self.source.size.div_ceil(MAX_FRAME_CONTENT as u64);
        let workers = host::cores()
            .min(usize::try_from(frames_wanted).unwrap_or(usize::MAX))
            .max(1);
        let (sink, mut frames) = pipeline::start(self.request.level, workers);
        let source = self.source.clone();
        let reading = tokio::task::spawn_blocking(move || {
            source.read(MAX_FRAME_CONTENT, |content| {
                sink.push(content).map_err(std::io::Error::other)
            })
        });
        let mut tail = Tail {
            content_size: self.source.size,
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
            path: self.request.path.clone(),
            source,
        };
        let content = reading
            .await
            .map_err(internal)?
            .map_err(|e| source_error(&self.request.path, e))?;
        if digest.is_some_and(|before| before != content) {
            return Err(PushError::Changed {
                path: self.request.path.clone(),
            }
            .into());
        }
        tail.sha256 = Some(content);
        let (tail, _) = encode_tail(&tail)?;
        stored += tail.len() as u64;
        upload.write(tail.into()).await.map_err(failed)?;
        upload.commit().await.map_err(failed)?;
        Ok(stored)
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
        let damaged = |source| PushError::DamagedObject {
            file,
            key: key.to_owned(),
            source,
        };
        let comparison = compare::compare(repository, identity, key, &self.source)
            .await
            .map_err(|e| {
                if e.trouble() == crate::repository::Trouble::Damage {
                    damaged(e).into()
                } else {
                    JobError::from(e)
                }
            })?;
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
                path: self.request.path.clone(),
                difference: self.source.difference_at(offset),
                theirs: Box::new(theirs),
                ours: Box::new(host::writer()),
            }
            .into()),
        }
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
