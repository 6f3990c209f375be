//! Marks: what says that a file in `pg_wal` is durable in every required repository before PostgreSQL asks for it.
//!
//! A mark is a statement about a file and its object, and it is believed only where the same statement, made anew from what is there now,
//! reads the same to the last byte. So a mark that is torn, old, of another cluster, another repository or another file of the same
//! name costs one push that would not have been needed, and nothing else: marks need no fsync.

use std::fs;
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use walden_model::{ClusterName, RandomId};
use walden_pg::{SystemIdentifier, WalFileName};
use walden_store::ObjectMeta;

use super::source::Stamp;

/// Below `pg_wal`, whose content no base backup takes: marks do not get into a restored cluster. (One that a copy of the whole data
/// directory takes along speaks of another file's inode.)
const FOLDER: &str = "walden.ahead";

/// Stale marks that one call removes at most, so that its time has a bound.
const SWEEP: usize = 1_000;

/// The marks of one `pg_wal`.
#[derive(Debug, Clone)]
pub(super) struct Marks {
    pg_wal: PathBuf,
}

impl Marks {
    /// Those beside a file that PostgreSQL has ready: only of such a one are there marks. `None` for a file that a person hands over from
    /// elsewhere, or as a user who does not own `pg_wal` and whose marks PostgreSQL's user could not remove.
    pub fn beside(path: &Path, file: WalFileName) -> Option<Marks> {
        let pg_wal = match path.parent()? {
            parent if parent.as_os_str().is_empty() => Path::new("."),
            parent => parent,
        };
        let marks = Marks {
            pg_wal: pg_wal.to_owned(),
        };
        let owner = fs::metadata(pg_wal).ok()?.uid();
        (fs::exists(marks.status().join(format!("{file}.ready"))).ok()?
            && owner == rustix::process::geteuid().as_raw())
        .then_some(marks)
    }

    /// PostgreSQL's folder of what is to be archived (xlogarchive.c, `XLogArchiveNotify`).
    fn status(&self) -> PathBuf {
        self.pg_wal.join("archive_status")
    }

    fn folder(&self) -> PathBuf {
        self.pg_wal.join(FOLDER)
    }

    pub fn path_of(&self, file: WalFileName) -> PathBuf {
        self.pg_wal.join(file.to_string())
    }

    /// What a file's mark says; `None` if there is none.
    pub fn read(&self, file: WalFileName) -> Option<Vec<u8>> {
        fs::read(self.folder().join(file.to_string())).ok()
    }

    /// Takes a file's mark away. One that stays is checked again before anybody believes it.
    pub fn remove(&self, file: WalFileName) {
        let path = self.folder().join(file.to_string());
        if let Err(error) = fs::remove_file(&path)
            && error.kind() != io::ErrorKind::NotFound
        {
            tracing::warn!(%error, "{} cannot be removed", path.display());
        }
    }

    /// Puts a file's mark in place, in one step.
    pub fn write(&self, file: WalFileName, statement: &str) -> io::Result<()> {
        let temporary = self
            .folder()
            .join(format!("{file}.{:016x}", rand::random::<u64>()));
        let written = fs::OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(&temporary)
            .and_then(|mut mark| mark.write_all(statement.as_bytes()))
            .and_then(|()| fs::rename(&temporary, self.folder().join(file.to_string())));
        written.inspect_err(|_| {
            // What stays is swept by a later call.
            let _ = fs::remove_file(&temporary);
        })
    }

    /// The files that PostgreSQL has ready, in its archiver's order (pgarch.c, `ready_file_comparator`): histories first, then by name.
    /// Of each kind but segments and histories, its own call takes care.
    pub fn ready(&self) -> io::Result<Vec<WalFileName>> {
        let mut files = Vec::new();
        for entry in fs::read_dir(self.status())? {
            let name = entry?.file_name();
            let file = name.to_str().and_then(|name| name.strip_suffix(".ready"));
            if let Some(Ok(file @ (WalFileName::Segment(_) | WalFileName::History(_)))) =
                file.map(str::parse)
            {
                files.push(file);
            }
        }
        // The numbers in a name stand in it with all their digits, so their order is that of the names.
        files.sort_unstable_by_key(|file| (!matches!(file, WalFileName::History(_)), *file));
        Ok(files)
    }

    /// Makes the folder, and removes the marks of files that are no longer ready, with what killed calls left.
    pub fn prepare(&self, ready: &[WalFileName]) -> io::Result<()> {
        let folder = self.folder();
        match fs::DirBuilder::new().mode(0o700).create(&folder) {
            Ok(()) => return Ok(()),
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
            Err(error) => return Err(error),
        }
        for entry in fs::read_dir(&folder)?.take(SWEEP) {
            let entry = entry?;
            let file = entry.file_name().to_str().map(str::parse::<WalFileName>);
            if !matches!(file, Some(Ok(file)) if ready.contains(&file)) {
                let _ = fs::remove_file(entry.path());
            }
        }
        Ok(())
    }
}

/// What a repository knows of a file's object.
pub(super) struct Copy {
    pub location: String,
    pub repository: RandomId,
    pub object: ObjectMeta,
}

/// All that a mark says.
pub(super) struct Statement<'a> {
    pub file: WalFileName,
    /// The file's, unchanged from before its first byte was read until after its object was durable.
    pub stamp: &'a Stamp,
    pub system: SystemIdentifier,
    pub cluster: &'a ClusterName,
    /// One for each required repository, in the configuration's order: where that changes, marks no longer hold.
    pub copies: Vec<Copy>,
}

impl std::fmt::Display for Statement<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        writeln!(f, "walden mark 1")?;
        writeln!(f, "file {} {}", self.file, self.stamp)?;
        writeln!(f, "cluster {} {}", self.cluster, self.system)?;
        for copy in &self.copies {
            writeln!(f, "repository {} {:?}", copy.repository, copy.location)?;
            let ObjectMeta {
                key,
                size,
                modified,
            } = &copy.object;
            let modified = modified.as_nanosecond();
            writeln!(f, "object {key} size {size} modified {modified}")?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(files: &[WalFileName]) -> Vec<String> {
        files.iter().map(WalFileName::to_string).collect()
    }

    fn pg_wal(ready: &[&str]) -> (tempfile::TempDir, Marks) {
        let dir = tempfile::tempdir().unwrap();
        let marks = Marks {
            pg_wal: dir.path().to_owned(),
        };
        fs::create_dir(marks.status()).unwrap();
        for name in ready {
            fs::write(marks.status().join(name), "").unwrap();
        }
        (dir, marks)
    }

    #[test]
    fn files_come_in_the_archivers_order() {
        let (_dir, marks) = pg_wal(&[
            "0000000200000001000000FF.ready",
            "000000020000000200000000.ready",
            "00000001000000AA00000001.ready",
            "0000000A.history.ready",
            "00000002.history.ready",
            // Done, of another kind, and of nobody's.
            "000000010000000000000001.done",
            "00000001000000AA00000001.00000028.backup.ready",
            "00000001000000AA00000002.partial.ready",
            "RECOVERYXLOG.ready",
        ]);
        assert_eq!(
            names(&marks.ready().unwrap()),
            [
                "00000002.history",
                "0000000A.history",
                "00000001000000AA00000001",
                "0000000200000001000000FF",
                "000000020000000200000000",
            ],
            "histories first, then by name"
        );
    }

    #[test]
    fn marks_of_files_that_are_not_ready_are_removed() {
        let (_dir, marks) = pg_wal(&["000000010000000000000002.ready"]);
        let ready = marks.ready().unwrap();
        marks.prepare(&ready).unwrap();
        let gone: WalFileName = "000000010000000000000001".parse().unwrap();
        let stays: WalFileName = "000000010000000000000002".parse().unwrap();
        for file in [gone, stays] {
            marks.write(file, "a statement\n").unwrap();
        }
        fs::write(marks.folder().join("000000010000000000000002.1f"), "half").unwrap();
        marks.prepare(&ready).unwrap();
        let left: Vec<_> = fs::read_dir(marks.folder())
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        assert_eq!(
            left,
            ["000000010000000000000002"],
            "only the mark of a file that is still ready stays"
        );
        assert_eq!(marks.read(stays).unwrap(), b"a statement\n");
        assert_eq!(marks.read(gone), None, "a mark that was removed");
    }
}
