//! What a segment says in full, for who must read it.

use jiff::Timestamp;
use walden_pg::wal_record::{PartBytes, RelFileLocator, SegmentReader};
use walden_pg::{Lsn, SegmentName, TimelineId, WalSegmentSize};

use super::crossing::join;
use super::gather::Gatherer;
use super::indexer::{index, reader};
use super::{Crossing, Outcome, SegmentIndex, limit};

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

/// Gathers everything from a segment's bytes, fed from the beginning in pieces of any size. The record that goes on behind the segment is
/// read, too, where the following segment is fed after [`DetailReader::next_segment`].
#[derive(Debug, Clone)]
pub struct DetailReader {
    reader: SegmentReader,
    gatherer: Gatherer,
    size: WalSegmentSize,
    /// Where the segment begins that is fed, and how much of it was.
    start: Lsn,
    fed: u64,
    /// The segment, once all of it was read.
    first: Option<SegmentIndex>,
    following: Vec<SegmentIndex>,
}

impl DetailReader {
    /// For the segment of that name.
    #[must_use]
    pub fn new(name: SegmentName, size: WalSegmentSize) -> Self {
        Self {
            reader: reader(name, size),
            gatherer: Gatherer::for_detail(),
            size,
            start: name.start(size).unwrap_or(Lsn(u64::MAX)),
            fed: 0,
            first: None,
            following: Vec::new(),
        }
    }

    /// Looks for content that comes into these files, too, whoever puts it there.
    pub fn watch(&mut self, files: impl IntoIterator<Item = RelFileLocator>) {
        self.gatherer.watch(files);
    }

    /// Takes the segment's next bytes.
    pub fn feed(&mut self, bytes: &[u8]) {
        self.fed = self.fed.saturating_add(bytes.len() as u64);
        let gatherer = &mut self.gatherer;
        if self.first.is_none() {
            self.reader
                .feed(bytes, &mut |record| gatherer.visit(record));
        } else {
            self.reader.feed(bytes, &mut |_| {});
        }
    }

    /// Says that this was all of the segment, and that what is fed now belongs to the following one: the record that goes on there is read,
    /// and nothing else. More segments may follow in the same way. Feeding them can end as soon as [`DetailReader::is_joined`] says so.
    pub fn next_segment(&mut self) {
        self.end_segment();
        self.start = Lsn(self.start.0.saturating_add(self.size.bytes()));
        self.fed = 0;
    }

    fn end_segment(&mut self) {
        // The record may go on in a later timeline's segment.
        let next = self.start.0.saturating_add(self.size.bytes());
        let next = SegmentReader::new(Lsn(next), TimelineId(u32::MAX));
        if self.first.is_some() && self.fed == 0 {
            return;
        }
        let end = std::mem::replace(&mut self.reader, next).finish();
        let index = index(&end, &self.gatherer, self.size, PartBytes::KEPT);
        match self.first {
            None => self.first = Some(index),
            Some(_) => self.following.push(index),
        }
    }

    /// Whether no more bytes of following segments are needed.
    #[must_use]
    pub fn is_joined(&self) -> bool {
        /// The largest `XLOG_BLCKSZ`, of which every other is a part.
        const PAGE: u64 = 64 << 10;
        let end = self.first.as_ref().map(|first| {
            let tail = first.tail.as_ref();
            tail.and_then(|tail| tail.end_lsn).unwrap_or_default()
        });
        // Pages are read when they are whole.
        let fed = self.fed & !(PAGE - 1);
        end.is_some_and(|end| end.0 <= self.start.0.saturating_add(fed))
    }

    /// Says that this was all.
    #[must_use]
    pub fn finish(mut self) -> SegmentDetail {
        self.end_segment();
        let Some(mut index) = self.first else {
            return SegmentDetail {
                index: SegmentIndex::empty(),
                moments: Vec::new(),
                filled: Vec::new(),
            };
        };
        let following: Vec<_> = self.following.iter().collect();
        match join(&index, &following) {
            Ok(joined) => {
                joined.visit(&mut self.gatherer);
                index.end_lsn = Some(joined.end_lsn);
                index.records = index.records.saturating_add(1);
                index.tail = None;
            }
            Err(Crossing::Unreadable | Crossing::Damaged) => index.tail = None,
            Err(Crossing::NeedsSegments) => {
                index.incomplete = true;
                index.tail = None;
            }
            Err(Crossing::None | Crossing::GoesOn | Crossing::Said(_)) => {}
        }
        let transactions = self.gatherer.take_transactions();
        let moments = self.gatherer.take_moments();
        let filled = self.gatherer.take_filled();
        self.gatherer.finish_into(&mut index);
        limit::take_all(&mut index, transactions);
        SegmentDetail {
            index,
            moments,
            filled,
        }
    }
}
