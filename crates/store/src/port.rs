//! The port: what every store does, and promises.

use std::fmt;
use std::ops::Range;
use std::pin::Pin;

use async_trait::async_trait;
use bytes::Bytes;
use futures::Stream;

use crate::{Key, StoreError};

/// Whether a write may replace an object.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PutMode {
    /// Fails with `AlreadyExists` where the key is taken. Of any number of racing writers exactly one succeeds.
    Create,
    /// Replaces what is there; readers see the old bytes or the new, each whole.
    Overwrite,
}

/// What a store knows of an object.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ObjectMeta {
    /// The object's name.
    pub key: Key,
    /// In bytes.
    pub size: u64,
    /// When it was stored, by the store's clock.
    pub modified: jiff::Timestamp,
}

/// What to list. The meaning is that of S3's `ListObjectsV2`.
#[derive(Debug, Clone, Copy)]
pub struct ListOptions<'a> {
    /// Only keys that begin with this text; it may end within a component. Empty: all.
    pub prefix: &'a str,
    /// Only keys after this text in byte order; it need not be a key.
    pub start_after: Option<&'a str>,
    /// Keys with a `/` after the prefix are not listed but rolled up into [`ListPage::prefixes`].
    pub delimiter: bool,
    /// Most objects and prefixes on a page together; 0 counts as 1. A page may hold fewer and still have a next.
    pub limit: usize,
}

/// A page of a listing.
#[derive(Debug, Clone, Default)]
pub struct ListPage {
    /// In byte order of their keys.
    pub objects: Vec<ObjectMeta>,
    /// With a delimiter: each key rolled up, to and with the first `/` after the prefix; once each, in byte order.
    pub prefixes: Vec<String>,
    /// The `start_after` that gives the next page; `None` on the last. It need not be a key.
    pub next: Option<String>,
}

/// An object's bytes, in chunks of at most 1 MiB.
pub type ByteStream = Pin<Box<dyn Stream<Item = Result<Bytes, StoreError>> + Send>>;

/// A place that keeps objects.
///
/// A write that returned `Ok` is durable and whole. A write that failed has either left nothing or, where the failure
/// came after the object was in place, the whole object: a caller that must know looks, compares, and calls
/// [`ObjectStore::confirm_durable`]. Nobody ever sees a part of an object under its key.
///
/// `NotFound` is an answer of a store that is there: a store that is missing or cannot answer is `Unavailable`.
#[async_trait]
pub trait ObjectStore: Send + Sync + fmt::Debug {
    /// Stores an object.
    async fn put(&self, key: &Key, body: Bytes, mode: PutMode) -> Result<(), StoreError>;

    /// Begins to store an object whose bytes come piece by piece. Nothing is under the key before
    /// [`Upload::commit`], which is also where a taken key shows.
    async fn begin(&self, key: &Key, mode: PutMode) -> Result<Box<dyn Upload>, StoreError>;

    /// Reads an object. The stream gives as many bytes as the size says, or ends in an error.
    async fn get(&self, key: &Key) -> Result<(ObjectMeta, ByteStream), StoreError>;

    /// Reads exactly this range of bytes; one that goes beyond the object is `Invalid`.
    async fn get_range(&self, key: &Key, range: Range<u64>) -> Result<Bytes, StoreError>;

    /// Reads the last `length` bytes, or the whole object if it is smaller.
    async fn get_suffix(&self, key: &Key, length: u64) -> Result<(ObjectMeta, Bytes), StoreError>;

    /// Says what the store knows of an object.
    async fn head(&self, key: &Key) -> Result<ObjectMeta, StoreError>;

    /// Lists one page, in byte order.
    async fn list(&self, options: ListOptions<'_>) -> Result<ListPage, StoreError>;

    /// Removes an object for good. One that is absent is no error.
    async fn delete(&self, key: &Key) -> Result<(), StoreError>;

    /// Makes durable an object that somebody else wrote, who may have been cut off before it was.
    async fn confirm_durable(&self, key: &Key) -> Result<(), StoreError>;

    /// Removes what writers that were cut off left behind, if it was last written before `older_than`, and says how many. It is never
    /// under a key, and only takes room; a writer may still be at work on something younger.
    async fn sweep_unfinished(&self, older_than: jiff::Timestamp) -> Result<u64, StoreError>;

    /// Where the store is, for people.
    fn location(&self) -> String;
}

/// A write in progress. Dropped without a commit it leaves nothing under its key.
#[async_trait]
pub trait Upload: Send {
    /// Appends. After an error the upload can only be dropped.
    async fn write(&mut self, chunk: Bytes) -> Result<(), StoreError>;

    /// Says by a digest what the object means, where other bytes could mean the same. A store without conditions tells writers apart by it,
    /// so that one that was cut off and comes again is not in its own way; the object is then as any of those wrote it. Unless it is said,
    /// an object means its bytes.
    fn means(&mut self, _digest: [u8; 32]) {}

    /// Puts the object in place; it has the promises of [`ObjectStore::put`].
    async fn commit(self: Box<Self>) -> Result<(), StoreError>;
}
