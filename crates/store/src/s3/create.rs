//! Putting, and putting only where nothing is.
//!
//! An answer may get lost, so a failed create-only put may have been one's own success, and a refusal may be about one's own
//! bytes. Both are told apart by reading what stands there.

use std::future::Future;
use std::sync::Arc;

use aws_sdk_s3::operation::put_object::builders::PutObjectFluentBuilder;
use aws_sdk_s3::primitives::{ByteStream as SdkBody, DateTime};
use aws_sdk_s3::types::{
    ChecksumAlgorithm, ObjectLockMode as SdkLockMode, ServerSideEncryption, StorageClass,
};
use bytes::Bytes;
use sha2::{Digest, Sha256};

use super::failure::{Failure, FailureKind};
use super::read::{self, Part};
use super::retry::Budget;
use super::settings::{CreateOnly, ObjectLock, ObjectLockMode, ServerEncryption};
use super::{Bucket, CLAIMS, list};
use crate::{Key, PutMode, StoreError, StoreErrorKind};

/// Hexadecimal digits of a digest in a claim's name: enough against chance, and short.
const CLAIM_DIGITS: usize = 32;

/// What is to stand under a key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Content {
    pub size: u64,
    pub sha256: [u8; 32],
    /// What writers are told apart by, if not by the bytes.
    pub meaning: Option<[u8; 32]>,
}

impl Content {
    pub fn of(body: &[u8]) -> Self {
        Self {
            size: body.len() as u64,
            sha256: Sha256::digest(body).into(),
            meaning: None,
        }
    }

    fn claim(&self) -> String {
        let digest = self.meaning.as_ref().unwrap_or(&self.sha256);
        let digits = digest.iter().map(|byte| format!("{byte:02x}"));
        digits.collect::<String>()[..CLAIM_DIGITS].to_owned()
    }
}

/// Why an object was not put.
#[derive(Debug)]
pub(super) enum NotPut {
    /// Other bytes stand under its key.
    Taken,
    /// Another writer has claimed the key for something else.
    Claimed,
    Failed(Failure),
}

impl From<Failure> for NotPut {
    fn from(failure: Failure) -> Self {
        Self::Failed(failure)
    }
}

impl NotPut {
    pub fn error(self, bucket: &Bucket, key: &Key) -> StoreError {
        match self {
            Self::Taken => bucket.error(StoreErrorKind::AlreadyExists, "store", key.as_str()),
            Self::Claimed => bucket
                .error(StoreErrorKind::AlreadyExists, "store", key.as_str())
                .because(format!(
                    "another writer claims this key for something else; where nobody is at work on it, remove what is below \
                     {}{key}/ in the bucket",
                    bucket.name(CLAIMS)
                )),
            Self::Failed(failure) => bucket.failed("store", key.as_str(), failure),
        }
    }
}

pub(super) async fn put(
    bucket: &Arc<Bucket>,
    key: &Key,
    body: Bytes,
    mode: PutMode,
    meaning: Option<[u8; 32]>,
) -> Result<(), StoreError> {
    let size = body.len() as u64;
    let mut budget = bucket.budget();
    budget.allow(size);
    let name = bucket.name(key.as_str());
    let send = |condition| send(bucket, &name, body.clone(), condition);
    let content = || Content {
        meaning,
        ..Content::of(&body)
    };
    place(bucket, key, mode, &mut budget, size, content, send)
        .await
        .map_err(|not_put| not_put.error(bucket, key))
}

/// Puts in place by `send`, which is told whether to send the condition that nothing is there. `content` is worked out where it
/// is needed.
pub(super) async fn place<F>(
    bucket: &Arc<Bucket>,
    key: &Key,
    mode: PutMode,
    budget: &mut Budget,
    bytes: u64,
    content: impl Fn() -> Content,
    send: impl Fn(bool) -> F,
) -> Result<(), NotPut>
where
    F: Future<Output = Result<(), Failure>>,
{
    let conditional = mode == PutMode::Create
        && match bucket.settings.create_only {
            CreateOnly::Conditional => true,
            CreateOnly::Claims => {
                if claim(bucket, key, &content(), budget).await? == Claim::Stored {
                    return Ok(());
                }
                false
            }
        };
    // Whether an answer got lost, which could have been a success.
    let mut unknown = false;
    loop {
        let failure = match budget.request(bytes, send(conditional)).await {
            Ok(()) => return Ok(()),
            Err(failure) => failure,
        };
        let exists = failure.kind == FailureKind::Precondition;
        unknown |= failure.kind == FailureKind::Transient;
        if failure.passes() {
            budget.again(failure).await?;
            // Before all bytes are sent again: a server that refuses early may cut off whoever is still sending.
            if !unknown || mode != PutMode::Create {
                continue;
            }
            match stands(bucket, key, &content(), budget).await? {
                Some(true) => return Ok(()),
                Some(false) => return Err(NotPut::Taken),
                None => {}
            }
        } else if exists || unknown {
            // Stores say different things of an upload whose end is asked for twice.
            match stands(bucket, key, &content(), budget).await? {
                Some(true) => return Ok(()),
                Some(false) if exists => return Err(NotPut::Taken),
                // Removed meanwhile.
                _ if exists => budget.again(Failure::transient(failure.what)).await?,
                _ => return Err(failure.into()),
            }
        } else {
            return Err(failure.into());
        }
    }
}

#[derive(PartialEq, Eq)]
enum Claim {
    /// Nobody else may put under this key.
    Granted,
    /// The same bytes are there.
    Stored,
}

/// Claims a key. A claim is left behind even where it is refused: another writer may have seen it.
async fn claim(
    bucket: &Arc<Bucket>,
    key: &Key,
    content: &Content,
    budget: &mut Budget,
) -> Result<Claim, NotPut> {
    match stands(bucket, key, content, budget).await? {
        Some(true) => return Ok(Claim::Stored),
        Some(false) => return Err(NotPut::Taken),
        None => {}
    }
    let folder = format!("{CLAIMS}{key}/");
    let own = content.claim();
    let name = bucket.name(&format!("{folder}{own}"));
    budget
        .persist(0, || send(bucket, &name, Bytes::new(), false))
        .await?;
    let claims = list::own(bucket, &folder, 2, budget).await?;
    if claims == [own] {
        return Ok(Claim::Granted);
    }
    if claims.is_empty() {
        let failure = "the store does not list what it has just taken";
        return Err(Failure::new(FailureKind::Refused, failure).into());
    }
    // Whoever else claimed it may be done by now, with the same bytes under a claim of before.
    match stands(bucket, key, content, budget).await? {
        Some(true) => Ok(Claim::Stored),
        Some(false) => Err(NotPut::Taken),
        None => Err(NotPut::Claimed),
    }
}

/// Whether these very bytes stand under a key; `None` where nothing does.
pub(super) async fn stands(
    bucket: &Arc<Bucket>,
    key: &Key,
    content: &Content,
    budget: &mut Budget,
) -> Result<Option<bool>, Failure> {
    let mut reader = match read::open(bucket, key, Part::Whole, budget).await {
        Ok(reader) => reader,
        Err(failure) if failure.kind == FailureKind::NoSuchKey => return Ok(None),
        Err(failure) => return Err(failure),
    };
    if reader.meta().size != content.size {
        return Ok(Some(false));
    }
    let mut hash = Sha256::new();
    let read = reader.each(|chunk| hash.update(chunk)).await;
    *budget = reader.budget();
    read?;
    Ok(Some(hash.finalize()[..] == content.sha256))
}

/// One put, once.
pub(super) async fn send(
    bucket: &Bucket,
    name: &str,
    body: Bytes,
    condition: bool,
) -> Result<(), Failure> {
    let request = bucket
        .client
        .put_object()
        .bucket(&bucket.settings.bucket)
        .key(name)
        .body(SdkBody::from(body))
        .set_if_none_match(condition.then(|| "*".to_owned()));
    let answer = dressed(bucket, request).send().await.map_err(Failure::of)?;
    // An error's text under the status 200 has none either.
    match answer.e_tag() {
        Some(_) => Ok(()),
        None => Err(Failure::transient("the answer to the put has no ETag")),
    }
}

/// What the settings want of each object.
fn dressed(bucket: &Bucket, request: PutObjectFluentBuilder) -> PutObjectFluentBuilder {
    let dress = Dress::of(bucket);
    request
        .set_storage_class(dress.storage_class)
        .set_server_side_encryption(dress.encryption)
        .set_ssekms_key_id(dress.kms_key)
        .set_tagging(dress.tagging)
        .set_object_lock_mode(dress.lock_mode)
        .set_object_lock_retain_until_date(dress.lock_until)
        .set_checksum_algorithm(dress.checksum)
}

/// The settings in the SDK's words; a put and a begun upload take the same.
pub(super) struct Dress {
    pub storage_class: Option<StorageClass>,
    pub encryption: Option<ServerSideEncryption>,
    pub kms_key: Option<String>,
    pub tagging: Option<String>,
    pub lock_mode: Option<SdkLockMode>,
    pub lock_until: Option<DateTime>,
    pub checksum: Option<ChecksumAlgorithm>,
}

impl Dress {
    pub fn of(bucket: &Bucket) -> Self {
        let settings = &bucket.settings;
        let (encryption, kms_key) = match &settings.encryption {
            None => (None, None),
            Some(ServerEncryption::S3) => (Some(ServerSideEncryption::Aes256), None),
            Some(ServerEncryption::Kms { key }) => {
                (Some(ServerSideEncryption::AwsKms), key.clone())
            }
        };
        let lock = settings.object_lock.as_ref();
        Self {
            storage_class: settings.storage_class.as_deref().map(StorageClass::from),
            encryption,
            kms_key,
            tagging: (!settings.tags.is_empty()).then(|| {
                let pairs = settings.tags.iter();
                let pairs: Vec<_> = pairs
                    .map(|(name, value)| format!("{}={}", encoded(name), encoded(value)))
                    .collect();
                pairs.join("&")
            }),
            lock_mode: lock.map(|lock| match lock.mode {
                ObjectLockMode::Governance => SdkLockMode::Governance,
                ObjectLockMode::Compliance => SdkLockMode::Compliance,
            }),
            lock_until: lock.map(until),
            checksum: settings
                .sends_checksums()
                .then_some(ChecksumAlgorithm::Crc32),
        }
    }
}

fn until(lock: &ObjectLock) -> DateTime {
    let seconds = i64::from(lock.days) * 24 * 60 * 60;
    DateTime::from_secs(jiff::Timestamp::now().as_second().saturating_add(seconds))
}

/// A tag's name or value as in a URL's query.
fn encoded(text: &str) -> String {
    let mut encoded = String::new();
    for byte in text.bytes() {
        match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'_' | b'.' | b'~' => {
                encoded.push(char::from(byte));
            }
            _ => encoded.push_str(&format!("%{byte:02X}")),
        }
    }
    encoded
}

/// Removes an object, then its claims, so that the key can be taken again.
pub(super) async fn delete(bucket: &Bucket, key: &Key) -> Result<(), StoreError> {
    let mut budget = bucket.budget();
    let deleted = async {
        remove(bucket, key.as_str(), &mut budget).await?;
        if bucket.settings.create_only == CreateOnly::Claims {
            let folder = format!("{CLAIMS}{key}/");
            loop {
                let claims = list::own(bucket, &folder, 100, &mut budget).await?;
                if claims.is_empty() {
                    break;
                }
                for claim in claims {
                    remove(bucket, &format!("{folder}{claim}"), &mut budget).await?;
                }
            }
        }
        Ok(())
    };
    deleted
        .await
        .map_err(|failure| bucket.failed("delete", key.as_str(), failure))
}

pub(super) async fn remove(bucket: &Bucket, key: &str, budget: &mut Budget) -> Result<(), Failure> {
    let removed = budget.persist(0, || async {
        bucket
            .client
            .delete_object()
            .bucket(&bucket.settings.bucket)
            .key(bucket.name(key))
            .send()
            .await
            .map_err(Failure::of)
    });
    match removed.await {
        Ok(_) => Ok(()),
        // S3 answers 204 to that; others say it.
        Err(failure) if failure.kind == FailureKind::NoSuchKey => Ok(()),
        Err(failure) => Err(failure),
    }
}
