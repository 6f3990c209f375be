//! What cannot be planned on hand-made archives, and what is offered instead, word for word.

use walden_pg::{SystemIdentifier, TimelineId};

use crate::catalog::{Catalog, DamagedDocument};
use crate::note::Note;
use crate::plan::{PlanOptions, RecoveryPlan};
use crate::records::{RandomId, Snapshot};
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
    let singly = ("recovery_prefetch".to_owned(), "off".to_owned());
    assert!(
        plan.settings.contains(&singly),
        "reading ahead would run into the gap before the target: {:?}",
        plan.settings
    );
    let whole = crate::sample::plan(&crate::sample::whole(), TargetKind::Lsn(lsn(700))).unwrap();
    assert!(
        !whole.settings.contains(&singly),
        "where nothing is missing PostgreSQL may read ahead: {:?}",
        whole.settings
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

/// [`whole`] with this segment in conflict.
fn conflict(segment: u64) -> Catalog {
    let mut catalog = whole();
    let wal = catalog.wal.get_mut(&TimelineId(1)).unwrap();
    wal.conflicts.insert(segment);
    catalog
}

#[test]
fn what_needs_a_segment_in_conflict_is_refused_and_what_does_not_is_planned() {
    let catalog = conflict(8);
    assert_eq!(
        refusal(plan(&catalog, TargetKind::Latest)),
        format!(
            "WAL is in conflict on the way from backup {} to the end of the archived WAL: conflict at 000000010000000000000008, see \
             quarantine: another file of that name was set aside there, and nobody can tell which of the two is this cluster's. What \
             lies before can be reached, surely with --target-lsn 0/700000; what lies behind can be reached once a new backup is \
             taken, from its end on",
            id(2)
        )
    );
    assert!(plan(&catalog, TargetKind::Lsn(lsn(799))).is_ok());
    assert!(plan(&catalog, TargetKind::Lsn(lsn(800))).is_err());
    let window = catalog.window(&catalog.backups[1]).unwrap();
    assert_eq!((window.until, window.whole), (lsn(800), true));
    assert_eq!(
        window.first_gap.unwrap().to_string(),
        "conflict at 000000010000000000000008, see quarantine"
    );
    let refused = refusal(plan_with(&catalog, TargetKind::Time(time(700)), 2));
    assert!(
        refused.starts_with("WAL is in conflict") && !refused.contains("name the backup"),
        "recovery would not stop at it, so a chosen backup does not help: {refused}"
    );

    let mut catalog = conflict(8);
    catalog.backups.push(backup(3, 1, 910, 950));
    let plan = plan(&catalog, TargetKind::Latest).unwrap();
    assert_eq!(plan.backup.backup_id, id(3), "the way out: a backup behind");
}

#[test]
fn the_last_segment_in_conflict_is_not_the_archives_end() {
    let catalog = conflict(9);
    let refused = refusal(plan(&catalog, TargetKind::Latest));
    assert!(refused.starts_with("WAL is in conflict"), "{refused}");
    let window = catalog.window(&catalog.backups[1]).unwrap();
    assert_eq!(window.until, lsn(900));
    assert!(window.first_gap.is_some_and(|gap| gap.begins_in_conflict()));
    assert_eq!(catalog.conflicts(), [window.first_gap.unwrap().first]);
}

#[test]
fn a_gap_that_holds_a_conflict_is_a_gap_and_says_so() {
    let mut catalog = conflict(8);
    catalog
        .wal
        .get_mut(&TimelineId(1))
        .unwrap()
        .segments
        .remove(&7);
    let refused = refusal(plan(&catalog, TargetKind::Latest));
    assert!(
        refused.starts_with("WAL is missing")
            && refused.contains(
                "000000010000000000000007 to 000000010000000000000008 (conflict at 000000010000000000000008, see quarantine)"
            ),
        "{refused}"
    );
}

#[test]
fn a_backup_whose_own_wal_is_in_conflict_is_broken() {
    let catalog = conflict(6);
    assert!(!catalog.window(&catalog.backups[1]).unwrap().whole);
    let refused = refusal(plan_with(&catalog, TargetKind::Immediate, 2));
    assert!(
        refused.ends_with(
            "the WAL segment 000000010000000000000006, without which it never becomes consistent, is in conflict: another file of that \
             name was set aside in quarantine, and nobody can tell which is this cluster's: choose another backup, or take a new one"
        ),
        "{refused}"
    );
    let plan = plan(&catalog, TargetKind::Immediate).unwrap();
    assert_eq!(plan.backup.backup_id, id(1));
}

#[test]
fn an_idle_server_may_have_no_commit_before_the_later_backup_so_the_gap_behind_it_is_told() {
    let broken = plan(&broken(), TargetKind::Time(time(600))).unwrap();
    assert_eq!(broken.backup.backup_id, id(1));
    let told = |plan: &RecoveryPlan| {
        let mut notes = plan.notes.iter();
        notes.find_map(|note| match note {
            Note::GapBehind(gap) => Some(gap.first.to_string()),
            _ => None,
        })
    };
    let first = "000000010000000000000007";
    assert_eq!(told(&broken).as_deref(), Some(first), "{:?}", broken.notes);
    let conflict = plan(&conflict(8), TargetKind::Time(time(600))).unwrap();
    let note = conflict.notes.first().unwrap().to_string();
    assert!(
        note.starts_with("WAL is in conflict: conflict at 000000010000000000000008")
            && note.contains("another server wrote"),
        "recovery does not stop at a conflict: {note}"
    );
    let whole = plan(&whole(), TargetKind::Time(time(600))).unwrap();
    assert_eq!(told(&whole), None, "there is none");
}

#[test]
fn the_newest_timeline_is_never_passed_by_because_nobody_knows_where_it_comes_from() {
    let mut catalog = forked();
    catalog.histories.clear();
    let expected = "the history file 00000002.history is not in the repository, so the way to timeline 2 is unknown: archive it, on a \
                    server that has been on this timeline, with walden-wal-push PGDATA/pg_wal/00000002.history, or choose another \
                    timeline with --target-timeline";
    assert_eq!(refusal(plan(&catalog, TargetKind::Latest)), expected);
    assert_eq!(
        refusal(plan_with(&catalog, TargetKind::Latest, 1)),
        expected,
        "a chosen backup does not choose the timeline"
    );
    for backup in &catalog.backups {
        assert_eq!(
            catalog.window(backup).unwrap_err().to_string(),
            expected,
            "a window of the parent would be a guess"
        );
    }
    assert!(
        on(&catalog, TargetKind::Latest, 1).is_ok(),
        "a chosen timeline is no guess"
    );

    let key = "main/7302911111111111111/wal/00000002.history.zst";
    catalog.damaged_documents.push(DamagedDocument {
        key: key.to_owned(),
        why: "a flipped bit".to_owned(),
    });
    assert_eq!(
        refusal(plan(&catalog, TargetKind::Latest)),
        format!(
            "the history file 00000002.history is damaged in the repository, so the way to timeline 2 is unknown: move {key} out of the \
             repository and archive it, on a server that has been on this timeline, with walden-wal-push \
             PGDATA/pg_wal/00000002.history, or choose another timeline with --target-timeline"
        )
    );

    catalog.wal.remove(&TimelineId(2));
    assert!(
        plan(&catalog, TargetKind::Latest).is_ok(),
        "without WAL there is nothing that would be lost"
    );
}

#[test]
fn a_timeline_whose_history_is_in_conflict_is_neither_followed_nor_passed_by() {
    let mut catalog = forked();
    catalog.disputed_histories.insert(TimelineId(2));
    let expected = "the history file 00000002.history is in conflict (another file of that name was set aside in quarantine), so the way \
                    to timeline 2 is unknown: take a new backup, from whose end on everything can be restored, or choose another \
                    timeline with --target-timeline";
    assert_eq!(refusal(plan(&catalog, TargetKind::Latest)), expected);
    for backup in &catalog.backups {
        assert_eq!(catalog.window(backup).unwrap_err().to_string(), expected);
    }
    assert!(on(&catalog, TargetKind::Latest, 1).is_ok());
    let refused = refusal(on(&catalog, TargetKind::Latest, 2));
    assert!(
        refused.starts_with("no backup leads to timeline 2"),
        "the archived history may be another server's: {refused}"
    );

    catalog.backups.push(backup(3, 2, 610, 650));
    let plan = plan(&catalog, TargetKind::Latest).unwrap();
    assert_eq!(
        (plan.backup.backup_id, plan.timeline),
        (id(3), TimelineId(2)),
        "the way out"
    );
    let window = catalog.window(&catalog.backups[2]).unwrap();
    assert_eq!((window.until, window.first_gap), (lsn(700), None));
}

#[test]
fn a_standbys_snapshot_does_not_tell_which_transactions_ran() {
    let mut catalog = whole();
    for (backup, from_standby) in catalog.backups.iter_mut().zip([false, true]) {
        backup.from_standby = from_standby;
        backup.snapshot = Some(Snapshot {
            xmin: if from_standby { 740 } else { 700 },
            xmax: if from_standby { 745 } else { 700 },
            in_progress: vec![],
        });
    }
    for (xid, expected) in [(745, 2), (744, 1), (740, 1), (739, 1)] {
        let plan = plan(&catalog, TargetKind::Xid(xid)).unwrap();
        assert_eq!(plan.backup.backup_id, id(expected), "transaction {xid}");
    }
    catalog.backups.remove(0);
    let refused = refusal(plan(&catalog, TargetKind::Xid(742)));
    assert!(
        refused.starts_with("no backup tells whether transaction 742 had ended"),
        "{refused}"
    );
    assert!(
        plan_with(&catalog, TargetKind::Xid(742), 2).is_ok(),
        "the person has chosen"
    );
    let refused = refusal(plan(&catalog, TargetKind::Xid(739)));
    assert!(
        refused.starts_with("--target-xid 739 lies before the end"),
        "below xmin it is known: {refused}"
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
