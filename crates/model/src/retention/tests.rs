use walden_pg::TimelineId;

use super::*;
use crate::sample::{backup, catalog, id, lsn, time};

const DAY: i64 = 86_400;

/// Facts about a catalog, to be changed.
struct Bed {
    catalog: Catalog,
    policy: RetentionPolicy,
    pins: BTreeMap<BackupId, Pin>,
    proven: BTreeSet<BackupId>,
    damaged: BTreeSet<BackupId>,
    open: Vec<OpenBackup>,
    now: Timestamp,
    store_now: Option<Timestamp>,
}

impl Bed {
    /// One backup a day on timeline 1, each in two segments, ending in segments 2, 12, 22 and so on, with all WAL.
    fn daily(backups: u32) -> Self {
        let last = u64::from(backups) * 10 + 5;
        let numbers: Vec<u64> = (1..=last).collect();
        let mut catalog = catalog(&[(1, &numbers)], &[]);
        for number in 1..=backups {
            let start = u64::from(number - 1) * 1000 + 150;
            let mut record = backup(number, 1, start, start + 100);
            record.stopped_at = time(i64::from(number) * DAY);
            catalog.backups.push(record);
        }
        Self {
            catalog,
            policy: RetentionPolicy::default(),
            pins: BTreeMap::new(),
            proven: BTreeSet::new(),
            damaged: BTreeSet::new(),
            open: Vec::new(),
            now: time(i64::from(backups) * DAY + 3600),
            store_now: None,
        }
    }

    fn plan(&self) -> Result<ExpirePlan, CannotExpire> {
        ExpirePlan::build(&ExpireFacts {
            catalog: &self.catalog,
            policy: &self.policy,
            pins: &self.pins,
            proven: &self.proven,
            damaged: &self.damaged,
            open: &self.open,
            now: self.now,
            store_now: self.store_now.unwrap_or(self.now),
            abandoned_after: SignedDuration::from_hours(24),
        })
    }

    /// What stays, each with its reasons; `!` where it promises itself alone.
    fn kept(&self) -> Vec<String> {
        let plan = self.plan().expect("a plan");
        let shown = plan.kept.iter().map(|kept| {
            let words: Vec<_> = kept.reasons.iter().map(|reason| reason.word()).collect();
            let number = (1..100).find(|number| id(*number) == kept.backup);
            let alone = if kept.promises_window() { "" } else { "!" };
            format!("{}{alone} {}", number.unwrap_or(0), words.join(","))
        });
        shown.collect()
    }

    fn removed_wal(&self) -> Vec<(u32, u64, u64)> {
        let plan = self.plan().expect("a plan");
        let ranges = plan.wal.iter();
        ranges
            .map(|range| (range.timeline.0, range.first, range.last))
            .collect()
    }
}

#[test]
fn nothing_goes_where_nothing_is_configured() {
    let mut bed = Bed::daily(3);
    assert_eq!(bed.plan(), Err(CannotExpire::NoPolicy));
    bed.policy.minimum = 2;
    assert_eq!(
        bed.plan(),
        Err(CannotExpire::NoPolicy),
        "a minimum alone does not say that the rest may go"
    );
}

#[test]
fn by_count_the_newest_stay_with_all_wal_from_the_oldest_of_them_on() {
    let mut bed = Bed::daily(4);
    bed.policy.full = Some(2);
    assert_eq!(bed.kept(), ["3 full", "4 minimum,full"]);
    assert_eq!(bed.removed_wal(), [(1, 1, 20)]);
    let plan = bed.plan().unwrap();
    assert_eq!(plan.removed, [id(1), id(2)]);
    assert_eq!(plan.wal_bytes, 20 * 1000);
    assert_eq!(plan.kept_wal.floor(), 21);
}

#[test]
fn a_window_begins_in_a_backup_before_it() {
    let mut bed = Bed::daily(5);
    bed.policy.window = Some(SignedDuration::from_hours(24) * 2);
    assert_eq!(
        bed.kept(),
        ["3 window-start", "4 window", "5 minimum,window"],
        "the window begins as the third ends"
    );
    bed.policy.window = Some(SignedDuration::from_hours(36));
    assert_eq!(
        bed.kept(),
        ["3 window-start", "4 window", "5 minimum,window"]
    );
    bed.policy.window = Some(SignedDuration::from_hours(24 * 30));
    assert_eq!(bed.plan().unwrap().removed, []);
    assert_eq!(bed.removed_wal(), []);
}

#[test]
fn days_count_back_from_the_newest_backup() {
    let mut bed = Bed::daily(5);
    bed.policy.days = Some(2);
    assert_eq!(bed.kept(), ["3 days", "4 days", "5 minimum,days"]);
    bed.now = time(400 * DAY);
    assert_eq!(
        bed.kept(),
        ["3 days", "4 days", "5 minimum,days"],
        "where backups have stopped, nothing grows old"
    );
}

#[test]
fn the_last_of_a_period_stays_and_promises_itself_alone() {
    let mut bed = Bed::daily(40);
    // They ended at noon, the first on Monday, 2026-11-23, the last on 2027-01-01.
    bed.policy.daily = Some(2);
    bed.policy.weekly = Some(3);
    bed.policy.monthly = Some(3);
    bed.policy.yearly = Some(2);
    assert_eq!(
        bed.kept(),
        [
            "8! monthly",
            "28! weekly",
            "35! weekly",
            "39! daily,monthly,yearly",
            "40 minimum,daily,weekly,monthly,yearly",
        ]
    );
    let wal = bed.removed_wal();
    assert_eq!(
        wal,
        [
            (1, 1, 70),
            (1, 73, 270),
            (1, 273, 340),
            (1, 343, 380),
            (1, 383, 390)
        ],
        "of each single backup the segments stay that it needs"
    );
}

#[test]
fn pins_hold_until_their_time() {
    let mut bed = Bed::daily(4);
    bed.policy.full = Some(1);
    bed.pins.insert(id(1), Pin::Forever);
    bed.pins.insert(id(2), Pin::Until(time(4 * DAY + 1)));
    bed.pins.insert(id(3), Pin::Until(time(4 * DAY)));
    assert_eq!(bed.kept(), ["1! pinned", "2! pinned", "4 minimum,full"]);
    bed.now = time(9999 * DAY);
    assert_eq!(
        bed.kept(),
        ["1! pinned", "2! pinned", "4 minimum,full"],
        "a clock that runs ahead takes no pin out"
    );
}

#[test]
fn what_is_not_good_counts_for_nothing_and_goes_with_what_is_older() {
    let mut bed = Bed::daily(5);
    bed.policy.full = Some(2);
    bed.damaged.insert(id(5));
    bed.catalog
        .missing_packs
        .insert(id(3), vec!["a pack".to_owned()]);
    bed.catalog
        .missing_packs
        .insert(id(1), vec!["a pack".to_owned()]);
    assert_eq!(
        bed.kept(),
        ["2 full", "3 within", "4 minimum,full", "5 within"]
    );
    for number in [2, 4] {
        bed.damaged.insert(id(number));
    }
    assert_eq!(bed.plan(), Err(CannotExpire::NoGoodBackup(5)));
}

#[test]
fn a_backup_without_its_wal_is_not_good() {
    let mut bed = Bed::daily(3);
    bed.policy.full = Some(1);
    let wal = bed.catalog.wal.values_mut().next().unwrap();
    wal.segments.remove(&21);
    assert_eq!(bed.kept(), ["2 minimum,full", "3 within"]);
}

#[test]
fn the_newest_proven_backup_stays_until_a_newer_one_is_proven() {
    let mut bed = Bed::daily(4);
    bed.policy.full = Some(2);
    bed.proven.extend([id(1), id(2)]);
    assert_eq!(bed.kept(), ["2! proven", "3 full", "4 minimum,full"]);
    bed.proven.insert(id(3));
    assert_eq!(bed.kept(), ["3 full", "4 minimum,full"]);
}

#[test]
fn a_clock_that_jumped_removes_no_more() {
    let days = |bed: &mut Bed| bed.policy.days = Some(2);
    let mut back = Bed::daily(6);
    days(&mut back);
    let right = back.plan().unwrap().removed;
    assert_eq!(right, [id(1), id(2), id(3)]);
    // The fifth's server thought that it was years ago.
    back.catalog.backups[4].stopped_at = time(-1000 * DAY);
    assert_eq!(back.plan().unwrap().removed, []);
    let mut newest = Bed::daily(6);
    days(&mut newest);
    newest.catalog.backups[5].stopped_at = time(-1000 * DAY);
    assert_eq!(newest.plan().unwrap().removed, []);
    // The second's was years ahead.
    let mut ahead = Bed::daily(6);
    days(&mut ahead);
    ahead.catalog.backups[1].stopped_at = time(1000 * DAY);
    assert_eq!(ahead.plan().unwrap().removed, [id(1)]);
    // Nor does it take a day's place.
    ahead.policy = RetentionPolicy {
        daily: Some(2),
        ..RetentionPolicy::default()
    };
    assert_eq!(ahead.kept(), ["2! future", "5! daily", "6 minimum,daily"]);
    // This machine's.
    for now in [-5000, 5000] {
        let mut here = Bed::daily(6);
        days(&mut here);
        here.now = time(now * DAY);
        let removed = here.plan().unwrap().removed;
        assert!(
            removed.iter().all(|id| right.contains(id)),
            "now {now}: {removed:?}"
        );
    }
}

#[test]
fn another_timelines_backups_stay_until_the_newer_has_passed_them() {
    // Recovery went back to segment 15; timeline 1's second to fourth backup were left behind.
    let mut bed = Bed::daily(4);
    let fork = 1500;
    let forked = catalog(&[(2, &(15..=60).collect::<Vec<_>>())], &[(2, 1, fork)]);
    bed.catalog.histories = forked.histories;
    bed.catalog.wal.extend(forked.wal);
    bed.policy.full = Some(1);
    bed.catalog
        .newest_archived_at
        .insert(TimelineId(1), time(4 * DAY + 60));
    assert_eq!(
        bed.kept(),
        ["2 minimum,full", "3 younger", "4 minimum,full"],
        "only the second leads to timeline 2"
    );
    let mut later = |number: u32, start: u64, day: i64| {
        let mut record = backup(number, 2, start, start + 100);
        record.stopped_at = time(day * DAY);
        bed.catalog.backups.push(record);
    };
    later(5, 1650, 5);
    bed.now = time(9 * DAY);
    assert_eq!(
        bed.kept(),
        ["3 within", "4 minimum,full", "5 minimum,full"],
        "timeline 1 may live on; by LSN the third begins behind the fifth"
    );
    assert_eq!(bed.removed_wal(), [(1, 1, 15), (2, 15, 15)]);
    let mut later = |number: u32, start: u64, day: i64| {
        let mut record = backup(number, 2, start, start + 100);
        record.stopped_at = time(day * DAY);
        bed.catalog.backups.push(record);
    };
    later(6, 4050, 8);
    assert_eq!(bed.kept(), ["6 minimum,full"]);
    // If timeline 1 lives on, its backups are younger.
    bed.catalog.backups[3].stopped_at = time(9 * DAY);
    assert_eq!(bed.kept(), ["4 younger", "6 minimum,full"]);
    assert_eq!(bed.plan().unwrap().kept_wal.floor(), 31);
}

#[test]
fn a_window_reaches_back_along_each_timeline_that_has_moments_in_it() {
    let mut bed = Bed::daily(2);
    let forked = catalog(&[(2, &(15..=60).collect::<Vec<_>>())], &[(2, 1, 1500)]);
    bed.catalog.histories = forked.histories;
    bed.catalog.wal.extend(forked.wal);
    for (number, start, day) in [(3, 2650, 3), (4, 3650, 9)] {
        let mut record = backup(number, 2, start, start + 100);
        record.stopped_at = time(day * DAY);
        bed.catalog.backups.push(record);
    }
    bed.now = time(9 * DAY);
    bed.policy.window = Some(SignedDuration::from_hours(24 * 5));
    bed.catalog.newest_archived_at = [
        (TimelineId(1), time(3 * DAY - 1)),
        (TimelineId(2), time(9 * DAY)),
    ]
    .into();
    assert_eq!(bed.kept(), ["3 window-start", "4 minimum,window"]);
    bed.catalog
        .newest_archived_at
        .insert(TimelineId(1), time(5 * DAY));
    assert_eq!(
        bed.kept(),
        [
            "2 minimum,window-start",
            "3 window-start",
            "4 minimum,window"
        ],
        "timeline 1 has moments in the window, which only its second backup reaches"
    );
}

#[test]
fn nothing_goes_while_the_origin_of_a_timeline_with_wal_is_unknown() {
    let mut bed = Bed::daily(3);
    bed.policy.full = Some(1);
    bed.catalog.backups.push(backup(9, 7, 310, 350));
    assert_eq!(
        bed.kept(),
        ["3 minimum,full", "9! unknown-timeline"],
        "without WAL it needs nothing of others"
    );
    let forked = catalog(&[(7, &[3, 4])], &[(7, 1, 300)]);
    bed.catalog.wal.extend(forked.wal);
    let refused = bed.plan().unwrap_err();
    assert!(
        matches!(&refused, CannotExpire::UnknownOrigin { timeline: TimelineId(7), key } if key.contains("00000007.history")),
        "{refused}"
    );
    bed.catalog.histories = forked.histories;
    bed.plan().expect("its history file is there");
    bed.catalog.disputed_histories.insert(TimelineId(7));
    assert_eq!(
        bed.plan(),
        Err(refused),
        "nobody knows which of two is right"
    );
}

#[test]
fn a_conflict_that_can_be_settled_takes_no_backup() {
    let mut bed = Bed::daily(4);
    bed.policy.full = Some(2);
    let wal = bed.catalog.wal.get_mut(&TimelineId(1)).unwrap();
    wal.conflicts.extend([1, 31]);
    // Verify calls it lost meanwhile.
    bed.damaged.insert(id(4));
    assert_eq!(
        bed.kept(),
        [
            "1! undecided",
            "2 full",
            "3 minimum,full",
            "4 within,undecided"
        ]
    );
    assert_eq!(bed.removed_wal(), [(1, 3, 10)], "it keeps what it needs");
    let wal = bed.catalog.wal.get_mut(&TimelineId(1)).unwrap();
    wal.segments.remove(&2);
    assert_eq!(
        bed.plan().unwrap().removed,
        [id(1)],
        "what lacks WAL besides cannot be settled"
    );
}

#[test]
fn a_promoted_clone_takes_nothing_from_the_timeline_that_lives_on() {
    let mut bed = Bed::daily(4);
    let forked = catalog(&[(2, &(15..=90).collect::<Vec<_>>())], &[(2, 1, 1500)]);
    bed.catalog.histories = forked.histories;
    bed.catalog.wal.extend(forked.wal);
    for (number, day) in [(5, 5), (6, 6), (7, 7)] {
        let start = u64::from(number) * 1000 + 50;
        let mut record = backup(number, 2, start, start + 100);
        record.stopped_at = time(day * DAY);
        bed.catalog.backups.push(record);
    }
    bed.now = time(8 * DAY);
    bed.policy.full = Some(2);
    let archived = &mut bed.catalog.newest_archived_at;
    archived.insert(TimelineId(1), time(6 * DAY));
    archived.insert(TimelineId(2), time(7 * DAY));
    assert_eq!(
        bed.kept(),
        [
            "3 full",
            "4 minimum,full",
            "5 younger",
            "6 full",
            "7 minimum,full"
        ],
        "something was archived on timeline 1 since the fifth"
    );
    assert_eq!(bed.plan().unwrap().kept_wal.floor(), 21);
    bed.catalog
        .newest_archived_at
        .insert(TimelineId(1), time(5 * DAY - 1));
    assert_eq!(
        bed.kept(),
        ["6 full", "7 minimum,full"],
        "what a failover left behind goes in the end"
    );
}

#[test]
fn what_is_archived_after_the_plan_stays() {
    let mut bed = Bed::daily(4);
    bed.catalog
        .wal
        .extend(catalog(&[(2, &[3, 4])], &[(2, 1, 300)]).wal);
    let mut kept = KeptWal::new(31, &bed.catalog);
    kept.keep(&bed.catalog.backups[0]);
    assert!(!kept.keeps(TimelineId(1), 5) && !kept.keeps(TimelineId(2), 4));
    assert!(kept.keeps(TimelineId(2), 5), "behind what the plan knew");
    assert!(
        kept.keeps(TimelineId(3), 3),
        "of a timeline that had none yet"
    );
    let block = crate::rollup::Block {
        level: crate::rollup::Level::One,
        timeline: TimelineId(3),
        first: 0,
    };
    assert!(kept.keeps_all(&block), "its roll-ups, too");
}

#[test]
fn another_runs_word_takes_nothing_from_a_backup_that_stays() {
    let mut bed = Bed::daily(3);
    // The first is in no plan: somebody told that it goes, and did not live to spare it.
    bed.catalog.backups[0].packs[0].backup = id(8);
    let going = [id(2)].into();
    let planned = KeptWal::new(21, &bed.catalog);
    let staying = Staying::new(
        &planned,
        &bed.catalog.backups,
        &going,
        &[],
        bed.catalog.segment_size,
    );
    assert!(staying.packs.needs(&id(8), 0) && !staying.packs.needs(&id(2), 0));
    assert!(staying.wal.keeps(TimelineId(1), 2) && !staying.wal.keeps(TimelineId(1), 12));
}

#[test]
fn a_date_in_the_future_closes_no_running_backup() {
    let mut bed = Bed::daily(2);
    bed.policy.full = Some(1);
    bed.open.push(OpenBackup {
        id: id(7),
        newest: bed.now - SignedDuration::from_secs(10),
        wal_from: None,
        parents: Some(Vec::new()),
    });
    bed.store_now = Some(bed.now + SignedDuration::from_hours(1000));
    assert_eq!(bed.plan().unwrap().abandoned, []);
    bed.store_now = Some(bed.now);
    bed.now += SignedDuration::from_hours(1000);
    assert_eq!(
        bed.plan().unwrap().abandoned,
        [],
        "nor does this machine's clock"
    );
}

#[test]
fn running_backups_hold_wal_and_abandoned_ones_do_not() {
    let mut bed = Bed::daily(3);
    bed.policy.full = Some(1);
    let open = |number: u32, age: i64, wal_from| OpenBackup {
        id: id(number),
        newest: bed.now - SignedDuration::from_secs(age),
        wal_from,
        parents: Some(Vec::new()),
    };
    let running = open(7, DAY, Some(lsn(1510)));
    let silent = open(8, 10, None);
    let dead = open(9, DAY + 1, None);
    bed.open = vec![running.clone(), dead.clone()];
    let plan = bed.plan().unwrap();
    assert_eq!((plan.running, plan.abandoned), (vec![id(7)], vec![id(9)]));
    assert_eq!(bed.removed_wal(), [(1, 1, 14)]);
    bed.open.push(silent);
    assert_eq!(
        bed.removed_wal(),
        [],
        "nobody knows which WAL a backup needs that does not say"
    );
    assert_eq!(bed.plan().unwrap().removed, [id(1), id(2)]);
}

#[test]
fn roll_ups_stay_where_all_their_segments_do() {
    let mut kept = KeptWal::new(512, &catalog(&[(1, &[511])], &[]));
    kept.keep(&backup(1, 1, 300, 350));
    let block = |level, first| crate::rollup::Block {
        level,
        timeline: TimelineId(1),
        first,
    };
    use crate::rollup::Level::{One, Two};
    assert!(kept.keeps_all(&block(One, 512)));
    assert!(!kept.keeps_all(&block(One, 256)));
    assert!(!kept.keeps_all(&block(One, 0)), "3 stays, 4 does not");
    assert!(!kept.keeps_all(&block(Two, 0)));
    assert!(kept.keeps(TimelineId(1), 3) && !kept.keeps(TimelineId(1), 4));
}

#[test]
fn packs_stay_that_another_backup_names_or_may_name() {
    let mut record = backup(2, 1, 250, 350);
    record.packs[0].backup = id(1);
    record.packs[0].number = 4;
    let running = OpenBackup {
        id: id(5),
        newest: time(0),
        wal_from: None,
        parents: Some(vec![id(3)]),
    };
    let needed = NeededPacks::of([&record], [&running]);
    assert!(needed.needs(&id(1), 4) && !needed.needs(&id(1), 3));
    assert!(needed.needs(&id(3), 0) && needed.needs(&id(5), 0) && !needed.needs(&id(2), 0));
    let unreadable = OpenBackup {
        parents: None,
        ..running
    };
    assert!(
        NeededPacks::of([], [&unreadable]).needs(&id(9), 9),
        "nobody knows on what it leans"
    );
}
