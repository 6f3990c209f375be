//! This machine and this process: what Walden writes down about itself, and PostgreSQL's data directory on it.

use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};

use jiff::Timestamp;
use walden_model::{RandomId, Writer};
use walden_pg::SystemIdentifier;

/// The machine's name.
pub fn host_name() -> String {
    rustix::system::uname()
        .nodename()
        .to_string_lossy()
        .into_owned()
}

/// What is written into each object's head about the program that writes it.
pub fn writer() -> Writer {
    Writer {
        host: host_name(),
        started_at: Timestamp::now(),
        pid: std::process::id(),
        version: env!("CARGO_PKG_VERSION").to_owned(),
    }
}

/// A fresh random id.
pub fn random_id() -> RandomId {
    RandomId(rand::random())
}

/// Cores that compression may use.
pub fn cores() -> usize {
    std::thread::available_parallelism().map_or(1, std::num::NonZero::get)
}

/// PostgreSQL's data directory: the one that was named, else what is above the `pg_wal` of the WAL file, else the working directory; of
/// these the first that has a `global/pg_control`.
///
/// The archiver starts its command in the data directory, where both are the same. `pg_rewind -c` and a person start the programs
/// anywhere, perhaps in another cluster's data directory. The working directory counts where `pg_wal` is a link and the file is named
/// by its place behind it.
pub fn find_pgdata(named: Option<&Path>, wal_file: &Path) -> Option<PathBuf> {
    let above = wal_file.parent().and_then(Path::parent).map(|path| {
        if path.as_os_str().is_empty() {
            Path::new(".")
        } else {
            path
        }
    });
    let candidates = match named {
        Some(named) => [Some(named), None],
        None => [above, Some(Path::new("."))],
    };
    let mut candidates = candidates.into_iter().flatten();
    candidates
        .find(|dir| dir.join(CONTROL).is_file())
        .map(Path::to_path_buf)
}

/// pg_control's place below PGDATA (PostgreSQL: `XLOG_CONTROL_FILE` in access/xlog_internal.h and pg_control.h).
pub const CONTROL: &str = "global/pg_control";

/// A control file that cannot be read.
#[derive(Debug, thiserror::Error)]
#[error("cannot read the system identifier from {}", path.display())]
pub struct ControlError {
    path: PathBuf,
    #[source]
    source: std::io::Error,
}

/// The process id of the postmaster that runs on a data directory (PostgreSQL: utils/init/miscinit.c, `CreateLockFile`).
pub fn postmaster(pgdata: &Path) -> Option<i32> {
    let text = std::fs::read_to_string(pgdata.join("postmaster.pid")).ok()?;
    let number: i32 = text.lines().next()?.trim().parse().ok()?;
    // A single-user server writes its id negated, and replays no archive.
    let pid = rustix::process::Pid::from_raw(number).filter(|_| number > 0)?;
    match rustix::process::test_kill_process(pid) {
        Ok(()) | Err(rustix::io::Errno::PERM) => Some(number),
        Err(_) => None,
    }
}

/// Takes this process out of the one that started it: a session of its own, and none of the descriptors that were inherited beyond the
/// standard ones. To be called before anything is opened.
///
/// Servers before 16 leave the descriptors of their data files to the commands they run; they would keep deleted tables on disk.
pub fn detach() -> std::io::Result<()> {
    let open: Vec<i32> = std::fs::read_dir("/proc/self/fd")?
        .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok())
        .filter(|number| *number > 2)
        .collect();
    for number in open {
        // The folder's own is among them, and closed by now.
        let _ = nix::unistd::close(number);
    }
    rustix::process::setsid()?;
    Ok(())
}

/// Reads the system identifier from a data directory's control file.
pub fn system_identifier(pgdata: &Path) -> Result<SystemIdentifier, ControlError> {
    let path = pgdata.join(CONTROL);
    let mut bytes = [0; 8];
    match File::open(&path).and_then(|mut file| file.read_exact(&mut bytes)) {
        Ok(()) => Ok(SystemIdentifier(u64::from_le_bytes(bytes))),
        Err(source) => Err(ControlError { path, source }),
    }
}
