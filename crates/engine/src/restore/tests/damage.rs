//! Whatever is wrong in the repository is found, named, and leaves nothing that PostgreSQL would start.

use std::fs;

use walden_model::{HeadKind, PackRef};

use super::bed::{Bed, PACK_FRAMES, cluster, file, link};
use super::{chain, run};
use crate::host;

/// Restores, which must fail without a cluster; the error's text.
async fn refused(bed: &Bed) -> String {
    let error = run(&bed.request()).await.err();
    assert!(
        !bed.target().join(host::CONTROL).exists(),
        "a restore that failed must not leave a pg_control"
    );
    match error {
        Some(error) => chain(&error),
        None => panic!("the restore must fail"),
    }
}

#[tokio::test]
async fn no_flipped_bit_goes_unseen_and_each_is_named() {
    let bed = Bed::new().await;
    bed.backup(1, &cluster(), Vec::new()).await;
    let objects = bed.objects();
    let of_backup = objects
        .iter()
        .filter(|(key, _)| key.contains("/packs/") || key.contains("/files/"));
    for (key, path) in of_backup {
        let whole = fs::read(path).unwrap();
        let step = if key.ends_with("00000000.zst") { 5 } else { 97 };
        for at in (0..whole.len()).step_by(step) {
            let mut bytes = whole.clone();
            bytes[at] ^= 1 << (at % 8);
            fs::write(path, bytes).unwrap();
            let why = refused(&bed).await;
            assert!(
                why.contains(key),
                "byte {at} of {key} was changed, and the error says: {why}"
            );
            let _ = fs::remove_dir_all(bed.target());
        }
        fs::write(path, whole).unwrap();
    }
    run(&bed.request())
        .await
        .expect("with every byte put back the restore must work");
}

#[tokio::test]
async fn a_damaged_commit_document_is_no_backup_and_does_not_hide_another() {
    let bed = Bed::new().await;
    let record = bed.backup(1, &cluster(), Vec::new()).await;
    bed.backup(2, &cluster(), Vec::new()).await;
    let key = bed.keys.commit(&Bed::id(2));
    let path = bed.dir.path().join("repository").join(&key);
    let mut bytes = fs::read(&path).unwrap();
    bytes[40] ^= 1;
    fs::write(&path, bytes).unwrap();
    let planned = super::super::plan(&bed.request()).await.unwrap();
    assert_eq!(
        planned.plan.backup.backup_id, record.backup_id,
        "the readable backup must be chosen"
    );
    let systems = crate::catalog::load(&bed.repository, &bed.keys.cluster, None)
        .await
        .unwrap();
    let damaged: Vec<_> = systems[0]
        .catalog
        .damaged_documents
        .iter()
        .map(|d| d.key.as_str())
        .collect();
    assert_eq!(damaged, [key.as_str()], "and the damaged one named");
}

#[tokio::test]
async fn a_pack_cannot_pass_for_another() {
    let bed = Bed::new().await;
    let record = bed.backup(1, &cluster(), Vec::new()).await;
    let root = bed.dir.path().join("repository");
    let path = |pack: &PackRef| root.join(bed.keys.pack(&pack.backup, pack.number));
    let (first, second) = (
        fs::read(path(&record.packs[0])).unwrap(),
        fs::read(path(&record.packs[1])).unwrap(),
    );
    if first.len() == second.len() {
        fs::write(path(&record.packs[0]), second).unwrap();
        let why = refused(&bed).await;
        assert!(
            why.contains("belongs elsewhere"),
            "two packs were swapped: {why}"
        );
        fs::remove_dir_all(bed.target()).unwrap();
    }
    // A whole pack under the right key, with other bytes of the same length: only the commit document's digest tells.
    let other: Vec<_> = (0..PACK_FRAMES).map(|_| vec![b'z'; bed.frame]).collect();
    let key = bed.keys.pack(&Bed::id(1), 0);
    let (size, _) = bed.framed(HeadKind::Pack, &key, &other).await;
    let why = match size == record.packs[0].size {
        true => refused(&bed).await,
        // The listing already shows a pack of another size, so make the commit document agree with it.
        false => {
            let mut record = record.clone();
            record.packs[0].size = size;
            fs::remove_file(root.join(bed.keys.commit(&record.backup_id))).unwrap();
            bed.repository
                .put_document(&bed.keys.commit(&record.backup_id), &record)
                .await
                .unwrap();
            refused(&bed).await
        }
    };
    assert!(
        why.contains(&key) && why.contains("commit document names"),
        "the pack was replaced: {why}"
    );
}

#[tokio::test]
async fn a_missing_pack_is_known_before_a_byte_is_written() {
    let bed = Bed::new().await;
    bed.backup(1, &cluster(), Vec::new()).await;
    let key = bed.keys.pack(&Bed::id(1), 0);
    fs::remove_file(bed.dir.path().join("repository").join(&key)).unwrap();
    let why = refused(&bed).await;
    assert!(!bed.target().exists(), "nothing may be written: {why}");
    let request = crate::restore::RestoreRequest {
        backup: Some(Bed::id(1)),
        ..bed.request()
    };
    let why = chain(&run(&request).await.unwrap_err());
    assert!(
        why.contains(Bed::id(1).as_str()),
        "the backup that was asked for must be named: {why}"
    );
}

/// Adds these lines to a good file map, in order, and says how the restore ends.
async fn with_lines(lines: &[&str]) -> (Bed, String) {
    let bed = Bed::new().await;
    let parts = cluster();
    let (packs, mut map) = bed.contents(1, &parts).await;
    map.extend(lines.iter().map(|line| format!("{line}\n").into_bytes()));
    bed.commit(1, packs, &map, &parts, Vec::new()).await;
    let why = refused(&bed).await;
    (bed, why)
}

fn hostile(path: &str, extents: &str, size: u64) -> String {
    format!(
        r#"{{"path":"{path}","type":"file","mode":"0600","mtime":0,"size":{size},"crc32c":"00000000","extents":[{extents}]}}"#
    )
}

#[tokio::test]
async fn hostile_entries_are_refused_before_a_byte_is_written() {
    let data = r#"["data",0,5,0,0,0]"#;
    let rows = [
        (hostile("../outside", data, 5), "\"..\" component"),
        (hostile("x/../../outside", data, 5), "\"..\" component"),
        (hostile("/tmp/outside", data, 5), "must be relative"),
        (
            hostile("/etc/../../outside", data, 5).replace(r#""file""#, r#""extra""#),
            "\"..\" component",
        ),
        (hostile("x\\u0000y", data, 5), "NUL"),
        (hostile("base", data, 5), "twice or out of order"),
        (hostile("x", data, 6), "should have 6"),
        (
            hostile("x", r#"["data",0,5,900,0,0]"#, 5),
            "lies in pack 900",
        ),
        (
            hostile("x", r#"["zero",0,4611686018427387904]"#, 1 << 62),
            "has room for",
        ),
        (
            r#"{"path":"x","type":"link","mode":"0777","mtime":0,"target":"/etc"}"#.into(),
            "only tablespaces",
        ),
        (
            r#"{"path":"zpg_tblspc/1","type":"link","mode":"0777","mtime":0,"target":"/etc"}"#
                .into(),
            "only tablespaces",
        ),
        (
            r#"{"path":"x","type":"device","mode":"0777","mtime":0}"#.into(),
            "well-formed",
        ),
        ("x".into(), "well-formed"),
    ];
    for (line, expected) in rows {
        let (bed, why) = with_lines(&[&line]).await;
        assert!(
            why.contains(expected),
            "{line} must be refused for {expected:?}, not: {why}"
        );
        assert!(
            !bed.target().exists(),
            "{line} must be refused before anything is written"
        );
        assert!(
            !bed.dir.path().join("outside").exists(),
            "{line} must not leave the target"
        );
    }
}

#[tokio::test]
async fn entries_that_only_the_packs_prove_wrong_leave_no_cluster() {
    let rows = [
        (hostile("x", r#"["data",0,5,0,99,0]"#, 5), "does not hold"),
        (
            hostile("x", r#"["data",0,5,0,0,4000000]"#, 5),
            "does not hold",
        ),
        (
            hostile("x", r#"["data",0,100000,0,0,0]"#, 100_000),
            "does not hold",
        ),
        (hostile("x", r#"["data",0,5,0,0,0]"#, 5), "CRC32C"),
        // A file where a directory has to be.
        (
            hostile("pg_wall", "", 0).replace("pg_wall", "postgresql.auto.conf/x"),
            "cannot write",
        ),
    ];
    for (line, expected) in rows {
        let (bed, why) = with_lines(&[&line]).await;
        assert!(
            why.contains(expected),
            "{line} must be refused for {expected:?}, not: {why}"
        );
        assert!(
            why.contains("unusable and may be removed"),
            "a person must be told what is left: {why}"
        );
        let again = refused(&bed).await;
        assert!(
            again.contains("not empty"),
            "what is left must not be mixed with a second restore: {again}"
        );
    }
}

#[tokio::test]
async fn a_link_or_a_tablespace_map_that_the_commit_document_does_not_know_is_refused() {
    let bed = Bed::new().await;
    let mut parts = cluster();
    parts.push(link("pg_tblspc/16400", "/srv/production"));
    bed.backup(1, &parts, Vec::new()).await;
    let why = refused(&bed).await;
    assert!(why.contains("none of the backup's tablespaces"), "{why}");

    let bed = Bed::new().await;
    let mut parts = cluster();
    parts.push(file("tablespace_map", "16400 /srv/production\n"));
    bed.backup(1, &parts, Vec::new()).await;
    let why = refused(&bed).await;
    assert!(
        why.contains("names tablespace 16400"),
        "PostgreSQL would link production's tablespace: {why}"
    );
}

#[tokio::test]
async fn a_backup_without_what_recovery_needs_is_refused() {
    for lacking in ["backup_label", host::CONTROL, "PG_VERSION"] {
        let bed = Bed::new().await;
        let mut parts = cluster();
        parts.retain(|part| part.path != lacking);
        bed.backup(1, &parts, Vec::new()).await;
        let why = refused(&bed).await;
        assert!(
            why.contains(&format!("the backup has no {lacking}")),
            "{why}"
        );
    }
}
