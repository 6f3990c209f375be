//! Segments that were fetched before PostgreSQL asked for them: where they lie, what proves one, and how it is handed over.
//!
//! Beside `%p`, in a folder of ours, there are while a recovery goes on:
//!
//! | name | what |
//! |---|---|
//! | `lock` | locked by the one process that fetches ahead, for as long as it lives |
//! | `<segment>` | a segment that grows, or is whole if it has a proof |
//! | `<segment>.proof` | says of which cluster, repository and file the segment was proven; given in one step |
//! | `brought` | the last segment that PostgreSQL was given, and whether it was waited for |
//!
//! A proof is believed only while the process that gave it holds the lock, and only where the same statement, made anew from what is there
//! now, reads the same. So nothing that a crash, another cluster or a person left here is ever handed over, and none of it needs a sync.

use std::fs::{self, DirBuilder, File, Metadata, OpenOptions, TryLockError};
use std::io::{self, Read};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::fs::OFlags;
use walden_model::ClusterName;
use walden_pg::{LongPageHeader, SegmentName, SystemIdentifier, WalFileName};

use super::{FetchReport, FetchRequest, check};
use crate::host;
use crate::repository::RepositorySettings;

/// Below `pg_wal`: on the file system of `%p`, and left out by every base backup.
const FOLDER: &str = "walden.prefetch";
const LOCK: &str = "lock";
const BROUGHT: &str = "brought";
/// Ends the name of a file that is not yet whole.
const NEW: &str = ".new";

/// A segment that is on its way is waited for, unless it has not grown for so long.
const STALLED: Duration = Duration::from_secs(3);

/// Where a recovery's segments are laid ready.
#[derive(Debug, Clone)]
pub struct Ready {
    folder: PathBuf,
    pgdata: PathBuf,
    postmaster: i32,
    repositories: Vec<RepositorySettings>,
    cluster: ClusterName,
    system: SystemIdentifier,
}

/// What the process that fetches ahead is told.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Brought {
    /// What PostgreSQL was given last.
    pub segment: SegmentName,
    /// Whether it was ready when it was asked for.
    pub at_once: bool,
}

impl Ready {
    /// `None` where nothing is laid ready: what is asked for is no segment, or nobody recovers there whom it would serve.
    pub fn of(request: &FetchRequest) -> Option<Ready> {
        let Ok(WalFileName::Segment(_)) = request.name.parse() else {
            return None;
        };
        let pg_wal = request.destination.parent()?;
        if pg_wal.file_name()? != "pg_wal" {
            return None;
        }
        let pgdata = host::find_pgdata(request.pgdata.as_deref(), &request.destination)?;
        let ready = Ready {
            folder: pg_wal.join(FOLDER),
            postmaster: host::postmaster(&pgdata)?,
            repositories: request.repositories.clone(),
            cluster: request.cluster.clone(),
            system: host::system_identifier(&pgdata).ok()?,
            pgdata,
        };
        // What another user makes there PostgreSQL could not remove.
        let owner = fs::metadata(pg_wal).ok()?.uid();
        (ready.recovers() && owner == rustix::process::geteuid().as_raw()).then_some(ready)
    }

    /// Whether the same server is there, and recovers from an archive (PostgreSQL: access/transam/xlogrecovery.c, `readRecoverySignalFile`).
    pub(super) fn recovers(&self) -> bool {
        host::postmaster(&self.pgdata) == Some(self.postmaster)
            && ["recovery.signal", "standby.signal"]
                .iter()
                .any(|name| self.pgdata.join(name).exists())
    }

    /// Hands a segment over if it is ready, and waits for it if it is on its way. `None`: it must be fetched.
    pub fn take(&self, request: &FetchRequest) -> Option<FetchReport> {
        let Ok(WalFileName::Segment(segment)) = request.name.parse() else {
            return None;
        };
        let mut at_once = true;
        let mut grown = (0, Instant::now());
        while self.is_served() {
            if let Ok(proof) = fs::read(self.proof(segment)) {
                return self.hand_over(segment, &proof, &request.destination, at_once);
            }
            let length = fs::metadata(self.path(segment)).ok()?.len();
            if length != grown.0 {
                grown = (length, Instant::now());
            } else if grown.1.elapsed() > STALLED {
                return None;
            }
            at_once = false;
            std::thread::sleep(Duration::from_millis(1));
        }
        None
    }

    fn hand_over(
        &self,
        segment: SegmentName,
        proof: &[u8],
        destination: &Path,
        at_once: bool,
    ) -> Option<FetchReport> {
        let path = self.path(segment);
        let mut file = open_no_link(OpenOptions::new().read(true), &path).ok()?;
        let meta = file.metadata().ok()?;
        let mut configured = self.repositories.iter();
        let from = configured.find(|one| self.statement(segment, &meta, one).as_bytes() == proof);
        let Some(from) = from else {
            tracing::warn!("{} is not what was laid ready", path.display());
            return None;
        };
        let mut first = [0; LongPageHeader::LENGTH];
        file.read_exact(&mut first).ok()?;
        let name = WalFileName::Segment(segment);
        check(name, self.system, &first, meta.len()).ok()?;
        // It was synced when it was proven, and the folder is synced by PostgreSQL when it gives the segment its own name
        // (access/transam/xlogarchive.c, KeepFileRestoredFromArchive); until then a restart asks for it again.
        fs::rename(&path, destination).ok()?;
        let moved = fs::symlink_metadata(destination).ok()?;
        if (moved.dev(), moved.ino()) != (meta.dev(), meta.ino()) {
            // Somebody else's call was at it, too.
            return None;
        }
        let _ = fs::remove_file(self.proof(segment));
        self.tell(Brought { segment, at_once });
        Some(FetchReport {
            file: name,
            size: meta.len(),
            prefetched: true,
            repository: from.name.clone(),
        })
    }

    /// Tells the process that fetches ahead what was fetched without it. False if there is none, so that one can be started.
    pub fn fetched(&self, report: &FetchReport) -> bool {
        let WalFileName::Segment(segment) = report.file else {
            return true;
        };
        let served = self.is_served();
        if served {
            self.tell(Brought {
                segment,
                at_once: false,
            });
        }
        served
    }

    fn tell(&self, brought: Brought) {
        let word = if brought.at_once { "ready" } else { "late" };
        let text = format!("{} {word}\n", brought.segment);
        // Without it, the other process ends a little early or fetches something twice.
        if let Err(error) = replace(&self.folder.join(BROUGHT), &text) {
            tracing::debug!(%error, "{} cannot be written", self.folder.display());
        }
    }

    /// Whether a process fetches ahead here.
    fn is_served(&self) -> bool {
        let lock = self.folder.join(LOCK);
        open_no_link(OpenOptions::new().read(true), &lock)
            .is_ok_and(|lock| matches!(lock.try_lock_shared(), Err(TryLockError::WouldBlock)))
    }

    pub(super) fn path(&self, segment: SegmentName) -> PathBuf {
        self.folder.join(segment.to_string())
    }

    fn proof(&self, segment: SegmentName) -> PathBuf {
        self.folder.join(format!("{segment}.proof"))
    }

    /// What is said of a segment that was proven. A file that is written to, or moved here from elsewhere, changes its change time.
    fn statement(
        &self,
        segment: SegmentName,
        meta: &Metadata,
        from: &RepositorySettings,
    ) -> String {
        format!(
            "walden prefetch 2\nsegment {segment}\nsystem {}\ncluster {}\nrepository {:?} {:?} {:?}\n\
             file {} {} {} {} {}.{:09}\n",
            self.system,
            self.cluster,
            from.name,
            from.place.to_string(),
            from.id,
            meta.is_file(),
            meta.dev(),
            meta.ino(),
            meta.len(),
            meta.ctime(),
            meta.ctime_nsec()
        )
    }
}

/// The folder, for the one process that fills it.
#[derive(Debug)]
pub(super) struct Claimed {
    ready: Ready,
    lock: File,
}

impl Claimed {
    /// Takes the folder over and empties it. `None` where another process has it.
    pub fn claim(ready: Ready) -> io::Result<Option<Claimed>> {
        match DirBuilder::new().mode(0o700).create(&ready.folder) {
            Err(e) if e.kind() != io::ErrorKind::AlreadyExists => return Err(e),
            _ => {}
        }
        if !fs::symlink_metadata(&ready.folder)?.is_dir() {
            return Err(io::ErrorKind::NotADirectory.into());
        }
        let lock = open_no_link(
            OpenOptions::new().write(true).create(true).mode(0o600),
            &ready.folder.join(LOCK),
        )?;
        let claimed = Claimed { ready, lock };
        match claimed.lock.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => return Ok(None),
            Err(TryLockError::Error(e)) => return Err(e),
        }
        // Whoever had it before may have removed it in the meantime.
        if !claimed.holds() {
            return Ok(None);
        }
        claimed.empty()?;
        Ok(Some(claimed))
    }

    /// Whether the folder is still there, and the one that was claimed.
    pub fn holds(&self) -> bool {
        let named = fs::symlink_metadata(self.ready.folder.join(LOCK));
        match (named, self.lock.metadata()) {
            (Ok(named), Ok(held)) => (named.dev(), named.ino()) == (held.dev(), held.ino()),
            _ => false,
        }
    }

    /// Whether there is still somebody to serve.
    pub fn is_needed(&self) -> bool {
        self.holds() && self.ready.recovers()
    }

    /// The last call that brought a segment. `None` before the first, and where something else than such a call was here.
    pub fn brought(&self) -> Option<Brought> {
        let text = fs::read_to_string(self.ready.folder.join(BROUGHT)).ok()?;
        let (segment, word) = text.trim_end().split_once(' ')?;
        let Ok(WalFileName::Segment(segment)) = segment.parse() else {
            return None;
        };
        Some(Brought {
            segment,
            at_once: word == "ready",
        })
    }

    /// Where a segment grows.
    pub fn path(&self, segment: SegmentName) -> PathBuf {
        self.ready.path(segment)
    }

    /// Makes a whole, verified segment durable and ready. PostgreSQL syncs it, too; then there is nothing left to wait for.
    pub fn lay_ready(ready: &Ready, segment: SegmentName, repository: &str) -> io::Result<()> {
        let file = File::open(ready.path(segment))?;
        file.sync_all()?;
        let mut configured = ready.repositories.iter();
        let Some(from) = configured.find(|one| one.name == repository) else {
            return Err(io::ErrorKind::NotFound.into());
        };
        let statement = ready.statement(segment, &file.metadata()?, from);
        replace(&ready.proof(segment), &statement)
    }

    /// For tasks that outlive a borrow.
    pub fn ready(&self) -> &Ready {
        &self.ready
    }

    /// Whether a segment is ready still: PostgreSQL takes what it asks for.
    pub fn has(&self, segment: SegmentName) -> bool {
        self.ready.path(segment).exists()
    }

    /// Takes away a segment that nobody will ask for. The proof goes first.
    pub fn discard(&self, segment: SegmentName) {
        let _ = fs::remove_file(self.ready.proof(segment));
        let _ = fs::remove_file(self.ready.path(segment));
    }

    fn empty(&self) -> io::Result<()> {
        for entry in fs::read_dir(&self.ready.folder)? {
            let entry = entry?;
            if entry.file_name() != LOCK {
                fs::remove_file(entry.path())?;
            }
        }
        Ok(())
    }
}

impl Drop for Claimed {
    /// Gives the disk back. What a kill leaves here is removed by the next process.
    fn drop(&mut self) {
        if self.holds() && self.empty().is_ok() {
            let _ = fs::remove_file(self.ready.folder.join(LOCK));
            let _ = fs::remove_dir(&self.ready.folder);
        }
    }
}

fn open_no_link(options: &mut OpenOptions, path: &Path) -> io::Result<File> {
    let flags = OFlags::NOFOLLOW | OFlags::NONBLOCK;
    options.custom_flags(flags.bits().cast_signed()).open(path)
}

/// Writes a small file in one step.
fn replace(path: &Path, text: &str) -> io::Result<()> {
    let mut new = path.as_os_str().to_owned();
    new.push(NEW);
    fs::write(&new, text)?;
    fs::rename(&new, path)
}
