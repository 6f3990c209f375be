//! `walden-wal-fetch`: brings one WAL file back. The contract is that of `restore_command`
//! (PostgreSQL: access/transam/xlogarchive.c, `RestoreArchivedFile`), and it is a dangerous one: PostgreSQL takes any exit from 1 to 125
//! for "the archive ends here" and may then open the database with what it has. So [`Verdict::Absent`] is only given where it is proven.
//!
//! While PostgreSQL replays, [`prefetch`] brings the next segments to where [`Ready`] hands them over.

mod absence;
mod ahead;
mod error;
mod ready;

pub use absence::Hole;
pub use ahead::{PrefetchError, PrefetchRequest, prefetch};
pub use error::FetchError;
pub use ready::Ready;

use std::fs::{self, File};
use std::io::Write;
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use futures::future::join_all;
use walden_model::{
    ClusterName, HeadKind, IdentityDocument, Sha256Digest, ShortDigest, SystemKeys, WalName, keys,
};
use walden_pg::{LongPageHeader, SegmentName, SystemIdentifier, WalFileName, check_segment};

use crate::archive::{Archive, Served, Troubled};
use crate::catalog::MAX_HISTORY;
use crate::codec::{Expected, keyed};
use crate::conflicts::Decisions;
use crate::host;
use crate::repository::{Repository, RepositoryError, RepositorySettings, Trouble};

/// What to fetch, and where to.
#[derive(Debug, Clone)]
pub struct FetchRequest {
    /// The repositories, in the order in which they are asked.
    pub repositories: Vec<RepositorySettings>,
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
    /// The repository that it came from, by its name in the configuration.
    pub repository: String,
}

/// What PostgreSQL may conclude.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// Proven: every configured repository is there, and neither this file nor a later one of its timeline is in any.
    Absent,
    /// A repository that may have it cannot be asked; later it may.
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

/// The name under which a file grows beside its destination. One fixed name, so that killed calls leave one file at most, which the
/// next call overwrites; PostgreSQL never looks at it.
const GROWING: &str = ".walden";

/// How long the repositories that did not give a segment may take to say whether it is in conflict there. Every segment waits for it.
const ANSWER: Duration = Duration::from_secs(2);

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
    // Where there is another to ask, none is waited for long; all are asked again, as long as there is patience.
    let within = match request.repositories.len() {
        0 | 1 => patience,
        _ => Duration::ZERO,
    };
    let repositories = request.repositories.iter().cloned();
    let request = &FetchRequest {
        repositories: repositories.map(|one| one.within(within)).collect(),
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
    let archive = Archive::open(&request.repositories).await?;
    let identity = identity(&archive, &request.cluster, pgdata).await?;
    let system = SystemKeys {
        cluster: request.cluster.clone(),
        system: identity.system_identifier,
    };
    let Some(name) = WalName::of_file(file) else {
        // PostgreSQL never asks for a .partial, and its key cannot be told from its name.
        absence::all_there(&archive, &identity).await?;
        return Err(FetchError::Absent);
    };
    let key = system.wal(&name);
    let got = get(&archive, &identity, &key, file, &request.destination).await;
    let Some(report) = unless_absent(&archive, got)? else {
        // Not there. To be sure, each repository must show that it is there itself, and none of them that this is a hole.
        absence::all_there(&archive, &identity).await?;
        let Some(hole) = absence::hole(&archive, &identity, &system, file).await? else {
            return Err(FetchError::Absent);
        };
        // It may have been archived, with its successor, since we looked.
        let got = get(&archive, &identity, &key, file, &request.destination).await;
        return match unless_absent(&archive, got)? {
            None => Err(FetchError::Hole(hole)),
            Some(got) => Ok(got),
        };
    };
    Ok(report)
}

/// `None`: absent in all repositories that were asked. One that was not may have what is absent or damaged in the others.
fn unless_absent(
    archive: &Archive,
    got: Result<FetchReport, FetchError>,
) -> Result<Option<FetchReport>, FetchError> {
    let error = match got {
        Ok(report) => return Ok(Some(report)),
        Err(error) => error,
    };
    match (error.trouble(), archive.out().first()) {
        (Trouble::Damage, Some(out)) => {
            tracing::warn!(
                error = &error as &dyn std::error::Error,
                "{} may have it whole",
                out.name
            );
            Err(FetchError::Out {
                name: out.name.clone(),
                source: out.error.clone(),
            })
        }
        (Trouble::Absent, Some(out)) => Err(FetchError::Out {
            name: out.name.clone(),
            source: out.error.clone(),
        }),
        (Trouble::Absent, None) => Ok(None),
        _ => Err(error),
    }
}

/// Whose WAL is asked for: the data directory's control file says, or the only registration. Any repository may tell.
async fn identity(
    archive: &Archive,
    cluster: &ClusterName,
    pgdata: Option<&Path>,
) -> Result<IdentityDocument, FetchError> {
    let (mut repository, mut tries) = archive.tries();
    if let Some(pgdata) = pgdata {
        let system = host::system_identifier(pgdata).map_err(FetchError::Control)?;
        loop {
            match repository.registration(cluster, system).await {
                Ok(identity) => return Ok(identity),
                Err(e) => repository = tries.after(e)?,
            }
        }
    }
    loop {
        match only_registration(repository, cluster).await {
            Ok(identity) => return Ok(identity),
            Err(FetchError::Repository(e)) => repository = tries.after(e)?,
            Err(e) => return Err(e),
        }
    }
}

async fn only_registration(
    repository: &Repository,
    cluster: &ClusterName,
) -> Result<IdentityDocument, FetchError> {
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
    archive: &Archive,
    identity: &IdentityDocument,
    key: &str,
    file: WalFileName,
    destination: &Path,
) -> Result<FetchReport, FetchError> {
    let mut growing = destination.as_os_str().to_owned();
    growing.push(GROWING);
    let growing = PathBuf::from(growing);
    let placed = receive(archive, identity, key, file, &growing)
        .await
        .and_then(|received| {
            place(&growing, destination).map_err(|source| write_error(destination, source))?;
            Ok(FetchReport {
                file,
                size: received.value,
                prefetched: false,
                repository: received.repository,
            })
        });
    if placed.is_err() {
        // What grew is of no use; where it cannot be removed either, the next call overwrites it.
        let _ = fs::remove_file(&growing);
    }
    placed
}

/// Writes a file to `growing` from the first repository that has it whole. It is proven once this returns its size, but not durable yet.
async fn receive(
    archive: &Archive,
    identity: &IdentityDocument,
    key: &str,
    file: WalFileName,
    growing: &Path,
) -> Result<Served<u64>, FetchError> {
    let (mut repository, mut tries) = archive.tries::<FetchError>();
    loop {
        let received = async {
            let received = receive_from(repository, identity, key, file, growing).await?;
            if let (WalFileName::Segment(segment), Some(content)) = (file, received.content) {
                check_undisputed(archive, repository, identity, segment, &content).await?;
            }
            Ok(received.size)
        };
        match received.await {
            Ok(size) => return Ok(tries.served(size)),
            Err(e) => repository = tries.after(e)?,
        }
    }
}

struct Received {
    size: u64,
    content: Option<Sha256Digest>,
}

/// Writes one repository's file to `growing`, over what another one gave.
async fn receive_from(
    repository: &Repository,
    identity: &IdentityDocument,
    key: &str,
    file: WalFileName,
    growing: &Path,
) -> Result<Received, FetchError> {
    let growing = growing.to_path_buf();
    let first: FirstPage = Arc::default();
    let mut output: Option<File> = None;
    let most = match file {
        WalFileName::Segment(_) | WalFileName::Partial(_) => identity.wal_segment_size.bytes(),
        WalFileName::History(_) | WalFileName::Backup { .. } => MAX_HISTORY as u64,
    };
    let mut left = most;
    let sink = {
        let (growing, first) = (growing.clone(), first.clone());
        move |content: Vec<u8>| {
            // Before it fills the disk: a few bytes of zstd may stand for any number of zeroes.
            let Some(now) = left.checked_sub(content.len() as u64) else {
                let why = format!("it is longer than any file of its name: more than {most} bytes");
                return Err(std::io::Error::new(std::io::ErrorKind::InvalidData, why));
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
        Err(RepositoryError::Sink { source, .. })
            if source.kind() != std::io::ErrorKind::InvalidData =>
        {
            return Err(write_error(&growing, source));
        }
        Err(e) => return Err(e.into()),
    };
    let size = object.tail.content_size;
    if size == 0 {
        // No frame, so no file yet, or another repository's.
        create(&growing).map_err(|source| write_error(&growing, source))?;
    }
    let first = std::mem::take(&mut *first.lock().unwrap_or_else(PoisonError::into_inner));
    check(file, identity.system_identifier, &first, size)?;
    Ok(Received {
        size,
        content: object.tail.sha256,
    })
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
/// take the wrong one for the end of the log. It may stand aside in another repository than the one that gave the segment: all that answer count.
async fn check_undisputed(
    archive: &Archive,
    giver: &Repository,
    identity: &IdentityDocument,
    segment: SegmentName,
    content: &Sha256Digest,
) -> Result<(), FetchError> {
    let keys = SystemKeys {
        cluster: identity.cluster.clone(),
        system: identity.system_identifier,
    };
    let others = archive
        .repositories()
        .filter(|other| other.name() != giver.name());
    // Names and decisions tell the one or, of encrypted files, the other.
    let ours = [
        *content,
        Sha256Digest(keyed(identity.archive_id, content).0),
    ];
    let (keys, ours) = (&keys, &ours);
    let others = join_all(others.map(|other| async move {
        match tokio::time::timeout(ANSWER, set_aside(other, keys, segment, ours)).await {
            Ok(Ok(aside)) => aside,
            Ok(Err(error)) => {
                archive.is_silent(other, &error);
                Vec::new()
            }
            Err(_) => Vec::new(),
        }
    }));
    let (own, others) = tokio::join!(set_aside(giver, keys, segment, ours), others);
    let aside: Vec<ShortDigest> = own?.into_iter().chain(others.concat()).collect();
    if aside.is_empty() {
        return Ok(());
    }
    let decisions = Decisions::of(archive, keys, identity.archive_id).await?;
    let file = WalFileName::Segment(segment);
    let are_ours = |aside| {
        ours.iter()
            .any(|ours| decisions.are_ours(file, ours, aside))
    };
    let mut aside = aside.into_iter();
    match aside.all(are_ours) {
        true => Ok(()),
        false => Err(FetchError::InConflict),
    }
}

/// The files of a segment's name that a repository has set aside, but for those of our content.
async fn set_aside(
    repository: &Repository,
    keys: &SystemKeys,
    segment: SegmentName,
    ours: &[Sha256Digest],
) -> Result<Vec<ShortDigest>, RepositoryError> {
    let prefix = format!("{}{segment}.", keys.quarantine_prefix());
    let listed = repository.list(&prefix).await?;
    let names = listed
        .iter()
        .filter_map(|object| keys.parse_quarantine(object.key.as_str()));
    let others = names
        .filter(|(file, _)| *file == WalFileName::Segment(segment))
        .map(|(_, digest)| digest);
    let others = others.filter(|digest| ours.iter().all(|ours| *digest != ours.short()));
    Ok(others.collect())
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
