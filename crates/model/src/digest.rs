//! SHA-256 digests, written the one way the repository writes them.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer};
use sha2::{Digest, Sha256};

const ALGORITHM: &str = "sha256:";

/// A SHA-256 digest. As text, and so in every document: `sha256:` and 64 lower-case hexadecimal digits.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Sha256Digest(pub [u8; 32]);

impl Sha256Digest {
    /// The digest of these bytes.
    #[must_use]
    pub fn of(bytes: &[u8]) -> Self {
        Self(Sha256::digest(bytes).into())
    }

    /// The first eight bytes: the piece that stands in the keys of partial and quarantined WAL files.
    #[must_use]
    pub fn short(&self) -> ShortDigest {
        let mut short = [0; 8];
        for (to, from) in short.iter_mut().zip(self.0) {
            *to = from;
        }
        ShortDigest(short)
    }

    /// [`Self::short`] as its 16 hexadecimal digits.
    #[must_use]
    pub fn hex16(&self) -> String {
        self.short().to_string()
    }

    /// The 64 hexadecimal digits without the algorithm's name.
    #[must_use]
    pub fn hex(&self) -> String {
        hex_of(&self.0)
    }

    /// A digest from its 64 lower-case hexadecimal digits.
    pub(crate) fn from_hex(hex: &str) -> Option<Self> {
        let mut bytes = [0; 32];
        fill_from_hex(hex, &mut bytes).then_some(Self(bytes))
    }
}

impl fmt::Display for Sha256Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{ALGORITHM}{}", self.hex())
    }
}

impl fmt::Debug for Sha256Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// A text that is not a digest as the repository writes them.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "{0:?} is not a digest (expected sha256: or hmac-sha256:, and 64 lower-case hexadecimal digits)"
)]
pub struct BadDigest(String);

impl FromStr for Sha256Digest {
    type Err = BadDigest;

    fn from_str(text: &str) -> Result<Self, BadDigest> {
        text.strip_prefix(ALGORITHM)
            .and_then(Self::from_hex)
            .ok_or_else(|| BadDigest(text.chars().take(100).collect()))
    }
}

impl Serialize for Sha256Digest {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Sha256Digest {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        parse_text(deserializer)
    }
}

/// An HMAC-SHA256 of a content's SHA-256, by which the same content is known without being told. As text `hmac-sha256:` and 64 lower-case
/// hexadecimal digits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct KeyedDigest(pub [u8; 32]);

impl KeyedDigest {
    const ALGORITHM: &str = "hmac-sha256:";

    /// The first eight bytes: the piece that stands in the keys of encrypted partial and quarantined WAL files.
    #[must_use]
    pub fn short(&self) -> ShortDigest {
        Sha256Digest(self.0).short()
    }
}

impl fmt::Display for KeyedDigest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}{}", Self::ALGORITHM, hex_of(&self.0))
    }
}

impl FromStr for KeyedDigest {
    type Err = BadDigest;

    fn from_str(text: &str) -> Result<Self, BadDigest> {
        text.strip_prefix(Self::ALGORITHM)
            .and_then(Sha256Digest::from_hex)
            .map(|digest| Self(digest.0))
            .ok_or_else(|| BadDigest(text.chars().take(100).collect()))
    }
}

impl Serialize for KeyedDigest {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for KeyedDigest {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        parse_text(deserializer)
    }
}

/// The first eight bytes of a content's SHA-256; as text 16 lower-case hexadecimal digits.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ShortDigest(pub [u8; 8]);

impl ShortDigest {
    /// A short digest from its 16 lower-case hexadecimal digits.
    #[must_use]
    pub fn from_hex(hex: &str) -> Option<Self> {
        let mut bytes = [0; 8];
        fill_from_hex(hex, &mut bytes).then_some(Self(bytes))
    }
}

impl fmt::Display for ShortDigest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&hex_of(&self.0))
    }
}

/// Lower-case hexadecimal digits of any bytes.
pub(crate) fn hex_of(bytes: &[u8]) -> String {
    use fmt::Write as _;
    let mut hex = String::with_capacity(bytes.len() * 2);
    for byte in bytes {
        // Writing into a String cannot fail.
        let _ = write!(hex, "{byte:02x}");
    }
    hex
}

/// Bytes of lower-case hexadecimal digits; `None` for anything else.
pub(crate) fn bytes_of_hex(hex: &str) -> Option<Vec<u8>> {
    let mut bytes = vec![0; hex.len() / 2];
    fill_from_hex(hex, &mut bytes).then_some(bytes)
}

fn fill_from_hex(hex: &str, bytes: &mut [u8]) -> bool {
    if hex.len() != bytes.len() * 2 {
        return false;
    }
    for (byte, pair) in bytes.iter_mut().zip(hex.as_bytes().chunks_exact(2)) {
        let [high, low] = *pair else { return false };
        let (Some(high), Some(low)) = (nibble(high), nibble(low)) else {
            return false;
        };
        *byte = high << 4 | low;
    }
    true
}

fn nibble(digit: u8) -> Option<u8> {
    match digit {
        b'0'..=b'9' => Some(digit - b'0'),
        b'a'..=b'f' => Some(digit - b'a' + 10),
        _ => None,
    }
}

/// Deserialises a string through `FromStr`.
pub(crate) fn parse_text<'de, D, T>(deserializer: D) -> Result<T, D::Error>
where
    D: Deserializer<'de>,
    T: FromStr<Err: fmt::Display>,
{
    let text = std::borrow::Cow::<'de, str>::deserialize(deserializer)?;
    text.parse().map_err(serde::de::Error::custom)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_digest_is_written_with_its_algorithm_and_read_back() {
        let digest = Sha256Digest::of(b"abc");
        let text = "sha256:ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";
        assert_eq!(
            digest.to_string(),
            text,
            "the SHA-256 of \"abc\" by FIPS 180-2"
        );
        assert_eq!(text.parse(), Ok(digest));
        assert_eq!(digest.hex16(), "ba7816bf8f01cfea");
        assert_eq!(
            ShortDigest::from_hex("ba7816bf8f01cfea"),
            Some(digest.short())
        );
    }

    #[test]
    fn other_spellings_of_a_digest_are_refused() {
        let hex = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";
        for text in [
            hex.to_owned(),
            format!("sha256:{}", hex.to_uppercase()),
            format!("sha256:{hex}0"),
            format!("sha256:{}", &hex[1..]),
            format!("md5:{hex}"),
            "sha256:".to_owned(),
            format!("sha256:{}ä", &hex[2..]),
        ] {
            assert!(
                text.parse::<Sha256Digest>().is_err(),
                "{text} must be refused"
            );
        }
    }
}
