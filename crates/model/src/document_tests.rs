//! Every document and metadata frame there and back, and what is refused on the way.

use crate::document::{Document, DocumentError, decode, encode};
use crate::framed::{FrameEntry, Head, HeadKind, Tail, Writer};
use crate::records::{
    AbandonedDocument, BackupRecord, CommitDocument, Encryption, IdentityDocument, NamesRef,
    RandomId, RepositoryDocument, StartedDocument, UnreadDatabase, WalRange,
};
use crate::sample::{backup, id, lsn, size, time};
use crate::{Sha256Digest, WalName};
use proptest::prelude::*;
use walden_pg::{Lsn, SegmentName, SystemIdentifier, TimelineId};

fn repository() -> RepositoryDocument {
    RepositoryDocument {
        repository_id: RandomId([0xab; 16]),
        created_at: time(0),
    }
}

fn identity() -> IdentityDocument {
    IdentityDocument {
        cluster: "main".parse().unwrap(),
        system_identifier: SystemIdentifier(u64::MAX),
        archive_id: RandomId([3; 16]),
        wal_segment_size: size(),
        pg_version: 17,
        created_at: time(1),
        host: "db1".to_owned(),
        encryption: Encryption::None,
    }
}

fn abandoned() -> AbandonedDocument {
    AbandonedDocument {
        backup_id: id(3),
        archive_id: RandomId([3; 16]),
        abandoned_at: time(5),
        host: "db1".to_owned(),
        write_token: RandomId([4; 16]),
    }
}

/// Replaces text in a document's JSON and gives it a digest line that fits.
fn rewritten(bytes: &[u8], from: &str, to: &str) -> Vec<u8> {
    let text = std::str::from_utf8(bytes).unwrap();
    let (json, _) = text.trim_end().rsplit_once('\n').unwrap();
    assert!(
        json.contains(from),
        "the document should contain {from}: {json}"
    );
    let mut json = json.replacen(from, to, 1);
    json.push('\n');
    let digest = Sha256Digest::of(json.as_bytes()).hex();
    format!("{json}{{\"sha256\":\"{digest}\"}}\n").into_bytes()
}

#[test]
fn every_document_is_read_back_as_it_was_written() {
    fn there_and_back<T: Document + PartialEq + std::fmt::Debug>(document: &T) {
        let bytes = encode(document).unwrap();
        assert_eq!(
            &decode::<T>(&bytes).unwrap(),
            document,
            "a {} document",
            T::KIND
        );
    }
    there_and_back(&repository());
    there_and_back(&identity());
    there_and_back(&StartedDocument {
        backup_id: id(1),
        archive_id: RandomId([3; 16]),
        started_at: time(2),
        host: "db1".to_owned(),
        pid: 4711,
        parents: vec![],
        wal_from: None,
        write_token: RandomId([4; 16]),
    });
    there_and_back(&backup(1, 1, 250, 420));
    there_and_back(&BackupRecord {
        snapshot: None,
        damaged: vec![],
        ..backup(2, 3, 0, 1)
    });
    there_and_back(&abandoned());
}

#[test]
fn a_document_looks_as_the_format_says() {
    let text = String::from_utf8(encode(&repository()).unwrap()).unwrap();
    let version = env!("CARGO_PKG_VERSION");
    let json = format!(
        "{{\n  \"format\": 1,\n  \"kind\": \"repository\",\n  \"required_features\": [],\n  \"optional_features\": [],\n  \
         \"written_by\": \"walden {version}\",\n  \"repository_id\": \"abababababababababababababababab\",\n  \
         \"created_at\": \"2026-11-22T12:00:00Z\"\n}}\n"
    );
    let digest = Sha256Digest::of(json.as_bytes()).hex();
    assert_eq!(text, format!("{json}{{\"sha256\":\"{digest}\"}}\n"));
}

#[test]
fn each_flipped_bit_and_each_cut_of_a_document_is_found() {
    let bytes = encode(&repository()).unwrap();
    for at in 0..bytes.len() {
        for bit in 0..8 {
            let mut damaged = bytes.clone();
            damaged[at] ^= 1 << bit;
            let result = decode::<RepositoryDocument>(&damaged);
            assert!(
                matches!(result, Err(DocumentError::Damaged(_))),
                "bit {bit} of byte {at}: {result:?}"
            );
        }
        let result = decode::<RepositoryDocument>(&bytes[..at]);
        assert!(
            matches!(result, Err(DocumentError::Damaged(_))),
            "cut at {at}: {result:?}"
        );
    }
}

#[test]
fn later_versions_are_refused_by_name() {
    let bytes = encode(&identity()).unwrap();
    let newer = rewritten(&bytes, "\"format\": 1", "\"format\": 2");
    assert!(
        matches!(
            decode::<IdentityDocument>(&newer),
            Err(DocumentError::NewerFormat(2))
        ),
        "format 2 must be refused"
    );
    let feature = rewritten(
        &bytes,
        "\"required_features\": []",
        "\"required_features\": [\"time-travel\"]",
    );
    let refusal = decode::<IdentityDocument>(&feature).unwrap_err();
    assert!(
        matches!(&refusal, DocumentError::UnknownFeature(name) if name == "time-travel"),
        "{refusal}"
    );
    let refusal = decode::<RepositoryDocument>(&bytes).unwrap_err();
    assert_eq!(
        refusal.to_string(),
        "this is a document of kind \"identity\", not \"repository\""
    );
    let encryption = rewritten(
        &bytes,
        "\"encryption\": \"none\"",
        "\"encryption\": \"rot13\"",
    );
    assert!(
        matches!(
            decode::<IdentityDocument>(&encryption),
            Err(DocumentError::Malformed { .. })
        ),
        "an encryption that this version does not know must be refused"
    );
}

#[test]
fn what_a_reader_does_not_know_it_ignores() {
    let bytes = encode(&identity()).unwrap();
    let more = rewritten(
        &bytes,
        "\"optional_features\": []",
        "\"optional_features\": [\"x\"],\n  \"colour\": {\"is\": 3}",
    );
    assert_eq!(decode::<IdentityDocument>(&more).unwrap(), identity());
}

#[test]
fn a_backup_without_names_and_one_with_them_are_both_read() {
    let without = encode(&backup(1, 1, 100, 250)).unwrap();
    assert!(
        !String::from_utf8_lossy(&without).contains("\"names\""),
        "what is not there is not spoken of, as in documents of older versions"
    );
    let read: BackupRecord = decode(&without).unwrap();
    assert_eq!(read.names, None);
    let mut with = backup(1, 1, 100, 250);
    with.names = Some(NamesRef {
        shards: with.file_map.clone(),
        unread_databases: vec![UnreadDatabase {
            oid: 4,
            name: "template0".into(),
            reason: "it does not allow connections".to_owned(),
        }],
        unread: 1,
    });
    let bytes = encode(&with).unwrap();
    assert_eq!(decode::<BackupRecord>(&bytes).unwrap(), with);
}

#[test]
fn a_commit_key_holds_a_backup_or_its_absence() {
    let record = backup(1, 1, 250, 420);
    let read = CommitDocument::decode(&encode(&record).unwrap()).unwrap();
    assert_eq!(read, CommitDocument::Backup(Box::new(record)));
    let read = CommitDocument::decode(&encode(&abandoned()).unwrap()).unwrap();
    assert_eq!(read, CommitDocument::Abandoned(abandoned()));
    let other = CommitDocument::decode(&encode(&repository()).unwrap());
    assert!(
        matches!(other, Err(DocumentError::WrongKind { .. })),
        "{other:?}"
    );
}

#[test]
fn impossible_commit_documents_are_refused() {
    let good = || backup(1, 1, 250, 420);
    let range = |timeline, start, end| WalRange {
        timeline: TimelineId(timeline),
        start,
        end,
    };
    for (what, record) in [
        (
            "the stop before the start",
            BackupRecord {
                start_lsn: lsn(421),
                ..good()
            },
        ),
        (
            "no WAL range",
            BackupRecord {
                wal_ranges: vec![],
                ..good()
            },
        ),
        (
            "no WAL range on its timeline",
            BackupRecord {
                wal_ranges: vec![range(2, lsn(250), lsn(420))],
                ..good()
            },
        ),
        (
            "a reversed WAL range",
            BackupRecord {
                wal_ranges: vec![range(1, lsn(2), lsn(1))],
                ..good()
            },
        ),
        (
            "endless WAL",
            BackupRecord {
                wal_ranges: vec![range(1, Lsn(0), Lsn(u64::MAX))],
                ..good()
            },
        ),
        ("sizes that overflow", {
            let mut record = good();
            record.packs[0].size = u64::MAX;
            record
        }),
    ] {
        let result = decode::<BackupRecord>(&encode(&record).unwrap());
        assert!(
            matches!(result, Err(DocumentError::Damaged(_))),
            "{what} must be refused, got {result:?}"
        );
    }
}

#[test]
fn the_wal_a_backup_needs_ends_with_the_last_byte() {
    let names = |record: BackupRecord| -> Vec<String> {
        record
            .needed_segments(size())
            .iter()
            .map(ToString::to_string)
            .collect()
    };
    assert_eq!(
        names(backup(1, 1, 250, 420)),
        [
            "000000010000000000000002",
            "000000010000000000000003",
            "000000010000000000000004"
        ]
    );
    assert_eq!(
        names(backup(1, 1, 250, 300)),
        ["000000010000000000000002"],
        "nothing of segment 3 is needed"
    );
    let range = |timeline, start, end| WalRange {
        timeline: TimelineId(timeline),
        start: lsn(start),
        end: lsn(end),
    };
    // The manifest names the newest timeline first.
    let across = BackupRecord {
        timeline: TimelineId(3),
        wal_ranges: vec![range(3, 440, 520), range(2, 430, 440), range(1, 250, 430)],
        ..backup(1, 1, 250, 520)
    };
    assert_eq!(
        names(across),
        [
            "000000010000000000000002",
            "000000010000000000000003",
            "000000030000000000000004",
            "000000030000000000000005"
        ],
        "the segment of the forks is needed on the newest timeline alone"
    );
}

#[test]
fn heads_and_tails_are_read_back_as_they_were_written() {
    let writer = Writer {
        host: "db1".to_owned(),
        started_at: time(0),
        pid: 12,
        version: "0.1.0".to_owned(),
    };
    let name = WalName::Segment(SegmentName::from_number(TimelineId(1), 3, size()));
    let keys = crate::SystemKeys {
        cluster: "main".parse().unwrap(),
        system: SystemIdentifier(7),
    };
    let key = keys.wal(&name);
    let head = Head::new(
        HeadKind::FileMap,
        RandomId([1; 16]),
        crate::keys::below_cluster(&key),
        None,
        writer,
    );
    let json = head.encode().unwrap();
    assert_eq!(Head::decode(&json).unwrap(), head);
    let text = String::from_utf8(json).unwrap();
    assert!(
        text.contains("\"key\":\"7/wal/00000001/00000000/000000010000000000000003.zst\""),
        "{text}"
    );
    assert!(
        text.contains("\"kind\":\"file-map\"") && !text.contains("content_size"),
        "{text}"
    );
    let newer = text.replace("\"format\":1", "\"format\":9");
    assert!(
        matches!(
            Head::decode(newer.as_bytes()),
            Err(DocumentError::NewerFormat(9))
        ),
        "format 9 must be refused"
    );

    let frame = FrameEntry {
        stored: 10,
        content: 25,
        digest: Sha256Digest([5; 32]),
    };
    let tail = Tail {
        content_size: 50,
        index: None,
        sha256: Some(Sha256Digest([6; 32])),
        frames: vec![frame, frame],
    };
    let json = tail.encode().unwrap();
    assert_eq!(Tail::decode(&json).unwrap(), tail);
    let text = String::from_utf8(json).unwrap();
    assert!(text.contains("\"frames\":[[10,25,\"sha256:0505"), "{text}");
    let with_index = text.replacen('{', "{\"commits\":[1,2],", 1);
    assert_eq!(
        Tail::decode(with_index.as_bytes()).unwrap(),
        tail,
        "a tail's further keys are ignored"
    );
    for (what, content_size, stored, content) in [
        ("a wrong sum", 51, 10, 25),
        ("an overflow of content", 0, 1, 1 << 63),
        ("an overflow of stored bytes", 2, 1 << 63, 1),
    ] {
        let frame = FrameEntry {
            stored,
            content,
            digest: Sha256Digest([5; 32]),
        };
        let bad = Tail {
            content_size,
            index: None,
            sha256: None,
            frames: vec![frame, frame],
        };
        let result = Tail::decode(&bad.encode().unwrap());
        assert!(
            matches!(result, Err(DocumentError::Damaged(_))),
            "{what} must be refused, got {result:?}"
        );
    }
}

proptest! {
    #[test]
    fn no_bytes_panic_a_reader(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
        prop_assert!(CommitDocument::decode(&bytes).is_err());
        prop_assert!(Head::decode(&bytes).is_err());
        let _ = Tail::decode(&bytes);
        let _ = crate::FileEntry::decode_line(&bytes);
    }
}

#[test]
fn an_index_that_cannot_be_used_is_none_and_harms_no_tail() {
    let index = r#"{"version":1,"pg_version":17,"records":3}"#;
    let tail = |index: &str| {
        Tail::decode(
            format!(r#"{{"content_size":0,"index":{index},"frames":[],"later":1}}"#).as_bytes(),
        )
    };
    let read = tail(index).unwrap().index.expect("a good index is read");
    assert_eq!((read.version, read.records), (1, 3));
    let deep = format!("{}{}", "[".repeat(100_000), "]".repeat(100_000));
    let huge = format!(
        r#"{{"version":1,"pg_version":17,"records":3,"restore_points":[{}1]}}"#,
        "1,".repeat(1 << 20)
    );
    for (what, bad) in [
        ("another version", index.replace("1,", "2,")),
        (
            "another shape",
            r#"{"version":1,"records":"many"}"#.to_owned(),
        ),
        ("null", "null".to_owned()),
        ("a list", "[1,[2]]".to_owned()),
        ("deep nesting", deep),
        ("a huge list", huge),
    ] {
        let read = tail(&bad).unwrap_or_else(|e| panic!("{what} made the tail unreadable: {e}"));
        assert_eq!(read.index, None, "{what} passed for an index");
    }
}
