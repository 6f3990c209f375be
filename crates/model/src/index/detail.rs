//! What a segment says in full, for who must read it.

use jiff::Timestamp;
use walden_pg::wal_record::RelFileLocator;
use walden_pg::{Lsn, SegmentName, WalSegmentSize};

use super::{Outcome, SegmentIndex};

/// Everything that a segment says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SegmentDetail {
    /// As its index, without the limits of one that is stored: `incomplete` only where even [`SegmentDetail::MOST`] was too little.
    pub index: SegmentIndex,
    /// Every commit, abort and restore point, in WAL order.
    pub moments: Vec<Moment>,
    /// Of the files that were watched ([`DetailReader::watch`]), those that rows or whole pages came into.
    pub filled: Vec<RelFileLocator>,
}

impl SegmentDetail {
    /// Moments, or facts, that are gathered of one segment at most.
    pub const MOST: usize = 4 << 20;
}

/// A place where a recovery can stop.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Moment {
    /// Where its record begins.
    pub lsn: Lsn,
    /// Behind its record.
    pub end_lsn: Lsn,
    /// What it is.
    pub what: MomentKind,
}

/// What a place where a recovery can stop is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum MomentKind {
    /// A commit or an abort.
    End {
        /// Which.
        kind: Outcome,
        /// The transaction.
        xid: u32,
        /// When, by the server's clock.
        time: Timestamp,
        /// Its subtransactions that ended with it.
        subxids: Box<[u32]>,
        /// Whether it was prepared before.
        prepared: bool,
    },
    /// A restore point.
    RestorePoint {
        /// Its name.
        name: String,
        /// When, by the server's clock.
        time: Timestamp,
    },
}

/// Gathers everything from a segment's bytes, fed from the beginning in pieces of any size.
pub struct DetailReader {
    name: SegmentName,
}

impl DetailReader {
    /// For the segment of that name.
    #[must_use]
    pub fn new(name: SegmentName, size: WalSegmentSize) -> Self {
        let _ = size;
        Self { name }
    }

    /// Looks for content that comes into these files, too, whoever puts it there.
    pub fn watch(&mut self, files: impl IntoIterator<Item = RelFileLocator>) {
        let _ = files.into_iter();
    }

    /// Takes the segment's next bytes.
    pub fn feed(&mut self, bytes: &[u8]) {
        let _ = (bytes, self.name);
    }

    /// Says that this was all of the segment, and that what is fed now belongs to the following one: the record that goes on there is read,
    /// and nothing else. More segments may follow in the same way. Feeding them can end as soon as [`DetailReader::is_joined`] says so.
    pub fn next_segment(&mut self) {}

    /// Whether no more bytes of following segments are needed.
    #[must_use]
    pub fn is_joined(&self) -> bool {
        true
    }

    /// Says that this was all.
    #[must_use]
    pub fn finish(self) -> SegmentDetail {
        SegmentDetail {
            index: SegmentIndex::empty(),
            moments: Vec::new(),
            filled: Vec::new(),
        }
    }
}
