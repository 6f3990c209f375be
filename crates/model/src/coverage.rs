//! Which segments of a timeline are in the repository.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::ops::RangeInclusive;

use walden_pg::{Lsn, SegmentName, TimelineId};

use crate::index::StopReason;

/// The archived segments of one timeline. A segment's number is its LSN divided by the segment size.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct TimelineWal {
    /// Stored bytes by segment number.
    pub segments: BTreeMap<u64, u64>,
    /// Those of [`Self::segments`] that are in conflict: a person set aside another file of the same name, so nobody can tell whether
    /// what is archived is this cluster's. They count as missing, and as something that is behind a hole.
    pub conflicts: BTreeSet<u64>,
    /// Those of [`Self::segments`] that recovery does not get past, as far as that was looked for.
    pub breaks: BTreeMap<u64, Break>,
}

/// Where a segment ends recovery that is archived: it was damaged, or not yet finished, before that.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Break {
    /// Where the record begins that cannot be read.
    pub at: Lsn,
    /// [`StopReason::Damaged`], or [`StopReason::EndOfWal`], which is a break only where a way goes on behind the segment.
    pub why: StopReason,
    /// The segment's last commit before that, else its first record, where the record begins; `None` where no record is whole.
    pub reaches: Option<Lsn>,
}

impl TimelineWal {
    /// Whether this segment is there, and not in conflict.
    #[must_use]
    pub fn contains(&self, number: u64) -> bool {
        self.segments.contains_key(&number) && !self.conflicts.contains(&number)
    }

    /// The segments from `from` on that are there and not in conflict.
    fn present_from(&self, from: u64) -> impl Iterator<Item = u64> {
        self.segments
            .range(from..)
            .map(|(number, _)| *number)
            .filter(|number| !self.conflicts.contains(number))
    }

    /// The first segment of this range that is there and not in conflict.
    pub(crate) fn first_present(&self, range: RangeInclusive<u64>) -> Option<u64> {
        self.present_from(*range.start())
            .next()
            .filter(|number| range.contains(number))
    }

    /// The segments of this range that are in conflict.
    pub(crate) fn conflicts_in(
        &self,
        range: RangeInclusive<u64>,
    ) -> impl DoubleEndedIterator<Item = u64> {
        let range = (!range.is_empty()).then_some(range);
        range
            .into_iter()
            .flat_map(|range| self.conflicts.range(range))
            .copied()
    }

    /// The first segment of this range that recovery does not get past.
    pub(crate) fn first_break(&self, range: RangeInclusive<u64>) -> Option<u64> {
        let range = (!range.is_empty()).then_some(range)?;
        self.breaks.range(range).next().map(|(number, _)| *number)
    }

    /// The first segment.
    #[must_use]
    pub fn first(&self) -> Option<u64> {
        self.segments.first_key_value().map(|(number, _)| *number)
    }

    /// The last segment, whatever is missing before it; it may be in conflict.
    #[must_use]
    pub fn last(&self) -> Option<u64> {
        self.segments.last_key_value().map(|(number, _)| *number)
    }

    /// Stored bytes of the segments in this range that are there.
    #[must_use]
    pub fn stored_bytes(&self, range: RangeInclusive<u64>) -> u64 {
        if range.is_empty() {
            return 0;
        }
        let stored = self.segments.range(range);
        stored.fold(0, |sum: u64, (_, bytes)| sum.saturating_add(*bytes))
    }

    /// Unbroken runs, in order.
    #[must_use]
    pub fn runs(&self) -> Vec<RangeInclusive<u64>> {
        let mut runs: Vec<RangeInclusive<u64>> = Vec::new();
        for number in self.present_from(0) {
            match runs.last_mut() {
                Some(run) if run.end().checked_add(1) == Some(number) => {
                    *run = *run.start()..=number
                }
                _ => runs.push(number..=number),
            }
        }
        runs
    }

    /// The last segment of the unbroken run that contains `from`; `None` where `from` itself is missing.
    #[must_use]
    pub fn last_before_gap(&self, from: u64) -> Option<u64> {
        let mut last: Option<u64> = None;
        for number in self.present_from(from) {
            let expected = last.map_or(Some(from), |last| last.checked_add(1));
            if expected != Some(number) {
                break;
            }
            last = Some(number);
        }
        last
    }

    /// The first missing segments at or behind `from` that have later ones behind them, or are in conflict: a hole, not the end.
    #[must_use]
    pub fn first_gap(&self, from: u64) -> Option<RangeInclusive<u64>> {
        let missing = match self.last_before_gap(from) {
            Some(last) => last.checked_add(1)?,
            None => from,
        };
        let last = match self.present_from(missing).next() {
            Some(behind) => behind.checked_sub(1)?,
            None => self.conflicts_in(missing..=u64::MAX).next_back()?,
        };
        Some(missing..=last)
    }
}

/// Missing segments of one timeline with later ones behind them, or in conflict; both ends are missing. Or one that is there, and broken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Gap {
    /// The timeline.
    pub timeline: TimelineId,
    /// The first missing segment.
    pub first: SegmentName,
    /// The last missing segment.
    pub last: SegmentName,
    /// The first of them that is archived and in conflict ([`TimelineWal::conflicts`]).
    pub conflict: Option<SegmentName>,
    /// Where recovery ends in [`Self::first`], if that is archived and broken.
    pub broken: Option<Break>,
}

impl Gap {
    /// Whether the gap begins with a segment that is in conflict: the archive has a file of that name, so recovery would not stop there by
    /// itself.
    #[must_use]
    pub fn begins_in_conflict(&self) -> bool {
        self.conflict == Some(self.first)
    }
}

impl fmt::Display for Gap {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(Break { at, why, .. }) = self.broken {
            let first = self.first;
            return match why {
                StopReason::EndOfWal => write!(f, "{first}, in which WAL ends early, at {at}"),
                _ => write!(f, "{first}, damaged at {at} before it was archived"),
            };
        }
        match (self.first == self.last, self.conflict) {
            (true, None) => write!(f, "{}", self.first),
            (true, Some(conflict)) => write!(f, "conflict at {conflict}, see quarantine"),
            (false, None) => write!(f, "{} to {}", self.first, self.last),
            (false, Some(conflict)) => write!(
                f,
                "{} to {} (conflict at {conflict}, see quarantine)",
                self.first, self.last
            ),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn wal(numbers: &[u64]) -> TimelineWal {
        TimelineWal {
            segments: numbers.iter().map(|&number| (number, 100)).collect(),
            ..TimelineWal::default()
        }
    }

    #[test]
    fn a_segment_in_conflict_is_a_hole_even_at_the_end() {
        let mut wal = wal(&[3, 4, 5, 8, 9]);
        wal.conflicts = [4, 9].into();
        assert!(wal.contains(3) && !wal.contains(4), "4 is in conflict");
        assert_eq!(wal.runs(), [3..=3, 5..=5, 8..=8]);
        assert_eq!(wal.last_before_gap(3), Some(3));
        assert_eq!(wal.first_gap(3), Some(4..=4));
        assert_eq!(wal.first_gap(5), Some(6..=7));
        assert_eq!(
            wal.first_gap(8),
            Some(9..=9),
            "nothing is behind it, and it is a hole"
        );
        assert_eq!(wal.last(), Some(9), "the archive does not end before it");
    }

    #[test]
    fn runs_and_gaps_of_a_broken_timeline() {
        let wal = wal(&[3, 4, 5, 8, 9, 12]);
        assert_eq!(wal.runs(), [3..=5, 8..=9, 12..=12]);
        assert_eq!(wal.last_before_gap(4), Some(5));
        assert_eq!(wal.last_before_gap(12), Some(12));
        assert_eq!(wal.last_before_gap(6), None, "6 is missing itself");
        assert_eq!(wal.first_gap(3), Some(6..=7));
        assert_eq!(wal.first_gap(7), Some(7..=7));
        assert_eq!(wal.first_gap(1), Some(1..=2));
        assert_eq!(
            wal.first_gap(12),
            None,
            "behind the last segment is the end, not a hole"
        );
        assert_eq!(wal.first_gap(13), None);
        assert_eq!((wal.first(), wal.last()), (Some(3), Some(12)));
    }

    #[test]
    fn nothing_overflows_at_the_last_number() {
        let wal = wal(&[u64::MAX]);
        assert_eq!(wal.last_before_gap(u64::MAX), Some(u64::MAX));
        assert_eq!(wal.first_gap(u64::MAX), None);
        assert_eq!(wal.runs(), [u64::MAX..=u64::MAX]);
        let conflict = TimelineWal {
            conflicts: [u64::MAX].into(),
            ..wal
        };
        assert_eq!(conflict.first_gap(u64::MAX), Some(u64::MAX..=u64::MAX));
    }
}
