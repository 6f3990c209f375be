//! How a folder fails: by the right kind, with nothing left behind.

#![allow(
    clippy::unwrap_used,
    clippy::print_stdout,
    reason = "a test fails, and says what it skipped"
)]

use std::io::ErrorKind;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::Path;

use bytes::Bytes;
use futures::TryStreamExt;
use rustix::fs::{CWD, FileType, Mode};
use rustix::mount::{MountFlags, UnmountFlags, mount, mount_remount, unmount};
use walden_store::StoreErrorKind::{
    AlreadyExists, Invalid, NotFound, OutOfSpace, PermissionDenied, Unavailable,
};
use walden_store::{
    Key, ListOptions, LocalStore, ObjectStore, PutMode, StoreError, StoreErrorKind, list_all,
};

fn key(text: &str) -> Key {
    Key::parse(text).unwrap()
}

const ALL: ListOptions<'static> = ListOptions {
    prefix: "",
    start_after: None,
    delimiter: false,
    limit: 10,
};

async fn create(store: &LocalStore, name: &str, body: impl Into<Bytes>) -> Result<(), StoreError> {
    store.put(&key(name), body.into(), PutMode::Create).await
}

fn kind<T: std::fmt::Debug>(result: Result<T, StoreError>) -> StoreErrorKind {
    result.unwrap_err().kind()
}

/// Each operation on an object that is there, by the kind it fails with.
async fn kinds_of_every_operation(
    store: &LocalStore,
    name: &str,
) -> Vec<(&'static str, Option<StoreErrorKind>)> {
    let name = key(name);
    let kind = |result: Result<(), StoreError>| result.err().map(|error| error.kind());
    let read = async {
        let (_, chunks) = store.get(&name).await?;
        chunks.try_for_each(|_| async { Ok(()) }).await
    };
    let streamed = async {
        store
            .begin(&key("a/streamed"), PutMode::Create)
            .await?
            .commit()
            .await
    };
    vec![
        ("head", kind(store.head(&name).await.map(drop))),
        ("get", kind(read.await)),
        (
            "get_range",
            kind(store.get_range(&name, 0..1).await.map(drop)),
        ),
        (
            "get_suffix",
            kind(store.get_suffix(&name, 1).await.map(drop)),
        ),
        ("list", kind(store.list(ALL).await.map(drop))),
        ("confirm_durable", kind(store.confirm_durable(&name).await)),
        ("put", kind(create(store, "a/new", "x").await)),
        (
            "put of a new folder",
            kind(create(store, "b/new", "x").await),
        ),
        (
            "overwrite",
            kind(store.put(&name, Bytes::new(), PutMode::Overwrite).await),
        ),
        ("begin", kind(streamed.await)),
        ("delete", kind(store.delete(&name).await)),
        (
            "delete of an absent object",
            kind(store.delete(&key("absent")).await),
        ),
        (
            "sweep_unfinished",
            kind(store.sweep_unfinished(jiff::Timestamp::MIN).await.map(drop)),
        ),
    ]
}

#[track_caller]
fn all_unavailable(kinds: &[(&str, Option<StoreErrorKind>)], when: &str) {
    for (operation, kind) in kinds {
        assert_eq!(*kind, Some(Unavailable), "{operation} {when}");
    }
}

#[test]
fn a_root_that_is_no_folder_is_not_opened() {
    let place = tempfile::tempdir().unwrap();
    let missing = place.path().join("missing");
    assert_eq!(
        kind(LocalStore::open(&missing)),
        Unavailable,
        "a missing root"
    );
    assert!(!missing.exists(), "opening makes nothing");
    std::fs::write(place.path().join("file"), "").unwrap();
    assert_eq!(
        kind(LocalStore::open(&place.path().join("file"))),
        Unavailable,
        "a root that is a file"
    );
    assert_eq!(
        kind(LocalStore::open(&place.path().join("file/below"))),
        Unavailable,
        "a root below a file"
    );
    assert_eq!(
        kind(LocalStore::open(Path::new("relative"))),
        Invalid,
        "a relative root"
    );
    assert_eq!(
        kind(LocalStore::create_root(Path::new("relative"))),
        Invalid,
        "making a relative root"
    );
    assert!(
        LocalStore::create_root(&place.path().join("file")).is_err(),
        "making a root where a file is"
    );
}

#[tokio::test]
async fn a_root_is_made_with_the_folders_above_it_for_the_user_alone() {
    let place = tempfile::tempdir().unwrap();
    let root = place.path().join("a/b/root");
    let store = LocalStore::create_root(&root).unwrap();
    create(&store, "folder/object", "x").await.unwrap();
    let again = LocalStore::create_root(&root).unwrap();
    again.head(&key("folder/object")).await.unwrap();
    for (path, expected) in [
        ("a", 0o700),
        ("a/b/root", 0o700),
        ("a/b/root/.tmp", 0o700),
        ("a/b/root/folder", 0o700),
    ]
    .into_iter()
    .chain([("a/b/root/folder/object", 0o600)])
    {
        let mode = std::fs::metadata(place.path().join(path))
            .unwrap()
            .permissions()
            .mode()
            & 0o7777;
        assert_eq!(mode, expected, "{path} has mode {expected:o}, not {mode:o}");
    }
}

#[tokio::test]
async fn when_the_root_vanished_nothing_is_absent() {
    let place = tempfile::tempdir().unwrap();
    let root = place.path().join("root");
    let store = LocalStore::create_root(&root).unwrap();
    create(&store, "a/object", "x").await.unwrap();
    std::fs::rename(&root, place.path().join("elsewhere")).unwrap();
    all_unavailable(
        &kinds_of_every_operation(&store, "a/object").await,
        "while the root is missing",
    );
    std::fs::create_dir(&root).unwrap();
    all_unavailable(
        &kinds_of_every_operation(&store, "a/object").await,
        "while another folder is in its place",
    );
    assert_eq!(
        std::fs::read_dir(&root).unwrap().count(),
        0,
        "nothing is written into the other folder"
    );
    std::fs::remove_dir(&root).unwrap();
    std::fs::rename(place.path().join("elsewhere"), &root).unwrap();
    store.head(&key("a/object")).await.unwrap();
}

#[tokio::test]
async fn what_is_no_regular_file_is_no_object() {
    let place = tempfile::tempdir().unwrap();
    let root = place.path();
    let store = LocalStore::open(root).unwrap();
    create(&store, "a/object", "x").await.unwrap();
    symlink(root.join("a/object"), root.join("a/link")).unwrap();
    symlink(root.join("nowhere"), root.join("a/dangling")).unwrap();
    rustix::fs::mknodat(CWD, root.join("a/fifo"), FileType::Fifo, Mode::RWXU, 0).unwrap();
    for name in ["a/link", "a/dangling", "a/fifo"] {
        assert_eq!(
            kind(store.head(&key(name)).await),
            Invalid,
            "head of {name}"
        );
        assert_eq!(
            kind(store.get(&key(name)).await.map(drop)),
            Invalid,
            "get of {name}"
        );
        assert_eq!(
            kind(store.get_range(&key(name), 0..1).await),
            Invalid,
            "get_range of {name}"
        );
        assert_eq!(
            kind(create(&store, name, "y").await),
            AlreadyExists,
            "create in the place of {name}"
        );
    }
    assert_eq!(
        kind(store.list(ALL).await.map(drop)),
        Unavailable,
        "nobody knows what is behind a link that leads nowhere"
    );
    std::fs::remove_file(root.join("a/dangling")).unwrap();
    let page = store.list(ALL).await.unwrap();
    let names: Vec<_> = page.objects.iter().map(|meta| meta.key.as_str()).collect();
    assert_eq!(names, ["a/object"], "only objects are listed");
    // As a folder behind a link to a disk that is not mounted.
    symlink(root.join("nowhere"), root.join("b")).unwrap();
    for prefix in ["b/", "b/c/"] {
        let options = ListOptions { prefix, ..ALL };
        assert_eq!(
            kind(store.list(options).await.map(drop)),
            Unavailable,
            "list of {prefix}"
        );
    }
    assert_eq!(
        store.get_range(&key("a/object"), 0..1).await.unwrap(),
        "x",
        "nothing was written through a link"
    );
}

#[tokio::test]
async fn an_object_and_a_folder_never_share_a_name() {
    let place = tempfile::tempdir().unwrap();
    let store = LocalStore::open(place.path()).unwrap();
    create(&store, "a/object", "x").await.unwrap();
    assert_eq!(
        kind(create(&store, "a/object/below", "y").await),
        Invalid,
        "an object below an object"
    );
    assert_eq!(
        kind(create(&store, "a/object/far/below", "y").await),
        Invalid,
        "an object far below an object"
    );
    assert_eq!(
        kind(store.head(&key("a/object/below")).await),
        NotFound,
        "head below an object"
    );
    store.delete(&key("a/object/below")).await.unwrap();
    assert_eq!(
        kind(create(&store, "a", "y").await),
        Invalid,
        "create under a folder's name"
    );
    let overwritten = store.put(&key("a"), Bytes::new(), PutMode::Overwrite).await;
    assert_eq!(
        kind(overwritten),
        Invalid,
        "overwrite under a folder's name"
    );
    assert_eq!(
        store.get_range(&key("a/object"), 0..1).await.unwrap(),
        "x",
        "the object is as it was"
    );
    assert_eq!(
        std::fs::read_dir(place.path().join(".tmp"))
            .unwrap()
            .count(),
        0,
        "no temporary is left"
    );
}

#[tokio::test]
async fn a_folder_of_more_names_than_are_held_is_listed_whole() {
    let place = tempfile::tempdir().unwrap();
    let store = LocalStore::open(place.path()).unwrap();
    std::fs::create_dir(place.path().join("wide")).unwrap();
    let expected: Vec<String> = (0..9000)
        .map(|number| format!("wide/{number:05}"))
        .collect();
    for name in &expected {
        std::fs::write(place.path().join(name), "").unwrap();
    }
    let found: Vec<String> = list_all(&store, "wide/")
        .map_ok(|meta| meta.key.to_string())
        .try_collect()
        .await
        .unwrap();
    assert!(
        found == expected,
        "9000 objects are listed once each, in order, not {}",
        found.len()
    );
    let page = store
        .list(ListOptions { limit: 9000, ..ALL })
        .await
        .unwrap();
    assert!(
        page.objects.len() == 9000 && page.next.is_none(),
        "one page holds as many as are asked for"
    );
}

#[test]
fn a_folder_without_permission_is_neither_absent_nor_away() {
    if !rustix::process::geteuid().is_root() {
        println!("skipped: only root can become a user without permission");
        return;
    }
    let place = tempfile::tempdir().unwrap();
    let root = place.path();
    std::fs::set_permissions(root, PermissionsExt::from_mode(0o755)).unwrap();
    std::fs::create_dir_all(root.join("a")).unwrap();
    std::fs::write(root.join("a/object"), "x").unwrap();
    std::fs::set_permissions(root.join("a"), PermissionsExt::from_mode(0o700)).unwrap();
    // Linux keeps the user per thread: the threads of this runtime, which do all IO, are nobody's.
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(1)
        .on_thread_start(|| {
            rustix::thread::set_thread_uid(rustix::process::Uid::from_raw(65534)).unwrap()
        })
        .build()
        .unwrap();
    let path = root.to_owned();
    let kinds = runtime.block_on(runtime.spawn(async move {
        let store = LocalStore::open(&path).unwrap();
        kinds_of_every_operation(&store, "a/object").await
    }));
    for (operation, kind) in kinds.unwrap() {
        let expected = match operation {
            "delete of an absent object" | "sweep_unfinished" => None,
            _ => Some(PermissionDenied),
        };
        assert_eq!(kind, expected, "{operation} without permission");
    }
}

/// A file system in memory, gone with the test.
struct Tmpfs(tempfile::TempDir);

impl Tmpfs {
    fn mount() -> Option<Self> {
        let place = tempfile::tempdir().unwrap();
        match mount(
            "tmpfs",
            place.path(),
            "tmpfs",
            MountFlags::empty(),
            Some(c"size=1m,mode=700"),
        ) {
            Ok(()) => Some(Self(place)),
            Err(refused) => {
                assert!(
                    !can_mount(),
                    "root with its capabilities can mount: {refused}"
                );
                println!("skipped: mounting is refused: {refused}");
                None
            }
        }
    }

    fn path(&self) -> &Path {
        self.0.path()
    }
}

/// CAP_SYS_ADMIN, bit 21 of the effective capabilities.
fn can_mount() -> bool {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let capabilities = status
        .lines()
        .find_map(|line| line.strip_prefix("CapEff:"))
        .unwrap();
    u64::from_str_radix(capabilities.trim(), 16).unwrap() & (1 << 21) != 0
}

impl Drop for Tmpfs {
    fn drop(&mut self) {
        match unmount(self.0.path(), UnmountFlags::DETACH) {
            Ok(()) | Err(rustix::io::Errno::INVAL) => {}
            Err(error) => println!("cannot unmount {}: {error}", self.0.path().display()),
        }
    }
}

#[tokio::test]
async fn a_full_disk_is_told_and_takes_nothing() {
    let Some(disk) = Tmpfs::mount() else { return };
    let store = LocalStore::open(disk.path()).unwrap();
    assert_eq!(
        kind(create(&store, "big", vec![1; 2 << 20]).await),
        OutOfSpace,
        "a put on a full disk"
    );
    let mut upload = store.begin(&key("big"), PutMode::Create).await.unwrap();
    upload.write(Bytes::from(vec![1; 500_000])).await.unwrap();
    let failed = upload.write(Bytes::from(vec![1; 2 << 20])).await;
    assert_eq!(kind(failed), OutOfSpace, "a streamed write on a full disk");
    assert_eq!(
        kind(upload.commit().await),
        Invalid,
        "the commit of an upload that failed"
    );
    assert_eq!(
        kind(store.head(&key("big")).await),
        NotFound,
        "head of what did not fit"
    );
    assert_eq!(
        std::fs::read_dir(disk.path().join(".tmp")).unwrap().count(),
        0,
        "no temporary takes space"
    );
    create(&store, "small", vec![1; 500_000]).await.unwrap();
}

#[tokio::test]
async fn a_read_only_file_system_can_be_read() {
    let Some(disk) = Tmpfs::mount() else { return };
    let store = LocalStore::open(disk.path()).unwrap();
    create(&store, "a/object", "x").await.unwrap();
    mount_remount(disk.path(), MountFlags::RDONLY, c"").unwrap();
    for (operation, kind) in kinds_of_every_operation(&store, "a/object").await {
        let expected = match operation {
            "put" | "put of a new folder" | "overwrite" | "begin" | "delete" => {
                Some(PermissionDenied)
            }
            "delete of an absent object" => continue,
            _ => None,
        };
        assert_eq!(kind, expected, "{operation} on a read-only file system");
    }
}

#[tokio::test]
async fn when_the_file_system_is_unmounted_nothing_is_absent() {
    let Some(disk) = Tmpfs::mount() else { return };
    let store = LocalStore::open(disk.path()).unwrap();
    create(&store, "a/object", "x").await.unwrap();
    unmount(disk.path(), UnmountFlags::empty()).unwrap();
    all_unavailable(
        &kinds_of_every_operation(&store, "a/object").await,
        "while the file system is unmounted",
    );
    assert_eq!(
        std::fs::read_dir(disk.path()).unwrap().count(),
        0,
        "nothing is written into the mount point"
    );
}

#[tokio::test]
async fn an_error_says_what_was_tried_where_and_keeps_its_cause() {
    let place = tempfile::tempdir().unwrap();
    let store = LocalStore::open(place.path()).unwrap();
    let error = store.head(&key("a/object")).await.unwrap_err();
    let expected = format!(
        "cannot look at \"a/object\" in {}: there is no such object",
        place.path().display()
    );
    assert_eq!(
        error.to_string(),
        expected,
        "an error names operation, key and place"
    );
    let cause =
        std::error::Error::source(&error).and_then(|cause| cause.downcast_ref::<std::io::Error>());
    assert_eq!(
        cause.map(std::io::Error::kind),
        Some(ErrorKind::NotFound),
        "the system's error is the source"
    );
}
