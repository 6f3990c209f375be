//! Places that a restore must not go to.

use std::fs;
use std::path::PathBuf;

use walden_model::Tablespace;

use super::bed::{Bed, cluster, directory, file};
use super::{chain, run};
use crate::restore::RestoreRequest;

/// A backup with one tablespace, which was at `old`.
async fn bed() -> (Bed, PathBuf) {
    let bed = Bed::new().await;
    let old = bed.dir.path().join("old");
    let mut parts = cluster();
    parts.extend([directory("pg_tblspc/16400"), file("pg_tblspc/16400/x", "x")]);
    let tablespace = Tablespace {
        oid: 16400,
        path: old.to_str().unwrap().to_owned(),
        size: 1,
    };
    bed.backup(1, &parts, vec![tablespace]).await;
    (bed, old)
}

async fn refused(request: &RestoreRequest) -> String {
    match run(request).await {
        Ok(_) => panic!("{request:?} must be refused"),
        Err(error) => chain(&error),
    }
}

#[tokio::test]
async fn nothing_is_written_over_what_is_there() {
    let (bed, old) = bed().await;
    fs::create_dir(bed.target()).unwrap();
    fs::write(bed.target().join("mine"), "mine").unwrap();
    let why = refused(&bed.request()).await;
    assert!(why.contains("exists but is not empty"), "{why}");
    assert_eq!(
        fs::read_dir(bed.target()).unwrap().count(),
        1,
        "what is there must stay as it is"
    );

    fs::write(bed.target().join("postmaster.pid"), "1").unwrap();
    let why = refused(&bed.request()).await;
    assert!(
        why.contains("postmaster.pid"),
        "a running server must be named: {why}"
    );
    fs::remove_dir_all(bed.target()).unwrap();

    fs::create_dir(&old).unwrap();
    fs::write(old.join("production"), "").unwrap();
    let why = refused(&bed.request()).await;
    assert!(
        why.contains(&format!("--tablespace-map {}=NEW", old.display())),
        "the way out must be named: {why}"
    );
    assert!(!bed.target().exists());

    let taken = bed.dir.path().join("repository");
    let request = RestoreRequest {
        tablespace_map: vec![(old.clone(), taken)],
        ..bed.request()
    };
    assert!(
        refused(&request).await.contains("not empty"),
        "the mapped place must be free, too"
    );

    fs::write(bed.dir.path().join("plain"), "").unwrap();
    let request = RestoreRequest {
        target_directory: bed.dir.path().join("plain"),
        ..bed.request()
    };
    assert!(refused(&request).await.contains("is not a directory"));
}

#[tokio::test]
async fn places_are_told_apart() {
    let (bed, old) = bed().await;
    let dir = bed.dir.path();
    std::os::unix::fs::symlink(dir, dir.join("alias")).unwrap();
    let map = |old: &PathBuf, new: PathBuf| RestoreRequest {
        tablespace_map: vec![(old.clone(), new)],
        ..bed.request()
    };
    let wal = |wal: PathBuf| RestoreRequest {
        waldir: Some(wal),
        ..bed.request()
    };
    fs::create_dir(bed.target()).unwrap();
    let rows = [
        (map(&old, bed.target().join("ts")), "within each other"),
        (map(&old, dir.join("alias/pgdata/ts")), "within each other"),
        (wal(old.clone()), "within each other"),
        (wal("wal".into()), "absolute path"),
        (map(&old, "new".into()), "absolute path"),
        (
            map(&dir.join("other"), dir.join("new")),
            "no tablespace of this backup; it has: ",
        ),
        (map(&old, dir.join("a/b/c")), "above it does not exist"),
        (
            RestoreRequest {
                tablespace_map: vec![(old.clone(), dir.join("a")), (old.clone(), dir.join("b"))],
                ..bed.request()
            },
            "twice",
        ),
    ];
    for (request, expected) in rows {
        let why = refused(&request).await;
        assert!(why.contains(expected), "expected {expected:?}: {why}");
        assert_eq!(
            fs::read_dir(bed.target()).unwrap().count(),
            0,
            "nothing may be written: {why}"
        );
    }
    run(&bed.request())
        .await
        .expect("an empty directory that is there is as good as none");
}
