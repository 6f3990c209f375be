//! What a server's `pg_wal` holds that the archive lacks: after a failover, what the dead primary never archived.

use std::collections::{BTreeMap, BTreeSet};

use walden_pg::history::{TimelineHistory, TimelineSpan};
use walden_pg::{LongPageHeader, Lsn, SegmentName, TimelineId, WalFileName};

use crate::catalog::Catalog;
use crate::records::SegmentRange;

/// A server's `pg_wal`, as it was looked at.
#[derive(Debug, Clone)]
pub struct LocalWal {
    /// The newest timeline that its `pg_control` speaks of. A standby may have received WAL of a newer one.
    pub timeline: TimelineId,
    /// Its segments, whole and partial, and its history files. A segment's first page, where it has one and the length of a segment.
    pub files: BTreeMap<WalFileName, Option<LongPageHeader>>,
    /// Its history files that can be read.
    pub histories: BTreeMap<TimelineId, TimelineHistory>,
}

/// What is to become of a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fate {
    /// The archive lacks it, and it is finished.
    Missing,
    /// The archive has one of that name; with the same content once that was compared.
    Archived,
    /// Other content is archived under its name.
    Conflict,
    /// What is archived under its name cannot be read.
    Unreadable,
    /// The archive lacks it, but its neighbour is in conflict: it may be another server's.
    Withheld {
        /// The neighbour.
        because: WalFileName,
    },
    /// The newest segment, which is still written to or received.
    Unfinished,
    /// Recycled, or allocated beforehand: its content is not what its name says.
    NotWritten,
    /// Its timeline was left in it, or before. Up to there, the next timeline's first segment has its content.
    Left {
        /// Where.
        fork: Lsn,
    },
    /// Of a timeline that does not lead to the server's own.
    OtherTimeline,
}

/// What comparing a file with the archived one of its name came to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Compared {
    /// The same content.
    Same,
    /// Other content.
    Different,
    /// There is none any more.
    Absent,
    /// It cannot be read.
    Unreadable,
}

/// Nobody knows where the server's timeline comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error(
    "neither pg_wal nor the archive has {}.history, so it cannot be told which WAL leads to timeline {}: \
     copy it into pg_wal from a server that has been on that timeline", .0.hex(), .0
)]
pub struct UnknownTimeline(pub TimelineId);

/// What is to become of each file of a `pg_wal`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UnarchivedPlan {
    /// The server's timeline.
    pub timeline: TimelineId,
    /// Histories first, then by name: the order in which they are pushed.
    pub files: Vec<(WalFileName, Fate)>,
    /// Segments on the way to the server's newest one that are neither archived nor in its `pg_wal`.
    pub gaps: Vec<SegmentRange>,
}

/// The way to a timeline.
struct Way<'a> {
    spans: Vec<TimelineSpan>,
    catalog: &'a Catalog,
}

impl Way<'_> {
    fn number_of(&self, lsn: Lsn) -> u64 {
        lsn.0 / self.catalog.segment_size.bytes()
    }

    fn span(&self, timeline: TimelineId) -> Option<&TimelineSpan> {
        self.spans.iter().find(|span| span.timeline == timeline)
    }

    /// Whether a segment's first page is the one that belongs there: its address, its cluster and, more strictly than for a push, the
    /// timeline that the address belongs to. A promotion may recycle its parent's later segments under the same numbers of the new
    /// timeline (xlog.c, `RemoveNonParentXlogFiles`), and then the address alone is right.
    fn is_written(&self, name: SegmentName, page: Option<&LongPageHeader>) -> bool {
        let start = name.start(self.catalog.segment_size);
        let (Some(page), Some(start), Some(span)) = (page, start, self.span(name.timeline)) else {
            return false;
        };
        let owner = self
            .spans
            .iter()
            .find(|span| span.begin <= start && span.end.is_none_or(|end| start < end));
        page.page_address == start
            && page.system_identifier == self.catalog.system_identifier
            && owner.is_some_and(|owner| owner.timeline == page.timeline)
            && self.number_of(span.begin) <= self.number_of(start)
    }

    /// The numbers of each timeline's segments up to `newest`, as a recovery that goes on reads them.
    fn pieces(&self, newest: u64) -> Vec<SegmentRange> {
        let next = self.spans.iter().skip(1).map(|next| Some(next.begin));
        let pieces = self.spans.iter().zip(next.chain([None]));
        pieces
            .filter_map(|(span, next)| {
                let last = match next {
                    Some(next) => self.number_of(next).checked_sub(1)?,
                    None => newest,
                };
                let first = self.number_of(span.begin);
                (first <= last).then_some(SegmentRange {
                    timeline: span.timeline,
                    first,
                    last,
                })
            })
            .collect()
    }
}

impl UnarchivedPlan {
    /// Decides by names and first pages; what is archived is to be compared then ([`Self::compared`]).
    ///
    /// # Errors
    /// The history of the server's timeline is nowhere.
    pub fn build(local: &LocalWal, catalog: &Catalog) -> Result<Self, UnknownTimeline> {
        let (timeline, way) = way(local, catalog)?;
        let newest = newest(&way, timeline, local);
        let files = local
            .files
            .iter()
            .filter_map(|(file, page)| Some((*file, fate(&way, newest, *file, page.as_ref())?)));
        let mut files: Vec<(WalFileName, Fate)> = files.collect();
        files.sort_by_key(|(file, _)| (!matches!(file, WalFileName::History(_)), *file));
        let mut plan = Self {
            timeline,
            files,
            gaps: Vec::new(),
        };
        plan.gaps = plan.lacking(&way, newest);
        Ok(plan)
    }

    /// The files whose archived ones are to be compared.
    pub fn to_compare(&self) -> impl Iterator<Item = WalFileName> {
        let archived = self
            .files
            .iter()
            .filter(|(_, fate)| *fate == Fate::Archived);
        archived.map(|(file, _)| *file)
    }

    /// The plan, knowing what is archived; archived files that were not compared, because the server has removed them, are left out. Where the server and the archive differ, two servers have written: what lies between the last
    /// segment that both have in common and the first that differs may be of either, and everything behind is of one that the archive does
    /// not have. So nothing of it is added to the other's.
    #[must_use]
    pub fn compared(mut self, compared: &BTreeMap<WalFileName, Compared>) -> Self {
        self.files.retain_mut(|(file, fate)| {
            if *fate == Fate::Archived {
                *fate = match compared.get(file) {
                    Some(Compared::Same) => Fate::Archived,
                    Some(Compared::Different) => Fate::Conflict,
                    Some(Compared::Absent) => Fate::Missing,
                    Some(Compared::Unreadable) => Fate::Unreadable,
                    None => return false,
                };
            }
            true
        });
        let history = self.files.iter().find_map(|(file, fate)| match file {
            WalFileName::History(timeline) if *fate == Fate::Conflict => Some((*timeline, *file)),
            _ => None,
        });
        let place = |name: &SegmentName| (name.log, name.seg, name.timeline);
        let segments = |wanted: Fate| {
            self.files
                .iter()
                .filter_map(move |(file, fate)| match file {
                    WalFileName::Segment(name) if *fate == wanted => Some(*name),
                    _ => None,
                })
        };
        let first = segments(Fate::Conflict).min_by_key(place);
        let common = segments(Fate::Archived)
            .filter(|name| first.is_some_and(|first| place(name) < place(&first)))
            .max_by_key(place);
        for (file, fate) in &mut self.files {
            let (timeline, segment) = match file {
                WalFileName::Segment(name) | WalFileName::Partial(name) => {
                    (name.timeline, Some(*name))
                }
                WalFileName::History(timeline) => (*timeline, None),
                WalFileName::Backup { .. } => continue,
            };
            let by_history = history.filter(|(left, _)| timeline >= *left);
            let by_segment = first.filter(|first| match (segment, common) {
                (Some(segment), Some(common)) => place(&segment) > place(&common),
                (Some(_), None) => true,
                (None, _) => timeline > first.timeline,
            });
            let because = by_history
                .map(|(_, file)| file)
                .or(by_segment.map(WalFileName::Segment));
            if let (Fate::Missing, Some(because)) = (*fate, because) {
                *fate = Fate::Withheld { because };
            }
        }
        self
    }

    fn lacking(&self, way: &Way<'_>, newest: Option<u64>) -> Vec<SegmentRange> {
        let catalog = way.catalog;
        let size = catalog.segment_size;
        let here: BTreeSet<SegmentName> = self
            .files
            .iter()
            .filter_map(|(file, fate)| match (file, fate) {
                (WalFileName::Segment(name), Fate::Missing | Fate::Archived) => Some(*name),
                _ => None,
            })
            .collect();
        let mut gaps = Vec::new();
        // What comes before all that is known is no gap.
        let mut known = false;
        for piece in way.pieces(newest.unwrap_or_default().saturating_sub(1)) {
            let mut there: BTreeSet<u64> = match catalog.wal.get(&piece.timeline) {
                Some(wal) => wal
                    .segments
                    .range(piece.first..=piece.last)
                    .map(|(n, _)| *n)
                    .collect(),
                None => BTreeSet::new(),
            };
            there.extend(
                here.iter()
                    .filter(|name| name.timeline == piece.timeline)
                    .filter_map(|name| name.number(size))
                    .filter(|number| (piece.first..=piece.last).contains(number)),
            );
            let mut next = piece.first;
            for number in there.iter().copied().chain([piece.last.saturating_add(1)]) {
                if known && next < number {
                    gaps.push(SegmentRange {
                        first: next,
                        last: number - 1,
                        ..piece
                    });
                }
                known |= number <= piece.last;
                next = number.saturating_add(1);
            }
        }
        gaps
    }
}

/// The server's timeline, and the way to it: of those that lead on from what `pg_control` says the newest of which WAL is there.
fn way<'a>(
    local: &LocalWal,
    catalog: &'a Catalog,
) -> Result<(TimelineId, Way<'a>), UnknownTimeline> {
    let lineage = |timeline: TimelineId| {
        let history = local.histories.get(&timeline);
        let spans = match history.or(catalog.histories.get(&timeline)) {
            Some(history) => history.lineage(),
            None if timeline == TimelineId(1) => vec![TimelineSpan {
                timeline,
                begin: Lsn::INVALID,
                end: None,
            }],
            None => return Err(UnknownTimeline(timeline)),
        };
        Ok(Way { spans, catalog })
    };
    let timelines: BTreeSet<TimelineId> = local
        .files
        .keys()
        .filter_map(|file| match file {
            WalFileName::Segment(name) if name.timeline > local.timeline => Some(name.timeline),
            _ => None,
        })
        .collect();
    for timeline in timelines.into_iter().rev() {
        if let Ok(way) = lineage(timeline)
            && way.span(local.timeline).is_some()
            && newest(&way, timeline, local).is_some()
        {
            return Ok((timeline, way));
        }
    }
    Ok((local.timeline, lineage(local.timeline)?))
}

/// The number of the last segment of the server's timeline that something was written to.
fn newest(way: &Way<'_>, timeline: TimelineId, local: &LocalWal) -> Option<u64> {
    let numbers = local.files.iter().filter_map(|(file, page)| match file {
        WalFileName::Segment(name) if name.timeline == timeline => way
            .is_written(*name, page.as_ref())
            .then(|| name.number(way.catalog.segment_size))?,
        _ => None,
    });
    numbers.max()
}

/// `None` for files that no recovery asks for.
fn fate(
    way: &Way<'_>,
    newest: Option<u64>,
    file: WalFileName,
    page: Option<&LongPageHeader>,
) -> Option<Fate> {
    let catalog = way.catalog;
    let by_name = |archived: bool| match archived {
        true => Fate::Archived,
        false => Fate::Missing,
    };
    Some(match file {
        WalFileName::History(of) if way.span(of).is_some() => {
            let listed = catalog.histories.contains_key(&of) || catalog.has_unread_history(of);
            by_name(listed)
        }
        WalFileName::History(_) => Fate::OtherTimeline,
        WalFileName::Backup { .. } => return None,
        WalFileName::Segment(name) | WalFileName::Partial(name) => {
            let Some(span) = way.span(name.timeline) else {
                return Some(Fate::OtherTimeline);
            };
            let Some(number) = name.number(catalog.segment_size) else {
                return Some(Fate::NotWritten);
            };
            let partial = matches!(file, WalFileName::Partial(_));
            match span.end {
                // What is kept as a partial segment is the one in which the timeline was left.
                Some(end) if number > way.number_of(end) => Fate::Left { fork: end },
                Some(end) if number == way.number_of(end) && !partial => Fate::Left { fork: end },
                _ if !way.is_written(name, page) => Fate::NotWritten,
                None if partial || newest.is_none_or(|newest| newest <= number) => Fate::Unfinished,
                _ if partial => by_name(catalog.partials.contains(&name)),
                _ => {
                    let wal = catalog.wal.get(&name.timeline);
                    by_name(wal.is_some_and(|wal| wal.segments.contains_key(&number)))
                }
            }
        }
    })
}

#[cfg(test)]
mod tests;
