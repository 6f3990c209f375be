//! A bucket as an object store: AWS S3 and what speaks its language.
//!
//! An object's name in the bucket is the prefix, a `/` and the key. Names below [`CLAIMS`] and [`PROBES`] are Walden's own: no key can
//! name them, and no listing shows them.

mod client;
mod create;
mod failure;
mod list;
mod probe;
mod read;
mod retry;
mod settings;
mod upload;

use std::ops::Range;
use std::sync::Arc;

use async_trait::async_trait;
use aws_sdk_s3::Client;
use bytes::Bytes;

pub use self::settings::{
    Checksums, CreateOnly, ObjectLock, ObjectLockMode, S3Credentials, S3Settings, Secret,
    ServerEncryption,
};

use self::failure::{Failure, FailureKind};
use self::read::Part;
use self::retry::Budget;
use crate::{
    ByteStream, Key, ListOptions, ListPage, ObjectMeta, ObjectStore, PutMode, StoreError,
    StoreErrorKind, Upload,
};

/// Who wants to put what under which key, where conditions are not honoured: `.claims/<key>/<digest>`.
const CLAIMS: &str = ".claims/";

/// What a probe puts and removes.
const PROBES: &str = ".probe/";

/// A store in a bucket.
#[derive(Debug, Clone)]
pub struct S3Store {
    bucket: Arc<Bucket>,
}

impl S3Store {
    /// Reads what it needs of this machine: the CA file, and where they are not set, AWS's files and environment. The
    /// bucket is not asked.
    ///
    /// # Errors
    /// `Invalid` where a setting can not work.
    pub async fn open(settings: S3Settings) -> Result<Self, StoreError> {
        let client = client::build(&settings).await?;
        Ok(Self {
            bucket: Arc::new(Bucket { client, settings }),
        })
    }

    /// Finds out by trying, with racing writers, whether the store honours `If-None-Match: *`. What it puts it removes.
    ///
    /// # Errors
    /// Where the store cannot be reached, or refuses to put at all.
    pub async fn probe_create_only(&self) -> Result<CreateOnly, StoreError> {
        probe::run(&self.bucket).await
    }
}

/// A bucket, with what every request to it needs.
#[derive(Debug)]
struct Bucket {
    client: Client,
    settings: S3Settings,
}

impl Bucket {
    /// A key's name in the bucket; also of a part of a key, and of Walden's own.
    fn name(&self, key: &str) -> String {
        match self.settings.prefix.as_str() {
            "" => key.to_owned(),
            prefix => format!("{prefix}/{key}"),
        }
    }

    fn budget(&self) -> Budget {
        Budget::new(
            self.settings.request_deadline,
            self.settings.operation_deadline,
        )
    }

    fn location(&self) -> String {
        self.settings.location()
    }

    fn error(&self, kind: StoreErrorKind, operation: &'static str, key: &str) -> StoreError {
        let subject = if key.is_empty() { "objects" } else { key };
        StoreError::new(kind, operation, format!("{subject} in {}", self.location()))
    }

    /// What a request's failure means for the caller, and what a person can do about it.
    fn failed(&self, operation: &'static str, key: &str, failure: Failure) -> StoreError {
        let bucket = &self.settings.bucket;
        let (kind, reason) = match failure.kind {
            FailureKind::NoSuchKey => (StoreErrorKind::NotFound, None),
            FailureKind::NotFound | FailureKind::NoSuchBucket => (
                StoreErrorKind::Unavailable,
                Some(format!(
                    "the bucket {bucket} is not there: make it, or correct its name or the endpoint"
                )),
            ),
            FailureKind::Denied => (
                StoreErrorKind::PermissionDenied,
                Some(denied(operation, bucket)),
            ),
            FailureKind::Credentials => (
                StoreErrorKind::PermissionDenied,
                Some(
                    "the credentials do not hold: look at the access key, its secret, its age and this machine's clock"
                        .to_owned(),
                ),
            ),
            FailureKind::Untrusted => (
                StoreErrorKind::Unavailable,
                Some(
                    "the store's certificate is not believed: correct the endpoint, or set the CA file"
                        .to_owned(),
                ),
            ),
            FailureKind::Elsewhere => (
                StoreErrorKind::Unavailable,
                Some(format!(
                    "the bucket {bucket} is in another region or behind another endpoint: correct the region"
                )),
            ),
            FailureKind::Full => (StoreErrorKind::OutOfSpace, None),
            FailureKind::Busy => (
                StoreErrorKind::Unavailable,
                Some("the store asks for fewer requests, and did so to the end of the time allowed".to_owned()),
            ),
            FailureKind::Transient | FailureKind::Conflict | FailureKind::Precondition => {
                (StoreErrorKind::Unavailable, None)
            }
            FailureKind::Unsupported => (
                StoreErrorKind::Invalid,
                Some(
                    "the store does not know this kind of request; checksums, tags, storage class, encryption, Object Lock and \
                     conditional writes can be set otherwise"
                        .to_owned(),
                ),
            ),
            FailureKind::Range | FailureKind::NoSuchUpload | FailureKind::Refused => {
                (StoreErrorKind::Invalid, None)
            }
        };
        let error = self.error(kind, operation, key);
        let error = match reason {
            Some(reason) => error.because(reason),
            None => error,
        };
        error.with_source(failure.without(self.settings.credentials.secrets()))
    }
}

fn denied(operation: &str, bucket: &str) -> String {
    let needed = match operation {
        "store" => "s3:PutObject, and s3:GetObject to recognise its own bytes",
        "list" => "s3:ListBucket",
        "delete" => "s3:DeleteObject",
        "sweep unfinished uploads of" => {
            "s3:ListBucketMultipartUploads and s3:AbortMultipartUpload"
        }
        _ => {
            "s3:GetObject, and s3:ListBucket, without which the store refuses where it should say that an object is absent"
        }
    };
    format!("the store refuses it to this credential: allow it {needed} on the bucket {bucket}")
}

#[async_trait]
impl ObjectStore for S3Store {
    async fn put(&self, key: &Key, body: Bytes, mode: PutMode) -> Result<(), StoreError> {
        create::put(&self.bucket, key, body, mode, None).await
    }

    async fn begin(&self, key: &Key, mode: PutMode) -> Result<Box<dyn Upload>, StoreError> {
        Ok(Box::new(upload::S3Upload::new(
            self.bucket.clone(),
            key.clone(),
            mode,
        )))
    }

    async fn get(&self, key: &Key) -> Result<(ObjectMeta, ByteStream), StoreError> {
        let reader = read::open(&self.bucket, key, Part::Whole, &mut self.bucket.budget())
            .await
            .map_err(|failure| self.bucket.failed("read", key.as_str(), failure))?;
        Ok((reader.meta(), reader.stream()))
    }

    async fn get_range(&self, key: &Key, range: Range<u64>) -> Result<Bytes, StoreError> {
        read::range(&self.bucket, key, range).await
    }

    async fn get_suffix(&self, key: &Key, length: u64) -> Result<(ObjectMeta, Bytes), StoreError> {
        read::suffix(&self.bucket, key, length).await
    }

    async fn head(&self, key: &Key) -> Result<ObjectMeta, StoreError> {
        read::head(&self.bucket, key, &mut self.bucket.budget())
            .await
            .map_err(|failure| self.bucket.failed("look at", key.as_str(), failure))
    }

    async fn list(&self, options: ListOptions<'_>) -> Result<ListPage, StoreError> {
        list::page(&self.bucket, options).await
    }

    async fn delete(&self, key: &Key) -> Result<(), StoreError> {
        create::delete(&self.bucket, key).await
    }

    async fn confirm_durable(&self, key: &Key) -> Result<(), StoreError> {
        // What S3 shows is durable.
        read::head(&self.bucket, key, &mut self.bucket.budget())
            .await
            .map(drop)
            .map_err(|failure| self.bucket.failed("make durable", key.as_str(), failure))
    }

    async fn sweep_unfinished(&self, older_than: jiff::Timestamp) -> Result<u64, StoreError> {
        upload::sweep(&self.bucket, older_than)
            .await
            .map_err(|failure| {
                self.bucket
                    .failed("sweep unfinished uploads of", "", failure)
            })
    }

    fn location(&self) -> String {
        self.bucket.location()
    }
}
