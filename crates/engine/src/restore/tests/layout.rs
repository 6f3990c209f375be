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

/// Two backups, of which only the later has a tablespace, at the place that is returned; and the original's PGDATA with a link to it.
async fn original() -> (Bed, PathBuf) {
    let bed = Bed::new().await;
    let place = bed.dir.path().join("space");
    bed.backup(1, &cluster(), Vec::new()).await;
    let pgdata = bed.dir.path().join("original");
    fs::create_dir_all(pgdata.join("pg_tblspc")).unwrap();
    std::os::unix::fs::symlink(&place, pgdata.join("pg_tblspc/16400")).unwrap();
    fs::create_dir_all(place.join("PG_17_202406281")).unwrap();
    (bed, place)
}

#[tokio::test]
async fn a_tablespace_that_is_younger_than_the_backup_is_not_shared_with_the_original() {
    let (bed, place) = original().await;
    let pgdata = bed.dir.path().join("original");
    let beside = RestoreRequest {
        original: Some(pgdata.clone()),
        ..bed.request()
    };
    let why = refused(&beside).await;
    for word in [
        "16400",
        place.to_str().unwrap(),
        "--take-over",
        "new backup",
    ] {
        assert!(why.contains(word), "{word} should be named: {why}");
    }
    assert!(!bed.target().exists(), "a refused restore writes nothing");

    fs::create_dir(pgdata.join("global")).unwrap();
    let control = |system: u64| {
        let bytes = [&system.to_le_bytes()[..], &[0; 100]].concat();
        fs::write(pgdata.join("global/pg_control"), bytes).unwrap();
    };
    control(bed.keys.system.0);
    assert!(refused(&beside).await.contains("16400"));
    control(bed.keys.system.0 + 1);
    crate::restore::plan(&beside)
        .await
        .expect("another cluster's tablespaces are none of this restore's");
    control(bed.keys.system.0);

    fs::remove_dir(place.join("PG_17_202406281")).unwrap();
    crate::restore::plan(&beside)
        .await
        .expect("an empty directory is what recovery needs");
    fs::create_dir(place.join("PG_17_202406281")).unwrap();
    let taking_over = RestoreRequest {
        take_over: true,
        ..beside
    };
    crate::restore::plan(&taking_over)
        .await
        .expect("a new primary is to have the original's places");
}

#[tokio::test]
async fn a_tablespace_of_a_later_backup_is_not_written_to_where_it_is_on_this_host() {
    let (bed, place) = original().await;
    let tablespace = Tablespace {
        oid: 16400,
        path: place.to_str().unwrap().to_owned(),
        size: 1,
    };
    let mut parts = cluster();
    parts.extend([directory("pg_tblspc/16400"), file("pg_tblspc/16400/x", "x")]);
    bed.backup(2, &parts, vec![tablespace]).await;
    let earlier = RestoreRequest {
        backup: Some(Bed::id(1)),
        ..bed.request()
    };
    let why = refused(&earlier).await;
    assert!(why.contains("made after backup"), "{why}");
    let mapped = RestoreRequest {
        tablespace_map: vec![(place.clone(), bed.dir.path().join("elsewhere"))],
        ..bed.request()
    };
    crate::restore::plan(&mapped)
        .await
        .expect("the later backup has it, so that it can be moved");
    fs::rename(&place, bed.dir.path().join("gone")).unwrap();
    crate::restore::plan(&earlier)
        .await
        .expect("on a host without that directory there is nothing to harm");
}
