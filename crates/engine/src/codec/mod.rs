//! The bytes of framed objects: metadata frames, zstd frames, and a decoder that trusts nothing.
//!
//! docs/FORMAT.md, "Framed objects" and "Encrypted objects", is the authority. Nothing here does IO; what costs CPU is meant for blocking threads.

mod decode;
mod frame;
mod meta;
mod open;
mod seal;
#[cfg(test)]
mod sealed_tests;

pub use decode::{DecodedObject, Expected, ObjectDecoder};
pub use frame::{Frame, FrameCompressor, decompress_frame};
pub use meta::{ReadTail, SEAL, encode_head, encode_tail, seal_of, tail_of};
pub use open::{Proven, SealedTail, prove_object, read_object, sealed_tail};
pub use seal::{Sealer, keyed, seal};

use std::sync::Arc;

use walden_model::{DocumentError, Sha256Digest};

use crate::encryption::KeyError;

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
    /// age's own error, on writing.
    #[error("age cannot encrypt")]
    Encrypt(#[source] age::EncryptError),
    /// An encrypted object, and nothing to open it with.
    #[error(
        "the object is encrypted, and the configuration names no identity that opens it: set encryption.identity_file or \
         encryption.identity_command"
    )]
    NoIdentity,
    /// An encrypted object, whole, and the wrong keys.
    #[error(
        "the object is encrypted for others: none of the identities that the configuration names opens it. Objects stay encrypted for those \
         who were recipients when they were written: name an identity of that time, too"
    )]
    WrongIdentity,
    /// The keys cannot be had.
    #[error("the object is encrypted, and what opens it cannot be had")]
    Keys(#[from] Arc<KeyError>),
}

impl CodecError {
    /// Whether the object is fine, as far as can be told, and a newer Walden, or another configuration, would read it.
    pub fn needs_other_reader(&self) -> bool {
        match self {
            CodecError::Meta(DocumentError::NewerFormat(_) | DocumentError::UnknownFeature(_))
            | CodecError::NoIdentity
            | CodecError::WrongIdentity => true,
            CodecError::Keys(error) => !error.is_passing(),
            _ => false,
        }
    }

    fn damaged(what: impl Into<String>) -> Self {
        CodecError::Damaged { what: what.into() }
    }
}
