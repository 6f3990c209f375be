//! The records of one segment.

use super::page::Layout;
use super::record::{Record, RecordHeader};
use super::rmgr;
use crate::field::u32_at;
use crate::wal_page::LongPageHeader;
use crate::{Lsn, MajorVersion, TimelineId};

/// Reads the records of one segment, fed with the file's bytes from its beginning, in pieces of any size.
///
/// Reading ends at the first page or record that does not fit and is not taken up again: recycled segments hold old records with valid CRCs.
/// A record longer than 1 MiB (of a transaction's end: 16 MiB) that crosses pages is proven, but handed over without its body.
#[derive(Clone, Debug)]
pub struct SegmentReader {
    start: Lsn,
    /// The timeline of the segment's name.
    timeline: TimelineId,
    /// What the first page says; `None` before it was read.
    layout: Option<Layout>,
    /// The beginning of a page whose end was not fed yet.
    partial: Vec<u8>,
    /// The first byte of the page that comes next.
    address: Lsn,
    /// The timeline of the last page.
    page_timeline: TimelineId,
    /// A record that goes on in the page that comes next.
    carried: Option<Carried>,
    /// Where the last whole record begins.
    last: Option<Lsn>,
    end: SegmentEnd,
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
    /// What stands there does not fit, although WAL was written behind it; or the file ends before its segment does.
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
    /// CRC32C of this part's bytes; of a tail without those of the record's header ([`RecordHeader::LENGTH`]), as far as they are here.
    pub crc32c: u32,
    /// The part's first bytes, at most [`PartBytes::KEPT`]: all, where there are as many as `length`.
    pub bytes: Vec<u8>,
}

impl PartBytes {
    /// Bytes that are kept of a part.
    pub const KEPT: usize = 64 << 10;
}

/// A record, or its rest, as far as pages were read.
#[derive(Clone, Debug)]
struct Carried {
    /// Where it begins; `None` in an earlier segment.
    lsn: Option<Lsn>,
    length: u64,
    remaining: u64,
    /// Of what follows the header; of a rest, of everything.
    crc: u32,
    /// As much as is kept.
    bytes: Vec<u8>,
    /// How much that is at most.
    keep: usize,
}

impl Carried {
    fn new(lsn: Option<Lsn>, remaining: u32) -> Self {
        Self {
            lsn,
            length: 0,
            remaining: remaining.into(),
            crc: 0,
            bytes: Vec::new(),
            keep: PartBytes::KEPT,
        }
    }

    /// Bytes in front that its CRC leaves out.
    fn header_length(&self) -> u64 {
        self.lsn.map_or(0, |_| RecordHeader::LENGTH as u64)
    }

    /// Takes what `bytes` holds of it, and says how much that was.
    fn take(&mut self, bytes: &[u8]) -> usize {
        let here = bytes
            .len()
            .min(usize::try_from(self.remaining).unwrap_or(usize::MAX));
        let bytes = bytes.get(..here).unwrap_or_default();
        let header = self.header_length().saturating_sub(self.length) as usize;
        self.crc = crc32c::crc32c_append(self.crc, bytes.get(header..).unwrap_or_default());
        let room = self.keep.saturating_sub(self.bytes.len()).min(here);
        self.bytes
            .extend_from_slice(bytes.get(..room).unwrap_or_default());
        self.length += here as u64;
        self.remaining -= here as u64;
        here
    }

    /// Its header, once that is here.
    fn header(&self) -> Option<RecordHeader> {
        self.lsn.and_then(|_| RecordHeader::parse(&self.bytes))
    }

    fn part(mut self) -> PartBytes {
        self.bytes.truncate(PartBytes::KEPT);
        self.bytes.shrink_to_fit();
        PartBytes {
            lsn: self.lsn,
            length: self.length,
            remaining: self.remaining,
            crc32c: self.crc,
            bytes: self.bytes,
        }
    }
}

impl SegmentReader {
    /// For the segment that begins at `start`; `timeline` is its name's, which none of its pages may exceed.
    #[must_use]
    pub fn new(start: Lsn, timeline: TimelineId) -> Self {
        Self {
            start,
            timeline,
            layout: None,
            partial: Vec::new(),
            address: start,
            page_timeline: TimelineId(1),
            carried: None,
            last: None,
            end: SegmentEnd {
                version: None,
                records: 0,
                first: None,
                end: None,
                at: start,
                stop: None,
                head: None,
                tail: None,
            },
        }
    }

    /// Takes the file's next bytes; each whole record that begins in this segment is shown to `visit`, in order.
    pub fn feed(&mut self, mut bytes: &[u8], visit: &mut impl FnMut(&Record<'_>)) {
        while !bytes.is_empty() && !self.settled() {
            let need = self
                .layout
                .map_or(LongPageHeader::LENGTH, |layout| layout.page_size);
            if self.partial.is_empty()
                && let Some((page, rest)) = bytes.split_at_checked(need)
            {
                if self.layout.is_some() {
                    self.page(page, visit);
                    bytes = rest;
                } else {
                    self.begin(page);
                }
                continue;
            }
            let missing = need.saturating_sub(self.partial.len()).min(bytes.len());
            let (piece, rest) = bytes.split_at(missing);
            self.partial.extend_from_slice(piece);
            bytes = rest;
            if self.partial.len() == need {
                let mut partial = std::mem::take(&mut self.partial);
                if self.layout.is_some() {
                    self.page(&partial, visit);
                    partial.clear();
                } else {
                    self.begin(&partial);
                }
                self.partial = partial;
            }
        }
    }

    /// What became of it, after the last bytes.
    #[must_use]
    pub fn finish(mut self) -> SegmentEnd {
        if self.end.stop.is_none() {
            self.end.at = self.address;
            if !self.past_the_end() {
                self.end.stop = Some(Stop::Damaged);
            } else if let Some(carried) = self.carried.take() {
                let part = match carried.lsn {
                    Some(_) => &mut self.end.tail,
                    None => &mut self.end.head,
                };
                self.end.first = self.end.first.or(carried.lsn);
                *part = Some(carried.part());
            }
        } else if self.end.stop == Some(Stop::EndOfWal)
            && self.end.records == 0
            && self.end.head.as_ref().is_some_and(ends_a_switch)
        {
            self.end.stop = Some(Stop::Switch);
        }
        self.end
    }

    fn past_the_end(&self) -> bool {
        self.layout.is_some_and(|layout| {
            self.address.distance_from(self.start) >= Some(layout.segment_size.bytes())
        })
    }

    /// Whether no further byte can change anything.
    fn settled(&self) -> bool {
        !matches!(self.end.stop, None | Some(Stop::EndOfWal)) || self.past_the_end()
    }

    /// Takes the first page's header.
    fn begin(&mut self, header: &[u8]) {
        let header = LongPageHeader::parse(header).ok();
        self.layout = header.and_then(|h| Layout::of(&h, self.start, self.timeline));
        self.end.version = self.layout.map(|layout| layout.version);
        if self.layout.is_none() {
            let unknown = header.is_some_and(|header| header.version().is_none());
            self.end.stop = Some(if unknown {
                Stop::UnknownVersion
            } else {
                Stop::Damaged
            });
        }
    }

    fn page(&mut self, page: &[u8], visit: &mut impl FnMut(&Record<'_>)) {
        let Some(layout) = self.layout else { return };
        let address = self.address;
        self.address = Lsn(address.0.saturating_add(page.len() as u64));
        let header = layout.header(page, address, self.page_timeline);
        if self.end.stop.is_some() {
            if header.is_some() {
                self.end.stop = Some(Stop::Damaged);
            }
            return;
        }
        let Some(header) = header else {
            return self.stop(&layout, page, address, 0);
        };
        self.page_timeline = header.timeline;
        if header.overwrites {
            self.carried = None;
        } else if address == self.start {
            self.carried = header.continued.map(|rest| Carried::new(None, rest));
        }
        let expected = self.carried.as_ref().map(|carried| carried.remaining);
        if expected == Some(0) || header.continued.map(u64::from) != expected {
            return self.stop(&layout, page, address, 0);
        }
        let mut at = header.length;
        if let Some(mut carried) = self.carried.take() {
            at += carried
                .take(page.get(at..).unwrap_or_default())
                .next_multiple_of(8);
            if let Err(carried) = self.go_on(&layout, carried, address, at, visit) {
                self.carried = Some(carried);
                return self.stop(&layout, page, address, at);
            }
        }
        self.records(&layout, page, address, at, visit);
    }

    /// Reads the records that begin in a page, from `at` on.
    fn records(
        &mut self,
        layout: &Layout,
        page: &[u8],
        address: Lsn,
        mut at: usize,
        visit: &mut impl FnMut(&Record<'_>),
    ) {
        while self.end.stop.is_none()
            && let Some(bytes) = page.get(at..)
            && let Some(length) = u32_at(bytes, 0)
        {
            let lsn = Lsn(address.0 + at as u64);
            let header = RecordHeader::parse(bytes);
            let fits = match &header {
                Some(header) => self.fits(layout, header, lsn),
                None => length as usize >= RecordHeader::LENGTH,
            };
            if !fits {
                return self.stop(layout, page, address, at);
            }
            if let Some(header) = header
                && let Some(body) = bytes.get(RecordHeader::LENGTH..length as usize)
            {
                if !RecordHeader::proves(bytes, crc32c::crc32c(body)) {
                    return self.stop(layout, page, address, at);
                }
                let end = at + (length as usize).next_multiple_of(8);
                let record = Record {
                    lsn,
                    end_lsn: Lsn(address.0 + end as u64),
                    header,
                    version: layout.version,
                    body: Some(body),
                };
                self.show(layout, record, visit);
                at = end;
            } else {
                let mut carried = Carried::new(Some(lsn), length);
                if let Some(header) = header {
                    carried.keep = kept(&header);
                }
                carried.take(bytes);
                self.carried = Some(carried);
                return;
            }
        }
    }

    /// Looks at a carried record after a page's bytes, of which the next record begins at `at`: an error where it does not fit.
    fn go_on(
        &mut self,
        layout: &Layout,
        mut carried: Carried,
        address: Lsn,
        at: usize,
        visit: &mut impl FnMut(&Record<'_>),
    ) -> Result<(), Carried> {
        if let Some(lsn) = carried.lsn
            && let Some(header) = carried.header()
        {
            if !self.fits(layout, &header, lsn) {
                return Err(carried);
            }
            carried.keep = kept(&header);
            if carried.remaining == 0 {
                if !RecordHeader::proves(&carried.bytes, carried.crc) {
                    return Err(carried);
                }
                let whole = carried.bytes.len() as u64 == carried.length;
                let record = Record {
                    lsn,
                    end_lsn: Lsn(address.0 + at as u64),
                    header,
                    version: layout.version,
                    body: carried.bytes.get(RecordHeader::LENGTH..).filter(|_| whole),
                };
                self.show(layout, record, visit);
                return Ok(());
            }
        }
        if carried.remaining > 0 {
            self.carried = Some(carried);
        } else {
            self.end.head = Some(carried.part());
        }
        Ok(())
    }

    /// Whether a header may stand at `lsn` (`ValidXLogRecordHeader` in `access/transam/xlogreader.c`).
    fn fits(&self, layout: &Layout, header: &RecordHeader, lsn: Lsn) -> bool {
        header.total_length as usize >= RecordHeader::LENGTH
            && rmgr::is_valid(header.rmgr, layout.version)
            && match self.last {
                Some(last) => header.prev == last,
                None => header.prev < self.start && lsn >= self.start,
            }
    }

    fn show(&mut self, layout: &Layout, record: Record<'_>, visit: &mut impl FnMut(&Record<'_>)) {
        let record = record.stretched(layout.segment_size);
        if record.is_switch() {
            self.end.stop = Some(Stop::Switch);
            self.end.at = record.end_lsn;
        }
        self.end.first.get_or_insert(record.lsn);
        self.end.records += 1;
        self.end.end = Some(record.end_lsn);
        self.last = Some(record.lsn);
        visit(&record);
    }

    /// Ends reading at a place of a page where nothing fits.
    fn stop(&mut self, layout: &Layout, page: &[u8], address: Lsn, at: usize) {
        let last = self.last.unwrap_or(self.start);
        self.end.at = self
            .carried
            .take()
            .and_then(|carried| carried.lsn)
            .unwrap_or(Lsn(address.0 + at as u64));
        self.end.stop = Some(if layout.holds_record(page, address, at + 8, last) {
            Stop::Damaged
        } else {
            Stop::EndOfWal
        });
    }
}

/// How much of a record that crosses pages is kept, so that it can be handed over whole or become a part.
fn kept(header: &RecordHeader) -> usize {
    let most = match header.rmgr {
        rmgr::XACT => 16 << 20,
        _ => 1 << 20,
    };
    match header.total_length as usize {
        length if length <= most => length,
        _ => PartBytes::KEPT,
    }
}

/// Whether the rest of a record, behind which there is nothing, can be the rest of a switch: that is a header alone, so 8 or 16 bytes of it.
fn ends_a_switch(head: &PartBytes) -> bool {
    let flags = match head.bytes.len() {
        8 => head.bytes.get(..4),
        16 => head.bytes.get(8..12),
        _ => None,
    };
    flags == Some(&[rmgr::XLOG_SWITCH, rmgr::XLOG, 0, 0])
}
