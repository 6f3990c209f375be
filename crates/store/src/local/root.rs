//! The folder itself: is it there, what is under a key, and what a failure in it means.

use std::fs::{DirBuilder, File, Metadata};
use std::io;
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::{Path, PathBuf};

use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;

use crate::{Key, ObjectMeta, StoreError, StoreErrorKind};

#[derive(Debug)]
pub(super) struct Root {
    path: PathBuf,
    /// Device and inode when it was opened.
    identity: (u64, u64),
}

impl Root {
    pub(super) fn open(path: &Path) -> Result<Self, StoreError> {
        let metadata = look(path)?;
        Ok(Self {
            path: path.to_owned(),
            identity: (metadata.dev(), metadata.ino()),
        })
    }

    pub(super) fn create(path: &Path) -> Result<(), StoreError> {
        require_absolute(path)?;
        make_durably(path).map_err(|cause| {
            StoreError::new(kind(&cause), "make the folder", path.display().to_string())
                .with_source(cause)
        })
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    pub(super) fn path_of(&self, key: &Key) -> PathBuf {
        self.path.join(key.as_str())
    }

    pub(super) fn describe(&self, subject: &str) -> String {
        format!("{subject:?} in {}", self.path.display())
    }

    pub(super) fn error(
        &self,
        kind: StoreErrorKind,
        operation: &'static str,
        subject: &str,
    ) -> StoreError {
        StoreError::new(kind, operation, self.describe(subject))
    }

    /// The root is still there, and the one that was opened.
    pub(super) fn check(&self) -> Result<(), StoreError> {
        let metadata = look(&self.path)?;
        if (metadata.dev(), metadata.ino()) == self.identity {
            return Ok(());
        }
        Err(StoreError::new(StoreErrorKind::Unavailable, "use the store in", self.path.display().to_string()).because(
            "there is another folder under this path than when it was opened; was a file system mounted or unmounted?",
        ))
    }

    /// What a failed system call on something below the root means. "Not there" counts only while the root is.
    pub(super) fn failure(
        &self,
        operation: &'static str,
        subject: &str,
        cause: io::Error,
    ) -> StoreError {
        let kind = kind(&cause);
        if kind == StoreErrorKind::NotFound
            && let Err(away) = self.check()
        {
            return away;
        }
        self.error(kind, operation, subject).with_source(cause)
    }

    pub(super) fn head(&self, key: &Key) -> Result<ObjectMeta, StoreError> {
        let metadata = std::fs::symlink_metadata(self.path_of(key))
            .map_err(|cause| self.failure("look at", key.as_str(), cause))?;
        self.object(key, &metadata, "look at")
    }

    pub(super) fn open_object(
        &self,
        operation: &'static str,
        key: &Key,
    ) -> Result<(ObjectMeta, File), StoreError> {
        // NONBLOCK: opening a FIFO would otherwise wait for its writer.
        let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
        let opened = rustix::fs::open(self.path_of(key), flags, Mode::empty())
            .map(File::from)
            .map_err(io::Error::from)
            .and_then(|file| Ok((file.metadata()?, file)));
        let (metadata, file) =
            opened.map_err(|cause| self.failure(operation, key.as_str(), cause))?;
        Ok((self.object(key, &metadata, operation)?, file))
    }

    fn object(
        &self,
        key: &Key,
        metadata: &Metadata,
        operation: &'static str,
    ) -> Result<ObjectMeta, StoreError> {
        if metadata.is_file() {
            return Ok(ObjectMeta {
                key: key.clone(),
                size: metadata.len(),
                modified: modified(metadata),
            });
        }
        if metadata.is_dir() {
            return Err(self.error(StoreErrorKind::NotFound, operation, key.as_str()));
        }
        Err(self
            .error(StoreErrorKind::Invalid, operation, key.as_str())
            .because("what is in its place is no regular file; remove it"))
    }
}

pub(super) fn modified(metadata: &Metadata) -> jiff::Timestamp {
    let nanoseconds = i32::try_from(metadata.mtime_nsec()).unwrap_or_default();
    // A file system can hold times beyond the year 9999: such a one is merely very old or very new.
    let beyond = if metadata.mtime() < 0 {
        jiff::Timestamp::MIN
    } else {
        jiff::Timestamp::MAX
    };
    jiff::Timestamp::new(metadata.mtime(), nanoseconds).unwrap_or(beyond)
}

fn require_absolute(path: &Path) -> Result<(), StoreError> {
    if path.is_absolute() {
        return Ok(());
    }
    Err(StoreError::new(
        StoreErrorKind::Invalid,
        "use the store in",
        path.display().to_string(),
    )
    .because("a store's folder is given by its absolute path"))
}

fn look(path: &Path) -> Result<Metadata, StoreError> {
    require_absolute(path)?;
    let error = |kind| StoreError::new(kind, "use the store in", path.display().to_string());
    match std::fs::metadata(path) {
        Ok(metadata) if metadata.is_dir() => Ok(metadata),
        Ok(_) => Err(error(StoreErrorKind::Unavailable).because("it is no folder")),
        Err(cause) if kind(&cause) == StoreErrorKind::NotFound => {
            Err(error(StoreErrorKind::Unavailable)
                .because("the folder is missing; is its file system mounted?")
                .with_source(cause))
        }
        Err(cause) => Err(error(kind(&cause)).with_source(cause)),
    }
}

/// `mkdir -p`, each folder durable in the one above.
fn make_durably(path: &Path) -> io::Result<()> {
    let Some(parent) = path.parent() else {
        return Ok(());
    };
    let mut made = make_folder(path);
    if matches!(&made, Err(cause) if cause.kind() == io::ErrorKind::NotFound) {
        make_durably(parent)?;
        made = make_folder(path);
    }
    match made {
        Ok(true) => sync_folder(parent),
        // Perhaps by one of us who was cut off right after. Where we may not even read the parent, it was not.
        Ok(false) => sync_folder(parent).or_else(|cause| match kind(&cause) {
            StoreErrorKind::PermissionDenied => Ok(()),
            _ => Err(cause),
        }),
        Err(cause) => Err(cause),
    }
}

/// Makes one folder; false if it stood already.
pub(super) fn make_folder(path: &Path) -> io::Result<bool> {
    match DirBuilder::new().mode(0o700).create(path) {
        Ok(()) => Ok(true),
        Err(cause) if cause.kind() == io::ErrorKind::AlreadyExists && path.is_dir() => Ok(false),
        Err(cause) if cause.kind() == io::ErrorKind::AlreadyExists => Err(Errno::NOTDIR.into()),
        Err(cause) => Err(cause),
    }
}

/// Makes durable which names stand in a folder. A failure of this is a failure of the write.
pub(super) fn sync_folder(path: &Path) -> io::Result<()> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let folder = rustix::fs::open(path, flags, Mode::empty())?;
    Ok(rustix::fs::fsync(folder)?)
}

pub(super) fn kind(cause: &io::Error) -> StoreErrorKind {
    match Errno::from_io_error(cause) {
        Some(Errno::NOENT | Errno::NOTDIR) => StoreErrorKind::NotFound,
        Some(Errno::EXIST) => StoreErrorKind::AlreadyExists,
        Some(Errno::ACCESS | Errno::PERM | Errno::ROFS) => StoreErrorKind::PermissionDenied,
        Some(Errno::NOSPC | Errno::DQUOT) => StoreErrorKind::OutOfSpace,
        Some(
            Errno::LOOP
            | Errno::NAMETOOLONG
            | Errno::ISDIR
            | Errno::INVAL
            | Errno::FBIG
            | Errno::NXIO
            | Errno::XDEV
            | Errno::OPNOTSUPP
            | Errno::NOSYS,
        ) => StoreErrorKind::Invalid,
        // IO, STALE, NOTCONN, TIMEDOUT, MFILE and whatever else a file system comes up with.
        _ => StoreErrorKind::Unavailable,
    }
}
