//! `backup_manifest`: every file of a base backup with its size and checksum, and the WAL that the backup needs
//! (written by `backup/backup_manifest.c`, read by `common/parse_manifest.c`). Versions 1 (14 to 16) and 2 (17, 18).

use std::fmt;
use std::io::{self, BufReader, Read};

use serde::Deserialize;
use serde::de::{DeserializeSeed, Deserializer, MapAccess, SeqAccess, Visitor};
use sha2::{Digest, Sha256};

use crate::{Lsn, SystemIdentifier, TimelineId};

/// Longest line taken, in bytes. PostgreSQL gives each file a line of its own and no path more than 1024 bytes.
const LINE_LIMIT: usize = 64 << 10;

/// One file of the backup.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ManifestFile {
    /// The path relative to the data directory, as the server's file system has it; `Encoded-Path` is decoded.
    /// Nothing here proves that it stays inside of that directory.
    pub path: Vec<u8>,
    /// Bytes of the file.
    pub size: u64,
    /// Its checksum, where the backup was taken with checksums.
    pub checksum: Option<ManifestChecksum>,
}

/// A file's checksum.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ManifestChecksum {
    /// PostgreSQL's name of it: `CRC32C`, `SHA224`, `SHA256`, `SHA384` or `SHA512`.
    pub algorithm: String,
    /// Its bytes in the manifest's order. Those of CRC32C are the number's little-endian bytes.
    pub bytes: Vec<u8>,
}

/// What stands beside the files.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ManifestSummary {
    /// The manifest's own version.
    pub version: u64,
    /// The cluster. Version 2 alone says it.
    pub system_identifier: Option<SystemIdentifier>,
    /// The log that recovery from this backup needs, stretch by stretch.
    pub wal_ranges: Vec<WalRange>,
    /// How many files were listed.
    pub files: u64,
}

/// A stretch of the log on one timeline.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct WalRange {
    /// The timeline.
    pub timeline: TimelineId,
    /// The first byte needed.
    pub start: Lsn,
    /// The first byte that is not needed any more, never before `start`.
    pub end: Lsn,
}

/// The bytes are no backup manifest that can be believed.
#[derive(Debug, thiserror::Error)]
pub enum ManifestError {
    /// The manifest could not be read to its end.
    #[error("the backup manifest could not be read")]
    Read(#[source] io::Error),
    /// It is not the JSON that a manifest is.
    #[error("the backup manifest is damaged or unknown")]
    Syntax(#[source] serde_json::Error),
    /// It is of a version that is not known, or does not begin with its version.
    #[error("the backup manifest does not begin with a known version (1 or 2): {0:?}")]
    Version(Option<u64>),
    /// An entry contradicts itself.
    #[error("the backup manifest's entry for {path:?} is damaged: {why}")]
    File {
        /// The path as it stands there.
        path: String,
        /// What is wrong.
        why: &'static str,
    },
    /// A stretch of WAL ends before it starts.
    #[error("the backup manifest needs WAL from {start} to {end}, which is backwards")]
    Range {
        /// The start.
        start: Lsn,
        /// The end.
        end: Lsn,
    },
    /// It carries no checksum of itself, or not in a last line of its own.
    #[error("the backup manifest does not end with its own checksum: it is cut off or was changed")]
    NoChecksum,
    /// Its checksum does not fit.
    #[error(
        "the backup manifest was changed: its checksum is {stored}, its content has {computed}"
    )]
    Checksum {
        /// What stands there.
        stored: String,
        /// What the content has.
        computed: String,
    },
}

/// Reads a manifest to its end in bounded memory, and hands out each file as it comes.
///
/// The checksum stands last: until this returns, everything that `on_file` was given is unproven. An error of `on_file`
/// ends the reading and is returned as it is.
pub fn parse_manifest<R, E>(
    reader: R,
    on_file: impl FnMut(ManifestFile) -> Result<(), E>,
) -> Result<ManifestSummary, E>
where
    R: Read,
    E: From<ManifestError>,
{
    let mut reader = BufReader::with_capacity(LINE_LIMIT, Hashing::new(reader));
    let mut sink = Sink {
        on_file,
        failure: None,
        version: None,
        system_identifier: None,
        wal_ranges: Vec::new(),
        files: 0,
        checksum: None,
    };
    let mut json = serde_json::Deserializer::from_reader(&mut reader);
    let read = Document(&mut sink)
        .deserialize(&mut json)
        .and_then(|()| json.end());
    if let Some(failure) = sink.failure {
        return Err(failure);
    }
    read.map_err(|error| {
        if error.is_io() {
            ManifestError::Read(error.into())
        } else {
            ManifestError::Syntax(error)
        }
    })?;
    let version = sink.version.ok_or(ManifestError::Version(None))?;
    reader.into_inner().verify(sink.checksum)?;
    Ok(ManifestSummary {
        version,
        system_identifier: sink.system_identifier,
        wal_ranges: sink.wal_ranges,
        files: sink.files,
    })
}

/// Passes bytes on, and keeps the hash of all that came before the current line.
struct Hashing<R> {
    inner: R,
    hash: Sha256,
    before_line: Sha256,
    at_line_start: bool,
    line_length: usize,
    lines: u64,
}

impl<R> Hashing<R> {
    fn new(inner: R) -> Self {
        Hashing {
            inner,
            hash: Sha256::new(),
            before_line: Sha256::new(),
            at_line_start: true,
            line_length: 0,
            lines: 0,
        }
    }

    /// `verify_manifest_checksum`: the last line holds the hash of all lines before it.
    fn verify(self, stored: Option<String>) -> Result<(), ManifestError> {
        let stored = stored
            .filter(|_| self.at_line_start && self.lines >= 2)
            .ok_or(ManifestError::NoChecksum)?;
        let computed = self.before_line.finalize();
        if unhex(&stored).is_some_and(|stored| stored == computed[..]) {
            return Ok(());
        }
        let computed = computed.iter().map(|byte| format!("{byte:02x}")).collect();
        Err(ManifestError::Checksum { stored, computed })
    }
}

impl<R: Read> Read for Hashing<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.inner.read(buffer)?;
        for part in buffer
            .get(..count)
            .unwrap_or_default()
            .split_inclusive(|&b| b == b'\n')
        {
            if self.at_line_start {
                self.before_line = self.hash.clone();
                self.line_length = 0;
            }
            self.hash.update(part);
            self.line_length += part.len();
            if self.line_length > LINE_LIMIT {
                return Err(io::Error::new(
                    io::ErrorKind::InvalidData,
                    format!("line {} has more than {LINE_LIMIT} bytes", self.lines + 1),
                ));
            }
            self.at_line_start = part.ends_with(b"\n");
            self.lines += u64::from(self.at_line_start);
        }
        Ok(count)
    }
}

struct Sink<F, E> {
    on_file: F,
    failure: Option<E>,
    version: Option<u64>,
    system_identifier: Option<SystemIdentifier>,
    wal_ranges: Vec<WalRange>,
    files: u64,
    checksum: Option<String>,
}

impl<F, E: From<ManifestError>> Sink<F, E> {
    /// Ends the reading: what failed is kept here, since a deserializer passes on text alone.
    fn fail<T, D: serde::de::Error>(&mut self, failure: E) -> Result<T, D> {
        self.failure = Some(failure);
        Err(D::custom("ended"))
    }
}

#[derive(Deserialize)]
#[serde(field_identifier)]
enum Field {
    #[serde(rename = "PostgreSQL-Backup-Manifest-Version")]
    Version,
    #[serde(rename = "System-Identifier")]
    SystemIdentifier,
    #[serde(rename = "Files")]
    Files,
    #[serde(rename = "WAL-Ranges")]
    WalRanges,
    #[serde(rename = "Manifest-Checksum")]
    Checksum,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "PascalCase")]
struct RawFile {
    path: Option<String>,
    #[serde(rename = "Encoded-Path")]
    encoded_path: Option<String>,
    size: u64,
    #[serde(rename = "Last-Modified")]
    _last_modified: Option<serde::de::IgnoredAny>,
    #[serde(rename = "Checksum-Algorithm")]
    algorithm: Option<String>,
    checksum: Option<String>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawRange {
    #[serde(rename = "Timeline")]
    timeline: TimelineId,
    #[serde(rename = "Start-LSN")]
    start: Lsn,
    #[serde(rename = "End-LSN")]
    end: Lsn,
}

impl TryFrom<RawFile> for ManifestFile {
    type Error = ManifestError;

    fn try_from(raw: RawFile) -> Result<Self, ManifestError> {
        let damaged = |path: &str, why| {
            Err(ManifestError::File {
                path: path.to_owned(),
                why,
            })
        };
        let (written, path) = match (raw.path, raw.encoded_path) {
            (Some(path), None) => (path.clone(), Some(path.into_bytes())),
            (None, Some(encoded)) => {
                let path = unhex(&encoded);
                (encoded, path)
            }
            (None, None) => return damaged("", "it has no path"),
            (Some(path), Some(_)) => return damaged(&path, "it has two paths"),
        };
        let Some(path) = path else {
            return damaged(&written, "its path is not hexadecimal");
        };
        if path.is_empty() || path.contains(&0) {
            return damaged(&written, "no file can have this path");
        }
        let checksum = match (raw.algorithm, raw.checksum) {
            (None, None) => None,
            (Some(algorithm), Some(text)) => match unhex(&text) {
                Some(bytes) => Some(ManifestChecksum { algorithm, bytes }),
                None => return damaged(&written, "its checksum is not hexadecimal"),
            },
            _ => return damaged(&written, "a checksum and its algorithm go together"),
        };
        Ok(ManifestFile {
            path,
            size: raw.size,
            checksum,
        })
    }
}

struct Document<'a, F, E>(&'a mut Sink<F, E>);
struct Files<'a, F, E>(&'a mut Sink<F, E>);

impl<'de, F: FnMut(ManifestFile) -> Result<(), E>, E: From<ManifestError>> DeserializeSeed<'de>
    for Document<'_, F, E>
{
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_map(self)
    }
}

impl<'de, F: FnMut(ManifestFile) -> Result<(), E>, E: From<ManifestError>> Visitor<'de>
    for Document<'_, F, E>
{
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a backup manifest")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<(), A::Error> {
        let sink = self.0;
        while let Some(field) = map.next_key::<Field>()? {
            match field {
                Field::Version => {
                    let version = map.next_value()?;
                    if !matches!(version, 1 | 2) {
                        return sink.fail(ManifestError::Version(Some(version)).into());
                    }
                    sink.version = Some(version);
                }
                _ if sink.version.is_none() => {
                    return sink.fail(ManifestError::Version(None).into());
                }
                Field::SystemIdentifier => {
                    sink.system_identifier = Some(SystemIdentifier(map.next_value()?))
                }
                Field::Files => map.next_value_seed(Files(sink))?,
                Field::WalRanges => {
                    for RawRange {
                        timeline,
                        start,
                        end,
                    } in map.next_value::<Vec<RawRange>>()?
                    {
                        if end < start {
                            return sink.fail(ManifestError::Range { start, end }.into());
                        }
                        sink.wal_ranges.push(WalRange {
                            timeline,
                            start,
                            end,
                        });
                    }
                }
                Field::Checksum => sink.checksum = Some(map.next_value()?),
            }
        }
        Ok(())
    }
}

impl<'de, F: FnMut(ManifestFile) -> Result<(), E>, E: From<ManifestError>> DeserializeSeed<'de>
    for Files<'_, F, E>
{
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_seq(self)
    }
}

impl<'de, F: FnMut(ManifestFile) -> Result<(), E>, E: From<ManifestError>> Visitor<'de>
    for Files<'_, F, E>
{
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a list of files")
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut files: A) -> Result<(), A::Error> {
        while let Some(raw) = files.next_element::<RawFile>()? {
            let given = ManifestFile::try_from(raw)
                .map_err(E::from)
                .and_then(|file| (self.0.on_file)(file));
            if let Err(failure) = given {
                return self.0.fail(failure);
            }
            self.0.files += 1;
        }
        Ok(())
    }
}

fn unhex(text: &str) -> Option<Vec<u8>> {
    let (pairs, rest) = text.as_bytes().as_chunks::<2>();
    let digit = |byte: u8| char::from(byte).to_digit(16);
    let byte = |[high, low]: &[u8; 2]| u8::try_from(digit(*high)? << 4 | digit(*low)?).ok();
    if rest.is_empty() {
        pairs.iter().map(byte).collect()
    } else {
        None
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn sealed(body: &str) -> String {
        let hash: String = Sha256::digest(body.as_bytes())
            .iter()
            .map(|byte| format!("{byte:02x}"))
            .collect();
        format!("{body}\"Manifest-Checksum\": \"{hash}\"}}\n")
    }

    fn parse(text: &str) -> Result<(ManifestSummary, Vec<ManifestFile>), ManifestError> {
        let mut files = Vec::new();
        let summary = parse_manifest(text.as_bytes(), |file| {
            files.push(file);
            Ok::<(), ManifestError>(())
        })?;
        Ok((summary, files))
    }

    fn with_file(file: &str) -> Result<(ManifestSummary, Vec<ManifestFile>), ManifestError> {
        parse(&sealed(&format!(
            "{{ \"PostgreSQL-Backup-Manifest-Version\": 1,\n\"Files\": [\n{file}\n],\n\"WAL-Ranges\": [],\n"
        )))
    }

    #[test]
    fn a_file_needs_one_path_a_size_and_both_or_neither_of_checksum_and_algorithm() {
        assert_eq!(
            with_file(r#"{"Encoded-Path": "612F62", "Size": 3}"#)
                .unwrap()
                .1,
            [ManifestFile {
                path: b"a/b".to_vec(),
                size: 3,
                checksum: None
            }]
        );
        for damaged in [
            r#"{"Size": 3}"#,
            r#"{"Path": "a", "Encoded-Path": "61", "Size": 3}"#,
            r#"{"Encoded-Path": "6", "Size": 3}"#,
            r#"{"Encoded-Path": "6x", "Size": 3}"#,
            r#"{"Encoded-Path": "00", "Size": 3}"#,
            r#"{"Path": "", "Size": 3}"#,
            r#"{"Path": "a", "Size": 3, "Checksum": "00"}"#,
            r#"{"Path": "a", "Size": 3, "Checksum-Algorithm": "CRC32C"}"#,
            r#"{"Path": "a", "Size": 3, "Checksum-Algorithm": "CRC32C", "Checksum": "+1"}"#,
        ] {
            assert!(
                matches!(with_file(damaged), Err(ManifestError::File { .. })),
                "{damaged} was taken"
            );
        }
        for syntax in [
            r#"{"Path": "a"}"#,
            r#"{"Path": "a", "Size": -1}"#,
            r#"{"Path": "a", "Size": 1, "Other": 1}"#,
            "[]",
            "",
        ] {
            let result = with_file(syntax);
            assert!(
                matches!(result, Err(ManifestError::Syntax(_)))
                    || (syntax.is_empty() && result.is_ok()),
                "{syntax} was taken"
            );
        }
    }

    #[test]
    fn the_version_comes_first_and_is_a_known_one() {
        for (text, found) in [
            ("{\"PostgreSQL-Backup-Manifest-Version\": 3,\n", Some(3)),
            ("{\"Files\": [],\n", None),
            ("{\n", None),
        ] {
            let result = parse(&sealed(text));
            assert!(
                matches!(&result, Err(ManifestError::Version(version)) if *version == found),
                "{text}: {result:?}"
            );
        }
    }

    #[test]
    fn ranges_do_not_run_backwards() {
        let body = "{\"PostgreSQL-Backup-Manifest-Version\": 2,\n\"WAL-Ranges\": [{\"Timeline\": 1, \"Start-LSN\": \"0/2\", \"End-LSN\": \"0/1\"}],\n";
        assert!(matches!(
            parse(&sealed(body)),
            Err(ManifestError::Range {
                start: Lsn(2),
                end: Lsn(1)
            })
        ));
    }

    #[test]
    fn a_checksum_that_is_not_in_a_line_of_its_own_proves_nothing() {
        let empty = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";
        let one_line = format!(
            "{{\"PostgreSQL-Backup-Manifest-Version\": 1, \"Manifest-Checksum\": \"{empty}\"}}\n"
        );
        assert!(matches!(parse(&one_line), Err(ManifestError::NoChecksum)));
        let whole = sealed("{\"PostgreSQL-Backup-Manifest-Version\": 1,\n");
        assert!(parse(&whole).is_ok());
        assert!(matches!(
            parse(whole.trim_end()),
            Err(ManifestError::NoChecksum)
        ));
        assert!(matches!(
            parse("{\"PostgreSQL-Backup-Manifest-Version\": 1\n}\n"),
            Err(ManifestError::NoChecksum)
        ));
        assert!(matches!(
            parse(&format!("{whole}\n")),
            Err(ManifestError::Checksum { .. })
        ));
        assert!(matches!(
            parse(&format!("{whole}x\n")),
            Err(ManifestError::Syntax(_))
        ));
    }

    #[test]
    fn an_endless_line_is_refused_before_it_fills_the_memory() {
        let endless = io::Read::chain(
            "{\"PostgreSQL-Backup-Manifest-Version\": 1, \"Files\": [{\"Path\": \"".as_bytes(),
            io::repeat(b'x'),
        );
        let result = parse_manifest(endless, |_| Ok::<(), ManifestError>(()));
        assert!(matches!(result, Err(ManifestError::Read(_))), "{result:?}");
    }

    #[test]
    fn the_callers_own_error_comes_back() {
        let text = sealed(
            "{\"PostgreSQL-Backup-Manifest-Version\": 1,\n\"Files\": [{\"Path\": \"a\", \"Size\": 1}],\n",
        );
        let result = parse_manifest(text.as_bytes(), |_| Err(ManifestError::Version(Some(77))));
        assert!(
            matches!(result, Err(ManifestError::Version(Some(77)))),
            "{result:?}"
        );
    }

    proptest! {
        #[test]
        fn files_come_back_as_they_were_written(files in prop::collection::vec((prop::collection::vec(1u8.., 1..30), any::<u64>()), 0..20)) {
            let lines: Vec<String> = files.iter().map(|(path, size)| {
                let hex: String = path.iter().map(|byte| format!("{byte:02x}")).collect();
                format!("{{\"Encoded-Path\": \"{hex}\", \"Size\": {size}}}")
            }).collect();
            let (summary, found) = with_file(&lines.join(",\n")).unwrap();
            prop_assert_eq!(summary.files, files.len() as u64);
            prop_assert_eq!(found.into_iter().map(|file| (file.path, file.size)).collect::<Vec<_>>(), files);
        }

        #[test]
        fn no_bytes_panic_and_no_changed_byte_goes_unnoticed(bytes: Vec<u8>, at: prop::sample::Index, byte: u8) {
            let on_file = |_| Ok::<(), ManifestError>(());
            let _ = parse_manifest(&bytes[..], on_file);
            let mut text = sealed("{\"PostgreSQL-Backup-Manifest-Version\": 2,\n\"System-Identifier\": 7,\n\"Files\": [{\"Path\": \"a\", \"Size\": 1}],\n").into_bytes();
            let last_line = text.len() - 90;
            let at = at.index(last_line);
            prop_assume!(text[at] != byte);
            text[at] = byte;
            prop_assert!(parse_manifest(&text[..], on_file).is_err(), "byte {} could be changed", at);
        }
    }
}
