//! Where recovery ends, as the commit index tells: the decisions of `recoveryStopsBefore` and `recoveryStopsAfter` (xlogrecovery.c), made
//! before a byte is restored. What segments say is fetched by the caller, who is told which ones matter ([`Walk::looks_into`]).

mod hunt;
#[cfg(test)]
mod oracle;
mod walk;
#[cfg(test)]
mod words;

pub use hunt::Hunt;
pub use walk::{Opaque, Walk};

use walden_pg::{Lsn, SegmentName};

use crate::catalog::Catalog;
use crate::choice::search;
use crate::index::{End, Moment, RestorePoint};
use crate::note::Note;
use crate::plan::{PlanOptions, RecoveryPlan};
use crate::records::SegmentRange;
use crate::target::{RecoveryTarget, TargetKind};
use crate::unreachable::Unreachable;

/// Where a record begins and ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RecordSpan {
    /// Where it begins.
    pub lsn: Lsn,
    /// Behind it: the first place where the next one can begin.
    pub end_lsn: Lsn,
}

impl RecordSpan {
    /// Its last byte, without which it cannot be read.
    pub(crate) fn last_byte(self) -> Lsn {
        Lsn(self.end_lsn.0.saturating_sub(1).max(self.lsn.0))
    }
}

impl From<&Moment> for RecordSpan {
    fn from(moment: &Moment) -> Self {
        Self {
            lsn: moment.lsn,
            end_lsn: moment.end_lsn,
        }
    }
}

impl From<&RestorePoint> for RecordSpan {
    fn from(point: &RestorePoint) -> Self {
        Self {
            lsn: point.lsn,
            end_lsn: point.end_lsn,
        }
    }
}

/// Where recovery stops.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stop {
    /// This record is read and not replayed.
    Before(RecordSpan),
    /// This record is the last that is replayed.
    After(RecordSpan),
    /// The cluster is consistent here, behind the backup's end.
    Consistent(Lsn),
    /// Here the archived WAL ends.
    EndOfWal(Lsn),
}

impl Stop {
    /// Where recovery to a target stops that is reached at this record.
    #[must_use]
    pub fn at(record: RecordSpan, target: &TargetKind, inclusive: bool) -> Self {
        match target {
            TargetKind::Time(_) => Self::Before(record),
            TargetKind::Lsn(_) | TargetKind::Xid(_) if !inclusive => Self::Before(record),
            _ => Self::After(record),
        }
    }

    /// The record at which it stops, where that decides.
    #[must_use]
    pub fn record(&self) -> Option<RecordSpan> {
        match self {
            Self::Before(record) | Self::After(record) => Some(*record),
            Self::Consistent(_) | Self::EndOfWal(_) => None,
        }
    }

    /// Records that begin before this are replayed, and no others.
    #[must_use]
    pub fn limit(&self) -> Lsn {
        match self {
            Self::Before(record) => record.lsn,
            Self::After(record) => record.end_lsn,
            Self::Consistent(lsn) | Self::EndOfWal(lsn) => *lsn,
        }
    }
}

/// What a segment says of the first record at or behind an LSN.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Around {
    /// This is it. Where it goes on in the next segment, that need not be there.
    Record(RecordSpan),
    /// None begins there in this segment.
    None {
        /// Behind its last whole record.
        end: Option<Lsn>,
    },
    /// None begins there, and here the WAL ends.
    EndOfWal {
        /// Behind its last whole record.
        end: Option<Lsn>,
    },
    /// The segment was damaged before it was archived, or is of an unknown version.
    Broken,
}

/// Why an LSN cannot be reached at or behind which no record begins, from the plan that names make.
///
/// `end`: behind the last record; `last`: the last commit.
#[must_use]
pub fn no_record(
    catalog: &Catalog,
    target: &RecoveryTarget,
    options: &PlanOptions,
    plan: &RecoveryPlan,
    end: Lsn,
    last: Option<End>,
) -> Unreachable {
    let search = match search(catalog, target, options.backup.as_ref(), None) {
        Ok(search) => search,
        Err(refused) => return refused,
    };
    let path = &search.path;
    let first = path.first_segment(&plan.backup);
    let backup = catalog.backup(&plan.backup.backup_id);
    match backup {
        Some(backup) if path.gap_from(first).is_some() => {
            search.missing(backup, path.missing_from(first))
        }
        _ => Unreachable::AfterLastRecord {
            lsn: match target.kind {
                TargetKind::Lsn(lsn) => lsn,
                _ => end,
            },
            timeline: plan.timeline,
            end,
            last,
        },
    }
}

/// How a recovery will end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ending {
    /// Where.
    pub stop: Stop,
    /// The last commit that is replayed; `None` where there is none behind the backup's start.
    pub last_commit: Option<End>,
    /// How many commits are replayed.
    pub commits: u64,
}

impl Ending {
    /// What a walk tells that ended with recovery ([`RecoveryPlan::walk`]); `None` where it could not see all of the way.
    #[must_use]
    pub fn of(stop: Stop, walk: &Walk) -> Option<Self> {
        walk.opaque.is_none().then_some(Self {
            stop,
            last_commit: walk.last_commit,
            commits: walk.commits,
        })
    }
}

impl RecoveryPlan {
    /// Says how recovery ends, and what of that the person may not expect.
    pub fn end_with(&mut self, ending: Option<Ending>) {
        self.ending = ending;
        if let (TargetKind::Lsn(target), Some(ending)) = (&self.target.kind, ending)
            && let Stop::After(record) = ending.stop
        {
            let commit = ending.last_commit.filter(|end| end.lsn == record.lsn);
            if commit.is_some() || record.lsn != *target {
                self.notes.push(Note::ReplaysRecord { record, commit });
            }
        }
    }

    /// The segments that recovery reads, up to the one of number `last`.
    #[must_use]
    pub fn ranges(&self, catalog: &Catalog, last: u64) -> Vec<SegmentRange> {
        let number = |name: SegmentName| name.number(catalog.segment_size);
        let runs = self.wal.iter().filter_map(|run| {
            let (first, run_last) = (number(run.first)?, number(run.last)?);
            Some(SegmentRange {
                timeline: run.timeline,
                first,
                last: run_last.min(last),
            })
        });
        runs.filter(|range| range.first <= range.last).collect()
    }

    /// The walk along what this plan replays, up to `limit` ([`Stop::limit`]), or through its last segment.
    ///
    /// # Errors
    /// The way to the plan's timeline is unknown.
    pub fn walk(&self, catalog: &Catalog, limit: Option<Lsn>) -> Result<Walk, Unreachable> {
        let path = catalog.path(self.timeline)?;
        let first = path.first_segment(&self.backup);
        let planned = self.wal.last();
        let planned = planned.and_then(|run| run.last.number(catalog.segment_size));
        let through = planned.unwrap_or(first);
        let last = limit.map_or(through, |limit| {
            path.number_of(Lsn(limit.0.saturating_sub(1))).min(through)
        });
        Ok(Walk::new(
            None,
            self.backup.start_lsn,
            limit.unwrap_or(Lsn(u64::MAX)),
            (first, last.max(first)),
            catalog.segment_size.bytes(),
        ))
    }
}
