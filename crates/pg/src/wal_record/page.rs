//! WAL pages behind a segment's first one (`XLogPageHeaderData` in `access/xlog_internal.h`), and the proof that a page was written here.

use super::record::RecordHeader;
use crate::field::{u16_at, u32_at, u64_at};
use crate::wal_page::LongPageHeader;
use crate::{Lsn, MajorVersion, TimelineId, WalSegmentSize};

/// `XLP_FIRST_IS_CONTRECORD`: the page begins with the rest of a record.
const FIRST_IS_CONTRECORD: u16 = 0x0001;
/// `XLP_LONG_HEADER`.
const LONG_HEADER: u16 = 0x0002;
/// `XLP_FIRST_IS_OVERWRITE_CONTRECORD`: the record that the page before began was never finished.
const FIRST_IS_OVERWRITE_CONTRECORD: u16 = 0x0008;
/// `XLP_ALL_FLAGS`.
const ALL_FLAGS: u16 = 0x000F;

/// What all pages of a segment share, as the first one says it.
#[derive(Clone, Copy, Debug)]
pub(super) struct Layout {
    /// The segment's first byte.
    pub start: Lsn,
    /// The timeline of the segment's name.
    pub timeline: TimelineId,
    /// The version that the magic stands for.
    pub version: MajorVersion,
    /// `XLOG_BLCKSZ`.
    pub page_size: usize,
    /// The segment's size.
    pub segment_size: WalSegmentSize,
}

impl Layout {
    /// What the first page's header says; `None` where it is not the header of the segment at `start`.
    pub fn of(header: &LongPageHeader, start: Lsn, timeline: TimelineId) -> Option<Self> {
        /// The least and the largest that `configure --with-wal-blocksize` takes.
        const PAGE_SIZES: std::ops::RangeInclusive<u32> = 1 << 10..=64 << 10;
        let segment_size = WalSegmentSize::new(header.segment_size.into()).ok()?;
        let fits = header.block_size.is_power_of_two()
            && PAGE_SIZES.contains(&header.block_size)
            && header.page_address == start
            && start.0.is_multiple_of(segment_size.bytes());
        Some(Self {
            start,
            timeline,
            version: header.version()?,
            page_size: usize::try_from(header.block_size).ok()?,
            segment_size,
        })
        .filter(|_| fits)
    }

    /// The header of the page at `address`, if it was written there, on a timeline from `oldest` to the segment's own.
    pub fn header(&self, page: &[u8], address: Lsn, oldest: TimelineId) -> Option<PageHeader> {
        let info = u16_at(page, 2)?;
        let timeline = TimelineId(u32_at(page, 4)?);
        let first = address == self.start;
        let fits = MajorVersion::from_magic(u16_at(page, 0)?) == Some(self.version)
            && info & !ALL_FLAGS == 0
            && (info & LONG_HEADER != 0) == first
            && (oldest..=self.timeline).contains(&timeline)
            && u64_at(page, 8)? == address.0;
        let header = PageHeader {
            timeline,
            length: PageHeader::length(first),
            continued: (info & FIRST_IS_CONTRECORD != 0).then_some(u32_at(page, 16)?),
            overwrites: info & FIRST_IS_OVERWRITE_CONTRECORD != 0,
        };
        Some(header).filter(|_| fits)
    }

    /// Whether a record begins in `page`, from `at` on, that was written behind `last`, the last place known to be this segment's. What
    /// recycling left here says of itself that it stands further in front.
    pub fn holds_record(&self, page: &[u8], address: Lsn, at: usize, last: Lsn) -> bool {
        (at.next_multiple_of(8)..page.len()).step_by(8).any(|at| {
            page.get(at..).is_some_and(|bytes| {
                RecordHeader::parse(bytes).is_some_and(|header| {
                    (last.0..address.0 + at as u64).contains(&header.prev.0)
                        && bytes
                            .get(RecordHeader::LENGTH..header.total_length as usize)
                            .is_some_and(|body| RecordHeader::proves(bytes, crc32c::crc32c(body)))
                })
            })
        })
    }
}

/// What the header of a page says.
#[derive(Clone, Copy, Debug)]
pub(super) struct PageHeader {
    /// `xlp_tli`.
    pub timeline: TimelineId,
    /// Its bytes.
    pub length: usize,
    /// `xlp_rem_len`, where the page begins with the rest of a record.
    pub continued: Option<u32>,
    /// Whether the record that the page before began was never finished.
    pub overwrites: bool,
}

impl PageHeader {
    /// Bytes of a page's header: a segment's first page has the long one.
    pub const fn length(first: bool) -> usize {
        if first { LongPageHeader::LENGTH } else { 24 }
    }
}
