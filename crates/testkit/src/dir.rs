//! A folder for one test, and what is shown of it when the test fails.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use rustix::fs::StatVfsMountFlags;
use tempfile::TempDir;

use crate::install::PgInstall;
use crate::process::own_by_server;

/// How much of each server's log a failing test shows, in lines.
const LOG_TAIL: usize = 40;

/// A folder that the database host's user owns and everybody may enter. It goes with the value,
/// unless the test panics or `WALDEN_TEST_KEEP=1` is set; then its path is printed.
///
/// It is in `/dev/shm` where that has room, for a disk takes most of such a test's time; else in `/tmp`. What
/// `TMPDIR` says does not count: a socket's path must be short (107 bytes), and the server's user must be able to
/// come here.
#[derive(Debug)]
pub struct TestDir {
    dir: TempDir,
}

impl TestDir {
    /// Makes a new folder whose name tells the test's.
    ///
    /// # Errors
    /// Where it cannot be made or given to the server's user.
    pub fn new(test: &str) -> Result<Self> {
        let short: String = test.chars().take(24).collect();
        let dir = tempfile::Builder::new()
            .prefix(&format!("walden-{short}-"))
            .tempdir_in(base())
            .with_context(|| format!("cannot make a folder in {}", base()))?;
        fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o755))
            .context("cannot open the test's folder to the server's user")?;
        own_by_server(dir.path())?;
        Ok(Self { dir })
    }

    /// The folder.
    #[must_use]
    pub fn path(&self) -> &Path {
        self.dir.path()
    }

    /// A path in it; nothing is made.
    #[must_use]
    pub fn join(&self, name: impl AsRef<Path>) -> PathBuf {
        self.dir.path().join(name)
    }

    /// Makes a folder in it, mode 0700, that the server's user owns.
    ///
    /// # Errors
    /// Where it cannot be made.
    pub fn server_dir(&self, name: &str) -> Result<PathBuf> {
        let path = self.join(name);
        fs::create_dir(&path).with_context(|| format!("cannot make {}", path.display()))?;
        fs::set_permissions(&path, fs::Permissions::from_mode(0o700))
            .with_context(|| format!("cannot set the mode of {}", path.display()))?;
        own_by_server(&path)?;
        Ok(path)
    }

    /// Writes a file in it, mode 0600, that the server's user owns.
    ///
    /// # Errors
    /// Where it cannot be written.
    pub fn server_file(&self, name: &str, content: impl AsRef<[u8]>) -> Result<PathBuf> {
        let path = self.join(name);
        fs::write(&path, content).with_context(|| format!("cannot write {}", path.display()))?;
        fs::set_permissions(&path, fs::Permissions::from_mode(0o600))
            .with_context(|| format!("cannot set the mode of {}", path.display()))?;
        own_by_server(&path)?;
        Ok(path)
    }

    /// Leaves the folder behind, and shows where it is and how its servers' logs end.
    fn keep_and_tell(&mut self) {
        self.dir.disable_cleanup(true);
        eprintln!("the test's folder stays: {}", self.path().display());
        for entry in fs::read_dir(self.path()).into_iter().flatten().flatten() {
            let path = entry.path();
            if path.extension().is_some_and(|extension| extension == "log") {
                let log = fs::read(&path).unwrap_or_default();
                let log = String::from_utf8_lossy(&log);
                let lines: Vec<&str> = log.lines().collect();
                let skipped = lines.len().saturating_sub(LOG_TAIL);
                eprintln!("--- {} (last {LOG_TAIL} lines)", path.display());
                for line in lines.iter().skip(skipped) {
                    eprintln!("{line}");
                }
            }
        }
    }
}

impl Drop for TestDir {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.keep_and_tell();
        } else if std::env::var_os("WALDEN_TEST_KEEP").is_some_and(|value| value == "1") {
            self.dir.disable_cleanup(true);
            eprintln!("WALDEN_TEST_KEEP=1: {} stays", self.path().display());
        }
    }
}

/// Where tests' folders are made. What failed tests have left behind counts against the room, so it cannot fill the memory.
fn base() -> &'static str {
    const ROOM: u64 = 8 << 30;
    let memory = "/dev/shm";
    let fits = rustix::fs::statvfs(memory).is_ok_and(|vfs| {
        let free = vfs.f_bavail.saturating_mul(vfs.f_frsize);
        let runs_programs = !vfs.f_flag.contains(StatVfsMountFlags::NOEXEC);
        runs_programs && free >= ROOM && vfs.f_bavail >= vfs.f_blocks / 2
    });
    if fits { memory } else { "/tmp" }
}

/// Runs a test on one major version in a folder of its own; [`crate::on_every_version!`] calls it.
///
/// # Panics
/// Where the test fails, which is how a test tells.
#[expect(clippy::panic, reason = "a failing test panics")]
pub fn on_version(major: u16, name: &str, test: impl FnOnce(&PgInstall, &TestDir) -> Result<()>) {
    let outcome = (|| {
        if !PgInstall::wanted(major)? {
            eprintln!("{name}: WALDEN_TEST_PG leaves PostgreSQL {major} out");
            return Ok(());
        }
        let install = PgInstall::get(major)?;
        let mut dir = TestDir::new(name)?;
        let outcome = test(&install, &dir);
        if outcome.is_err() {
            dir.keep_and_tell();
        }
        outcome
    })();
    if let Err(error) = outcome {
        panic!("{name} on PostgreSQL {major}: {error:#}");
    }
}
