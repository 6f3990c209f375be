#![no_main]
//! Framed objects: what the decoder proves, it gave out whole, in whatever portions the bytes came.

use libfuzzer_sys::fuzz_target;
use walden_engine::codec::{CodecError, Expected, ObjectDecoder, tail_of};
use walden_model::{HeadKind, RandomId};

fn decode(portions: &[&[u8]]) -> Result<Vec<u8>, CodecError> {
    let mut content = Vec::new();
    let mut take = |frame: Vec<u8>| {
        content.extend_from_slice(&frame);
        Ok::<_, CodecError>(())
    };
    let expected = Expected {
        kind: HeadKind::Wal,
        archive_id: RandomId([7; 16]),
        key: "1/wal/x.zst".to_owned(),
    };
    let mut decoder = ObjectDecoder::new(expected);
    for portion in portions {
        decoder.feed(portion, &mut take)?;
    }
    let object = decoder.finish(&mut take)?;
    assert_eq!(object.tail.content_size, content.len() as u64);
    Ok(content)
}

fuzz_target!(|bytes: &[u8]| {
    let whole = decode(&[bytes]);
    let (first, second) = bytes.split_at(bytes.len() / 2);
    let halves = decode(&[first, second]);
    assert_eq!(whole.ok(), halves.ok());
    let _ = tail_of(bytes);
});
