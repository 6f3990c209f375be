//! Clusters with tablespaces: pg_basebackup refuses standard output then, so it writes tar files into a folder, which Walden reads as they
//! grow and empties behind itself, so that no copy of the cluster builds up on the disk.

use std::fs::{self, File};
use std::io::{self, Read};
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use rustix::fs::{FallocateFlags, FlockOperation, fallocate, flock};

/// Bytes after which what was read is given back to the disk.
const GIVE_BACK: u64 = 16 << 20;
/// How often a file that did not grow is looked at again.
const LOOK: Duration = Duration::from_millis(20);

const NAME: &str = "walden-spool-";

/// A folder of this backup's own, removed with everything in it when dropped. A kill leaves it to the next backup.
#[derive(Debug)]
pub(super) struct Spool {
    path: PathBuf,
    /// Locked as long as its backup lives: the kernel lets go for a killed one.
    _lock: File,
}

impl Spool {
    /// Makes it, readable by nobody else, and removes those of killed backups.
    pub fn create(parent: &Path, backup: &walden_model::BackupId) -> io::Result<Self> {
        sweep(parent)?;
        let path = parent.join(format!("{NAME}{backup}"));
        fs::DirBuilder::new().mode(0o700).create(&path)?;
        let lock = lock(&path)?;
        Ok(Spool { path, _lock: lock })
    }

    pub fn path(&self) -> &Path {
        &self.path
    }
}

impl Drop for Spool {
    fn drop(&mut self) {
        if let Err(error) = fs::remove_dir_all(&self.path) {
            tracing::warn!(path = %self.path.display(), %error, "the spool folder could not be removed; remove it by hand");
        }
    }
}

fn lock(folder: &Path) -> io::Result<File> {
    let handle = File::open(folder)?;
    flock(&handle, FlockOperation::NonBlockingLockExclusive)?;
    Ok(handle)
}

/// Between a folder's making and its lock another backup may take it for a killed one's: then that one's lock or first file fails, and its
/// backup ends with an error.
fn sweep(parent: &Path) -> io::Result<()> {
    for entry in fs::read_dir(parent)? {
        let entry = entry?;
        let is_spool = entry.file_name().to_string_lossy().starts_with(NAME);
        if is_spool && entry.file_type()?.is_dir() && lock(&entry.path()).is_ok() {
            tracing::warn!(path = %entry.path().display(), "removing the spool folder of a killed backup");
            fs::remove_dir_all(entry.path())?;
        }
    }
    Ok(())
}

/// A file that another process is still writing: its end is an end only once that process has ended. (A tar stream's own end mark comes
/// before that.)
pub(super) struct Growing {
    file: File,
    ended: Arc<AtomicBool>,
    read: u64,
    given_back: u64,
}

/// Waits until one of these files is there, and gives its index. `None`: the writer ended without any.
pub(super) fn first_of(paths: &[PathBuf], ended: &AtomicBool) -> Option<usize> {
    loop {
        // Asked before the look, so that a file made just before the end is seen.
        let last_look = ended.load(Ordering::Acquire);
        match paths.iter().position(|path| path.exists()) {
            None if !last_look => std::thread::sleep(LOOK),
            found => return found,
        }
    }
}

impl Growing {
    /// Opens a file that is there.
    pub fn open(path: &Path, ended: Arc<AtomicBool>) -> io::Result<Self> {
        let file = File::options().read(true).write(true).open(path)?;
        Ok(Growing {
            file,
            ended,
            read: 0,
            given_back: 0,
        })
    }
}

impl Read for Growing {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        loop {
            let complete = self.ended.load(Ordering::Acquire);
            let length = self.file.read(buffer)?;
            if length == 0 && !complete {
                std::thread::sleep(LOOK);
                continue;
            }
            self.read += length as u64;
            if self.read - self.given_back >= GIVE_BACK {
                // A file system that cannot do it keeps the bytes until the end; that costs room, not correctness.
                let flags = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
                let _ = fallocate(
                    &self.file,
                    flags,
                    self.given_back,
                    self.read - self.given_back,
                );
                self.given_back = self.read;
            }
            return Ok(length);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    #[test]
    fn a_growing_file_is_read_to_the_end_that_its_writer_gave_it() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.tar");
        let ended = Arc::new(AtomicBool::new(false));
        let writer = std::thread::spawn({
            let (path, ended) = (path.clone(), ended.clone());
            move || {
                let mut file = File::create(path).unwrap();
                for part in 0..50_u8 {
                    file.write_all(&vec![part; 1 << 20]).unwrap();
                }
                ended.store(true, Ordering::Release);
            }
        });
        assert_eq!(
            first_of(std::slice::from_ref(&path), &ended),
            Some(0),
            "expected the file that the writer makes"
        );
        let mut content = Vec::new();
        Growing::open(&path, ended)
            .unwrap()
            .read_to_end(&mut content)
            .unwrap();
        writer.join().unwrap();
        let expected: Vec<u8> = (0..50_u8).flat_map(|part| vec![part; 1 << 20]).collect();
        assert!(
            content == expected,
            "expected 50 MiB as they were written, found {} bytes",
            content.len()
        );
    }

    #[test]
    fn a_killed_backups_folder_is_removed_by_the_next_and_a_running_ones_is_not() {
        let dir = tempfile::tempdir().unwrap();
        let id = |number| walden_model::BackupId::new(jiff::Timestamp::UNIX_EPOCH, number);
        let running = Spool::create(dir.path(), &id(1)).unwrap();
        let killed = dir.path().join(format!("{NAME}{}", id(2)));
        fs::create_dir(&killed).unwrap();
        fs::write(killed.join("base.tar"), "half").unwrap();
        let other = dir.path().join("other");
        fs::create_dir(&other).unwrap();
        let next = Spool::create(dir.path(), &id(3)).unwrap();
        assert!(!killed.exists(), "nobody else removes it");
        assert!(
            running.path().exists() && next.path().exists(),
            "running backups need theirs"
        );
        assert!(other.exists(), "it is not ours");
    }

    #[test]
    fn a_file_that_never_comes_ends_with_its_writer() {
        let dir = tempfile::tempdir().unwrap();
        let found = first_of(&[dir.path().join("a.tar")], &AtomicBool::new(true));
        assert_eq!(found, None, "expected no file");
    }
}
