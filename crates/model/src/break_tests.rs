//! Segments that are archived and that recovery does not get past.

use walden_pg::TimelineId;

use crate::catalog::Catalog;
use crate::coverage::Break;
use crate::index::StopReason;
use crate::sample::{backup, forked, id, lsn, on, plan, plan_with, refusal, time, whole};
use crate::target::TargetKind;

fn broken_at(catalog: &mut Catalog, timeline: u32, number: u64, at: u64, why: StopReason) {
    let wal = catalog.wal.get_mut(&TimelineId(timeline)).unwrap();
    let found = Break {
        at: lsn(at),
        why,
        reaches: Some(lsn(at - 20)),
    };
    wal.breaks.insert(number, found);
}

/// [`whole`], damaged in segment 7.
fn damaged() -> Catalog {
    let mut catalog = whole();
    broken_at(&mut catalog, 1, 7, 750, StopReason::Damaged);
    catalog
}

#[test]
fn what_lies_before_damage_is_planned_and_what_lies_behind_is_refused() {
    let catalog = damaged();
    let expected = format!(
        "WAL is broken on the way from backup {} to the end of the archived WAL: 000000010000000000000007, damaged at 0/780000 before it was \
         archived, and PostgreSQL cannot replay what comes behind. What lies before can be reached, surely with --target-lsn 0/74CCCC; \
         what lies behind can be reached once a new backup is taken, from its end on",
        id(2)
    );
    assert_eq!(refusal(plan(&catalog, TargetKind::Latest)), expected);
    for (at, reached) in [
        (749, true),
        (750, false),
        (799, false),
        (800, false),
        (950, false),
    ] {
        let planned = plan(&catalog, TargetKind::Lsn(lsn(at)));
        assert_eq!(planned.is_ok(), reached, "{at} hundredths: {planned:?}");
    }
    assert!(plan(&catalog, TargetKind::Immediate).is_ok());
    let refused = refusal(plan(&catalog, TargetKind::Time(time(900))));
    assert!(refused.starts_with("WAL is broken"), "{refused}");
}

#[test]
fn a_window_ends_where_the_damage_is_and_a_later_backup_opens_the_next() {
    let mut catalog = damaged();
    catalog.backups.push(backup(3, 1, 810, 850));
    let windows = catalog.windows(TimelineId(1)).unwrap();
    let shown: Vec<_> = windows
        .iter()
        .map(|window| {
            let gap = window.gap.map(|gap| gap.to_string());
            (window.last_segment.to_string(), window.backups.len(), gap)
        })
        .collect();
    let gap = "000000010000000000000007, damaged at 0/780000 before it was archived";
    assert_eq!(
        shown,
        [
            (
                "000000010000000000000007".to_owned(),
                2,
                Some(gap.to_owned())
            ),
            ("000000010000000000000009".to_owned(), 1, None),
        ]
    );
    let window = catalog.window(&catalog.backups[1]).unwrap();
    assert_eq!((window.until, window.whole), (lsn(750), true));
    assert_eq!(window.first_gap.unwrap().to_string(), gap);
    let latest = plan(&catalog, TargetKind::Latest).unwrap();
    assert_eq!(latest.backup.backup_id, id(3), "the backup behind it");
    let refused = refusal(plan_with(&catalog, TargetKind::Latest, 2));
    assert!(
        refused.contains(&format!("from {} on, with backup {}", lsn(850), id(3))),
        "what opens behind it is named: {refused}"
    );
}

#[test]
fn a_backup_that_ends_behind_the_damage_and_began_before_is_broken() {
    let mut catalog = damaged();
    catalog.backups.push(backup(3, 1, 710, 810));
    assert!(!catalog.window(&catalog.backups[2]).unwrap().whole);
    let refused = refusal(plan_with(&catalog, TargetKind::Immediate, 3));
    assert!(
        refused.contains("000000010000000000000007, without which it never becomes consistent, was broken at 0/780000"),
        "{refused}"
    );
    assert_eq!(
        plan(&catalog, TargetKind::Immediate)
            .unwrap()
            .backup
            .backup_id,
        id(2)
    );
}

#[test]
fn damage_counts_in_the_last_segment_too_and_the_end_of_wal_does_not() {
    let mut catalog = whole();
    broken_at(&mut catalog, 1, 9, 950, StopReason::Damaged);
    assert!(refusal(plan(&catalog, TargetKind::Latest)).starts_with("WAL is broken"));
    let mut catalog = whole();
    broken_at(&mut catalog, 1, 9, 950, StopReason::EndOfWal);
    assert!(plan(&catalog, TargetKind::Latest).is_ok());
    assert_eq!(catalog.window(&catalog.backups[1]).unwrap().first_gap, None);
}

#[test]
fn wal_that_ends_early_breaks_only_the_ways_that_go_on_behind_it() {
    // Timeline 1 is left in segment 5: what happens to its segments from there on is nothing to timeline 2.
    let mut catalog = forked();
    broken_at(&mut catalog, 1, 5, 560, StopReason::Damaged);
    broken_at(&mut catalog, 1, 8, 850, StopReason::EndOfWal);
    assert!(on(&catalog, TargetKind::Latest, 2).is_ok());
    // The newer backup begins behind it; the older one leads into it.
    assert!(on(&catalog, TargetKind::Latest, 1).is_ok());
    catalog.backups.pop();
    assert!(refusal(on(&catalog, TargetKind::Latest, 1)).starts_with("WAL is broken"));

    let mut catalog = forked();
    broken_at(&mut catalog, 1, 8, 850, StopReason::EndOfWal);
    assert!(on(&catalog, TargetKind::Latest, 1).is_ok());

    let mut catalog = forked();
    catalog.backups.pop();
    broken_at(&mut catalog, 1, 4, 450, StopReason::EndOfWal);
    let refused = refusal(on(&catalog, TargetKind::Latest, 2));
    assert!(
        refused.contains("000000010000000000000004, in which WAL ends early, at 0/480000"),
        "{refused}"
    );
}
