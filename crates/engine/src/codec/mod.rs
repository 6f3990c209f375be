//! The bytes of framed objects: metadata frames, zstd frames, and a decoder that trusts nothing.
//!
//! docs/FORMAT.md, "Framed objects", is the authority. Nothing here does IO; what costs CPU is meant for blocking threads.

mod decode;
mod frame;
mod meta;

pub use decode::{DecodedObject, Expected, ObjectDecoder};
pub use frame::{Frame, FrameCompressor, decompress_frame};
pub use meta::{ReadTail, encode_head, encode_tail, tail_of};

use walden_model::{DocumentError, Sha256Digest};

/// Most content bytes in one frame, in any object. A reader's memory is bounded by it.
pub const MAX_FRAME_CONTENT: usize = 4 * 1024 * 1024;

/// Why an object's bytes cannot be believed.
#[derive(Debug, thiserror::Error)]
pub enum CodecError {
    /// The bytes end before the object does.
    #[error("the object is cut off: {what} is incomplete")]
    Truncated {
        /// Which part.
        what: &'static str,
    },
    /// Bytes that cannot stand where they stand.
    #[error("the object is damaged: {what}")]
    Damaged {
        /// What was wrong.
        what: String,
    },
    /// The object is whole, but belongs elsewhere.
    #[error("the object belongs elsewhere: its head says {field} {found}, expected {expected}")]
    Misplaced {
        /// The head's key.
        field: &'static str,
        /// What the head says.
        found: String,
        /// What was asked for.
        expected: String,
    },
    /// Metadata that cannot be read, or written.
    #[error("the object's metadata cannot be used")]
    Meta(#[source] DocumentError),
    /// A hash that does not fit.
    #[error("the object is damaged: {what} has {found}, expected {expected}")]
    WrongDigest {
        /// Which part.
        what: &'static str,
        /// Computed from what was read.
        found: Sha256Digest,
        /// Recorded when it was written.
        expected: Sha256Digest,
    },
    /// zstd's own error, on writing.
    #[error("zstd cannot compress")]
    Compress(#[source] std::io::Error),
}

impl CodecError {
    /// Whether the object is fine, and a newer Walden would read it.
    pub fn needs_newer(&self) -> bool {
        matches!(
            self,
            CodecError::Meta(DocumentError::NewerFormat(_) | DocumentError::UnknownFeature(_))
        )
    }

    fn damaged(what: impl Into<String>) -> Self {
        CodecError::Damaged { what: what.into() }
    }
}
