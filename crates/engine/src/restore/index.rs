//! The file map in memory: small for each file, because there may be a million of them.

use std::io;
use std::sync::{Arc, Mutex, PoisonError};

use walden_model::{
    BackupRecord, Extent, FileBody, FileContent, FileEntry, HeadKind, SystemKeys, keys,
};

use super::RestoreError;
use crate::archive::Archive;
use crate::codec::Expected;
use crate::host;

/// Larger than any control file (`PG_CONTROL_FILE_SIZE` in catalog/pg_control.h is 8192); it is held in memory.
const MAX_CONTROL: u64 = 64 * 1024;

/// What a restored cluster cannot be recovered without. Without `backup_label` PostgreSQL would start as after a crash, from the wrong
/// place, and corrupt the cluster.
const REQUIRED: [&str; 3] = [host::CONTROL, "backup_label", "PG_VERSION"];

/// Why a file map is refused although its digests fit.
#[derive(Debug, thiserror::Error)]
pub enum FileMapError {
    /// A chunk of the map does not end at a line's end.
    #[error("the file map has a line that is not ended")]
    CutLine,
    /// More lines than the commit document says.
    #[error("the file map has not {0} entries, as the commit document says")]
    Entries(u64),
    /// Entries do not rise.
    #[error("the file map names {0:?} twice or out of order")]
    Order(String),
    /// An extent names a pack that the backup has not.
    #[error("the file map's entry {path:?} lies in pack {pack}, and the backup has {packs}")]
    NoPack {
        /// The entry.
        path: String,
        /// The index that it names.
        pack: u32,
        /// How many there are.
        packs: usize,
    },
    /// A link that is none of the backup's tablespaces.
    #[error("the file map has a link {0:?}, which is none of the backup's tablespaces")]
    StrangeLink(String),
    /// A file without which nothing starts.
    #[error("the backup has no {0}")]
    Lacks(&'static str),
    /// A control file of impossible size.
    #[error("the backup's global/pg_control has {0} bytes")]
    ControlSize(u64),
    /// More than this program counts.
    #[error("the backup has more files, or pieces of files, than Walden can count")]
    TooMany,
}

/// A directory of the backup.
#[derive(Debug)]
pub(super) struct Directory {
    pub path: Box<[u8]>,
    pub mode: u32,
}

#[derive(Debug)]
struct Item {
    path_end: usize,
    extents_end: u32,
    size: u64,
    crc32c: u32,
    mode: u16,
    extra: bool,
}

/// A file of the backup.
#[derive(Debug, Clone, Copy)]
pub(super) struct FileRef<'a> {
    pub path: &'a [u8],
    pub size: u64,
    pub crc32c: u32,
    pub mode: u32,
    /// A configuration file from outside PGDATA; its path is absolute.
    pub extra: bool,
    pub extents: &'a [Piece],
    /// The number of the first of them.
    pub first_extent: usize,
}

/// An extent, and whose it is.
#[derive(Debug, Clone, Copy)]
pub(super) struct Piece {
    pub file: u32,
    pub offset: u64,
    pub length: u64,
    /// Where the bytes stand; `None` for zeroes.
    pub data: Option<Stand>,
}

/// A place in the content stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Stand {
    pub pack: u32,
    pub frame: u32,
    pub offset: u32,
}

/// Every file and directory of a backup.
#[derive(Debug, Default)]
pub(super) struct FileIndex {
    paths: Vec<u8>,
    files: Vec<Item>,
    pieces: Vec<Piece>,
    /// The numbers of the pieces that have data, in the order of the packs.
    order: Vec<u32>,
    pub directories: Vec<Directory>,
    control: Option<u32>,
}

impl FileIndex {
    /// Reads the file map, shard by shard. What it gives is proven: every shard is the one that the commit document names.
    pub async fn read(
        archive: &Archive,
        keys: &SystemKeys,
        record: &BackupRecord,
    ) -> Result<FileIndex, RestoreError> {
        let builder = Arc::new(Mutex::new(Builder::new(record)));
        for shard in &record.file_map {
            let key = keys.file_map(&record.backup_id, shard.number);
            let expected = Expected {
                kind: HeadKind::FileMap,
                archive_id: record.archive_id,
                key: keys::below_cluster(&key).to_owned(),
            };
            let begin = lock(&builder).mark();
            let sink = || {
                let mut building = lock(&builder);
                building.back_to(&begin);
                building.entries_left = shard.entries;
                let builder = builder.clone();
                move |content: Vec<u8>| lock(&builder).add_lines(&content)
            };
            archive
                .read_object(&key, &expected, Some(shard.table), sink)
                .await?;
            if lock(&builder).entries_left > 0 {
                return Err(FileMapError::Entries(shard.entries).into());
            }
        }
        let builder = std::mem::replace(&mut *lock(&builder), Builder::new(record));
        Ok(builder.finish()?)
    }

    pub fn len(&self) -> usize {
        self.files.len()
    }

    pub fn file(&self, number: usize) -> Option<FileRef<'_>> {
        let item = self.files.get(number)?;
        let before = number
            .checked_sub(1)
            .and_then(|before| self.files.get(before));
        let path_start = before.map_or(0, |before| before.path_end);
        let first_extent = before.map_or(0, |before| before.extents_end as usize);
        Some(FileRef {
            path: self.paths.get(path_start..item.path_end)?,
            size: item.size,
            crc32c: item.crc32c,
            mode: u32::from(item.mode),
            extra: item.extra,
            extents: self.pieces.get(first_extent..item.extents_end as usize)?,
            first_extent,
        })
    }

    pub fn files(&self) -> impl Iterator<Item = FileRef<'_>> {
        (0..self.files.len()).filter_map(|number| self.file(number))
    }

    pub fn pieces(&self) -> &[Piece] {
        &self.pieces
    }

    /// The numbers of the pieces in one pack, in its order.
    pub fn pieces_of(&self, pack: u32) -> &[u32] {
        let at = |number: u32| self.stand(number).map_or(u32::MAX, |stand| stand.pack);
        let first = self.order.partition_point(|&number| at(number) < pack);
        let behind = self.order.partition_point(|&number| at(number) <= pack);
        self.order.get(first..behind).unwrap_or_default()
    }

    fn stand(&self, piece: u32) -> Option<Stand> {
        self.pieces.get(piece as usize)?.data
    }

    /// The control file's number and size.
    pub fn control(&self) -> Option<(u32, u64)> {
        let number = self.control?;
        Some((number, self.files.get(number as usize)?.size))
    }

    /// Bytes that the packs must give.
    pub fn data_size(&self) -> u64 {
        let data = self.pieces.iter().filter(|piece| piece.data.is_some());
        data.fold(0, |sum, piece| sum.saturating_add(piece.length))
    }
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn refused(why: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, why)
}

/// Where a shard begins: what one repository gave of it does not count once another is asked.
struct Mark {
    paths: usize,
    files: usize,
    pieces: usize,
    directories: usize,
    control: Option<u32>,
    last: Vec<u8>,
    last_is_file: bool,
}

/// Makes an index of lines that may be hostile.
struct Builder {
    index: FileIndex,
    last: Vec<u8>,
    last_is_file: bool,
    packs: usize,
    links: Vec<Vec<u8>>,
    entries_left: u64,
}

impl Builder {
    fn new(record: &BackupRecord) -> Self {
        Builder {
            index: FileIndex::default(),
            last: Vec::new(),
            last_is_file: false,
            packs: record.packs.len(),
            links: record
                .tablespaces
                .iter()
                .map(|t| format!("pg_tblspc/{}", t.oid).into_bytes())
                .collect(),
            entries_left: 0,
        }
    }

    /// How much there is, to come back to.
    fn mark(&self) -> Mark {
        Mark {
            paths: self.index.paths.len(),
            files: self.index.files.len(),
            pieces: self.index.pieces.len(),
            directories: self.index.directories.len(),
            control: self.index.control,
            last: self.last.clone(),
            last_is_file: self.last_is_file,
        }
    }

    fn back_to(&mut self, mark: &Mark) {
        self.index.paths.truncate(mark.paths);
        self.index.files.truncate(mark.files);
        self.index.pieces.truncate(mark.pieces);
        self.index.directories.truncate(mark.directories);
        self.index.control = mark.control;
        self.last.clone_from(&mark.last);
        self.last_is_file = mark.last_is_file;
    }

    fn add_lines(&mut self, content: &[u8]) -> io::Result<()> {
        let lines = content
            .strip_suffix(b"\n")
            .ok_or_else(|| refused(FileMapError::CutLine))?;
        for line in lines.split(|&byte| byte == b'\n') {
            let more = self.entries_left.checked_sub(1);
            self.entries_left = more.ok_or_else(|| refused(FileMapError::Entries(0)))?;
            let entry = FileEntry::decode_line(line).map_err(refused)?;
            self.add(entry).map_err(refused)?;
        }
        Ok(())
    }

    fn add(&mut self, entry: FileEntry) -> Result<(), FileMapError> {
        let is_file = entry.content().is_some();
        let path = || String::from_utf8_lossy(&entry.path).into_owned();
        // A tablespace's folder may come as the link and as the root of its own tree; two contents of one file may not.
        let rises =
            entry.path > self.last || (entry.path == self.last && !is_file && !self.last_is_file);
        if !rises {
            return Err(FileMapError::Order(path()));
        }
        self.last.clone_from(&entry.path);
        self.last_is_file = is_file;
        match &entry.body {
            FileBody::File(content) => self.add_file(&entry, content, false),
            FileBody::Extra(content) => self.add_file(&entry, content, true),
            FileBody::Directory => {
                let directory = Directory {
                    path: entry.path.into(),
                    mode: entry.mode,
                };
                self.index.directories.push(directory);
                Ok(())
            }
            // Where it leads is decided by the plan.
            FileBody::Link { .. } if self.links.contains(&entry.path) => Ok(()),
            FileBody::Link { .. } => Err(FileMapError::StrangeLink(path())),
        }
    }

    fn add_file(
        &mut self,
        entry: &FileEntry,
        content: &FileContent,
        extra: bool,
    ) -> Result<(), FileMapError> {
        let index = &mut self.index;
        let file = u32::try_from(index.files.len()).map_err(|_| FileMapError::TooMany)?;
        for extent in &content.extents {
            let data = match *extent {
                Extent::Data {
                    pack,
                    frame,
                    frame_offset,
                    ..
                } => {
                    if pack as usize >= self.packs {
                        return Err(FileMapError::NoPack {
                            path: entry.path_text(),
                            pack,
                            packs: self.packs,
                        });
                    }
                    Some(Stand {
                        pack,
                        frame,
                        offset: frame_offset,
                    })
                }
                Extent::Zero { .. } | Extent::Hole { .. } => None,
            };
            index.pieces.push(Piece {
                file,
                offset: extent.offset(),
                length: extent.length(),
                data,
            });
        }
        if !extra && entry.path == host::CONTROL.as_bytes() {
            if content.size > MAX_CONTROL {
                return Err(FileMapError::ControlSize(content.size));
            }
            index.control = Some(file);
        }
        index.paths.extend_from_slice(&entry.path);
        index.files.push(Item {
            path_end: index.paths.len(),
            extents_end: u32::try_from(index.pieces.len()).map_err(|_| FileMapError::TooMany)?,
            size: content.size,
            crc32c: content.crc32c,
            // Permission bits alone: neither setuid nor its kin.
            mode: (entry.mode & 0o777) as u16,
            extra,
        });
        Ok(())
    }

    fn finish(self) -> Result<FileIndex, FileMapError> {
        let mut index = self.index;
        for name in REQUIRED {
            if !index
                .files()
                .any(|file| !file.extra && file.path == name.as_bytes())
            {
                return Err(FileMapError::Lacks(name));
            }
        }
        let with_data = |number: &u32| index.stand(*number).is_some();
        let mut order: Vec<u32> = (0..index.pieces.len() as u32).filter(with_data).collect();
        order.sort_unstable_by_key(|&number| index.stand(number));
        index.order = order;
        Ok(index)
    }
}
