use std::collections::HashSet;

use proptest::prelude::*;
use walden_pg::Lsn;
use walden_pg::wal_record::{
    EndKind, Event, HeapChange, PgTimestamp, RelFileLocator, RelationOid, TransactionEnd,
};

use super::gather::Gatherer;
use super::limit::{take_all, take_most};
use super::*;

const TABLE: RelFileLocator = file(20_000);
const CLASS: RelFileLocator = file(1259);

const fn file(number: u32) -> RelFileLocator {
    RelFileLocator {
        tablespace: 1663,
        database: 5,
        number,
    }
}

fn heap(change: HeapChange, file: RelFileLocator, rows: u32) -> Event {
    Event::Heap { change, file, rows }
}

fn deleted(rows: u32) -> Event {
    heap(HeapChange::Delete, TABLE, rows)
}

fn ended(kind: EndKind, xid: u32, subxids: &[u32]) -> TransactionEnd {
    TransactionEnd {
        kind,
        xid,
        prepared: false,
        time: PgTimestamp(i64::from(xid) * 1_000_000),
        subxids: subxids.to_vec(),
        database: 5,
        dropped_files: Vec::new(),
        dropped_stats: Vec::new(),
        invalidated: Vec::new(),
    }
}

fn commit(xid: u32, subxids: &[u32]) -> Event {
    Event::End(ended(EndKind::Commit, xid, subxids))
}

fn at(number: usize) -> Lsn {
    Lsn(0x100_0000 + 64 * number as u64)
}

fn note(gatherer: &mut Gatherer, first: usize, events: &[(u32, Event)]) {
    for (number, (xid, event)) in (first..).zip(events) {
        gatherer.note(*xid, at(number), at(number + 1), event.clone());
    }
}

fn finished(
    mut gatherer: Gatherer,
    take: impl FnOnce(&mut SegmentIndex, Vec<TransactionFacts>),
) -> SegmentIndex {
    let mut index = SegmentIndex::empty();
    let transactions = gatherer.take_transactions();
    gatherer.finish_into(&mut index);
    take(&mut index, transactions);
    index
}

fn index_of(events: &[(u32, Event)]) -> SegmentIndex {
    let mut gatherer = Gatherer::for_index();
    note(&mut gatherer, 0, events);
    finished(gatherer, take_most)
}

fn rows(index: &SegmentIndex) -> Vec<(u32, u64)> {
    let of = |facts: &TransactionFacts| {
        let rows = facts.deleted.iter().map(|rows| rows.rows).sum();
        (facts.xid, rows)
    };
    index.transactions.iter().map(of).collect()
}

#[test]
fn rows_of_subtransactions_count_as_their_transactions_once_it_has_committed() {
    let abort_alone = Event::End(ended(EndKind::Abort, 12, &[]));
    let events = [
        (10, deleted(40)),
        (11, deleted(2)),
        (12, deleted(700)),
        (12, abort_alone),
        (10, commit(10, &[11])),
        (20, deleted(90)),
        (21, deleted(1)),
        (
            20,
            Event::Assignment {
                top: 20,
                subxids: vec![21],
            },
        ),
        (30, deleted(500)),
        (30, Event::End(ended(EndKind::Abort, 30, &[]))),
    ];
    let index = index_of(&events);
    assert_eq!(
        rows(&index),
        [(10, 42), (20, 90), (21, 1)],
        "what was rolled back does not count, what is under way stands alone"
    );
    let tops: Vec<_> = index.transactions.iter().map(|facts| facts.top).collect();
    assert_eq!(tops, [None, None, Some(20)]);
    assert_eq!(
        index.transactions[0].deleted[0].lsn,
        at(0),
        "the first row's record"
    );
}

#[test]
fn rows_that_are_few_are_left_out_and_their_number_is_told() {
    let updated = |rows| heap(HeapChange::Update, TABLE, rows);
    let mut events = Vec::new();
    for xid in 100..200 {
        events.push((xid, updated(3)));
        events.push((xid, deleted(2)));
        events.push((xid, commit(xid, &[])));
    }
    events.push((300, updated(32)));
    events.push((300, commit(300, &[])));
    let index = index_of(&events);
    assert_eq!(index.transactions.len(), 16 + 1, "{:?}", rows(&index));
    assert_eq!(
        (index.left_out.deleted, index.left_out.updated),
        (2, 3),
        "the largest that was left out"
    );
    assert!(
        !index.incomplete,
        "rows that are few do not make it incomplete"
    );
}

#[test]
fn a_new_files_content_counts_until_its_transaction_has_ended() {
    let create = |xid, number| (xid, Event::FileCreated(file(number)));
    let insert = |xid, number| (xid, heap(HeapChange::Insert, file(number), 1));
    let mut end = ended(EndKind::Commit, 10, &[]);
    end.dropped_files = vec![file(30_000)];
    let events = [
        create(10, 30_001),
        create(10, 30_002),
        create(10, 30_003),
        insert(10, 30_002),
        (10, Event::Pages(file(30_003))),
        (10, Event::End(end)),
        insert(11, 30_001),
    ];
    let index = index_of(&events);
    let created = &index.transactions[0].created;
    let content: Vec<_> = created.iter().map(|of| (of.rows, of.pages)).collect();
    assert_eq!(content, [(false, false), (true, false), (false, true)]);
}

#[test]
fn what_does_not_fit_makes_an_index_incomplete() {
    let lock = |xid, relation| {
        let relation = RelationOid {
            database: 5,
            relation,
        };
        (xid, Event::Locks(vec![(xid, relation)]))
    };
    let many: Vec<_> = (0..1000).map(|xid| lock(10 + xid, 20_000)).collect();
    let index = index_of(&many);
    assert!(index.incomplete && index.transactions.len() <= 256);

    let long: Vec<_> = (0..100)
        .map(|relation| lock(10, 20_000 + relation))
        .collect();
    let index = index_of(&long);
    assert!(index.incomplete && index.transactions[0].locks.len() == 64);

    let fits: Vec<_> = (0..64)
        .map(|relation| lock(10, 20_000 + relation))
        .collect();
    assert!(!index_of(&fits).incomplete, "64 locks fit");

    let point = |number: i32| {
        let name = format!("{number:060}");
        let time = PgTimestamp(0);
        (0, Event::RestorePoint { time, name })
    };
    let points: Vec<_> = (0..300).map(point).collect();
    let index = index_of(&points);
    assert!(index.incomplete && index.restore_points.len() == 256);
}

#[test]
fn ids_are_compared_in_a_circle() {
    assert!(precedes(u32::MAX, 3) && !precedes(3, u32::MAX));
    assert!(precedes(2, 3) && !precedes(u32::MAX, 2));
    let mut range = XidRange::of(u32::MAX - 1);
    range.extend(5);
    assert_eq!((range.oldest, range.newest), (u32::MAX - 1, 5));
    assert!(range.contains(u32::MAX) && range.contains(3) && !range.contains(6));
    let epoch = 7 << 32;
    assert_eq!(full_xid(epoch + 10, u32::MAX), epoch - 1);
    assert_eq!(full_xid(epoch - 1, 10), epoch + 10);
    assert_eq!(full_xid(10, 4_000_000_000), 4_000_000_000);
    assert_eq!(full_xid(u64::MAX, 3), (u64::from(u32::MAX) << 32) + 3);
}

/// Events of transactions 10 to 29, of which the last ten are subtransactions of the first ten.
fn event() -> impl Strategy<Value = (u32, Event)> {
    let relation = |number: u32| RelationOid {
        database: 5,
        relation: number,
    };
    let what = (0..9, 0_u32..6, any::<bool>(), 32_u32..50);
    (10_u32..30, what).prop_map(move |(xid, (kind, number, flag, rows))| {
        let numbered = file(20_000 + number);
        let event = match kind {
            0 => {
                let kind = if flag {
                    EndKind::Commit
                } else {
                    EndKind::Abort
                };
                let top = 10 + xid % 10;
                let subs = if xid >= 20 { vec![] } else { vec![top + 10] };
                let mut end = ended(kind, xid, &subs);
                end.dropped_files = (0..number).map(|n| file(40_000 + n)).collect();
                end.invalidated = (0..number).map(relation).collect();
                Event::End(end)
            }
            1 => Event::Locks(vec![(xid, relation(number))]),
            // Of each transaction another one.
            2 => Event::FileCreated(file(30_000 + xid)),
            3 => Event::Pages(file(30_010 + number)),
            4 => heap(HeapChange::Insert, file(30_010 + number), 1),
            5 => heap(HeapChange::Update, numbered, rows),
            6 => heap(HeapChange::Delete, CLASS, 1),
            7 => Event::RestorePoint {
                time: PgTimestamp(rows.into()),
                name: format!("{number}"),
            },
            _ => heap(HeapChange::Delete, numbered, rows),
        };
        (xid, event)
    })
}

fn events() -> impl Strategy<Value = Vec<(u32, Event)>> {
    prop::collection::vec(event(), 1..60)
        .prop_map(possible)
        .prop_filter("there is something", |events| !events.is_empty())
}

/// Without records of transactions that have ended, commits of subtransactions alone, and files that are created twice.
fn possible(mut events: Vec<(u32, Event)>) -> Vec<(u32, Event)> {
    let (mut over, mut created) = (HashSet::new(), HashSet::new());
    events.retain(|(xid, event)| {
        let goes_on = !over.contains(xid);
        match event {
            Event::End(end) if end.kind == EndKind::Commit && *xid >= 20 => return false,
            Event::FileCreated(file) if goes_on => return created.insert(*file),
            Event::End(end) if goes_on => {
                over.insert(end.xid);
                over.extend(&end.subxids);
            }
            _ => {}
        }
        goes_on
    });
    for (xid, event) in &mut events {
        if let Event::End(end) = event {
            end.xid = *xid;
        }
    }
    events
}

proptest! {
    #[test]
    fn an_index_reads_back_as_it_was(events in events()) {
        let index = index_of(&events);
        let json = serde_json::to_string(&index).unwrap();
        prop_assert!(json.len() <= 64 << 10, "{} bytes", json.len());
        prop_assert_eq!(SegmentIndex::decode(&json), Some(index));
    }

    #[test]
    fn an_index_is_within_its_limits_whatever_is_in_the_segment(
        xids in prop::collection::vec(any::<u32>(), 1..1500),
        seed: u32,
    ) {
        let events: Vec<_> = xids.iter().zip(seed..).map(|(xid, number)| {
            let relation = RelationOid { database: number, relation: number };
            let mut end = ended(EndKind::Commit, *xid, &[number, number ^ 5]);
            end.dropped_stats = vec![relation; (number % 100) as usize];
            match number % 3 {
                0 => (*xid, Event::End(end)),
                1 => (*xid, Event::Locks(vec![(number, relation); 3])),
                _ => (*xid, Event::Heap { change: HeapChange::Delete, file: file(number), rows: number }),
            }
        }).take_while(|_| seed < u32::MAX - 2000).collect();
        let index = index_of(&events);
        let json = serde_json::to_string(&index).unwrap();
        prop_assert!(json.len() <= 64 << 10, "{} bytes", json.len());
        prop_assert!(index.transactions.len() <= 256);
    }

    #[test]
    fn a_record_that_is_absorbed_is_told_as_if_it_had_stood_in_the_segment(events in events()) {
        let mut whole = Gatherer::for_detail();
        note(&mut whole, 0, &events);
        let (last, before) = events.split_last().unwrap();
        let mut part = Gatherer::for_detail();
        note(&mut part, 0, before);
        let first_lsn = part.first_lsn_of(last.0);
        let mut resumed = Gatherer::resume(&finished(part, take_all));
        resumed.began(last.0, first_lsn.unwrap_or(at(before.len())));
        note(&mut resumed, before.len(), std::slice::from_ref(last));
        prop_assert_eq!(finished(resumed, take_all), finished(whole, take_all));
    }

    #[test]
    fn summaries_merge_in_any_grouping_to_that_of_the_whole(
        events in events(),
        cuts in prop::collection::vec(any::<prop::sample::Index>(), 1..5),
    ) {
        let mut cuts: Vec<usize> = cuts.iter().map(|cut| cut.index(events.len() + 1)).collect();
        cuts.extend([0, events.len()]);
        cuts.sort_unstable();
        let parts: Vec<Summary> = (0..).zip(cuts.windows(2)).map(|(number, pair)| {
            let mut gatherer = Gatherer::for_index();
            note(&mut gatherer, pair[0], &events[pair[0]..pair[1]]);
            Summary::of(number, &finished(gatherer, take_most))
        }).collect();
        let forth = parts.iter().skip(1).fold(parts[0].clone(), |all, next| all.merge(next));
        let back = parts.iter().rev().skip(1).fold(parts[parts.len() - 1].clone(), |all, before| before.merge(&all));
        prop_assert_eq!(&forth, &back);
        let whole = Summary::of(0, &index_of(&events));
        prop_assert_eq!(&forth.ends, &whole.ends);
        prop_assert_eq!(&forth.restore_points, &whole.restore_points);
        prop_assert_eq!((forth.first, forth.last), (0, parts.len() as u64 - 1));
    }
}
