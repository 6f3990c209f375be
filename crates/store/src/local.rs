//! A folder as an object store: each object is a file, its key the path below the root.
//!
//! Folders are made for the user alone (0700), files too (0600). The folder `.tmp` holds objects in the making; no key
//! can name it and no listing shows it.

mod list;
mod place;
mod root;

use std::fs::File;
use std::io::Read;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;
use futures::stream;

use self::place::Temporary;
use self::root::Root;
use crate::{
    ByteStream, Key, ListOptions, ListPage, ObjectMeta, ObjectStore, PutMode, StoreError,
    StoreErrorKind, Upload,
};

/// Of a read; a few system calls for a WAL segment, and little memory.
const CHUNK: u64 = 1 << 20;

/// A store in a folder of this machine, or of a file system mounted on it.
///
/// The folder is remembered by its device and inode: when another one is found under its path (the file system was
/// unmounted), nothing is absent and nothing gets written, everything is `Unavailable`.
#[derive(Debug, Clone)]
pub struct LocalStore {
    root: Arc<Root>,
}

impl LocalStore {
    /// Opens the store in `root`, an absolute path of a folder that exists. A missing one is `Unavailable`: a file
    /// system that is not mounted looks the same.
    pub fn open(root: &Path) -> Result<Self, StoreError> {
        Ok(Self {
            root: Arc::new(Root::open(root)?),
        })
    }

    /// Makes the folder and those above it as needed, durably, and opens the store in it. An existing one is kept.
    pub fn create_root(root: &Path) -> Result<Self, StoreError> {
        Root::create(root)?;
        Self::open(root)
    }

    /// Runs what blocks beside the runtime.
    async fn blocking<T: Send + 'static>(
        &self,
        operation: &'static str,
        subject: &str,
        work: impl FnOnce(&Root) -> Result<T, StoreError> + Send + 'static,
    ) -> Result<T, StoreError> {
        run(self.root.clone(), operation, subject, work).await
    }

    async fn open_object(&self, key: &Key) -> Result<(ObjectMeta, File), StoreError> {
        let name = key.clone();
        self.blocking("read", key.as_str(), move |root| {
            root.open_object("read", &name)
        })
        .await
    }
}

async fn run<T: Send + 'static>(
    root: Arc<Root>,
    operation: &'static str,
    subject: &str,
    work: impl FnOnce(&Root) -> Result<T, StoreError> + Send + 'static,
) -> Result<T, StoreError> {
    let worker = root.clone();
    match tokio::task::spawn_blocking(move || work(&worker)).await {
        Ok(result) => result,
        Err(cut_off) => Err(StoreError::new(
            StoreErrorKind::Unavailable,
            operation,
            root.describe(subject),
        )
        .with_source(cut_off)),
    }
}

#[async_trait]
impl ObjectStore for LocalStore {
    async fn put(&self, key: &Key, body: Bytes, mode: PutMode) -> Result<(), StoreError> {
        let name = key.clone();
        self.blocking("store", key.as_str(), move |root| {
            let mut temporary = Temporary::create(root, &name)?;
            temporary.write(root, &name, &body)?;
            temporary.place(root, &name, mode)
        })
        .await
    }

    async fn begin(&self, key: &Key, mode: PutMode) -> Result<Box<dyn Upload>, StoreError> {
        let name = key.clone();
        let temporary = self
            .blocking("store", key.as_str(), move |root| {
                Temporary::create(root, &name)
            })
            .await?;
        Ok(Box::new(LocalUpload {
            root: self.root.clone(),
            key: key.clone(),
            mode,
            temporary: Some(temporary),
        }))
    }

    async fn get(&self, key: &Key) -> Result<(ObjectMeta, ByteStream), StoreError> {
        let (meta, file) = self.open_object(key).await?;
        let (root, name) = (self.root.clone(), key.clone());
        let chunks = stream::try_unfold((file, meta.size), move |(file, remaining)| {
            let (root, name) = (root.clone(), name.clone());
            async move {
                if remaining == 0 {
                    return Ok(None);
                }
                let subject = name.to_string();
                let next = run(root, "read", &subject, move |root| {
                    let length = remaining.min(CHUNK);
                    let mut chunk = Vec::with_capacity(usize::try_from(length).unwrap_or_default());
                    (&file)
                        .take(length)
                        .read_to_end(&mut chunk)
                        .map_err(|cause| root.failure("read", name.as_str(), cause))?;
                    if chunk.is_empty() {
                        return Err(root
                            .error(StoreErrorKind::Invalid, "read", name.as_str())
                            .because(format!(
                                "the file ends {remaining} bytes before its size when it was opened"
                            )));
                    }
                    let read = chunk.len() as u64;
                    Ok((Bytes::from(chunk), (file, remaining - read)))
                })
                .await?;
                Ok(Some(next))
            }
        });
        Ok((meta, Box::pin(chunks)))
    }

    async fn get_range(&self, key: &Key, range: Range<u64>) -> Result<Bytes, StoreError> {
        let name = key.clone();
        self.blocking("read", key.as_str(), move |root| {
            let (meta, file) = root.open_object("read", &name)?;
            if range.start > range.end || range.end > meta.size {
                let reason = format!(
                    "bytes {} to {} are not within its {}",
                    range.start, range.end, meta.size
                );
                return Err(root
                    .error(StoreErrorKind::Invalid, "read", name.as_str())
                    .because(reason));
            }
            read_at(root, &name, &file, range.start, range.end - range.start)
        })
        .await
    }

    async fn get_suffix(&self, key: &Key, length: u64) -> Result<(ObjectMeta, Bytes), StoreError> {
        let name = key.clone();
        self.blocking("read", key.as_str(), move |root| {
            let (meta, file) = root.open_object("read", &name)?;
            let length = length.min(meta.size);
            let bytes = read_at(root, &name, &file, meta.size - length, length)?;
            Ok((meta, bytes))
        })
        .await
    }

    async fn head(&self, key: &Key) -> Result<ObjectMeta, StoreError> {
        let name = key.clone();
        self.blocking("look at", key.as_str(), move |root| root.head(&name))
            .await
    }

    async fn list(&self, options: ListOptions<'_>) -> Result<ListPage, StoreError> {
        let prefix = options.prefix.to_owned();
        let start_after = options.start_after.map(str::to_owned);
        let ListOptions {
            delimiter, limit, ..
        } = options;
        self.blocking("list", options.prefix, move |root| {
            let start_after = start_after.as_deref();
            list::page(
                root,
                ListOptions {
                    prefix: &prefix,
                    start_after,
                    delimiter,
                    limit,
                },
            )
        })
        .await
    }

    async fn delete(&self, key: &Key) -> Result<(), StoreError> {
        let name = key.clone();
        self.blocking("delete", key.as_str(), move |root| {
            place::delete(root, &name)
        })
        .await
    }

    async fn confirm_durable(&self, key: &Key) -> Result<(), StoreError> {
        let name = key.clone();
        self.blocking("make durable", key.as_str(), move |root| {
            place::confirm_durable(root, &name)
        })
        .await
    }

    async fn sweep_unfinished(&self, older_than: jiff::Timestamp) -> Result<u64, StoreError> {
        self.blocking("sweep temporary files of", "objects", move |root| {
            place::sweep(root, older_than)
        })
        .await
    }

    fn location(&self) -> String {
        self.root.path().display().to_string()
    }
}

fn read_at(
    root: &Root,
    key: &Key,
    file: &File,
    offset: u64,
    length: u64,
) -> Result<Bytes, StoreError> {
    let length = usize::try_from(length).map_err(|cause| {
        root.error(StoreErrorKind::Invalid, "read", key.as_str())
            .with_source(cause)
    })?;
    let mut bytes = vec![0; length];
    file.read_exact_at(&mut bytes, offset)
        .map_err(|cause| root.failure("read", key.as_str(), cause))?;
    Ok(Bytes::from(bytes))
}

struct LocalUpload {
    root: Arc<Root>,
    key: Key,
    mode: PutMode,
    /// Away while a write is under way: one that failed, or whose caller went away, ends the upload.
    temporary: Option<Temporary>,
}

impl LocalUpload {
    fn take(&mut self) -> Result<Temporary, StoreError> {
        self.temporary.take().ok_or_else(|| {
            self.root
                .error(StoreErrorKind::Invalid, "store", self.key.as_str())
                .because("an earlier write of this upload did not succeed")
        })
    }
}

#[async_trait]
impl Upload for LocalUpload {
    async fn write(&mut self, chunk: Bytes) -> Result<(), StoreError> {
        let mut temporary = self.take()?;
        let name = self.key.clone();
        let written = run(self.root.clone(), "store", self.key.as_str(), move |root| {
            temporary.write(root, &name, &chunk)?;
            Ok(temporary)
        });
        self.temporary = Some(written.await?);
        Ok(())
    }

    async fn commit(mut self: Box<Self>) -> Result<(), StoreError> {
        let temporary = self.take()?;
        let (name, mode) = (self.key.clone(), self.mode);
        run(self.root.clone(), "store", self.key.as_str(), move |root| {
            temporary.place(root, &name, mode)
        })
        .await
    }
}
