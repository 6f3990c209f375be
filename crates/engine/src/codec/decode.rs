//! Reading a framed object as its bytes arrive, in bounded memory.

use sha2::{Digest, Sha256};
use walden_model::{FrameEntry, Head, HeadKind, RandomId, Sha256Digest, Tail};

use super::meta::{MAGIC, ReadTail, decode_head, decode_tail, frame_length};
use super::{CodecError, frame};

/// What the head must say, so that no object passes for another.
#[derive(Debug, Clone)]
pub struct Expected {
    /// What sort of object.
    pub kind: HeadKind,
    /// Whose.
    pub archive_id: RandomId,
    /// The key below the cluster.
    pub key: String,
}

impl Expected {
    fn check(&self, head: &Head) -> Result<(), CodecError> {
        let rows: [(&str, String, String); 3] = [
            (
                "archive_id",
                head.archive_id.to_string(),
                self.archive_id.to_string(),
            ),
            ("key", head.key.clone(), self.key.clone()),
            ("kind", head.kind.to_string(), self.kind.to_string()),
        ];
        match rows
            .into_iter()
            .find(|(_, found, expected)| found != expected)
        {
            Some((field, found, expected)) => Err(CodecError::Misplaced {
                field,
                found,
                expected,
            }),
            None => Ok(()),
        }
    }
}

/// An object that was read to its end and is whole.
#[derive(Debug)]
pub struct DecodedObject {
    /// Its head.
    pub head: Head,
    /// Its tail.
    pub tail: Tail,
    /// The digest of the tail's JSON.
    pub table: Sha256Digest,
    /// The digest of the content.
    pub content: Sha256Digest,
}

/// Takes an object's bytes in any portions and gives its content, frame by frame.
///
/// Content that was given out is proven only when [`ObjectDecoder::finish`] returns: until then it must not be used.
pub struct ObjectDecoder {
    expected: Expected,
    buffer: Vec<u8>,
    /// How much of `buffer` must be there before another look is worth it.
    wanted: usize,
    head: Option<Head>,
    tail: Option<ReadTail>,
    frames: Vec<FrameEntry>,
    content_size: u64,
    hash: Sha256,
}

impl ObjectDecoder {
    /// A decoder for an object that must be the expected one.
    pub fn new(expected: Expected) -> Self {
        ObjectDecoder {
            expected,
            buffer: Vec::new(),
            wanted: 0,
            head: None,
            tail: None,
            frames: Vec::new(),
            content_size: 0,
            hash: Sha256::new(),
        }
    }

    /// The head, once it was read.
    pub fn head(&self) -> Option<&Head> {
        self.head.as_ref()
    }

    /// Takes the next bytes and calls `out` with each frame's content that they complete.
    pub fn feed<E: From<CodecError>>(
        &mut self,
        bytes: &[u8],
        mut out: impl FnMut(Vec<u8>) -> Result<(), E>,
    ) -> Result<(), E> {
        self.buffer.extend_from_slice(bytes);
        let mut used = 0;
        while self.buffer.len() - used >= self.wanted.max(1) {
            let Some(rest) = self.buffer.get(used..) else {
                break;
            };
            if self.tail.is_some() {
                return Err(CodecError::damaged("bytes follow the tail").into());
            }
            let is_meta = self.head.is_none() || rest.first_chunk::<4>() == Some(&MAGIC);
            let length = if is_meta {
                frame_length(rest)?
            } else {
                frame::stored_length(rest)?
            };
            let Some(stored) = length.and_then(|length| rest.get(..length)) else {
                // Looking again at each small portion would cost a walk over the frame's blocks each time.
                self.wanted = length
                    .unwrap_or(rest.len() + rest.len() / 4 + 1)
                    .max(rest.len() + 1);
                break;
            };
            self.wanted = 0;
            used += stored.len();
            if self.head.is_none() {
                let head = decode_head(stored)?;
                self.expected.check(&head)?;
                self.head = Some(head);
            } else if is_meta {
                self.tail = Some(decode_tail(stored)?);
            } else {
                let content = frame::decompress(stored)?;
                self.frames.push(FrameEntry {
                    stored: stored.len() as u64,
                    content: content.len() as u64,
                    digest: Sha256Digest::of(stored),
                });
                self.content_size += content.len() as u64;
                self.hash.update(&content);
                out(content)?;
            }
        }
        self.buffer.drain(..used);
        Ok(())
    }

    /// Says that no more bytes come, and proves what was given out.
    pub fn finish<E: From<CodecError>>(
        mut self,
        out: impl FnMut(Vec<u8>) -> Result<(), E>,
    ) -> Result<DecodedObject, E> {
        self.wanted = 0;
        self.feed(&[], out)?;
        Ok(self.prove()?)
    }

    fn prove(self) -> Result<DecodedObject, CodecError> {
        let head = self
            .head
            .ok_or(CodecError::Truncated { what: "the head" })?;
        let ReadTail {
            tail,
            digest: table,
            ..
        } = self
            .tail
            .ok_or(CodecError::Truncated { what: "the tail" })?;
        if !self.buffer.is_empty() {
            return Err(CodecError::Truncated {
                what: "the last frame",
            });
        }
        if tail.frames != self.frames {
            return Err(CodecError::damaged(
                "its frames are not those of its frame table",
            ));
        }
        let sizes = [Some(tail.content_size), head.content_size];
        if let Some(size) = sizes
            .into_iter()
            .flatten()
            .find(|size| *size != self.content_size)
        {
            return Err(CodecError::damaged(format!(
                "it holds {} bytes, expected {size}",
                self.content_size
            )));
        }
        let content = Sha256Digest(self.hash.finalize().into());
        if let Some(expected) = tail.sha256.filter(|expected| *expected != content) {
            return Err(CodecError::WrongDigest {
                what: "its content",
                found: content,
                expected,
            });
        }
        Ok(DecodedObject {
            head,
            tail,
            table,
            content,
        })
    }
}
