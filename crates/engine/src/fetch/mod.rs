//! `walden-wal-fetch`: brings one WAL file back. The contract is that of `restore_command`
//! (PostgreSQL: access/transam/xlogarchive.c, `RestoreArchivedFile`), and it is a dangerous one: PostgreSQL takes any exit from 1 to 125
//! for "the archive ends here" and may then open the database with what it has. So [`Verdict::Absent`] is only given where it is proven.
//!
//! While PostgreSQL replays, [`prefetch`] brings the next segments to where [`Ready`] hands them over.

mod absence;
mod ahead;
mod ready;

pub use absence::Hole;
pub use ahead::{PrefetchError, PrefetchRequest, prefetch};
pub use ready::Ready;

use std::fs::{self, File};
use std::io::Write;
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use walden_model::{
    ClusterName, HeadKind, IdentityDocument, Sha256Digest, SystemKeys, WalName, keys,
};
use walden_pg::history::HistoryError;
use walden_pg::wal_name::ParseWalNameError;
use walden_pg::{
    LongPageHeader, SegmentMismatch, SegmentName, SystemIdentifier, WalFileName, check_segment,
};

use crate::catalog::MAX_HISTORY;
use crate::codec::{Expected, keyed};
use crate::conflicts::Decisions;
use crate::host;
use crate::repository::{Repository, RepositoryError, RepositorySettings, Trouble};

/// What to fetch, and where to.
#[derive(Debug, Clone)]
pub struct FetchRequest {
    /// The repository.
    pub repository: RepositorySettings,
    /// The cluster's name in it.
    pub cluster: ClusterName,
    /// `%f`.
    pub name: String,
    /// `%p`.
    pub destination: PathBuf,
    /// PGDATA, where it is neither the working directory nor above the destination.
    pub pgdata: Option<PathBuf>,
    /// How long an outage is waited out before recovery is stopped. A standby asks again by itself, so there it is not.
    pub retry_for: Duration,
    /// Whether a standby stops at an outage or a damage, too. By default it goes on asking.
    pub stop_standby: bool,
}

/// A file that was brought back, whole.
#[derive(Debug, Clone)]
pub struct FetchReport {
    /// The file.
    pub file: WalFileName,
    /// Its size in bytes.
    pub size: u64,
    /// Whether it had been fetched before it was asked for.
    pub prefetched: bool,
}

/// What PostgreSQL may conclude.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// Proven: the archive is there, and neither this file nor a later one of its timeline is in it.
    Absent,
    /// The repository cannot be asked; later it may.
    Outage,
    /// What is stored is damaged, or not what its name says.
    Damage,
    /// Later segments of the timeline are there, and this one is missing.
    Hole,
    /// Called or configured wrongly.
    Configuration,
    /// This machine or Walden itself failed.
    Internal,
}

/// A fetch that brought nothing.
#[derive(Debug, thiserror::Error)]
#[error("{name} was not fetched{}", if *standby { " (this standby will ask again)" } else { "" })]
pub struct FetchFailure {
    name: String,
    standby: bool,
    verdict: Verdict,
    #[source]
    source: FetchError,
}

impl FetchFailure {
    /// What PostgreSQL may conclude.
    pub fn verdict(&self) -> Verdict {
        self.verdict
    }

    /// Whether the caller is a standby that asks for ever, so that "not now" can be told as "not there". What a person has to mend
    /// first stops a standby, too.
    pub fn standby_may_ask_again(&self) -> bool {
        self.standby
            && matches!(
                self.verdict,
                Verdict::Outage | Verdict::Damage | Verdict::Hole
            )
    }
}

/// Why nothing was fetched.
#[derive(Debug, thiserror::Error)]
pub enum FetchError {
    /// `%f` is no WAL file's name.
    #[error(
        "it does not name a WAL file; walden-wal-fetch takes what PostgreSQL gives for %f and %p"
    )]
    Name(#[source] ParseWalNameError),
    /// Proven absent.
    #[error("it is not in the archive, which ends before it")]
    Absent,
    /// A hole in the archive.
    #[error(
        "it is missing, but {0}: a hole, not the archive's end. Recovery cannot go past it; look for the file in the pg_wal of the primary \
         and of standbys (but not for the newest segment there, which may be unfinished) and push it with walden-wal-push, or restore to a target before it"
    )]
    Hole(Hole),
    /// The archive has no WAL of this cluster at all.
    #[error(
        "the repository has no WAL of this cluster at all, as if a folder below it were not mounted; nobody asks an archive that was never written to"
    )]
    EmptyArchive,
    /// An archived history file that cannot be read.
    #[error(
        "an archived history file cannot be read, so that nobody can tell whether a timeline goes on"
    )]
    History(#[source] HistoryError),
    /// No system identifier to be had.
    #[error(
        "cannot tell which of the cluster's system identifiers is meant ({}): there is no global/pg_control in the working directory or above \
         the destination; name the data directory with --pgdata", known.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ")
    )]
    WhichSystem {
        /// Those that are registered.
        known: Vec<SystemIdentifier>,
    },
    /// The control file cannot be read.
    #[error("cannot tell which cluster asks")]
    Control(#[source] host::ControlError),
    /// The repository's own error.
    #[error("the repository did not give it; PostgreSQL resumes recovery when it is started again")]
    Repository(#[source] RepositoryError),
    /// The stored segment is whole but is not what its name says.
    #[error("the archived file is not what its name says")]
    Mismatch(#[source] SegmentMismatch),
    /// The stored segment belongs to another cluster.
    #[error("the archived segment belongs to system identifier {found}, expected {expected}")]
    OtherSystem {
        /// What its header says.
        found: SystemIdentifier,
        /// Who asks.
        expected: SystemIdentifier,
    },
    /// Somebody stored more than a file of this name can have.
    #[error("the archived file is longer than any of its name: more than {most} bytes")]
    TooLong {
        /// The most it can have.
        most: u64,
    },
    /// Another file of the same name was set aside.
    #[error(
        "another server's segment of this name was set aside under quarantine/, so nobody can tell which of the two is this cluster's; \
         restore to a target before it, or from a backup that was taken after the conflict; if you know whose it is, see: walden conflicts"
    )]
    InConflict,
    /// The destination cannot be written.
    #[error("cannot write {}", path.display())]
    Write {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
}

impl FetchError {
    fn verdict(&self) -> Verdict {
        match self {
            FetchError::Absent => Verdict::Absent,
            FetchError::Hole(_) => Verdict::Hole,
            FetchError::EmptyArchive => Verdict::Outage,
            FetchError::Mismatch(_)
            | FetchError::InConflict
            | FetchError::OtherSystem { .. }
            | FetchError::TooLong { .. }
            | FetchError::History(_) => Verdict::Damage,
            FetchError::Name(_) | FetchError::WhichSystem { .. } | FetchError::Control(_) => {
                Verdict::Configuration
            }
            FetchError::Write { .. } => Verdict::Internal,
            FetchError::Repository(e) => match e.trouble() {
                // An absence of anything but the file itself (`get` tells that apart) proves nothing.
                Trouble::Absent | Trouble::Outage => Verdict::Outage,
                Trouble::Damage => Verdict::Damage,
                Trouble::Configuration => Verdict::Configuration,
                Trouble::Local => Verdict::Internal,
            },
        }
    }
}

impl From<RepositoryError> for FetchError {
    fn from(error: RepositoryError) -> Self {
        FetchError::Repository(error)
    }
}

/// The name under which a file grows beside its destination. One fixed name, so that killed calls leave one file at most, which the
/// next call overwrites; PostgreSQL never looks at it.
const GROWING: &str = ".walden";

/// Fetches one file. It appears under its destination only whole, hashed and checked.
pub async fn fetch(request: &FetchRequest) -> Result<FetchReport, FetchFailure> {
    let pgdata = host::find_pgdata(request.pgdata.as_deref(), &request.destination);
    let standby = !request.stop_standby
        && pgdata
            .as_deref()
            .is_some_and(|dir| dir.join("standby.signal").exists());
    let patience = if standby {
        Duration::ZERO
    } else {
        request.retry_for
    };
    let deadline = Instant::now() + patience;
    let request = &FetchRequest {
        repository: request.repository.clone().within(patience),
        ..request.clone()
    };
    let mut pause = Duration::from_millis(100);
    loop {
        let error = match attempt(request, pgdata.as_deref()).await {
            Ok(report) => return Ok(report),
            Err(error) => error,
        };
        let verdict = error.verdict();
        if verdict != Verdict::Outage || Instant::now() + pause > deadline {
            return Err(FetchFailure {
                name: request.name.clone(),
                standby,
                verdict,
                source: error,
            });
        }
        tracing::warn!(
            name = request.name,
            error = &error as &dyn std::error::Error,
            "will try again"
        );
        tokio::time::sleep(pause).await;
        pause = (pause * 2).min(Duration::from_secs(5));
    }
}

async fn attempt(request: &FetchRequest, pgdata: Option<&Path>) -> Result<FetchReport, FetchError> {
    let file: WalFileName = request.name.parse().map_err(FetchError::Name)?;
    let repository = Repository::open(&request.repository).await?;
    let identity = identity(&repository, &request.cluster, pgdata).await?;
    let system = SystemKeys {
        cluster: request.cluster.clone(),
        system: identity.system_identifier,
    };
    let Some(name) = WalName::of_file(file) else {
        // PostgreSQL never asks for a .partial, and its key cannot be told from its name.
        repository.root().await?;
        return Err(FetchError::Absent);
    };
    let key = system.wal(&name);
    match get(&repository, &identity, &key, file, &request.destination).await {
        Err(FetchError::Repository(e)) if e.trouble() == Trouble::Absent => {}
        other => return other,
    }
    // Not there. To be sure, the repository must show that it is there itself, and that this is not a hole.
    repository.root().await?;
    let Some(hole) = absence::hole(&repository, &identity, &system, file).await? else {
        return Err(FetchError::Absent);
    };
    // It may have been archived, with its successor, since we looked.
    match get(&repository, &identity, &key, file, &request.destination).await {
        Err(FetchError::Repository(e)) if e.trouble() == Trouble::Absent => {
            Err(FetchError::Hole(hole))
        }
        other => other,
    }
}

/// Whose WAL is asked for: the data directory's control file says, or the only registration.
async fn identity(
    repository: &Repository,
    cluster: &ClusterName,
    pgdata: Option<&Path>,
) -> Result<IdentityDocument, FetchError> {
    if let Some(pgdata) = pgdata {
        let system = host::system_identifier(pgdata).map_err(FetchError::Control)?;
        return Ok(repository.registration(cluster, system).await?);
    }
    let mut known = repository.registrations(cluster).await?;
    match known.pop() {
        Some(only) if known.is_empty() => Ok(only),
        last => {
            repository.root().await?;
            let known = known
                .iter()
                .chain(&last)
                .map(|identity| identity.system_identifier)
                .collect();
            Err(FetchError::WhichSystem { known })
        }
    }
}

/// What is checked of a segment before it may be seen: its first page.
type FirstPage = Arc<Mutex<Vec<u8>>>;

async fn get(
    repository: &Repository,
    identity: &IdentityDocument,
    key: &str,
    file: WalFileName,
    destination: &Path,
) -> Result<FetchReport, FetchError> {
    let mut growing = destination.as_os_str().to_owned();
    growing.push(GROWING);
    let growing = PathBuf::from(growing);
    let placed = receive(repository, identity, key, file, &growing)
        .await
        .and_then(|size| {
            place(&growing, destination).map_err(|source| write_error(destination, source))?;
            Ok(FetchReport {
                file,
                size,
                prefetched: false,
            })
        });
    if placed.is_err() {
        // What grew is of no use; where it cannot be removed either, the next call overwrites it.
        let _ = fs::remove_file(&growing);
    }
    placed
}

/// Writes a file to `growing`, which is proven once this returns its size, but not durable yet.
async fn receive(
    repository: &Repository,
    identity: &IdentityDocument,
    key: &str,
    file: WalFileName,
    growing: &Path,
) -> Result<u64, FetchError> {
    let growing = growing.to_path_buf();
    let first: FirstPage = Arc::default();
    let mut output: Option<File> = None;
    let most = match file {
        WalFileName::Segment(_) | WalFileName::Partial(_) => identity.wal_segment_size.bytes(),
        WalFileName::History(_) | WalFileName::Backup { .. } => MAX_HISTORY as u64,
    };
    let mut left = most;
    let too_long = Arc::new(AtomicBool::new(false));
    let sink = {
        let too_long = too_long.clone();
        let (growing, first) = (growing.clone(), first.clone());
        move |content: Vec<u8>| {
            // Before it fills the disk: a few bytes of zstd may stand for any number of zeroes.
            let Some(now) = left.checked_sub(content.len() as u64) else {
                too_long.store(true, Ordering::Relaxed);
                return Err(std::io::Error::from(std::io::ErrorKind::FileTooLarge));
            };
            left = now;
            let output = match &mut output {
                Some(output) => output,
                none => none.insert(create(&growing)?),
            };
            let mut first = first.lock().unwrap_or_else(PoisonError::into_inner);
            if first.is_empty() {
                first.extend(content.iter().take(LongPageHeader::LENGTH));
            }
            output.write_all(&content)
        }
    };
    let expected = Expected {
        kind: HeadKind::Wal,
        archive_id: identity.archive_id,
        key: keys::below_cluster(key).to_owned(),
    };
    let object = match repository.read_object(key, expected, sink).await {
        Ok(object) => object,
        Err(RepositoryError::Sink { .. }) if too_long.load(Ordering::Relaxed) => {
            return Err(FetchError::TooLong { most });
        }
        Err(RepositoryError::Sink { source, .. }) => return Err(write_error(&growing, source)),
        Err(e) => return Err(e.into()),
    };
    let size = object.tail.content_size;
    if size == 0 {
        // No frame, so no file yet.
        create(&growing).map_err(|source| write_error(&growing, source))?;
    }
    let first = std::mem::take(&mut *first.lock().unwrap_or_else(PoisonError::into_inner));
    check(file, identity.system_identifier, &first, size)?;
    if let (WalFileName::Segment(segment), Some(content)) = (file, object.tail.sha256) {
        check_undisputed(repository, identity, segment, &content).await?;
    }
    Ok(size)
}

/// Makes a file as PostgreSQL makes those of `pg_wal`, whatever the umask: for its user alone, or for the group, too, that may read the folder
/// (initdb's `--allow-group-access`; file_perm.c, `SetDataDirectoryCreatePerm`).
pub(super) fn create(path: &Path) -> std::io::Result<File> {
    let folder = path.parent().map(fs::metadata);
    let group = folder
        .is_some_and(|folder| folder.is_ok_and(|folder| folder.permissions().mode() & 0o040 != 0));
    fs::OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(if group { 0o640 } else { 0o600 })
        .open(path)
}

/// Where a person set another server's segment of the same name aside, nobody can tell which of the two is this cluster's, and PostgreSQL would
/// take the wrong one for the end of the log.
async fn check_undisputed(
    repository: &Repository,
    identity: &IdentityDocument,
    segment: SegmentName,
    content: &Sha256Digest,
) -> Result<(), FetchError> {
    let keys = SystemKeys {
        cluster: identity.cluster.clone(),
        system: identity.system_identifier,
    };
    let aside = repository
        .list(&format!("{}{segment}.", keys.quarantine_prefix()))
        .await?;
    let names = aside
        .iter()
        .filter_map(|object| keys.parse_quarantine(object.key.as_str()));
    let file = WalFileName::Segment(segment);
    // Names and decisions tell the one or, of encrypted files, the other.
    let ours = [
        *content,
        Sha256Digest(keyed(identity.archive_id, content).0),
    ];
    let mut others = names
        .filter(|(aside, digest)| *aside == file && ours.iter().all(|ours| *digest != ours.short()))
        .peekable();
    if others.peek().is_none() {
        return Ok(());
    }
    let decisions = Decisions::read(repository, &keys, identity.archive_id).await?;
    let are_ours = |aside| {
        ours.iter()
            .any(|ours| decisions.are_ours(file, ours, aside))
    };
    match others.all(|(_, aside)| are_ours(aside)) {
        true => Ok(()),
        false => Err(FetchError::InConflict),
    }
}

fn write_error(path: &Path, source: std::io::Error) -> FetchError {
    FetchError::Write {
        path: path.to_path_buf(),
        source,
    }
}

fn check(
    file: WalFileName,
    expected: SystemIdentifier,
    first: &[u8],
    size: u64,
) -> Result<(), FetchError> {
    let WalFileName::Segment(segment) = file else {
        return Ok(());
    };
    let found = check_segment(&segment, first, size)
        .map_err(FetchError::Mismatch)?
        .header
        .system_identifier;
    if found == expected {
        Ok(())
    } else {
        Err(FetchError::OtherSystem { found, expected })
    }
}

/// Makes the file durable and gives it its name. PostgreSQL may restart from this segment after a crash, so: bytes first, then
/// the name, then the directory. A crash before the rename leaves `GROWING`; after it, the whole file.
fn place(growing: &Path, destination: &Path) -> std::io::Result<()> {
    File::open(growing)?.sync_all()?;
    fs::rename(growing, destination)?;
    let parent = destination
        .parent()
        .filter(|parent| !parent.as_os_str().is_empty())
        .unwrap_or(Path::new("."));
    File::open(parent)?.sync_all()
}
