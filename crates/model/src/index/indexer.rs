//! From a segment's bytes to its index.

use walden_pg::{SegmentName, WalSegmentSize};

use super::SegmentIndex;

/// Gathers a segment's index from its bytes, fed from the beginning in pieces of any size.
pub struct SegmentIndexer {
    name: SegmentName,
}

impl SegmentIndexer {
    /// For the segment of that name.
    #[must_use]
    pub fn new(name: SegmentName, size: WalSegmentSize) -> Self {
        let _ = size;
        Self { name }
    }

    /// Takes the segment's next bytes.
    pub fn feed(&mut self, bytes: &[u8]) {
        let _ = (bytes, self.name);
    }

    /// Says that this was all of the segment.
    #[must_use]
    pub fn finish(self) -> SegmentIndex {
        SegmentIndex::empty()
    }
}
