//! Single zstd frames.

use walden_model::{FrameEntry, Sha256Digest};
use zstd::bulk::{Compressor, Decompressor};
use zstd::zstd_safe::{self, CParameter};

use super::{CodecError, MAX_FRAME_CONTENT};

/// A frame, ready to be stored, and its line in the frame table.
#[derive(Debug)]
pub struct Frame {
    /// The zstd frame.
    pub stored: Vec<u8>,
    /// Lengths and digest.
    pub entry: FrameEntry,
}

/// Compresses frames one after the other, keeping zstd's context.
pub struct FrameCompressor {
    zstd: Compressor<'static>,
}

impl FrameCompressor {
    /// `level` is zstd's. No level gives a window beyond 2^27, up to which a plain `zstd -d` reads.
    pub fn new(level: i32) -> Result<Self, CodecError> {
        let mut zstd = Compressor::new(level).map_err(CodecError::Compress)?;
        zstd.set_parameter(CParameter::ChecksumFlag(true))
            .map_err(CodecError::Compress)?;
        Ok(FrameCompressor { zstd })
    }

    /// Makes one frame of at most [`MAX_FRAME_CONTENT`] bytes of content.
    pub fn compress(&mut self, content: &[u8]) -> Result<Frame, CodecError> {
        debug_assert!(
            content.len() <= MAX_FRAME_CONTENT,
            "a frame of {} bytes could not be read back",
            content.len()
        );
        let stored = self.zstd.compress(content).map_err(CodecError::Compress)?;
        let entry = FrameEntry {
            stored: stored.len() as u64,
            content: content.len() as u64,
            digest: Sha256Digest::of(&stored),
        };
        Ok(Frame { stored, entry })
    }
}

/// The stored length of the frame that begins here, or `None` if more bytes are needed.
pub(super) fn stored_length(bytes: &[u8]) -> Result<Option<usize>, CodecError> {
    const MOST: usize = MAX_FRAME_CONTENT + MAX_FRAME_CONTENT / 128 + 1024;
    match zstd_safe::find_frame_compressed_size(bytes) {
        Ok(length) => Ok(Some(length)),
        // zstd does not tell "too short" from "damaged" in a stable way, so the bound decides.
        Err(_) if bytes.len() < MOST => Ok(None),
        Err(code) => Err(CodecError::damaged(format!(
            "a frame cannot be read: {}",
            zstd_safe::get_error_name(code)
        ))),
    }
}

/// Checks a frame against its line in the frame table and gives its content.
pub fn decompress_frame(stored: &[u8], entry: &FrameEntry) -> Result<Vec<u8>, CodecError> {
    let found = Sha256Digest::of(stored);
    if found != entry.digest {
        return Err(CodecError::WrongDigest {
            what: "a frame",
            found,
            expected: entry.digest,
        });
    }
    let content = decompress(stored)?;
    if content.len() as u64 != entry.content {
        return Err(CodecError::damaged(format!(
            "a frame holds {} bytes, expected {}",
            content.len(),
            entry.content
        )));
    }
    Ok(content)
}

/// Decompresses one frame whose declared size is within [`MAX_FRAME_CONTENT`].
pub(super) fn decompress(stored: &[u8]) -> Result<Vec<u8>, CodecError> {
    let declared = match zstd_safe::get_frame_content_size(stored) {
        Ok(Some(size)) if size <= MAX_FRAME_CONTENT as u64 => size as usize,
        Ok(Some(size)) => {
            return Err(CodecError::damaged(format!(
                "a frame claims {size} bytes, more than {MAX_FRAME_CONTENT}"
            )));
        }
        Ok(None) | Err(_) => return Err(CodecError::damaged("a frame does not say its size")),
    };
    let mut zstd =
        Decompressor::new().map_err(|e| CodecError::damaged(format!("zstd cannot start: {e}")))?;
    zstd.decompress(stored, declared)
        .map_err(|e| CodecError::damaged(format!("a frame cannot be decompressed: {e}")))
}
