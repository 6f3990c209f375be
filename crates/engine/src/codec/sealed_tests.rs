//! Encrypted objects: what is written is read, and nothing else is.

use std::io::BufReader;

use proptest::prelude::*;
use walden_model::{Head, HeadKind, RandomId, Seal, Sha256Digest, Tail, Writer};

use super::meta::{SEAL, encode_envelope, encode_seal, frame_length};
use super::*;
use crate::encryption::{Identities, Recipient};

fn expected() -> Expected {
    Expected {
        kind: HeadKind::Wal,
        archive_id: RandomId([7; 16]),
        key: "1/wal/x.zst".to_owned(),
    }
}

/// A pair of keys.
fn keys() -> (Identities, Recipient) {
    use age::secrecy::ExposeSecret;
    let secret = age::x25519::Identity::generate();
    let text = secret.to_string();
    let identities = Identities::parse(text.expose_secret().as_bytes(), "a test").unwrap();
    (identities, secret.to_public().to_string().parse().unwrap())
}

fn head() -> Head {
    let writer = Writer {
        host: "db1".to_owned(),
        started_at: "2026-11-22T17:50:07Z".parse().unwrap(),
        pid: 4711,
        version: "0.1.0".to_owned(),
    };
    let place = expected();
    Head::new(place.kind, place.archive_id, &place.key, None, writer)
}

/// An object with its content in frames of 4 KiB, stored as it comes.
fn sealed(content: &[u8], recipients: &[Recipient]) -> Vec<u8> {
    let mut sealer = Sealer::new(&head(), recipients).unwrap();
    let mut stored = sealer.write(&[]).unwrap();
    let mut compressor = FrameCompressor::new(1).unwrap();
    let digest = Sha256Digest::of(content);
    let mut tail = Tail {
        content_size: content.len() as u64,
        index: None,
        sha256: Some(digest),
        frames: Vec::new(),
    };
    for content in content.chunks(4096) {
        let frame = compressor.compress(content).unwrap();
        stored.extend(sealer.write(&frame.stored).unwrap());
        tail.frames.push(frame.entry);
    }
    stored.extend(sealer.write(&encode_tail(&tail).unwrap().0).unwrap());
    let content = keyed(expected().archive_id, &digest);
    stored.extend(sealer.finish(Some(content)).unwrap());
    stored
}

/// Content that does not compress.
fn noise(length: usize) -> Vec<u8> {
    let mut state = 1_u64;
    std::iter::repeat_with(|| {
        state = state
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1);
        (state >> 56) as u8
    })
    .take(length)
    .collect()
}

/// Ends an object anew, as anybody can who may write to the repository.
fn resealed(before: &[u8], content: &[u8]) -> Vec<u8> {
    let mut bytes = before.to_vec();
    let seal = Seal {
        size: before.len() as u64,
        sha256: Sha256Digest::of(before),
        content_hmac: Some(keyed(expected().archive_id, &Sha256Digest::of(content))),
    };
    bytes.extend(encode_seal(&seal).unwrap());
    bytes
}

fn open(bytes: &[u8], identities: &Identities) -> Result<Vec<u8>, CodecError> {
    open_in_portions(bytes, identities, 8192)
}

fn open_in_portions(
    bytes: &[u8],
    identities: &Identities,
    portion: usize,
) -> Result<Vec<u8>, CodecError> {
    let mut content = Vec::new();
    let stored = BufReader::with_capacity(portion, bytes);
    read_object(
        stored,
        expected(),
        || Ok(identities.clone()),
        |frame| {
            content.extend(frame);
            Ok::<_, CodecError>(())
        },
    )?;
    Ok(content)
}

fn prove(bytes: &[u8]) -> Result<Proven, CodecError> {
    prove_object(bytes, expected(), |_| Ok::<_, CodecError>(()))
}

#[test]
fn each_recipient_alone_reads_what_was_written_and_others_are_told_that_they_are_none() {
    let ((one, to_one), (two, to_two), (other, _)) = (keys(), keys(), keys());
    let content = noise(100_000);
    let stored = sealed(&content, &[to_one, to_two]);
    assert_eq!(open(&stored, &one).unwrap(), content);
    assert_eq!(open(&stored, &two).unwrap(), content);
    let refused = open(&stored, &other).unwrap_err();
    assert!(
        matches!(refused, CodecError::WrongIdentity),
        "expected to be told of wrong keys: {refused}"
    );
    let mut bad = stored.clone();
    bad[1100] ^= 1;
    let refused = open(&bad, &other).unwrap_err();
    assert!(
        matches!(refused, CodecError::WrongDigest { .. }),
        "damage is told as damage, whoever reads: {refused}"
    );
}

#[test]
fn without_an_identity_an_object_is_proven_and_its_content_told_from_others() {
    let stored = sealed(b"some WAL", &[keys().1]);
    let Proven::Sealed { head: found, seal } = prove(&stored).unwrap() else {
        panic!("expected a sealed object");
    };
    assert_eq!(found, head().envelope());
    let archive = expected().archive_id;
    let same = keyed(archive, &Sha256Digest::of(b"some WAL"));
    assert_eq!(seal.content_hmac, Some(same), "the same content");
    assert_ne!(same, keyed(archive, &Sha256Digest::of(b"other WAL")));
    assert_ne!(
        same,
        keyed(RandomId([8; 16]), &Sha256Digest::of(b"some WAL")),
        "archives are not to be compared"
    );
    assert!(
        matches!(
            read_object(
                stored.as_slice(),
                expected(),
                || Err(CodecError::NoIdentity),
                |_| Ok::<_, CodecError>(())
            ),
            Err(CodecError::NoIdentity)
        ),
        "who cannot open it is told so"
    );
}

#[test]
fn the_keyed_digest_is_the_one_that_openssl_computes() {
    // printf abc | openssl dgst -sha256 -binary | openssl dgst -sha256 -mac HMAC -macopt hexkey:07070707070707070707070707070707
    assert_eq!(
        keyed(RandomId([7; 16]), &Sha256Digest::of(b"abc")).to_string(),
        "hmac-sha256:426449ec2e88daeb62db5cec4d84e4c17fc1aea96a384a5a98d44a2a0e783d38"
    );
}

#[test]
fn every_flipped_bit_is_found_with_an_identity_and_without() {
    let (identities, recipient) = keys();
    let good = sealed(b"one two three", &[recipient]);
    for at in 0..good.len() * 8 {
        let mut bad = good.clone();
        bad[at / 8] ^= 1 << (at % 8);
        let place = format!("bit {} of byte {}", at % 8, at / 8);
        assert!(prove(&bad).is_err(), "{place} was flipped unseen");
        assert!(
            open(&bad, &identities).is_err(),
            "{place} was flipped, and it opened"
        );
    }
}

#[test]
fn every_flipped_bit_is_found_although_a_forger_seals_it_again() {
    let (identities, recipient) = keys();
    let content = b"one two three";
    let good = sealed(content, &[recipient]);
    let before = &good[..good.len() - SEAL];
    assert!(open(&resealed(before, content), &identities).is_ok());
    let envelope = frame_length(before).unwrap().unwrap();
    for at in envelope * 8..before.len() * 8 {
        let mut bad = before.to_vec();
        bad[at / 8] ^= 1 << (at % 8);
        assert!(
            open(&resealed(&bad, content), &identities).is_err(),
            "bit {} of byte {} was flipped unseen",
            at % 8,
            at / 8
        );
    }
}

#[test]
fn an_object_that_is_cut_off_anywhere_or_goes_on_is_refused() {
    let (identities, recipient) = keys();
    let good = sealed(b"one two three", &[recipient]);
    for length in 0..good.len() {
        let cut = &good[..length];
        assert!(
            prove(cut).is_err() && open(cut, &identities).is_err(),
            "{length} of {} bytes passed",
            good.len()
        );
    }
    for more in [vec![0], good.clone()] {
        let more = [good.as_slice(), &more].concat();
        assert!(
            prove(&more).is_err() && open(&more, &identities).is_err(),
            "bytes behind the seal passed"
        );
    }
}

/// What who may write to the repository, but has no key, can try.
#[test]
fn pieces_of_what_is_encrypted_cannot_be_dropped_swapped_or_taken_from_another_object() {
    let (identities, recipient) = keys();
    let content = noise(300_000);
    let good = sealed(&content, std::slice::from_ref(&recipient));
    let before = &good[..good.len() - SEAL];
    let envelope = frame_length(before).unwrap().unwrap();
    let text = b"\n--- ";
    let mac = envelope
        + before[envelope..]
            .windows(text.len())
            .position(|window| window == text)
            .unwrap();
    // The MAC's line, and the nonce.
    let payload = mac + text.len() + 43 + 1 + 16;
    let chunk = 64 * 1024 + 16;
    let refused = |what: &str, bytes: Vec<u8>| {
        let refused = open(&resealed(&bytes, &content), &identities);
        assert!(refused.is_err(), "{what} went unseen");
    };
    refused(
        "a missing last chunk",
        before[..payload + 4 * chunk].to_vec(),
    );
    refused(
        "a missing first chunk",
        [&before[..payload], &before[payload + chunk..]].concat(),
    );
    let (first, second) = (
        &before[payload..payload + chunk],
        &before[payload + chunk..payload + 2 * chunk],
    );
    let rest = &before[payload + 2 * chunk..];
    refused(
        "two swapped chunks",
        [&before[..payload], second, first, rest].concat(),
    );
    refused(
        "a chunk twice",
        [&before[..payload], first, first, rest].concat(),
    );

    let other = sealed(&content, &[recipient]);
    refused(
        "another object's payload",
        [&before[..payload], &other[payload..other.len() - SEAL]].concat(),
    );

    // A whole age file under the name of another object: only its own head tells.
    let elsewhere = Head {
        key: "1/wal/y.zst".to_owned(),
        ..head()
    };
    let moved = [
        encode_envelope(&elsewhere.envelope()).unwrap().as_slice(),
        &before[envelope..],
    ]
    .concat();
    let place = Expected {
        key: elsewhere.key,
        ..expected()
    };
    let read = read_object(
        resealed(&moved, &content).as_slice(),
        place,
        || Ok(identities.clone()),
        |_| Ok::<_, CodecError>(()),
    );
    assert!(
        matches!(read, Err(CodecError::Misplaced { field: "key", .. })),
        "a moved age file: {read:?}"
    );

    let forged = resealed(before, b"other content");
    let read = open(&forged, &identities).unwrap_err().to_string();
    assert!(
        read.contains("its seal speaks of another content"),
        "a seal that is to make a push believe that its file is archived: {read}"
    );
    assert!(
        open(&good, &identities).is_ok(),
        "what all this was tried on is good itself"
    );
}

#[test]
fn an_encrypted_object_in_an_encrypted_object_is_refused() {
    let (identities, recipient) = keys();
    let recipients = [recipient];
    let inner = sealed(b"content", &recipients);
    let mut sealer = Sealer::new(&head(), &recipients).unwrap();
    let mut bytes = sealer.write(&inner).unwrap();
    bytes.extend(sealer.finish(None).unwrap());
    assert!(open(&bytes, &identities).is_err());
}

#[test]
fn a_header_without_end_is_refused_before_it_fills_memory() {
    let (identities, _) = keys();
    let mut bytes = encode_envelope(&head().envelope()).unwrap();
    bytes.extend(b"age-encryption.org/v1\n-> X25519 ");
    bytes.resize(bytes.len() + 100_000, b'A');
    let error = open(&bytes, &identities).unwrap_err().to_string();
    assert!(
        error.contains("header has no end"),
        "expected the bound to be named: {error}"
    );
}

#[test]
fn as_many_recipients_as_are_allowed_can_be_read() {
    let (identities, recipient) = keys();
    let mut recipients: Vec<Recipient> = (1..crate::encryption::MAX_RECIPIENTS)
        .map(|_| keys().1)
        .collect();
    recipients.push(recipient);
    let stored = sealed(b"content", &recipients);
    assert_eq!(open(&stored, &identities).unwrap(), b"content");
}

#[test]
fn a_tail_is_read_from_both_ends_alone_wherever_encryption_cuts_it() {
    let (identities, recipient) = keys();
    // The plain object's length goes through several multiples of 64 KiB, and its tail beyond some.
    let mut asked = 0;
    for length in (60_000..=75_000).step_by(61).chain([0, 200_000, 4_000_000]) {
        let stored = sealed(&noise(length), std::slice::from_ref(&recipient));
        let mut suffix = SEAL as u64 + 1;
        let tail = loop {
            asked += 1;
            let from = stored.len().saturating_sub(suffix as usize);
            let front = &stored[..stored.len().min(16 * 1024)];
            let size = stored.len() as u64;
            match sealed_tail(front, &stored[from..], size, &identities).unwrap() {
                SealedTail::Read(read) => break read.tail,
                SealedTail::Needs(needed) => {
                    assert!(needed > suffix, "asked for what was given, at {length}");
                    suffix = needed;
                }
            }
        };
        assert_eq!(tail.content_size, length as u64);
        assert_eq!(tail.sha256, Some(Sha256Digest::of(&noise(length))));
    }
    assert!(asked > 500, "{asked} looks were expected to be more");
}

#[test]
fn an_envelope_and_a_seal_have_the_lengths_that_people_are_told() {
    let stored = sealed(&noise(1000), &[keys().1]);
    assert_eq!(frame_length(&stored).unwrap(), Some(1024), "the envelope");
    assert!(
        stored[1024..].starts_with(b"age-encryption.org/v1\n"),
        "an age file follows it"
    );
    let seal = &stored[stored.len() - 512..];
    assert_eq!(frame_length(seal).unwrap(), Some(512), "the seal");
    let long = Head {
        writer: Writer {
            host: "h".repeat(2000),
            ..head().writer
        },
        ..head()
    };
    let long = encode_envelope(&long.envelope()).unwrap();
    assert_eq!(long.len() % 1024, 0, "a longer one is a multiple");
}

#[test]
fn a_plain_object_is_read_the_same_way() {
    let mut bytes = encode_head(&head()).unwrap();
    let content = noise(10_000);
    let frame = FrameCompressor::new(1).unwrap().compress(&content).unwrap();
    bytes.extend(&frame.stored);
    let tail = Tail {
        content_size: content.len() as u64,
        index: None,
        sha256: Some(Sha256Digest::of(&content)),
        frames: vec![frame.entry],
    };
    bytes.extend(encode_tail(&tail).unwrap().0);
    assert_eq!(open(&bytes, &keys().0).unwrap(), content);
    assert!(matches!(prove(&bytes), Ok(Proven::Plain(object)) if object.tail == tail));
    assert!(prove(&bytes[..bytes.len() - 1]).is_err());
    let sealed = seal(&bytes, &[keys().1]).unwrap();
    assert!(
        matches!(prove(&sealed), Ok(Proven::Sealed { seal, .. }) if seal.content_hmac.is_none())
    );
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn an_object_reads_the_same_in_any_portions(
        length in 0_usize..200_000,
        portion in prop_oneof![1_usize..20, 1_usize..100_000],
    ) {
        let (identities, recipient) = keys();
        let content = noise(length);
        let stored = sealed(&content, &[recipient]);
        prop_assert_eq!(open_in_portions(&stored, &identities, portion).unwrap(), content);
    }

    #[test]
    fn no_bytes_make_the_reader_panic(
        bytes in prop::collection::vec(any::<u8>(), 0..300),
        at in any::<prop::sample::Index>(),
        reseal in any::<bool>(),
    ) {
        let (identities, recipient) = keys();
        let mut spliced = sealed(b"content", &[recipient]);
        let at = at.index(spliced.len());
        spliced.splice(at..at, bytes.iter().copied());
        if reseal {
            spliced = resealed(&spliced[..spliced.len() - SEAL], b"content");
        }
        let _ = sealed_tail(&spliced, &spliced, spliced.len() as u64, &identities);
        prop_assert!(bytes.is_empty() || open(&spliced, &identities).is_err());
        prop_assert!(open(&bytes, &identities).is_err());
    }
}
