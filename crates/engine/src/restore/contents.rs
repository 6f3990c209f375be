//! From packs to files, several packs at a time.

use std::collections::BTreeMap;
use std::fs::{DirBuilder, File, OpenOptions};
use std::io;
use std::os::unix::fs::{DirBuilderExt, FileExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crc32c::{crc32c, crc32c_append, crc32c_combine};
use futures::{StreamExt, stream};
use rustix::fs::OFlags;
use walden_model::{BackupRecord, HeadKind, SystemKeys, keys};

use super::RestoreError;
use super::index::{FileIndex, FileRef, Piece};
use super::places::Places;
use crate::archive::Archive;
use crate::codec::Expected;
use crate::progress::Progress;

/// Until its checksum is proven and its own mode set.
const FILE_MODE: u32 = 0o600;

/// A piece of content that could not be put in its place.
#[derive(Debug, thiserror::Error)]
pub enum ContentError {
    /// The system refuses.
    #[error("cannot write \"{}\"", path.display())]
    Write {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The file map and the pack do not fit together.
    #[error("the file map says that {0:?} has bytes in this pack which it does not hold")]
    Beyond(String),
    /// Another pack failed first.
    #[error("the restore has failed elsewhere")]
    Stopped,
    /// All bytes came, and they are not those of the file.
    #[error("the restored {path:?} has CRC32C {found:08x}, and the backup says {expected:08x}")]
    Mismatch {
        /// The file.
        path: String,
        /// Of the bytes that were written.
        found: u32,
        /// What the file map says.
        expected: u32,
    },
}

pub(super) fn write_error(path: &Path) -> impl FnOnce(io::Error) -> ContentError {
    let path = path.to_path_buf();
    move |source| ContentError::Write { path, source }
}

/// What all workers share.
pub(super) struct Contents {
    index: Arc<FileIndex>,
    places: Arc<Places>,
    /// CRC32C of each piece, once it is written.
    checksums: Vec<AtomicU32>,
    /// One of the packs failed: the others need not go on.
    stopped: AtomicBool,
    /// `global/pg_control`, which gets its place last and is kept here until then.
    control: Mutex<Vec<u8>>,
    progress: Arc<dyn Progress>,
}

impl Contents {
    pub fn new(index: Arc<FileIndex>, places: Arc<Places>, progress: Arc<dyn Progress>) -> Self {
        let control_size = index.control().map_or(0, |(_, size)| size as usize);
        let checksums = index.pieces().iter().map(|_| AtomicU32::new(0)).collect();
        Contents {
            index,
            places,
            checksums,
            stopped: AtomicBool::new(false),
            control: Mutex::new(vec![0; control_size]),
            progress,
        }
    }

    /// Writes every byte that stands in a pack. Gives how many packs each repository gave. Memory: a few frames and one open file for each
    /// worker.
    pub async fn write_packs(
        self: &Arc<Self>,
        archive: &Archive,
        keys: &SystemKeys,
        record: &BackupRecord,
        workers: usize,
    ) -> Result<BTreeMap<String, u64>, RestoreError> {
        let mut packs = stream::iter(0..record.packs.len())
            .map(|number| self.write_pack(archive, keys, record, number))
            .buffer_unordered(workers.max(1));
        // After an error the others are not dropped but run to an early end, so that nobody writes any more when this returns.
        let mut failed = None;
        let mut served = BTreeMap::new();
        while let Some(written) = packs.next().await {
            match written {
                Ok(Some(repository)) => *served.entry(repository).or_default() += 1,
                Ok(None) => {}
                Err(e) => {
                    self.stopped.store(true, Ordering::Release);
                    failed.get_or_insert(e);
                }
            }
        }
        failed.map_or(Ok(served), Err)
    }

    /// Gives the repository that the pack came from; `None` where nothing of it is needed.
    async fn write_pack(
        self: &Arc<Self>,
        archive: &Archive,
        keys: &SystemKeys,
        record: &BackupRecord,
        number: usize,
    ) -> Result<Option<String>, RestoreError> {
        let (Some(pack), Ok(number)) = (record.packs.get(number), u32::try_from(number)) else {
            return Ok(None);
        };
        if self.index.pieces_of(number).is_empty() || self.stopped.load(Ordering::Acquire) {
            return Ok(None);
        }
        let key = keys.pack(&pack.backup, pack.number);
        let expected = Expected {
            kind: HeadKind::Pack,
            archive_id: record.archive_id,
            key: keys::below_cluster(&key).to_owned(),
        };
        let told = Arc::new(AtomicU64::new(0));
        let begin = || PackWriter::new(self.clone(), number, told.clone());
        let writer = Arc::new(Mutex::new(begin()));
        // Bytes are written before the whole pack is proven. That is safe: where the proof fails, another repository's pack is written over
        // them, and where there is none, the restore fails.
        let sink = || {
            *lock(&writer) = begin();
            let writer = writer.clone();
            move |content: Vec<u8>| {
                let taken = lock(&writer).take(&content);
                taken.map_err(|e| match e {
                    ContentError::Beyond(_) => io::Error::new(io::ErrorKind::InvalidData, e),
                    e => io::Error::other(e),
                })
            }
        };
        let read = archive
            .read_object(&key, &expected, Some(pack.table), sink)
            .await?;
        let left = lock(&writer).left_over();
        match left {
            Some(path) => Err(RestoreError::Content {
                key,
                source: ContentError::Beyond(path),
            }),
            None => Ok(Some(read.repository)),
        }
    }

    /// Proves every file by its CRC32C, makes those without content, and sets sizes and modes. Gives the control file's bytes.
    pub fn finish(&self) -> Result<Vec<u8>, ContentError> {
        let control_number = self.index.control().map(|(number, _)| number as usize);
        for number in 0..self.index.len() {
            let Some(file) = self.index.file(number) else {
                break;
            };
            let found = self.checksum(&file);
            if found != file.crc32c {
                return Err(ContentError::Mismatch {
                    path: String::from_utf8_lossy(file.path).into_owned(),
                    found,
                    expected: file.crc32c,
                });
            }
            if Some(number) != control_number {
                self.finish_file(&file)?;
            }
        }
        Ok(std::mem::take(&mut *lock(&self.control)))
    }

    fn finish_file(&self, file: &FileRef<'_>) -> Result<(), ContentError> {
        // Zeroes at the end were not written. They become a hole, which reads as the same zeroes; free space was counted in full.
        let ends_in_data = file
            .extents
            .last()
            .is_some_and(|piece| piece.data.is_some());
        if ends_in_data && file.mode == FILE_MODE {
            return Ok(());
        }
        let path = self.places.resolve(file.path, file.extra);
        let opened = open(&path)?;
        if !ends_in_data {
            opened.set_len(file.size).map_err(write_error(&path))?;
        }
        opened
            .set_permissions(PermissionsExt::from_mode(file.mode))
            .map_err(write_error(&path))
    }

    fn checksum(&self, file: &FileRef<'_>) -> u32 {
        let pieces = file
            .extents
            .iter()
            .zip(self.checksums.iter().skip(file.first_extent));
        pieces.fold(0, |sum, (piece, checksum)| {
            let checksum = match piece.data {
                Some(_) => checksum.load(Ordering::Acquire),
                None => checksum_of_zeroes(piece.length),
            };
            crc32c_combine(sum, checksum, piece.length as usize)
        })
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// In logarithmic time: a hostile map may claim exabytes of them.
pub(crate) fn checksum_of_zeroes(length: u64) -> u32 {
    match length {
        0 => 0,
        1 => crc32c(&[0]),
        _ => {
            let half = checksum_of_zeroes(length / 2);
            let even = crc32c_combine(half, half, (length / 2) as usize);
            if length.is_multiple_of(2) {
                even
            } else {
                crc32c_append(even, &[0])
            }
        }
    }
}

/// Opens a file for writing and makes it, and the directories above it, where they are not there; another worker may be making
/// them, too. Never through a link.
fn open(path: &Path) -> Result<File, ContentError> {
    let mut options = OpenOptions::new();
    options
        .write(true)
        .create(true)
        .truncate(false)
        .mode(FILE_MODE)
        .custom_flags(OFlags::NOFOLLOW.bits() as i32);
    let opened = match options.open(path) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => path
            .parent()
            .map_or(Ok(()), |parent| {
                DirBuilder::new().recursive(true).mode(0o700).create(parent)
            })
            .and_then(|()| options.open(path)),
        other => other,
    };
    opened.map_err(write_error(path))
}

/// Takes one pack's content, frame by frame.
struct PackWriter {
    contents: Arc<Contents>,
    pack: u32,
    /// How many of the pack's pieces have begun.
    next: usize,
    frame: u32,
    begun: Vec<Begun>,
    /// Bytes that were put in their places, and how many of this pack's the progress was told: of another attempt, too.
    done: u64,
    told: Arc<AtomicU64>,
    /// The file that was last written: pieces of one file follow each other.
    open: Option<(u32, PathBuf, File)>,
}

/// A piece that goes on in the next frame.
struct Begun {
    number: u32,
    piece: Piece,
    /// Where it begins in this frame: 0 in all but its first.
    from: usize,
    done: u64,
    checksum: u32,
}

impl PackWriter {
    fn new(contents: Arc<Contents>, pack: u32, told: Arc<AtomicU64>) -> Self {
        PackWriter {
            contents,
            pack,
            next: 0,
            frame: 0,
            begun: Vec::new(),
            done: 0,
            told,
            open: None,
        }
    }

    fn take(&mut self, content: &[u8]) -> Result<(), ContentError> {
        let contents = self.contents.clone();
        if contents.stopped.load(Ordering::Acquire) {
            return Err(ContentError::Stopped);
        }
        let index = &contents.index;
        let mut begun = std::mem::take(&mut self.begun);
        for &number in index.pieces_of(self.pack).iter().skip(self.next) {
            let Some(piece) = index.pieces().get(number as usize).copied() else {
                break;
            };
            let Some(stand) = piece.data.filter(|stand| stand.frame == self.frame) else {
                break;
            };
            begun.push(Begun {
                number,
                piece,
                from: stand.offset as usize,
                done: 0,
                checksum: 0,
            });
            self.next += 1;
        }
        for mut piece in begun {
            let rest = content
                .get(piece.from..)
                .ok_or_else(|| self.beyond(piece.piece.file))?;
            let length = rest
                .len()
                .min(usize::try_from(piece.piece.length - piece.done).unwrap_or(usize::MAX));
            let bytes = rest.get(..length).unwrap_or(rest);
            self.write(piece.piece.file, piece.piece.offset + piece.done, bytes)?;
            piece.checksum = crc32c_append(piece.checksum, bytes);
            piece.done += bytes.len() as u64;
            piece.from = 0;
            self.done += bytes.len() as u64;
            let told = self.told.fetch_max(self.done, Ordering::AcqRel);
            contents.progress.advance(self.done.saturating_sub(told));
            if piece.done < piece.piece.length {
                self.begun.push(piece);
            } else if let Some(checksum) = contents.checksums.get(piece.number as usize) {
                checksum.store(piece.checksum, Ordering::Release);
            }
        }
        self.frame = self.frame.saturating_add(1);
        Ok(())
    }

    fn write(&mut self, file: u32, offset: u64, bytes: &[u8]) -> Result<(), ContentError> {
        let contents = &self.contents;
        if contents
            .index
            .control()
            .is_some_and(|(control, _)| control == file)
        {
            let mut control = lock(&contents.control);
            let place = control
                .get_mut(offset as usize..)
                .and_then(|rest| rest.get_mut(..bytes.len()));
            place
                .ok_or_else(|| self.beyond(file))?
                .copy_from_slice(bytes);
            return Ok(());
        }
        let (_, path, opened) = match self.open.take_if(|(open, ..)| *open == file) {
            Some(same) => self.open.insert(same),
            None => {
                let named = contents
                    .index
                    .file(file as usize)
                    .ok_or_else(|| self.beyond(file))?;
                let path = contents.places.resolve(named.path, named.extra);
                let opened = open(&path)?;
                self.open.insert((file, path, opened))
            }
        };
        opened
            .write_all_at(bytes, offset)
            .map_err(write_error(path))
    }

    fn beyond(&self, file: u32) -> ContentError {
        let path = self
            .contents
            .index
            .file(file as usize)
            .map(|file| String::from_utf8_lossy(file.path).into_owned());
        ContentError::Beyond(path.unwrap_or_default())
    }

    /// After the last frame: a file whose bytes did not all come.
    fn left_over(&self) -> Option<String> {
        let index = &self.contents.index;
        let begun = self.begun.first().map(|piece| piece.piece.file);
        let waiting = || {
            let number = *index.pieces_of(self.pack).get(self.next)?;
            Some(index.pieces().get(number as usize)?.file)
        };
        let file = index.file(begun.or_else(waiting)? as usize)?;
        Some(String::from_utf8_lossy(file.path).into_owned())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_checksum_of_zeroes_is_that_of_the_bytes() {
        for length in [0_usize, 1, 2, 3, 7, 8192, 100_001] {
            let expected = crc32c(&vec![0; length]);
            assert_eq!(
                checksum_of_zeroes(length as u64),
                expected,
                "CRC32C of {length} zeroes"
            );
        }
        // And it ends for the largest.
        checksum_of_zeroes(u64::MAX);
    }
}
