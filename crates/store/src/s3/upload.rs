//! Objects whose bytes come piece by piece. Up to [`WHOLE`] they are gathered in memory and put at once; beyond, they go in parts.

use std::sync::Arc;

use async_trait::async_trait;
use aws_sdk_s3::types::{CompletedMultipartUpload, CompletedPart};
use bytes::{Bytes, BytesMut};
use sha2::{Digest, Sha256};
use tokio::task::JoinSet;

use super::Bucket;
use super::create::{self, Content, Dress, NotPut};
use super::failure::{Failure, FailureKind};
use super::read::time;
use super::retry::Budget;
use crate::{Key, PutMode, StoreError, StoreErrorKind, Upload};

/// Most that is gathered for one plain put: a pack, and nearly every segment.
const WHOLE: usize = 64 << 20;

/// Of a larger one. S3 takes 10,000 parts: objects of up to 156 GiB.
const PART: usize = 16 << 20;

pub(super) struct S3Upload {
    bucket: Arc<Bucket>,
    key: Key,
    mode: PutMode,
    meaning: Option<[u8; 32]>,
    gathered: BytesMut,
    parts: Option<Parts>,
    /// An earlier write did not succeed, or its caller went away.
    broken: bool,
}

impl S3Upload {
    pub fn new(bucket: Arc<Bucket>, key: Key, mode: PutMode) -> Self {
        Self {
            bucket,
            key,
            mode,
            meaning: None,
            gathered: BytesMut::new(),
            parts: None,
            broken: false,
        }
    }

    fn gather(&mut self, chunk: &[u8]) {
        let needed = self.gathered.len() + chunk.len();
        if needed > self.gathered.capacity() {
            // Doubling, but not beyond what is ever gathered.
            let wanted = needed.next_power_of_two().clamp(PART.min(needed), WHOLE);
            self.gathered
                .reserve(wanted.max(needed) - self.gathered.len());
        }
        self.gathered.extend_from_slice(chunk);
    }

    async fn append(&mut self, mut chunk: Bytes) -> Result<(), Failure> {
        if self.parts.is_none() {
            if self.gathered.len() + chunk.len() <= WHOLE {
                self.gather(&chunk);
                return Ok(());
            }
            self.parts = Some(Parts::begin(self.bucket.clone(), &self.key).await?);
        }
        let Some(parts) = &mut self.parts else {
            return Ok(());
        };
        while self.gathered.len() >= PART {
            let part = self.gathered.split_to(PART).freeze();
            parts.send(part).await?;
        }
        while !chunk.is_empty() {
            let piece = chunk.split_to(chunk.len().min(PART - self.gathered.len()));
            self.gathered.extend_from_slice(&piece);
            if self.gathered.len() == PART {
                let part = std::mem::replace(&mut self.gathered, BytesMut::with_capacity(PART));
                parts.send(part.freeze()).await?;
            }
        }
        Ok(())
    }

    fn broken(&self) -> StoreError {
        self.bucket
            .error(StoreErrorKind::Invalid, "store", self.key.as_str())
            .because("an earlier write of this upload did not succeed")
    }
}

#[async_trait]
impl Upload for S3Upload {
    async fn write(&mut self, chunk: Bytes) -> Result<(), StoreError> {
        if std::mem::replace(&mut self.broken, true) {
            return Err(self.broken());
        }
        self.append(chunk)
            .await
            .map_err(|failure| self.bucket.failed("store", self.key.as_str(), failure))?;
        self.broken = false;
        Ok(())
    }

    fn means(&mut self, digest: [u8; 32]) {
        self.meaning = Some(digest);
    }

    async fn commit(mut self: Box<Self>) -> Result<(), StoreError> {
        if self.broken {
            return Err(self.broken());
        }
        let rest = std::mem::take(&mut self.gathered).freeze();
        let Some(parts) = self.parts.take() else {
            return create::put(&self.bucket, &self.key, rest, self.mode, self.meaning).await;
        };
        parts
            .complete(&self.key, self.mode, rest, self.meaning)
            .await
            .map_err(|not_put| not_put.error(&self.bucket, &self.key))
    }
}

/// An upload in parts. Dropped before it is complete it is aborted; where that cannot be done, a sweep does it.
struct Parts {
    bucket: Arc<Bucket>,
    name: String,
    /// Away when the upload is complete.
    id: Option<String>,
    hash: Sha256,
    size: u64,
    begun: i32,
    done: Vec<CompletedPart>,
    running: JoinSet<Result<CompletedPart, Failure>>,
}

impl Parts {
    async fn begin(bucket: Arc<Bucket>, key: &Key) -> Result<Self, Failure> {
        let name = bucket.name(key.as_str());
        // An answer that is lost leaves an upload behind, for a sweep.
        let begun = bucket
            .budget()
            .persist(0, || async {
                let dress = Dress::of(&bucket);
                bucket
                    .client
                    .create_multipart_upload()
                    .bucket(&bucket.settings.bucket)
                    .key(&name)
                    .set_storage_class(dress.storage_class)
                    .set_server_side_encryption(dress.encryption)
                    .set_ssekms_key_id(dress.kms_key)
                    .set_tagging(dress.tagging)
                    .set_object_lock_mode(dress.lock_mode)
                    .set_object_lock_retain_until_date(dress.lock_until)
                    .set_checksum_algorithm(dress.checksum)
                    .send()
                    .await
                    .map_err(Failure::of)
            })
            .await?;
        let id = begun
            .upload_id
            .ok_or_else(|| Failure::transient("the answer names no upload"))?;
        Ok(Self {
            bucket,
            name,
            id: Some(id),
            hash: Sha256::new(),
            size: 0,
            begun: 0,
            done: Vec::new(),
            running: JoinSet::new(),
        })
    }

    /// Sends a part beside others, or waits until there is room beside them.
    async fn send(&mut self, part: Bytes) -> Result<(), Failure> {
        while self.running.len() >= self.bucket.settings.upload_concurrency.max(1) {
            self.one_done().await?;
        }
        self.hash.update(&part);
        self.size += part.len() as u64;
        self.begun += 1;
        let (bucket, name, number) = (self.bucket.clone(), self.name.clone(), self.begun);
        let id = self.id.clone().unwrap_or_default();
        self.running
            .spawn(async move { send_part(&bucket, &name, &id, number, part).await });
        Ok(())
    }

    async fn one_done(&mut self) -> Result<(), Failure> {
        if let Some(done) = self.running.join_next().await {
            let done = done.map_err(|cause| Failure::transient(cause.to_string()))?;
            self.done.push(done?);
        }
        Ok(())
    }

    async fn complete(
        mut self,
        key: &Key,
        mode: PutMode,
        rest: Bytes,
        meaning: Option<[u8; 32]>,
    ) -> Result<(), NotPut> {
        if !rest.is_empty() {
            self.send(rest).await?;
        }
        while !self.running.is_empty() {
            self.one_done().await?;
        }
        self.done.sort_by_key(CompletedPart::part_number);
        let bucket = self.bucket.clone();
        let content = Content {
            size: self.size,
            sha256: self.hash.clone().finalize().into(),
            meaning,
        };
        // The store puts the parts together, and one's own bytes may have to be read back.
        let mut budget = bucket.budget();
        budget.allow(content.size);
        let end = |condition: bool| {
            let parts = self.done.clone();
            let parts = CompletedMultipartUpload::builder().set_parts(Some(parts));
            let request = bucket
                .client
                .complete_multipart_upload()
                .bucket(&bucket.settings.bucket)
                .key(&self.name)
                .set_upload_id(self.id.clone())
                .set_if_none_match(condition.then(|| "*".to_owned()))
                .multipart_upload(parts.build());
            async move {
                let answer = request.send().await.map_err(Failure::of)?;
                match answer.e_tag() {
                    Some(_) => Ok(()),
                    None => Err(Failure::transient(
                        "the answer to the upload's end has no ETag",
                    )),
                }
            }
        };
        let size = content.size;
        create::place(
            &bucket,
            key,
            mode,
            &mut budget,
            size,
            || content.clone(),
            end,
        )
        .await?;
        self.id = None;
        Ok(())
    }
}

impl Drop for Parts {
    fn drop(&mut self) {
        self.running.abort_all();
        let (Some(id), Ok(runtime)) = (self.id.take(), tokio::runtime::Handle::try_current())
        else {
            return;
        };
        let (bucket, name) = (self.bucket.clone(), self.name.clone());
        runtime.spawn(async move {
            if let Err(failure) = abort(&bucket, &name, &id, &mut bucket.budget()).await {
                tracing::warn!(
                    kind = ?failure.kind,
                    "an upload of {name} stays unfinished in {} until a sweep",
                    bucket.location()
                );
            }
        });
    }
}

async fn send_part(
    bucket: &Bucket,
    name: &str,
    id: &str,
    number: i32,
    part: Bytes,
) -> Result<CompletedPart, Failure> {
    let bytes = part.len() as u64;
    let mut budget = bucket.budget();
    budget.allow(bytes);
    let checksum = Dress::of(bucket).checksum;
    budget
        .persist(bytes, || async {
            let answer = bucket
                .client
                .upload_part()
                .bucket(&bucket.settings.bucket)
                .key(name)
                .upload_id(id)
                .part_number(number)
                .set_checksum_algorithm(checksum.clone())
                .body(part.clone().into())
                .send()
                .await
                .map_err(Failure::of)?;
            let tag = answer
                .e_tag
                .ok_or_else(|| Failure::transient("the answer to a part has no ETag"))?;
            Ok(CompletedPart::builder()
                .part_number(number)
                .e_tag(tag)
                .set_checksum_crc32(answer.checksum_crc32)
                .build())
        })
        .await
}

async fn abort(bucket: &Bucket, name: &str, id: &str, budget: &mut Budget) -> Result<(), Failure> {
    let aborted = budget.persist(0, || async {
        bucket
            .client
            .abort_multipart_upload()
            .bucket(&bucket.settings.bucket)
            .key(name)
            .upload_id(id)
            .send()
            .await
            .map_err(Failure::of)
    });
    match aborted.await {
        Ok(_) => Ok(()),
        Err(failure) if failure.kind == FailureKind::NoSuchUpload => Ok(()),
        Err(failure) => Err(failure),
    }
}

/// Aborts uploads that were begun before `older_than`, and says how many.
pub(super) async fn sweep(bucket: &Bucket, older_than: jiff::Timestamp) -> Result<u64, Failure> {
    let (mut key, mut id, mut swept) = (None, None, 0);
    loop {
        // A page at a time has the time of an operation, however many there are.
        let mut budget = bucket.budget();
        let answer = budget
            .persist(0, || async {
                bucket
                    .client
                    .list_multipart_uploads()
                    .bucket(&bucket.settings.bucket)
                    .prefix(bucket.name(""))
                    .set_key_marker(key.clone())
                    .set_upload_id_marker(id.clone())
                    .send()
                    .await
                    .map_err(Failure::of)
            })
            .await?;
        for upload in answer.uploads() {
            let (Some(name), Some(id)) = (upload.key(), upload.upload_id()) else {
                continue;
            };
            if time(upload.initiated())? < older_than {
                abort(bucket, name, id, &mut bucket.budget()).await?;
                swept += 1;
            }
        }
        let next = (answer.next_key_marker, answer.next_upload_id_marker);
        let moved = next.0.is_some() && next != (key, id);
        if answer.is_truncated != Some(true) || !moved {
            return Ok(swept);
        }
        (key, id) = next;
    }
}
