//! Where the parts of a restored cluster go, and whether they can go there. Looks, and changes nothing.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::fs;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use rustix::fs::{Access, access, statvfs};
use walden_model::{BackupId, Tablespace};

use super::index::FileIndex;

/// A tablespace, and where it goes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TablespacePlace {
    /// Its OID.
    pub oid: u32,
    /// Where it stood on the server.
    pub original: PathBuf,
    /// Where it goes.
    pub target: PathBuf,
    /// Bytes of content.
    pub size: u64,
}

impl TablespacePlace {
    /// Whether it goes elsewhere than it was.
    pub fn is_mapped(&self) -> bool {
        self.original != self.target
    }
}

/// Where everything goes; all paths are absolute.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Places {
    /// PGDATA.
    pub data: PathBuf,
    /// A folder of its own for `pg_wal`, which then is a link.
    pub wal: Option<PathBuf>,
    /// Configuration files that the server kept outside PGDATA: beside it, for people, under `<PGDATA>.extras`.
    pub extras: PathBuf,
    /// Tablespaces by OID.
    pub tablespaces: Vec<TablespacePlace>,
}

/// Why a restore cannot go where it should.
#[derive(Debug, thiserror::Error)]
pub enum PlaceError {
    /// Something is there.
    #[error("directory \"{}\" exists but is not empty; empty it, or restore into another directory", .0.display())]
    NotEmpty(PathBuf),
    /// A server may run there.
    #[error("a server runs, or ran, in \"{}\": it has a postmaster.pid. Restore into another directory", .0.display())]
    ServerThere(PathBuf),
    /// A tablespace's own place is taken.
    #[error(
        "tablespace {oid} was in \"{0}\", which exists but is not empty; give it another place with --tablespace-map {0}=NEW",
        original.display()
    )]
    TablespaceTaken {
        /// Which.
        oid: u32,
        /// Where it was.
        original: PathBuf,
    },
    /// Recovery would make a tablespace in the original's own place.
    #[error(
        "tablespace {oid} in \"{}\" was made after backup {backup}. PostgreSQL would make it again while it recovers, in that very place, where \
         the original's files are, and write into them; --tablespace-map cannot move it. Take a new backup, which has it, and restore that; \
         or restore on another host; or say --take-over if this copy takes the original's place", place.display()
    )]
    NewTablespace {
        /// Which.
        oid: u32,
        /// Where it is.
        place: PathBuf,
        /// What does not have it.
        backup: BackupId,
    },
    /// Not a directory.
    #[error("\"{}\" exists and is not a directory", .0.display())]
    NotDirectory(PathBuf),
    /// A path that must be absolute.
    #[error("{what} \"{}\" must be an absolute path", path.display())]
    NotAbsolute {
        /// Of what.
        what: &'static str,
        /// The path.
        path: PathBuf,
    },
    /// `--tablespace-map` names something else.
    #[error(
        "--tablespace-map names \"{}\", which is no tablespace of this backup{}", old.display(),
        if known.is_empty() { "; it has none".to_owned() } else { format!("; it has: {}", known.join(", ")) }
    )]
    NoSuchTablespace {
        /// The OLD that was given.
        old: PathBuf,
        /// What the backup has.
        known: Vec<String>,
    },
    /// `--tablespace-map` names a tablespace twice.
    #[error("--tablespace-map names \"{}\" twice", .0.display())]
    MappedTwice(PathBuf),
    /// One place lies within another.
    #[error("\"{}\" and \"{}\" lie within each other; each needs a place of its own", .0.display(), .1.display())]
    Overlap(PathBuf, PathBuf),
    /// The directory above is missing.
    #[error("\"{}\" cannot be made: the directory above it does not exist", .0.display())]
    NoParent(PathBuf),
    /// The directory above, or the directory itself, cannot be written.
    #[error("\"{}\" cannot be written by this user", .0.display())]
    NotWritable(PathBuf),
    /// Too little space.
    #[error("\"{}\" has room for {available} bytes, and {needed} are needed there", path.display())]
    NoSpace {
        /// A place on that file system.
        path: PathBuf,
        /// What goes there.
        needed: u64,
        /// What is free.
        available: u64,
    },
    /// The system does not say.
    #[error("cannot look at \"{}\"", path.display())]
    Look {
        /// What was looked at.
        path: PathBuf,
        /// Why not.
        #[source]
        source: io::Error,
    },
}

fn look(path: &Path) -> impl FnOnce(io::Error) -> PlaceError {
    let path = path.to_path_buf();
    move |source| PlaceError::Look { path, source }
}

impl Places {
    /// Decides where everything goes. `map` is a list of OLD and NEW.
    pub fn new(
        target: &Path,
        wal: Option<&Path>,
        tablespaces: &[Tablespace],
        map: &[(PathBuf, PathBuf)],
    ) -> Result<Places, PlaceError> {
        let data = std::path::absolute(target)
            .map_err(look(target))?
            .components()
            .collect::<PathBuf>();
        if let Some(wal) = wal {
            absolute("the WAL directory", wal)?;
        }
        for (at, (old, new)) in map.iter().enumerate() {
            absolute("the new place of a tablespace", new)?;
            if !tablespaces
                .iter()
                .any(|tablespace| Path::new(&tablespace.path) == old)
            {
                return Err(PlaceError::NoSuchTablespace {
                    old: old.clone(),
                    known: tablespaces
                        .iter()
                        .map(|tablespace| tablespace.path.clone())
                        .collect(),
                });
            }
            if map.iter().take(at).any(|(earlier, _)| earlier == old) {
                return Err(PlaceError::MappedTwice(old.clone()));
            }
        }
        let mut extras = data.as_os_str().to_owned();
        extras.push(".extras");
        let place = |tablespace: &Tablespace| {
            let original = PathBuf::from(&tablespace.path);
            absolute("a tablespace's place", &original)?;
            let mapped = map
                .iter()
                .find(|(old, _)| *old == original)
                .map(|(_, new)| new.components().collect());
            Ok(TablespacePlace {
                oid: tablespace.oid,
                target: mapped.unwrap_or_else(|| original.clone()),
                original,
                size: tablespace.size,
            })
        };
        Ok(Places {
            data,
            wal: wal.map(|wal| wal.components().collect()),
            extras: extras.into(),
            tablespaces: tablespaces.iter().map(place).collect::<Result<_, _>>()?,
        })
    }

    /// The place of one of the backup's files or directories. `path` was validated with its entry; no link is followed on the way, for
    /// those that lead out of PGDATA are resolved here.
    pub(super) fn resolve(&self, path: &[u8], extra: bool) -> PathBuf {
        let join = |base: &Path, rest: &[u8]| match rest {
            b"" => base.to_path_buf(),
            rest => base.join(OsStr::from_bytes(rest)),
        };
        if extra {
            return join(&self.extras, path.strip_prefix(b"/").unwrap_or(path));
        }
        if let Some(wal) = &self.wal
            && let Some(rest) = below(path, b"pg_wal")
        {
            return join(wal, rest);
        }
        for tablespace in &self.tablespaces {
            if let Some(rest) = below(path, format!("pg_tblspc/{}", tablespace.oid).as_bytes()) {
                return join(&tablespace.target, rest);
            }
        }
        join(&self.data, path)
    }

    /// Every directory that is to be filled, PGDATA first; that of the extras only where there are any.
    pub(super) fn roots(&self, with_extras: bool) -> Vec<&Path> {
        let tablespaces = self
            .tablespaces
            .iter()
            .map(|tablespace| tablespace.target.as_path());
        let extras = with_extras.then_some(self.extras.as_path());
        std::iter::once(self.data.as_path())
            .chain(self.wal.as_deref())
            .chain(tablespaces)
            .chain(extras)
            .collect()
    }

    /// Whether nothing is in the way.
    pub(super) fn check_free(&self, with_extras: bool) -> Result<(), PlaceError> {
        let roots = self.roots(with_extras);
        for root in &roots {
            match self.check_root(root) {
                Err(PlaceError::NotEmpty(path)) => {
                    let unmapped = self
                        .tablespaces
                        .iter()
                        .find(|t| t.target == path && !t.is_mapped());
                    return Err(match unmapped {
                        Some(t) => PlaceError::TablespaceTaken {
                            oid: t.oid,
                            original: t.original.clone(),
                        },
                        None => PlaceError::NotEmpty(path),
                    });
                }
                other => other?,
            }
        }
        let real: Vec<_> = roots
            .iter()
            .map(|root| real_path(root))
            .collect::<Result<_, _>>()?;
        for (at, a) in real.iter().enumerate() {
            for b in real.iter().skip(at + 1) {
                if a.starts_with(b) || b.starts_with(a) {
                    return Err(PlaceError::Overlap(a.clone(), b.clone()));
                }
            }
        }
        Ok(())
    }

    fn check_root(&self, root: &Path) -> Result<(), PlaceError> {
        let mut entries = match fs::read_dir(root) {
            Ok(entries) => entries,
            Err(e)
                if e.kind() == io::ErrorKind::NotFound && fs::symlink_metadata(root).is_err() =>
            {
                let parent = root.parent().unwrap_or(root);
                return match fs::metadata(parent) {
                    Ok(meta) if meta.is_dir() => writable(parent),
                    _ => Err(PlaceError::NoParent(root.to_path_buf())),
                };
            }
            Err(e) if e.kind() == io::ErrorKind::PermissionDenied => return Err(look(root)(e)),
            Err(_) => return Err(PlaceError::NotDirectory(root.to_path_buf())),
        };
        if root.join("postmaster.pid").exists() {
            return Err(PlaceError::ServerThere(root.to_path_buf()));
        }
        match entries.next() {
            Some(_) => Err(PlaceError::NotEmpty(root.to_path_buf())),
            None => writable(root),
        }
    }

    /// Whether the files fit onto the file systems. Holes of files are not counted as saved: PostgreSQL fills them.
    pub(super) fn check_space(&self, index: &FileIndex) -> Result<(), PlaceError> {
        let mut by_root: BTreeMap<PathBuf, u64> = BTreeMap::new();
        let roots = self.roots(true);
        for file in index.files() {
            let place = self.resolve(file.path, file.extra);
            let root = roots
                .iter()
                .find(|root| place.starts_with(root))
                .unwrap_or(&self.data.as_path())
                .to_path_buf();
            let sum = by_root.entry(root).or_default();
            *sum = sum.saturating_add(file.size);
        }
        let mut by_device: BTreeMap<u64, (PathBuf, u64)> = BTreeMap::new();
        for (root, size) in by_root {
            let existing = existing(&root);
            let device = fs::metadata(&existing).map_err(look(&existing))?.dev();
            let (_, sum) = by_device.entry(device).or_insert((existing, 0));
            *sum = sum.saturating_add(size);
        }
        for (path, needed) in by_device.into_values() {
            let vfs = statvfs(&path).map_err(|e| look(&path)(e.into()))?;
            let available = vfs.f_bavail.saturating_mul(vfs.f_frsize);
            if needed > available {
                return Err(PlaceError::NoSpace {
                    path,
                    needed,
                    available,
                });
            }
        }
        Ok(())
    }
}

/// What of `path` lies at or below `folder`.
fn below<'a>(path: &'a [u8], folder: &[u8]) -> Option<&'a [u8]> {
    match path.strip_prefix(folder)? {
        b"" => Some(b""),
        rest => rest.strip_prefix(b"/"),
    }
}

fn absolute(what: &'static str, path: &Path) -> Result<(), PlaceError> {
    if path.is_absolute() {
        Ok(())
    } else {
        Err(PlaceError::NotAbsolute {
            what,
            path: path.to_path_buf(),
        })
    }
}

fn writable(path: &Path) -> Result<(), PlaceError> {
    access(path, Access::WRITE_OK | Access::EXEC_OK)
        .map_err(|_| PlaceError::NotWritable(path.to_path_buf()))
}

/// The nearest directory that is there.
fn existing(path: &Path) -> PathBuf {
    path.ancestors()
        .find(|path| path.exists())
        .unwrap_or(Path::new("/"))
        .to_path_buf()
}

/// The path with the links of what is there resolved, so that two names of one place are seen as such.
fn real_path(path: &Path) -> Result<PathBuf, PlaceError> {
    let there = existing(path);
    let rest = path.strip_prefix(&there).unwrap_or(Path::new(""));
    Ok(fs::canonicalize(&there).map_err(look(&there))?.join(rest))
}
