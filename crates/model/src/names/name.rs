//! One name as PostgreSQL has it, and how it is shown.

use std::fmt::{self, Write as _};

use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

use crate::digest::{bytes_of_hex, hex_of};

/// What must be quoted although it looks harmless: the keywords of versions 14 to 18 that are not unreserved (parser/kwlist.h).
const KEYWORDS: &str = "\
    all analyse analyze and any array as asc asymmetric authorization between bigint binary bit boolean both case cast char \
    character check coalesce collate collation column concurrently constraint create cross current_catalog current_date \
    current_role current_schema current_time current_timestamp current_user dec decimal default deferrable desc distinct do else \
    end except exists extract false fetch float for foreign freeze from full grant greatest group grouping having ilike in \
    initially inner inout int integer intersect interval into is isnull join json json_array json_arrayagg json_exists json_object \
    json_objectagg json_query json_scalar json_serialize json_table json_value lateral leading least left like limit localtime \
    localtimestamp merge_action national natural nchar none normalize not notnull null nullif numeric offset on only or order out \
    outer overlaps overlay placing position precision primary real references returning right row select session_user setof \
    similar smallint some substring symmetric system_user table tablesample then time timestamp to trailing treat trim true union \
    unique user using values varchar variadic verbose when where window with xmlattributes xmlconcat xmlelement xmlexists \
    xmlforest xmlnamespaces xmlparse xmlpi xmlroot xmlserialize xmltable";

/// A name of a database, a schema or a relation: bytes, for PostgreSQL does not promise UTF-8. In JSON a string, or `{"hex": "…"}` where it
/// is not UTF-8.
///
/// `Display` writes an SQL identifier as `quote_ident` does, quoted only where it must be. A name with characters that have no shape
/// of their own, such as line feeds and the marks that turn the direction of writing, is written in SQL's other form, `U&"a\000Ab"`,
/// so that no name can tamper with what is shown around it. What is not UTF-8 is shown replaced.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Name(Box<[u8]>);

impl Name {
    /// The name as bytes.
    #[must_use]
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }

    /// The name as text, unquoted: what is not UTF-8 in it is replaced.
    #[must_use]
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.0).into_owned()
    }
}

impl From<Vec<u8>> for Name {
    fn from(bytes: Vec<u8>) -> Self {
        Self(bytes.into())
    }
}

impl From<&str> for Name {
    fn from(text: &str) -> Self {
        Self(text.as_bytes().into())
    }
}

impl fmt::Debug for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Name({self})")
    }
}

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let text = self.text();
        if is_plain(&text) {
            return f.write_str(&text);
        }
        if !text.chars().any(has_no_shape) {
            return write!(f, "\"{}\"", text.replace('"', "\"\""));
        }
        f.write_str("U&\"")?;
        for character in text.chars() {
            match (character, u32::from(character)) {
                ('"', _) => f.write_str("\"\"")?,
                ('\\', _) => f.write_str("\\\\")?,
                (shaped, _) if !has_no_shape(shaped) => f.write_char(shaped)?,
                (_, code @ ..=0xFFFF) => write!(f, "\\{code:04X}")?,
                (_, code) => write!(f, "\\+{code:06X}")?,
            }
        }
        f.write_char('"')
    }
}

/// Whether `quote_identifier` (ruleutils.c) leaves it unquoted.
fn is_plain(text: &str) -> bool {
    let begins = text.starts_with(|first: char| first.is_ascii_lowercase() || first == '_');
    let plain = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'_';
    begins && text.bytes().all(plain) && !KEYWORDS.split(' ').any(|keyword| keyword == text)
}

/// Control and format characters, and what joins the character before it.
fn has_no_shape(character: char) -> bool {
    !matches!(character, '"' | '\'' | '\\') && character.escape_debug().len() > 1
}

impl Serialize for Name {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match std::str::from_utf8(&self.0) {
            Ok(text) => serializer.serialize_str(text),
            Err(_) => Raw::Hex {
                hex: hex_of(&self.0),
            }
            .serialize(serializer),
        }
    }
}

impl<'de> Deserialize<'de> for Name {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let bytes = match Raw::deserialize(deserializer)? {
            Raw::Text(text) => text.into_bytes(),
            Raw::Hex { hex } => bytes_of_hex(&hex).ok_or_else(|| {
                de::Error::custom("a name's hex is not lower-case hexadecimal digits")
            })?,
        };
        Ok(Self(bytes.into()))
    }
}

#[derive(Serialize, Deserialize)]
#[serde(untagged)]
enum Raw {
    Text(String),
    Hex { hex: String },
}
