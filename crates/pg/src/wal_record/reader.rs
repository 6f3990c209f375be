//! The records of one segment.

use super::Record;
use crate::{Lsn, MajorVersion, TimelineId};

/// Reads the records of one segment, fed with the file's bytes from its beginning, in pieces of any size.
///
/// Reading ends at the first page or record that does not fit and is not taken up again: recycled segments hold old records with valid CRCs.
/// A record longer than 1 MiB (of a transaction's end: 16 MiB) is proven, but handed over without its body.
#[derive(Debug)]
pub struct SegmentReader {
    start: Lsn,
    timeline: TimelineId,
}

impl SegmentReader {
    /// For the segment that begins at `start`; `timeline` is its name's, which none of its pages may exceed.
    #[must_use]
    pub fn new(start: Lsn, timeline: TimelineId) -> Self {
        Self { start, timeline }
    }

    /// Takes the file's next bytes; each whole record that begins in this segment is shown to `visit`, in order.
    pub fn feed(&mut self, bytes: &[u8], visit: &mut impl FnMut(&Record<'_>)) {
        let _ = (bytes, visit, self.timeline);
    }

    /// What became of it, after the last bytes.
    #[must_use]
    pub fn finish(self) -> SegmentEnd {
        SegmentEnd {
            version: None,
            records: 0,
            first: None,
            end: None,
            at: self.start,
            stop: None,
            head: None,
            tail: None,
        }
    }
}

/// What a segment was, besides its whole records.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SegmentEnd {
    /// The version that wrote it, by its pages' magic; `None` for an unknown one.
    pub version: Option<MajorVersion>,
    /// How many whole records begin in it.
    pub records: u64,
    /// Where the first record begins that begins in it, be it whole or the tail.
    pub first: Option<Lsn>,
    /// Behind the last whole record.
    pub end: Option<Lsn>,
    /// Where reading ended: the segment's end, or where the record or page should have been that does not fit.
    pub at: Lsn,
    /// Why reading ended before the segment did; `None`: it did not.
    pub stop: Option<Stop>,
    /// The part at its beginning of a record that an earlier segment began.
    pub head: Option<PartBytes>,
    /// The part at its end of a record that goes on in the next segment.
    pub tail: Option<PartBytes>,
}

/// Why reading ended before the segment did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stop {
    /// After `XLOG_SWITCH` the rest is nothing.
    Switch,
    /// Zeros or old content stand where a page or a record should begin, and nothing behind proves that WAL had gone on.
    EndOfWal,
    /// What stands there does not fit, although WAL was written behind it.
    Damaged,
    /// The first page's magic is an unknown one.
    UnknownVersion,
}

/// The part in one segment of a record that crosses its edge.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PartBytes {
    /// Where the record begins; only known of its first part, the tail.
    pub lsn: Option<Lsn>,
    /// The record's bytes in this segment.
    pub length: u64,
    /// The record's bytes behind this segment.
    pub remaining: u64,
    /// CRC32C of this part's bytes; of a tail without those of the record's header ([`super::RecordHeader::LENGTH`]), as far as they are here.
    pub crc32c: u32,
    /// The part's first bytes, at most [`PartBytes::KEPT`]: all, where there are as many as `length`.
    pub bytes: Vec<u8>,
}

impl PartBytes {
    /// Bytes that are kept of a part.
    pub const KEPT: usize = 64 << 10;
}
