//! Plans against PostgreSQL's own way of reading, played through byte by byte before and after on small random archives.

use proptest::prelude::*;
use walden_pg::{Lsn, TimelineId};

use super::*;
use crate::plan_oracle::{LOG, archives, own_wal, recover};
use crate::records::BackupRecord;
use crate::sample::{lsn, time};

prop_compose! {
    fn policies()(
        full in prop::option::of(1_u32..4),
        days in prop::option::of(1_u32..3),
        window in prop::option::of(1_i64..900),
        daily in prop::option::of(1_u32..3),
        minimum in 1_u32..3,
    ) -> RetentionPolicy {
        RetentionPolicy {
            full, days, daily, minimum,
            window: window.map(SignedDuration::from_secs),
            ..RetentionPolicy::default()
        }
    }
}

/// Archives whose moments have the times that their LSNs say.
fn timed(mut catalog: Catalog) -> Catalog {
    for (timeline, wal) in &catalog.wal {
        if let Some(last) = wal.last() {
            let at = i64::try_from((last + 1) * 100).unwrap();
            catalog.newest_archived_at.insert(*timeline, time(at));
        }
    }
    catalog
}

fn build(
    catalog: &Catalog,
    policy: &RetentionPolicy,
    pinned: &BTreeSet<BackupId>,
    now: Timestamp,
) -> Result<ExpirePlan, CannotExpire> {
    ExpirePlan::build(&ExpireFacts {
        catalog,
        policy,
        pins: &pinned.iter().map(|id| (id.clone(), Pin::Forever)).collect(),
        proven: &BTreeSet::new(),
        damaged: &BTreeSet::new(),
        open: &[],
        now,
        store_now: now,
        abandoned_after: SignedDuration::from_hours(24),
    })
}

fn carried_out(catalog: &Catalog, plan: &ExpirePlan) -> Catalog {
    let mut left = catalog.clone();
    left.backups
        .retain(|record| !plan.removed.contains(&record.backup_id));
    for range in &plan.wal {
        let wal = left.wal.get_mut(&range.timeline).unwrap();
        for number in range.first..=range.last {
            assert!(
                wal.segments.remove(&number).is_some(),
                "only what is there goes"
            );
            wal.conflicts.remove(&number);
        }
    }
    left
}

fn reaches(catalog: &Catalog, timeline: TimelineId, record: &BackupRecord, at: Lsn) -> bool {
    !catalog.missing_packs.contains_key(&record.backup_id)
        && record.stop_lsn <= at
        && own_wal(catalog, timeline, record)
        && recover(catalog, timeline, record.start_lsn, at).is_some()
}

fn restorable(catalog: &Catalog, timeline: TimelineId, at: Lsn) -> bool {
    catalog
        .backups
        .iter()
        .any(|record| reaches(catalog, timeline, record, at))
}

/// Every tenth of a segment.
fn moments() -> impl Iterator<Item = u64> {
    (0..LOG + 600).step_by(10)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    #[test]
    fn every_promise_is_kept(
        catalog in archives(),
        policy in policies(),
        pinned in prop::collection::btree_set(0_u32..7, 0..3),
        ahead in -2000_i64..4000,
    ) {
        let catalog = timed(catalog);
        let pinned: BTreeSet<BackupId> = pinned.into_iter().map(crate::sample::id).collect();
        // After everything here.
        let now = time(100_000 + ahead);
        let Ok(plan) = build(&catalog, &policy, &pinned, now) else {
            return Ok(());
        };
        let left = carried_out(&catalog, &plan);
        let timelines = catalog.timelines();

        for kept in &plan.kept {
            let record = catalog.backup(&kept.backup).unwrap();
            for timeline in &timelines {
                prop_assert_eq!(
                    own_wal(&catalog, *timeline, record),
                    own_wal(&left, *timeline, record),
                    "{} along {}: its own WAL stays", kept.backup, timeline
                );
                for at in moments().filter(|_| kept.promises_window()) {
                    prop_assert_eq!(
                        reaches(&catalog, *timeline, record, lsn(at)),
                        reaches(&left, *timeline, record, lsn(at)),
                        "from {} along {} to {}", kept.backup, timeline, lsn(at)
                    );
                }
            }
        }
        let good: Vec<&BackupRecord> = catalog
            .ordered_backups()
            .into_iter()
            .filter(|record| timelines.iter().any(|timeline| {
                !catalog.missing_packs.contains_key(&record.backup_id) && own_wal(&catalog, *timeline, record)
            }))
            .collect();
        let count = policy.minimum.max(policy.full.unwrap_or(0)) as usize;
        for newest in good.iter().rev().take(count) {
            prop_assert!(left.backup(&newest.backup_id).is_some(), "{} is one of the newest {count}", newest.backup_id);
        }
        for id in pinned.iter().filter(|id| catalog.backup(id).is_some()) {
            prop_assert!(left.backup(id).is_some(), "{id} is pinned");
        }
        if let (Some(window), Some(newest)) = (policy.window, good.last()) {
            let begins = newest.stopped_at.min(now) - window;
            for timeline in &timelines {
                for at in moments().filter(|at| time(i64::try_from(*at).unwrap()) > begins) {
                    prop_assert!(
                        restorable(&left, *timeline, lsn(at)) || !restorable(&catalog, *timeline, lsn(at)),
                        "{} along {} is in the window", lsn(at), timeline
                    );
                }
            }
        }
        let again = build(&left, &policy, &pinned, now).unwrap();
        prop_assert_eq!((&again.removed, &again.wal), (&vec![], &vec![]), "once is enough");
        for wrong in [time(-1_000_000), time(400), time(1_000_000_000)] {
            let wrongly = build(&catalog, &policy, &pinned, wrong).unwrap();
            prop_assert!(
                wrongly.removed.iter().all(|id| plan.removed.contains(id)),
                "with the clock at {wrong} {:?} goes, with the right one {:?}", wrongly.removed, plan.removed
            );
        }
    }
}
