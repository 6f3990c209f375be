//! Which WAL stays.

use std::collections::BTreeMap;
use std::ops::RangeInclusive;

use walden_pg::{Lsn, TimelineId, WalSegmentSize};

use super::build::needed;
use crate::catalog::Catalog;
use crate::records::BackupRecord;
use crate::rollup::Block;

/// The segments that stay, by number: those from the floor on, and those that single backups need below it. Of such a number the copies
/// of all timelines stay, because recovery asks for the newest that there is and takes a missing one with later ones behind it for a hole.
/// What was archived behind the last segment that the plan knew of a timeline stays, too: nobody has asked yet who needs it.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct KeptWal {
    floor: u64,
    below: Vec<RangeInclusive<u64>>,
    /// The last segment of each timeline, or the partial one behind it.
    known: BTreeMap<TimelineId, u64>,
}

impl KeptWal {
    /// Everything from this segment on, and what is not in this catalog.
    #[must_use]
    pub fn new(floor: u64, catalog: &Catalog) -> Self {
        let segments = catalog.wal.iter();
        let segments = segments.filter_map(|(timeline, wal)| Some((*timeline, wal.last()?)));
        let mut known: BTreeMap<TimelineId, u64> = segments.collect();
        for partial in &catalog.partials {
            // A timeline of which there is nothing else may be one that has just begun.
            if let Some(last) = known.get_mut(&partial.timeline)
                && let Some(number) = partial.number(catalog.segment_size)
            {
                *last = number.max(*last);
            }
        }
        Self {
            floor,
            below: Vec::new(),
            known,
        }
    }

    /// The first segment of those that stay on every timeline and without a break.
    #[must_use]
    pub fn floor(&self) -> u64 {
        self.floor
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

    fn is_new(&self, timeline: TimelineId, number: u64) -> bool {
        self.known.get(&timeline).is_none_or(|last| number > *last)
    }

    /// Whether the segment of this number stays.
    #[must_use]
    pub fn keeps(&self, timeline: TimelineId, number: u64) -> bool {
        number >= self.floor
            || self.is_new(timeline, number)
            || self.below.iter().any(|range| range.contains(&number))
    }

    /// Whether every segment stays of which a roll-up speaks; else nobody believes it any more.
    #[must_use]
    pub fn keeps_all(&self, block: &Block) -> bool {
        let (first, last) = block.segments().into_inner();
        let covered = |range: &RangeInclusive<u64>| range.contains(&first) && range.contains(&last);
        first >= self.floor || self.is_new(block.timeline, first) || self.below.iter().any(covered)
    }
}
