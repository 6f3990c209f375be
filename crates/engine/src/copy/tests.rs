//! Copies of small repositories that were written by hand.

use std::fs;
use std::ops::Range;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use async_trait::async_trait;
use bytes::Bytes;
use jiff::Timestamp;
use tempfile::TempDir;
use walden_model::keys::{self, ROOT_KEY};
use walden_model::{IdentityDocument, RandomId, RepositoryDocument, StartedDocument};
use walden_store::{
    ByteStream, Key, ListOptions, ListPage, LocalStore, ObjectMeta, ObjectStore, PutMode,
    StoreError, StoreErrorKind, Upload,
};

use super::*;
use crate::catalog;
use crate::progress::Silent;
use crate::restore::tests::bed::{Bed, cluster, file};

/// A repository with two backups, WAL of two timelines, and one backup that never ended.
async fn original() -> Bed {
    let bed = Bed::new().await;
    let history = b"1\t0/4000000\tno recovery target specified\n";
    bed.wal("00000002.history", history).await;
    for name in [
        "000000010000000000000004",
        "000000010000000000000005.00000028.backup",
        "000000020000000000000004",
        "000000010000000000000005.partial",
    ] {
        bed.wal(name, name.as_bytes()).await;
    }
    bed.backup(1, &cluster(), vec![]).await;
    let parts = [cluster(), vec![file("base/1/1261", [7; 900])]].concat();
    bed.backup(2, &parts, vec![]).await;
    bed.contents(3, &parts).await;
    for number in [1, 2, 3] {
        let id = Bed::id(number);
        let started = StartedDocument {
            backup_id: id.clone(),
            archive_id: bed.archive_id,
            started_at: Timestamp::UNIX_EPOCH,
            host: "db".into(),
            pid: 1,
            parents: vec![],
            wal_from: None,
            write_token: RandomId([9; 16]),
        };
        let key = bed.keys.started(&id);
        bed.repository.put_document(&key, &started).await.unwrap();
    }
    bed
}

/// An empty repository.
struct Other {
    dir: TempDir,
    repository: Repository,
}

impl Other {
    async fn new() -> Self {
        // Where nothing waits for a disk: this is done a hundred times.
        let dir = tempfile::tempdir_in("/dev/shm").unwrap();
        let repository = Repository::over(Arc::new(LocalStore::open(dir.path()).unwrap()));
        let root = RepositoryDocument {
            repository_id: RandomId([2; 16]),
            created_at: Timestamp::UNIX_EPOCH,
        };
        repository.put_document(ROOT_KEY, &root).await.unwrap();
        Self { dir, repository }
    }

    /// The same, which fails for good at its `writes`th write: before it, or with it done.
    fn failing(&self, writes: u64, done: bool) -> Repository {
        let inner = LocalStore::open(self.dir.path()).unwrap();
        Repository::over(Arc::new(Failing {
            inner,
            left: Arc::new(AtomicU64::new(writes)),
            done,
        }))
    }

    fn put(&self, key: &str, bytes: &[u8]) {
        let path = self.dir.path().join(key);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, bytes).unwrap();
    }
}

/// Every object but the root document, with its bytes.
fn objects(root: &Path) -> Vec<(String, Vec<u8>)> {
    let mut found = Vec::new();
    let mut open = vec![root.to_path_buf()];
    while let Some(folder) = open.pop() {
        for entry in fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            let key = path
                .strip_prefix(root)
                .unwrap()
                .to_str()
                .unwrap()
                .to_owned();
            match path.is_dir() {
                _ if key.starts_with('.') || key == ROOT_KEY => {}
                true => open.push(path),
                false => found.push((key, fs::read(path).unwrap())),
            }
        }
    }
    found.sort();
    found
}

fn root_of(bed: &Bed) -> std::path::PathBuf {
    bed.dir.path().join("repository")
}

/// What a copy of the bed's repository consists of.
fn expected(bed: &Bed) -> Vec<(String, Vec<u8>)> {
    let running = bed.keys.backup_prefix(&Bed::id(3));
    let mut all = objects(&root_of(bed));
    all.retain(|(key, _)| !key.starts_with(&running));
    all
}

fn request(bed: &Bed) -> CopyRequest {
    let settings = bed.request().repositories.remove(0);
    CopyRequest {
        from: settings.clone(),
        to: settings,
        clusters: vec![bed.keys.cluster.clone()],
        dry_run: false,
        thorough: false,
        jobs: 3,
    }
}

async fn run(bed: &Bed, to: &Repository) -> Result<CopyReport, CopyError> {
    copy_between(&bed.repository, to, &request(bed), Arc::new(Silent)).await
}

fn only(report: &CopyReport) -> &ClusterCopy {
    report.clusters.first().expect("a cluster")
}

fn findings(report: &CopyReport) -> Vec<(FindingKind, &str)> {
    let findings = only(report).findings.iter();
    let mut findings: Vec<_> = findings.map(|f| (f.kind, f.key.as_str())).collect();
    findings.sort_by_key(|(_, key)| *key);
    findings
}

/// Every backup that the repository shows must be whole.
async fn proven(repository: &Repository, cluster: &ClusterName) {
    let systems = match catalog::load(repository, cluster, None).await {
        Ok(systems) => systems,
        Err(CatalogError::NoCluster { .. }) => return,
        Err(e) => panic!("the catalog of a cut-off copy can be read: {e}"),
    };
    for system in systems {
        let catalog = &system.catalog;
        assert!(
            catalog.damaged_documents.is_empty(),
            "nothing half-written is there: {:?}",
            catalog.damaged_documents
        );
        for backup in &catalog.backups {
            let missing = catalog.missing_packs.get(&backup.backup_id);
            assert_eq!(missing, None, "backup {} lacks objects", backup.backup_id);
            for segment in backup.needed_segments(catalog.segment_size) {
                let number = segment.number(catalog.segment_size).unwrap();
                let wal = catalog.wal.get(&segment.timeline);
                assert!(
                    wal.is_some_and(|wal| wal.contains(number)),
                    "backup {} lacks segment {segment}",
                    backup.backup_id
                );
            }
        }
    }
}

#[tokio::test]
async fn a_copy_holds_all_that_the_original_holds_and_the_next_has_nothing_to_do() {
    let (bed, other) = (original().await, Other::new().await);
    let mut dry = request(&bed);
    dry.dry_run = true;
    let planned = copy_between(&bed.repository, &other.repository, &dry, Arc::new(Silent))
        .await
        .unwrap();
    assert_eq!(
        objects(other.dir.path()),
        [],
        "a dry run puts nothing anywhere"
    );
    let report = run(&bed, &other.repository).await.unwrap();
    assert_eq!(findings(&report), []);
    assert!(
        objects(other.dir.path()) == expected(&bed),
        "every object is there, byte for byte, and nothing of the backup that has not ended"
    );
    let (planned, done) = (only(&planned), only(&report));
    assert_eq!(
        (planned.wal, planned.contents, &planned.backups),
        (done.wal, done.contents, &done.backups),
        "a dry run says what a copy then does"
    );
    assert_eq!((done.wal.objects, done.backups.len()), (6, 2));
    let again = run(&bed, &other.repository).await.unwrap();
    let again = only(&again);
    assert_eq!(
        (again.wal, again.contents, again.documents, again.roll_ups),
        (
            Tally::default(),
            Tally::default(),
            Tally::default(),
            Tally::default()
        ),
        "the second copy puts nothing"
    );
    // Documents that say a backup began are not counted again.
    assert_eq!(again.there, expected(&bed).len() as u64 - 2);
}

#[tokio::test]
async fn killed_at_any_write_a_copy_shows_no_backup_that_is_not_whole_and_the_next_makes_it_good() {
    let bed = original().await;
    let mut cases = 0;
    for done in [false, true] {
        for writes in 0.. {
            let other = Other::new().await;
            let killed = run(&bed, &other.failing(writes, done)).await;
            proven(&other.repository, &bed.keys.cluster).await;
            let report = run(&bed, &other.repository).await.unwrap();
            assert_eq!(findings(&report), [], "after {writes} writes");
            assert!(
                objects(other.dir.path()) == expected(&bed),
                "killed at write {writes}, copied again: it must be whole"
            );
            cases += 1;
            if killed.is_ok() {
                break;
            }
        }
    }
    println!("{cases} cases");
    assert!(
        cases > expected(&bed).len(),
        "each write was the last one once: {cases} cases"
    );
}

#[tokio::test]
async fn what_is_damaged_is_named_and_not_copied_and_neither_is_a_backup_that_needs_it() {
    let bed = original().await;
    let (one, two) = (Bed::id(1), Bed::id(2));
    let pack = bed.keys.pack(&one, 0);
    let path = root_of(&bed).join(&pack);
    let mut bytes = fs::read(&path).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    fs::write(&path, bytes).unwrap();
    let other = Other::new().await;
    let report = run(&bed, &other.repository).await.unwrap();
    let commit = bed.keys.commit(&one);
    assert_eq!(
        findings(&report),
        [
            (FindingKind::Damaged, pack.as_str()),
            (FindingKind::Incomplete, commit.as_str()),
        ]
    );
    assert_eq!(only(&report).backups, [two], "the other backup is copied");
    assert!(!other.dir.path().join(&pack).exists(), "nothing damaged is");
    proven(&other.repository, &bed.keys.cluster).await;

    // A pack that is whole and in its place, and another than the commit document names.
    bed.framed(HeadKind::Pack, &pack, &[b"another".to_vec()])
        .await;
    let report = run(&bed, &other.repository).await.unwrap();
    assert_eq!(findings(&report).len(), 2, "{:?}", only(&report).findings);

    // WAL that both need.
    let wal = root_of(&bed)
        .join("main/7000000000000000001/wal/00000001/00000000/000000010000000000000003.zst");
    fs::write(&wal, b"nothing").unwrap();
    let other = Other::new().await;
    let report = run(&bed, &other.repository).await.unwrap();
    assert_eq!(only(&report).backups, [], "no backup can be restored there");
    assert!(!report.is_whole());
    proven(&other.repository, &bed.keys.cluster).await;
}

#[tokio::test]
async fn other_bytes_under_a_key_are_a_conflict_and_the_same_content_is_none() {
    let bed = original().await;
    let key = |name: &str| {
        let folder = "main/7000000000000000001/wal/00000001/00000000";
        format!("{folder}/{name}.zst")
    };
    let (same, other_size, damaged) = (
        key("000000010000000000000004"),
        key("000000010000000000000003"),
        key("000000010000000000000005.00000028.backup"),
    );
    let stored = |key: &str| fs::read(root_of(&bed).join(key)).unwrap();
    let other = Other::new().await;
    // Another push wrote the same content once more.
    let first = stored(&same);
    bed.framed(
        HeadKind::Wal,
        &same,
        &[b"000000010000".to_vec(), b"000000000004".to_vec()],
    )
    .await;
    assert_ne!(first.len(), stored(&same).len(), "in other bytes");
    other.put(&same, &first);
    let theirs = {
        let before = stored(&other_size);
        bed.wal(
            "000000010000000000000003",
            b"of a clone, which wrote something else",
        )
        .await;
        let theirs = stored(&other_size);
        fs::write(root_of(&bed).join(&other_size), before).unwrap();
        theirs
    };
    other.put(&other_size, &theirs);
    other.put(&damaged, b"half");
    let report = run(&bed, &other.repository).await.unwrap();
    assert_eq!(
        findings(&report),
        [
            (FindingKind::Conflict, other_size.as_str()),
            (FindingKind::Conflict, damaged.as_str()),
        ]
    );
    let there = |key: &str| fs::read(other.dir.path().join(key)).unwrap();
    assert!(
        there(&same) == first && there(&other_size) == theirs && there(&damaged) == b"half",
        "what stood there stands there"
    );
}

#[tokio::test]
async fn the_same_size_is_believed_unless_everything_is_to_be_compared() {
    let bed = original().await;
    let key = "main/7000000000000000001/wal/00000001/00000000/000000010000000000000003.zst";
    let path = root_of(&bed).join(key);
    let ours = fs::read(&path).unwrap();
    // The writer's time in its head has not always as many digits.
    let theirs = loop {
        bed.wal("000000010000000000000003", b"SEGMENT").await;
        let theirs = fs::read(&path).unwrap();
        if theirs.len() == ours.len() {
            break theirs;
        }
    };
    fs::write(&path, &ours).unwrap();
    let other = Other::new().await;
    other.put(key, &theirs);
    let report = run(&bed, &other.repository).await.unwrap();
    assert_eq!(findings(&report), []);
    let mut thorough = request(&bed);
    thorough.thorough = true;
    let report = copy_between(
        &bed.repository,
        &other.repository,
        &thorough,
        Arc::new(Silent),
    );
    assert_eq!(
        findings(&report.await.unwrap()),
        [(FindingKind::Conflict, key)]
    );
}

#[tokio::test]
async fn a_repository_that_is_none_or_of_another_archive_is_refused_before_anything_is_put() {
    let bed = original().await;
    let dir = tempfile::tempdir().unwrap();
    let none = Repository::over(Arc::new(LocalStore::open(dir.path()).unwrap()));
    let error = catalog::whole_text(&run(&bed, &none).await.unwrap_err());
    assert!(error.contains("walden init"), "what to run: {error}");

    let same = run(&bed, &bed.repository).await.unwrap_err();
    assert!(matches!(same, CopyError::Same { .. }), "{same}");

    let other = Other::new().await;
    let key = keys::identity(&bed.keys.cluster, bed.keys.system);
    let ours: Option<IdentityDocument> = bed.repository.document(&key).await.unwrap();
    let theirs = IdentityDocument {
        archive_id: RandomId([8; 16]),
        ..ours.unwrap()
    };
    other.repository.put_document(&key, &theirs).await.unwrap();
    let before = objects(other.dir.path());
    let error = run(&bed, &other.repository).await.unwrap_err();
    assert!(matches!(error, CopyError::OtherArchive { .. }), "{error}");
    assert!(objects(other.dir.path()) == before, "nothing was put");
}

#[tokio::test]
async fn what_this_version_does_not_know_is_named_and_left_alone() {
    let bed = original().await;
    let system = "main/7000000000000000001";
    for key in ["tomorrow/x.zst", "wal/notes.txt", "retired/x.json"] {
        let path = root_of(&bed).join(system).join(key);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, "?").unwrap();
    }
    let other = Other::new().await;
    let report = run(&bed, &other.repository).await.unwrap();
    assert_eq!(
        only(&report).unknown,
        [
            format!("{system}/tomorrow/"),
            format!("{system}/wal/notes.txt")
        ]
    );
    assert!(report.is_whole(), "that is no failure");
}

/// A store whose writer is killed at one of its writes.
#[derive(Debug)]
struct Failing {
    inner: LocalStore,
    left: Arc<AtomicU64>,
    done: bool,
}

/// Whether the write at hand is done, and whether its writer hears of it.
fn turn(left: &AtomicU64, done: bool) -> (bool, bool) {
    let before = left.fetch_update(Ordering::SeqCst, Ordering::SeqCst, |n| n.checked_sub(1));
    match before {
        Ok(1) if done => (true, false),
        Ok(1) | Err(_) => (false, false),
        Ok(_) => (true, true),
    }
}

fn killed() -> StoreError {
    StoreError::new(StoreErrorKind::Unavailable, "store", "anything: killed")
}

#[async_trait]
impl ObjectStore for Failing {
    async fn put(&self, key: &Key, body: Bytes, mode: PutMode) -> Result<(), StoreError> {
        let (puts, hears) = turn(&self.left, self.done);
        if puts {
            self.inner.put(key, body, mode).await?;
        }
        hears.then_some(()).ok_or_else(killed)
    }

    async fn begin(&self, key: &Key, mode: PutMode) -> Result<Box<dyn Upload>, StoreError> {
        Ok(Box::new(FailingUpload {
            inner: self.inner.begin(key, mode).await?,
            left: self.left.clone(),
            done: self.done,
        }))
    }

    async fn get(&self, key: &Key) -> Result<(ObjectMeta, ByteStream), StoreError> {
        self.inner.get(key).await
    }

    async fn get_range(&self, key: &Key, range: Range<u64>) -> Result<Bytes, StoreError> {
        self.inner.get_range(key, range).await
    }

    async fn get_suffix(&self, key: &Key, length: u64) -> Result<(ObjectMeta, Bytes), StoreError> {
        self.inner.get_suffix(key, length).await
    }

    async fn head(&self, key: &Key) -> Result<ObjectMeta, StoreError> {
        self.inner.head(key).await
    }

    async fn list(&self, options: ListOptions<'_>) -> Result<ListPage, StoreError> {
        self.inner.list(options).await
    }

    async fn delete(&self, key: &Key) -> Result<(), StoreError> {
        unreachable!("a copy deletes nothing: {key}")
    }

    async fn confirm_durable(&self, key: &Key) -> Result<(), StoreError> {
        self.inner.confirm_durable(key).await
    }

    async fn sweep_unfinished(&self, _: Timestamp) -> Result<u64, StoreError> {
        unreachable!("a copy deletes nothing")
    }

    fn location(&self) -> String {
        self.inner.location()
    }
}

struct FailingUpload {
    inner: Box<dyn Upload>,
    left: Arc<AtomicU64>,
    done: bool,
}

#[async_trait]
impl Upload for FailingUpload {
    async fn write(&mut self, chunk: Bytes) -> Result<(), StoreError> {
        self.inner.write(chunk).await
    }

    async fn commit(self: Box<Self>) -> Result<(), StoreError> {
        let (puts, hears) = turn(&self.left, self.done);
        if puts {
            self.inner.commit().await?;
        }
        hears.then_some(()).ok_or_else(killed)
    }
}
