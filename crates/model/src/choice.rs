//! The planner's search: the newest backup from which recovery finds every segment up to the target.

use walden_pg::history::TimelineSpan;
use walden_pg::{Lsn, TimelineId};

use crate::catalog::Catalog;
use crate::keys::BackupId;
use crate::note::Note;
use crate::path::{Missing, WalPath};
use crate::records::{BackupRecord, SegmentRange};
use crate::resolve::RecordSpan;
use crate::target::{RecoveryTarget, TargetKind, TargetTimeline};
use crate::unreachable::{Candidate, CannotReach, GapOnTheWay, Offer, Unreachable};

/// A backup and its way to the target.
pub(crate) struct Choice<'a> {
    pub(crate) backup: &'a BackupRecord,
    pub(crate) timeline: TimelineId,
    pub(crate) lineage: Vec<TimelineSpan>,
    pub(crate) wal: Vec<SegmentRange>,
    /// Whether the archive breaks off somewhere behind that WAL and goes on later.
    pub(crate) gap_behind: bool,
    pub(crate) notes: Vec<Note>,
}

/// Why a backup is not the one.
enum Refusal {
    /// It ended after the target; beside that, it may not be restorable at all.
    TooLate(Option<CannotReach>),
    /// It ended before the target, and cannot be restored.
    Broken(CannotReach),
    /// It does not tell whether the transaction had ended before it.
    NoSnapshot,
    /// The target cannot be reached from it.
    Target(Unreachable),
}

/// Chooses the newest backup that reaches the target, or the one that was asked for, by the same rules: by names, or to the record at which
/// recovery stops.
pub(crate) fn choose<'a>(
    catalog: &'a Catalog,
    target: &RecoveryTarget,
    asked: Option<&BackupId>,
    place: Option<RecordSpan>,
) -> Result<Choice<'a>, Unreachable> {
    let search = search(catalog, target, asked, place)?;
    let (asked, timeline) = (search.asked, search.timeline);
    search
        .run()
        .map_err(|refused| elsewhere(catalog, target, asked, timeline, refused))
}

/// What a choice is made from.
pub(crate) fn search<'a, 't>(
    catalog: &'a Catalog,
    target: &'t RecoveryTarget,
    asked: Option<&BackupId>,
    place: Option<RecordSpan>,
) -> Result<Search<'a, 't>, Unreachable> {
    if catalog.backups.is_empty() {
        return Err(Unreachable::NoBackup {
            cluster: catalog.cluster.clone(),
            unfinished: catalog.unfinished.len(),
        });
    }
    let asked = match asked {
        None => None,
        Some(id) => Some(
            catalog
                .backup(id)
                .ok_or_else(|| Unreachable::BackupNotFound {
                    asked: id.clone(),
                    known: candidates(catalog.ordered_backups().into_iter().rev()),
                })?,
        ),
    };
    let timeline = resolve(catalog, target.timeline, asked)?;
    Ok(Search {
        catalog,
        target,
        asked,
        path: WalPath::new(catalog, timeline)?,
        timeline,
        place,
    })
}

fn resolve(
    catalog: &Catalog,
    timeline: TargetTimeline,
    asked: Option<&BackupRecord>,
) -> Result<TimelineId, Unreachable> {
    let considered = || {
        asked
            .into_iter()
            .chain(catalog.backups.iter().filter(|_| asked.is_none()))
    };
    let newest = match timeline {
        TargetTimeline::Number(number) => {
            let known = catalog.timelines();
            if !known.contains(&number) {
                return Err(Unreachable::UnknownTimeline {
                    timeline: number,
                    known: known.into_iter().collect(),
                });
            }
            return Ok(number);
        }
        TargetTimeline::Current => considered().map(|backup| backup.timeline).max(),
        TargetTimeline::Latest => considered()
            .map(|backup| catalog.newest_descendant(backup.timeline, backup.stop_lsn))
            .max(),
    };
    let newest = newest.ok_or_else(|| Unreachable::NoBackup {
        cluster: catalog.cluster.clone(),
        unfinished: catalog.unfinished.len(),
    })?;
    if timeline == TargetTimeline::Latest {
        catalog.prove_newest(newest)?;
    }
    Ok(newest)
}

/// Replaces a refusal by the timelines on which the same LSN can be reached, where there are any.
fn elsewhere(
    catalog: &Catalog,
    target: &RecoveryTarget,
    asked: Option<&BackupRecord>,
    timeline: TimelineId,
    refused: Unreachable,
) -> Unreachable {
    let is_about_the_timeline = matches!(
        refused,
        Unreachable::BeyondEnd { .. }
            | Unreachable::BeforeFirstBackup { .. }
            | Unreachable::NoBackupOnTimeline { .. }
    );
    let TargetKind::Lsn(lsn) = target.kind else {
        return refused;
    };
    if !is_about_the_timeline {
        return refused;
    }
    let reaches = |other: &TimelineId| {
        let path = WalPath::new(catalog, *other);
        *other != timeline
            && path.is_ok_and(|path| {
                Search {
                    catalog,
                    target,
                    asked,
                    path,
                    timeline: *other,
                    place: None,
                }
                .run()
                .is_ok()
            })
    };
    let reachable_on: Vec<TimelineId> = catalog.timelines().into_iter().filter(reaches).collect();
    if reachable_on.is_empty() {
        refused
    } else {
        Unreachable::NotOnTimeline {
            lsn,
            timeline,
            reachable_on,
        }
    }
}

fn candidates<'a>(backups: impl IntoIterator<Item = &'a BackupRecord>) -> Vec<Candidate> {
    backups.into_iter().map(Candidate::from).collect()
}

/// The backups and the way to the target's timeline.
pub(crate) struct Search<'a, 't> {
    catalog: &'a Catalog,
    target: &'t RecoveryTarget,
    pub(crate) asked: Option<&'a BackupRecord>,
    pub(crate) path: WalPath<'a>,
    pub(crate) timeline: TimelineId,
    /// The record at which recovery stops, where the index has told it.
    pub(crate) place: Option<RecordSpan>,
}

impl<'a> Search<'a, '_> {
    /// The backups on the way, newest first; or the one that was asked for.
    fn considered(&self) -> Result<Vec<&'a BackupRecord>, Unreachable> {
        if let Some(asked) = self.asked {
            if self.path.leads_through(asked) {
                return Ok(vec![asked]);
            }
            return Err(self.cannot(asked, CannotReach::NotOnTheWay { to: self.timeline }));
        }
        let on_the_way = self.on_the_way();
        if on_the_way.is_empty() {
            return Err(Unreachable::NoBackupOnTimeline {
                timeline: self.timeline,
                backups: candidates(self.catalog.ordered_backups()),
            });
        }
        Ok(on_the_way)
    }

    /// The considered backups that can be restored at all, newest first.
    pub(crate) fn sound(&self) -> Result<Vec<&'a BackupRecord>, Unreachable> {
        let mut sound = self.considered()?;
        sound.retain(|backup| self.broken(backup).is_none());
        Ok(sound)
    }

    /// Every backup on the way, newest first.
    fn on_the_way(&self) -> Vec<&'a BackupRecord> {
        let ordered = self.catalog.ordered_backups().into_iter().rev();
        ordered
            .filter(|backup| self.path.leads_through(backup))
            .collect()
    }

    fn run(&self) -> Result<Choice<'a>, Unreachable> {
        let considered = self.considered()?;
        let mut reaching = Vec::new();
        let mut refused = Vec::new();
        for &backup in &considered {
            match self.attempt(backup) {
                Ok((wal, notes)) => reaching.push((backup, wal, notes)),
                Err(refusal) => refused.push((backup, refusal)),
            }
            // By names, a restore point is the one target that may lie before the newest backup without anything telling.
            let is_placed =
                self.place.is_some() || !matches!(self.target.kind, TargetKind::Name(_));
            if !reaching.is_empty() && is_placed {
                break;
            }
        }
        if let (TargetKind::Name(name), [_, _, ..]) = (&self.target.kind, reaching.as_slice()) {
            let candidates = candidates(reaching.iter().map(|(backup, ..)| *backup));
            return Err(Unreachable::AmbiguousName {
                name: name.clone(),
                candidates,
            });
        }
        let Some((backup, wal, mut notes)) = reaching.into_iter().next() else {
            return Err(self.explain(refused, &considered));
        };
        notes.extend(
            refused
                .into_iter()
                .filter_map(|(skipped, refusal)| match refusal {
                    Refusal::Broken(why) => Some(Note::BackupSkipped {
                        backup: skipped.backup_id.clone(),
                        why,
                    }),
                    _ => None,
                }),
        );
        Ok(Choice {
            backup,
            timeline: self.timeline,
            lineage: self.path.spans().to_vec(),
            gap_behind: self
                .path
                .gap_from(self.path.first_segment(backup))
                .is_some(),
            wal,
            notes,
        })
    }

    /// The refusal that tells the person most: of the newest backup that the target does not lie before.
    fn explain(
        &self,
        refused: Vec<(&'a BackupRecord, Refusal)>,
        considered: &[&'a BackupRecord],
    ) -> Unreachable {
        let (mut broken, mut too_late, mut too_late_and_broken) = (None, None, None);
        let mut no_snapshot = Vec::new();
        for (backup, refusal) in refused {
            match refusal {
                Refusal::Target(unreachable) => return unreachable,
                Refusal::Broken(why) => broken = broken.or(Some((backup, why))),
                Refusal::NoSnapshot => no_snapshot.push(backup),
                Refusal::TooLate(None) => too_late = Some(backup),
                Refusal::TooLate(Some(why)) => too_late_and_broken = Some((backup, why)),
            }
        }
        if let Some((backup, why)) = broken {
            return self.cannot(backup, why);
        }
        match (&self.target.kind, too_late, self.asked) {
            (TargetKind::Xid(xid), ..) if !no_snapshot.is_empty() => Unreachable::NoSnapshot {
                xid: *xid,
                candidates: candidates(no_snapshot),
            },
            (_, Some(backup), Some(_)) => self.cannot(backup, CannotReach::EndsAfterTarget),
            (target, Some(earliest), None) => Unreachable::BeforeFirstBackup {
                target: target.clone(),
                earliest: Candidate::from(earliest),
            },
            (_, None, _) => match too_late_and_broken {
                Some((backup, why)) => self.cannot(backup, why),
                None => Unreachable::NoBackupOnTimeline {
                    timeline: self.timeline,
                    backups: candidates(considered.iter().copied()),
                },
            },
        }
    }

    /// Why this backup cannot be restored to any target.
    fn broken(&self, backup: &BackupRecord) -> Option<CannotReach> {
        let missing = self.catalog.missing_packs.get(&backup.backup_id);
        if let Some(missing) = missing.filter(|missing| !missing.is_empty()) {
            return Some(CannotReach::ObjectsMissing(missing.clone()));
        }
        self.path.missing_for(backup).map(|missing| {
            if missing.in_conflict() {
                CannotReach::OwnWalInConflict(missing.name)
            } else if let Some(broken) = missing.broken() {
                CannotReach::OwnWalBroken(missing.name, broken.at)
            } else {
                CannotReach::OwnWalMissing(missing.name)
            }
        })
    }

    fn cannot(&self, backup: &BackupRecord, why: CannotReach) -> Unreachable {
        Unreachable::BackupCannotReach {
            backup: backup.backup_id.clone(),
            target: self.target.kind.clone(),
            why,
        }
    }

    /// The WAL that recovery from this backup reads on its way to the target.
    fn attempt(&self, backup: &'a BackupRecord) -> Result<(Vec<SegmentRange>, Vec<Note>), Refusal> {
        let ends_after = match (&self.target.kind, self.place) {
            (TargetKind::Latest | TargetKind::Immediate, _) => false,
            (TargetKind::Time(time), _) if backup.stopped_at >= *time => true,
            (TargetKind::Lsn(lsn), _) => backup.stop_lsn > *lsn,
            (_, Some(record)) => backup.stop_lsn > record.lsn,
            (TargetKind::Time(_) | TargetKind::Name(_), None) => false,
            (TargetKind::Xid(xid), None) => match had_ended(backup, *xid) {
                Some(had_ended) => had_ended,
                None if self.asked.is_some() => false,
                None => return Err(Refusal::NoSnapshot),
            },
        };
        let broken = self.broken(backup);
        if ends_after {
            return Err(Refusal::TooLate(broken));
        }
        if let Some(why) = broken {
            return Err(Refusal::Broken(why));
        }
        let first = self.path.first_segment(backup);
        let read = match (&self.target.kind, self.place) {
            (TargetKind::Immediate, _) => self.path.read(first, WalPath::last_byte(backup)),
            (TargetKind::Latest, _) => self.path.read_through(first, self.end()?),
            (_, Some(record)) => self.path.read(first, record.last_byte()),
            (TargetKind::Lsn(lsn), None) => self.path.read(first, *lsn),
            (TargetKind::Time(_) | TargetKind::Xid(_) | TargetKind::Name(_), None) => {
                return self.attempt_unplaced(backup);
            }
        };
        read.map(|wal| (wal, Vec::new()))
            .map_err(|missing| Refusal::Target(self.missing(backup, missing)))
    }

    /// A target of which names cannot tell where it lies: all WAL, or up to the end of a backup that ended after it. No commit need lie
    /// before that end, so recovery may go on, and a gap behind it is told.
    fn attempt_unplaced(
        &self,
        backup: &'a BackupRecord,
    ) -> Result<(Vec<SegmentRange>, Vec<Note>), Refusal> {
        let end = self.end()?;
        let mut likely_behind = None;
        if let TargetKind::Time(time) = self.target.kind {
            if let Some(&last) = self
                .catalog
                .newest_archived_at
                .get(&self.timeline)
                .filter(|last| time > **last)
            {
                return Err(Refusal::Target(Unreachable::AfterLastArchived {
                    target: time,
                    last,
                    timeline: self.timeline,
                }));
            }
            let later = self
                .on_the_way()
                .into_iter()
                .filter(|later| later.stopped_at > time && later.stop_lsn > backup.stop_lsn);
            likely_behind = later.map(WalPath::last_byte).min();
        }
        let first = self.path.first_segment(backup);
        let read = match likely_behind {
            Some(byte) => self.path.read(first, byte),
            None => self.path.read_through(first, end),
        };
        let missing = match read {
            Ok(wal) => {
                let gap = likely_behind.and_then(|_| self.path.gap_from(first));
                return Ok((wal, gap.map(Note::GapBehind).into_iter().collect()));
            }
            Err(missing) => missing,
        };
        // Recovery stops at a gap. What is in conflict it might replay.
        let before_the_gap = missing
            .number
            .checked_sub(1)
            .filter(|last| self.asked.is_some() && *last >= first && !missing.in_conflict());
        match (before_the_gap, missing.gap) {
            (Some(last), Some(gap)) => {
                let wal = self.path.read_through(first, last);
                wal.map(|wal| (wal, vec![Note::GapBehind(gap)]))
                    .map_err(|missing| Refusal::Target(self.missing(backup, missing)))
            }
            _ => Err(Refusal::Target(self.missing(backup, missing))),
        }
    }

    /// The last segment of the timeline, with which recovery without a known LSN can end.
    fn end(&self) -> Result<u64, Refusal> {
        self.last_segment().map_err(Refusal::Target)
    }

    /// The last segment of the timeline.
    pub(crate) fn last_segment(&self) -> Result<u64, Unreachable> {
        self.path.last_segment().ok_or_else(|| {
            let known = self
                .catalog
                .timelines()
                .into_iter()
                .filter(|timeline| self.catalog.has_wal(*timeline))
                .collect();
            Unreachable::NoWalOnTimeline {
                timeline: self.timeline,
                known,
            }
        })
    }

    /// The refusal for a segment that is not there: a hole, or the end.
    pub(crate) fn missing(&self, backup: &'a BackupRecord, missing: Missing) -> Unreachable {
        let nearest = self.nearest_before(backup, &missing);
        match (missing.gap, &self.target.kind) {
            (None, TargetKind::Lsn(lsn)) => Unreachable::BeyondEnd {
                lsn: *lsn,
                timeline: self.timeline,
                end: self.path.start_of(missing.number),
                nearest,
            },
            (Some(gap), target) => Unreachable::Gap(Box::new(GapOnTheWay {
                target: target.clone(),
                gap,
                backup: backup.backup_id.clone(),
                before: nearest,
                behind: self.first_behind(missing.number),
                may_lie_before: self.asked.is_none()
                    && self.place.is_none()
                    && !gap.begins_in_conflict()
                    && matches!(
                        target,
                        TargetKind::Time(_) | TargetKind::Xid(_) | TargetKind::Name(_)
                    ),
            })),
            (None, _) => self.cannot(backup, CannotReach::OwnWalMissing(missing.name)),
        }
    }

    /// The nearest target before a missing segment: the start of the last segment that is there, where a record surely begins; in a broken one
    /// its last commit; or the backup's own end.
    fn nearest_before(&self, backup: &BackupRecord, missing: &Missing) -> Offer {
        let reaches = missing.broken().and_then(|broken| broken.reaches);
        let last = missing.number.checked_sub(1);
        let start = reaches.or(last.map(|last| self.path.start_of(last)));
        match start.filter(|start: &Lsn| *start >= backup.stop_lsn) {
            Some(start) => self.offer(TargetKind::Lsn(start)),
            None => {
                // To name the backup may choose another timeline.
                let alone = resolve(self.catalog, self.target.timeline, Some(backup));
                Offer {
                    kind: TargetKind::Immediate,
                    backup: Some(backup.backup_id.clone()),
                    timeline: self
                        .asked_timeline()
                        .or((alone != Ok(self.timeline)).then_some(self.timeline)),
                }
            }
        }
    }

    /// Another target, asked for in the same way.
    pub(crate) fn offer(&self, kind: TargetKind) -> Offer {
        Offer {
            kind,
            backup: self.asked.map(|asked| asked.backup_id.clone()),
            timeline: self.asked_timeline(),
        }
    }

    fn asked_timeline(&self) -> Option<TimelineId> {
        matches!(self.target.timeline, TargetTimeline::Number(_)).then_some(self.timeline)
    }

    /// The oldest whole backup that begins behind the missing segment.
    fn first_behind(&self, missing: u64) -> Option<Candidate> {
        let whole = |backup: &&&BackupRecord| {
            self.path.first_segment(backup) > missing && self.broken(backup).is_none()
        };
        self.on_the_way()
            .iter()
            .rev()
            .find(whole)
            .map(|backup| Candidate::from(*backup))
    }
}

/// Whether the transaction had ended when the backup had; `None` where the backup does not tell. An id of 32 bits is taken for the nearest
/// of the 64-bit ids that end in it, as PostgreSQL compares them.
pub(crate) fn had_ended(backup: &BackupRecord, xid: u64) -> Option<bool> {
    let snapshot = backup.snapshot.as_ref()?;
    let xid = if xid > u64::from(u32::MAX) {
        xid
    } else {
        nearest_full_xid(snapshot.xmax, xid)
    };
    // A standby knows the running transactions apart from its snapshots, which list none (procarray.c, `GetSnapshotData`).
    if backup.from_standby && (snapshot.xmin..snapshot.xmax).contains(&xid) {
        return None;
    }
    Some(xid < snapshot.xmax && !snapshot.in_progress.contains(&xid))
}

fn nearest_full_xid(near: u64, low: u64) -> u64 {
    const EPOCH: u64 = 1 << 32;
    let same_epoch = near / EPOCH * EPOCH + low;
    let below = same_epoch.checked_sub(EPOCH);
    let above = same_epoch.checked_add(EPOCH);
    let all = [Some(same_epoch), below, above];
    all.into_iter()
        .flatten()
        .min_by_key(|full| full.abs_diff(near))
        .unwrap_or(low)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;
    use crate::records::Snapshot;
    use crate::sample;

    proptest! {
        #[test]
        fn what_a_snapshot_tells_of_a_transaction_is_true(
            running in proptest::collection::btree_set(700_u64..760, 0..6),
            next in 740_u64..760,
            xid in 690_u64..770,
            from_standby: bool,
        ) {
            let running: BTreeSet<u64> = running.into_iter().filter(|running| *running < next).collect();
            let snapshot = Snapshot {
                xmin: running.first().copied().unwrap_or(next),
                xmax: next,
                in_progress: running.iter().copied().filter(|_| !from_standby).collect(),
            };
            let backup = BackupRecord { from_standby, snapshot: Some(snapshot.clone()), ..sample::backup(1, 1, 250, 350) };
            match had_ended(&backup, xid) {
                Some(told) => prop_assert_eq!(told, xid < next && !running.contains(&xid)),
                None => prop_assert!(from_standby && snapshot.xmin <= xid && xid < next, "it is known"),
            }
        }
    }
}
