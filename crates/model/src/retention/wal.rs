//! Which WAL stays.

use std::collections::BTreeSet;
use std::ops::RangeInclusive;

use walden_pg::{Lsn, TimelineId, WalSegmentSize};

use super::build::needed;
use crate::records::BackupRecord;
use crate::rollup::Block;

/// The segments that stay, by number: those from the floor on, and those that single backups need below it. Of such a number the copies
/// of all timelines stay, because recovery asks for the newest that there is and takes a missing one with later ones behind it for a hole.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct KeptWal {
    floor: u64,
    below: Vec<RangeInclusive<u64>>,
    alone: BTreeSet<TimelineId>,
}

impl KeptWal {
    /// Everything from this segment on.
    #[must_use]
    pub fn from(floor: u64) -> Self {
        Self {
            floor,
            below: Vec::new(),
            alone: BTreeSet::new(),
        }
    }

    /// The first segment of those that stay on every timeline and without a break.
    #[must_use]
    pub fn floor(&self) -> u64 {
        self.floor
    }

    /// Timelines of which nothing goes, because nobody knows where they come from.
    #[must_use]
    pub fn left_alone(&self) -> &BTreeSet<TimelineId> {
        &self.alone
    }

    /// Keeps what a running backup may need: nothing is known where it does not say from where on.
    pub fn hold(&mut self, from: Option<Lsn>, size: WalSegmentSize) {
        let from = from.map_or(0, |from| from.0 / size.bytes());
        self.floor = self.floor.min(from);
    }

    /// Keeps what a backup needs to become consistent.
    pub fn keep(&mut self, record: &BackupRecord) {
        let (first, last) = needed(record);
        if first < self.floor {
            self.below.push(first..=last);
        }
    }

    pub(super) fn leave_alone(&mut self, timeline: TimelineId) {
        self.alone.insert(timeline);
    }

    /// Whether the segment of this number stays.
    #[must_use]
    pub fn keeps(&self, timeline: TimelineId, number: u64) -> bool {
        number >= self.floor
            || self.alone.contains(&timeline)
            || self.below.iter().any(|range| range.contains(&number))
    }

    /// Whether every segment stays of which a roll-up speaks; else nobody believes it any more.
    #[must_use]
    pub fn keeps_all(&self, block: &Block) -> bool {
        let (first, last) = block.segments().into_inner();
        let covered = |range: &RangeInclusive<u64>| range.contains(&first) && range.contains(&last);
        first >= self.floor
            || self.alone.contains(&block.timeline)
            || self.below.iter().any(covered)
    }
}
