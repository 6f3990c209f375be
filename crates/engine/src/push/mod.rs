//! `walden-wal-push`: stores one WAL file, once and durably. The contract is that of `archive_command`
//! (PostgreSQL: backup/shell_archive.c, postmaster/pgarch.c).
//!
//! The archiver asks for one file at a time. While Walden is at it, it also takes the next ready ones, and marks those that are durable,
//! so that their own calls return at once.

mod ahead;
mod compare;
mod error;
mod job;
mod mark;
mod source;

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use walden_model::{ClusterName, Sha256Digest};
use walden_pg::WalFileName;

pub use error::{Difference, PushError};

use crate::repository::RepositorySettings;
use error::source_error;
use job::Job;
use source::WalSource;

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

/// What became of the file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PushOutcome {
    /// It is stored now.
    Stored,
    /// It was there already, with the same bytes.
    AlreadyThere,
    /// An earlier call took it along, and it is there.
    TakenAlong,
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

/// Pushes one WAL file. `Ok` means: durable in the repository.
pub async fn push(request: &PushRequest) -> Result<PushReport, PushError> {
    let begun = Instant::now();
    let job = Job::open(request, request.path.clone()).await?;
    ahead::push(job, begun).await
}
