//! The search by the index against PostgreSQL's own way, played through record by record on small random histories.

mod history;

use std::collections::BTreeMap;

use proptest::prelude::*;
use proptest::sample::Index;
use walden_pg::{Lsn, TimelineId};

use history::{Kind, NAMES, Record, World, worlds};

use super::{Ending, Hunt, RecordSpan, Stop, Walk};
use crate::index::{
    End, Ends, Moment, MomentKind, Outcome, RestorePoint, SegmentDetail, SegmentIndex, Summary,
    XidRange,
};
use crate::plan::{PlanOptions, RecoveryPlan};
use crate::records::BackupRecord;
use crate::sample::SEGMENT;
use crate::target::{RecoveryTarget, TargetKind, TargetTimeline};
use crate::unreachable::{Offer, Unreachable};

/// How a recovery went.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Outcomes {
    /// It stopped before or after this record, consistent or not.
    Stopped {
        record: RecordSpan,
        consistent: bool,
    },
    /// The WAL ended.
    Ended,
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct Replay {
    how: Outcomes,
    commits: Vec<Lsn>,
}

impl World {
    fn holder(&self, timeline: TimelineId, number: u64) -> TimelineId {
        match self.fork {
            Some(fork) if timeline == TimelineId(2) && number >= fork.0 / SEGMENT => TimelineId(2),
            _ => TimelineId(1),
        }
    }

    fn readable(&self, timeline: TimelineId, span: RecordSpan) -> bool {
        (span.lsn.0 / SEGMENT..=(span.end_lsn.0 - 1) / SEGMENT)
            .all(|number| self.catalog.wal[&self.holder(timeline, number)].contains(number))
    }

    /// Recovery as `PerformWalRecovery` does it.
    fn replay(
        &self,
        timeline: TimelineId,
        backup: &BackupRecord,
        target: &RecoveryTarget,
    ) -> Replay {
        let mut commits = vec![];
        let mut replayed_end = Lsn(0);
        let line = self.lines[&timeline].iter();
        for record in line.filter(|record| record.span.lsn >= backup.start_lsn) {
            if !self.readable(timeline, record.span) {
                break;
            }
            let stops = |after: bool| match (&target.kind, &record.kind) {
                (TargetKind::Time(time), Kind::End { .. }) if !after => {
                    record.time > *time || !target.inclusive && record.time == *time
                }
                (TargetKind::Xid(sought), Kind::End { xid, .. }) => {
                    *sought as u32 == *xid as u32 && after == target.inclusive
                }
                (TargetKind::Name(sought), Kind::Point(name)) => after && sought == name,
                (TargetKind::Lsn(lsn), _) => record.span.lsn >= *lsn && after == target.inclusive,
                _ => false,
            };
            let stopped = |replayed_end: Lsn| Outcomes::Stopped {
                record: record.span,
                consistent: replayed_end >= backup.stop_lsn,
            };
            if stops(false) {
                return Replay {
                    how: stopped(replayed_end),
                    commits,
                };
            }
            replayed_end = record.span.end_lsn;
            if let Kind::End {
                outcome: Outcome::Commit,
                ..
            } = &record.kind
            {
                commits.push(record.span.lsn);
            }
            if stops(true)
                || target.kind == TargetKind::Immediate && replayed_end >= backup.stop_lsn
            {
                return Replay {
                    how: stopped(replayed_end),
                    commits,
                };
            }
        }
        Replay {
            how: Outcomes::Ended,
            commits,
        }
    }

    fn sound(&self, timeline: TimelineId) -> Vec<&BackupRecord> {
        let on_the_way = |backup: &&BackupRecord| {
            backup.timeline == timeline
                || self
                    .fork
                    .is_some_and(|fork| timeline == TimelineId(2) && backup.stop_lsn <= fork)
        };
        let whole = |backup: &&BackupRecord| {
            let span = RecordSpan {
                lsn: backup.start_lsn,
                end_lsn: backup.stop_lsn,
            };
            self.readable(timeline, span)
        };
        let mut sound: Vec<_> = self
            .catalog
            .backups
            .iter()
            .filter(on_the_way)
            .filter(whole)
            .collect();
        sound.sort_by_key(|backup| (backup.timeline, backup.stop_lsn, &backup.backup_id));
        sound.reverse();
        sound
    }

    /// What reading a segment tells.
    fn detail(&self, timeline: TimelineId, number: u64) -> SegmentDetail {
        let mut index = SegmentIndex::empty();
        let mut moments = vec![];
        for record in &self.lines[&timeline] {
            if record.span.lsn.0 / SEGMENT != number || !self.readable(timeline, record.span) {
                continue;
            }
            let RecordSpan { lsn, end_lsn } = record.span;
            let time = record.time;
            index.records += 1;
            index.first_lsn = index.first_lsn.or(Some(lsn));
            index.end_lsn = Some(end_lsn);
            match &record.kind {
                Kind::Other => (),
                Kind::Checkpoint => index.next_xid = Some(record.next_xid),
                Kind::Point(name) => {
                    let name = (*name).to_owned();
                    index.restore_points.push(RestorePoint {
                        name: name.clone(),
                        lsn,
                        end_lsn,
                        time,
                    });
                    moments.push(Moment {
                        lsn,
                        end_lsn,
                        what: MomentKind::RestorePoint { name, time },
                    });
                }
                Kind::End {
                    outcome,
                    xid,
                    subxids,
                    prepared,
                } => {
                    let xid = *xid as u32;
                    let subxids: Box<[u32]> = subxids.iter().map(|xid| *xid as u32).collect();
                    let end = End {
                        kind: *outcome,
                        xid,
                        lsn,
                        end_lsn,
                        time,
                    };
                    count(&mut index.ends, end, &subxids);
                    let what = MomentKind::End {
                        kind: *outcome,
                        xid,
                        time,
                        subxids,
                        prepared: *prepared,
                    };
                    moments.push(Moment { lsn, end_lsn, what });
                }
            }
        }
        SegmentDetail {
            index,
            moments,
            filled: vec![],
        }
    }

    fn summary(&self, timeline: TimelineId, number: u64) -> Summary {
        if self.unread.contains(&(number - 2)) {
            Summary::unread(number)
        } else {
            Summary::of(number, &self.detail(timeline, number).index)
        }
    }

    fn drive(&self, timeline: TimelineId, walk: &mut Walk) {
        let mut at = walk.first();
        for block in self.blocks.iter().cycle() {
            if at > walk.last() {
                return;
            }
            let last = (at + block - 1).min(walk.last());
            let merged = (at + 1..=last).fold(self.summary(timeline, at), |merged, number| {
                merged.merge(&self.summary(timeline, number))
            });
            at = last + 1;
            if !walk.looks_into(&merged) {
                walk.pass(&merged);
                continue;
            }
            for number in merged.first..=last {
                let summary = self.summary(timeline, number);
                if !walk.looks_into(&summary) {
                    walk.pass(&summary);
                } else if walk.read(number, &self.detail(timeline, number)).is_break() {
                    return;
                }
            }
        }
    }

    /// The planner, as the engine drives it.
    fn plan(
        &self,
        target: &RecoveryTarget,
        options: &PlanOptions,
    ) -> Result<(RecoveryPlan, Stop), Unreachable> {
        let hunt = Hunt::new(&self.catalog, target, options)?;
        let Some(mut hunt) = hunt else {
            let plan = RecoveryPlan::build(&self.catalog, target, options)?;
            let limit = match &target.kind {
                TargetKind::Immediate => plan.backup.stop_lsn,
                _ => Lsn(u64::MAX),
            };
            return Ok((plan, Stop::EndOfWal(limit)));
        };
        while let Some(mut walk) = hunt.next_walk() {
            let timeline = hunt.path().spans().last().unwrap().timeline;
            self.drive(timeline, &mut walk);
            assert_eq!(walk.opaque(), None, "nothing here is unreadable");
            hunt.take(walk)?;
        }
        let stop = hunt.stop()?;
        let (Stop::Before(record) | Stop::After(record)) = stop else {
            unreachable!("a hunt ends at a record");
        };
        let options = PlanOptions {
            backup: hunt.backup().cloned(),
            ..options.clone()
        };
        let mut plan = RecoveryPlan::build_to(&self.catalog, target, &options, Some(record))?;
        plan.end_with(hunt.ending(&plan, stop));
        Ok((plan, stop))
    }

    /// What the plan says of the way must be what a recovery does.
    fn holds(&self, plan: &RecoveryPlan, stop: Stop, replay: &Replay) -> Result<(), TestCaseError> {
        if let Stop::Before(record) | Stop::After(record) = stop {
            let expected = Outcomes::Stopped {
                record,
                consistent: true,
            };
            prop_assert_eq!(
                replay.how,
                expected,
                "recovery from {} does not stop there",
                plan.backup.backup_id
            );
        }
        let limit = stop.limit();
        let mut walk = plan
            .walk(&self.catalog, (limit.0 != u64::MAX).then_some(limit))
            .unwrap();
        self.drive(plan.timeline, &mut walk);
        let ending = Ending::of(stop, &walk).unwrap();
        if plan.ending.is_some() {
            prop_assert_eq!(plan.ending, Some(ending), "the search told another end");
        }
        prop_assert_eq!(ending.commits, replay.commits.len() as u64, "{:?}", stop);
        prop_assert_eq!(
            ending.last_commit.map(|end| end.lsn),
            replay.commits.last().copied(),
            "{:?}",
            stop
        );
        Ok(())
    }

    /// What is offered must work.
    fn offer_holds(&self, offer: &Offer, target: &RecoveryTarget) -> Result<(), TestCaseError> {
        let offered = RecoveryTarget {
            kind: offer.kind.clone(),
            inclusive: true,
            ..target.clone()
        };
        let options = PlanOptions {
            backup: offer.backup.clone(),
            ..PlanOptions::default()
        };
        let planned = match offer.kind {
            TargetKind::Xid(_) => self.plan(&offered, &options).map(|(plan, _)| plan),
            _ => RecoveryPlan::build(&self.catalog, &offered, &options),
        };
        prop_assert!(
            planned.is_ok(),
            "{offer} is refused, too: {}",
            planned.unwrap_err()
        );
        Ok(())
    }

    fn offers_hold(
        &self,
        refusal: &Unreachable,
        target: &RecoveryTarget,
    ) -> Result<(), TestCaseError> {
        match refusal {
            Unreachable::TransactionAborted { nearest, .. } => self.offer_holds(nearest, target),
            Unreachable::Subtransaction { top, .. } => self.offer_holds(top, target),
            Unreachable::AmbiguousRestorePoint { points, .. } => {
                prop_assert!(!points.is_empty(), "{refusal}");
                points
                    .iter()
                    .try_for_each(|(_, offer)| self.offer_holds(offer, target))
            }
            Unreachable::Gap(gap) => self.offer_holds(&gap.before, target),
            Unreachable::AfterLastCommit { .. } | Unreachable::NeverEnded { .. } => {
                let latest = RecoveryTarget {
                    kind: TargetKind::Latest,
                    ..target.clone()
                };
                let planned = RecoveryPlan::build(&self.catalog, &latest, &PlanOptions::default());
                prop_assert!(
                    planned.is_ok(),
                    "{refusal}: but that is refused, too: {}",
                    planned.unwrap_err()
                );
                Ok(())
            }
            Unreachable::BeforeFirstBackup { earliest, .. } => self.offer_holds(
                &Offer {
                    kind: TargetKind::Immediate,
                    backup: Some(earliest.id.clone()),
                    timeline: None,
                },
                target,
            ),
            _ => Ok(()),
        }
    }
}

fn count(ends: &mut Option<Ends>, end: End, subxids: &[u32]) {
    let ends = ends.get_or_insert_with(|| Ends {
        commits: 0,
        aborts: 0,
        first: end,
        last: end,
        last_commit: None,
        min_time: end.time,
        max_time: end.time,
        xids: XidRange::of(end.xid),
        subxids: None,
    });
    match end.kind {
        Outcome::Commit => {
            ends.commits += 1;
            ends.last_commit = Some(end);
        }
        Outcome::Abort => ends.aborts += 1,
    }
    ends.last = end;
    ends.min_time = ends.min_time.min(end.time);
    ends.max_time = ends.max_time.max(end.time);
    ends.xids.extend(end.xid);
    for subxid in subxids {
        ends.subxids
            .get_or_insert(XidRange::of(*subxid))
            .extend(*subxid);
    }
}

fn target(kind: TargetKind, inclusive: bool, timeline: TimelineId) -> RecoveryTarget {
    RecoveryTarget {
        kind,
        inclusive,
        timeline: TargetTimeline::Number(timeline),
        ..RecoveryTarget::default()
    }
}

impl World {
    fn timeline(&self, newer: bool) -> TimelineId {
        TimelineId(if newer && self.fork.is_some() { 2 } else { 1 })
    }

    /// Which backup and which record an exhaustive search finds, newest backup first, among recoveries that stop where `wanted` says.
    fn exhaustive(
        &self,
        target: &RecoveryTarget,
        timeline: TimelineId,
        wanted: impl Fn(RecordSpan) -> bool,
    ) -> Option<(&BackupRecord, RecordSpan)> {
        self.sound(timeline).into_iter().find_map(|backup| {
            match self.replay(timeline, backup, target).how {
                Outcomes::Stopped {
                    record,
                    consistent: true,
                } if wanted(record) => Some((backup, record)),
                _ => None,
            }
        })
    }

    fn judge(
        &self,
        target: &RecoveryTarget,
        timeline: TimelineId,
        expected: Option<(&BackupRecord, RecordSpan)>,
    ) -> Result<(), TestCaseError> {
        match self.plan(target, &PlanOptions::default()) {
            Ok((plan, stop)) => {
                let (backup, record) = expected.ok_or_else(|| {
                    TestCaseError::fail(format!(
                        "planned from {} to {stop:?}: PostgreSQL would not get there",
                        plan.backup.backup_id
                    ))
                })?;
                prop_assert_eq!(
                    &plan.backup.backup_id,
                    &backup.backup_id,
                    "not the newest backup"
                );
                prop_assert_eq!(stop, Stop::at(record, &target.kind, target.inclusive));
                self.holds(&plan, stop, &self.replay(timeline, backup, target))
            }
            Err(refusal) => {
                prop_assert!(expected.is_none(), "{refusal}: but {expected:?} reaches it");
                self.offers_hold(&refusal, target)
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    #[test]
    fn a_time_stops_where_postgresql_stops(world in worlds(), at: Index, off in -1..2_i64, inclusive: bool, newer: bool) {
        let timeline = world.timeline(newer);
        let line = &world.lines[&timeline];
        let time = line[at.index(line.len())].time.checked_add(jiff::SignedDuration::from_secs(off * 10)).unwrap();
        let target = target(TargetKind::Time(time), inclusive, timeline);
        // The newest backup that ended before decides; an older one is asked only where PostgreSQL would stop before consistency.
        let mut expected = None;
        for backup in world.sound(timeline).into_iter().filter(|backup| backup.stopped_at < time) {
            match world.replay(timeline, backup, &target).how {
                Outcomes::Stopped { consistent: false, .. } => continue,
                Outcomes::Stopped { record, consistent: true } => expected = Some((backup, record)),
                Outcomes::Ended => (),
            }
            break;
        }
        world.judge(&target, timeline, expected)?;
    }

    #[test]
    fn a_transaction_stops_where_postgresql_stops(world in worlds(), at in 0..150_u64, low: bool, inclusive: bool, newer: bool) {
        let timeline = world.timeline(newer);
        let full = world.first_xid + at;
        // As a row's xmin shows it, or as pg_current_xact_id() does.
        let xid = if low { full & u64::from(u32::MAX) } else { full };
        let target = target(TargetKind::Xid(xid), inclusive, timeline);
        let committed = |span: RecordSpan| {
            let mut records = world.lines[&timeline].iter();
            records.any(|record| record.span == span && matches!(record.kind, Kind::End { outcome: Outcome::Commit, .. }))
        };
        let expected = world.exhaustive(&target, timeline, committed);
        world.judge(&target, timeline, expected)?;
    }

    #[test]
    fn a_transaction_of_another_epoch_is_never_taken_for_one_that_ended(world in worlds(), at in 0..150_u64, inclusive: bool, newer: bool) {
        let timeline = world.timeline(newer);
        let xid = world.first_xid + at + (1 << 32);
        world.judge(&target(TargetKind::Xid(xid), inclusive, timeline), timeline, None)?;
    }

    #[test]
    fn a_restore_point_stops_where_postgresql_stops_and_where_there_is_one_alone(world in worlds(), name in 0..NAMES.len(), newer: bool) {
        let timeline = world.timeline(newer);
        let target = target(TargetKind::Name(NAMES[name].to_owned()), true, timeline);
        let sound = world.sound(timeline);
        // The newest backup that leads there must not meet another one first.
        let newest = |point: &Record| {
            sound.iter().copied().find(|backup| {
                let way = RecordSpan {
                    lsn: backup.start_lsn,
                    end_lsn: point.span.end_lsn,
                };
                backup.stop_lsn <= point.span.lsn && world.readable(timeline, way)
            })
        };
        let kind = Kind::Point(NAMES[name]);
        let points = world.lines[&timeline].iter().filter(|record| record.kind == kind);
        let reachable: Vec<_> = points.filter_map(|point| Some((newest(point)?, point.span))).collect();
        let expected = match reachable.as_slice() {
            [(backup, span)] => {
                let how = world.replay(timeline, backup, &target).how;
                (how == Outcomes::Stopped { record: *span, consistent: true }).then_some((*backup, *span))
            }
            _ => None,
        };
        world.judge(&target, timeline, expected)?;
    }

    #[test]
    fn what_is_replayed_is_told_of_targets_that_names_can_place(world in worlds(), at: Index, inclusive: bool, newer: bool) {
        let timeline = world.timeline(newer);
        for kind in [TargetKind::Latest, TargetKind::Immediate] {
            let target = target(kind, true, timeline);
            if let Ok((plan, stop)) = world.plan(&target, &PlanOptions::default()) {
                world.holds(&plan, stop, &world.replay(timeline, &plan.backup, &target))?;
            }
        }
        let line = &world.lines[&timeline];
        let record = line[at.index(line.len())].span;
        let target = target(TargetKind::Lsn(record.lsn), inclusive, timeline);
        if let Ok(plan) = RecoveryPlan::build_to(&world.catalog, &target, &PlanOptions::default(), Some(record)) {
            let stop = Stop::at(record, &target.kind, inclusive);
            world.holds(&plan, stop, &world.replay(timeline, &plan.backup, &target))?;
        }
    }
}

/// Guards the guards: histories in which everything is reachable, or nothing, would prove nothing.
#[test]
fn the_random_histories_hold_every_kind_of_answer() {
    use proptest::strategy::ValueTree;
    let mut runner = proptest::test_runner::TestRunner::deterministic();
    let mut answers = BTreeMap::<String, u32>::new();
    for round in 0..1500_u32 {
        let world = worlds().new_tree(&mut runner).unwrap().current();
        let timeline = world.timeline(true);
        let line = &world.lines[&timeline];
        let any = &line[round as usize % line.len()];
        let name = NAMES[round as usize % NAMES.len()].to_owned();
        for kind in [
            TargetKind::Time(any.time),
            TargetKind::Xid(world.first_xid + u64::from(round) % 120),
            TargetKind::Name(name),
        ] {
            let answer = match world.plan(&target(kind, true, timeline), &PlanOptions::default()) {
                Ok((plan, _)) if plan.wal.len() > 1 => "planned across a fork".to_owned(),
                Ok(_) => "planned".to_owned(),
                Err(refusal) => format!("{refusal:?}")
                    .split([' ', '(', '{'])
                    .next()
                    .unwrap_or_default()
                    .to_owned(),
            };
            *answers.entry(answer).or_default() += 1;
        }
    }
    for answer in [
        "planned",
        "planned across a fork",
        "AfterLastCommit",
        "TransactionAborted",
        "Subtransaction",
        "NeverEnded",
        "AmbiguousRestorePoint",
        "UnknownRestorePoint",
        "BeforeFirstBackup",
        "Gap",
    ] {
        assert!(
            answers.get(answer).is_some_and(|count| *count >= 15),
            "{answer} is too rare in {answers:?}"
        );
    }
}
