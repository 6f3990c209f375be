//! WAL made up: records laid on pages as PostgreSQL lays them.

use crc32c::{crc32c, crc32c_append};

/// XLOG_BLCKSZ.
pub const PAGE: usize = 8192;

/// Writes records one after the other, from a segment's beginning.
pub struct Writer {
    magic: u16,
    start: u64,
    segment_size: u64,
    prev: u64,
    bytes: Vec<u8>,
}

impl Writer {
    /// For WAL that begins at `start`, in segments of `segment_size` bytes.
    pub fn new(magic: u16, start: u64, segment_size: u64) -> Self {
        Self {
            magic,
            start,
            segment_size,
            prev: start - 64,
            bytes: Vec::new(),
        }
    }

    /// Bytes so far.
    pub fn len(&self) -> usize {
        self.bytes.len()
    }

    fn page_header(&mut self, flags: u16, remaining: u32) {
        let address = self.start + self.bytes.len() as u64;
        let long = address.is_multiple_of(self.segment_size);
        self.bytes.extend(self.magic.to_le_bytes());
        self.bytes
            .extend((flags | u16::from(long) << 1).to_le_bytes());
        self.bytes.extend(1_u32.to_le_bytes());
        self.bytes.extend(address.to_le_bytes());
        self.bytes.extend(u64::from(remaining).to_le_bytes());
        if long {
            self.bytes.extend(42_u64.to_le_bytes());
            self.bytes.extend((self.segment_size as u32).to_le_bytes());
            self.bytes.extend((PAGE as u32).to_le_bytes());
        }
    }

    /// Writes a record, with page headers between its bytes.
    fn lay(&mut self, mut bytes: &[u8]) {
        let mut begun = false;
        while !bytes.is_empty() {
            if self.bytes.len().is_multiple_of(PAGE) {
                let (flags, remaining) = if begun { (1, bytes.len()) } else { (0, 0) };
                self.page_header(flags, remaining as u32);
            }
            let room = PAGE - self.bytes.len() % PAGE;
            let (here, rest) = bytes.split_at(room.min(bytes.len()));
            self.bytes.extend(here);
            bytes = rest;
            begun = true;
        }
    }

    /// A record, header and all, that would come next.
    pub fn record(&self, rmgr: u8, info: u8, xid: u32, body: &[u8]) -> Vec<u8> {
        let mut record = Vec::with_capacity(24 + body.len());
        record.extend((24 + body.len() as u32).to_le_bytes());
        record.extend(xid.to_le_bytes());
        record.extend(self.prev.to_le_bytes());
        record.extend([info, rmgr, 0, 0]);
        let crc = crc32c_append(crc32c(body), &record);
        record.extend(crc.to_le_bytes());
        record.extend(body);
        record
    }

    /// Writes a record; where it begins.
    pub fn put(&mut self, rmgr: u8, info: u8, xid: u32, body: &[u8]) -> u64 {
        let record = self.record(rmgr, info, xid, body);
        if self.bytes.len().is_multiple_of(PAGE) {
            self.page_header(0, 0);
        }
        let lsn = self.start + self.bytes.len() as u64;
        self.lay(&record);
        self.bytes.resize(self.bytes.len().next_multiple_of(8), 0);
        self.prev = lsn;
        lsn
    }

    /// Begins a record of which only what the page has room for is ever written; the next page overwrites the rest.
    pub fn abandon(&mut self) {
        let record = self.record(10, 0, 7, &[3; 2 * PAGE]);
        let room = PAGE - self.bytes.len() % PAGE;
        self.bytes.extend(record.get(..room).unwrap_or_default());
        self.page_header(8, 0);
    }

    /// What was written, in whole segments, with zeros behind.
    pub fn segments(mut self) -> Vec<Vec<u8>> {
        let size = self.segment_size as usize;
        self.bytes
            .resize(self.bytes.len().next_multiple_of(size), 0);
        self.bytes.chunks(size).map(<[u8]>::to_vec).collect()
    }
}
