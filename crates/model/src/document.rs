//! The envelope of every document (`docs/FORMAT.md`, "Documents"): the digest line, the format's number, features, the kind.

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::digest::Sha256Digest;

/// The only format there is.
pub const FORMAT: u32 = 1;

/// No document is larger than this, in bytes; what claims to be is not read.
pub const MAX_DOCUMENT: usize = 256 << 20;

/// Features that this version can read. None is defined yet.
const KNOWN_FEATURES: &[&str] = &[];

const WRITTEN_BY: &str = concat!("walden ", env!("CARGO_PKG_VERSION"));

const LINE_START: &[u8] = b"{\"sha256\":\"";
const LINE_END: &[u8] = b"\"}\n";

/// What stands in a document, apart from the envelope.
pub trait Document: Serialize + DeserializeOwned {
    /// The envelope's `kind`.
    const KIND: &'static str;

    /// What the types alone cannot promise.
    ///
    /// # Errors
    /// Says which value cannot be.
    fn validate(&self) -> Result<(), String> {
        Ok(())
    }
}

/// Why bytes are not the document that was expected.
#[derive(Debug, thiserror::Error)]
pub enum DocumentError {
    /// The bytes are not what was written: the digest line is missing or does not fit, or the JSON does not make sense.
    #[error("the document is damaged: {0}")]
    Damaged(String),
    /// The JSON does not have the shape of its kind although the digest fits.
    #[error("the document's digest fits, but it is not a well-formed {kind} document")]
    Malformed {
        /// Which kind was expected.
        kind: &'static str,
        /// What the JSON reader says.
        #[source]
        source: serde_json::Error,
    },
    /// A later Walden wrote it.
    #[error(
        "the document has format {0}, and this version of Walden reads up to {FORMAT}: use a newer Walden"
    )]
    NewerFormat(u64),
    /// It needs something that this version cannot do.
    #[error(
        "the document requires the feature {0:?}, which this version of Walden does not know: use a newer Walden"
    )]
    UnknownFeature(String),
    /// Another kind of document.
    #[error("this is a document of kind {found:?}, not {expected:?}")]
    WrongKind {
        /// The kind that should stand here.
        expected: &'static str,
        /// The kind that does.
        found: String,
    },
    /// A value could not be written as JSON.
    #[error("the document cannot be written as JSON")]
    Unwritable(#[source] serde_json::Error),
}

#[derive(Serialize)]
struct Envelope<'a, T> {
    format: u32,
    kind: &'static str,
    required_features: &'static [&'static str],
    optional_features: &'static [&'static str],
    written_by: &'static str,
    #[serde(flatten)]
    body: &'a T,
}

/// What a later format may have moved is not required: that it is later must be told all the same.
#[derive(Deserialize)]
struct Preamble {
    format: u64,
    #[serde(default)]
    kind: String,
    #[serde(default)]
    required_features: Vec<String>,
}

/// A document's bytes: indented JSON and the digest line.
///
/// # Errors
/// [`DocumentError::Unwritable`], for values that JSON cannot hold; no kind of document has any.
pub fn encode<T: Document>(body: &T) -> Result<Vec<u8>, DocumentError> {
    let envelope = Envelope {
        format: FORMAT,
        kind: T::KIND,
        required_features: &[],
        optional_features: &[],
        written_by: WRITTEN_BY,
        body,
    };
    let mut bytes = serde_json::to_vec_pretty(&envelope).map_err(DocumentError::Unwritable)?;
    bytes.push(b'\n');
    let digest = Sha256Digest::of(&bytes);
    bytes.extend_from_slice(LINE_START);
    bytes.extend_from_slice(digest.hex().as_bytes());
    bytes.extend_from_slice(LINE_END);
    Ok(bytes)
}

/// Reads a document of one kind.
///
/// # Errors
/// Every [`DocumentError`] apart from `Unwritable`.
pub fn decode<T: Document>(bytes: &[u8]) -> Result<T, DocumentError> {
    let json = checked_json(bytes)?;
    let kind = check_preamble(json, T::KIND)?;
    decode_body(json, &kind)
}

/// Holds a document of any kind, also one that a later version defined, against its digest line; gives its kind.
///
/// # Errors
/// As [`decode`], but for `WrongKind` and `Malformed`.
pub fn check(bytes: &[u8]) -> Result<String, DocumentError> {
    kind_of(bytes, "any")
}

/// The kind of a whole, readable document; for keys where more than one may stand.
pub(crate) fn kind_of(bytes: &[u8], expected: &'static str) -> Result<String, DocumentError> {
    check_preamble(checked_json(bytes)?, expected)
}

fn decode_body<T: Document>(json: &[u8], kind: &str) -> Result<T, DocumentError> {
    if kind != T::KIND {
        return Err(DocumentError::WrongKind {
            expected: T::KIND,
            found: kind.to_owned(),
        });
    }
    let body: T = serde_json::from_slice(json).map_err(|source| DocumentError::Malformed {
        kind: T::KIND,
        source,
    })?;
    body.validate().map_err(DocumentError::Damaged)?;
    Ok(body)
}

fn check_preamble(json: &[u8], expected: &'static str) -> Result<String, DocumentError> {
    let malformed = |source| DocumentError::Malformed {
        kind: expected,
        source,
    };
    let preamble: Preamble = serde_json::from_slice(json).map_err(malformed)?;
    check_version(preamble.format, &preamble.required_features)?;
    Ok(preamble.kind)
}

/// The rule of "Versions": shared by documents and by the heads of framed objects.
pub(crate) fn check_version(format: u64, required: &[String]) -> Result<(), DocumentError> {
    if format > u64::from(FORMAT) {
        return Err(DocumentError::NewerFormat(format));
    }
    if format == 0 {
        return Err(DocumentError::Damaged("there is no format 0".to_owned()));
    }
    match required
        .iter()
        .find(|name| !KNOWN_FEATURES.contains(&name.as_str()))
    {
        Some(unknown) => Err(DocumentError::UnknownFeature(unknown.clone())),
        None => Ok(()),
    }
}

/// The JSON before the digest line, once the digest fits.
fn checked_json(bytes: &[u8]) -> Result<&[u8], DocumentError> {
    let damaged = |why: &str| DocumentError::Damaged(why.to_owned());
    if bytes.len() > MAX_DOCUMENT {
        return Err(damaged("it is larger than 256 MiB"));
    }
    let no_line = || damaged("its last line is not a digest, so it was cut short or changed");
    let line_length = LINE_START.len() + 64 + LINE_END.len();
    let (json, line) = bytes
        .len()
        .checked_sub(line_length)
        .and_then(|at| bytes.split_at_checked(at))
        .ok_or_else(no_line)?;
    let stored = line
        .strip_prefix(LINE_START)
        .and_then(|rest| rest.strip_suffix(LINE_END))
        .and_then(|hex| std::str::from_utf8(hex).ok())
        .and_then(Sha256Digest::from_hex)
        .filter(|_| json.ends_with(b"\n"))
        .ok_or_else(no_line)?;
    if Sha256Digest::of(json) != stored {
        return Err(damaged("its bytes do not fit its digest line"));
    }
    Ok(json)
}
