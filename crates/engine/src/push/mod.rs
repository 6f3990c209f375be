//! `walden-wal-push`: stores one WAL file, once and durably. The contract is that of `archive_command`
//! (PostgreSQL: backup/shell_archive.c, postmaster/pgarch.c).
//!
//! The archiver asks for one file at a time. While Walden is at it, it also takes the next ready ones, and marks those that are durable,
//! so that their own calls return at once.

mod ahead;
mod compare;
mod destination;
mod error;
mod job;
mod mark;
mod settle;
mod source;

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use walden_model::{ClusterName, IdentityDocument, Sha256Digest, Writer};
use walden_pg::WalFileName;

pub use error::{Difference, PushError};

use crate::catalog;
use crate::repository::{Repository, RepositorySettings};
use compare::Comparison;
use error::source_error;
use job::{Job, JobError};
use source::WalSource;

/// What to push, and where.
#[derive(Debug, Clone)]
pub struct PushRequest {
    /// The repositories, of which those that are required must have the file in the end.
    pub repositories: Vec<RepositorySettings>,
    /// The cluster's name in them.
    pub cluster: ClusterName,
    /// The file, as PostgreSQL gives it in `%p`.
    pub path: PathBuf,
    /// PGDATA, where it is neither the working directory nor above the file's `pg_wal`.
    pub pgdata: Option<PathBuf>,
    /// zstd's level.
    pub level: i32,
    /// Set the file aside under `quarantine/` instead of archiving it: a person's way out of a conflict.
    pub quarantine: bool,
    /// How long a file waits for repositories that are not required once the others have it.
    pub optional_wait: Duration,
    /// What else to take along.
    pub ahead: Ahead,
}

/// How far a push looks ahead.
#[derive(Debug, Clone, Copy)]
pub struct Ahead {
    /// How many of the next ready files it takes along; 0: none.
    pub files: usize,
    /// zstd's level while more than that many files wait, where it is to be another one.
    pub backlog_level: Option<i32>,
    /// After this time no further file is begun; after four times this time those that are begun are given up.
    pub time: Duration,
}

/// What became of the file. Where several repositories are required, the last of these that holds for one of them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum PushOutcome {
    /// It was there already, with the same bytes.
    AlreadyThere,
    /// An earlier call took it along, and it is there.
    TakenAlong,
    /// It is stored now.
    Stored,
    /// Other bytes are archived under its name, and a person had set these aside: nothing more to do.
    SetAside,
}

/// A repository that is not required, and lacks the file.
#[derive(Debug)]
pub struct Lacking {
    /// Its name.
    pub repository: String,
    /// The object that it lacks.
    pub key: String,
    /// Why.
    pub why: PushError,
}

impl std::fmt::Display for Lacking {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(
            f,
            "repository \"{}\", which is not required, lacks {}: {}",
            self.repository,
            self.key,
            catalog::whole_text(&self.why)
        )
    }
}

/// A push that succeeded.
#[derive(Debug)]
pub struct PushReport {
    /// The file's name.
    pub file: WalFileName,
    /// Its key in every repository.
    pub key: String,
    /// What became of it.
    pub outcome: PushOutcome,
    /// Bytes of the file.
    pub size: u64,
    /// Bytes of the object, if this call stored it.
    pub stored: u64,
    /// The repositories that have it; none are told where an earlier call took it along.
    pub stored_in: Vec<String>,
    /// Those that do not, none of which is required.
    pub lacking: Vec<Lacking>,
    /// Further files that this call made durable.
    pub taken_along: usize,
    /// What a person should know although nothing failed.
    pub warning: Option<String>,
}

/// The digest of a WAL file that is what its name says.
pub(crate) async fn digest(path: &Path) -> Result<Sha256Digest, PushError> {
    job::blocking(path, {
        let path = path.to_owned();
        move || {
            let digest = WalSource::open(&path).and_then(|source| source.digest());
            digest.map_err(|e| source_error(&path, e))
        }
    })
    .await?
}

/// Where a WAL file and the archived one of its name differ first, and who wrote that; `None` where they do not.
pub(crate) async fn difference(
    repository: &Repository,
    identity: &IdentityDocument,
    key: &str,
    path: &Path,
) -> Result<Option<(Difference, Writer)>, PushError> {
    let opened = job::blocking(path, {
        let path = path.to_owned();
        move || WalSource::open(&path).map_err(|e| source_error(&path, e))
    });
    let source = Arc::new(opened.await??);
    let digest = async {
        let source = source.clone();
        let read = job::blocking(path, move || source.digest()).await?;
        Ok::<_, JobError>(read.map_err(|e| source_error(path, e))?)
    };
    let compared = compare::compare(repository, identity, key, &source, digest).await;
    match compared {
        Ok(Comparison::Same) => Ok(None),
        Ok(Comparison::Different { offset, writer }) => {
            Ok(Some((source.difference_at(offset), writer)))
        }
        Err(e) => Err(e.told(source.file)),
    }
}

/// Pushes one WAL file. `Ok` means: durable in every required repository.
pub async fn push(request: &PushRequest) -> Result<PushReport, PushError> {
    let begun = Instant::now();
    let job = Job::open(request, request.path.clone()).await?;
    ahead::push(job, begun).await
}
