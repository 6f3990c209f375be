//! Reading: whole objects, ranges, and what the store knows of them.

use std::collections::VecDeque;
use std::ops::Range;
use std::sync::Arc;

use aws_sdk_s3::operation::get_object::GetObjectOutput;
use aws_sdk_s3::primitives::{ByteStream as SdkBody, DateTime};
use bytes::{Bytes, BytesMut};
use futures::stream;

use super::Bucket;
use super::failure::{Failure, FailureKind, chain};
use super::retry::Budget;
use crate::{ByteStream, Key, ObjectMeta, StoreError, StoreErrorKind};

/// Longest chunk handed on.
const CHUNK: usize = 1 << 20;

/// More than any store holds in one object. Some take a suffix's length for a signed number.
const HUGE: u64 = 1 << 46;

/// Which bytes of an object are asked for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Part {
    Whole,
    /// Not empty.
    Range(Range<u64>),
    /// Not empty.
    Suffix(u64),
}

impl Part {
    fn header(&self) -> Option<String> {
        match self {
            Self::Whole => None,
            Self::Range(range) => Some(format!("bytes={}-{}", range.start, range.end - 1)),
            Self::Suffix(length) => Some(format!("bytes=-{length}")),
        }
    }
}

/// An answer that has begun.
struct Answer {
    meta: ObjectMeta,
    etag: Option<String>,
    /// Which bytes of the object follow.
    bytes: Range<u64>,
    body: SdkBody,
}

async fn ask(
    bucket: &Bucket,
    key: &Key,
    part: &Part,
    etag: Option<&str>,
) -> Result<Answer, Failure> {
    let output = bucket
        .client
        .get_object()
        .bucket(&bucket.settings.bucket)
        .key(bucket.name(key.as_str()))
        .set_range(part.header())
        .set_if_match(etag.map(str::to_owned))
        .send()
        .await
        .map_err(Failure::of)?;
    let length = length(output.content_length())?;
    let (bytes, size) = match content_range(&output)? {
        Some((start, size)) => (start..start.saturating_add(length), size),
        None => (0..length, length),
    };
    if bytes.end > size {
        return Err(Failure::transient(
            "the answer's Content-Range goes beyond the object",
        ));
    }
    Ok(Answer {
        meta: ObjectMeta {
            key: key.clone(),
            size,
            modified: time(output.last_modified())?,
        },
        etag: output.e_tag,
        bytes,
        body: output.body,
    })
}

/// The first byte and the object's whole size, of an answer that is a part.
fn content_range(output: &GetObjectOutput) -> Result<Option<(u64, u64)>, Failure> {
    let Some(text) = output.content_range() else {
        return Ok(None);
    };
    let parse = || {
        let (range, size) = text.strip_prefix("bytes ")?.split_once('/')?;
        let (start, _) = range.split_once('-')?;
        Some((start.parse().ok()?, size.parse().ok()?))
    };
    parse()
        .map(Some)
        .ok_or_else(|| Failure::transient("the answer's Content-Range is none"))
}

fn length(length: Option<i64>) -> Result<u64, Failure> {
    length
        .and_then(|length| u64::try_from(length).ok())
        .ok_or_else(|| Failure::transient("the answer does not say how long the object is"))
}

pub(super) fn time(time: Option<&DateTime>) -> Result<jiff::Timestamp, Failure> {
    time.and_then(|time| {
        let nanos = i32::try_from(time.subsec_nanos()).ok()?;
        jiff::Timestamp::new(time.secs(), nanos).ok()
    })
    .ok_or_else(|| Failure::transient("the answer does not say when the object was stored"))
}

/// Reads on where an answer breaks off, as long as the budget lasts and the object stays the same.
pub(super) struct Reader {
    bucket: Arc<Bucket>,
    meta: ObjectMeta,
    etag: Option<String>,
    /// What is still to come from the store.
    rest: Range<u64>,
    body: Option<SdkBody>,
    ready: VecDeque<Bytes>,
    budget: Budget,
}

/// Asks for an object's bytes. One that the store says is absent is `NoSuchKey`.
pub(super) async fn open(
    bucket: &Arc<Bucket>,
    key: &Key,
    part: Part,
    budget: &mut Budget,
) -> Result<Reader, Failure> {
    let answer = budget.persist(0, || ask(bucket, key, &part, None)).await?;
    Ok(Reader::new(bucket, answer, budget.clone()))
}

impl Reader {
    fn new(bucket: &Arc<Bucket>, answer: Answer, mut budget: Budget) -> Self {
        budget.allow(answer.bytes.end - answer.bytes.start);
        budget.progressed();
        Self {
            bucket: bucket.clone(),
            meta: answer.meta,
            etag: answer.etag,
            rest: answer.bytes,
            body: Some(answer.body),
            ready: VecDeque::new(),
            budget,
        }
    }

    pub fn meta(&self) -> ObjectMeta {
        self.meta.clone()
    }

    pub fn budget(self) -> Budget {
        self.budget
    }

    /// The next piece, not empty; `None` when all were given.
    pub async fn next(&mut self) -> Result<Option<Bytes>, Failure> {
        loop {
            if let Some(chunk) = self.ready.pop_front() {
                return Ok(Some(chunk));
            }
            let whole = self.rest.is_empty();
            let Some(body) = &mut self.body else {
                if whole {
                    return Ok(None);
                }
                self.resume().await?;
                continue;
            };
            // At the end too: there the SDK compares the checksum.
            let next = self.budget.request(0, async {
                body.try_next().await.map_err(|cause| {
                    Failure::transient(format!("the answer broke off: {}", chain(&cause)))
                })
            });
            match next.await {
                Ok(Some(bytes)) => self.take(bytes)?,
                Ok(None) if whole => self.body = None,
                Ok(None) => {
                    self.body = None;
                    self.budget
                        .again(Failure::transient("the answer is shorter than it says"))
                        .await?;
                }
                Err(failure) => {
                    self.body = None;
                    if whole {
                        return Err(failure);
                    }
                    self.budget.again(failure).await?;
                }
            }
        }
    }

    fn take(&mut self, mut bytes: Bytes) -> Result<(), Failure> {
        let length = bytes.len() as u64;
        if length > self.rest.end - self.rest.start {
            return Err(Failure::transient("the answer is longer than it says"));
        }
        if length > 0 {
            self.rest.start += length;
            self.budget.progressed();
        }
        while !bytes.is_empty() {
            self.ready.push_back(bytes.split_to(CHUNK.min(bytes.len())));
        }
        Ok(())
    }

    async fn resume(&mut self) -> Result<(), Failure> {
        let part = Part::Range(self.rest.clone());
        let asked = ask(&self.bucket, &self.meta.key, &part, self.etag.as_deref());
        match self.budget.request(0, asked).await {
            Ok(answer) if answer.bytes == self.rest && answer.meta == self.meta => {
                self.body = Some(answer.body);
                Ok(())
            }
            Ok(_) => Err(changed()),
            Err(failure) if failure.kind == FailureKind::Precondition => Err(changed()),
            Err(failure) => self.budget.again(failure).await,
        }
    }

    pub fn stream(self) -> ByteStream {
        Box::pin(stream::try_unfold(self, |mut reader| async move {
            match reader.next().await {
                Ok(Some(chunk)) => Ok(Some((chunk, reader))),
                Ok(None) => Ok(None),
                Err(failure) => {
                    let key = reader.meta.key.as_str();
                    Err(reader.bucket.failed("read", key, failure))
                }
            }
        }))
    }

    async fn collect(mut self) -> Result<Bytes, Failure> {
        let length = usize::try_from(self.rest.end - self.rest.start)
            .map_err(|_| Failure::new(FailureKind::Refused, "more bytes than memory can hold"))?;
        // Grown as bytes come: the length is the store's word.
        let mut all = BytesMut::with_capacity(length.min(CHUNK));
        self.each(|chunk| all.extend_from_slice(chunk)).await?;
        Ok(all.freeze())
    }

    /// Reads to the end.
    pub async fn each(&mut self, mut take: impl FnMut(&[u8])) -> Result<(), Failure> {
        while let Some(chunk) = self.next().await? {
            take(&chunk);
        }
        Ok(())
    }
}

fn changed() -> Failure {
    Failure::transient("the object changed while it was read")
}

pub(super) async fn range(
    bucket: &Arc<Bucket>,
    key: &Key,
    range: Range<u64>,
) -> Result<Bytes, StoreError> {
    let failed = |failure| bucket.failed("read", key.as_str(), failure);
    let mut budget = bucket.budget();
    // Only part of the questions can be asked of S3: not for nothing, nor for what its numbers cannot hold.
    let size = if range.start >= range.end || range.end > HUGE {
        let size = head(bucket, key, &mut budget).await.map_err(failed)?.size;
        if range.start == range.end && range.end <= size {
            return Ok(Bytes::new());
        }
        size
    } else {
        match open(bucket, key, Part::Range(range.clone()), &mut budget).await {
            Ok(reader) if reader.rest == range => return reader.collect().await.map_err(failed),
            Ok(reader) if reader.meta.size >= range.end => {
                let failure = Failure::transient("the answer is not the range that was asked for");
                return Err(failed(failure));
            }
            Ok(reader) => reader.meta.size,
            Err(failure) if failure.kind == FailureKind::Range => {
                head(bucket, key, &mut budget).await.map_err(failed)?.size
            }
            Err(failure) => return Err(failed(failure)),
        }
    };
    let reason = format!(
        "bytes {} to {} are not within its {size}",
        range.start, range.end
    );
    Err(bucket
        .error(StoreErrorKind::Invalid, "read", key.as_str())
        .because(reason))
}

pub(super) async fn suffix(
    bucket: &Arc<Bucket>,
    key: &Key,
    length: u64,
) -> Result<(ObjectMeta, Bytes), StoreError> {
    last_bytes(bucket, key, length.min(HUGE))
        .await
        .map_err(|failure| bucket.failed("read", key.as_str(), failure))
}

async fn last_bytes(
    bucket: &Arc<Bucket>,
    key: &Key,
    length: u64,
) -> Result<(ObjectMeta, Bytes), Failure> {
    let mut budget = bucket.budget();
    if length > 0 {
        let part = Part::Suffix(length);
        match budget.request(0, ask(bucket, key, &part, None)).await {
            Ok(answer) => {
                let size = answer.meta.size;
                if answer.bytes == (size.saturating_sub(length)..size) {
                    let reader = Reader::new(bucket, answer, budget);
                    return Ok((reader.meta(), reader.collect().await?));
                }
            }
            // An empty object has no last byte, and not every store takes more than there is.
            Err(failure) if failure.kind == FailureKind::Range || failure.passes() => {}
            Err(failure) => return Err(failure),
        }
    }
    let meta = head(bucket, key, &mut budget).await?;
    let wanted = meta.size.saturating_sub(length)..meta.size;
    if wanted.is_empty() {
        return Ok((meta, Bytes::new()));
    }
    let reader = open(bucket, key, Part::Range(wanted.clone()), &mut budget).await?;
    if reader.meta != meta || reader.rest != wanted {
        return Err(changed());
    }
    Ok((meta, reader.collect().await?))
}

/// What the store knows of an object.
pub(super) async fn head(
    bucket: &Bucket,
    key: &Key,
    budget: &mut Budget,
) -> Result<ObjectMeta, Failure> {
    let asked = budget.persist(0, || async {
        let output = bucket
            .client
            .head_object()
            .bucket(&bucket.settings.bucket)
            .key(bucket.name(key.as_str()))
            .send()
            .await
            .map_err(Failure::of)?;
        Ok(ObjectMeta {
            key: key.clone(),
            size: length(output.content_length())?,
            modified: time(output.last_modified())?,
        })
    });
    match asked.await {
        // The answer has no body that would say whether it is the object or the bucket that is absent, or what is wrong; a get's has.
        Err(failure) if says_nothing(failure.kind) => {
            let answer = budget
                .persist(0, || ask(bucket, key, &Part::Whole, None))
                .await?;
            Ok(answer.meta)
        }
        result => result,
    }
}

fn says_nothing(kind: FailureKind) -> bool {
    matches!(
        kind,
        FailureKind::NotFound | FailureKind::NoSuchKey | FailureKind::Refused
    )
}
