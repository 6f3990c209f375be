//! Entries of a backup's file map (`docs/FORMAT.md`, "The file map"). What is read is validated here, once, so that nobody who
//! holds a [`FileEntry`] from [`FileEntry::decode_line`] can be led out of the directory that is being restored.

use std::fmt;

use serde::de::{self, SeqAccess, Visitor};
use serde::ser::SerializeSeq;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::digest::{bytes_of_hex, hex_of};

/// Longer than any path that PostgreSQL can open (`MAXPGPATH` in pg_config_manual.h is 1024).
const MAX_PATH: usize = 4096;

/// One file, directory or link of a backup.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FileEntry {
    /// Below PGDATA; of an extra, absolute on the server. Bytes, for PostgreSQL does not promise UTF-8.
    pub path: Vec<u8>,
    /// Permission bits.
    pub mode: u32,
    /// Seconds since 1970.
    pub mtime: i64,
    /// What stands at the path.
    pub body: FileBody,
}

/// What stands at a path.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum FileBody {
    /// A file of the cluster.
    File(FileContent),
    /// A configuration file from outside PGDATA.
    Extra(FileContent),
    /// A directory.
    Directory,
    /// A tablespace's link.
    Link {
        /// Where it points on the server.
        target: Vec<u8>,
    },
}

/// A file's content.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FileContent {
    /// In bytes.
    pub size: u64,
    /// CRC-32C of the content, as a number.
    pub crc32c: u32,
    /// Where its bytes stand, in file order.
    pub extents: Vec<Extent>,
}

/// A range of a file and where its bytes stand; offsets and lengths in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Extent {
    /// Content of a pack, going on in the pack's following frames until `length` is used up.
    Data {
        /// Where the range begins in the file.
        offset: u64,
        /// Its length.
        length: u64,
        /// Index into the commit document's `packs`.
        pack: u32,
        /// The frame in which it begins.
        frame: u32,
        /// Where in that frame's content.
        frame_offset: u32,
    },
    /// Bytes of zero.
    Zero {
        /// Where the range begins in the file.
        offset: u64,
        /// Its length.
        length: u64,
    },
    /// Reserved for incremental backups: bytes of a parent.
    Hole {
        /// Where the range begins in the file.
        offset: u64,
        /// Its length.
        length: u64,
    },
}

impl Extent {
    /// Where the range begins in the file.
    #[must_use]
    pub fn offset(&self) -> u64 {
        match *self {
            Self::Data { offset, .. } | Self::Zero { offset, .. } | Self::Hole { offset, .. } => {
                offset
            }
        }
    }

    /// The range's length.
    #[must_use]
    pub fn length(&self) -> u64 {
        match *self {
            Self::Data { length, .. } | Self::Zero { length, .. } | Self::Hole { length, .. } => {
                length
            }
        }
    }
}

/// Why a line of a file map is refused.
#[derive(Debug, thiserror::Error)]
pub enum FileEntryError {
    /// Not JSON of the right shape.
    #[error("a line of the file map is not a well-formed entry")]
    Malformed(#[source] serde_json::Error),
    /// A value that no backup of ours holds.
    #[error("the file map's entry {path:?} is refused: {why}")]
    Refused {
        /// The entry's path, for people.
        path: String,
        /// What is wrong.
        why: String,
    },
    /// The entry could not be written as JSON.
    #[error("the file map's entry cannot be written as JSON")]
    Unwritable(#[source] serde_json::Error),
}

impl FileEntry {
    /// The content, where there is one.
    #[must_use]
    pub fn content(&self) -> Option<&FileContent> {
        match &self.body {
            FileBody::File(content) | FileBody::Extra(content) => Some(content),
            FileBody::Directory | FileBody::Link { .. } => None,
        }
    }

    /// The path for people: what is not UTF-8 in it is replaced.
    #[must_use]
    pub fn path_text(&self) -> String {
        String::from_utf8_lossy(&self.path).into_owned()
    }

    /// The entry's line, with its line feed.
    ///
    /// # Errors
    /// An entry that no reader would accept is not written either.
    pub fn encode_line(&self) -> Result<Vec<u8>, FileEntryError> {
        self.validate()?;
        let mut line =
            serde_json::to_vec(&RawEntry::from(self)).map_err(FileEntryError::Unwritable)?;
        line.push(b'\n');
        Ok(line)
    }

    /// Reads a line, with or without its line feed, and validates it.
    ///
    /// # Errors
    /// Malformed JSON, and entries that [`Self::validate`] refuses.
    pub fn decode_line(line: &[u8]) -> Result<Self, FileEntryError> {
        let raw: RawEntry = serde_json::from_slice(line).map_err(FileEntryError::Malformed)?;
        let shown = raw
            .path
            .clone()
            .or_else(|| raw.path_hex.clone())
            .unwrap_or_default();
        let entry =
            Self::try_from(raw).map_err(|why| FileEntryError::Refused { path: shown, why })?;
        entry.validate()?;
        Ok(entry)
    }

    /// Whether a restore can trust the entry: its path stays below PGDATA (an extra's is absolute), links stand directly in
    /// `pg_tblspc`, and the extents cover the file exactly.
    ///
    /// # Errors
    /// [`FileEntryError::Refused`], saying what is wrong.
    pub fn validate(&self) -> Result<(), FileEntryError> {
        self.check().map_err(|why| FileEntryError::Refused {
            path: self.path_text(),
            why,
        })
    }

    fn check(&self) -> Result<(), String> {
        let relative = match (&self.body, self.path.strip_prefix(b"/")) {
            (FileBody::Extra(_), Some(rest)) => rest,
            (FileBody::Extra(_), None) => return Err("an extra's path must be absolute".to_owned()),
            (_, Some(_)) => return Err("the path must be relative".to_owned()),
            (_, None) => &self.path,
        };
        check_components(relative)?;
        if self.mode > 0o7777 {
            return Err(format!("{:o} is not a mode's permission bits", self.mode));
        }
        match &self.body {
            FileBody::Directory => Ok(()),
            FileBody::Link { target } => check_link(&self.path, target),
            FileBody::File(content) | FileBody::Extra(content) => check_extents(content),
        }
    }
}

fn check_components(path: &[u8]) -> Result<(), String> {
    if path.len() > MAX_PATH {
        return Err(format!("the path is longer than {MAX_PATH} bytes"));
    }
    if path.contains(&0) {
        return Err("the path contains a NUL".to_owned());
    }
    for component in path.split(|&byte| byte == b'/') {
        if matches!(component, b"" | b"." | b"..") {
            return Err("the path has an empty, \".\" or \"..\" component".to_owned());
        }
    }
    Ok(())
}

fn check_link(path: &[u8], target: &[u8]) -> Result<(), String> {
    let oid = path.strip_prefix(b"pg_tblspc/").unwrap_or_default();
    if oid.is_empty() || !oid.iter().all(u8::is_ascii_digit) {
        return Err("only tablespaces, pg_tblspc/<oid>, are links".to_owned());
    }
    if !target.starts_with(b"/") || target.contains(&0) || target.len() > MAX_PATH {
        return Err("the link's target is not an absolute path".to_owned());
    }
    Ok(())
}

fn check_extents(content: &FileContent) -> Result<(), String> {
    let mut end = 0_u64;
    for extent in &content.extents {
        if matches!(extent, Extent::Hole { .. }) {
            return Err(
                "it needs another backup's bytes, which this version of Walden cannot bring"
                    .to_owned(),
            );
        }
        if extent.length() == 0 {
            return Err("an extent is empty".to_owned());
        }
        if extent.offset() != end {
            return Err(format!(
                "an extent begins at {}, and the one before it ends at {end}",
                extent.offset()
            ));
        }
        end = end
            .checked_add(extent.length())
            .ok_or("the extents' lengths overflow")?;
    }
    if end != content.size {
        return Err(format!(
            "the extents hold {end} bytes, and the file should have {}",
            content.size
        ));
    }
    Ok(())
}

/// The JSON of an entry.
#[derive(Serialize, Deserialize)]
struct RawEntry {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    path: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    path_hex: Option<String>,
    r#type: RawType,
    mode: String,
    mtime: i64,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    size: Option<u64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    crc32c: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    target: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    target_hex: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    extents: Option<Vec<Extent>>,
}

#[derive(Clone, Copy, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
enum RawType {
    File,
    Directory,
    Link,
    Extra,
}

/// UTF-8 bytes as text, others as hexadecimal digits.
fn text_or_hex(bytes: &[u8]) -> (Option<String>, Option<String>) {
    match std::str::from_utf8(bytes) {
        Ok(text) => (Some(text.to_owned()), None),
        Err(_) => (None, Some(hex_of(bytes))),
    }
}

fn bytes_of(text: Option<String>, hex: Option<String>, what: &str) -> Result<Vec<u8>, String> {
    match (text, hex) {
        (Some(text), None) => Ok(text.into_bytes()),
        (None, Some(hex)) => bytes_of_hex(&hex)
            .ok_or_else(|| format!("its {what}_hex is not lower-case hexadecimal digits")),
        (Some(_), Some(_)) => Err(format!("it has both {what} and {what}_hex")),
        (None, None) => Err(format!("it has no {what}")),
    }
}

impl From<&FileEntry> for RawEntry {
    fn from(entry: &FileEntry) -> Self {
        let (path, path_hex) = text_or_hex(&entry.path);
        let (target, target_hex) = match &entry.body {
            FileBody::Link { target } => text_or_hex(target),
            _ => (None, None),
        };
        let content = entry.content();
        Self {
            path,
            path_hex,
            r#type: match entry.body {
                FileBody::File(_) => RawType::File,
                FileBody::Extra(_) => RawType::Extra,
                FileBody::Directory => RawType::Directory,
                FileBody::Link { .. } => RawType::Link,
            },
            mode: format!("{:04o}", entry.mode),
            mtime: entry.mtime,
            size: content.map(|content| content.size),
            crc32c: content.map(|content| format!("{:08x}", content.crc32c)),
            target,
            target_hex,
            extents: content.map(|content| content.extents.clone()),
        }
    }
}

impl TryFrom<RawEntry> for FileEntry {
    type Error = String;

    fn try_from(raw: RawEntry) -> Result<Self, String> {
        let path = bytes_of(raw.path, raw.path_hex, "path")?;
        let digits = |text: &str, fits: fn(u8) -> bool| text.bytes().all(fits);
        let mode = Some(raw.mode.as_str())
            .filter(|mode| digits(mode, |byte| (b'0'..=b'7').contains(&byte)))
            .and_then(|mode| u32::from_str_radix(mode, 8).ok())
            .ok_or_else(|| format!("{:?} is not an octal mode", raw.mode))?;
        let content = || {
            let hex = raw.crc32c.as_deref().ok_or("it has no crc32c")?;
            let crc32c = Some(hex)
                .filter(|hex| hex.len() == 8 && digits(hex, |byte| byte.is_ascii_hexdigit()))
                .and_then(|hex| u32::from_str_radix(hex, 16).ok())
                .ok_or_else(|| format!("{hex:?} is not a crc32c of 8 hexadecimal digits"))?;
            Ok::<_, String>(FileContent {
                size: raw.size.ok_or("it has no size")?,
                crc32c,
                extents: raw.extents.ok_or("it has no extents")?,
            })
        };
        let body = match raw.r#type {
            RawType::File => FileBody::File(content()?),
            RawType::Extra => FileBody::Extra(content()?),
            RawType::Directory => FileBody::Directory,
            RawType::Link => FileBody::Link {
                target: bytes_of(raw.target, raw.target_hex, "target")?,
            },
        };
        Ok(Self {
            path,
            mode,
            mtime: raw.mtime,
            body,
        })
    }
}

impl Serialize for Extent {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut list = serializer.serialize_seq(None)?;
        match self {
            Self::Data {
                offset,
                length,
                pack,
                frame,
                frame_offset,
            } => {
                list.serialize_element("data")?;
                list.serialize_element(offset)?;
                list.serialize_element(length)?;
                list.serialize_element(pack)?;
                list.serialize_element(frame)?;
                list.serialize_element(frame_offset)?;
            }
            Self::Zero { offset, length } => {
                list.serialize_element("zero")?;
                list.serialize_element(offset)?;
                list.serialize_element(length)?;
            }
            Self::Hole { offset, length } => {
                list.serialize_element("hole")?;
                list.serialize_element(offset)?;
                list.serialize_element(length)?;
            }
        }
        list.end()
    }
}

impl<'de> Deserialize<'de> for Extent {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct List;

        impl<'de> Visitor<'de> for List {
            type Value = Extent;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an extent's list: data, zero or hole and its numbers")
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Extent, A::Error> {
                fn next<'de, A: SeqAccess<'de>, T: Deserialize<'de>>(
                    list: &mut A,
                ) -> Result<T, A::Error> {
                    list.next_element()?
                        .ok_or_else(|| de::Error::custom("the extent's list is too short"))
                }
                let tag: String = next(&mut list)?;
                let (offset, length) = (next(&mut list)?, next(&mut list)?);
                let extent = match tag.as_str() {
                    "data" => Extent::Data {
                        offset,
                        length,
                        pack: next(&mut list)?,
                        frame: next(&mut list)?,
                        frame_offset: next(&mut list)?,
                    },
                    "zero" => Extent::Zero { offset, length },
                    "hole" => Extent::Hole { offset, length },
                    other => {
                        return Err(de::Error::unknown_variant(other, &["data", "zero", "hole"]));
                    }
                };
                match list.next_element::<de::IgnoredAny>()? {
                    None => Ok(extent),
                    Some(_) => Err(de::Error::custom("the extent's list is too long")),
                }
            }
        }

        deserializer.deserialize_seq(List)
    }
}
