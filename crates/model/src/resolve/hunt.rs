//! From a target that only the WAL can place to the record at which recovery stops.

use std::collections::VecDeque;

use walden_pg::Lsn;

use super::walk::{Sought, Walk, end_of};
use super::{Ending, RecordSpan, Stop};
use crate::catalog::Catalog;
use crate::choice::{Search, choose, had_ended, search};
use crate::index::{End, MomentKind, Outcome, RestorePoint, full_xid};
use crate::keys::BackupId;
use crate::path::WalPath;
use crate::plan::{PlanOptions, RecoveryPlan};
use crate::records::BackupRecord;
use crate::target::{RecoveryTarget, TargetKind};
use crate::unreachable::{Candidate, Unreachable};

/// The hunt for a time, a transaction or a restore point: walks, one after the other, until the record is found at which recovery stops, or
/// why there is none.
pub struct Hunt<'a, 't> {
    catalog: &'a Catalog,
    target: &'t RecoveryTarget,
    asked: Option<&'t BackupId>,
    /// Recovery from a newer backup stops before that is consistent.
    passed_over: bool,
    sought: Sought,
    search: Search<'a, 't>,
    /// From where walks still have to begin.
    starts: VecDeque<Start<'a>>,
    /// The start of the walk that is under way.
    current: Option<Start<'a>>,
    found: Option<Found<'a>>,
    /// Of a walk that found nothing, where it began and the last commit that it passed.
    first_failure: Option<(Start<'a>, Option<End>)>,
    points: Vec<RestorePoint>,
    known: VecDeque<RestorePoint>,
}

/// Where a walk begins, and how far the WAL is unbroken.
#[derive(Clone, Copy)]
struct Start<'a> {
    backup: &'a BackupRecord,
    first: u64,
    last: u64,
}

/// The record at which PostgreSQL would stop.
#[derive(Clone, Copy)]
struct Found<'a> {
    record: RecordSpan,
    /// From where the walk began that met it, and what it passed before.
    backup: &'a BackupRecord,
    commits: u64,
    last_commit: Option<End>,
    /// Where the target is a transaction: the end of it, or of the one that it is a part of.
    end: Option<End>,
}

impl<'a, 't> Hunt<'a, 't> {
    /// Known restore points that a refusal names.
    const MOST_KNOWN: usize = 10;

    /// Prepares the hunt. `None` where the index need not be asked: by names it is known where the target lies, or that nothing reaches it.
    ///
    /// # Errors
    /// What cannot be reached whatever the WAL says.
    pub fn new(
        catalog: &'a Catalog,
        target: &'t RecoveryTarget,
        options: &'t PlanOptions,
    ) -> Result<Option<Self>, Unreachable> {
        let Some(sought) = Sought::of(target) else {
            return Ok(None);
        };
        let asked = options.backup.as_ref();
        let search = search(catalog, target, asked, None)?;
        search.last_segment()?;
        let sound = search.sound()?;
        let starts: VecDeque<Start<'a>> = match &target.kind {
            // A backup that ended before the target serves, unless its clock was wrong: then an older one may.
            TargetKind::Time(time) => sound
                .into_iter()
                .filter(|backup| backup.stopped_at < *time)
                .filter_map(|backup| Start::of(&search.path, backup))
                .collect(),
            // From the newest that ended before the transaction did. Nobody knows that of a subtransaction: there an older one is taken.
            TargetKind::Xid(xid) => {
                let before = |backup: &&BackupRecord| had_ended(backup, *xid) == Some(false);
                let newest = sound.iter().position(before);
                let considered = newest.map_or(sound.len(), |newest| newest + 1);
                runs(&search.path, sound.get(..considered).unwrap_or(&sound))
            }
            _ => runs(&search.path, &sound),
        };
        Ok((!starts.is_empty()).then_some(Self {
            catalog,
            target,
            asked,
            passed_over: false,
            sought,
            search,
            starts,
            current: None,
            found: None,
            first_failure: None,
            points: Vec::new(),
            known: VecDeque::new(),
        }))
    }

    /// The way along which segments are found.
    #[must_use]
    pub fn path(&self) -> &WalPath<'a> {
        &self.search.path
    }

    /// The next walk; `None` when all is known. What it found is given to [`Hunt::take`].
    pub fn next_walk(&mut self) -> Option<Walk> {
        if self.found.is_some() {
            return None;
        }
        self.current = self.starts.pop_front();
        self.current.map(|start| {
            let mut walk = Walk::new(
                Some(self.sought.clone()),
                start.backup.start_lsn,
                Lsn(u64::MAX),
                (start.first, start.last),
                self.catalog.segment_size.bytes(),
            );
            let snapshot = start.backup.snapshot.as_ref();
            walk.next_xid = snapshot.map(|snapshot| snapshot.xmax);
            walk
        })
    }

    /// Takes what a walk found that came to its end.
    ///
    /// # Errors
    /// The target is not where it could have been reached.
    pub fn take(&mut self, walk: Walk) -> Result<(), Unreachable> {
        let Some(start) = self.current.take() else {
            return Ok(());
        };
        let found = walk.found.first();
        match (&self.target.kind, found) {
            (TargetKind::Name(_), _) => {
                self.points
                    .extend(walk.found.iter().filter_map(|moment| match &moment.what {
                        MomentKind::RestorePoint { name, time } => Some(RestorePoint {
                            name: name.clone(),
                            lsn: moment.lsn,
                            end_lsn: moment.end_lsn,
                            time: *time,
                        }),
                        MomentKind::End { .. } => None,
                    }));
                self.known.extend(walk.points);
                let surplus = self.known.len().saturating_sub(Self::MOST_KNOWN);
                self.known.drain(..surplus);
                Ok(())
            }
            (kind, Some(moment)) => {
                let record = RecordSpan::from(moment);
                // Before the backup is consistent PostgreSQL must not stop: for a time, an older backup may serve.
                let too_early = record.lsn < start.backup.stop_lsn;
                let retry = matches!(kind, TargetKind::Time(_)) && !self.starts.is_empty();
                if too_early && retry {
                    self.passed_over = true;
                } else {
                    self.found = Some(Found {
                        record,
                        backup: start.backup,
                        commits: walk.commits,
                        last_commit: walk.last_commit,
                        end: end_of(moment),
                    });
                }
                Ok(())
            }
            // A transaction may have ended behind a gap, shortly after a backup did.
            (TargetKind::Xid(_), None) if !self.starts.is_empty() => {
                self.first_failure.get_or_insert((start, walk.last_commit));
                Ok(())
            }
            (kind, None) => {
                let (start, last) = self.first_failure.unwrap_or((start, walk.last_commit));
                Err(self.not_found(kind, start, last))
            }
        }
    }

    /// Where recovery stops.
    ///
    /// # Errors
    /// It cannot stop there, or that is not what the person meant.
    pub fn stop(&self) -> Result<Stop, Unreachable> {
        if let TargetKind::Name(name) = &self.target.kind {
            return self.point(name);
        }
        let Some(Found { record, end, .. }) = self.found else {
            // All walks found the target before their backups were consistent.
            return Err(self.before_all());
        };
        self.reach(record)?;
        if let (TargetKind::Xid(xid), Some(end)) = (&self.target.kind, end) {
            self.is_what_was_meant(*xid, end)?;
        }
        Ok(Stop::at(record, &self.target.kind, self.target.inclusive))
    }

    /// How a plan ends that stops there, if the walk that found the place has passed all that it replays, and nothing else.
    #[must_use]
    pub fn ending(&self, plan: &RecoveryPlan, stop: Stop) -> Option<Ending> {
        let found = self.found?;
        let same = found.backup.backup_id == plan.backup.backup_id;
        // A transaction that is found by its id and not refused has committed.
        let commit = found.end.filter(|_| matches!(stop, Stop::After(_)));
        same.then_some(Ending {
            stop,
            last_commit: commit.or(found.last_commit),
            commits: found.commits.saturating_add(commit.is_some().into()),
        })
    }

    /// The backup from which recovery stops there, where that is not the newest that ended before: what was asked for, or the
    /// one left after newer ones whose clocks were wrong.
    #[must_use]
    pub fn backup(&self) -> Option<&BackupId> {
        let found = self.found.filter(|_| self.passed_over);
        self.asked.or(found.map(|found| &found.backup.backup_id))
    }

    /// The backup from which a record is reached.
    fn reach(&self, record: RecordSpan) -> Result<&'a BackupRecord, Unreachable> {
        choose(self.catalog, self.target, self.backup(), Some(record)).map(|choice| choice.backup)
    }

    /// PostgreSQL would stop at an abort, too, and never at a subtransaction's commit.
    fn is_what_was_meant(&self, xid: u64, end: End) -> Result<(), Unreachable> {
        if end.kind == Outcome::Abort {
            return Err(Unreachable::TransactionAborted {
                xid,
                end,
                nearest: self.search.offer(TargetKind::Lsn(end.lsn)),
            });
        }
        if end.xid == xid as u32 {
            return Ok(());
        }
        let top = if xid > u64::from(u32::MAX) {
            full_xid(xid, end.xid)
        } else {
            end.xid.into()
        };
        Err(Unreachable::Subtransaction {
            xid,
            end,
            top: self.search.offer(TargetKind::Xid(top)),
        })
    }

    fn point(&self, name: &str) -> Result<Stop, Unreachable> {
        let reachable = |point: &&RestorePoint| self.reach(RecordSpan::from(*point)).is_ok();
        let reachable: Vec<&RestorePoint> = self.points.iter().filter(reachable).collect();
        let point = match (reachable.as_slice(), self.points.first()) {
            ([point], _) => *point,
            ([], Some(point)) => point,
            ([], None) => {
                return Err(Unreachable::UnknownRestorePoint {
                    name: name.to_owned(),
                    timeline: self.search.timeline,
                    known: self.known.iter().rev().cloned().collect(),
                    gap: self.first_gap().map(Box::new),
                });
            }
            _ => return Err(self.ambiguous(name, &reachable)),
        };
        let record = RecordSpan::from(point);
        let backup = self.reach(record)?;
        // PostgreSQL stops at the first that it meets, consistent or not.
        let meets = |other: &RestorePoint| (backup.start_lsn..point.lsn).contains(&other.lsn);
        if self.points.iter().any(meets) {
            return Err(self.ambiguous(name, &[point]));
        }
        Ok(Stop::After(record))
    }

    fn ambiguous(&self, name: &str, points: &[&RestorePoint]) -> Unreachable {
        let offer = |point: &&RestorePoint| {
            (
                (*point).clone(),
                self.search.offer(TargetKind::Lsn(point.lsn)),
            )
        };
        Unreachable::AmbiguousRestorePoint {
            name: name.to_owned(),
            points: points.iter().map(offer).collect(),
        }
    }

    fn not_found(&self, kind: &TargetKind, start: Start<'a>, last: Option<End>) -> Unreachable {
        if self.search.path.gap_from(start.first).is_some() {
            let missing = self.search.path.missing_from(start.first);
            return self.search.missing(start.backup, missing);
        }
        match kind {
            TargetKind::Xid(xid) => self.never_ended(*xid, start, last),
            TargetKind::Time(time) => Unreachable::AfterLastCommit {
                target: *time,
                timeline: self.search.timeline,
                last,
            },
            _ => self.before_all(),
        }
    }

    fn never_ended(&self, xid: u64, start: Start<'a>, last: Option<End>) -> Unreachable {
        if had_ended(start.backup, xid) == Some(true) {
            return self.before_all();
        }
        Unreachable::NeverEnded {
            xid,
            timeline: self.search.timeline,
            last,
        }
    }

    /// The refusal of a target that lies before the end of every backup.
    fn before_all(&self) -> Unreachable {
        let first = RecordSpan {
            lsn: Lsn::INVALID,
            end_lsn: Lsn::INVALID,
        };
        match self.reach(first) {
            Err(refused) => refused,
            Ok(backup) => Unreachable::BeforeFirstBackup {
                target: self.target.kind.clone(),
                earliest: Candidate::from(backup),
            },
        }
    }

    fn first_gap(&self) -> Option<crate::coverage::Gap> {
        let sound = self.search.sound().ok()?;
        let oldest = sound.last()?;
        let path = &self.search.path;
        path.gap_from(path.first_segment(oldest))
    }
}

impl<'a> Start<'a> {
    fn of(path: &WalPath<'_>, backup: &'a BackupRecord) -> Option<Self> {
        let first = path.first_segment(backup);
        let last = path.unbroken_until(first)?;
        Some(Self {
            backup,
            first,
            last,
        })
    }
}

/// Every unbroken run of WAL that these backups open, oldest first, from the first record on that recovery from one of them replays.
fn runs<'a>(path: &WalPath<'_>, backups: &[&'a BackupRecord]) -> VecDeque<Start<'a>> {
    let mut starts: Vec<Start<'a>> = backups
        .iter()
        .filter_map(|backup| Start::of(path, backup))
        .collect();
    starts.sort_by_key(|start| (start.first, start.backup.start_lsn));
    let mut runs: VecDeque<Start<'a>> = VecDeque::new();
    for start in starts {
        if runs.back().is_none_or(|run| run.last < start.last) {
            runs.push_back(start);
        }
    }
    runs
}
