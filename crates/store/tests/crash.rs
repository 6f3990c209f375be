//! What a folder holds after its writer was killed: whole objects, and nothing else under a key.

#![allow(clippy::unwrap_used, reason = "a test's way to fail")]

use std::ffi::OsString;
use std::io::{BufRead, BufReader};
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};

use bytes::Bytes;
use futures::TryStreamExt;
use walden_store::{Key, LocalStore, ObjectStore, PutMode, StoreErrorKind, list_all};

/// Where the child, which is this program again, finds the root. Without it a test is the parent.
const ROOT: &str = "WALDEN_TEST_ROOT";

fn root_of_child() -> Option<OsString> {
    std::env::var_os(ROOT)
}

fn start_child(test: &str, root: &Path) -> Child {
    Command::new(std::env::current_exe().unwrap())
        .args(["--exact", test, "--nocapture"])
        .env(ROOT, root)
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .unwrap()
}

fn key(text: &str) -> Key {
    Key::parse(text).unwrap()
}

fn temporaries(root: &Path) -> usize {
    std::fs::read_dir(root.join(".tmp")).unwrap().count()
}

async fn names(store: &LocalStore) -> Vec<String> {
    list_all(store, "")
        .map_ok(|meta| meta.key.to_string())
        .try_collect()
        .await
        .unwrap()
}

#[tokio::test]
async fn an_upload_whose_process_died_leaves_a_temporary_for_the_sweep() {
    if let Some(root) = root_of_child() {
        let store = LocalStore::open(Path::new(&root)).unwrap();
        let mut upload = store
            .begin(&key("a/object"), PutMode::Create)
            .await
            .unwrap();
        upload
            .write(Bytes::from_static(&[1; 100_000]))
            .await
            .unwrap();
        std::process::abort();
    }
    let root = tempfile::tempdir().unwrap();
    let test = "an_upload_whose_process_died_leaves_a_temporary_for_the_sweep";
    let status = start_child(test, root.path()).wait().unwrap();
    assert_eq!(
        status.signal(),
        Some(6),
        "the child aborts, after its write"
    );
    let store = LocalStore::open(root.path()).unwrap();
    assert_eq!(
        temporaries(root.path()),
        1,
        "the temporary file stays behind"
    );
    assert!(names(&store).await.is_empty(), "no object is listed");
    let head = store.head(&key("a/object")).await;
    assert_eq!(
        head.unwrap_err().kind(),
        StoreErrorKind::NotFound,
        "no object is under the key"
    );

    let hour = jiff::SignedDuration::from_hours(1);
    let now = jiff::Timestamp::now();
    assert_eq!(
        store.sweep_unfinished(now - hour).await.unwrap(),
        0,
        "a young temporary is not swept"
    );
    assert_eq!(
        store.sweep_unfinished(now + hour).await.unwrap(),
        1,
        "an old one is"
    );
    assert_eq!(temporaries(root.path()), 0, "and is gone");
    store
        .put(&key("a/object"), Bytes::new(), PutMode::Create)
        .await
        .unwrap();
}

#[tokio::test]
async fn a_writer_killed_at_any_moment_leaves_whole_objects_and_all_it_reported() {
    let body = |number: usize| Bytes::from(vec![number as u8; 200_000 + number]);
    if let Some(root) = root_of_child() {
        let store = LocalStore::open(Path::new(&root)).unwrap();
        for number in 0.. {
            let name = key(&format!("{}/{number:06}", number / 3));
            store
                .put(&name, body(number), PutMode::Create)
                .await
                .unwrap();
            println!("stored {number}");
        }
    }
    for reports in [0, 1, 2, 5, 9, 20] {
        let root = tempfile::tempdir().unwrap();
        let test = "a_writer_killed_at_any_moment_leaves_whole_objects_and_all_it_reported";
        let mut child = start_child(test, root.path());
        let mut lines = BufReader::new(child.stdout.take().unwrap())
            .lines()
            .map(Result::unwrap);
        let reported = lines
            .by_ref()
            .filter(|line| line.contains("stored"))
            .take(reports)
            .count();
        child.kill().unwrap();
        assert_eq!(
            child.wait().unwrap().signal(),
            Some(9),
            "the child stores until it is killed"
        );
        assert_eq!(reported, reports, "the child reports what it stored");

        let store = LocalStore::open(root.path()).unwrap();
        let found = names(&store).await;
        assert!(
            found.len() >= reports,
            "what was reported is there: {reports} objects, found {}",
            found.len()
        );
        for (number, name) in in_order_of_number(found) {
            let (meta, bytes) = store.get_suffix(&key(&name), u64::MAX).await.unwrap();
            assert!(
                bytes == body(number),
                "{name} is whole; it has {} bytes",
                meta.size
            );
            store.confirm_durable(&key(&name)).await.unwrap();
        }
        store
            .put(&key("0/after"), Bytes::new(), PutMode::Create)
            .await
            .unwrap();
    }
}

/// Checks on the way that none is missing before another.
fn in_order_of_number(names: Vec<String>) -> Vec<(usize, String)> {
    let mut numbered: Vec<(usize, String)> = names
        .into_iter()
        .map(|name| (name.rsplit('/').next().unwrap().parse().unwrap(), name))
        .collect();
    numbered.sort();
    for (expected, (number, _)) in numbered.iter().enumerate() {
        assert_eq!(*number, expected, "objects were stored one after the other");
    }
    numbered
}

/// A crash between the object's name and the removal of the temporary one.
#[tokio::test]
async fn sweeping_a_second_name_of_an_object_keeps_the_object() {
    let root = tempfile::tempdir().unwrap();
    let store = LocalStore::open(root.path()).unwrap();
    store
        .put(
            &key("a/object"),
            Bytes::from_static(b"bytes"),
            PutMode::Create,
        )
        .await
        .unwrap();
    std::fs::hard_link(root.path().join("a/object"), root.path().join(".tmp/left")).unwrap();
    let later = jiff::Timestamp::now() + jiff::SignedDuration::from_hours(1);
    assert_eq!(
        store.sweep_unfinished(later).await.unwrap(),
        1,
        "the second name is swept"
    );
    assert_eq!(
        store.get_range(&key("a/object"), 0..5).await.unwrap(),
        "bytes",
        "the object stays"
    );
}

/// A crash between the folder and the object, or a folder that another writer has just made.
#[tokio::test]
async fn empty_folders_are_no_obstacle() {
    let root = tempfile::tempdir().unwrap();
    let store = LocalStore::open(root.path()).unwrap();
    std::fs::create_dir_all(root.path().join("a/b/c")).unwrap();
    let page = store
        .list(walden_store::ListOptions {
            prefix: "",
            start_after: None,
            delimiter: true,
            limit: 10,
        })
        .await
        .unwrap();
    assert!(
        page.prefixes.is_empty(),
        "a folder without objects is not listed: {:?}",
        page.prefixes
    );
    store
        .put(
            &key("a/b/c/object"),
            Bytes::from_static(b"bytes"),
            PutMode::Create,
        )
        .await
        .unwrap();
    assert_eq!(
        names(&store).await,
        ["a/b/c/object"],
        "the object is in the folder that stood there"
    );
}

#[tokio::test]
async fn a_write_whose_caller_went_away_leaves_no_temporary() {
    let root = tempfile::tempdir().unwrap();
    let store = LocalStore::open(root.path()).unwrap();
    let mut upload = store.begin(&key("a"), PutMode::Create).await.unwrap();
    {
        let write = upload.write(Bytes::from(vec![0; 30 << 20]));
        futures::pin_mut!(write);
        assert!(
            futures::poll!(&mut write).is_pending(),
            "a write goes on beside its caller"
        );
    }
    let again = upload.write(Bytes::from_static(b"more")).await;
    assert_eq!(
        again.unwrap_err().kind(),
        StoreErrorKind::Invalid,
        "the upload has ended"
    );
    assert_eq!(
        upload.commit().await.unwrap_err().kind(),
        StoreErrorKind::Invalid,
        "it can not be committed"
    );
    let gone = async {
        while temporaries(root.path()) > 0 {
            tokio::task::yield_now().await;
        }
    };
    let minute = std::time::Duration::from_secs(60);
    tokio::time::timeout(minute, gone)
        .await
        .expect("the temporary goes when the write has ended");
    assert!(names(&store).await.is_empty(), "nothing is stored");
}
