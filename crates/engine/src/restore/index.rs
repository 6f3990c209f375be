//! The file map in memory: small for each file, because there may be a million of them.

use std::io;
use std::sync::{Arc, Mutex, PoisonError};

use walden_model::{
    BackupRecord, Extent, FileBody, FileContent, FileEntry, HeadKind, SystemKeys, keys,
};

use super::RestoreError;
use super::map::{FileMapError, MapCheck};
use crate::archive::Archive;
use crate::codec::Expected;
use crate::host;

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
                building.check.begin_shard(shard.entries);
                let builder = builder.clone();
                move |content: Vec<u8>| lock(&builder).add_lines(&content)
            };
            archive
                .read_object(&key, &expected, Some(shard.table), sink)
                .await?;
            lock(&builder).check.end_shard(shard.entries)?;
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

/// Where a shard begins: what one repository gave of it does not count once another is asked.
struct Mark {
    paths: usize,
    files: usize,
    pieces: usize,
    directories: usize,
    control: Option<u32>,
    check: MapCheck,
}

/// Makes an index of lines that may be hostile.
struct Builder {
    index: FileIndex,
    check: MapCheck,
}

impl Builder {
    fn new(record: &BackupRecord) -> Self {
        Builder {
            index: FileIndex::default(),
            check: MapCheck::new(record),
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
            check: self.check.clone(),
        }
    }

    fn back_to(&mut self, mark: &Mark) {
        self.index.paths.truncate(mark.paths);
        self.index.files.truncate(mark.files);
        self.index.pieces.truncate(mark.pieces);
        self.index.directories.truncate(mark.directories);
        self.index.control = mark.control;
        self.check.clone_from(&mark.check);
    }

    fn add_lines(&mut self, content: &[u8]) -> io::Result<()> {
        let Self { index, check } = self;
        check.lines(content, |entry| add(index, entry))
    }

    fn finish(self) -> Result<FileIndex, FileMapError> {
        self.check.finish()?;
        let mut index = self.index;
        let with_data = |number: &u32| index.stand(*number).is_some();
        let mut order: Vec<u32> = (0..index.pieces.len() as u32).filter(with_data).collect();
        order.sort_unstable_by_key(|&number| index.stand(number));
        index.order = order;
        Ok(index)
    }
}

fn add(index: &mut FileIndex, entry: FileEntry) -> Result<(), FileMapError> {
    match &entry.body {
        FileBody::File(content) => add_file(index, &entry, content, false),
        FileBody::Extra(content) => add_file(index, &entry, content, true),
        FileBody::Directory => {
            let directory = Directory {
                path: entry.path.into(),
                mode: entry.mode,
            };
            index.directories.push(directory);
            Ok(())
        }
        // Where it leads is decided by the plan.
        FileBody::Link { .. } => Ok(()),
    }
}

fn add_file(
    index: &mut FileIndex,
    entry: &FileEntry,
    content: &FileContent,
    extra: bool,
) -> Result<(), FileMapError> {
    let file = u32::try_from(index.files.len()).map_err(|_| FileMapError::TooMany)?;
    for extent in &content.extents {
        let data = match *extent {
            Extent::Data {
                pack,
                frame,
                frame_offset,
                ..
            } => Some(Stand {
                pack,
                frame,
                offset: frame_offset,
            }),
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
