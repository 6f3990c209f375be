use std::sync::Arc;

use crc32c::crc32c;
use walden_model::{FindingKind, Sha256Digest, VerifyMode};

use super::map::{Files, Listed, moved};
use super::{VerifyRequest, verify_in};
use crate::progress::Silent;
use crate::repository::{Place, RepositorySettings};
use crate::restore::tests::bed::{Bed, cluster, file};

/// What is found of backups, each with its words.
async fn found(bed: &Bed) -> Vec<(FindingKind, String)> {
    let request = VerifyRequest {
        repository: RepositorySettings {
            name: "here".to_owned(),
            place: Place::Folder("/".into()),
            id: None,
            required: true,
            keys: Default::default(),
        },
        cluster: bed.keys.cluster.clone(),
        system: None,
        mode: VerifyMode::All,
        backup: None,
        jobs: 2,
    };
    let report = verify_in(&bed.repository, &request, Arc::new(Silent)).await;
    let found = report.systems[0].findings.sorted();
    let found = found.into_iter().map(|one| (one.kind, one.what.clone()));
    found.collect()
}

/// A manifest that lists nothing and needs this WAL.
fn manifest(ranges: &str) -> String {
    let lines = format!(
        "{{ \"PostgreSQL-Backup-Manifest-Version\": 1,\n\"Files\": [\n],\n\"WAL-Ranges\": [\n{ranges}\n],\n"
    );
    let digest = Sha256Digest::of(lines.as_bytes()).hex();
    format!("{lines}\"Manifest-Checksum\": \"{digest}\"}}\n")
}

#[tokio::test]
async fn digests_that_fit_do_not_hide_what_a_backup_lacks() {
    let entry = |extent: &str, size: u64| {
        format!(
            "{{\"path\":\"x\",\"type\":\"file\",\"mode\":\"0600\",\"mtime\":0,\"size\":{size},\"crc32c\":\"00000000\",\"extents\":[{extent}]}}\n"
        )
    };
    let rows = [
        (
            None,
            FindingKind::ManifestMismatch,
            "holds no backup_manifest",
        ),
        (
            Some(entry("[\"data\",0,5,0,0,0]", 5)),
            FindingKind::FilesDamaged,
            "not whole: x",
        ),
        (
            Some(entry("[\"data\",0,5,0,99,0]", 5)),
            FindingKind::PackDamaged,
            "which it does not hold",
        ),
        (
            Some(entry("[\"data\",0,5,900,0,0]", 5)),
            FindingKind::FileMapDamaged,
            "lies in pack 900",
        ),
    ];
    for (line, kind, words) in rows {
        let bed = Bed::new().await;
        let parts = cluster();
        let (packs, mut map) = bed.contents(1, &parts).await;
        map.extend(line.map(String::into_bytes));
        bed.commit(1, packs, &map, &parts, Vec::new()).await;
        let found = found(&bed).await;
        let is = |one: &(FindingKind, String)| one.0 == kind && one.1.contains(words);
        assert!(found.iter().any(is), "{words:?} was expected in {found:?}");
        let wal = FindingKind::SegmentDamaged;
        assert!(
            found.iter().any(|one| one.0 == wal),
            "no page header: {found:?}"
        );
    }
}

#[tokio::test]
async fn a_file_map_that_is_not_the_manifests_is_found() {
    let bed = Bed::new().await;
    let record = bed.backup(1, &cluster(), Vec::new()).await;
    let ranges: Vec<String> = record
        .wal_ranges
        .iter()
        .map(|range| {
            format!(
                "{{ \"Timeline\": {}, \"Start-LSN\": \"{}\", \"End-LSN\": \"{}\" }}",
                range.timeline, range.start, range.end
            )
        })
        .collect();
    for (ranges, words) in [
        (ranges.join(","), "lists 0 files"),
        (String::new(), "needs other WAL"),
    ] {
        let bed = Bed::new().await;
        let mut parts = cluster();
        parts.push(file("backup_manifest", manifest(&ranges)));
        parts.sort_by(|a, b| a.path.cmp(&b.path));
        bed.backup(1, &parts, Vec::new()).await;
        let found = found(&bed).await;
        let kind = FindingKind::ManifestMismatch;
        let is = |one: &(FindingKind, String)| one.0 == kind && one.1.contains(words);
        assert!(found.iter().any(is), "{words:?} was expected in {found:?}");
    }
}

#[test]
fn a_checksum_is_the_sum_of_its_parts_moved_by_what_lies_behind() {
    let content: Vec<u8> = (0..5000_u32)
        .map(|number| (number * 7 % 251) as u8)
        .collect();
    let cuts = [0, 1, 17, 1024, 4999, 5000];
    let mut left = crc32c(&content);
    // In any order: from behind here.
    for pair in cuts.windows(2).rev() {
        let (part, behind) = (&content[pair[0]..pair[1]], content.len() - pair[1]);
        assert_ne!(left, 0, "something is missing until the last part");
        left ^= moved(crc32c(part), behind as u64);
    }
    assert_eq!(left, 0);
}

#[test]
fn lists_are_the_same_in_any_order_and_differ_by_each_word() {
    let sum = |files: &[(&str, u64, u8)]| {
        let mut listed = Listed::default();
        for (path, size, crc) in files {
            listed.add(path.as_bytes(), *size, &[*crc, 0, 0, 0]);
        }
        listed
    };
    let whole = sum(&[("a", 1, 1), ("b", 2, 2)]);
    assert_eq!(whole, sum(&[("b", 2, 2), ("a", 1, 1)]));
    for other in [
        sum(&[("a", 1, 1)]),
        sum(&[("a", 1, 1), ("c", 2, 2)]),
        sum(&[("a", 1, 1), ("b", 3, 2)]),
        sum(&[("a", 1, 1), ("b", 2, 3)]),
        sum(&[("a", 2, 2), ("b", 1, 1)]),
    ] {
        assert_ne!(whole, other);
    }
}

#[test]
fn packs_are_read_in_portions_that_fit_and_each_once() {
    let files = Files {
        per_pack: vec![3, 3, 5, 0, 9, 1],
        ..Files::default()
    };
    assert_eq!(files.portions(8), [0..2, 2..4, 4..5, 5..6]);
    assert_eq!(files.portions(100).len(), 1);
}
