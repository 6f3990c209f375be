//! A repository as the verbs see it: documents and framed objects over an object store.

mod reading;
mod sealing;
mod settings;

use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use futures::{Stream, StreamExt, TryStreamExt};
use walden_model::document::{self, MAX_DOCUMENT};
use walden_model::keys::{self, ROOT_KEY};
use walden_model::{
    ClusterName, Document, DocumentError, Head, IdentityDocument, RandomId, RepositoryDocument,
    Sha256Digest, Tail,
};
use walden_pg::SystemIdentifier;
use walden_store::{Key, LocalStore, ObjectStore, PutMode, StoreError, StoreErrorKind};

#[cfg(feature = "s3")]
pub(crate) use self::settings::open_bucket;
pub use self::settings::{Place, RepositorySettings};
#[cfg(feature = "s3")]
pub use walden_store::{
    Checksums, CreateOnly, ObjectLock, ObjectLockMode, S3Credentials, S3Settings, ServerEncryption,
};

pub use self::reading::End;
pub use self::sealing::ObjectEncoder;
use crate::codec::{CodecError, Expected, FrameCompressor, encode_head, encode_tail};
use crate::encryption::{AgeKeys, KeyError};
use crate::host;

/// Content of one frame of an object that is written from memory.
const FRAME: usize = 1 << 20;

/// An open repository. That it is really there is proven by [`Repository::root`].
#[derive(Debug, Clone)]
pub struct Repository {
    name: String,
    id: Option<RandomId>,
    in_bucket: bool,
    store: Arc<dyn ObjectStore>,
    keys: AgeKeys,
    /// An encrypted object was met, and there is nothing to open it with.
    locked: Arc<AtomicBool>,
}

/// Why a repository did not give or take something.
#[derive(Debug, thiserror::Error)]
pub enum RepositoryError {
    /// The store's own error.
    #[error("repository \"{name}\" failed")]
    Store {
        /// The repository.
        name: String,
        /// What the store says.
        #[source]
        source: StoreError,
    },
    /// The bucket's settings can not work.
    #[error("repository \"{name}\" cannot be used as it is configured")]
    Settings {
        /// The repository.
        name: String,
        /// What the store says.
        #[source]
        source: StoreError,
    },
    /// There is no root document: not mounted, or not ours.
    #[error(
        "{location} has no walden.json, so repository \"{name}\" is not {} or was never made; \
         {}, or make it with: walden init", if *bucket { "there" } else { "mounted there" },
         if *bucket { "correct the bucket, prefix or endpoint" } else { "mount it" }
    )]
    NoRoot {
        /// The repository.
        name: String,
        /// Where it should be.
        location: String,
        /// In a bucket, not in a folder.
        bucket: bool,
    },
    /// Another repository stands there.
    #[error(
        "{location} holds repository {found}, but the configuration of \"{name}\" says {expected}"
    )]
    WrongRepository {
        /// The repository.
        name: String,
        /// Where.
        location: String,
        /// The id that is there.
        found: RandomId,
        /// The id that the configuration names.
        expected: RandomId,
    },
    /// Another archive under the same name: nothing of it may be mixed with what the other repositories hold.
    #[error(
        "cluster \"{cluster}\" with system identifier {system} has archive id {found} in repository \"{name}\", and {expected} in repository \"{other}\": \
         two archives that must not be mixed; take one of the two out of the configuration"
    )]
    OtherArchive {
        /// The repository that is refused.
        name: String,
        /// The one before it.
        other: String,
        /// The cluster's name in the configuration.
        cluster: ClusterName,
        /// Its system identifier.
        system: SystemIdentifier,
        /// The archive id in the one that is refused.
        found: RandomId,
        /// The archive id in the other.
        expected: RandomId,
    },
    /// There is none to ask.
    #[error("no repository is configured")]
    NoRepository,
    /// Nobody registered this system identifier.
    #[error(
        "cluster \"{cluster}\" with system identifier {system} is not registered in repository \"{name}\"; \
         register it with: walden init --cluster {cluster}"
    )]
    NotRegistered {
        /// The repository.
        name: String,
        /// The cluster's name in the configuration.
        cluster: ClusterName,
        /// The identifier that was asked for.
        system: SystemIdentifier,
    },
    /// A document that cannot be believed.
    #[error("document {key} cannot be used")]
    Document {
        /// Its key.
        key: String,
        /// Why.
        #[source]
        source: DocumentError,
    },
    /// A framed object that cannot be believed.
    #[error("object {key} cannot be used")]
    Object {
        /// Its key.
        key: String,
        /// Why.
        #[source]
        source: CodecError,
    },
    /// An archive of encrypted objects, and nobody to encrypt for.
    #[error(
        "cluster \"{cluster}\" is registered in repository \"{name}\" as encrypted, and the configuration names no recipients: nothing is \
         written there in clear. Set encryption.recipients"
    )]
    NoRecipients {
        /// The repository.
        name: String,
        /// The cluster.
        cluster: ClusterName,
    },
    /// The recipients cannot be had.
    #[error("cannot encrypt for the recipients that the configuration names")]
    Recipients(#[source] KeyError),
    /// A whole object, but not the one of this backup.
    #[error(
        "object {key} is not the one that the backup's commit document names: its tail has {found}, expected {expected}"
    )]
    NotNamed {
        /// Its key.
        key: String,
        /// The digest of its tail.
        found: Sha256Digest,
        /// What the commit document says.
        expected: Sha256Digest,
    },
    /// The one who took the content failed.
    #[error("the content of {key} could not be taken over")]
    Sink {
        /// Its key.
        key: String,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// A task of ours broke off.
    #[error("reading {key} broke off inside Walden; please report this")]
    Internal {
        /// What was being read.
        key: String,
        /// The panic.
        #[source]
        source: tokio::task::JoinError,
    },
}

/// Why an object did not pass from a repository to an upload.
#[derive(Debug)]
pub enum PassError {
    /// It could not be read, or not be believed.
    From(RepositoryError),
    /// The upload failed.
    To(StoreError),
}

/// What an error means for the one who asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Trouble {
    /// The store is there and has no such object.
    Absent,
    /// The store is missing, refuses, or cannot answer; later it may.
    Outage,
    /// What is stored cannot be believed.
    Damage,
    /// The configuration must change, or a command be run.
    Configuration,
    /// This machine or Walden itself.
    Local,
}

impl RepositoryError {
    /// What the error means.
    pub fn trouble(&self) -> Trouble {
        match self {
            RepositoryError::Store { source, .. } => match source.kind() {
                StoreErrorKind::NotFound => Trouble::Absent,
                StoreErrorKind::Invalid => Trouble::Damage,
                _ => Trouble::Outage,
            },
            RepositoryError::NoRoot { .. } => Trouble::Outage,
            RepositoryError::Settings { .. }
            | RepositoryError::OtherArchive { .. }
            | RepositoryError::NoRepository
            | RepositoryError::NoRecipients { .. }
            | RepositoryError::Recipients(_) => Trouble::Configuration,
            // Who takes content refuses with this what cannot be right.
            RepositoryError::Sink { source, .. }
                if source.kind() == std::io::ErrorKind::InvalidData =>
            {
                Trouble::Damage
            }
            RepositoryError::Object {
                source: CodecError::Keys(keys),
                ..
            } if keys.is_passing() => Trouble::Outage,
            RepositoryError::Object { source, .. } if source.needs_other_reader() => {
                Trouble::Configuration
            }
            RepositoryError::Document {
                source: DocumentError::NewerFormat(_) | DocumentError::UnknownFeature(_),
                ..
            }
            | RepositoryError::WrongRepository { .. }
            | RepositoryError::NotRegistered { .. } => Trouble::Configuration,
            RepositoryError::Document { .. }
            | RepositoryError::Object { .. }
            | RepositoryError::NotNamed { .. } => Trouble::Damage,
            RepositoryError::Sink { .. } | RepositoryError::Internal { .. } => Trouble::Local,
        }
    }

    /// Whether a create-only write found its key taken.
    pub fn is_already_exists(&self) -> bool {
        matches!(self, RepositoryError::Store { source, .. } if source.kind() == StoreErrorKind::AlreadyExists)
    }
}

impl Repository {
    /// Opens the folder or the bucket. A folder that is missing is an outage: only `walden init` makes one. A bucket is not asked before
    /// the first request.
    pub async fn open(settings: &RepositorySettings) -> Result<Self, RepositoryError> {
        let name = || settings.name.clone();
        let store: Arc<dyn ObjectStore> = match &settings.place {
            Place::Folder(path) => {
                let path = path.clone();
                // A mount that hangs must not hang those who wait for other repositories beside it.
                let opening = tokio::task::spawn_blocking(move || LocalStore::open(&path));
                let opened = opening.await.map_err(|source| RepositoryError::Internal {
                    key: ROOT_KEY.to_owned(),
                    source,
                })?;
                Arc::new(opened.map_err(|source| RepositoryError::Store {
                    name: name(),
                    source,
                })?)
            }
            #[cfg(feature = "s3")]
            Place::Bucket(s3) => Arc::new(open_bucket(&settings.name, s3).await?),
        };
        Ok(Repository {
            name: name(),
            id: settings.id,
            in_bucket: !matches!(settings.place, Place::Folder(_)),
            store,
            keys: settings.keys.clone(),
            locked: Arc::default(),
        })
    }

    /// A repository over a test's own store.
    #[cfg(test)]
    pub(crate) fn over(store: Arc<dyn ObjectStore>) -> Self {
        Repository {
            name: "test".to_owned(),
            id: None,
            in_bucket: false,
            store,
            keys: AgeKeys::default(),
            locked: Arc::default(),
        }
    }

    /// The repository's name in the configuration.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Where it is, for people.
    pub fn location(&self) -> String {
        self.store.location()
    }

    /// The object store below.
    pub fn store(&self) -> &Arc<dyn ObjectStore> {
        &self.store
    }

    /// Adds the repository's name to a store's error.
    pub fn failed(&self, source: StoreError) -> RepositoryError {
        RepositoryError::Store {
            name: self.name.clone(),
            source,
        }
    }

    /// A key of ours as the store's. Keys are built from checked parts; one that is refused all the same is an error.
    pub fn key(&self, key: &str) -> Result<Key, RepositoryError> {
        Key::parse(key).map_err(|e| {
            self.failed(StoreError::new(StoreErrorKind::Invalid, "name", key).with_source(e))
        })
    }

    /// Reads the root document: the proof that the repository is really there, and the expected one.
    pub async fn root(&self) -> Result<RepositoryDocument, RepositoryError> {
        let root: RepositoryDocument =
            self.document(ROOT_KEY)
                .await?
                .ok_or_else(|| RepositoryError::NoRoot {
                    name: self.name.clone(),
                    location: self.location(),
                    bucket: self.in_bucket,
                })?;
        match &self.id {
            Some(expected) if *expected != root.repository_id => {
                Err(RepositoryError::WrongRepository {
                    name: self.name.clone(),
                    location: self.location(),
                    found: root.repository_id,
                    expected: *expected,
                })
            }
            _ => Ok(root),
        }
    }

    /// The registration of a cluster's system identifier. Without one nothing is archived.
    pub async fn registration(
        &self,
        cluster: &ClusterName,
        system: SystemIdentifier,
    ) -> Result<IdentityDocument, RepositoryError> {
        // A copy of the repository knows the cluster, too.
        if self.id.is_some() {
            self.root().await?;
        }
        if let Some(identity) = self.document(&keys::identity(cluster, system)).await? {
            return Ok(identity);
        }
        self.root().await?;
        Err(RepositoryError::NotRegistered {
            name: self.name.clone(),
            cluster: cluster.clone(),
            system,
        })
    }

    /// Every system identifier registered under a cluster's name.
    pub async fn registrations(
        &self,
        cluster: &ClusterName,
    ) -> Result<Vec<IdentityDocument>, RepositoryError> {
        let objects = self.list(&keys::identity_prefix(cluster)).await?;
        let mut found = Vec::new();
        for object in objects {
            found.extend(self.document(object.key.as_str()).await?);
        }
        Ok(found)
    }

    /// Every object whose key begins so, in byte order.
    pub async fn list(
        &self,
        prefix: &str,
    ) -> Result<Vec<walden_store::ObjectMeta>, RepositoryError> {
        let mut objects = self.list_pages(prefix).try_concat().await?;
        objects.sort_unstable_by(|a, b| a.key.cmp(&b.key));
        Ok(objects)
    }

    /// The same page by page, the pages in any order: for what may be millions of objects.
    pub fn list_pages<'a>(
        &'a self,
        prefix: &'a str,
    ) -> impl Stream<Item = Result<Vec<walden_store::ObjectMeta>, RepositoryError>> + Send + 'a
    {
        walden_store::list_in_lanes(self.store.as_ref(), prefix).map_err(|e| self.failed(e))
    }

    /// Reads a document; `None` where there is none.
    pub async fn document<T: Document>(&self, key: &str) -> Result<Option<T>, RepositoryError> {
        let damaged = |source| RepositoryError::Document {
            key: key.to_owned(),
            source,
        };
        match self.document_bytes(key).await? {
            Some(bytes) => document::decode(&bytes).map(Some).map_err(damaged),
            None => Ok(None),
        }
    }

    /// Reads a document's bytes as they are stored, at most [`MAX_DOCUMENT`]; `None` where there is none.
    pub async fn document_bytes(&self, key: &str) -> Result<Option<Vec<u8>>, RepositoryError> {
        let (meta, mut stream) = match self.store.get(&self.key(key)?).await {
            Err(e) if e.kind() == StoreErrorKind::NotFound => return Ok(None),
            other => other.map_err(|e| self.failed(e))?,
        };
        let damaged = |source| RepositoryError::Document {
            key: key.to_owned(),
            source,
        };
        if meta.size > MAX_DOCUMENT as u64 {
            return Err(damaged(DocumentError::Damaged(format!(
                "{} bytes are more than a document has",
                meta.size
            ))));
        }
        let mut bytes = Vec::new();
        while let Some(chunk) = stream.next().await {
            bytes.extend_from_slice(&chunk.map_err(|e| self.failed(e))?);
        }
        Ok(Some(bytes))
    }

    /// Writes a document, create-only.
    pub async fn put_document<T: Document>(
        &self,
        key: &str,
        value: &T,
    ) -> Result<(), RepositoryError> {
        let bytes = document::encode(value).map_err(|source| RepositoryError::Document {
            key: key.to_owned(),
            source,
        })?;
        self.store
            .put(&self.key(key)?, bytes.into(), PutMode::Create)
            .await
            .map_err(|e| self.failed(e))
    }

    /// Writes a framed object whose content fits into memory, create-only.
    pub async fn put_small(
        &self,
        key: &str,
        place: Expected,
        content: Vec<u8>,
        level: i32,
    ) -> Result<(), RepositoryError> {
        let failed = |source| RepositoryError::Object {
            key: key.to_owned(),
            source,
        };
        let encoding = tokio::task::spawn_blocking(move || encode_small(place, &content, level));
        let encoded = encoding.await.map_err(|source| RepositoryError::Internal {
            key: key.to_owned(),
            source,
        })?;
        let stored = self.sealed(key, encoded.map_err(failed)?).await?;
        self.store
            .put(&self.key(key)?, stored, PutMode::Create)
            .await
            .map_err(|e| self.failed(e))
    }
}

pub(crate) fn encode_small(
    place: Expected,
    content: &[u8],
    level: i32,
) -> Result<Vec<u8>, CodecError> {
    let size = content.len() as u64;
    let Expected {
        kind,
        archive_id,
        key,
    } = place;
    let head = Head::new(kind, archive_id, &key, Some(size), host::writer());
    let mut object = encode_head(&head)?;
    let mut tail = Tail {
        content_size: size,
        index: None,
        sha256: Some(Sha256Digest::of(content)),
        frames: Vec::new(),
    };
    let mut compressor = FrameCompressor::new(level)?;
    for content in content.chunks(FRAME) {
        let frame = compressor.compress(content)?;
        object.extend_from_slice(&frame.stored);
        tail.frames.push(frame.entry);
    }
    object.extend_from_slice(&encode_tail(&tail)?.0);
    Ok(object)
}
