//! What consecutive segments of a timeline say together: the unit of roll-ups, and what a search decides by where to look closer.

use serde::{Deserialize, Serialize};
use walden_pg::Lsn;

use super::{Ends, Outcome, RestorePoint, SegmentIndex, StopReason, Stopped, TransactionFacts};

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
    /// Segments that recovery may not get past, by what they say themselves: reading ended early as damage ends it, or as the end of WAL does,
    /// which is a break only where later segments follow; or the record that goes on in the next segment is damaged. Their numbers.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub breaks: Vec<u64>,
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
        let told = |stopped: &Stopped| stopped.why == StopReason::Switch;
        let mut restore_points = index.restore_points.clone();
        restore_points.truncate(Self::MOST_POINTS);
        let lasting = |facts: &TransactionFacts| {
            let end = facts.end.as_ref();
            end.is_none_or(|end| end.end.kind == Outcome::Commit)
        };
        Self {
            first: number,
            last: number,
            end_lsn: index.end_lsn,
            records: index.records,
            ends: index.ends.clone(),
            next_xid: index.next_xid,
            more_points: index.restore_points.len() > Self::MOST_POINTS
                || (index.incomplete && restore_points.len() == Self::MOST_POINTS),
            restore_points,
            facts: index.incomplete
                || index.left_out.deleted > 0
                || index.transactions.iter().any(lasting),
            unread: match &index.stopped {
                Some(stopped) if !told(stopped) => vec![number],
                _ => Vec::new(),
            },
            breaks: match index.stopped.map(|stopped| stopped.why) {
                Some(StopReason::Damaged | StopReason::EndOfWal) => vec![number],
                Some(StopReason::Switch | StopReason::UnknownVersion) | None => Vec::new(),
            },
            stopped: index.stopped.map(|stopped| stopped.why),
        }
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
            breaks: Vec::new(),
            stopped: None,
        }
    }

    /// Of these segments and those of `next`, which follow at once.
    #[must_use]
    pub fn merge(&self, next: &Summary) -> Self {
        let mut restore_points = self.restore_points.clone();
        restore_points.extend_from_slice(&next.restore_points);
        let more = restore_points.len() > Self::MOST_POINTS;
        restore_points.truncate(Self::MOST_POINTS);
        Self {
            first: self.first,
            last: next.last,
            end_lsn: next.end_lsn.or(self.end_lsn),
            records: self.records.saturating_add(next.records),
            ends: Ends::joined(self.ends.as_ref(), next.ends.as_ref()),
            next_xid: next.next_xid.or(self.next_xid),
            restore_points,
            more_points: self.more_points || next.more_points || more,
            facts: self.facts || next.facts,
            unread: [self.unread.as_slice(), &next.unread].concat(),
            breaks: [self.breaks.as_slice(), &next.breaks].concat(),
            stopped: next.stopped,
        }
    }
}
