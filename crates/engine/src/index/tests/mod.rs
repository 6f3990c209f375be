//! What asking a large archive costs, in requests and in rounds of them.

mod million;

use std::sync::Arc;

use futures::TryStreamExt;
use million::{LATENCY, Million, QUIET};
use tokio::time::Instant;
use walden_model::index::{IndexedObject, SegmentIndex, Summary};
use walden_model::{
    Catalog, ClusterName, HeadKind, PlanOptions, RandomId, RecoveryTarget, SegmentRange,
    SystemKeys, Tail, TargetKind, VerifyMode, WalName, keys,
};
use walden_pg::{SegmentName, SystemIdentifier, TimelineId, WalSegmentSize};
use walden_store::LocalStore;

use super::{Indexes, LastCommit, mark_breaks, write_roll_ups};
use crate::catalog;
use crate::codec::{Expected, encode_tail, seal};
use crate::encryption::Recipient;
use crate::list::listing;
use crate::progress::Silent;
use crate::repository::{Place, Repository, RepositorySettings, encode_small};
use crate::resolve;
use crate::verify::{VerifyRequest, verify_in};
use crate::windows::{of_system, windows_in};

const SEGMENTS: u64 = 1_000_000;

/// In less than two seconds at 20 ms a request.
const MOST_ROUNDS: u128 = 99;

fn cluster() -> ClusterName {
    "main".parse().unwrap()
}

/// How many requests one after the other the time since `begin` was enough for; prints it.
fn rounds(store: &Million, what: &str, begin: Instant) -> u128 {
    let rounds = begin.elapsed().as_millis() / LATENCY.as_millis();
    println!("{what}: {} requests in {rounds} rounds", store.requests());
    rounds
}

/// Pages hold 1000 names, as S3's do. What a verb waits for is the longest chain of requests, each sent when the one before it was answered:
/// that is what virtual time measures.
#[tokio::test(start_paused = true)]
async fn with_a_million_segments_a_list_and_a_plan_take_less_than_two_seconds_of_requests() {
    let store = Million::new(SEGMENTS, true);
    let repository = Repository::over(store.clone());
    let last = store.commit(SEGMENTS - QUIET).unwrap();

    let begin = Instant::now();
    let mut loaded = catalog::load(&repository, &cluster(), None).await.unwrap();
    let load = rounds(&store, "the catalog, which each begins with", begin);
    let system = loaded.pop().unwrap();

    let begin = Instant::now();
    let listing = listing(system.clone()).await.unwrap();
    let listed = rounds(&store, "list-backups", begin);
    assert_eq!(listing.backups[0].until, Some(last));
    assert_eq!(listing.backups[0].window.as_ref().unwrap().first_gap, None);

    let begin = Instant::now();
    let told = of_system(system.clone()).await.unwrap();
    let told_in = rounds(&store, "windows", begin);
    let newest = told.newest().unwrap();
    assert_eq!(newest.end.commit, LastCommit::Known(last));
    assert_eq!(newest.window.segments, SEGMENTS - 1);

    let indexes = Indexes::new(&repository, &system.catalog);
    let all = newest.window.ranges.clone();
    let from = |first| vec![SegmentRange { first, ..all[0] }];
    let mut planned = 0;
    for (what, first) in [
        (
            "a plan from a backup a hundred thousand segments ago",
            SEGMENTS - 100_000,
        ),
        ("a search through everything", 2),
    ] {
        let begin = Instant::now();
        let summaries = indexes.summaries(from(first));
        let summaries: Vec<Summary> = summaries.try_collect().await.unwrap();
        let taken = rounds(&store, what, begin);
        if planned == 0 {
            planned = taken;
        }
        let ends = summaries.iter().filter_map(|summary| summary.ends.as_ref());
        let commits: u64 = ends.map(|ends| ends.commits).sum();
        assert_eq!(commits, SEGMENTS - QUIET - first + 1);
    }
    let begin = Instant::now();
    let mut catalog = system.catalog.clone();
    let roll_ups = mark_breaks(&repository, &mut catalog).await.unwrap();
    let marked = rounds(&store, "broken WAL, looked for by each plan", begin);
    let indexes = Indexes::new(&repository, &catalog).knowing(roll_ups);
    let middle = store.commit(SEGMENTS / 2).unwrap();
    let mut restores = Vec::new();
    for (what, kind, commit) in [
        ("restore to the end, planned", TargetKind::Latest, last),
        (
            "restore to a time in the middle, planned",
            TargetKind::Time(middle.time),
            middle,
        ),
    ] {
        let target = RecoveryTarget {
            kind,
            ..RecoveryTarget::default()
        };
        let begin = Instant::now();
        let plan = resolve::plan(&indexes, &catalog, &target, &PlanOptions::default()).await;
        restores.push((what, marked + rounds(&store, what, begin)));
        let ending = plan.unwrap().ending.unwrap();
        assert_eq!(ending.last_commit, Some(commit), "{what}");
    }
    let looks = [
        ("list-backups", listed),
        ("windows", told_in),
        ("a walk along the summaries", planned),
    ];
    for (what, rounds) in looks.into_iter().chain(restores) {
        let rounds = load + rounds;
        assert!(
            rounds <= MOST_ROUNDS,
            "{what} took {rounds} rounds, expected at most {MOST_ROUNDS}"
        );
    }
}

#[tokio::test(start_paused = true)]
async fn a_small_archive_costs_no_more_listing_than_a_plain_one() {
    let store = Million::new(900, false);
    let repository = Repository::over(store.clone());
    store.requests();
    let listed = repository.list("").await.unwrap();
    assert_eq!(listed.len(), 900 + 3);
    assert_eq!(store.requests(), 1);
}

#[tokio::test(start_paused = true)]
async fn listing_in_lanes_gives_every_object_once_and_in_order() {
    for segments in [1001, 5_000, 70_000] {
        let store = Million::new(segments, true);
        let repository = Repository::over(store.clone());
        let plain: Vec<_> = walden_store::list_all(store.as_ref(), "")
            .map_ok(|object| object.key)
            .try_collect()
            .await
            .unwrap();
        let lanes = repository.list("").await.unwrap();
        let lanes: Vec<_> = lanes.into_iter().map(|object| object.key).collect();
        assert!(
            plain == lanes,
            "{segments} segments: {} objects one by one, {} in lanes",
            plain.len(),
            lanes.len()
        );
    }
}

#[tokio::test(start_paused = true)]
async fn without_roll_ups_the_last_commit_is_found_all_the_same() {
    let store = Million::new(3_000, false);
    let repository = Repository::over(store.clone());
    let told = windows_in(&repository, &cluster()).await.unwrap();
    let newest = told.systems[0].newest().unwrap();
    let last = store.commit(3_000 - QUIET).unwrap();
    assert_eq!(newest.end.commit, LastCommit::Known(last));
    assert_eq!(
        newest.would_be_lost(last.time + jiff::SignedDuration::from_secs(12)),
        Some(jiff::SignedDuration::from_secs(12))
    );
}

#[tokio::test(start_paused = true)]
async fn what_a_roll_up_says_of_a_record_behind_the_last_segment_is_not_taken() {
    let store = Million::new(5_000, true);
    let repository = Repository::over(store.clone());
    let mut loaded = catalog::load(&repository, &cluster(), None).await.unwrap();
    let system = loaded.pop().unwrap();
    let indexes = Indexes::new(&repository, &system.catalog);
    let to = |last| SegmentRange {
        timeline: walden_pg::TimelineId(1),
        first: 256,
        last,
    };
    for (last, pieces) in [(1023, 2 + 256), (1024, 3 + 1)] {
        let summaries = indexes.summaries(vec![to(last)]);
        let summaries: Vec<Summary> = summaries.try_collect().await.unwrap();
        assert_eq!(
            summaries.len(),
            pieces,
            "the last segment, {last}, must stand alone"
        );
    }
}

#[tokio::test]
async fn an_index_that_stands_in_another_place_is_not_believed() {
    let folder = tempfile::tempdir().unwrap();
    let archive = RandomId([7; 16]);
    let catalog = Catalog::empty(
        cluster(),
        SystemIdentifier(7_000_000_000_000_000_001),
        archive,
        WalSegmentSize::DEFAULT,
    );
    let name = |number| {
        SegmentName::from_number(walden_pg::TimelineId(1), number, WalSegmentSize::DEFAULT)
    };
    let key = |number| {
        let keys = SystemKeys {
            cluster: catalog.cluster.clone(),
            system: catalog.system_identifier,
        };
        keys.wal(&WalName::Segment(name(number)))
    };
    // It says nothing of any LSN, so only what it says of its object can tell.
    let of = |archive_id, number| {
        Some(IndexedObject {
            archive_id,
            key: keys::below_cluster(&key(number)).to_owned(),
        })
    };
    let cases = [
        (1, of(archive, 1), true, "its own"),
        (2, of(archive, 1), false, "another segment's"),
        (3, of(RandomId([8; 16]), 3), false, "another archive's"),
        (4, None, false, "nobody's"),
    ];
    for (number, of, _, _) in &cases {
        let tail = Tail {
            content_size: 0,
            index: Some(Box::new(SegmentIndex {
                of: of.clone(),
                ..SegmentIndex::empty()
            })),
            sha256: None,
            frames: Vec::new(),
        };
        let path = folder.path().join(key(*number));
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, encode_tail(&tail).unwrap().0).unwrap();
    }
    let store = LocalStore::open(folder.path()).unwrap();
    let repository = Repository::over(Arc::new(store));
    let indexes = Indexes::new(&repository, &catalog);
    for (number, _, believed, whose) in cases {
        let index = indexes.segment(name(number)).await.unwrap();
        assert_eq!(
            index.is_some(),
            believed,
            "an index in the place of segment {number}: {whose}"
        );
    }
}

#[tokio::test(start_paused = true)]
async fn a_million_names_are_verified_with_two_listings() {
    let store = Million::new(SEGMENTS, true);
    let repository = Repository::over(store.clone());
    let request = VerifyRequest {
        repository: RepositorySettings {
            name: "test".to_owned(),
            place: Place::Folder("/".into()),
            id: None,
            required: true,
            keys: Default::default(),
        },
        cluster: cluster(),
        system: None,
        mode: VerifyMode::Names,
        backup: None,
        jobs: 2,
    };
    let begin = Instant::now();
    let report = verify_in(&repository, &request, Arc::new(Silent)).await;
    let requests = store.requests();
    let rounds = begin.elapsed().as_millis() / LATENCY.as_millis();
    println!("verify of a million names: {requests} requests in {rounds} rounds");
    assert_eq!(report.systems[0].segments, SEGMENTS);
    assert_eq!(report.worst(), None);
    assert_eq!(report.warnings.len(), 1, "the result cannot be kept there");
    let pages = SEGMENTS / 1000;
    assert!(
        requests < pages * 3 && rounds < 300,
        "{requests} requests in {rounds} rounds are more than two listings"
    );
}

/// Segments 256 to 512, of which those from `sealed` on are encrypted for nobody here, and what lists them.
async fn with_sealed_segments(folder: &std::path::Path, sealed: u64) -> (Repository, Catalog) {
    let archive = RandomId([7; 16]);
    let system = SystemIdentifier(7_000_000_000_000_000_001);
    let mut catalog = Catalog::empty(cluster(), system, archive, WalSegmentSize::DEFAULT);
    let keys = SystemKeys {
        cluster: cluster(),
        system,
    };
    let recipient = "age1t7rxyev2z3rw82stdlrrepyc39nvn86l5078zqkf5uasdy86jp6svpy7pa";
    let recipients: [Recipient; 1] = [recipient.parse().unwrap()];
    let wal = catalog.wal.entry(TimelineId(1)).or_default();
    for number in 256..=512 {
        let name = SegmentName::from_number(TimelineId(1), number, WalSegmentSize::DEFAULT);
        let key = keys.wal(&WalName::Segment(name));
        let place = Expected {
            kind: HeadKind::Wal,
            archive_id: archive,
            key: keys::below_cluster(&key).to_owned(),
        };
        let tail = Tail {
            content_size: 0,
            index: Some(Box::new(SegmentIndex {
                of: Some(IndexedObject {
                    archive_id: archive,
                    key: place.key.clone(),
                }),
                ..SegmentIndex::empty()
            })),
            sha256: None,
            frames: Vec::new(),
        };
        let object = match number < sealed {
            true => encode_tail(&tail).unwrap().0,
            false => seal(&encode_small(place, b"WAL", 1).unwrap(), &recipients).unwrap(),
        };
        let path = folder.join(key);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        wal.segments.insert(number, object.len() as u64);
        std::fs::write(path, object).unwrap();
    }
    let store = LocalStore::open(folder).unwrap();
    (Repository::over(Arc::new(store)), catalog)
}

#[tokio::test]
async fn a_host_that_cannot_open_the_segments_writes_no_roll_up_of_them() {
    for (sealed, written) in [(513, 1), (511, 0), (256, 0)] {
        let folder = tempfile::tempdir().unwrap();
        let (repository, catalog) = with_sealed_segments(folder.path(), sealed).await;
        for _ in 0..2 {
            let report = write_roll_ups(&repository, &catalog).await.unwrap();
            let listed = Indexes::new(&repository, &catalog);
            let listed = listed.listed(&repository).await.unwrap().len();
            assert_eq!(
                listed, written,
                "encrypted from segment {sealed} on, of 256 to 512: {report:?}"
            );
        }
    }
}

#[tokio::test]
async fn an_encrypted_segment_hides_no_plain_one_before_it() {
    let folder = tempfile::tempdir().unwrap();
    let (repository, catalog) = with_sealed_segments(folder.path(), 400).await;
    let all = SegmentRange {
        timeline: TimelineId(1),
        first: 256,
        last: 512,
    };
    let indexes = Indexes::new(&repository, &catalog);
    for pass in 1..=2 {
        let summaries = indexes.summaries(vec![all]);
        let summaries: Vec<Summary> = summaries.try_collect().await.unwrap();
        let unread: Vec<u64> = summaries.into_iter().flat_map(|said| said.unread).collect();
        assert_eq!(
            unread,
            (400..=512).collect::<Vec<_>>(),
            "what stays unread in pass {pass}"
        );
        assert!(repository.is_locked(), "an encrypted segment was met");
    }
    let name = SegmentName::from_number(TimelineId(1), 399, WalSegmentSize::DEFAULT);
    let said = indexes.segment(name).await.unwrap();
    assert!(said.is_some(), "the last plain segment, asked alone");
}
