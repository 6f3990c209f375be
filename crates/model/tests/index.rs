//! Indexes of segments made up, with records across every kind of edge.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test's way to fail")]

#[allow(dead_code, reason = "pg's tests use all of it")]
#[path = "../../pg/tests/synthetic/mod.rs"]
mod synthetic;

use proptest::prelude::*;
use synthetic::Writer;
use walden_model::index::{
    Crossing, DetailReader, SegmentDetail, SegmentIndex, SegmentIndexer, crossing,
};
use walden_pg::wal_record::rmgr;
use walden_pg::{SegmentName, TimelineId, WalSegmentSize};

const SIZE: u64 = 1 << 20;
const MAGIC_17: u16 = 0xD116;

fn size() -> WalSegmentSize {
    WalSegmentSize::new(SIZE).unwrap()
}

fn name(number: usize) -> SegmentName {
    SegmentName::from_number(TimelineId(1), 1 + number as u64, size())
}

fn indexed(number: usize, bytes: &[u8], piece: usize) -> SegmentIndex {
    let mut indexer = SegmentIndexer::new(name(number), size());
    for piece in bytes.chunks(piece) {
        indexer.feed(piece);
    }
    indexer.finish()
}

fn in_full(segments: &[Vec<u8>], number: usize) -> SegmentDetail {
    let mut reader = DetailReader::new(name(number), size());
    reader.feed(&segments[number]);
    for next in &segments[number + 1..] {
        reader.next_segment();
        for piece in next.chunks(3000) {
            if reader.is_joined() {
                break;
            }
            reader.feed(piece);
        }
        if reader.is_joined() {
            break;
        }
    }
    reader.finish()
}

/// `xl_xact_commit` without more than the time.
fn commit(xid: u32) -> Vec<u8> {
    let mut body = vec![255, 8];
    body.extend((i64::from(xid) * 1000).to_le_bytes());
    body
}

/// The body of a record of no interest, with so many bytes of main data (`XLR_BLOCK_ID_DATA_LONG`).
fn filler(bytes: u32) -> Vec<u8> {
    let mut body = vec![254];
    body.extend(bytes.to_le_bytes());
    body.resize(5 + bytes as usize, 7);
    body
}

/// Writes until a record that is put next begins so many bytes before the first segment's end.
fn until_before_the_edge(writer: &mut Writer, left: usize) {
    const BTREE: u8 = 11;
    let end = SIZE as usize - left;
    while writer.len() + 4000 < end {
        writer.put(BTREE, 0, 0, &filler(1000));
    }
    let rest = end - writer.len() - 24 - 5;
    writer.put(BTREE, 0, 0, &filler(rest as u32));
    assert_eq!(writer.len(), end, "the filler ends where it should");
}

#[test]
fn a_commit_across_an_edge_is_joined_wherever_the_edge_cuts_it() {
    // It has 34 bytes: the edge may stand in its header, or behind it.
    for left in [8, 16, 24, 32] {
        let mut writer = Writer::new(MAGIC_17, SIZE, SIZE);
        until_before_the_edge(&mut writer, left);
        writer.put(rmgr::XACT, 0, 77, &commit(77));
        writer.put(rmgr::XACT, 0, 78, &commit(78));
        let segments = writer.segments();
        let first = indexed(0, &segments[0], 8192);
        let second = indexed(1, &segments[1], 8192);
        assert_eq!(first.ends, None, "it is in neither index");
        let Crossing::Said(said) = crossing(&first, &[&second]) else {
            panic!("cut at {left}: {:?}", crossing(&first, &[&second]));
        };
        let mut absorbed = first.clone();
        absorbed.absorb(&crossing(&first, &[&second]));
        let last = absorbed.ends.as_ref().and_then(|ends| ends.last_commit);
        assert_eq!(last.map(|end| end.xid), Some(77));
        assert_eq!(absorbed.records, first.records + 1);
        assert_eq!(absorbed.end_lsn, second.first_lsn, "the next one follows");
        let detail = in_full(&segments, 0);
        assert_eq!(
            (&detail.index, detail.moments),
            (&absorbed, said.moments),
            "reading in full tells the same"
        );

        assert_eq!(crossing(&first, &[]), Crossing::GoesOn);
        assert_eq!(crossing(&second, &[]), Crossing::None);
        let stranger = SegmentIndex {
            head: None,
            ..second.clone()
        };
        assert_eq!(crossing(&first, &[&stranger]), Crossing::Unreadable);
        for (length, of_first) in [(left, true), (34 - left, false)] {
            for digit in 0..2 * length {
                let (mut first, mut second) = (first.clone(), second.clone());
                let part = match of_first {
                    true => first.tail.as_mut(),
                    false => second.head.as_mut(),
                };
                let text = &mut part.expect("a part").bytes;
                let other = if text.as_bytes()[digit] == b'5' {
                    "6"
                } else {
                    "5"
                };
                text.replace_range(digit..=digit, other);
                let crossed = crossing(&first, &[&second]);
                assert!(
                    !matches!(crossed, Crossing::Said(_)),
                    "digit {digit} of a part of {length} bytes was changed unseen: {crossed:?}"
                );
            }
        }
    }
}

#[test]
fn a_record_longer_than_a_segment_is_proven_without_its_bytes() {
    let mut writer = Writer::new(MAGIC_17, SIZE, SIZE);
    writer.put(rmgr::XACT, 0, 70, &commit(70));
    writer.put(21, 0, 71, &filler(2 * SIZE as u32));
    writer.put(rmgr::XACT, 0, 71, &commit(71));
    let segments = writer.segments();
    let indexes: Vec<_> = (0..)
        .zip(&segments)
        .map(|(number, bytes)| indexed(number, bytes, 9000))
        .collect();
    let [first, second, third] = indexes.as_slice() else {
        panic!("three segments expected, found {}", indexes.len());
    };
    assert_eq!(crossing(first, &[second]), Crossing::GoesOn);
    let Crossing::Said(said) = crossing(first, &[second, third]) else {
        panic!("{:?}", crossing(first, &[second, third]));
    };
    assert_eq!(
        (said.index.records, said.index.end_lsn),
        (2, third.first_lsn)
    );
    let mut other = second.clone();
    other.head.as_mut().expect("a part").crc32c ^= 1;
    assert_eq!(crossing(first, &[&other, third]), Crossing::Damaged);
    assert_eq!(in_full(&segments, 0).index, said.index);
}

#[test]
fn a_long_commit_across_an_edge_needs_the_segments_and_they_tell_it() {
    // XACT_XINFO_HAS_SUBXACTS, with 3000 of them.
    let mut data = 1000_i64.to_le_bytes().to_vec();
    data.extend(2_u32.to_le_bytes());
    data.extend(3000_u32.to_le_bytes());
    data.extend((100..3100_u32).flat_map(u32::to_le_bytes));
    let mut body = vec![254];
    body.extend((data.len() as u32).to_le_bytes());
    body.extend(data);
    let mut writer = Writer::new(MAGIC_17, SIZE, SIZE);
    until_before_the_edge(&mut writer, 48);
    writer.put(rmgr::XACT, 0x80, 99, &body);
    let segments = writer.segments();
    let first = indexed(0, &segments[0], 8192);
    let second = indexed(1, &segments[1], 8192);
    assert_eq!(crossing(&first, &[&second]), Crossing::NeedsSegments);
    let ends = in_full(&segments, 0).index.ends.expect("the commit");
    assert_eq!(
        (ends.commits, ends.subxids.map(|range| range.newest)),
        (1, Some(3099))
    );
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    #[test]
    fn pieces_of_any_size_give_the_same_and_nothing_is_lost_between_segments(
        lengths in prop::collection::vec(0_u32..30_000, 200),
        piece in 1_usize..50_000,
    ) {
        let mut writer = Writer::new(MAGIC_17, SIZE, SIZE);
        for (xid, length) in (100..).zip(&lengths) {
            writer.put(21, 0, xid, &filler(*length));
            writer.put(rmgr::XACT, 0, xid, &commit(xid));
        }
        let segments = writer.segments();
        let indexes: Vec<_> = (0..)
            .zip(&segments)
            .map(|(number, bytes)| indexed(number, bytes, SIZE as usize))
            .collect();
        let (mut records, mut commits) = (0, 0);
        for (number, index) in indexes.iter().enumerate() {
            prop_assert_eq!(&indexed(number, &segments[number], piece), index);
            let mut index = index.clone();
            if let Some(next) = indexes.get(number + 1) {
                index.absorb(&crossing(&index, &[next]));
            }
            prop_assert_eq!(&index.tail, &None, "the record at the end of {}", name(number));
            records += index.records;
            commits += index.ends.as_ref().map_or(0, |ends| ends.commits);
        }
        prop_assert_eq!((records, commits), (400, 200));
    }

    #[test]
    fn no_bytes_make_an_index_fail(
        bytes in prop::collection::vec(any::<u8>(), 0..20_000),
        at in 0_usize..8000,
    ) {
        let mut writer = Writer::new(MAGIC_17, SIZE, SIZE);
        for xid in 3..300 {
            writer.put(rmgr::XACT, 0, xid, &commit(xid));
        }
        let mut segment = writer.segments().swap_remove(0);
        segment[at..at + bytes.len()].copy_from_slice(&bytes);
        let index = indexed(0, &segment, 8192);
        let json = serde_json::to_string(&index).unwrap();
        prop_assert_eq!(SegmentIndex::decode(&json), Some(index));
        let _ = in_full(&[segment], 0);
    }
}
