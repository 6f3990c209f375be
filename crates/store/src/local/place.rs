//! How an object comes to stand under its key, and goes: every step that makes it durable, in order.

use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use rustix::fs::{CWD, RenameFlags};
use rustix::io::Errno;

use super::root::{Root, kind, make_folder, modified, sync_folder};
use crate::{Key, PutMode, StoreError, StoreErrorKind};

/// Below the root, so that it is in the same file system as every key.
const FOLDER: &str = ".tmp";

/// An object in the making. Its file goes when it is dropped; once in place the object stands under its other name.
#[derive(Debug)]
pub(super) struct Temporary {
    path: PathBuf,
    file: File,
}

impl Drop for Temporary {
    fn drop(&mut self) {
        match std::fs::remove_file(&self.path) {
            Err(cause) if cause.kind() != io::ErrorKind::NotFound => {
                tracing::warn!(path = %self.path.display(), error = %cause, "a temporary file stays behind");
            }
            _ => {}
        }
    }
}

impl Temporary {
    /// A crash from here on until the object is linked leaves a file in `.tmp`, for the sweep.
    pub(super) fn create(root: &Root, key: &Key) -> Result<Self, StoreError> {
        // A file system that was unmounted leaves a folder that takes objects, and hides them once it is back.
        root.check()?;
        let path = root.path().join(FOLDER).join(format!(
            "{}-{:016x}",
            std::process::id(),
            rand::random::<u64>()
        ));
        let create = || {
            OpenOptions::new()
                .write(true)
                .create_new(true)
                .mode(0o600)
                .open(&path)
        };
        let file = create()
            .or_else(|cause| match cause.kind() {
                // That `.tmp` survives a crash matters to nobody: no fsync.
                io::ErrorKind::NotFound => {
                    make_folder(&root.path().join(FOLDER)).and_then(|_| create())
                }
                _ => Err(cause),
            })
            .map_err(|cause| write_failure(root, key, cause))?;
        Ok(Self { path, file })
    }

    pub(super) fn write(&mut self, root: &Root, key: &Key, bytes: &[u8]) -> Result<(), StoreError> {
        self.file
            .write_all(bytes)
            .map_err(|cause| write_failure(root, key, cause))
    }

    /// Puts the object in place, durably.
    pub(super) fn place(self, root: &Root, key: &Key, mode: PutMode) -> Result<(), StoreError> {
        let target = root.path_of(key);
        let folder = target.parent().unwrap_or(root.path());
        let failure = |cause| write_failure(root, key, cause);

        // 1. The bytes, before any name leads to them. Crash after: a whole file in `.tmp`, nothing under the key.
        self.file.sync_all().map_err(failure)?;

        // 2. The folders. Crash after: empty folders, which are nothing to a reader.
        ensure_folder(root, folder).map_err(failure)?;

        // 3. The name, in one step. Crash after: the whole object stands under its key, or after a power failure
        // nothing does; in `.tmp` may be a second name of it.
        let mut placed = self.move_to(&target, mode);
        if matches!(&placed, Err(cause) if cause.kind() == io::ErrorKind::NotFound) {
            // Somebody removed a folder that was empty until now.
            ensure_folder(root, folder).map_err(failure)?;
            placed = self.move_to(&target, mode);
        }
        placed.map_err(|cause| match Errno::from_io_error(&cause) {
            Some(Errno::EXIST | Errno::ISDIR) if is_folder(&target) => root
                .error(StoreErrorKind::Invalid, "store", key.as_str())
                .because("its name is that of a folder of other objects")
                .with_source(cause),
            _ => write_failure(root, key, cause),
        })?;

        // 4. The temporary name. Crash after: as after 3, without it.
        drop(self);

        // 5. The name, durably. Crash after: nothing is lost, and only the caller does not know.
        sync_folder(folder).map_err(failure)
    }

    fn move_to(&self, target: &Path, mode: PutMode) -> io::Result<()> {
        match mode {
            PutMode::Overwrite => Ok(rustix::fs::rename(&self.path, target)?),
            PutMode::Create => match self.link_to(target) {
                // NFS sends a request again whose answer was lost: the name that is in the way may be the one just made.
                Err(Errno::EXIST) if self.stands_at(target)? => Ok(()),
                placed => Ok(placed?),
            },
        }
    }

    fn link_to(&self, target: &Path) -> Result<(), Errno> {
        match rustix::fs::link(&self.path, target) {
            // exFAT, and some network and user-space file systems, have no hard links.
            Err(Errno::PERM | Errno::OPNOTSUPP | Errno::NOSYS | Errno::MLINK) => {
                rename_no_replace(&self.path, target)
            }
            linked => linked,
        }
    }

    fn stands_at(&self, target: &Path) -> io::Result<bool> {
        let (own, there) = (self.file.metadata()?, std::fs::symlink_metadata(target)?);
        Ok((own.dev(), own.ino()) == (there.dev(), there.ino()))
    }
}

fn rename_no_replace(from: &Path, to: &Path) -> Result<(), Errno> {
    rustix::fs::renameat_with(CWD, from, CWD, to, RenameFlags::NOREPLACE)
}

/// Makes a folder and those above it, each durable before anything is put into it: an object is as durable as the
/// least durable folder on its way.
///
/// That rule, kept by everyone who writes here, is also what makes an existing folder cheap: one that has an entry was
/// made durable before it got it, and so were all above it. One that is empty may be another process's, who has
/// not got to its fsync yet or was cut off before it, and is made durable once more. (For the same reason nobody here
/// removes a folder that has become empty.)
fn ensure_folder(root: &Root, folder: &Path) -> io::Result<()> {
    if folder == root.path() || has_entry(folder)? {
        return Ok(());
    }
    let parent = folder.parent().unwrap_or(root.path());
    ensure_folder(root, parent)?;
    make_folder(folder)?;
    sync_folder(parent)
}

fn has_entry(folder: &Path) -> io::Result<bool> {
    match std::fs::read_dir(folder) {
        Ok(mut entries) => entries.next().transpose().map(|entry| entry.is_some()),
        Err(cause) if cause.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(cause) => Err(cause),
    }
}

fn is_folder(path: &Path) -> bool {
    std::fs::symlink_metadata(path).is_ok_and(|metadata| metadata.is_dir())
}

/// "Not there" is no answer to a write.
fn write_failure(root: &Root, key: &Key, cause: io::Error) -> StoreError {
    if let Err(away) = root.check() {
        return away;
    }
    let error = |kind| root.error(kind, "store", key.as_str());
    let failed = match Errno::from_io_error(&cause) {
        Some(Errno::NOTDIR) => error(StoreErrorKind::Invalid)
            .because("something on the way to it is no folder; a key below another object's key can not be stored"),
        Some(Errno::NOENT) => {
            error(StoreErrorKind::Unavailable).because("folders on the way to it vanish while it is being stored")
        }
        Some(Errno::INVAL | Errno::OPNOTSUPP | Errno::NOSYS | Errno::XDEV) => error(StoreErrorKind::Invalid).because(
            "the store needs one file system that has hard links or renameat2 with RENAME_NOREPLACE, and fsync on folders",
        ),
        _ => error(kind(&cause)),
    };
    failed.with_source(cause)
}

pub(super) fn delete(root: &Root, key: &Key) -> Result<(), StoreError> {
    let target = root.path_of(key);
    let removed = match std::fs::remove_file(&target) {
        // A name of a folder is none of an object.
        Err(cause) if cause.kind() == io::ErrorKind::IsADirectory => return Ok(()),
        // One that is absent may have been removed by a process that was cut off before its fsync.
        Err(cause) if cause.kind() != io::ErrorKind::NotFound => Err(cause),
        _ => sync_folder(target.parent().unwrap_or(root.path())),
    };
    match removed.map_err(|cause| root.failure("delete", key.as_str(), cause)) {
        Err(error) if error.kind() == StoreErrorKind::NotFound => Ok(()),
        Err(error) => Err(error),
        Ok(()) => root.check(),
    }
}

pub(super) fn confirm_durable(root: &Root, key: &Key) -> Result<(), StoreError> {
    let (_, file) = root.open_object("make durable", key)?;
    let failure = |cause| root.failure("make durable", key.as_str(), cause);
    file.sync_all().map_err(failure)?;
    let target = root.path_of(key);
    for folder in target.ancestors().skip(1) {
        sync_folder(folder).map_err(failure)?;
        if folder == root.path() {
            break;
        }
    }
    Ok(())
}

pub(super) fn sweep(root: &Root, older_than: jiff::Timestamp) -> Result<u64, StoreError> {
    let folder = root.path().join(FOLDER);
    let failure = |cause| root.failure("sweep", FOLDER, cause);
    let entries = match std::fs::read_dir(&folder) {
        Err(cause) if cause.kind() == io::ErrorKind::NotFound => return root.check().map(|()| 0),
        entries => entries.map_err(failure)?,
    };
    let mut swept = 0;
    for entry in entries {
        let path = entry.map_err(failure)?.path();
        let removed = std::fs::symlink_metadata(&path).and_then(|metadata| {
            let stale = metadata.is_file() && modified(&metadata) < older_than;
            if stale {
                std::fs::remove_file(&path).map(|()| 1)
            } else {
                Ok(0)
            }
        });
        swept += match removed {
            // Its writer has just finished.
            Err(cause) if cause.kind() == io::ErrorKind::NotFound => 0,
            removed => removed.map_err(failure)?,
        };
    }
    Ok(swept)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// File systems without hard links are rare where tests run; their way is tried by itself.
    #[test]
    fn where_links_are_refused_renaming_replaces_nothing() {
        let place = tempfile::tempdir().unwrap();
        let (from, to) = (place.path().join("from"), place.path().join("to"));
        std::fs::write(&from, "new").unwrap();
        std::fs::write(&to, "old").unwrap();
        assert_eq!(
            rename_no_replace(&from, &to),
            Err(Errno::EXIST),
            "a taken name is refused"
        );
        assert_eq!(std::fs::read(&to).unwrap(), b"old", "what was there stays");
        std::fs::remove_file(&to).unwrap();
        rename_no_replace(&from, &to).unwrap();
        assert_eq!(std::fs::read(&to).unwrap(), b"new", "a free name is taken");
    }
}
