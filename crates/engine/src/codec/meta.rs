//! Metadata frames: zstd skippable frames that hold JSON, its digest, and a mark that can be found from the end.

use walden_model::{Head, Seal, Sha256Digest, Tail};

use super::CodecError;

/// Ends an object's head.
const HEAD_MARK: &[u8; 8] = b"WLDNHEAD";
/// Ends an object's tail.
const TAIL_MARK: &[u8; 8] = b"WLDNTAIL";
/// Ends an encrypted object.
const SEAL_MARK: &[u8; 8] = b"WLDNSEAL";

/// Length of a seal, in bytes: always the same, so that a person can cut it off.
pub const SEAL: usize = 512;
/// An envelope's length is a multiple of it, in all likelihood the first.
const ENVELOPE: usize = 1024;

/// One of zstd's sixteen skippable magic numbers (zstd_compression_format.md, "Skippable Frames").
pub(super) const MAGIC: [u8; 4] = 0x184D_2A5D_u32.to_le_bytes();
/// Bytes before the JSON: magic and length.
const PREFIX: usize = 8;
/// Bytes after the JSON: digest, length again, mark.
const TRAILER: usize = 32 + 4 + 8;
pub(super) const MAX_JSON: usize = 16 * 1024 * 1024;

/// A tail that was read and whose digest fits.
#[derive(Debug)]
pub struct ReadTail {
    /// What it says.
    pub tail: Tail,
    /// The digest of its JSON.
    pub digest: Sha256Digest,
    /// Bytes of the whole metadata frame.
    pub length: usize,
}

/// Gives the bytes of an object's head.
pub fn encode_head(head: &Head) -> Result<Vec<u8>, CodecError> {
    encode_meta(HEAD_MARK, &head.encode().map_err(CodecError::Meta)?).map(|(bytes, _)| bytes)
}

/// Gives the bytes that stand before an encrypted object.
pub(super) fn encode_envelope(envelope: &Head) -> Result<Vec<u8>, CodecError> {
    let mut json = envelope.encode().map_err(CodecError::Meta)?;
    let length = PREFIX + json.len() + TRAILER;
    json.resize(
        json.len() + length.next_multiple_of(ENVELOPE) - length,
        b' ',
    );
    encode_meta(HEAD_MARK, &json).map(|(bytes, _)| bytes)
}

/// Gives the bytes that stand behind an encrypted object.
pub(super) fn encode_seal(seal: &Seal) -> Result<Vec<u8>, CodecError> {
    let mut json = seal.encode().map_err(CodecError::Meta)?;
    json.resize(json.len().max(SEAL - PREFIX - TRAILER), b' ');
    encode_meta(SEAL_MARK, &json).map(|(bytes, _)| bytes)
}

/// Reads the seal that is exactly `bytes`.
pub(super) fn decode_seal(bytes: &[u8]) -> Result<Seal, CodecError> {
    let (json, _) = proven_json(SEAL_MARK, bytes)?;
    Seal::decode(json).map_err(CodecError::Meta)
}

/// The seal in the last bytes of an object; `None` where that is none, or not encrypted.
pub fn seal_of(suffix: &[u8]) -> Option<Result<Seal, CodecError>> {
    let seal = suffix.len().checked_sub(SEAL)?;
    let seal = suffix.get(seal..).filter(|seal| seal.ends_with(SEAL_MARK));
    seal.map(decode_seal)
}

/// Gives the bytes of an object's tail and the digest of its JSON.
pub fn encode_tail(tail: &Tail) -> Result<(Vec<u8>, Sha256Digest), CodecError> {
    encode_meta(TAIL_MARK, &tail.encode().map_err(CodecError::Meta)?)
}

fn encode_meta(mark: &[u8; 8], json: &[u8]) -> Result<(Vec<u8>, Sha256Digest), CodecError> {
    let too_long = || {
        CodecError::damaged(format!(
            "metadata of {} bytes is longer than {MAX_JSON}",
            json.len()
        ))
    };
    if json.len() > MAX_JSON {
        return Err(too_long());
    }
    let length = u32::try_from(json.len()).map_err(|_| too_long())?;
    let digest = Sha256Digest::of(json);
    let mut bytes = Vec::with_capacity(PREFIX + json.len() + TRAILER);
    bytes.extend_from_slice(&MAGIC);
    bytes.extend_from_slice(&(length + TRAILER as u32).to_le_bytes());
    bytes.extend_from_slice(json);
    bytes.extend_from_slice(&digest.0);
    bytes.extend_from_slice(&length.to_le_bytes());
    bytes.extend_from_slice(mark);
    Ok((bytes, digest))
}

/// The length of the metadata frame that begins here, as soon as its first eight bytes are known.
pub(super) fn frame_length(bytes: &[u8]) -> Result<Option<usize>, CodecError> {
    let Some((magic, rest)) = bytes.split_first_chunk::<4>() else {
        return Ok(None);
    };
    if *magic != MAGIC {
        return Err(CodecError::damaged(
            "a metadata frame's magic number is missing",
        ));
    }
    let Some(length) = rest.first_chunk::<4>() else {
        return Ok(None);
    };
    let length = u32::from_le_bytes(*length) as usize;
    if !(TRAILER..=MAX_JSON + TRAILER).contains(&length) {
        return Err(CodecError::damaged(format!(
            "a metadata frame of {length} bytes cannot be"
        )));
    }
    Ok(Some(PREFIX + length))
}

/// Reads the head that is exactly `bytes`.
pub(super) fn decode_head(bytes: &[u8]) -> Result<Head, CodecError> {
    let (json, _) = proven_json(HEAD_MARK, bytes)?;
    Head::decode(json).map_err(CodecError::Meta)
}

/// Reads the tail that is exactly `bytes`.
pub(super) fn decode_tail(bytes: &[u8]) -> Result<ReadTail, CodecError> {
    let (json, digest) = proven_json(TAIL_MARK, bytes)?;
    Ok(ReadTail {
        tail: Tail::decode(json).map_err(CodecError::Meta)?,
        digest,
        length: bytes.len(),
    })
}

/// Reads the tail from the last bytes of an object. `Err(n)` inside: at least `n` last bytes are needed.
pub fn tail_of(suffix: &[u8]) -> Result<Result<ReadTail, usize>, CodecError> {
    let (rest, mark) = suffix
        .split_last_chunk::<8>()
        .ok_or(CodecError::Truncated { what: "the tail" })?;
    let json_length = rest
        .last_chunk::<4>()
        .ok_or(CodecError::Truncated { what: "the tail" })?;
    if mark != TAIL_MARK {
        return Err(CodecError::damaged("it does not end in a tail"));
    }
    let json_length = u32::from_le_bytes(*json_length) as usize;
    if json_length > MAX_JSON {
        return Err(CodecError::damaged(format!(
            "a tail of {json_length} bytes cannot be"
        )));
    }
    let length = PREFIX + json_length + TRAILER;
    match suffix
        .len()
        .checked_sub(length)
        .and_then(|start| suffix.get(start..))
    {
        Some(bytes) => decode_tail(bytes).map(Ok),
        None => Ok(Err(length)),
    }
}

/// The JSON of the metadata frame that is exactly `bytes`, and its digest, which fits.
fn proven_json<'a>(
    mark: &[u8; 8],
    bytes: &'a [u8],
) -> Result<(&'a [u8], Sha256Digest), CodecError> {
    const CUT: CodecError = CodecError::Truncated {
        what: "a metadata frame",
    };
    if frame_length(bytes)? != Some(bytes.len()) {
        return Err(CUT);
    }
    let (rest, found_mark) = bytes.split_last_chunk::<8>().ok_or(CUT)?;
    let (rest, json_length) = rest.split_last_chunk::<4>().ok_or(CUT)?;
    let (rest, expected) = rest.split_last_chunk::<32>().ok_or(CUT)?;
    let json = rest.get(PREFIX..).ok_or(CUT)?;
    if found_mark != mark || u32::from_le_bytes(*json_length) as usize != json.len() {
        return Err(CodecError::damaged(
            "a metadata frame's end does not fit its beginning",
        ));
    }
    let (found, expected) = (Sha256Digest::of(json), Sha256Digest(*expected));
    if found != expected {
        return Err(CodecError::WrongDigest {
            what: "a metadata frame",
            found,
            expected,
        });
    }
    Ok((json, found))
}
