#![no_main]
//! Encrypted objects: no bytes make the reader panic, and what is encrypted reads as it would in clear.

use libfuzzer_sys::fuzz_target;
use walden_engine::codec::{
    CodecError, Expected, ObjectDecoder, Sealer, prove_object, read_object, sealed_tail,
};
use walden_engine::encryption::Identities;
use walden_model::{Head, HeadKind, RandomId, Writer};

/// Made for this, and used nowhere else.
const SECRET: &str = "AGE-SECRET-KEY-1GQ9778VQXMMJVE8SK7J6VT8UJ4HDQAJUVSFCWCM02D8GEWQ72PVQ2Y5J33";
const PUBLIC: &str = "age1t7rxyev2z3rw82stdlrrepyc39nvn86l5078zqkf5uasdy86jp6svpy7pa";

fn expected() -> Expected {
    Expected {
        kind: HeadKind::Pack,
        archive_id: RandomId([7; 16]),
        key: "1/packs/x.zst".to_owned(),
    }
}

fn head() -> Head {
    let writer = Writer {
        host: "db1".to_owned(),
        started_at: "2026-11-22T17:50:07Z".parse().unwrap(),
        pid: 4711,
        version: "0.1.0".to_owned(),
    };
    let Expected { kind, archive_id, key } = expected();
    Head::new(kind, archive_id, &key, None, writer)
}

fn content(
    read: impl FnOnce(&mut dyn FnMut(Vec<u8>) -> Result<(), CodecError>) -> Result<(), CodecError>,
) -> Option<Vec<u8>> {
    let mut content = Vec::new();
    let read = read(&mut |frame| {
        content.extend(frame);
        Ok(())
    });
    read.ok().map(|()| content)
}

fuzz_target!(|bytes: &[u8]| {
    let identities = Identities::parse(SECRET.as_bytes(), "a constant").unwrap();
    let open = |stored: &[u8]| {
        content(|out| {
            let unlock = || Ok(identities.clone());
            read_object(stored, expected(), unlock, out).map(drop)
        })
    };
    // As it comes.
    let _ = open(bytes);
    let _ = prove_object(bytes, expected(), |_| Ok::<_, CodecError>(()));
    let _ = sealed_tail(bytes, bytes, bytes.len() as u64, &identities);

    // Behind a head, in clear and encrypted.
    let plain = content(|out| {
        let mut decoder = ObjectDecoder::new(expected());
        decoder.feed(&walden_engine::codec::encode_head(&head())?, &mut *out)?;
        decoder.feed(bytes, &mut *out)?;
        decoder.finish(out).map(drop)
    });
    let mut sealer = Sealer::new(&head(), &[PUBLIC.parse().unwrap()]).unwrap();
    let mut stored = sealer.write(bytes).unwrap();
    stored.extend(sealer.finish(None).unwrap());
    assert_eq!(open(&stored), plain);
    let _ = sealed_tail(&stored, &stored, stored.len() as u64, &identities);
});
