//! Reading a framed object as its bytes arrive, in bounded memory.

use sha2::{Digest, Sha256};
use walden_model::{FrameEntry, Head, HeadKind, RandomId, Sha256Digest, Tail};

use super::meta::{MAGIC, MAX_JSON, ReadTail, decode_head, decode_tail, frame_length};
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
    pub(super) fn check(&self, head: &Head) -> Result<(), CodecError> {
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

/// More than any frame table has room for: each of its rows has a digest of 64 digits.
const MOST_FRAMES: usize = MAX_JSON / 64;

/// An object that was read to its end and is whole.
#[derive(Debug)]
pub struct DecodedObject {
    /// Its head.
    pub head: Head,
    /// Its tail.
    pub tail: Tail,
    /// The digest of the tail's JSON.
    pub table: Sha256Digest,
}

/// Takes an object's bytes in any portions and gives its content, frame by frame. Of an encrypted object it gives the head, and then an
/// error.
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
    /// Of the content; packs have none, because their files have checksums of their own.
    hash: Option<Sha256>,
}

impl ObjectDecoder {
    /// A decoder for an object that must be the expected one.
    pub fn new(expected: Expected) -> Self {
        ObjectDecoder {
            hash: (expected.kind != HeadKind::Pack).then(Sha256::new),
            expected,
            buffer: Vec::new(),
            wanted: 0,
            head: None,
            tail: None,
            frames: Vec::new(),
            content_size: 0,
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
                let is_envelope = head.is_envelope();
                self.head = Some(head);
                if is_envelope {
                    return Err(CodecError::damaged("what is in it is encrypted").into());
                }
            } else if is_meta {
                self.tail = Some(decode_tail(stored)?);
            } else {
                if self.frames.len() >= MOST_FRAMES {
                    return Err(
                        CodecError::damaged("it has more frames than a frame table holds").into(),
                    );
                }
                let content = frame::decompress(stored)?;
                self.frames.push(FrameEntry {
                    stored: stored.len() as u64,
                    content: content.len() as u64,
                    digest: Sha256Digest::of(stored),
                });
                self.content_size += content.len() as u64;
                if let Some(hash) = &mut self.hash {
                    hash.update(&content);
                }
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
        let found = self.hash.map(|hash| Sha256Digest(hash.finalize().into()));
        match (found, tail.sha256) {
            (Some(found), Some(expected)) if found != expected => {
                return Err(CodecError::WrongDigest {
                    what: "its content",
                    found,
                    expected,
                });
            }
            (Some(_), None) => {
                return Err(CodecError::damaged("its tail has no digest of the content"));
            }
            _ => {}
        }
        Ok(DecodedObject { head, tail, table })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use walden_model::Writer;

    use super::super::{FrameCompressor, encode_head, encode_tail, tail_of};
    use super::*;

    fn expected() -> Expected {
        Expected {
            kind: HeadKind::Wal,
            archive_id: RandomId([7; 16]),
            key: "1/wal/x.zst".to_owned(),
        }
    }

    fn object(frames: &[Vec<u8>]) -> Vec<u8> {
        let writer = Writer {
            host: "db1".to_owned(),
            started_at: "2026-11-22T17:50:07Z".parse().unwrap(),
            pid: 4711,
            version: "0.1.0".to_owned(),
        };
        let content = frames.concat();
        let Expected {
            kind,
            archive_id,
            key,
        } = expected();
        let mut bytes = encode_head(&Head::new(
            kind,
            archive_id,
            &key,
            Some(content.len() as u64),
            writer,
        ))
        .unwrap();
        let mut compressor = FrameCompressor::new(1).unwrap();
        let mut tail = Tail {
            content_size: content.len() as u64,
            index: None,
            sha256: Some(Sha256Digest::of(&content)),
            frames: Vec::new(),
        };
        for frame in frames {
            let frame = compressor.compress(frame).unwrap();
            bytes.extend_from_slice(&frame.stored);
            tail.frames.push(frame.entry);
        }
        bytes.extend_from_slice(&encode_tail(&tail).unwrap().0);
        bytes
    }

    fn decode(expected: Expected, portions: &[&[u8]]) -> Result<Vec<u8>, CodecError> {
        let mut decoder = ObjectDecoder::new(expected);
        let mut content = Vec::new();
        for portion in portions {
            decoder.feed(portion, |frame| {
                content.extend_from_slice(&frame);
                Ok::<_, CodecError>(())
            })?;
        }
        let rest = decoder.finish(|frame| {
            content.extend_from_slice(&frame);
            Ok::<_, CodecError>(())
        });
        rest.map(|_| content)
    }

    fn sample() -> Vec<u8> {
        object(&[b"one".repeat(40), vec![0; 300], b"three".to_vec()])
    }

    #[test]
    fn every_flipped_bit_of_an_object_is_found() {
        let good = sample();
        for at in 0..good.len() * 8 {
            let mut bad = good.clone();
            bad[at / 8] ^= 1 << (at % 8);
            assert!(
                decode(expected(), &[&bad]).is_err(),
                "bit {} of byte {} was flipped unseen",
                at % 8,
                at / 8
            );
        }
    }

    #[test]
    fn an_object_that_is_cut_off_anywhere_or_has_bytes_after_it_is_refused() {
        let good = sample();
        for length in 0..good.len() {
            assert!(
                decode(expected(), &[&good[..length]]).is_err(),
                "{length} of {} bytes passed",
                good.len()
            );
        }
        for more in [vec![0], good.clone()] {
            assert!(
                decode(expected(), &[&good, &more]).is_err(),
                "bytes after the tail passed"
            );
        }
    }

    #[test]
    fn an_object_that_belongs_elsewhere_is_refused_by_name() {
        let other = Expected {
            key: "1/wal/y.zst".to_owned(),
            ..expected()
        };
        let error = decode(other, &[&sample()]).unwrap_err().to_string();
        assert_eq!(
            error,
            "the object belongs elsewhere: its head says key 1/wal/x.zst, expected 1/wal/y.zst"
        );
    }

    #[test]
    fn a_frame_that_claims_more_than_the_limit_is_refused_before_memory_is_taken() {
        let mut zstd = zstd::bulk::Compressor::new(1).unwrap();
        let bomb = zstd
            .compress(&vec![0; super::super::MAX_FRAME_CONTENT + 1])
            .unwrap();
        let mut bytes = object(&[]);
        let at = bytes.len() - tail_of(&bytes).unwrap().unwrap().length;
        bytes.splice(at..at, bomb);
        let error = decode(expected(), &[&bytes]).unwrap_err().to_string();
        assert!(
            error.contains("claims 4194305 bytes"),
            "expected the claimed size to be named, found: {error}"
        );
    }

    proptest! {
        #[test]
        fn an_object_reads_the_same_in_any_portions(
            frames in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..5000), 0..6),
            cuts in prop::collection::vec(any::<prop::sample::Index>(), 0..8),
        ) {
            let bytes = object(&frames);
            let mut cuts: Vec<usize> = cuts.iter().map(|cut| cut.index(bytes.len() + 1)).collect();
            cuts.extend([0, bytes.len()]);
            cuts.sort_unstable();
            let portions: Vec<&[u8]> = cuts.windows(2).map(|pair| &bytes[pair[0]..pair[1]]).collect();
            prop_assert_eq!(decode(expected(), &portions).unwrap(), frames.concat());
        }

        #[test]
        fn no_bytes_make_the_decoder_panic(bytes in prop::collection::vec(any::<u8>(), 0..300), at in any::<prop::sample::Index>()) {
            let mut spliced = sample();
            let at = at.index(spliced.len());
            spliced.splice(at..at, bytes.iter().copied());
            prop_assert!(bytes.is_empty() || decode(expected(), &[&spliced]).is_err());
            prop_assert!(decode(expected(), &[&bytes]).is_err());
            let _ = tail_of(&bytes);
        }
    }
}
