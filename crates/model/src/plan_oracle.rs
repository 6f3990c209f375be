//! The planner against PostgreSQL's own way of reading, played through byte by byte on small random archives.

use std::collections::BTreeSet;

use proptest::prelude::*;
use walden_pg::{Lsn, TimelineId};

use crate::catalog::Catalog;
use crate::note::Note;
use crate::plan::{PlanOptions, RecoveryPlan};
use crate::records::{BackupRecord, WalRange};
use crate::sample::{SEGMENT, backup, catalog, lsn, time};
use crate::target::{RecoveryTarget, TargetKind, TargetTimeline};
use crate::unreachable::{Offer, Unreachable};

/// Whose bytes stand at an LSN in the log of `timeline`: read straight from its history file.
fn owner(catalog: &Catalog, timeline: TimelineId, at: Lsn) -> TimelineId {
    let entries = catalog
        .histories
        .get(&timeline)
        .map_or(&[][..], |history| &history.entries);
    entries
        .iter()
        .find(|entry| at < entry.switch)
        .map_or(timeline, |entry| entry.timeline)
}

/// The timelines PostgreSQL asks for, newest first, each with the number of the segment in which it begins.
fn asked_for(catalog: &Catalog, timeline: TimelineId) -> Vec<(TimelineId, u64)> {
    let entries = catalog
        .histories
        .get(&timeline)
        .map_or(&[][..], |history| &history.entries);
    let mut begin = 0;
    let mut asked = Vec::new();
    for entry in entries {
        asked.push((entry.timeline, begin));
        begin = entry.switch.0 / SEGMENT;
    }
    asked.push((timeline, begin));
    asked.reverse();
    asked
}

/// Recovery along `timeline` from this LSN up to and with the byte `until`: the segments it reads, or `None` where it is stopped or led
/// into another history.
pub(crate) fn recover(
    catalog: &Catalog,
    timeline: TimelineId,
    from: Lsn,
    until: Lsn,
) -> Option<Vec<(TimelineId, u64)>> {
    let has = |timeline: &TimelineId, number: u64| {
        catalog
            .wal
            .get(timeline)
            .is_some_and(|wal| wal.segments.contains_key(&number))
    };
    let in_conflict = |timeline: &TimelineId, number: u64| {
        catalog
            .wal
            .get(timeline)
            .is_some_and(|wal| wal.conflicts.contains(&number))
    };
    let has_later = |timeline: &TimelineId, number: u64| {
        catalog
            .wal
            .get(timeline)
            .is_some_and(|wal| wal.segments.keys().any(|other| *other > number))
    };
    let mut read = Vec::new();
    for number in from.0 / SEGMENT..=until.0 / SEGMENT {
        let mut found = None;
        for (asked, begin) in asked_for(catalog, timeline) {
            if begin > number {
                continue;
            }
            if in_conflict(&asked, number) {
                return None; // It would read another server's WAL.
            }
            if has(&asked, number) {
                found = Some(asked);
                break;
            }
            if has_later(&asked, number) {
                return None; // walden-wal-fetch reports a hole, and the server stops.
            }
        }
        let found = found?;
        let forks = catalog
            .histories
            .values()
            .flat_map(|history| &history.entries)
            .map(|entry| entry.switch);
        for at in forks.chain([Lsn(number * SEGMENT)]) {
            if at.0 / SEGMENT == number
                && at <= until
                && owner(catalog, found, at) != owner(catalog, timeline, at)
            {
                return None;
            }
        }
        read.push((found, number));
    }
    Some(read)
}

fn on_the_way(catalog: &Catalog, timeline: TimelineId, record: &BackupRecord) -> bool {
    owner(catalog, timeline, Lsn(record.stop_lsn.0 - 1)) == record.timeline
}

pub(crate) fn own_wal(catalog: &Catalog, timeline: TimelineId, record: &BackupRecord) -> bool {
    on_the_way(catalog, timeline, record)
        && recover(
            catalog,
            timeline,
            record.start_lsn,
            Lsn(record.stop_lsn.0 - 1),
        )
        .is_some()
}

fn has_wal(catalog: &Catalog, timeline: TimelineId) -> bool {
    catalog
        .wal
        .get(&timeline)
        .is_some_and(|wal| !wal.segments.is_empty())
}

/// The newest timeline with WAL that a backup leads to, else the newest of a backup.
fn newest(catalog: &Catalog) -> Option<TimelineId> {
    let own: BTreeSet<TimelineId> = catalog
        .backups
        .iter()
        .map(|record| record.timeline)
        .collect();
    let led_to = catalog
        .histories
        .keys()
        .filter(|timeline| has_wal(catalog, **timeline))
        .filter(|timeline| {
            catalog
                .backups
                .iter()
                .any(|record| on_the_way(catalog, **timeline, record))
        });
    led_to.copied().chain(own).max()
}

/// The last byte that recovery along this timeline can end with.
fn end(catalog: &Catalog, timeline: TimelineId) -> Option<Lsn> {
    let last = *catalog.wal.get(&timeline)?.segments.keys().max()?;
    Some(Lsn((last + 1) * SEGMENT - 1))
}

/// Hundredths of a segment.
pub(crate) const LOG: u64 = 900;

prop_compose! {
    /// Up to four timelines that fork anywhere, with segments missing here and there, and up to five backups.
    pub(crate) fn archives()(
        forks in proptest::collection::vec((any::<prop::sample::Index>(), 1..LOG - 100, any::<bool>()), 0..4),
        ends in proptest::collection::vec(prop_oneof![1 => 0_u64..4, 4 => 3_u64..12], 4),
        holes in proptest::collection::vec((0_u32..4, 0_u64..9), 0..4),
        conflicts in proptest::collection::vec((0_u32..4, 0_u64..14), 0..3),
        backups in proptest::collection::vec((any::<prop::sample::Index>(), 0..LOG - 20, 1_u64..150, any::<bool>()), 0..7),
    ) -> Catalog {
        let mut begins = vec![0];
        let mut tree = Vec::new();
        for (number, (parent, at, on_the_edge)) in forks.into_iter().enumerate() {
            let parent = parent.index(begins.len());
            let at = (begins[parent] + 1).max(if on_the_edge { at.div_ceil(100) * 100 } else { at });
            begins.push(at);
            tree.push((u32::try_from(number).unwrap() + 2, u32::try_from(parent).unwrap() + 1, at));
        }
        let mut wal = Vec::new();
        for (number, begin) in begins.iter().enumerate() {
            let timeline = u32::try_from(number).unwrap() + 1;
            let length = ends.get(number).copied().unwrap_or(3);
            let segments: Vec<u64> = (begin / 100..begin / 100 + length)
                .filter(|segment| !holes.contains(&(timeline - 1, *segment)))
                .collect();
            wal.push((timeline, segments));
        }
        let borrowed: Vec<(u32, &[u64])> = wal.iter().map(|(timeline, segments)| (*timeline, segments.as_slice())).collect();
        let mut catalog = catalog(&borrowed, &tree);
        for (timeline, segment) in conflicts {
            let wal = catalog.wal.get_mut(&TimelineId(timeline + 1));
            if let Some(wal) = wal.filter(|wal| wal.segments.contains_key(&segment)) {
                wal.conflicts.insert(segment);
            }
        }
        for (number, (which, at, length, broken)) in (1_u32..).zip(backups) {
            let timeline = which.index(begins.len());
            let timeline_id = u32::try_from(timeline).unwrap() + 1;
            let stop = begins[timeline] + 1 + at % 250 + length;
            let start = stop - length;
            let mut record = backup(number, timeline_id, start, stop);
            // A backup that crossed its timeline's beginning began on an ancestor.
            record.wal_ranges = vec![];
            let mut ends = stop;
            for (own, begin) in asked_hundredths(&tree, timeline_id) {
                if begin < ends {
                    let from = begin.max(start);
                    record.wal_ranges.push(WalRange { timeline: TimelineId(own), start: lsn(from), end: lsn(ends) });
                    ends = from;
                }
                if ends <= start { break; }
            }
            if broken && number % 3 == 0 {
                catalog.missing_packs.insert(record.backup_id.clone(), vec!["main/1/backups/x/packs/00000000.zst".to_owned()]);
            }
            catalog.backups.push(record);
        }
        catalog
    }
}

/// An LSN anywhere, or at one of the places where a byte more or less decides.
fn place(catalog: &Catalog, at: u64, edge: Option<prop::sample::Index>) -> Lsn {
    let forks = catalog
        .histories
        .values()
        .flat_map(|history| &history.entries)
        .map(|entry| entry.switch);
    let edges: Vec<Lsn> = forks
        .chain(catalog.backups.iter().map(|record| record.stop_lsn))
        .collect();
    match edge {
        Some(edge) if !edges.is_empty() => Lsn((edge.get(&edges).0 + at % 3).saturating_sub(1)),
        _ => lsn(at),
    }
}

fn asked_hundredths(tree: &[(u32, u32, u64)], timeline: u32) -> Vec<(u32, u64)> {
    let mut ancestry = Vec::new();
    let mut now = timeline;
    while let Some((_, parent, at)) = tree.iter().find(|(own, ..)| *own == now) {
        ancestry.push((now, *at));
        now = *parent;
    }
    ancestry.push((1, 0));
    ancestry
}

fn plan(
    catalog: &Catalog,
    kind: TargetKind,
    timeline: TargetTimeline,
) -> Result<RecoveryPlan, Unreachable> {
    let target = RecoveryTarget {
        kind,
        timeline,
        ..RecoveryTarget::default()
    };
    RecoveryPlan::build(catalog, &target, &PlanOptions::default())
}

/// The plan's WAL, segment by segment.
fn segments(plan: &RecoveryPlan, catalog: &Catalog) -> Vec<(TimelineId, u64)> {
    let number = |name: walden_pg::SegmentName| name.number(catalog.segment_size).unwrap();
    let runs = plan.wal.iter();
    runs.flat_map(|run| (number(run.first)..=number(run.last)).map(|number| (run.timeline, number)))
        .collect()
}

fn restorable(catalog: &Catalog, timeline: TimelineId) -> impl Iterator<Item = &BackupRecord> {
    let sound = |record: &&BackupRecord| !catalog.missing_packs.contains_key(&record.backup_id);
    catalog
        .backups
        .iter()
        .filter(sound)
        .filter(move |record| own_wal(catalog, timeline, record))
}

/// What a refusal offers must be possible.
fn offer_holds(
    catalog: &Catalog,
    refusal: &Unreachable,
    timeline: TargetTimeline,
) -> Result<(), TestCaseError> {
    let (offer, timeline) = match refusal {
        Unreachable::BeyondEnd { nearest, .. } => (nearest.clone(), timeline),
        Unreachable::Gap(gap) => (gap.before.clone(), timeline),
        Unreachable::BeforeFirstBackup { earliest, .. } => {
            let backup = Some(earliest.id.clone());
            (
                Offer {
                    kind: TargetKind::Immediate,
                    backup,
                    timeline: None,
                },
                timeline,
            )
        }
        _ => return Ok(()),
    };
    let target = RecoveryTarget {
        kind: offer.kind,
        timeline: offer.timeline.map_or(timeline, TargetTimeline::Number),
        ..RecoveryTarget::default()
    };
    let options = PlanOptions {
        backup: offer.backup,
        ..PlanOptions::default()
    };
    let planned = RecoveryPlan::build(catalog, &target, &options);
    prop_assert!(
        planned.is_ok(),
        "{refusal}: but that is refused, too: {}",
        planned.unwrap_err()
    );
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(3000))]

    #[test]
    fn an_lsn_is_planned_exactly_where_postgresql_could_read_up_to_it(
        catalog in archives(),
        at in 0..LOG + 200,
        edge: Option<prop::sample::Index>,
        choose in proptest::option::of(1_u32..5),
    ) {
        let at = place(&catalog, at, edge);
        let timeline = choose.map_or(TargetTimeline::Latest, |number| TargetTimeline::Number(TimelineId(number)));
        let resolved = choose.map(TimelineId).or_else(|| newest(&catalog));
        let reachable_on = |timeline: TimelineId| {
            restorable(&catalog, timeline)
                .filter(|record| record.stop_lsn <= at)
                .filter(|record| recover(&catalog, timeline, record.start_lsn, at).is_some())
                .max_by_key(|record| (record.timeline, record.stop_lsn, &record.backup_id))
        };
        match plan(&catalog, TargetKind::Lsn(at), timeline) {
            Ok(plan) => {
                prop_assert_eq!(Some(plan.timeline), resolved);
                prop_assert_eq!(Some(&plan.backup), reachable_on(plan.timeline), "not the newest backup");
                let read = recover(&catalog, plan.timeline, plan.backup.start_lsn, at);
                prop_assert_eq!(Some(segments(&plan, &catalog)), read, "not the segments that PostgreSQL reads");
            }
            Err(refusal) => {
                let reachable = resolved.and_then(reachable_on);
                prop_assert!(reachable.is_none(), "{refusal}: but backup {:?} reaches it", reachable.map(|r| &r.backup_id));
                offer_holds(&catalog, &refusal, timeline)?;
                if let Unreachable::NotOnTimeline { reachable_on: offered, .. } = &refusal {
                    for timeline in offered {
                        prop_assert!(reachable_on(*timeline).is_some(), "{refusal}: but not on timeline {timeline}");
                    }
                }
            }
        }
    }

    #[test]
    fn the_latest_is_planned_exactly_where_the_archive_is_unbroken(catalog in archives()) {
        let resolved = newest(&catalog);
        let reaching = |timeline: TimelineId| {
            let end = end(&catalog, timeline)?;
            restorable(&catalog, timeline)
                .filter(|record| recover(&catalog, timeline, record.start_lsn, end).is_some())
                .max_by_key(|record| (record.timeline, record.stop_lsn, &record.backup_id))
        };
        match plan(&catalog, TargetKind::Latest, TargetTimeline::Latest) {
            Ok(plan) => {
                prop_assert_eq!(Some(plan.timeline), resolved);
                prop_assert_eq!(Some(&plan.backup), reaching(plan.timeline), "not the newest backup");
                let end = end(&catalog, plan.timeline).unwrap();
                let read = recover(&catalog, plan.timeline, plan.backup.start_lsn, end);
                prop_assert_eq!(Some(segments(&plan, &catalog)), read, "not the segments that PostgreSQL reads");
            }
            Err(refusal) => {
                prop_assert!(resolved.and_then(reaching).is_none(), "{refusal}: but there is a way");
                offer_holds(&catalog, &refusal, TargetTimeline::Latest)?;
            }
        }
    }

    #[test]
    fn immediate_takes_the_newest_backup_that_is_whole(catalog in archives()) {
        let whole = newest(&catalog).and_then(|timeline| {
            restorable(&catalog, timeline).max_by_key(|record| (record.timeline, record.stop_lsn, &record.backup_id))
        });
        match plan(&catalog, TargetKind::Immediate, TargetTimeline::Latest) {
            Ok(plan) => prop_assert_eq!(Some(&plan.backup), whole),
            Err(refusal) => prop_assert!(whole.is_none(), "{refusal}: but there is a whole backup"),
        }
    }

    #[test]
    fn a_time_is_planned_from_a_whole_backup_that_ended_before_it(catalog in archives(), seconds in 0_i64..1200) {
        let target = time(seconds);
        if let Ok(plan) = plan(&catalog, TargetKind::Time(target), TargetTimeline::Latest) {
            prop_assert!(plan.backup.stopped_at < target, "the backup ended after the target");
            let mut newer = restorable(&catalog, plan.timeline)
                .filter(|record| record.stopped_at < target && record.stop_lsn > plan.backup.stop_lsn);
            prop_assert_eq!(newer.next(), None, "a newer backup would do");
            let read = segments(&plan, &catalog);
            let (_, last) = *read.last().unwrap();
            let until = Lsn((last + 1) * SEGMENT - 1);
            let until = catalog
                .backups
                .iter()
                .filter(|record| record.stopped_at > target && on_the_way(&catalog, plan.timeline, record))
                .map(|record| Lsn(record.stop_lsn.0 - 1))
                .chain([until])
                .min()
                .unwrap();
            prop_assert_eq!(recover(&catalog, plan.timeline, plan.backup.start_lsn, until), Some(read));
            let told = plan.notes.iter().any(|note| matches!(note, Note::GapBehind(_)));
            let through = recover(&catalog, plan.timeline, plan.backup.start_lsn, end(&catalog, plan.timeline).unwrap());
            prop_assert_eq!(told, through.is_none(), "the server may have been idle up to the archive's end: {:?}", plan.notes);
        }
    }

    #[test]
    fn without_its_history_file_a_newer_timeline_is_never_passed_by(mut catalog in archives(), lost in 2_u32..5) {
        catalog.histories.remove(&TimelineId(lost));
        let resolved = newest(&catalog);
        let lost = TimelineId(lost);
        let guessed = resolved.is_some_and(|resolved| lost > resolved && has_wal(&catalog, lost));
        match plan(&catalog, TargetKind::Latest, TargetTimeline::Latest) {
            Ok(plan) => prop_assert!(!guessed, "timeline {lost} was passed by for {}", plan.timeline),
            Err(Unreachable::MissingHistory(missing)) => {
                prop_assert!(guessed || resolved == Some(missing.timeline), "refused without need: {missing}");
            }
            Err(other) => prop_assert!(!guessed, "{other}, but the way to timeline {lost} is unknown"),
        }
    }

    #[test]
    fn a_window_is_what_postgresql_could_read_from_the_backup(catalog in archives()) {
        for record in &catalog.backups {
            let window = catalog.window(record).unwrap();
            let reads = |until: Lsn| recover(&catalog, window.timeline, record.start_lsn, until).is_some();
            prop_assert_eq!(window.whole, own_wal(&catalog, window.timeline, record), "{:?}", window);
            if window.last_segment.is_some() {
                prop_assert!(reads(Lsn(window.until.0 - 1)), "{:?} ends too late", window);
            }
            if window.last_segment.is_some() || window.first_gap.is_some() {
                prop_assert!(!reads(Lsn(window.until.0 / SEGMENT * SEGMENT + SEGMENT - 1)), "{:?} ends too early", window);
            }
            let later = end(&catalog, window.timeline).is_some_and(|end| end >= window.until);
            prop_assert_eq!(window.first_gap.is_some(), later, "{:?}", window);
        }
    }
}

/// Guards the guards: archives that are all whole, or all hopeless, would prove nothing.
#[test]
fn the_random_archives_hold_every_kind_of_answer() {
    use proptest::strategy::ValueTree;
    let mut runner = proptest::test_runner::TestRunner::deterministic();
    let mut answers = std::collections::BTreeMap::<String, u32>::new();
    for _ in 0..2000 {
        let (catalog, at) = (archives(), 0..LOG + 200)
            .new_tree(&mut runner)
            .unwrap()
            .current();
        for kind in [
            TargetKind::Latest,
            TargetKind::Lsn(lsn(at)),
            TargetKind::Time(time(at as i64)),
        ] {
            let answer = match plan(&catalog, kind, TargetTimeline::Latest) {
                Ok(plan) if plan.wal.len() > 1 => "planned across a fork".to_owned(),
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
        "BeforeFirstBackup",
        "BeyondEnd",
        "Gap",
        "NotOnTimeline",
        "BackupCannotReach",
        "NoBackup",
    ] {
        assert!(
            answers.get(answer).is_some_and(|count| *count >= 20),
            "{answer} is too rare in {answers:?}"
        );
    }
}
