//! What cannot be planned on hand-made archives, and what is offered instead, word for word.

use walden_pg::{SystemIdentifier, TimelineId};

use crate::catalog::Catalog;
use crate::note::Note;
use crate::plan::{PlanOptions, RecoveryPlan};
use crate::records::RandomId;
use crate::sample::{
    backup, broken, catalog, forked, id, lsn, on, plan, plan_with, refusal, runs, size, time, whole,
};
use crate::target::{RecoveryTarget, TargetKind, TargetTimeline};

#[test]
fn an_lsn_on_a_boundary_needs_the_segment_that_begins_there() {
    assert!(plan(&whole(), TargetKind::Lsn(lsn(999))).is_ok());
    assert_eq!(
        refusal(plan(&whole(), TargetKind::Lsn(lsn(1000)))),
        "0/A00000 on timeline 1 lies behind the archived WAL, which ends at 0/A00000: choose --target-lsn 0/900000, or leave the \
         target out to restore all of it"
    );
}

#[test]
fn a_backup_must_have_ended_before_the_target() {
    assert_eq!(
        plan(&whole(), TargetKind::Lsn(lsn(650)))
            .unwrap()
            .backup
            .backup_id,
        id(2)
    );
    assert_eq!(
        plan(&whole(), TargetKind::Lsn(lsn(649)))
            .unwrap()
            .backup
            .backup_id,
        id(1)
    );
    assert_eq!(
        plan(&whole(), TargetKind::Time(time(651)))
            .unwrap()
            .backup
            .backup_id,
        id(2)
    );
    assert_eq!(
        plan(&whole(), TargetKind::Time(time(650)))
            .unwrap()
            .backup
            .backup_id,
        id(1)
    );
    assert_eq!(
        refusal(plan(&whole(), TargetKind::Lsn(lsn(349)))),
        format!(
            "--target-lsn 0/37D70A lies before the end of the earliest backup that could lead to it, {} (ended at 0/380000 on \
             timeline 1, 2026-11-22 12:05:50.000000+00): the earliest target is --target-immediate --backup {}",
            id(1),
            id(1)
        )
    );
    assert_eq!(
        refusal(plan_with(&whole(), TargetKind::Time(time(500)), 2)),
        format!(
            "backup {} cannot be restored to --target-time '2026-11-22 12:08:20.000000+00': it ended after the target: choose an \
             older backup, or leave --backup out",
            id(2)
        )
    );
}

#[test]
fn a_time_after_the_last_archived_segment_is_refused() {
    assert!(plan(&whole(), TargetKind::Time(time(1000))).is_ok());
    assert_eq!(
        refusal(plan(&whole(), TargetKind::Time(time(1001)))),
        "2026-11-22 12:16:41.000000+00 is after the last WAL of timeline 1 was archived, at 2026-11-22 12:16:40.000000+00: leave \
         the target out to restore everything that is archived"
    );
}

#[test]
fn a_gap_is_named_with_the_targets_on_both_sides() {
    let plan_latest = plan(&broken(), TargetKind::Latest).unwrap();
    assert_eq!(
        plan_latest.backup.backup_id,
        id(3),
        "a backup behind the gap is chosen by itself"
    );
    let mut no_newer = broken();
    no_newer.backups.pop();
    assert_eq!(
        refusal(plan(&no_newer, TargetKind::Latest)),
        format!(
            "WAL is missing on the way from backup {} to the end of the archived WAL: 000000010000000000000007 to \
             000000010000000000000008. What lies before can be reached, surely with --target-immediate --backup {}",
            id(2),
            id(2)
        )
    );
    assert_eq!(
        refusal(plan_with(&broken(), TargetKind::Lsn(lsn(1000)), 1)),
        format!(
            "WAL is missing on the way from backup {} to --target-lsn 0/A00000: 000000010000000000000007 to \
             000000010000000000000008. What lies before can be reached, surely with --target-lsn 0/600000 --backup {}; what lies \
             behind can be reached from 0/A80000 on, with backup {} (ended at 0/A80000 on timeline 1, \
             2026-11-22 12:17:30.000000+00)",
            id(1),
            id(1),
            id(3)
        )
    );
}

#[test]
fn a_time_on_this_side_of_a_gap_is_planned_where_a_later_backup_or_the_person_says_so() {
    let mut catalog = broken();
    assert_eq!(
        plan(&catalog, TargetKind::Time(time(600)))
            .unwrap()
            .backup
            .backup_id,
        id(1),
        "backup 2 bounds the way"
    );
    let refused = refusal(plan(&catalog, TargetKind::Time(time(700))));
    assert!(
        refused.ends_with(
            "if you know that the target lies before the gap, name the backup with --backup"
        ),
        "only the WAL could tell on which side 700 is: {refused}"
    );
    let plan = plan_with(&catalog, TargetKind::Time(time(700)), 2).unwrap();
    assert_eq!(
        runs(&plan),
        ["000000010000000000000005 000000010000000000000006 x2 2000B"]
    );
    assert!(
        plan.notes
            .iter()
            .any(|note| matches!(note, Note::GapBehind(_))),
        "{:?}",
        plan.notes
    );
    catalog.backups.clear();
    catalog.backups.push(backup(2, 1, 550, 750));
    let refused = refusal(plan_with(&catalog, TargetKind::Time(time(800)), 2));
    assert!(
        refused.contains(
            "the WAL segment 000000010000000000000007, without which it never becomes consistent"
        ),
        "{refused}"
    );
}

#[test]
fn an_lsn_of_another_timeline_says_where_it_is() {
    assert_eq!(
        refusal(plan(&forked(), TargetKind::Lsn(lsn(800)))),
        "0/800000 cannot be reached on timeline 2, but with --target-timeline 1"
    );
}

#[test]
fn what_does_not_exist_is_answered_with_what_does() {
    let empty = Catalog::empty(
        "main".parse().unwrap(),
        SystemIdentifier(7),
        RandomId([7; 16]),
        size(),
    );
    assert_eq!(
        refusal(plan(&empty, TargetKind::Latest)),
        "cluster main has no backup in this repository: take one with `walden backup`"
    );
    assert_eq!(
        refusal(on(&forked(), TargetKind::Latest, 7)),
        "nothing of timeline 7 is in the repository: --target-timeline can be 1 or 2"
    );
    let refused = refusal(plan_with(&whole(), TargetKind::Latest, 9));
    assert!(
        refused.starts_with(&format!(
            "there is no backup {}; --backup can be {}",
            id(9),
            id(2)
        )),
        "{refused}"
    );
}

#[test]
fn a_backup_off_the_way_and_a_timeline_without_backup_are_named() {
    let target = RecoveryTarget {
        timeline: TargetTimeline::Number(TimelineId(2)),
        ..RecoveryTarget::default()
    };
    let options = PlanOptions {
        backup: Some(id(2)),
        ..PlanOptions::default()
    };
    assert_eq!(
        refusal(RecoveryPlan::build(&forked(), &target, &options)),
        format!(
            "backup {} cannot be restored to the end of the archived WAL: the way to timeline 2 does not lead through its end: leave \
             --backup out, or choose --target-timeline current",
            id(2)
        )
    );
    let mut catalog = forked();
    catalog.backups.remove(0);
    let refused = refusal(on(&catalog, TargetKind::Latest, 2));
    assert!(
        refused.starts_with(&format!(
            "no backup leads to timeline 2; the backups are {}",
            id(2)
        )),
        "{refused}"
    );
}

#[test]
fn a_missing_history_file_is_named() {
    let mut catalog = catalog(&[(3, &[2, 3, 4])], &[]);
    catalog.backups = vec![backup(1, 3, 250, 350)];
    let refused = refusal(plan(&catalog, TargetKind::Latest));
    assert!(
        refused.starts_with("the history file 00000003.history is not in the repository"),
        "{refused}"
    );
    assert!(
        catalog.window(&catalog.backups[0]).is_err(),
        "no window either"
    );
}
