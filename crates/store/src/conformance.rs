//! What every store promises, tried out: one suite for all backends.
//!
//! It panics with what was expected. All its keys lie below one folder of a random name, so that it runs in a store
//! that holds other objects too, and again.

#![allow(clippy::expect_used, clippy::panic, reason = "a test's way to fail")]

mod listing;

use std::sync::Arc;

use bytes::Bytes;
use futures::TryStreamExt;
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};

use crate::{Key, ObjectMeta, ObjectStore, PutMode, StoreError, StoreErrorKind};

/// What a store need not keep of the promises.
#[derive(Debug, Clone, Copy, Default)]
pub struct Exceptions {
    /// All writers of a race may be refused, as with claims; two never succeed.
    pub races_without_winner: bool,
    /// A key that names a folder of others may fail in any way.
    pub folders_as_keys: bool,
}

/// Runs the suite. Print the seed: it makes the same keys and bytes again.
pub async fn run(store: Arc<dyn ObjectStore>, seed: u64) {
    run_except(store, seed, Exceptions::default()).await;
}

/// Runs the suite without what a store need not keep.
pub async fn run_except(store: Arc<dyn ObjectStore>, seed: u64, exceptions: Exceptions) {
    let case = Case {
        store,
        exceptions,
        folder: format!("conformance-{:016x}", rand::random::<u64>()),
        seed,
    };
    case.absent_objects().await;
    case.one_object().await;
    case.empty_object().await;
    case.create_only_under_racing_writers(32).await;
    for _ in 0..16 {
        case.create_only_under_racing_writers(2).await;
    }
    case.overwriting_shows_no_mixture().await;
    case.dropped_upload_is_invisible().await;
    case.streamed_object().await;
    case.ranges_and_suffixes().await;
    case.deleting().await;
    case.listing().await;
}

struct Case {
    store: Arc<dyn ObjectStore>,
    exceptions: Exceptions,
    folder: String,
    seed: u64,
}

impl Case {
    fn key(&self, name: &str) -> Key {
        Key::parse(&format!("{}/{name}", self.folder)).expect("the suite's keys are valid")
    }

    async fn put(&self, key: &Key, body: impl Into<Bytes>) {
        self.store
            .put(key, body.into(), PutMode::Create)
            .await
            .expect("storing a new object works");
    }

    async fn read(&self, key: &Key) -> (ObjectMeta, Vec<u8>) {
        read(self.store.as_ref(), key)
            .await
            .expect("reading a stored object works")
    }

    async fn absent_objects(&self) {
        let absent = self.key("absent/object");
        let store = &self.store;
        kind_is(
            store.head(&absent).await,
            StoreErrorKind::NotFound,
            "head of an absent object",
        );
        kind_is(
            store.get(&absent).await.map(drop),
            StoreErrorKind::NotFound,
            "get of an absent object",
        );
        kind_is(
            store.get_range(&absent, 0..1).await,
            StoreErrorKind::NotFound,
            "range of an absent object",
        );
        kind_is(
            store.get_suffix(&absent, 1).await,
            StoreErrorKind::NotFound,
            "suffix of an absent object",
        );
        kind_is(
            store.confirm_durable(&absent).await,
            StoreErrorKind::NotFound,
            "confirmation of an absent object",
        );
        self.put(&self.key("absent/beside"), "x").await;
        kind_is(
            store.head(&absent).await,
            StoreErrorKind::NotFound,
            "head of an absent object beside another",
        );
        if self.exceptions.folders_as_keys {
            return;
        }
        let folder = self.key("absent");
        kind_is(
            store.head(&folder).await,
            StoreErrorKind::NotFound,
            "head of a folder",
        );
        kind_is(
            store.get(&folder).await.map(drop),
            StoreErrorKind::NotFound,
            "get of a folder",
        );
    }

    async fn one_object(&self) {
        let key =
            self.key("one object/with every kind of character !\"#$%&'()*+,-.:;<=>?@[]^_`{|}~");
        let before = jiff::Timestamp::now();
        self.put(&key, "some bytes").await;
        let (meta, bytes) = self.read(&key).await;
        assert_eq!(bytes, b"some bytes", "an object is read as it was stored");
        assert_eq!(
            (&meta.key, meta.size),
            (&key, 10),
            "get describes the object"
        );
        let head = self
            .store
            .head(&key)
            .await
            .expect("head of a stored object works");
        assert_eq!(head, meta, "head and get say the same");
        let off = meta.modified.duration_since(before).as_secs().abs();
        assert!(off < 600, "the time of storing is now, it is {off} s off");
        self.store
            .confirm_durable(&key)
            .await
            .expect("a stored object can be confirmed");
        let again = self
            .store
            .put(&key, Bytes::from_static(b"other"), PutMode::Create)
            .await;
        kind_is(
            again,
            StoreErrorKind::AlreadyExists,
            "create of a taken key",
        );
        let again = self.store.begin(&key, PutMode::Create).await;
        let again = match again {
            Ok(upload) => upload.commit().await,
            Err(error) => Err(error),
        };
        kind_is(
            again,
            StoreErrorKind::AlreadyExists,
            "streamed create of a taken key",
        );
        assert_eq!(
            self.read(&key).await.1,
            b"some bytes",
            "a refused create changes nothing"
        );
        self.store
            .put(&key, Bytes::from_static(b"new"), PutMode::Overwrite)
            .await
            .expect("overwriting works");
        assert_eq!(
            self.read(&key).await.1,
            b"new",
            "an overwritten object has the new bytes"
        );
    }

    async fn empty_object(&self) {
        for (name, streamed) in [("empty/put", false), ("empty/streamed", true)] {
            let key = self.key(name);
            if streamed {
                let upload = self
                    .store
                    .begin(&key, PutMode::Overwrite)
                    .await
                    .expect("beginning an upload works");
                upload
                    .commit()
                    .await
                    .expect("an upload without bytes is an empty object");
            } else {
                self.put(&key, "").await;
            }
            let (meta, bytes) = self.read(&key).await;
            assert_eq!(
                (meta.size, bytes.len()),
                (0, 0),
                "an empty object is empty: {name}"
            );
            let range = self
                .store
                .get_range(&key, 0..0)
                .await
                .expect("an empty range of an empty object is there");
            assert!(range.is_empty(), "an empty range has no bytes");
            let (_, suffix) = self
                .store
                .get_suffix(&key, 5)
                .await
                .expect("an empty object has a suffix");
            assert!(suffix.is_empty(), "an empty object's suffix has no bytes");
        }
    }

    async fn create_only_under_racing_writers(&self, count: u8) {
        let key = self.key(&format!("race/{:08x}", rand::random::<u32>()));
        let start = Arc::new(tokio::sync::Barrier::new(usize::from(count)));
        let writers: Vec<_> = (0..count)
            .map(|number| {
                let (store, key, start) = (self.store.clone(), key.clone(), start.clone());
                tokio::spawn(async move {
                    let body = racing_body(number);
                    start.wait().await;
                    if number % 2 == 0 {
                        return store.put(&key, body, PutMode::Create).await;
                    }
                    let mut upload = store.begin(&key, PutMode::Create).await?;
                    upload.write(body).await?;
                    upload.commit().await
                })
            })
            .collect();
        let mut winners = Vec::new();
        for (number, writer) in (0_u8..).zip(writers) {
            match writer.await.expect("a writer ends") {
                Ok(()) => winners.push(number),
                lost => kind_is(
                    lost,
                    StoreErrorKind::AlreadyExists,
                    "create of a key that another writer took",
                ),
            }
        }
        let winner = match winners[..] {
            [winner] => winner,
            [] if self.exceptions.races_without_winner => {
                kind_is(
                    self.store.head(&key).await,
                    StoreErrorKind::NotFound,
                    "head of an object that every writer was refused",
                );
                return;
            }
            _ => panic!("of {count} racing writers one succeeds, but these did: {winners:?}"),
        };
        let found = self.read(&key).await.1;
        assert!(
            found == racing_body(winner),
            "the object is the winner's, whole; it has {} bytes",
            found.len()
        );
    }

    async fn overwriting_shows_no_mixture(&self) {
        let key = self.key("mixture");
        self.put(&key, racing_body(0)).await;
        let (store, name) = (self.store.clone(), key.clone());
        let writer = tokio::spawn(async move {
            for number in 1..32 {
                store
                    .put(&name, racing_body(number), PutMode::Overwrite)
                    .await
                    .expect("overwriting works");
            }
        });
        while !writer.is_finished() {
            let found = self.read(&key).await.1;
            let number = found.first().copied().unwrap_or_default();
            assert!(
                found == racing_body(number),
                "a reader sees one writer's bytes, whole, while others overwrite"
            );
        }
        writer.await.expect("the writer ends");
        assert!(
            self.read(&key).await.1 == racing_body(31),
            "the last overwrite stays"
        );
    }

    async fn dropped_upload_is_invisible(&self) {
        let key = self.key("dropped/object");
        let mut upload = self
            .store
            .begin(&key, PutMode::Create)
            .await
            .expect("beginning an upload works");
        upload
            .write(Bytes::from_static(&[7; 100_000]))
            .await
            .expect("writing works");
        kind_is(
            self.store.head(&key).await,
            StoreErrorKind::NotFound,
            "head of an object in the making",
        );
        drop(upload);
        kind_is(
            self.store.head(&key).await,
            StoreErrorKind::NotFound,
            "head after an upload was dropped",
        );
        let left = self.names("dropped/").await;
        assert!(
            left.is_empty(),
            "a dropped upload is in no listing, but there is {left:?}"
        );
        self.put(&key, "next").await;
    }

    async fn streamed_object(&self) {
        let key = self.key("streamed");
        let mut random = StdRng::seed_from_u64(self.seed);
        let mut body = vec![0; 70 << 20];
        random.fill(&mut body[..]);
        let body = Bytes::from(body);
        let mut upload = self
            .store
            .begin(&key, PutMode::Create)
            .await
            .expect("beginning an upload works");
        let mut rest = body.clone();
        while !rest.is_empty() {
            let length = random.random_range(0..3_000_000).min(rest.len());
            upload
                .write(rest.split_to(length))
                .await
                .expect("writing works");
        }
        upload.commit().await.expect("committing works");

        let (meta, mut chunks) = self
            .store
            .get(&key)
            .await
            .expect("reading a streamed object works");
        assert_eq!(
            meta.size,
            body.len() as u64,
            "a streamed object has its size"
        );
        let mut rest = body;
        while let Some(chunk) = chunks.try_next().await.expect("reading on works") {
            assert!(
                (1..=1 << 20).contains(&chunk.len()),
                "chunks have 1 byte to 1 MiB, one has {}",
                chunk.len()
            );
            assert!(
                chunk.len() <= rest.len(),
                "an object does not end after its size"
            );
            assert!(
                rest.split_to(chunk.len()) == chunk,
                "a streamed object has its bytes (seed {})",
                self.seed
            );
        }
        assert_eq!(rest.len(), 0, "an object is read to its end");
        self.store.delete(&key).await.expect("deleting works");
    }

    async fn ranges_and_suffixes(&self) {
        let key = self.key("ranges");
        let body: Bytes = (0..5000_u32).flat_map(u32::to_le_bytes).collect();
        self.put(&key, body.clone()).await;
        for (start, end) in [
            (0, 1),
            (0, 20_000),
            (1, 1),
            (4321, 12_345),
            (19_999, 20_000),
            (20_000, 20_000),
        ] {
            let found = self
                .store
                .get_range(&key, start..end)
                .await
                .expect("a range within an object is read");
            let expected = body.slice(start as usize..end as usize);
            assert!(
                found == expected,
                "bytes {start} to {end} are those of the object"
            );
        }
        #[expect(clippy::reversed_empty_ranges, reason = "what is refused")]
        for range in [
            0..20_001,
            20_000..20_001,
            20_001..20_001,
            u64::MAX - 1..u64::MAX,
            5..4,
        ] {
            kind_is(
                self.store.get_range(&key, range).await,
                StoreErrorKind::Invalid,
                "a range beyond an object",
            );
        }
        for length in [0, 1, 777, 19_999, 20_000, 20_001, u64::MAX] {
            let (meta, found) = self
                .store
                .get_suffix(&key, length)
                .await
                .expect("a suffix is read");
            assert_eq!(
                meta.size, 20_000,
                "a suffix comes with the whole object's size"
            );
            let start = 20_000_u64.saturating_sub(length) as usize;
            assert!(
                found == body.slice(start..),
                "the last {length} bytes are those of the object"
            );
        }
    }

    async fn deleting(&self) {
        let key = self.key("deleted/object");
        self.put(&key, "x").await;
        self.store.delete(&key).await.expect("deleting works");
        kind_is(
            self.store.head(&key).await,
            StoreErrorKind::NotFound,
            "head of a deleted object",
        );
        self.store
            .delete(&key)
            .await
            .expect("deleting what is absent works");
        self.store
            .delete(&self.key("nowhere/at/all"))
            .await
            .expect("deleting in an absent folder works");
        self.put(&key, "y").await;
        assert_eq!(
            self.read(&key).await.1,
            b"y",
            "a deleted key can be taken again"
        );
        if self.exceptions.folders_as_keys {
            return;
        }
        self.store
            .delete(&self.key("deleted"))
            .await
            .expect("deleting a folder's name works");
        assert_eq!(
            self.names("deleted/").await,
            ["object"],
            "deleting a folder's name deletes nothing in it"
        );
    }
}

async fn read(store: &dyn ObjectStore, key: &Key) -> Result<(ObjectMeta, Vec<u8>), StoreError> {
    let (meta, chunks) = store.get(key).await?;
    let bytes = chunks
        .try_fold(Vec::new(), |mut all, chunk| async move {
            all.extend_from_slice(&chunk);
            Ok(all)
        })
        .await?;
    Ok((meta, bytes))
}

/// Of a size of its own, and the same byte throughout.
fn racing_body(number: u8) -> Bytes {
    vec![number; 50_000 + 997 * usize::from(number)].into()
}

fn kind_is<T: std::fmt::Debug>(
    result: Result<T, StoreError>,
    expected: StoreErrorKind,
    what: &str,
) {
    match result {
        Err(error) => assert_eq!(error.kind(), expected, "{what}: {error:?}"),
        Ok(value) => panic!("{what} is {expected:?}, but it succeeded: {value:?}"),
    }
}
