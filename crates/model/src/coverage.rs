//! Which segments of a timeline are in the repository.

use std::collections::BTreeMap;
use std::fmt;
use std::ops::RangeInclusive;

use walden_pg::{SegmentName, TimelineId};

/// The archived segments of one timeline. A segment's number is its LSN divided by the segment size.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct TimelineWal {
    /// Stored bytes by segment number.
    pub segments: BTreeMap<u64, u64>,
}

impl TimelineWal {
    /// Whether this segment is there.
    #[must_use]
    pub fn contains(&self, number: u64) -> bool {
        self.segments.contains_key(&number)
    }

    /// The first segment.
    #[must_use]
    pub fn first(&self) -> Option<u64> {
        self.segments.first_key_value().map(|(number, _)| *number)
    }

    /// The last segment, whatever is missing before it.
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
        for &number in self.segments.keys() {
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
        for &number in self.segments.range(from..).map(|(number, _)| number) {
            let expected = last.map_or(Some(from), |last| last.checked_add(1));
            if expected != Some(number) {
                break;
            }
            last = Some(number);
        }
        last
    }

    /// The first missing segments at or behind `from` that have later ones behind them: a hole, not the end.
    #[must_use]
    pub fn first_gap(&self, from: u64) -> Option<RangeInclusive<u64>> {
        let missing = match self.last_before_gap(from) {
            Some(last) => last.checked_add(1)?,
            None => from,
        };
        let behind = *self.segments.range(missing..).next()?.0;
        Some(missing..=behind.checked_sub(1)?)
    }
}

/// Missing segments of one timeline with later ones behind them; both ends are missing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Gap {
    /// The timeline.
    pub timeline: TimelineId,
    /// The first missing segment.
    pub first: SegmentName,
    /// The last missing segment.
    pub last: SegmentName,
}

impl fmt::Display for Gap {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.first == self.last {
            write!(f, "{}", self.first)
        } else {
            write!(f, "{} to {}", self.first, self.last)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn wal(numbers: &[u64]) -> TimelineWal {
        TimelineWal {
            segments: numbers.iter().map(|&number| (number, 100)).collect(),
        }
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
    }
}
