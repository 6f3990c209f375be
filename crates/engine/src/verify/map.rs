//! Reading a file map for proof: of each file four bytes stay in memory, of each piece of one 40, and of those only so many at a time.

use std::ops::Range;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crc32c::crc32c_combine;
use sha2::{Digest, Sha256};
use walden_model::{BackupRecord, Extent, FileBody, FileContent, FileEntry, HeadKind};

use super::Check;
use super::objects::damaged;
use crate::codec::CodecError;
use crate::repository::RepositoryError;
use crate::restore::contents::checksum_of_zeroes;
use crate::restore::map::{FileMapError, MapCheck};

/// Pieces that are held at the same time, unless one pack has more: 160 MiB.
pub(super) const MOST_PIECES: usize = 1 << 22;

/// Where a manifest stands in a backup.
pub(super) const MANIFEST: &[u8] = b"backup_manifest";

/// A range of a file that stands in a pack. They order as they stand.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Piece {
    pub pack: u32,
    pub frame: u32,
    pub offset: u32,
    pub file: u32,
    pub length: u64,
    /// Bytes of the file behind it.
    pub behind: u64,
}

/// Files regardless of their order: two lists are the same if their sums are.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Listed {
    pub files: u64,
    sum: u128,
}

impl Listed {
    pub fn add(&mut self, path: &[u8], size: u64, crc32c: &[u8]) {
        let mut hash = Sha256::new();
        hash.update((path.len() as u64).to_le_bytes());
        hash.update(path);
        hash.update(size.to_le_bytes());
        hash.update(crc32c);
        let digest: [u8; 32] = hash.finalize().into();
        let half = digest.first_chunk::<16>().copied().unwrap_or_default();
        self.sum = self.sum.wrapping_add(u128::from_le_bytes(half));
        self.files += 1;
    }
}

/// What a file map says.
#[derive(Debug, Default)]
pub(super) struct Files {
    /// Of each file: its CRC32C, against which its pieces' are to be taken off until nothing is left.
    ///
    /// The CRC32C of parts joined is the sum (exclusive or) of theirs, each moved by the bytes behind it. So pieces may come in any order.
    pub left: Vec<u32>,
    /// How many pieces stand in each pack.
    pub per_pack: Vec<usize>,
    /// Those of the wanted packs.
    pub pieces: Vec<Piece>,
    /// What the manifest must list.
    pub listed: Listed,
    pub manifest: Option<FileContent>,
}

/// A checksum, with so many bytes behind.
pub(super) fn moved(checksum: u32, behind: u64) -> u32 {
    match behind {
        0 => checksum,
        behind => crc32c_combine(checksum, 0, behind as usize),
    }
}

impl Files {
    fn add(&mut self, entry: &FileEntry) -> Result<(), FileMapError> {
        let Some(content) = entry.content() else {
            return Ok(());
        };
        let mut left = content.crc32c;
        for extent in &content.extents {
            if !matches!(extent, Extent::Data { .. }) {
                let behind = behind(content, extent);
                left ^= moved(checksum_of_zeroes(extent.length()), behind);
            }
        }
        self.left.push(left);
        if matches!(entry.body, FileBody::File(_)) {
            if entry.path == MANIFEST {
                self.manifest = Some(content.clone());
            } else if !entry.path.starts_with(b"pg_wal/") {
                let checksum = content.crc32c.to_le_bytes();
                self.listed.add(&entry.path, content.size, &checksum);
            }
        }
        Ok(())
    }

    fn add_pieces(&mut self, file: u32, content: &FileContent, wanted: &Range<u32>, first: bool) {
        for extent in &content.extents {
            let Extent::Data {
                length,
                pack,
                frame,
                frame_offset,
                ..
            } = *extent
            else {
                continue;
            };
            if let Some(count) = self.per_pack.get_mut(pack as usize).filter(|_| first) {
                *count += 1;
            }
            if wanted.contains(&pack) {
                self.pieces.push(Piece {
                    pack,
                    frame,
                    offset: frame_offset,
                    file,
                    length,
                    behind: behind(content, extent),
                });
            }
        }
    }

    /// The packs in portions, of whose pieces so many are held at the same time.
    pub fn portions(&self, most: usize) -> Vec<Range<u32>> {
        let mut portions: Vec<Range<u32>> = Vec::new();
        let mut held = 0_usize;
        for (pack, count) in (0_u32..).zip(&self.per_pack) {
            match portions.last_mut() {
                Some(portion) if held + count <= most => portion.end = pack + 1,
                _ => {
                    portions.push(pack..pack + 1);
                    held = 0;
                }
            }
            held += count;
        }
        portions
    }
}

fn behind(content: &FileContent, extent: &Extent) -> u64 {
    let end = extent.offset().saturating_add(extent.length());
    content.size.saturating_sub(end)
}

pub(super) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Check<'_> {
    /// Reads the whole map; with all its pieces, if those are not more than `most`, else with none.
    pub(super) async fn files(
        &self,
        record: &BackupRecord,
        most: usize,
    ) -> Result<Files, (String, RepositoryError)> {
        let files = Files {
            per_pack: vec![0; record.packs.len()],
            ..Files::default()
        };
        let files = Arc::new(Mutex::new((files, true)));
        let visit = {
            let files = files.clone();
            move |number, entry: &FileEntry| {
                let mut guard = lock(&files);
                let (files, fits) = &mut *guard;
                files.add(entry)?;
                if let Some(content) = entry.content() {
                    let wanted = if *fits { 0..u32::MAX } else { 0..0 };
                    files.add_pieces(number, content, &wanted, true);
                }
                if files.pieces.len() > most {
                    files.pieces = Vec::new();
                    *fits = false;
                }
                Ok(())
            }
        };
        self.map(record, true, visit).await?;
        let (mut files, _) = std::mem::take(&mut *lock(&files));
        files.pieces.sort_unstable();
        Ok(files)
    }

    /// Reads the map again for the pieces of some packs.
    pub(super) async fn pieces(
        &self,
        record: &BackupRecord,
        packs: Range<u32>,
    ) -> Result<Vec<Piece>, (String, RepositoryError)> {
        let files = Arc::new(Mutex::new(Files::default()));
        let visit = {
            let files = files.clone();
            move |number, entry: &FileEntry| {
                if let Some(content) = entry.content() {
                    lock(&files).add_pieces(number, content, &packs, false);
                }
                Ok(())
            }
        };
        self.map(record, false, visit).await?;
        let mut pieces = std::mem::take(&mut lock(&files).pieces);
        pieces.sort_unstable();
        Ok(pieces)
    }

    /// Reads every entry, in order; those with content are numbered from 0. An error names the shard.
    pub(super) async fn map<V>(
        &self,
        record: &BackupRecord,
        count: bool,
        visit: V,
    ) -> Result<(), (String, RepositoryError)>
    where
        V: FnMut(u32, &FileEntry) -> Result<(), FileMapError> + Send + 'static,
    {
        let state = Arc::new(Mutex::new((MapCheck::new(record), 0_u32, visit)));
        let mut last = String::new();
        for shard in &record.file_map {
            let key = self.keys.file_map(&record.backup_id, shard.number);
            let failed = |e| (key.clone(), e);
            lock(&state).0.begin_shard(shard.entries);
            let sink = {
                let state = state.clone();
                move |content: Vec<u8>| {
                    let mut state = lock(&state);
                    let (check, next, visit) = &mut *state;
                    check.lines(&content, |entry| {
                        visit(*next, &entry)?;
                        if entry.content().is_some() {
                            *next = next.checked_add(1).ok_or(FileMapError::TooMany)?;
                        }
                        Ok(())
                    })
                }
            };
            let expected = self.expected(HeadKind::FileMap, &key);
            let read = self.repository.read_object(&key, expected, sink).await;
            let object = read.map_err(failed)?;
            if object.table != shard.table {
                return Err(failed(other_table(&key, object.table, shard.table)));
            }
            let whole = lock(&state).0.end_shard(shard.entries);
            whole.map_err(|e| failed(damaged(&key, e.to_string())))?;
            if count {
                self.read(shard.size);
            }
            last = key;
        }
        let check = std::mem::replace(&mut lock(&state).0, MapCheck::new(record));
        check
            .finish()
            .map_err(|e| (last.clone(), damaged(&last, e.to_string())))
    }
}

/// A whole object, which is not the one that the commit document names.
pub(super) fn other_table(
    key: &str,
    found: walden_model::Sha256Digest,
    expected: walden_model::Sha256Digest,
) -> RepositoryError {
    RepositoryError::Object {
        key: key.to_owned(),
        source: CodecError::WrongDigest {
            what: "its tail, by the commit document,",
            found,
            expected,
        },
    }
}
