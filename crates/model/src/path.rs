//! The segments that recovery reads on its way along a timeline's ancestry, and on which timeline it finds each
//! (xlogrecovery.c, `XLogFileReadAnyTLI`).

use std::ops::RangeInclusive;

use walden_pg::history::TimelineSpan;
use walden_pg::{Lsn, SegmentName, TimelineId};

use crate::catalog::{Catalog, MissingHistory};
use crate::coverage::{Break, Gap, TimelineWal};
use crate::index::StopReason;
use crate::records::{BackupRecord, SegmentRange};

/// The way to a timeline.
///
/// PostgreSQL asks for each segment on the newest timeline that has begun by then, and on its parents only where that one has none.
/// The segment in which a timeline forks repeats the parent's bytes up to the fork; so on a way that goes on, each segment must be on the
/// newest timeline: an older copy would lead along the wrong history.
pub struct WalPath<'a> {
    catalog: &'a Catalog,
    spans: Vec<TimelineSpan>,
    size: u64,
}

impl<'a> WalPath<'a> {
    pub(crate) fn new(catalog: &'a Catalog, timeline: TimelineId) -> Result<Self, MissingHistory> {
        Ok(Self {
            catalog,
            spans: catalog.lineage(timeline)?,
            size: catalog.segment_size.bytes(),
        })
    }

    /// The timelines on the way, oldest first, with the WAL that belongs to each.
    #[must_use]
    pub fn spans(&self) -> &[TimelineSpan] {
        &self.spans
    }

    /// Whether the way leads through the backup's end: on its timeline, before the fork.
    pub(crate) fn leads_through(&self, backup: &BackupRecord) -> bool {
        self.spans.iter().any(|span| {
            span.timeline == backup.timeline && span.end.is_none_or(|end| backup.stop_lsn <= end)
        })
    }

    /// The number of the segment that holds the byte at `lsn`.
    #[must_use]
    pub fn number_of(&self, lsn: Lsn) -> u64 {
        lsn.0 / self.size
    }

    /// Where this segment begins.
    #[must_use]
    pub fn start_of(&self, number: u64) -> Lsn {
        Lsn(number.saturating_mul(self.size))
    }

    /// The segment of this number, on the timeline on which a way that goes on finds it.
    #[must_use]
    pub fn name(&self, number: u64) -> SegmentName {
        SegmentName::from_number(self.holder(number), number, self.catalog.segment_size)
    }

    /// The number of the first segment that recovery from this backup reads.
    #[must_use]
    pub fn first_segment(&self, backup: &BackupRecord) -> u64 {
        let starts = backup.wal_ranges.iter().map(|range| range.start);
        self.number_of(starts.fold(backup.start_lsn, Lsn::min))
    }

    /// The last byte of the WAL that the backup itself needs.
    pub(crate) fn last_byte(backup: &BackupRecord) -> Lsn {
        Lsn(backup.stop_lsn.0.saturating_sub(1).max(backup.start_lsn.0))
    }

    /// The first segment that the backup itself needs and that cannot be read.
    pub(crate) fn missing_for(&self, backup: &BackupRecord) -> Option<Missing> {
        self.read(self.first_segment(backup), Self::last_byte(backup))
            .err()
    }

    fn wal_of(&self, timeline: TimelineId) -> Option<&'a TimelineWal> {
        self.catalog.wal.get(&timeline)
    }

    /// Spans that have begun in or before this segment, newest first: the order in which PostgreSQL asks.
    fn begun(&self, number: u64) -> impl Iterator<Item = &TimelineSpan> {
        self.spans
            .iter()
            .rev()
            .filter(move |span| self.number_of(span.begin) <= number)
    }

    /// The timeline on which a way that goes on finds this segment.
    fn holder(&self, number: u64) -> TimelineId {
        let newest = self.begun(number).next().or(self.spans.first());
        newest.map_or(TimelineId(1), |span| span.timeline)
    }

    /// The way, cut where the timeline changes on which segments are read. A timeline that was left in the segment in which it began
    /// has no piece.
    fn pieces(&self) -> impl Iterator<Item = (TimelineId, RangeInclusive<u64>)> {
        let ends = self
            .spans
            .iter()
            .skip(1)
            .map(|next| self.number_of(next.begin).checked_sub(1))
            .chain([Some(u64::MAX)]);
        self.spans.iter().zip(ends).filter_map(|(span, end)| {
            let range = self.number_of(span.begin)..=end?;
            (!range.is_empty()).then_some((span.timeline, range))
        })
    }

    /// The pieces from `first` on.
    fn pieces_from(&self, first: u64) -> impl Iterator<Item = (TimelineId, RangeInclusive<u64>)> {
        self.pieces().filter_map(move |(timeline, range)| {
            let range = first.max(*range.start())..=*range.end();
            (!range.is_empty()).then_some((timeline, range))
        })
    }

    /// The last segment of the unbroken run from `first`, which may be broken itself; `None` where `first` is missing.
    #[must_use]
    pub fn unbroken_until(&self, first: u64) -> Option<u64> {
        let mut reached = None;
        for (timeline, range) in self.pieces_from(first) {
            let Some(wal) = self.wal_of(timeline) else {
                break;
            };
            let Some(last) = wal.last_before_gap(*range.start()) else {
                break;
            };
            let last = last.min(*range.end());
            let broken = wal.first_break(*range.start()..=last);
            reached = Some(broken.unwrap_or(last));
            if broken.is_some() || last < *range.end() {
                break;
            }
        }
        reached
    }

    /// Where recovery ends in this segment, if the archive goes on and recovery does not.
    fn broken(&self, number: u64) -> Option<Break> {
        self.broken_on(self.holder(number), number)
    }

    fn broken_on(&self, timeline: TimelineId, number: u64) -> Option<Break> {
        let broken = self.wal_of(timeline)?.breaks.get(&number)?;
        // A timeline that was left may well end in the middle of a segment.
        let goes_on = || {
            let next = number.checked_add(1);
            next.is_some_and(|next| self.next_present(next).is_some())
        };
        (broken.why == StopReason::Damaged || goes_on()).then_some(*broken)
    }

    /// The gap that a broken segment is.
    fn gap_in(&self, timeline: TimelineId, number: u64, broken: Break) -> Gap {
        let name = SegmentName::from_number(timeline, number, self.catalog.segment_size);
        Gap {
            timeline,
            first: name,
            last: name,
            conflict: None,
            broken: Some(broken),
        }
    }

    /// The first segment at or behind `first` that is there.
    fn next_present(&self, first: u64) -> Option<u64> {
        self.pieces_from(first)
            .find_map(|(timeline, range)| self.wal_of(timeline)?.first_present(range))
    }

    /// The segments at or behind `first` that are in conflict.
    fn conflicts_from(&self, first: u64) -> impl Iterator<Item = u64> {
        self.pieces_from(first)
            .filter_map(|(timeline, range)| Some(self.wal_of(timeline)?.conflicts_in(range)))
            .flatten()
    }

    /// The last segment of the last timeline; `None` where it has none.
    pub(crate) fn last_segment(&self) -> Option<u64> {
        let span = self.spans.last()?;
        let last = self.wal_of(span.timeline)?.last()?;
        (last >= self.number_of(span.begin)).then_some(last)
    }

    /// What ends the run from `from`: missing segments that have later ones behind them, or are in conflict, or the run's last one, which is
    /// broken.
    #[must_use]
    pub fn gap_from(&self, from: u64) -> Option<Gap> {
        let missing = match self.unbroken_until(from) {
            Some(last) => {
                if let Some(broken) = self.broken(last) {
                    return Some(self.gap_in(self.holder(last), last, broken));
                }
                last.checked_add(1)?
            }
            None => from,
        };
        let last = match self.next_present(missing) {
            Some(behind) => behind.checked_sub(1)?,
            None => self.conflicts_from(missing).last()?,
        };
        let conflict = self.conflicts_from(missing).next();
        let first = self.name(missing);
        Some(Gap {
            timeline: first.timeline,
            first,
            last: self.name(last),
            conflict: conflict
                .filter(|conflict| *conflict <= last)
                .map(|conflict| self.name(conflict)),
            broken: None,
        })
    }

    /// What recovery reads from the segment `first` to `byte`, and where.
    pub(crate) fn read(&self, first: u64, byte: Lsn) -> Result<Vec<SegmentRange>, Missing> {
        let last = self.number_of(byte);
        let mut read = Vec::new();
        if first < last {
            let reached = self.unbroken_until(first);
            let ends = |reached| reached < last - 1 || self.ends_in(reached, last - 1);
            if reached.is_none_or(ends) {
                return Err(self.missing_from(first));
            }
            read.extend(self.ranges(first, last - 1));
        }
        let timeline = self.last_holder(last, byte)?;
        let broken = self.broken_on(timeline, last);
        if let Some(broken) = broken.filter(|broken| byte >= broken.at) {
            return Err(Missing {
                number: last,
                name: SegmentName::from_number(timeline, last, self.catalog.segment_size),
                gap: Some(self.gap_in(timeline, last, broken)),
            });
        }
        match read.last_mut() {
            Some(run) if run.timeline == timeline => run.last = last,
            _ => read.push(SegmentRange {
                timeline,
                first: last,
                last,
            }),
        }
        Ok(read)
    }

    /// What recovery reads from the segment `first` through the whole segment `last`, and where.
    pub(crate) fn read_through(&self, first: u64, last: u64) -> Result<Vec<SegmentRange>, Missing> {
        match self.unbroken_until(first) {
            Some(reached) if reached >= last && !self.ends_in(reached, last) => {
                Ok(self.ranges(first, last).collect())
            }
            _ => Err(self.missing_from(first)),
        }
    }

    /// Whether the run that reaches `reached` ends in this segment because it is broken.
    fn ends_in(&self, reached: u64, number: u64) -> bool {
        reached == number && self.broken(number).is_some()
    }

    /// The segments from `first` to `last`, each on the timeline on which a way that goes on finds it; archived or not.
    pub fn ranges(&self, first: u64, last: u64) -> impl Iterator<Item = SegmentRange> {
        self.pieces_from(first)
            .filter_map(move |(timeline, range)| {
                let (first, last) = (*range.start(), last.min(*range.end()));
                (first <= last).then_some(SegmentRange {
                    timeline,
                    first,
                    last,
                })
            })
    }

    /// On which timeline recovery finds the segment in which it stops at `byte`. If that is the segment of a fork and `byte` lies before
    /// it, the parent's copy serves too, unless the newer timeline has later segments: PostgreSQL asks for the newer one first, and
    /// `walden-wal-fetch` does not call a hole absent.
    fn last_holder(&self, number: u64, byte: Lsn) -> Result<TimelineId, Missing> {
        for span in self.begun(number) {
            let wal = self.wal_of(span.timeline);
            if wal.is_some_and(|wal| wal.contains(number)) {
                return Ok(span.timeline);
            }
            let name =
                |number| SegmentName::from_number(span.timeline, number, self.catalog.segment_size);
            let hole = wal.and_then(|wal| {
                let hole = wal.first_gap(number)?;
                Some(Gap {
                    timeline: span.timeline,
                    first: name(number),
                    last: name(*hole.end()),
                    conflict: wal.conflicts_in(hole).next().map(name),
                    broken: None,
                })
            });
            if hole.is_some() || byte >= span.begin {
                return Err(Missing {
                    number,
                    name: name(number),
                    gap: hole.or_else(|| self.gap_from(number)),
                });
            }
        }
        Err(self.missing(number))
    }

    /// The segment that ends the run from `first`.
    pub(crate) fn missing_from(&self, first: u64) -> Missing {
        self.missing(match self.unbroken_until(first) {
            Some(last) if self.broken(last).is_some() => last,
            Some(last) => last.saturating_add(1),
            None => first,
        })
    }

    fn missing(&self, number: u64) -> Missing {
        Missing {
            number,
            name: self.name(number),
            gap: self.gap_from(number),
        }
    }
}

/// A segment that recovery would ask for in vain, or not get past.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Missing {
    pub(crate) number: u64,
    pub(crate) name: SegmentName,
    /// The hole that begins with it, or itself where it is broken; `None` where nothing is behind it.
    pub(crate) gap: Option<Gap>,
}

impl Missing {
    /// Where it is broken, if it is archived.
    pub(crate) fn broken(&self) -> Option<Break> {
        self.gap?.broken
    }

    /// Whether it is archived, and in conflict.
    pub(crate) fn in_conflict(&self) -> bool {
        self.gap.is_some_and(|gap| gap.begins_in_conflict())
    }
}
