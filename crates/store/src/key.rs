//! Names of objects.

use std::fmt;

/// An object's name within a store: components separated by `/`, such as `main/walden.json`.
///
/// Every backend can hold every key: printable ASCII without a backslash, at most [`Key::MAX_LENGTH`] bytes, each
/// component between 1 and 255 bytes long and not beginning with a dot. A store may be unable to hold both `a` and
/// `a/b`, so a name that is an object is never also used as a folder.
///
/// Keys order by their bytes, as stores list them.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Key(String);

/// Why a text is no [`Key`].
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum BadKey {
    /// Longer than [`Key::MAX_LENGTH`].
    #[error("an object's key of {0} bytes is longer than the {max} that every store can hold", max = Key::MAX_LENGTH)]
    TooLong(usize),
    /// A character outside printable ASCII, or a backslash.
    #[error(
        "the object key {0:?} has a character other than printable ASCII without the backslash"
    )]
    BadCharacter(String),
    /// A component that is empty, begins with a dot or exceeds 255 bytes.
    #[error(
        "the object key {0:?} has a component that is empty, begins with a dot or is longer than 255 bytes"
    )]
    BadComponent(String),
}

impl Key {
    /// In bytes. Stores allow 1024; the rest is left to a prefix within a bucket.
    pub const MAX_LENGTH: usize = 900;

    /// Checks a key's form; see [`Key`].
    pub fn parse(text: &str) -> Result<Self, BadKey> {
        if text.len() > Self::MAX_LENGTH {
            return Err(BadKey::TooLong(text.len()));
        }
        if !text
            .bytes()
            .all(|byte| matches!(byte, b' '..=b'~') && byte != b'\\')
        {
            return Err(BadKey::BadCharacter(text.to_owned()));
        }
        if !text
            .split('/')
            .all(|component| (1..=255).contains(&component.len()) && !component.starts_with('.'))
        {
            return Err(BadKey::BadComponent(text.to_owned()));
        }
        Ok(Self(text.to_owned()))
    }

    /// The key as it was parsed.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::str::FromStr for Key {
    type Err = BadKey;

    fn from_str(text: &str) -> Result<Self, BadKey> {
        Self::parse(text)
    }
}
