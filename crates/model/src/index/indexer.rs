//! From a segment's bytes to its index.

use walden_pg::wal_record::{PartBytes, RecordHeader, SegmentEnd, SegmentReader, Stop, record_end};
use walden_pg::{Lsn, SegmentName, WalSegmentSize};

use super::gather::Gatherer;
use super::matter::Matter;
use super::{Fragment, SegmentIndex, StopReason, Stopped, limit};

/// Bytes of a record's part that an index keeps.
const KEPT: usize = 4096;

/// Gathers a segment's index from its bytes, fed from the beginning in pieces of any size.
#[derive(Debug)]
pub struct SegmentIndexer {
    reader: SegmentReader,
    gatherer: Gatherer,
    size: WalSegmentSize,
}

impl SegmentIndexer {
    /// For the segment of that name.
    #[must_use]
    pub fn new(name: SegmentName, size: WalSegmentSize) -> Self {
        Self {
            reader: reader(name, size),
            gatherer: Gatherer::for_index(),
            size,
        }
    }

    /// Takes the segment's next bytes.
    pub fn feed(&mut self, bytes: &[u8]) {
        let gatherer = &mut self.gatherer;
        self.reader
            .feed(bytes, &mut |record| gatherer.visit(record));
    }

    /// Says that this was all of the segment.
    #[must_use]
    pub fn finish(mut self) -> SegmentIndex {
        let mut index = index(&self.reader.finish(), &self.gatherer, self.size, KEPT);
        let transactions = self.gatherer.take_transactions();
        self.gatherer.finish_into(&mut index);
        limit::take_most(&mut index, transactions);
        index
    }
}

pub(super) fn reader(name: SegmentName, size: WalSegmentSize) -> SegmentReader {
    // A name that is impossible at this size begins nowhere: no page will fit.
    SegmentReader::new(name.start(size).unwrap_or(Lsn(u64::MAX)), name.timeline)
}

/// What an index says of the segment as a whole, with up to `most` bytes of each part of a record.
pub(super) fn index(
    end: &SegmentEnd,
    gatherer: &Gatherer,
    size: WalSegmentSize,
    most: usize,
) -> SegmentIndex {
    SegmentIndex {
        pg_version: end.version.map_or(0, |version| version.0),
        first_lsn: end.first,
        end_lsn: end.end,
        records: end.records,
        stopped: end.stop.map(|stop| Stopped {
            at: end.at,
            why: match stop {
                Stop::Switch => StopReason::Switch,
                Stop::EndOfWal => StopReason::EndOfWal,
                Stop::Damaged => StopReason::Damaged,
                Stop::UnknownVersion => StopReason::UnknownVersion,
            },
        }),
        head: end.head.as_ref().map(|part| fragment(part, most)),
        tail: end.tail.as_ref().map(|part| {
            let header = RecordHeader::parse(&part.bytes);
            let matters = header.is_none_or(|header| match Matter::of(header.rmgr, header.info) {
                Matter::Yes => true,
                Matter::Content => gatherer.has_open_files(),
                Matter::No => false,
            });
            let xid = xid_of(&part.bytes).filter(|xid| *xid != 0);
            let total = u32::try_from(part.length + part.remaining).ok();
            Fragment {
                first_lsn: xid.and_then(|xid| gatherer.first_lsn_of(xid)).or(part.lsn),
                end_lsn: part
                    .lsn
                    .zip(total)
                    .and_then(|(lsn, total)| record_end(lsn, total, size)),
                ..fragment(part, if matters { most } else { 0 })
            }
        }),
        ..SegmentIndex::empty()
    }
}

/// `xl_xid`: records begin at multiples of 8, so the first part of one has at least 8 bytes.
fn xid_of(bytes: &[u8]) -> Option<u32> {
    let bytes = bytes.get(4..8)?;
    Some(u32::from_le_bytes(bytes.try_into().ok()?))
}

/// A header's length is always kept: of a first part it says what the record is, of a second one it may be the header's rest.
fn fragment(part: &PartBytes, most: usize) -> Fragment {
    let all = part.length <= most as u64 && part.bytes.len() as u64 == part.length;
    let kept = if all {
        &part.bytes
    } else {
        part.bytes
            .get(..RecordHeader::LENGTH)
            .unwrap_or(&part.bytes)
    };
    Fragment {
        lsn: part.lsn,
        first_lsn: None,
        end_lsn: None,
        length: part.length,
        crc32c: part.crc32c,
        bytes: hex(kept),
    }
}

fn hex(bytes: &[u8]) -> String {
    const DIGITS: &[u8; 16] = b"0123456789abcdef";
    bytes
        .iter()
        .flat_map(|byte| [byte >> 4, byte & 15])
        .map(|digit| char::from(DIGITS[usize::from(digit)]))
        .collect()
}
