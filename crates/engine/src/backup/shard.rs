//! A framed object of JSON Lines: a shard of the file map, or of the names.

use sha2::{Digest, Sha256};
use walden_model::{Sha256Digest, ShardRef, Tail};

use super::BackupError;
use super::content::{FRAME, ObjectWriter};
use crate::codec::FrameCompressor;

/// Content bytes of a shard: some 100,000 entries.
const SHARD: u64 = 16 << 20;

/// A shard that is being filled.
pub(super) struct Shard {
    object: Vec<u8>,
    frame: Vec<u8>,
    tail: Tail,
    hash: Sha256,
    entries: u64,
}

impl Shard {
    /// An empty one; `object` is its encoded head.
    pub fn new(object: Vec<u8>) -> Self {
        let tail = Tail {
            content_size: 0,
            index: None,
            sha256: None,
            frames: Vec::new(),
        };
        Shard {
            object,
            frame: Vec::new(),
            tail,
            hash: Sha256::new(),
            entries: 0,
        }
    }

    /// Whether the next line belongs into another shard.
    pub fn is_full(&self) -> bool {
        self.tail.content_size >= SHARD
    }

    /// Frames end at a line's end, so that each can be read by itself.
    pub fn add(
        &mut self,
        line: &[u8],
        compressor: &mut FrameCompressor,
    ) -> Result<(), BackupError> {
        if self.frame.len() + line.len() > FRAME as usize {
            self.end_frame(compressor)?;
        }
        self.frame.extend_from_slice(line);
        self.entries += 1;
        Ok(())
    }

    /// Ends the last frame: after it nothing may be added.
    pub fn end_frame(&mut self, compressor: &mut FrameCompressor) -> Result<(), BackupError> {
        if self.frame.is_empty() {
            return Ok(());
        }
        let frame = compressor
            .compress(&self.frame)
            .map_err(BackupError::Encode)?;
        self.hash.update(&self.frame);
        self.tail.content_size += self.frame.len() as u64;
        self.object.extend_from_slice(&frame.stored);
        self.tail.frames.push(frame.entry);
        self.frame.clear();
        Ok(())
    }

    /// Stores it.
    pub async fn put(
        self,
        writer: &ObjectWriter,
        key: String,
        number: u32,
    ) -> Result<ShardRef, BackupError> {
        let tail = Tail {
            sha256: Some(Sha256Digest(self.hash.finalize().into())),
            ..self.tail
        };
        let stored = writer.put(key, self.object, tail).await?;
        Ok(ShardRef {
            number,
            size: stored.size,
            table: stored.table,
            entries: self.entries,
        })
    }
}
