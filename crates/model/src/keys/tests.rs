use super::*;
use proptest::prelude::*;

fn keys() -> SystemKeys {
    SystemKeys {
        cluster: "main".parse().unwrap(),
        system: SystemIdentifier(7_302_911),
    }
}

fn wal(file: &str) -> String {
    keys().wal(&WalName::new(
        file.parse().unwrap(),
        &Sha256Digest::of(b"abc"),
    ))
}

#[test]
fn keys_are_spelled_as_the_format_says() {
    let id: BackupId = "20261122T175007Z-0badcafe".parse().unwrap();
    let file: WalFileName = "0000000A0000000B0000000C".parse().unwrap();
    for (key, expected) in [
        (
            wal("0000000A0000000B0000000C"),
            "main/7302911/wal/0000000A/0000000B/0000000A0000000B0000000C.zst",
        ),
        (
            wal("0000000A0000000B0000000C.00000028.backup"),
            "main/7302911/wal/0000000A/0000000B/0000000A0000000B0000000C.00000028.backup.zst",
        ),
        (
            wal("0000000A0000000B0000000C.partial"),
            "main/7302911/wal/0000000A/0000000B/0000000A0000000B0000000C.partial.ba7816bf8f01cfea.zst",
        ),
        (
            wal("0000000A.history"),
            "main/7302911/wal/0000000A.history.zst",
        ),
        (keys().wal_prefix(), "main/7302911/wal/"),
        (
            keys().wal_timeline_prefix(TimelineId(10)),
            "main/7302911/wal/0000000A/",
        ),
        (
            keys().wal_log_prefix(TimelineId(10), 11),
            "main/7302911/wal/0000000A/0000000B/",
        ),
        (
            keys().commit(&id),
            "main/7302911/commits/20261122T175007Z-0badcafe.json",
        ),
        (
            keys().started(&id),
            "main/7302911/backups/20261122T175007Z-0badcafe/started.json",
        ),
        (
            keys().pack(&id, 10),
            "main/7302911/backups/20261122T175007Z-0badcafe/packs/0000000a.zst",
        ),
        (
            keys().file_map(&id, 0),
            "main/7302911/backups/20261122T175007Z-0badcafe/files/00000000.zst",
        ),
        (
            keys().names(&id, 1),
            "main/7302911/backups/20261122T175007Z-0badcafe/names/00000001.zst",
        ),
        (
            keys().quarantine(&file, &Sha256Digest::of(b"abc")),
            "main/7302911/quarantine/0000000A0000000B0000000C.ba7816bf8f01cfea.zst",
        ),
        (
            identity(&keys().cluster, keys().system),
            "main/identity/7302911.json",
        ),
    ] {
        assert_eq!(key, expected);
    }
    assert_eq!(below_cluster(&keys().wal_prefix()), "7302911/wal/");
    assert_eq!(keys().parse_commit(&keys().commit(&id)), Some(id.clone()));
    assert_eq!(keys().parse_backup(&keys().pack(&id, 3)), Some(id));
    assert_eq!(
        keys().parse_quarantine(&keys().quarantine(&file, &Sha256Digest::of(b"abc"))),
        Some((file, Sha256Digest::of(b"abc").short()))
    );
    let block = Block {
        level: Level::One,
        timeline: TimelineId(10),
        first: 512,
    };
    let rollup = keys().rollup(&block, WalSegmentSize::DEFAULT);
    assert_eq!(
        rollup,
        "main/7302911/rollup/1/0000000A/1/0000000A0000000200000000.zst"
    );
    assert_eq!(
        keys().parse_rollup(&rollup, WalSegmentSize::DEFAULT),
        Some(block)
    );
    assert_eq!(
        parse_identity(&keys().cluster, "main/identity/7302911.json"),
        Some(keys().system)
    );
}

#[test]
fn a_backup_id_carries_its_second() {
    let at = "2026-11-22T17:50:07.9Z".parse().unwrap();
    assert_eq!(
        BackupId::new(at, 0x0bad_cafe).as_str(),
        "20261122T175007Z-0badcafe"
    );
    for bad in [
        "",
        "20261122T175007Z-0BADCAFE",
        "20261122T175007Z-0badcaf",
        "20261122T175007-0badcafe0",
        "../../../../../../etc/pass",
    ] {
        assert!(bad.parse::<BackupId>().is_err(), "{bad:?} must be refused");
    }
}

#[test]
fn cluster_names_that_could_leave_their_folder_are_refused() {
    assert!("a".parse::<ClusterName>().is_ok() && "0-x".parse::<ClusterName>().is_ok());
    for bad in [
        "",
        "identity",
        "-a",
        "A",
        "a_b",
        "a/b",
        "..",
        "ä",
        "a b",
        &"a".repeat(64),
    ] {
        assert!(
            bad.parse::<ClusterName>().is_err(),
            "{bad:?} must be refused"
        );
    }
}

#[test]
fn keys_that_are_not_wal_are_not_read_as_wal() {
    for key in [
        "",
        "00000001/00000000/000000010000000000000003",
        "00000002/00000000/000000010000000000000003.zst",
        "00000001/00000001/000000010000000000000003.zst",
        "000000010000000000000003.zst",
        "00000001/00000000/000000010000000000000003.partial.zst",
        "00000001/00000000/000000010000000000000003.partial.BA7816BF8F01CFEA.zst",
        "00000001/00000000/000000010000000000000003.zst.zst",
        "00000001/00000001.history.zst",
        "00000001/00000000/.000000010000000000000003.zst",
    ] {
        assert_eq!(parse_wal_key(key), None, "{key:?}");
    }
}

proptest! {
    #[test]
    fn every_wal_key_is_read_back(timeline in 1_u32.., number in 0_u64..1 << 40, offset: u32, digest: [u8; 32]) {
        let segment = SegmentName::from_number(TimelineId(timeline), number, WalSegmentSize::DEFAULT);
        for file in [
            WalFileName::Segment(segment),
            WalFileName::Partial(segment),
            WalFileName::History(TimelineId(timeline)),
            WalFileName::Backup { segment, offset },
        ] {
            let name = WalName::new(file, &Sha256Digest(digest));
            let key = keys().wal(&name);
            let below = key.strip_prefix(&keys().wal_prefix()).unwrap();
            prop_assert_eq!(parse_wal_key(below), Some(name), "{}", below);
        }
    }

    #[test]
    fn no_text_panics_the_parsers(text in "\\PC*") {
        let _ = parse_wal_key(&text);
        let _ = crate::target::parse_target_time(&text);
        prop_assert_eq!(text.parse::<ClusterName>().is_ok_and(|name| name.as_str() != text), false);
    }
}
