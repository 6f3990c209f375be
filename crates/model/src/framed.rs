//! The metadata frames of framed objects: what their JSON says.

use std::fmt;

use jiff::Timestamp;
use serde::{Deserialize, Deserializer, Serialize};
use serde_json::value::RawValue;

use crate::digest::{KeyedDigest, Sha256Digest};
use crate::document::{DocumentError, FORMAT, check_version};
use crate::index::SegmentIndex;
use crate::records::RandomId;

/// What a framed object holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum HeadKind {
    /// A WAL file.
    Wal,
    /// Contents of a backup's files.
    Pack,
    /// A shard of a backup's file map.
    FileMap,
    /// A shard of a backup's names.
    Names,
    /// What many segments' indexes say together.
    RollUp,
}

impl fmt::Display for HeadKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Wal => "wal",
            Self::Pack => "pack",
            Self::FileMap => "file-map",
            Self::Names => "names",
            Self::RollUp => "roll-up",
        })
    }
}

/// The feature of objects that are encrypted with age.
const AGE: &str = "age";

/// The program that wrote an object, so that a conflict can name both sides.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Writer {
    /// Where.
    pub host: String,
    /// When, by that host's clock.
    pub started_at: Timestamp,
    /// The process.
    pub pid: u32,
    /// Walden's version.
    pub version: String,
}

impl fmt::Display for Writer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "process {} on {} at {} (Walden {})",
            self.pid, self.host, self.started_at, self.version
        )
    }
}

/// A framed object's head: known before the first byte of content is read.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Head {
    /// As in documents.
    pub format: u64,
    /// As in documents.
    pub required_features: Vec<String>,
    /// As in documents.
    pub optional_features: Vec<String>,
    /// What the object holds.
    pub kind: HeadKind,
    /// Whose.
    pub archive_id: RandomId,
    /// The object's key below the cluster ([`crate::keys::below_cluster`]).
    pub key: String,
    /// Bytes of content, where known beforehand.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub content_size: Option<u64>,
    /// Who wrote it.
    pub writer: Writer,
}

impl Head {
    /// A head of this version's format. `key` is the part below the cluster.
    #[must_use]
    pub fn new(
        kind: HeadKind,
        archive_id: RandomId,
        key: &str,
        content_size: Option<u64>,
        writer: Writer,
    ) -> Self {
        Self {
            format: u64::from(FORMAT),
            required_features: Vec::new(),
            optional_features: Vec::new(),
            kind,
            archive_id,
            key: key.to_owned(),
            content_size,
            writer,
        }
    }

    /// The head that stands in clear before the object of this head, once that is encrypted.
    #[must_use]
    pub fn envelope(&self) -> Self {
        let mut envelope = self.clone();
        envelope.required_features.push(AGE.to_owned());
        envelope
    }

    /// Whether what follows is an encrypted object, which has a head of its own.
    #[must_use]
    pub fn is_envelope(&self) -> bool {
        self.required_features.iter().any(|feature| feature == AGE)
    }

    /// The JSON of the metadata frame.
    ///
    /// # Errors
    /// [`DocumentError::Unwritable`].
    pub fn encode(&self) -> Result<Vec<u8>, DocumentError> {
        serde_json::to_vec(self).map_err(DocumentError::Unwritable)
    }

    /// Reads the JSON of a metadata frame whose digest fits.
    ///
    /// # Errors
    /// As a document's: a newer format, an unknown feature, JSON of another shape.
    pub fn decode(json: &[u8]) -> Result<Self, DocumentError> {
        #[derive(Deserialize)]
        struct Versions {
            format: u64,
            required_features: Vec<String>,
        }
        // First, because a later version may have changed everything else.
        let versions: Versions = serde_json::from_slice(json).map_err(malformed("head"))?;
        let features = versions.required_features.into_iter();
        let features: Vec<_> = features.filter(|feature| feature != AGE).collect();
        check_version(versions.format, &features)?;
        serde_json::from_slice(json).map_err(malformed("head"))
    }
}

/// An encrypted object's end, in clear: what proves its bytes, and tells its content from other content, to those who cannot open it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Seal {
    /// Bytes before the seal.
    pub size: u64,
    /// Their digest.
    pub sha256: Sha256Digest,
    /// Of a WAL file's content: HMAC-SHA256, with the archive's id as the key, of its SHA-256.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub content_hmac: Option<KeyedDigest>,
}

impl Seal {
    /// The JSON of the metadata frame.
    ///
    /// # Errors
    /// [`DocumentError::Unwritable`].
    pub fn encode(&self) -> Result<Vec<u8>, DocumentError> {
        serde_json::to_vec(self).map_err(DocumentError::Unwritable)
    }

    /// Reads the JSON of a metadata frame whose digest fits.
    ///
    /// # Errors
    /// JSON of another shape.
    pub fn decode(json: &[u8]) -> Result<Self, DocumentError> {
        serde_json::from_slice(json).map_err(malformed("seal"))
    }
}

/// One row of the frame table; in JSON the list `[stored length, content length, digest]`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(from = "(u64, u64, Sha256Digest)", into = "(u64, u64, Sha256Digest)")]
pub struct FrameEntry {
    /// Bytes of the zstd frame.
    pub stored: u64,
    /// Bytes of its content.
    pub content: u64,
    /// The digest of the stored bytes.
    pub digest: Sha256Digest,
}

impl From<(u64, u64, Sha256Digest)> for FrameEntry {
    fn from((stored, content, digest): (u64, u64, Sha256Digest)) -> Self {
        Self {
            stored,
            content,
            digest,
        }
    }
}

impl From<FrameEntry> for (u64, u64, Sha256Digest) {
    fn from(entry: FrameEntry) -> Self {
        (entry.stored, entry.content, entry.digest)
    }
}

/// A framed object's tail: what its content was, and where its frames stand.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Tail {
    /// Bytes of content.
    pub content_size: u64,
    /// What the content says, of a WAL segment. Derived: one that cannot be read, or of another version, is as good as none. It stands before
    /// the digest, so that a person finds that near the object's end.
    #[serde(
        default,
        skip_serializing_if = "Option::is_none",
        deserialize_with = "index_if_usable"
    )]
    pub index: Option<Box<SegmentIndex>>,
    /// The digest of the content; `None` in packs, whose files have checksums of their own.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sha256: Option<Sha256Digest>,
    /// The frames, in order.
    pub frames: Vec<FrameEntry>,
}

impl Tail {
    /// The JSON of the metadata frame.
    ///
    /// # Errors
    /// [`DocumentError::Unwritable`].
    pub fn encode(&self) -> Result<Vec<u8>, DocumentError> {
        serde_json::to_vec(self).map_err(DocumentError::Unwritable)
    }

    /// Reads the JSON of a metadata frame whose digest fits.
    ///
    /// # Errors
    /// JSON of another shape, or frames whose lengths do not add up to the content.
    pub fn decode(json: &[u8]) -> Result<Self, DocumentError> {
        let tail: Self = serde_json::from_slice(json).map_err(malformed("tail"))?;
        let (mut stored, mut content) = (0_u64, 0_u64);
        for frame in &tail.frames {
            let sums = stored
                .checked_add(frame.stored)
                .zip(content.checked_add(frame.content));
            (stored, content) = sums
                .ok_or_else(|| DocumentError::Damaged("the frames' lengths overflow".to_owned()))?;
        }
        if content != tail.content_size {
            return Err(DocumentError::Damaged(format!(
                "the frames hold {content} bytes, and the object should hold {}",
                tail.content_size
            )));
        }
        Ok(tail)
    }
}

fn index_if_usable<'de, D: Deserializer<'de>>(
    deserializer: D,
) -> Result<Option<Box<SegmentIndex>>, D::Error> {
    let json = <&RawValue>::deserialize(deserializer)?;
    Ok(SegmentIndex::decode(json.get()).map(Box::new))
}

fn malformed(kind: &'static str) -> impl Fn(serde_json::Error) -> DocumentError {
    move |source| DocumentError::Malformed { kind, source }
}
