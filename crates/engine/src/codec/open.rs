//! Reading objects of which nobody knows beforehand whether they are encrypted, in bounded memory.

use std::cell::Cell;
use std::io::{self, BufRead, Read, Seek, SeekFrom};

use age::stream::StreamReader;
use age::{DecryptError, Decryptor};
use sha2::{Digest, Sha256};
use walden_model::{Head, HeadKind, Seal, Sha256Digest};

use super::CodecError;
use super::decode::{DecodedObject, Expected, ObjectDecoder};
use super::meta::{ReadTail, SEAL, decode_head, decode_seal, frame_length, tail_of};
use super::seal::keyed;
use crate::encryption::Identities;

/// Most bytes of an age file's header. One of 64 recipients has less.
const MAX_HEADER: u64 = 8 * 1024;

/// age's unit of encryption, in plain bytes, and what each gets longer by (age's specification, "Payload").
const CHUNK: u64 = 64 * 1024;
const CHUNK_TAG: u64 = 16;

/// The end of a tail that says how long it is.
const TAIL_END: u64 = 12;

/// Bytes that are decrypted at once.
const PORTION: usize = CHUNK as usize;

/// An object that is what was written.
#[derive(Debug)]
pub enum Proven {
    /// Not encrypted: its content was given out, and is proven.
    Plain(DecodedObject),
    /// Encrypted: its stored bytes are those that were written. What they mean, only an identity tells.
    Sealed {
        /// What its head says in clear.
        head: Head,
        /// What it ends in.
        seal: Seal,
    },
}

/// Reads an object to its end and gives out its content, as [`ObjectDecoder`] does. One that is encrypted is opened with what `unlock` gives.
///
/// # Errors
/// Beside the decoder's: [`CodecError::WrongIdentity`], and what `unlock` says.
pub fn read_object<R: BufRead, E: From<CodecError>>(
    mut stored: R,
    expected: Expected,
    unlock: impl FnOnce() -> Result<Identities, CodecError>,
    out: impl FnMut(Vec<u8>) -> Result<(), E>,
) -> Result<DecodedObject, E> {
    let first = first_frame(&mut stored)?;
    let head = decode_head(&first)?;
    if !head.is_envelope() {
        return read_plain(&first, stored, expected, out);
    }
    expected.check(&head)?;
    let mut payload = Payload::new(&first, stored);
    let object = match open_payload(&mut payload, expected, &unlock()?, out) {
        // Flipped bits in its header look the same; the seal tells.
        Err(CodecError::WrongIdentity) => {
            payload.prove()?;
            return Err(CodecError::WrongIdentity.into());
        }
        opened => opened??,
    };
    let seal = payload.prove()?;
    if object.head.envelope() != head {
        return Err(CodecError::damaged(
            "it was encrypted for another place, or another writer's head stands before it",
        )
        .into());
    }
    let content = object.tail.sha256.filter(|_| head.kind == HeadKind::Wal);
    if seal.content_hmac != content.map(|content| keyed(head.archive_id, &content)) {
        return Err(CodecError::damaged("its seal speaks of another content").into());
    }
    Ok(object)
}

/// Reads an object to its end without opening it. Only where it is not encrypted, content is given out.
///
/// # Errors
/// As [`ObjectDecoder`]'s.
pub fn prove_object<R: BufRead, E: From<CodecError>>(
    mut stored: R,
    expected: Expected,
    out: impl FnMut(Vec<u8>) -> Result<(), E>,
) -> Result<Proven, E> {
    let first = first_frame(&mut stored)?;
    let head = decode_head(&first)?;
    if !head.is_envelope() {
        return read_plain(&first, stored, expected, out).map(Proven::Plain);
    }
    expected.check(&head)?;
    let seal = Payload::new(&first, stored).prove()?;
    Ok(Proven::Sealed { head, seal })
}

fn read_plain<R: BufRead, E: From<CodecError>>(
    first: &[u8],
    mut stored: R,
    expected: Expected,
    mut out: impl FnMut(Vec<u8>) -> Result<(), E>,
) -> Result<DecodedObject, E> {
    let mut decoder = ObjectDecoder::new(expected);
    decoder.feed(first, &mut out)?;
    loop {
        let bytes = stored.fill_buf().map_err(unreadable)?;
        if bytes.is_empty() {
            return decoder.finish(out);
        }
        decoder.feed(bytes, &mut out)?;
        let length = bytes.len();
        stored.consume(length);
    }
}

fn unreadable(error: io::Error) -> CodecError {
    CodecError::damaged(error.to_string())
}

fn first_frame(stored: &mut impl BufRead) -> Result<Vec<u8>, CodecError> {
    let mut frame = Vec::new();
    loop {
        let wanted = match frame_length(&frame)? {
            Some(length) if frame.len() == length => return Ok(frame),
            Some(length) => length,
            None => 8,
        };
        let missing = (wanted - frame.len()) as u64;
        let read = stored.take(missing).read_to_end(&mut frame);
        if read.map_err(unreadable)? == 0 {
            return Err(CodecError::Truncated { what: "the head" });
        }
    }
}

/// The age file in an encrypted object: what stands between its envelope and its seal. All that is taken from it is hashed.
struct Payload<R> {
    stored: R,
    held: Vec<u8>,
    /// What was taken of `held`.
    at: usize,
    hash: Sha256,
    size: u64,
}

impl<R: BufRead> Payload<R> {
    fn new(envelope: &[u8], stored: R) -> Self {
        Payload {
            stored,
            held: Vec::new(),
            at: 0,
            hash: Sha256::new_with_prefix(envelope),
            size: envelope.len() as u64,
        }
    }

    /// Reads what is left, and holds all of it against the seal.
    fn prove(mut self) -> Result<Seal, CodecError> {
        loop {
            let length = self.fill_buf().map_err(unreadable)?.len();
            if length == 0 {
                break;
            }
            self.consume(length);
        }
        let seal = self.held.get(self.at..).unwrap_or_default();
        if seal.len() < SEAL {
            return Err(CodecError::Truncated { what: "the seal" });
        }
        let seal = decode_seal(seal)?;
        let found = Sha256Digest(self.hash.finalize().into());
        if self.size != seal.size {
            let (size, expected) = (self.size, seal.size);
            return Err(CodecError::damaged(format!(
                "{size} bytes stand before its seal, expected {expected}"
            )));
        }
        if found != seal.sha256 {
            return Err(CodecError::WrongDigest {
                what: "what its seal is for",
                found,
                expected: seal.sha256,
            });
        }
        Ok(seal)
    }
}

impl<R: BufRead> BufRead for Payload<R> {
    fn fill_buf(&mut self) -> io::Result<&[u8]> {
        if self.held.len() - self.at <= SEAL {
            self.held.drain(..self.at);
            self.at = 0;
            // The seal is known by its place at the end alone.
            while self.held.len() <= SEAL {
                let more = self.stored.fill_buf()?;
                if more.is_empty() {
                    break;
                }
                self.held.extend_from_slice(more);
                let length = more.len();
                self.stored.consume(length);
            }
        }
        let end = self.held.len().saturating_sub(SEAL).max(self.at);
        Ok(self.held.get(self.at..end).unwrap_or_default())
    }

    fn consume(&mut self, length: usize) {
        let taken = self.held.get(self.at..self.at + length).unwrap_or_default();
        self.hash.update(taken);
        self.size += taken.len() as u64;
        self.at += taken.len();
    }
}

impl<R: BufRead> Read for Payload<R> {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        read_buffered(self, into)
    }
}

fn read_buffered(from: &mut impl BufRead, into: &mut [u8]) -> io::Result<usize> {
    let length = from.fill_buf()?.read(into)?;
    from.consume(length);
    Ok(length)
}

/// Refuses to read on once `left` is used up: age reads a header as long as it goes on.
struct Bounded<'a, R> {
    inner: R,
    left: &'a Cell<u64>,
}

impl<R: BufRead> BufRead for Bounded<'_, R> {
    fn fill_buf(&mut self) -> io::Result<&[u8]> {
        let left = usize::try_from(self.left.get()).unwrap_or(usize::MAX);
        if left == 0 {
            return Err(io::Error::other("its header has no end"));
        }
        let bytes = self.inner.fill_buf()?;
        Ok(bytes.get(..left).unwrap_or(bytes))
    }

    fn consume(&mut self, length: usize) {
        self.left.set(self.left.get().saturating_sub(length as u64));
        self.inner.consume(length);
    }
}

impl<R: BufRead> Read for Bounded<'_, R> {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        read_buffered(self, into)
    }
}

impl<R: BufRead + Seek> Seek for Bounded<'_, R> {
    fn seek(&mut self, to: SeekFrom) -> io::Result<u64> {
        self.inner.seek(to)
    }
}

/// age's own reader of what is encrypted.
fn decrypt<'a, R: BufRead>(
    age_file: R,
    left: &'a Cell<u64>,
    identities: &Identities,
) -> Result<StreamReader<Bounded<'a, R>>, CodecError> {
    let bounded = Bounded {
        inner: age_file,
        left,
    };
    let decryptor = Decryptor::new_buffered(bounded).map_err(age_error)?;
    left.set(u64::MAX);
    decryptor.decrypt(identities.keys()).map_err(age_error)
}

fn age_error(error: DecryptError) -> CodecError {
    match error {
        DecryptError::NoMatchingKeys => CodecError::WrongIdentity,
        error => CodecError::damaged(format!("age cannot open it: {error}")),
    }
}

fn open_payload<R: BufRead, E: From<CodecError>>(
    payload: &mut Payload<R>,
    expected: Expected,
    identities: &Identities,
    mut out: impl FnMut(Vec<u8>) -> Result<(), E>,
) -> Result<Result<DecodedObject, E>, CodecError> {
    let left = Cell::new(MAX_HEADER);
    let mut plain = decrypt(payload, &left, identities)?;
    let mut decoder = ObjectDecoder::new(expected);
    let mut portion = vec![0; PORTION];
    loop {
        let length = plain
            .read(&mut portion)
            .map_err(|e| age_error(DecryptError::Io(e)))?;
        let taken = match portion.get(..length) {
            None | Some([]) => return Ok(decoder.finish(out)),
            Some(bytes) => decoder.feed(bytes, &mut out),
        };
        if let Err(error) = taken {
            return Ok(Err(error));
        }
    }
}

/// What came of a look at the two ends of an encrypted object.
#[derive(Debug)]
pub enum SealedTail {
    /// The tail of the object that is in it.
    Read(ReadTail),
    /// As many bytes of the stored object's end are needed.
    Needs(u64),
}

/// Reads the tail of the object that is in an encrypted one, from the first and the last bytes of that.
///
/// `front` holds the envelope and the age file's header, for which 16 KiB are enough; `size` is the stored object's.
///
/// # Errors
/// As [`read_object`]'s; only what was read is proven.
pub fn sealed_tail(
    front: &[u8],
    suffix: &[u8],
    size: u64,
    identities: &Identities,
) -> Result<SealedTail, CodecError> {
    const CUT: CodecError = CodecError::Truncated { what: "the seal" };
    let mut rest = front;
    let envelope = first_frame(&mut rest)?;
    if !decode_head(&envelope)?.is_envelope() {
        return Err(CodecError::damaged(
            "a seal ends it, and no envelope begins it",
        ));
    }
    let end = suffix
        .len()
        .checked_sub(SEAL)
        .and_then(|end| suffix.get(..end));
    let length = size
        .checked_sub((envelope.len() + SEAL) as u64)
        .ok_or(CUT)?;
    let ends = Ends::new(rest, end.ok_or(CUT)?, length);
    let available = ends.end.len() as u64;
    let left = Cell::new(MAX_HEADER);
    let mut plain = decrypt(ends, &left, identities)?;
    let mut wanted = TAIL_END;
    loop {
        // Of the chunk in which the last `wanted` bytes begin, all is needed.
        let needed = wanted + CHUNK + (wanted / CHUNK + 2) * CHUNK_TAG;
        if needed > available && available < length {
            return Ok(SealedTail::Needs(needed + SEAL as u64));
        }
        let io_error = |e| age_error(DecryptError::Io(e));
        let whole = plain.seek(SeekFrom::End(0)).map_err(io_error)?;
        let wanted_now = wanted.min(whole);
        plain
            .seek(SeekFrom::Start(whole - wanted_now))
            .map_err(io_error)?;
        let mut bytes = Vec::new();
        plain
            .by_ref()
            .take(wanted_now)
            .read_to_end(&mut bytes)
            .map_err(io_error)?;
        match tail_of(&bytes)? {
            Ok(tail) => return Ok(SealedTail::Read(tail)),
            Err(needed) if (needed as u64) > wanted && needed as u64 <= whole => {
                wanted = needed as u64
            }
            Err(_) => return Err(CodecError::Truncated { what: "the tail" }),
        }
    }
}

/// The two ends of an age file whose middle is not needed.
struct Ends<'a> {
    front: &'a [u8],
    end: &'a [u8],
    length: u64,
    at: u64,
}

impl<'a> Ends<'a> {
    /// Both may reach beyond the age file at their other side.
    fn new(front: &'a [u8], end: &'a [u8], length: u64) -> Self {
        let most = usize::try_from(length).unwrap_or(usize::MAX);
        let before = end.len().saturating_sub(most);
        Ends {
            front: front.get(..most).unwrap_or(front),
            end: end.get(before..).unwrap_or(end),
            length,
            at: 0,
        }
    }
}

impl BufRead for Ends<'_> {
    fn fill_buf(&mut self) -> io::Result<&[u8]> {
        let end_at = self.length - self.end.len() as u64;
        let (at, bytes) = match self.at.checked_sub(end_at) {
            Some(at) => (at, self.end),
            None => (self.at, self.front),
        };
        let found = usize::try_from(at).ok().and_then(|at| bytes.get(at..));
        match found.filter(|found| !found.is_empty()) {
            Some(found) => Ok(found),
            None if self.at >= self.length => Ok(&[]),
            None => Err(io::Error::other("bytes between its two ends are needed")),
        }
    }

    fn consume(&mut self, length: usize) {
        self.at = self.at.saturating_add(length as u64);
    }
}

impl Read for Ends<'_> {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        read_buffered(self, into)
    }
}

impl Seek for Ends<'_> {
    fn seek(&mut self, to: SeekFrom) -> io::Result<u64> {
        let at = match to {
            SeekFrom::Start(at) => Some(at),
            SeekFrom::End(offset) => self.length.checked_add_signed(offset),
            SeekFrom::Current(offset) => self.at.checked_add_signed(offset),
        };
        self.at = at.ok_or_else(|| io::Error::from(io::ErrorKind::InvalidInput))?;
        Ok(self.at)
    }
}
