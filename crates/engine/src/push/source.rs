//! The file that PostgreSQL hands over: opened once, checked, read from one descriptor.

use std::fs::File;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::Path;

use sha2::{Digest, Sha256};
use walden_model::Sha256Digest;
use walden_model::index::SegmentIndexer;
use walden_pg::wal_name::ParseWalNameError;
use walden_pg::{LongPageHeader, SegmentFacts, SegmentMismatch, WalFileName, check_segment};

use super::Difference;
use crate::catalog::MAX_HISTORY;

/// Bytes that are read at once.
const PORTION: usize = 1024 * 1024;

#[derive(Debug)]
pub(super) enum SourceError {
    Name(ParseWalNameError),
    Read(std::io::Error),
    Changed,
    Mismatch(SegmentMismatch),
}

impl From<std::io::Error> for SourceError {
    fn from(error: std::io::Error) -> Self {
        SourceError::Read(error)
    }
}

/// What tells a file from every other, and from itself before or after a change: writing to a file, renaming and linking it all move its
/// change time (inode(7)), which no program can set.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Stamp {
    device: u64,
    inode: u64,
    size: u64,
    changed: (i64, i64),
}

impl Stamp {
    fn of(file: &File) -> std::io::Result<Self> {
        let metadata = file.metadata()?;
        Ok(Stamp {
            device: metadata.dev(),
            inode: metadata.ino(),
            size: metadata.len(),
            changed: (metadata.ctime(), metadata.ctime_nsec()),
        })
    }

    /// Whether any later change gets another change time: file systems take the time from a clock that stands still for some
    /// milliseconds at a time.
    pub fn is_settled(&self, now: std::time::SystemTime) -> bool {
        const SETTLED: i128 = 100_000_000;
        let now = now
            .duration_since(std::time::UNIX_EPOCH)
            .map_or(0, |since| since.as_nanos().cast_signed());
        let changed = i128::from(self.changed.0) * 1_000_000_000 + i128::from(self.changed.1);
        now - changed >= SETTLED
    }
}

impl std::fmt::Display for Stamp {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Stamp {
            device,
            inode,
            size,
            changed: (seconds, nanoseconds),
        } = self;
        write!(
            f,
            "device {device} inode {inode} size {size} changed {seconds}.{nanoseconds:09}"
        )
    }
}

/// An open WAL file that is what its name says.
#[derive(Debug)]
pub(super) struct WalSource {
    pub file: WalFileName,
    pub size: u64,
    /// Of a segment or a part of one.
    pub facts: Option<SegmentFacts>,
    /// Taken before the first byte was read.
    pub stamp: Stamp,
    handle: File,
}

impl WalSource {
    pub fn open(path: &Path) -> Result<Self, SourceError> {
        let name = path
            .file_name()
            .and_then(|name| name.to_str())
            .unwrap_or_default();
        let file: WalFileName = name.parse().map_err(SourceError::Name)?;
        let handle = File::open(path)?;
        let stamp = Stamp::of(&handle)?;
        let size = stamp.size;
        let facts = match file {
            WalFileName::Segment(segment) | WalFileName::Partial(segment) => {
                let mut first = [0; LongPageHeader::LENGTH];
                let length = usize::try_from(size).unwrap_or(usize::MAX).min(first.len());
                let first = first.get_mut(..length).unwrap_or_default();
                handle.read_exact_at(first, 0)?;
                Some(check_segment(&segment, first, size).map_err(SourceError::Mismatch)?)
            }
            WalFileName::History(_) | WalFileName::Backup { .. } if size > MAX_HISTORY as u64 => {
                return Err(SourceError::Read(std::io::Error::other(format!(
                    "{size} bytes are more than a history file has"
                ))));
            }
            WalFileName::History(_) | WalFileName::Backup { .. } => None,
        };
        Ok(WalSource {
            file,
            size,
            facts,
            stamp,
            handle,
        })
    }

    /// Whether the file is now as it was before the first byte was read.
    pub fn is_unchanged(&self) -> bool {
        Stamp::of(&self.handle).is_ok_and(|now| now == self.stamp)
    }

    /// Who gathers the index of a segment, or of a part of one, while it is read; `None` for other files.
    pub fn indexer(&self) -> Option<SegmentIndexer> {
        match (self.file, &self.facts) {
            (WalFileName::Segment(name) | WalFileName::Partial(name), Some(facts)) => {
                Some(SegmentIndexer::new(name, facts.size))
            }
            _ => None,
        }
    }

    /// Reads all of it in portions of at most `portion` bytes and gives the digest of what was read.
    pub fn read(
        &self,
        portion: usize,
        mut out: impl FnMut(Vec<u8>) -> std::io::Result<()>,
    ) -> Result<Sha256Digest, SourceError> {
        let mut hash = Sha256::new();
        let mut offset = 0;
        while offset < self.size {
            let length = usize::try_from(self.size - offset)
                .unwrap_or(usize::MAX)
                .min(portion);
            let mut content = vec![0; length];
            self.handle.read_exact_at(&mut content, offset)?;
            hash.update(&content);
            offset += length as u64;
            out(content)?;
        }
        // Its length alone would not tell: outside of its archiver's turn PostgreSQL may recycle a segment while it is read.
        if !self.is_unchanged() {
            return Err(SourceError::Changed);
        }
        Ok(Sha256Digest(hash.finalize().into()))
    }

    /// The digest of all of it.
    pub fn digest(&self) -> Result<Sha256Digest, SourceError> {
        self.read(PORTION, |_| Ok(()))
    }

    /// The first byte from `offset` on at which the file and `other` differ. Bytes beyond the file's end differ.
    pub fn first_difference(&self, other: &[u8], offset: u64) -> std::io::Result<Option<u64>> {
        let left = usize::try_from(self.size.saturating_sub(offset)).unwrap_or(usize::MAX);
        let mut mine = vec![0; other.len().min(left)];
        self.handle.read_exact_at(&mut mine, offset)?;
        let differ = mine.iter().zip(other).position(|(a, b)| a != b);
        let beyond = (mine.len() < other.len()).then_some(mine.len());
        Ok(differ.or(beyond).map(|at| offset + at as u64))
    }

    /// `None`: what is archived is encrypted.
    pub fn difference_at(&self, offset: Option<u64>) -> Difference {
        let Some(offset) = offset else {
            return Difference::Unknown;
        };
        match &self.facts {
            Some(facts) => Difference::Lsn(walden_pg::Lsn(
                facts.header.page_address.0.saturating_add(offset),
            )),
            None => Difference::Byte(offset),
        }
    }

    /// What is odd about the file, but no reason to leave it with PostgreSQL for ever.
    pub fn warning(&self) -> Option<String> {
        let facts = self.facts.as_ref()?;
        facts.version.is_none().then(|| {
            format!(
                "{} has the page magic {:04X}, which belongs to no PostgreSQL that this version of Walden knows (14 to 18); it is archived all the same",
                self.file, facts.header.magic
            )
        })
    }
}
