//! One record, wherever its bytes came from.

use super::page::PageHeader;
use super::rmgr;
use crate::field::{array, u32_at, u64_at};
use crate::{Lsn, MajorVersion, WalSegmentSize};

/// What every record begins with (`XLogRecord` in `access/xlogrecord.h`); the same in versions 14 to 18.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RecordHeader {
    /// `xl_tot_len`: the record's bytes, this header's among them.
    pub total_length: u32,
    /// `xl_xid`: the transaction, or the subtransaction, that wrote it; 0 for none.
    pub xid: u32,
    /// `xl_prev`: where the record before it begins.
    pub prev: Lsn,
    /// `xl_info`: the upper four bits are the resource manager's own.
    pub info: u8,
    /// `xl_rmid`: the resource manager, one of [`super::rmgr`] or another.
    pub rmgr: u8,
    /// `xl_crc`: CRC32C of what follows this header, and then of the header up to this field.
    pub crc: u32,
}

impl RecordHeader {
    /// Bytes of a header.
    pub const LENGTH: usize = 24;
    /// Where `xl_crc` stands in it.
    const CRC_AT: usize = 20;

    /// Reads the header at the start of `bytes`; `None` where there are fewer than [`Self::LENGTH`].
    #[must_use]
    pub fn parse(bytes: &[u8]) -> Option<Self> {
        let bytes: [u8; Self::LENGTH] = array(bytes, 0)?;
        Some(Self {
            total_length: u32_at(&bytes, 0)?,
            xid: u32_at(&bytes, 4)?,
            prev: Lsn(u64_at(&bytes, 8)?),
            info: bytes[16],
            rmgr: bytes[17],
            crc: u32_at(&bytes, Self::CRC_AT)?,
        })
    }

    /// The part of `xl_info` that is the resource manager's own (`XLR_RMGR_INFO_MASK`).
    #[must_use]
    pub fn operation(&self) -> u8 {
        self.info & 0xF0
    }

    /// Whether the header at the start of `bytes` belongs to a body with this CRC32C: then neither was changed.
    #[must_use]
    pub fn proves(bytes: &[u8], body_crc: u32) -> bool {
        bytes
            .get(..Self::CRC_AT)
            .map(|covered| crc32c::crc32c_append(body_crc, covered))
            .is_some_and(|crc| u32_at(bytes, Self::CRC_AT) == Some(crc))
    }
}

/// A record that its CRC has proven.
#[derive(Clone, Copy, Debug)]
pub struct Record<'a> {
    /// Where it begins.
    pub lsn: Lsn,
    /// Behind it and its padding: what `pg_waldump` and recovery take for its end (`EndRecPtr`). Of a switch, the segment's end.
    pub end_lsn: Lsn,
    /// Its header.
    pub header: RecordHeader,
    /// The version that wrote it, by the page's magic.
    pub version: MajorVersion,
    /// What follows the header; `None` where that was too long to keep (see [`super::SegmentReader`]).
    pub body: Option<&'a [u8]>,
}

impl Record<'_> {
    /// Whether the rest of the segment is nothing (`XLOG_SWITCH`).
    pub(super) fn is_switch(&self) -> bool {
        self.header.rmgr == rmgr::XLOG && self.header.operation() == rmgr::XLOG_SWITCH
    }

    /// Lets a switch go on to the end of the segment, as `pg_waldump` and recovery do.
    pub(super) fn stretched(self, segment_size: WalSegmentSize) -> Self {
        let end_lsn = match self.is_switch() {
            true => Lsn(self.end_lsn.0.next_multiple_of(segment_size.bytes())),
            false => self.end_lsn,
        };
        Self { end_lsn, ..self }
    }
}

/// The record whose `bytes`, header and all, were joined from the parts in several segments; `None` where their CRC does not fit. Its end is
/// computed for WAL pages of 8 KiB.
#[must_use]
pub fn whole_record(
    lsn: Lsn,
    bytes: &[u8],
    version: MajorVersion,
    segment_size: WalSegmentSize,
) -> Option<Record<'_>> {
    let header = RecordHeader::parse(bytes)?;
    let body = bytes.get(RecordHeader::LENGTH..)?;
    if header.total_length as usize != bytes.len()
        || !RecordHeader::proves(bytes, crc32c::crc32c(body))
    {
        return None;
    }
    let record = Record {
        lsn,
        end_lsn: record_end(lsn, header.total_length, segment_size)?,
        header,
        version,
        body: Some(body),
    };
    Some(record.stretched(segment_size))
}

/// Behind a record of `total_length` bytes that begins at `lsn`, its padding included, for WAL pages of 8 KiB: each page that it goes on in
/// has a header. `None` beyond the end of the address space.
#[must_use]
pub fn record_end(lsn: Lsn, total_length: u32, segment_size: WalSegmentSize) -> Option<Lsn> {
    /// `XLOG_BLCKSZ`, where nobody built PostgreSQL with another.
    const PAGE: u64 = 8192;
    let mut rest = u64::from(total_length).next_multiple_of(8);
    let mut at = lsn.0;
    loop {
        let room = PAGE - at % PAGE;
        if rest <= room {
            return Lsn(at).checked_add(rest);
        }
        rest -= room;
        at = at.checked_add(room)?;
        let first = at.is_multiple_of(segment_size.bytes());
        at = at.checked_add(PageHeader::length(first) as u64)?;
    }
}
