use proptest::prelude::*;

use super::*;
use crate::sample::{backup, broken, catalog, forked, id, size, whole};

fn shown(gaps: &Gaps) -> Vec<String> {
    let ids = |ids: &BTreeSet<BackupId>| {
        let number = |wanted: &BackupId| (1..9).find(|number| id(*number) == *wanted);
        ids.iter().filter_map(number).collect::<Vec<_>>()
    };
    gaps.gaps
        .iter()
        .map(|found| {
            let Affected { lost, shortened } = &found.affected;
            format!(
                "{}: {:?} lost, {:?} shortened",
                found.gap,
                ids(lost),
                ids(shortened)
            )
        })
        .collect()
}

#[test]
fn every_gap_behind_the_oldest_backup_is_found_and_names_whom_it_concerns() {
    assert_eq!(whole().gaps(), Gaps::default());
    assert_eq!(
        shown(&broken().gaps()),
        ["000000010000000000000007 to 000000010000000000000008: [] lost, [1, 2] shortened"]
    );
    let mut catalog = broken();
    for number in [2, 10] {
        catalog
            .wal
            .get_mut(&TimelineId(1))
            .unwrap()
            .segments
            .remove(&number);
    }
    assert_eq!(
        shown(&catalog.gaps()),
        [
            "000000010000000000000002: [1] lost, [] shortened",
            "000000010000000000000007 to 000000010000000000000008: [] lost, [1, 2] shortened",
            "00000001000000000000000A: [3] lost, [1, 2] shortened",
        ]
    );
}

#[test]
fn what_a_parent_lacks_below_a_fork_is_a_gap_of_the_child() {
    let mut catalog = forked();
    let parent = catalog.wal.get_mut(&TimelineId(1)).unwrap();
    parent.segments.retain(|number, _| *number < 4);
    catalog.backups.truncate(1);
    assert_eq!(
        shown(&catalog.gaps()),
        ["000000010000000000000004: [] lost, [1] shortened"]
    );
    catalog.histories.clear();
    assert_eq!(
        catalog.gaps().histories.len(),
        1,
        "nobody knows where timeline 2 comes from"
    );
}

#[test]
fn a_backup_whose_wal_ends_too_early_is_lost() {
    let mut catalog = catalog(&[(1, &[2])], &[]);
    catalog.backups = vec![backup(1, 1, 250, 350)];
    assert_eq!(
        shown(&catalog.gaps()),
        ["000000010000000000000003: [1] lost, [] shortened"]
    );
}

#[test]
fn a_damaged_segment_concerns_those_that_read_it() {
    let name = |timeline, number| SegmentName::from_number(TimelineId(timeline), number, size());
    let catalog = forked();
    let ids = |set: BTreeSet<BackupId>| set.into_iter().collect::<Vec<_>>();
    let affected = catalog.affected_by(name(1, 3));
    assert_eq!(ids(affected.lost), [id(1)]);
    let affected = catalog.affected_by(name(2, 6));
    assert_eq!(
        (ids(affected.lost), ids(affected.shortened)),
        (vec![], vec![id(1)])
    );
    assert_eq!(ids(catalog.affected_by(name(1, 6)).lost), [id(2)]);
}

#[test]
fn keys_are_what_the_format_says_and_the_rest_is_stray() {
    let keys = SystemKeys {
        cluster: "main".parse().unwrap(),
        system: SystemIdentifier(7),
    };
    let stored = |key: &str| keys.stored(&format!("main/7/{key}"), WalSegmentSize::DEFAULT);
    let id: BackupId = "20261122T175007Z-0badcafe".parse().unwrap();
    assert_eq!(
        stored(&format!("backups/{id}/packs/0000000a.zst")),
        Stored::Pack(id.clone(), 10)
    );
    assert_eq!(
        stored(&format!("backups/{id}/files/00000000.zst")),
        Stored::FileMap(id.clone(), 0)
    );
    assert_eq!(
        stored(&format!("backups/{id}/names/00000001.zst")),
        Stored::Names(id.clone(), 1)
    );
    assert_eq!(
        stored(&format!("backups/{id}/started.json")),
        Stored::Started(id.clone())
    );
    assert_eq!(
        stored(&format!("commits/{id}.json")),
        Stored::Commit(id.clone())
    );
    assert!(matches!(
        stored("wal/00000001.history.zst"),
        Stored::Wal(WalName::History(_))
    ));
    assert_eq!(
        stored("rollup/1/00000001/1/000000010000000000000000.zst"),
        Stored::RollUp
    );
    assert_eq!(stored("rollup/2/x"), Stored::Reserved);
    assert_eq!(stored("retired/x"), Stored::Reserved);
    for stray in [
        "wal/00000001/x.zst".to_owned(),
        "quarantine/x.zst".to_owned(),
        "x".to_owned(),
        "events/x.json".to_owned(),
        format!("backups/{id}/packs/0000000A.zst"),
        format!("backups/{id}/packs/a.zst"),
        format!("backups/{id}/x"),
    ] {
        assert_eq!(stored(&stray), Stored::Stray, "{stray}");
    }
}

#[test]
fn findings_are_counted_and_the_worst_stands_first() {
    let mut findings = Findings::default();
    assert_eq!(findings.worst(), None);
    for kind in [
        FindingKind::Stray,
        FindingKind::SegmentsMissing,
        FindingKind::PackDamaged,
    ] {
        findings.add(Finding {
            kind,
            system: None,
            subject: "x".to_owned(),
            what: String::new(),
            affected: Affected::default(),
            remedy: String::new(),
        });
    }
    let kinds: Vec<_> = findings
        .sorted()
        .into_iter()
        .map(|finding| finding.kind.id())
        .collect();
    assert_eq!(kinds, ["pack-damaged", "segments-missing", "stray"]);
    assert_eq!(findings.worst(), Some(Severity::Damage));
    let ids: BTreeSet<_> = FindingKind::ALL.iter().map(|kind| kind.id()).collect();
    assert_eq!(
        ids.len(),
        FindingKind::ALL.len(),
        "every kind has a text of its own"
    );
}

proptest! {
    #[test]
    fn a_backup_is_lost_or_shortened_where_its_window_says_so(
        first in prop::collection::btree_set(1_u64..14, 0..14),
        second in prop::collection::btree_set(5_u64..14, 0..9),
    ) {
        let first: Vec<u64> = first.into_iter().collect();
        let second: Vec<u64> = second.into_iter().collect();
        let mut catalog = catalog(&[(1, &first), (2, &second)], &[(2, 1, 550)]);
        catalog.backups = vec![backup(1, 1, 250, 350), backup(2, 1, 610, 650), backup(3, 2, 750, 850)];
        let gaps = catalog.gaps();
        for record in &catalog.backups {
            let window = catalog.window(record).unwrap();
            let id = &record.backup_id;
            let own = catalog.path(record.timeline).unwrap().missing_for(record).is_some();
            let lost = gaps.gaps.iter().any(|found| found.affected.lost.contains(id));
            prop_assert!(lost || !own, "{} lacks WAL of its own", id);
            if let Some(gap) = window.first_gap {
                let named = gaps.gaps.iter().any(|found| {
                    found.gap.first <= gap.last && gap.first <= found.gap.last
                        && (found.affected.lost.contains(id) || found.affected.shortened.contains(id))
                });
                prop_assert!(named, "{}'s window ends at {}", id, gap);
            } else if window.whole && !own {
                let path = catalog.path(window.timeline).unwrap();
                prop_assert_eq!(path.gap_from(path.first_segment(record)), None);
            }
        }
    }
}
