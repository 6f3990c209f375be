#![no_main]
//! Records whose CRC is right and whose content is anything, and segments of them in which a byte was changed.

use libfuzzer_sys::fuzz_target;
use walden_pg::wal_record::{SegmentReader, Stop, whole_record};
use walden_pg::{Lsn, MajorVersion, TimelineId, WalSegmentSize};

#[allow(dead_code, reason = "the tests use all of it")]
#[path = "../../crates/pg/tests/synthetic/mod.rs"]
mod synthetic;

const START: u64 = 5 << 20;
const MAGICS: [u16; 5] = [0xD10D, 0xD110, 0xD113, 0xD116, 0xD118];

/// Where records begin and whether they say something.
fn read(segment: &[u8], piece: usize) -> (Vec<(Lsn, bool)>, Option<Stop>) {
    let mut seen = Vec::new();
    let mut reader = SegmentReader::new(Lsn(START), TimelineId(1));
    for piece in segment.chunks(piece) {
        reader.feed(piece, &mut |record| {
            assert!(record.end_lsn > record.lsn && record.body.is_some());
            seen.push((
                record.lsn,
                record.event().is_some() || record.top_xid().is_some(),
            ));
        });
    }
    let end = reader.finish();
    assert_eq!(end.records, seen.len() as u64);
    (seen, end.stop)
}

fuzz_target!(|bytes: &[u8]| {
    let [version, changed @ .., piece] = bytes else {
        return;
    };
    let Some((changed, mut rest)) = changed.split_first_chunk::<2>() else {
        return;
    };
    let (magic, size) = (
        MAGICS[usize::from(*version) % 5],
        WalSegmentSize::new(1 << 20).unwrap(),
    );
    let mut writer = synthetic::Writer::new(magic, START, size.bytes());
    let mut written = 0;
    while let Some(([rmgr, info, length, longer], behind)) = rest.split_first_chunk::<4>() {
        let length = usize::from(*length) | usize::from(*longer) << 8;
        let (body, behind) = behind.split_at(length.min(behind.len()));
        let record = writer.record(*rmgr, *info, 7, body);
        let version = MajorVersion::from_magic(magic).unwrap();
        let whole = whole_record(Lsn(START + 40), &record, version, size).expect("its CRC fits");
        let _ = (whole.event(), whole.top_xid());
        writer.put(*rmgr, *info, 7, body);
        written += 1;
        rest = behind;
    }
    if written == 0 {
        return;
    }
    let end = writer.len();
    let mut segment = writer.segments().swap_remove(0);
    segment.truncate((end + 1).next_multiple_of(synthetic::PAGE));
    let (all, _) = read(&segment, segment.len());
    assert!(all.len() <= written);
    let at = usize::from(u16::from_le_bytes(*changed));
    // No CRC covers the first page's magic: another version's is believed, and its records say other things.
    if let Some(byte) = segment.get_mut(at).filter(|_| *piece != 0 && at >= 2) {
        *byte ^= *piece;
    }
    let (seen, _) = read(&segment, segment.len());
    assert!(all.starts_with(&seen), "a changed byte came through");
    assert_eq!(read(&segment, 1 + usize::from(*piece) * 50).0, seen);
});
