//! Records of segments that are whole, cut, damaged or overwritten. Real ones are in the integration tests.

#![allow(
    clippy::unwrap_used,
    clippy::panic,
    reason = "a test ends where its WAL is not as it should be"
)]

mod synthetic;

use proptest::collection::vec;
use proptest::prelude::*;
use synthetic::{PAGE, Writer};
use walden_pg::wal_record::{
    PartBytes, Record, RecordHeader, SegmentEnd, SegmentReader, Stop, record_end, rmgr,
    whole_record,
};
use walden_pg::{Lsn, MajorVersion, TimelineId, WalSegmentSize};

const MAGIC: u16 = 0xD116;
const START: u64 = 0x500_0000;
const SIZE: u64 = 1 << 20;

/// A record as it was handed over.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Seen {
    lsn: Lsn,
    end_lsn: Lsn,
    header: RecordHeader,
    body: Option<Vec<u8>>,
}

impl Seen {
    fn of(record: &Record<'_>) -> Self {
        Self {
            lsn: record.lsn,
            end_lsn: record.end_lsn,
            header: record.header,
            body: record.body.map(<[u8]>::to_vec),
        }
    }
}

fn read_at(start: u64, bytes: &[u8], piece: usize) -> (Vec<Seen>, SegmentEnd) {
    let mut reader = SegmentReader::new(Lsn(start), TimelineId(1));
    let mut seen = Vec::new();
    for piece in bytes.chunks(piece) {
        reader.feed(piece, &mut |record| seen.push(Seen::of(record)));
    }
    (seen, reader.finish())
}

fn read(bytes: &[u8]) -> (Vec<Seen>, SegmentEnd) {
    read_at(START, bytes, bytes.len().max(1))
}

fn size() -> WalSegmentSize {
    WalSegmentSize::new(SIZE).unwrap()
}

/// A segment, to its end full of records of these lengths.
fn full(lengths: &[usize]) -> Vec<u8> {
    let mut writer = Writer::new(MAGIC, START, SIZE);
    for (number, length) in lengths.iter().cycle().enumerate() {
        if writer.len() as u64 > SIZE {
            break;
        }
        writer.put(rmgr::HEAP, 0, number as u32, &vec![number as u8; *length]);
    }
    writer.segments().swap_remove(0)
}

/// Joins what two segments hold of a record.
fn join(tail: &PartBytes, head: &PartBytes) -> Vec<u8> {
    [tail.bytes.as_slice(), head.bytes.as_slice()].concat()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(150))]

    #[test]
    fn what_was_written_is_read_in_pieces_of_any_size_and_across_segments(
        lengths in vec(0_usize..9000, 1..400),
        piece in prop_oneof![1_usize..100, 4000_usize..20_000],
    ) {
        let mut writer = Writer::new(MAGIC, START, SIZE);
        let written: Vec<_> = lengths
            .iter()
            .enumerate()
            .map(|(number, length)| {
                let body = vec![number as u8; *length];
                (writer.put(rmgr::HEAP, 0, number as u32, &body), body)
            })
            .collect();
        let mut seen: Vec<(u64, Vec<u8>)> = Vec::new();
        let mut tail: Option<PartBytes> = None;
        for (number, segment) in writer.segments().iter().enumerate() {
            let (records, end) = read_at(START + number as u64 * SIZE, segment, piece);
            prop_assert_ne!(end.stop, Some(Stop::Damaged));
            if let Some(tail) = tail.take() {
                let bytes = join(&tail, end.head.as_ref().unwrap());
                let record = whole_record(tail.lsn.unwrap(), &bytes, MajorVersion(17), size()).unwrap();
                seen.push((record.lsn.0, record.body.unwrap().to_vec()));
            }
            for record in records {
                prop_assert_eq!(Some(record.end_lsn), record_end(record.lsn, record.header.total_length, size()));
                seen.push((record.lsn.0, record.body.unwrap()));
            }
            tail = end.tail;
        }
        prop_assert_eq!(seen, written);
    }

    #[test]
    fn a_changed_bit_is_never_handed_over_and_is_called_damage(
        lengths in vec(0_usize..3000, 1..20),
        at in 0..SIZE as usize,
        bit in 0_u8..8,
    ) {
        let whole = full(&lengths);
        let (expected, _) = read(&whole);
        let mut changed = whole;
        changed[at] ^= 1 << bit;
        let (seen, end) = read(&changed);
        prop_assert!(expected.starts_with(&seen), "byte {} bit {} came through", at, bit);
        if seen.len() < expected.len() && at < SIZE as usize - PAGE {
            let told = matches!(end.stop, Some(Stop::Damaged))
                // A magic tells nothing but the version.
                || (at < 2 && end.stop == Some(Stop::UnknownVersion));
            prop_assert!(told, "byte {} bit {}: {:?}", at, bit, end.stop);
        }
    }

    #[test]
    fn no_bytes_panic(bytes: Vec<u8>, piece in 1_usize..100, lengths in vec(0_usize..3000, 1..4), at in 0..SIZE as usize) {
        read_at(START, &bytes, piece);
        // Behind pages that are right.
        let mut segment = full(&lengths);
        for (byte, other) in segment.iter_mut().skip(at).zip(&bytes) {
            *byte = *other;
        }
        segment.truncate(at + bytes.len());
        read(&segment);
    }

    #[test]
    fn no_body_panics(manager in 0_u8..23, info: u8, body in vec(any::<u8>(), 0..300), version in 14_u16..19) {
        let bytes = Writer::new(MAGIC, START, SIZE).record(manager, info, 7, &body);
        let record = whole_record(Lsn(START + 40), &bytes, MajorVersion(version), size()).unwrap();
        let _ = record.event();
        let _ = record.top_xid();
    }
}

#[test]
fn a_short_last_page_is_damage() {
    let whole = full(&[100]);
    for length in [0, 39, 40, PAGE - 1, PAGE, whole.len() - 1] {
        let (_, end) = read(&whole[..length]);
        assert_eq!(end.stop, Some(Stop::Damaged), "{length} bytes of a segment");
    }
}

#[test]
fn what_recycling_left_behind_the_end_is_no_damage_and_not_read() {
    let mut old = Writer::new(MAGIC, START - SIZE, SIZE);
    while (old.len() as u64) < SIZE {
        old.put(rmgr::HEAP, 0, 1, &[1; 100]);
    }
    let old = old.segments().swap_remove(0);
    let mut new = Writer::new(MAGIC, START, SIZE);
    for _ in 0..100 {
        new.put(rmgr::HEAP, 0, 2, &[2; 100]);
    }
    let written = new.len();
    assert!(
        !written.is_multiple_of(PAGE),
        "old records on the last page, too"
    );
    let mut segment = new.segments().swap_remove(0);
    segment[written..].copy_from_slice(&old[written..]);
    let (seen, end) = read(&segment);
    assert_eq!((seen.len(), end.stop), (100, Some(Stop::EndOfWal)));
    assert_eq!(
        (end.at, end.end),
        (Lsn(START + written as u64), Some(end.at))
    );
}

#[test]
fn the_last_page_is_known_to_be_damaged_by_the_records_behind() {
    let mut writer = Writer::new(MAGIC, START, SIZE);
    for _ in 0..10 {
        writer.put(rmgr::HEAP, 0, 2, &[2; 100]);
    }
    let mut segment = writer.segments().swap_remove(0);
    segment[40 + 3 * 128 + 60] ^= 1;
    let (seen, end) = read(&segment);
    assert_eq!((seen.len(), end.stop), (3, Some(Stop::Damaged)));
    assert_eq!(end.at, Lsn(START + 40 + 3 * 128));
}

#[test]
fn a_record_that_was_never_finished_is_left_out() {
    let mut writer = Writer::new(MAGIC, START, SIZE);
    writer.put(rmgr::HEAP, 0, 1, &[1; 100]);
    writer.abandon();
    let behind = writer.put(rmgr::XLOG, 0xD0, 0, &[0; 18]);
    let (seen, end) = read(&writer.segments()[0]);
    assert_eq!(seen.last().map(|record| record.lsn), Some(Lsn(behind)));
    assert_eq!((seen.len(), end.stop), (2, Some(Stop::EndOfWal)));
}

#[test]
fn a_switch_ends_the_segment_even_where_it_crosses_its_edge() {
    let mut writer = Writer::new(MAGIC, START, SIZE);
    writer.put(rmgr::XLOG, 0x40, 0, &[]);
    let (seen, end) = read(&writer.segments()[0]);
    assert_eq!(end.stop, Some(Stop::Switch));
    assert_eq!(seen[0].end_lsn, Lsn(START + SIZE));

    for room in [8, 16] {
        let mut writer = Writer::new(MAGIC, START, SIZE);
        while writer.len() < SIZE as usize - PAGE {
            writer.put(rmgr::HEAP, 0, 1, &[1; 100]);
        }
        while writer.len() > SIZE as usize - 200 || writer.len() < SIZE as usize - 300 {
            writer.put(rmgr::HEAP, 0, 1, &[]);
        }
        writer.put(
            rmgr::HEAP,
            0,
            1,
            &vec![1; SIZE as usize - room - 24 - writer.len()],
        );
        let lsn = writer.put(rmgr::XLOG, 0x40, 0, &[]);
        assert_eq!(lsn, START + SIZE - room as u64);
        let segments = writer.segments();
        let (_, first) = read(&segments[0]);
        let (none, second) = read_at(START + SIZE, &segments[1], PAGE);
        assert_eq!(
            (none.len(), second.stop),
            (0, Some(Stop::Switch)),
            "{room} bytes in front"
        );
        let bytes = join(&first.tail.unwrap(), &second.head.unwrap());
        let switch = whole_record(Lsn(lsn), &bytes, MajorVersion(17), size()).unwrap();
        assert_eq!(switch.end_lsn, Lsn(START + 2 * SIZE));
    }
}

#[test]
fn a_record_too_long_to_keep_is_proven_all_the_same() {
    const SEGMENT: u64 = 4 << 20;
    for (manager, kept) in [(rmgr::HEAP, false), (rmgr::XACT, true)] {
        let mut writer = Writer::new(MAGIC, SEGMENT, SEGMENT);
        writer.put(manager, 0, 1, &vec![5; 3 << 20]);
        writer.put(rmgr::HEAP, 0, 1, &[1; 100]);
        let mut segment = writer.segments().swap_remove(0);
        let (seen, end) = read_at(SEGMENT, &segment, 1 << 20);
        assert_eq!((seen.len(), end.records), (2, 2));
        assert_eq!(seen[0].body.is_some(), kept);
        segment[1 << 20] ^= 1;
        let (seen, end) = read_at(SEGMENT, &segment, 1 << 20);
        assert_eq!((seen.len(), end.stop), (0, Some(Stop::Damaged)));
    }
}

#[test]
fn a_record_longer_than_a_segment_is_proven_by_its_parts() {
    let mut writer = Writer::new(MAGIC, START, SIZE);
    writer.put(rmgr::HEAP, 0, 1, &[1; 100]);
    let lsn = writer.put(21, 0, 1, &vec![5; 2 << 20]);
    let ends: Vec<SegmentEnd> = (0..)
        .zip(writer.segments())
        .map(|(number, segment)| read_at(START + number * SIZE, &segment, PAGE).1)
        .collect();
    let [first, second, third] = ends.as_slice() else {
        panic!("three segments");
    };
    let tail = first.tail.as_ref().unwrap();
    assert_eq!(
        (tail.lsn, tail.bytes.len()),
        (Some(Lsn(lsn)), PartBytes::KEPT)
    );
    let mut crc = tail.crc32c;
    let mut remaining = tail.remaining;
    for head in [second, third].map(|end| end.head.as_ref().unwrap()) {
        crc = crc32c::crc32c_combine(crc, head.crc32c, head.length as usize);
        remaining -= head.length;
        assert_eq!(head.remaining, remaining);
    }
    assert_eq!((second.first, second.stop, remaining), (None, None, 0));
    assert!(
        RecordHeader::proves(&tail.bytes, crc),
        "the parts' values combine"
    );
    assert!(!RecordHeader::proves(&tail.bytes, crc ^ 1));
}

#[test]
fn pages_of_a_later_timeline_than_the_name_are_not_read() {
    let mut segment = full(&[100]);
    segment[PAGE + 4] = 2;
    let (seen, end) = read(&segment);
    assert_eq!(end.stop, Some(Stop::Damaged));
    assert!(!seen.is_empty() && end.at < Lsn(START + 2 * PAGE as u64));
}

#[test]
fn an_unknown_version_is_told_apart() {
    let mut segment = full(&[100]);
    segment[0] = 0xFF;
    let (seen, end) = read(&segment);
    assert_eq!(
        (seen.len(), end.version, end.stop),
        (0, None, Some(Stop::UnknownVersion))
    );
}
