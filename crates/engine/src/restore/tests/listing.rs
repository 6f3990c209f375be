//! What a listing shows of backups in every state.

use std::fs;

use jiff::Timestamp;
use walden_model::{AbandonedDocument, IdentityDocument, RandomId, StartedDocument, keys};
use walden_pg::SystemIdentifier;

use super::bed::{Bed, cluster};
use crate::list::{ListRequest, list};

#[tokio::test]
async fn backups_in_every_state_are_told_apart() {
    let bed = Bed::new().await;
    let whole = bed.backup(1, &cluster(), Vec::new()).await;
    let lacking = bed.backup(2, &cluster(), Vec::new()).await;
    let lost = bed.keys.pack(&lacking.backup_id, 1);
    fs::remove_file(bed.dir.path().join("repository").join(&lost)).unwrap();
    for number in [3, 4] {
        let started = StartedDocument {
            backup_id: Bed::id(number),
            archive_id: bed.archive_id,
            started_at: Timestamp::UNIX_EPOCH,
            host: "db".into(),
            pid: 1,
            parents: Vec::new(),
            wal_from: None,
            write_token: RandomId([4; 16]),
        };
        bed.repository
            .put_document(&bed.keys.started(&Bed::id(number)), &started)
            .await
            .unwrap();
    }
    let abandoned = AbandonedDocument {
        backup_id: Bed::id(4),
        archive_id: bed.archive_id,
        abandoned_at: Timestamp::UNIX_EPOCH,
        host: "db".into(),
        write_token: RandomId([5; 16]),
    };
    bed.repository
        .put_document(&bed.keys.commit(&Bed::id(4)), &abandoned)
        .await
        .unwrap();
    // A whole document that stands under another backup's key.
    bed.repository
        .put_document(&bed.keys.commit(&Bed::id(5)), &whole)
        .await
        .unwrap();
    bed.wal("00000002.history", b"not a history").await;
    bed.wal("000000010000000000000005", b"behind a gap").await;

    let request = ListRequest {
        repositories: bed.request().repositories,
        cluster: bed.keys.cluster.clone(),
    };
    let listing = list(&request).await.unwrap();
    let [system] = listing.systems.as_slice() else {
        panic!("one system identifier is registered")
    };
    let shown: Vec<_> = system
        .backups
        .iter()
        .map(|b| (&b.record.backup_id, b.missing_packs.as_slice()))
        .collect();
    assert_eq!(
        shown,
        [
            (&whole.backup_id, &[][..]),
            (&lacking.backup_id, &[lost][..])
        ]
    );
    let unfinished: Vec<_> = system.unfinished.iter().map(|b| &b.id).collect();
    assert_eq!(
        unfinished,
        [&Bed::id(3)],
        "an abandoned backup is neither unfinished nor a backup"
    );
    let damaged: Vec<_> = system
        .damaged_documents
        .iter()
        .map(|d| d.key.as_str())
        .collect();
    let history = format!("main/{}/wal/00000002.history.zst", bed.keys.system);
    assert_eq!(
        damaged,
        [bed.keys.commit(&Bed::id(5)).as_str(), history.as_str()]
    );
    let window = system.backups[0].window.as_ref().unwrap();
    assert!(
        window.whole && window.first_gap.is_some(),
        "segment 4 is missing, and 5 is there: {window:?}"
    );
}

#[tokio::test]
async fn two_system_identifiers_are_never_merged_and_the_newest_is_restored() {
    let bed = Bed::new().await;
    bed.backup(1, &cluster(), Vec::new()).await;
    let other = |system, seconds| IdentityDocument {
        cluster: bed.keys.cluster.clone(),
        system_identifier: SystemIdentifier(system),
        archive_id: RandomId([8; 16]),
        wal_segment_size: walden_pg::WalSegmentSize::DEFAULT,
        pg_version: 18,
        created_at: Timestamp::UNIX_EPOCH + jiff::SignedDuration::from_secs(seconds),
        host: "db".into(),
        encryption: walden_model::Encryption::None,
    };
    let register = async |identity: IdentityDocument| {
        let key = keys::identity(&bed.keys.cluster, identity.system_identifier);
        bed.repository.put_document(&key, &identity).await.unwrap();
    };
    register(other(4, -60)).await;
    let planned = crate::restore::plan(&bed.request()).await.unwrap();
    assert_eq!(
        planned.identity.system_identifier, bed.keys.system,
        "the newest registration is taken"
    );
    assert_eq!(
        planned.other_systems,
        [SystemIdentifier(4)],
        "and the others are told"
    );

    register(other(5, 60)).await;
    let systems = crate::catalog::load(&bed.repository, &bed.keys.cluster, None)
        .await
        .unwrap();
    let counts: Vec<_> = systems
        .iter()
        .map(|s| {
            (
                s.identity.system_identifier.0,
                s.catalog.backups.len(),
                s.catalog.wal.len(),
            )
        })
        .collect();
    assert_eq!(
        counts,
        [(4, 0, 0), (bed.keys.system.0, 1, 1), (5, 0, 0)],
        "in the order of registration"
    );
    let error = crate::restore::plan(&bed.request())
        .await
        .expect_err("the newest system has no backup");
    assert!(
        matches!(error, crate::restore::RestoreError::Unreachable(_)),
        "{error:?}"
    );
    let named = crate::restore::RestoreRequest {
        system: Some(bed.keys.system),
        ..bed.request()
    };
    crate::restore::plan(&named)
        .await
        .expect("the system that was named has a backup");
}

#[tokio::test]
async fn a_folder_without_its_root_document_is_no_empty_archive() {
    let bed = Bed::new().await;
    fs::remove_file(bed.dir.path().join("repository/walden.json")).unwrap();
    let error = crate::catalog::load(&bed.repository, &bed.keys.cluster, None)
        .await
        .unwrap_err();
    assert!(
        super::chain(&error).contains("walden.json"),
        "an unmounted folder must be named: {}",
        super::chain(&error)
    );
}
