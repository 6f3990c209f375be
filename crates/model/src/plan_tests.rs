//! Plans of hand-made archives.

use walden_pg::TimelineId;

use crate::catalog::Catalog;
use crate::note::Note;
use crate::plan::{PlanOptions, RecoveryPlan, Signal, main_configuration};
use crate::records::{BackupRecord, Snapshot};
use crate::sample::{
    backup, catalog, forked, id, lsn, on, plan, plan_with, refusal, runs, target, time, whole,
};
use crate::target::{RecoveryTarget, TargetAction, TargetKind, TargetTimeline};
use crate::unreachable::CannotReach;

#[test]
fn the_latest_goes_from_the_newest_backup_to_the_last_segment() {
    let plan = plan(&whole(), TargetKind::Latest).unwrap();
    assert_eq!(plan.backup.backup_id, id(2));
    assert_eq!(
        runs(&plan),
        ["000000010000000000000005 000000010000000000000009 x5 5000B"]
    );
    assert_eq!(plan.wal_stored_bytes(), 5000);
    assert_eq!((plan.restore_size, plan.stored_size), (40 << 30, 10 << 30));
    assert_eq!(plan.timeline, TimelineId(1));
    assert!(
        plan.notes.contains(&Note::OpensAtEnd) && plan.notes.contains(&Note::ArchivingOff),
        "{:?}",
        plan.notes
    );
    assert!(
        !plan.notes.contains(&Note::AtTarget(TargetAction::Pause)),
        "without a target nothing pauses: {:?}",
        plan.notes
    );
}

#[test]
fn empty_settings_of_the_other_targets_stand_before_the_real_one() {
    let options = PlanOptions {
        restore_command: "walden-wal-fetch %f %p".to_owned(),
        ..PlanOptions::default()
    };
    let target = RecoveryTarget {
        inclusive: false,
        ..target(TargetKind::Lsn(lsn(700)))
    };
    let plan = RecoveryPlan::build(&whole(), &target, &options).unwrap();
    let settings: Vec<String> = plan
        .settings
        .iter()
        .map(|(name, value)| format!("{name}={value}"))
        .collect();
    assert_eq!(
        settings,
        [
            "restore_command=walden-wal-fetch %f %p",
            "archive_cleanup_command=",
            "recovery_end_command=",
            "hot_standby=on",
            "recovery_target=",
            "recovery_target_time=",
            "recovery_target_xid=",
            "recovery_target_name=",
            "recovery_target_lsn=0/700000",
            "recovery_target_inclusive=off",
            "recovery_target_timeline=1",
            "recovery_target_action=pause",
            "recovery_min_apply_delay=0",
            "primary_conninfo=",
            "primary_slot_name=",
            "archive_mode=off",
            "max_logical_replication_workers=0",
            "synchronous_standby_names=",
        ]
    );
    assert_eq!(plan.signal, Signal::Recovery);
}

#[test]
fn each_kind_of_target_has_its_setting_and_no_other() {
    let mut one = whole();
    one.backups.truncate(1);
    for (kind, name, value) in [
        (TargetKind::Immediate, "recovery_target", "immediate"),
        (
            TargetKind::Time(time(400)),
            "recovery_target_time",
            "2026-11-22 12:06:40.000000+00",
        ),
        (TargetKind::Lsn(lsn(400)), "recovery_target_lsn", "0/400000"),
        (TargetKind::Xid(800), "recovery_target_xid", "800"),
        (
            TargetKind::Name("it's".to_owned()),
            "recovery_target_name",
            "it's",
        ),
    ] {
        let plan = plan(&one, kind).unwrap();
        let set: Vec<(&str, &str)> = plan
            .settings
            .iter()
            .filter(|(name, value)| name.starts_with("recovery_target") && !value.is_empty())
            .map(|(name, value)| (name.as_str(), value.as_str()))
            .collect();
        assert_eq!(
            set,
            [
                (name, value),
                ("recovery_target_inclusive", "on"),
                ("recovery_target_timeline", "1"),
                ("recovery_target_action", "pause")
            ]
        );
        assert_eq!(
            plan.settings
                .iter()
                .filter(|(_, value)| value.is_empty())
                .count(),
            1 + 4 + 5,
            "{:?}",
            plan.settings
        );
    }
    let latest = plan(&one, TargetKind::Latest).unwrap();
    assert_eq!(
        latest
            .settings
            .iter()
            .filter(|(_, value)| value.is_empty())
            .count(),
        1 + 5 + 5,
        "{:?}",
        latest.settings
    );
}

#[test]
fn a_standby_keeps_its_connection_and_a_new_primary_archives() {
    let options = PlanOptions {
        standby: true,
        take_over: true,
        ..PlanOptions::default()
    };
    let plan = RecoveryPlan::build(&whole(), &RecoveryTarget::default(), &options).unwrap();
    assert_eq!(plan.signal.file_name(), "standby.signal");
    let names: Vec<&str> = plan
        .settings
        .iter()
        .map(|(name, _)| name.as_str())
        .collect();
    for absent in [
        "primary_conninfo",
        "primary_slot_name",
        "recovery_min_apply_delay",
        "archive_mode",
        "max_logical_replication_workers",
        "synchronous_standby_names",
    ] {
        assert!(
            !names.contains(&absent),
            "{absent} must be left alone: {names:?}"
        );
    }
    assert!(
        !plan.notes.contains(&Note::ArchivingOff),
        "{:?}",
        plan.notes
    );
}

/// The timeline of a standby's settings, and whether its note says that it follows a failover.
fn standby_along(catalog: &Catalog, target: &RecoveryTarget) -> (String, Option<bool>) {
    let options = PlanOptions {
        standby: true,
        ..PlanOptions::default()
    };
    let plan = RecoveryPlan::build(catalog, target, &options).unwrap();
    let mut settings = plan.settings.into_iter();
    let (_, timeline) = settings
        .find(|(name, _)| name == "recovery_target_timeline")
        .unwrap();
    let follows = plan.notes.iter().find_map(|note| match note {
        Note::StaysStandby { follows } => Some(*follows),
        _ => None,
    });
    (timeline, follows)
}

#[test]
fn a_standby_follows_a_failover_unless_it_was_told_a_timeline_or_passes_one_by() {
    let newest = RecoveryTarget::default();
    let latest = ("latest".to_owned(), Some(true));
    assert_eq!(standby_along(&whole(), &newest), latest);
    assert_eq!(standby_along(&forked(), &newest), latest);
    let number = RecoveryTarget {
        timeline: TargetTimeline::Number(TimelineId(1)),
        ..newest.clone()
    };
    let stays = ("1".to_owned(), Some(false));
    assert_eq!(standby_along(&forked(), &number), stays);
    let mut stranger = catalog(&[(1, &[2, 3, 4, 5, 6, 7]), (2, &[3])], &[(2, 1, 300)]);
    stranger.backups = vec![backup(1, 1, 250, 350)];
    assert_eq!(
        standby_along(&stranger, &newest),
        stays,
        "latest would lead it to timeline 2, which does not descend from the backup"
    );
    let to_a_point = target(TargetKind::Lsn(lsn(700)));
    assert_eq!(
        standby_along(&whole(), &to_a_point),
        ("1".to_owned(), None),
        "a target lies on a timeline that is known"
    );
}

#[test]
fn a_new_primary_is_told_where_its_configuration_was() {
    let options = PlanOptions {
        take_over: true,
        ..PlanOptions::default()
    };
    let plan = RecoveryPlan::build(&whole(), &RecoveryTarget::default(), &options).unwrap();
    let note = Note::ArchivingOn {
        configuration: Some("/etc/postgresql/17/main/postgresql.conf".to_owned()),
    };
    assert!(plan.notes.contains(&note), "{:?}", plan.notes);
    let two = [
        "/a/postgresql.conf".to_owned(),
        "/b/postgresql.conf".to_owned(),
    ];
    assert_eq!(main_configuration(&two), None, "nobody knows which");
}

#[test]
fn a_restore_follows_the_newest_timeline_across_the_fork() {
    let plan = plan(&forked(), TargetKind::Latest).unwrap();
    assert_eq!(
        (plan.timeline, &plan.backup.backup_id),
        (TimelineId(2), &id(1))
    );
    assert_eq!(
        runs(&plan),
        [
            "000000010000000000000002 000000010000000000000004 x3 3000B",
            "000000020000000000000005 000000020000000000000006 x2 2000B"
        ]
    );
    let old = on(&forked(), TargetKind::Latest, 1).unwrap();
    assert_eq!(
        (old.timeline, &old.backup.backup_id),
        (TimelineId(1), &id(2)),
        "timeline 1 has a newer backup"
    );
    let left_behind = plan_with(&forked(), TargetKind::Latest, 2).unwrap();
    assert_eq!(
        left_behind.timeline,
        TimelineId(1),
        "timeline 2 does not descend from that backup"
    );
}

#[test]
fn the_parents_copy_of_the_forks_segment_serves_what_lies_before_the_fork() {
    let mut catalog = catalog(&[(1, &[2, 3, 4, 5])], &[(2, 1, 550), (3, 2, 650)]);
    catalog.backups = vec![backup(1, 1, 250, 350)];
    assert!(
        on(&catalog, TargetKind::Lsn(lsn(520)), 3).is_ok(),
        "timeline 2 lacks the segment, and nobody needs it there"
    );
    assert_eq!(
        refusal(on(&catalog, TargetKind::Lsn(lsn(560)), 2)),
        "0/599999 cannot be reached on timeline 2, but with --target-timeline 1",
        "behind the fork timeline 2's own copy is needed"
    );
    // PostgreSQL asks timeline 2 first, and walden-wal-fetch does not call a hole absent.
    catalog
        .wal
        .entry(TimelineId(2))
        .or_default()
        .segments
        .insert(6, 1000);
    let hole = refusal(on(&catalog, TargetKind::Lsn(lsn(520)), 2));
    assert!(
        hole.contains(": 000000020000000000000005. What lies before"),
        "{hole}"
    );
}

#[test]
fn a_timeline_without_wal_is_not_followed() {
    let mut catalog = whole();
    let history = catalog_history();
    catalog.histories.insert(TimelineId(2), history);
    let plan = plan(&catalog, TargetKind::Latest).unwrap();
    assert_eq!(plan.timeline, TimelineId(1));
    assert!(
        plan.notes
            .contains(&Note::OtherTimelines(vec![TimelineId(2)])),
        "{:?}",
        plan.notes
    );
    assert_eq!(
        refusal(on(&catalog, TargetKind::Latest, 2)),
        "timeline 2 has no WAL in the repository yet, so recovery could only run along its parent: choose another \
         --target-timeline, one of 1"
    );
}

fn catalog_history() -> walden_pg::history::TimelineHistory {
    catalog(&[], &[(2, 1, 750)])
        .histories
        .remove(&TimelineId(2))
        .unwrap()
}

#[test]
fn a_backup_with_missing_objects_is_passed_over_and_never_silently() {
    let mut catalog = whole();
    catalog.missing_packs.insert(
        id(2),
        vec!["main/7/backups/b/packs/00000003.zst".to_owned()],
    );
    let plan_latest = plan(&catalog, TargetKind::Latest).unwrap();
    assert_eq!(plan_latest.backup.backup_id, id(1));
    assert!(
        plan_latest.notes.iter().any(|note| matches!(
            note,
            Note::BackupSkipped {
                why: CannotReach::ObjectsMissing(_),
                ..
            }
        )),
        "{:?}",
        plan_latest.notes
    );
    assert_eq!(
        refusal(plan_with(&catalog, TargetKind::Latest, 2)),
        format!(
            "backup {} cannot be restored to the end of the archived WAL: 1 of its objects are missing or have another size, the \
             first is main/7/backups/b/packs/00000003.zst: choose another backup",
            id(2)
        )
    );
}

#[test]
fn a_transaction_is_placed_by_what_each_backup_saw() {
    let mut catalog = whole();
    let saw = |xmin, xmax, in_progress: &[u64]| {
        Some(Snapshot {
            xmin,
            xmax,
            in_progress: in_progress.to_vec(),
        })
    };
    catalog.backups[0].snapshot = saw(700, 700, &[]);
    catalog.backups[1].snapshot = saw(740, 745, &[740, 742]);
    for (xid, expected) in [(745, 2), (742, 2), (741, 1), (739, 1), (700, 1)] {
        assert_eq!(
            plan(&catalog, TargetKind::Xid(xid))
                .unwrap()
                .backup
                .backup_id,
            id(expected),
            "transaction {xid}"
        );
    }
    let refused = refusal(plan(&catalog, TargetKind::Xid(699)));
    assert!(
        refused.starts_with("--target-xid 699 lies before the end of the earliest backup"),
        "{refused}"
    );

    // Epoch 5: the 32-bit id of a row's xmin belongs to the nearest epoch.
    let epoch = 5_u64 << 32;
    catalog.backups[1].snapshot = saw(epoch + 10, epoch + 10, &[]);
    catalog.backups[0].snapshot = saw(epoch - 100, epoch - 100, &[]);
    for (xid, expected) in [
        (10, 2),
        (9, 1),
        ((1 << 32) - 50, 1),
        (epoch + 10, 2),
        (epoch - 50, 1),
    ] {
        assert_eq!(
            plan(&catalog, TargetKind::Xid(xid))
                .unwrap()
                .backup
                .backup_id,
            id(expected),
            "transaction {xid}"
        );
    }

    for backup in &mut catalog.backups {
        backup.snapshot = None;
    }
    let refused = refusal(plan(&catalog, TargetKind::Xid(800)));
    assert!(
        refused.starts_with(&format!(
            "no backup tells whether transaction 800 had ended before it did: choose one that is older than the transaction with \
             --backup, newest first: {}",
            id(2)
        )),
        "{refused}"
    );
    assert!(
        plan_with(&catalog, TargetKind::Xid(800), 1).is_ok(),
        "the person has chosen"
    );
}

#[test]
fn a_restore_point_needs_a_choice_among_several_backups() {
    let name = || TargetKind::Name("before the upgrade".to_owned());
    let refused = refusal(plan(&whole(), name()));
    assert!(
        refused.starts_with(
            "more than one backup could lead to the restore point \"before the upgrade\""
        ),
        "{refused}"
    );
    let (newest, oldest) = (refused.find(id(2).as_str()), refused.find(id(1).as_str()));
    assert!(
        newest.is_some() && newest < oldest,
        "newest first: {refused}"
    );
    let chosen = plan_with(&whole(), name(), 1).unwrap();
    assert!(
        chosen.notes.contains(&Note::TargetNotProven(name())),
        "{:?}",
        chosen.notes
    );
    let mut one = whole();
    one.backups.truncate(1);
    assert!(plan(&one, name()).is_ok(), "one backup leaves no choice");
}

#[test]
fn the_notes_name_what_the_backup_carries() {
    let mut catalog = whole();
    let record = BackupRecord {
        damaged_blocks: 0,
        extras: vec![],
        ..backup(2, 1, 550, 650)
    };
    let loud = plan(&catalog, TargetKind::Immediate).unwrap();
    assert!(
        loud.notes.contains(&Note::DamagedBlocks(1)),
        "{:?}",
        loud.notes
    );
    assert!(
        loud.notes
            .iter()
            .any(|note| matches!(note, Note::Extras(_))),
        "{:?}",
        loud.notes
    );
    catalog.backups = vec![record];
    let quiet = plan(&catalog, TargetKind::Immediate).unwrap();
    let carries = |note: &Note| matches!(note, Note::DamagedBlocks(_) | Note::Extras(_));
    assert!(!quiet.notes.iter().any(carries), "{:?}", quiet.notes);
    let needed = quiet.notes.last().unwrap().to_string();
    assert!(
        needed.starts_with("Recovery needs at least max_connections = 100"),
        "{needed}"
    );
}
