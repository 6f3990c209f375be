//! One pass over the tar streams that pg_basebackup gives: content into frames, checksums of files and of pages, and what the backup must
//! remember of it. Runs on a blocking thread.

use std::io::Read;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use tar::{Archive, EntryType};
use walden_pg::Lsn;
use walden_pg::backup_label::BackupLabel;
use walden_pg::control::ControlFile;
use walden_pg::manifest::{ManifestError, ManifestSummary, parse_manifest};
use walden_pg::page::{PageVerdict, verify_page};
use walden_pg::relation_file::RelationFile;

use super::content::ContentWriter;
use super::files::{Item, ItemBody, Items, ManifestMismatch, now};
use crate::pipeline::{Closed, ContentSink};
use crate::progress::Progress;

pub(super) const MANIFEST: &[u8] = b"backup_manifest";
const LABEL: &[u8] = b"backup_label";
const CONTROL: &[u8] = b"global/pg_control";

/// Most bytes of a file that is kept in memory to be understood.
const MAX_KEPT: u64 = 64 * 1024;
/// Bytes that are read at a time: a multiple of every block size.
const PORTION: usize = 256 * 1024;
/// Most doubtful blocks that are remembered one by one.
const MAX_DOUBTS: usize = 100_000;

/// A configuration file that stands outside PGDATA.
#[derive(Debug, Clone)]
pub struct Extra {
    /// Its absolute path on the server.
    pub path: String,
    /// All of it.
    pub content: Vec<u8>,
}

/// A block whose checksum did not fit when it streamed by. It may have been in the middle of being written.
#[derive(Debug, Clone)]
pub(super) struct Doubt {
    pub path: Box<[u8]>,
    /// In the relation fork, over all its files.
    pub block: u32,
    /// Where it begins in this file.
    pub offset: u64,
    pub lsn: Lsn,
    pub stored: u16,
    pub computed: u16,
}

/// What the other threads may look at while the stream runs.
#[derive(Debug, Default)]
pub(super) struct Gauge {
    /// Whether `pg_control` came, which PostgreSQL sends last: what is missing now is the manifest alone.
    pub data_done: AtomicBool,
    /// Whether the reading gave up.
    pub failed: AtomicBool,
}

/// What can go wrong on the way.
#[derive(Debug, thiserror::Error)]
pub enum StreamError {
    /// The tar stream cannot be read.
    #[error("the stream from pg_basebackup is cut off or not a tar archive")]
    Tar(#[source] std::io::Error),
    /// An entry that no PostgreSQL sends.
    #[error("the stream holds {path:?}, a {what}, which no PostgreSQL sends")]
    Strange {
        /// Its path.
        path: String,
        /// Its type.
        what: String,
    },
    /// The packs are no longer taken; whoever takes them knows why.
    #[error(transparent)]
    Closed(#[from] Closed),
    /// A file that must be understood is not.
    #[error("{file} of the backup cannot be understood")]
    Understand {
        /// The file.
        file: &'static str,
        /// Why.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// A file that must be there is not.
    #[error("the backup has no {0}: the stream ended too early")]
    Lacks(&'static str),
    /// Manifest and stream disagree.
    #[error("the backup is not what its manifest says")]
    Manifest(#[source] ManifestMismatch),
}

impl From<ManifestError> for StreamError {
    fn from(error: ManifestError) -> Self {
        not_understood("backup_manifest", error)
    }
}

/// What is known once everything has streamed by.
#[derive(Debug)]
pub(super) struct Streamed {
    pub items: Items,
    pub doubts: Vec<Doubt>,
    /// Doubtful blocks beyond those in `doubts`.
    pub more_doubts: u64,
    pub label: BackupLabel,
    pub control: ControlFile,
    pub manifest: ManifestSummary,
}

/// How pages are checked.
#[derive(Debug, Clone, Copy)]
pub(super) struct PageSettings {
    /// Whether the cluster has data checksums.
    pub checksums: bool,
    /// `block_size`, in bytes.
    pub block_size: usize,
    /// Blocks in each file of a relation.
    pub segment_blocks: u32,
}

pub(super) struct Streamer {
    content: ContentWriter,
    items: Items,
    doubts: Vec<Doubt>,
    more_doubts: u64,
    label: Option<BackupLabel>,
    control: Option<ControlFile>,
    manifest: Option<ManifestSummary>,
    pages: PageSettings,
    gauge: Arc<Gauge>,
    progress: Arc<dyn Progress>,
    buffer: Vec<u8>,
}

impl Streamer {
    pub fn new(
        sink: ContentSink,
        pages: PageSettings,
        gauge: Arc<Gauge>,
        progress: Arc<dyn Progress>,
    ) -> Self {
        Streamer {
            content: ContentWriter::new(sink),
            items: Items::default(),
            doubts: Vec::new(),
            more_doubts: 0,
            label: None,
            control: None,
            manifest: None,
            pages,
            gauge,
            progress,
            buffer: vec![0; PORTION],
        }
    }

    /// Takes one tar stream to its end. `below` is where its paths stand: nothing, or `pg_tblspc/<oid>`.
    pub fn tar(&mut self, stream: impl Read, below: &str) -> Result<(), StreamError> {
        let mut archive = Archive::new(stream);
        for entry in archive.entries().map_err(StreamError::Tar)? {
            let entry = entry.map_err(StreamError::Tar)?;
            let header = entry.header();
            let mode = header.mode().map_err(StreamError::Tar)? & 0o7777;
            let mtime = header.mtime().map_err(StreamError::Tar)? as i64;
            let kind = header.entry_type();
            let path = full_path(below, &entry.path_bytes());
            if path.is_empty() {
                continue;
            }
            match kind {
                EntryType::Directory => self.push(path, mode, mtime, ItemBody::Directory),
                EntryType::Symlink => {
                    let target = entry.link_name_bytes().unwrap_or_default().into_owned();
                    self.push(path, mode, mtime, ItemBody::Link(target.into()));
                }
                EntryType::Regular if path == MANIFEST => self.manifest(entry, mode, mtime)?,
                EntryType::Regular => {
                    let size = entry.size();
                    self.file(entry, path, size, mode, mtime)?;
                }
                other => {
                    let path = String::from_utf8_lossy(&path).into_owned();
                    return Err(StreamError::Strange {
                        path,
                        what: format!("{other:?}"),
                    });
                }
            }
        }
        Ok(())
    }

    /// A link that PostgreSQL does not send, because `tablespace_map` stands for it.
    pub fn tablespace_link(&mut self, oid: u32, location: &str) {
        let path = format!("pg_tblspc/{oid}").into_bytes();
        self.push(
            path,
            0o777,
            now(),
            ItemBody::Link(location.as_bytes().into()),
        );
    }

    fn push(&mut self, path: Vec<u8>, mode: u32, mtime: i64, body: ItemBody) {
        self.items.push(Item {
            path: path.into(),
            mode,
            mtime,
            body,
            listed: false,
        });
    }

    fn file(
        &mut self,
        mut stream: impl Read,
        path: Vec<u8>,
        size: u64,
        mode: u32,
        mtime: i64,
    ) -> Result<(), StreamError> {
        let position = self.content.position();
        let first_block = RelationFile::parse(&path)
            .filter(|_| self.pages.checksums)
            .and_then(|file| file.first_block(self.pages.segment_blocks));
        let mut kept = ((path == LABEL || path == CONTROL) && size <= MAX_KEPT).then(Vec::new);
        let (mut crc32c, mut offset) = (0, 0_u64);
        while offset < size {
            let length = usize::try_from(size - offset)
                .unwrap_or(usize::MAX)
                .min(PORTION);
            let portion = self.buffer.get_mut(..length).unwrap_or_default();
            stream.read_exact(portion).map_err(StreamError::Tar)?;
            crc32c = crc32c::crc32c_append(crc32c, portion);
            self.content.write(portion)?;
            if let Some(kept) = &mut kept {
                kept.extend_from_slice(portion);
            }
            if let Some(first) = first_block {
                self.check_pages(&path, first, offset, length);
            }
            offset += length as u64;
            self.progress.advance(length as u64);
        }
        if let Some(kept) = kept {
            if path == LABEL {
                self.label =
                    Some(BackupLabel::parse(&kept).map_err(|e| not_understood("backup_label", e))?);
            } else {
                self.control = Some(
                    ControlFile::parse(&kept)
                        .map_err(|e| not_understood("global/pg_control", e))?,
                );
                self.gauge.data_done.store(true, Ordering::Relaxed);
            }
        }
        self.push(
            path,
            mode,
            mtime,
            ItemBody::File {
                size,
                crc32c,
                position,
            },
        );
        Ok(())
    }

    fn check_pages(&mut self, path: &[u8], first_block: u32, offset: u64, length: usize) {
        let size = self.pages.block_size;
        let first_here = u64::from(first_block) + offset / size as u64;
        for (index, page) in self
            .buffer
            .get(..length)
            .unwrap_or_default()
            .chunks_exact(size)
            .enumerate()
        {
            let Ok(block) = u32::try_from(first_here + index as u64) else {
                return;
            };
            let PageVerdict::Mismatch {
                stored,
                computed,
                lsn,
            } = verify_page(page, block)
            else {
                continue;
            };
            if self.doubts.len() == MAX_DOUBTS {
                self.more_doubts += 1;
                continue;
            }
            let offset = offset + (index * size) as u64;
            self.doubts.push(Doubt {
                path: path.into(),
                block,
                offset,
                lsn,
                stored,
                computed,
            });
        }
    }

    /// The manifest is stored like any file, and read by its parser as it passes.
    pub fn manifest(
        &mut self,
        stream: impl Read,
        mode: u32,
        mtime: i64,
    ) -> Result<(), StreamError> {
        let position = self.content.position();
        let items = &mut self.items;
        let mut tee = Tee {
            stream,
            content: &mut self.content,
            crc32c: 0,
            size: 0,
        };
        let summary = parse_manifest(&mut tee, |file| {
            items.check(&file).map_err(StreamError::Manifest)
        })?;
        // What the parser did not need to look at belongs to the file all the same.
        std::io::copy(&mut tee, &mut std::io::sink()).map_err(StreamError::Tar)?;
        let (crc32c, size) = (tee.crc32c, tee.size);
        self.items.check_complete().map_err(StreamError::Manifest)?;
        self.manifest = Some(summary);
        self.push(
            MANIFEST.to_vec(),
            mode,
            mtime,
            ItemBody::File {
                size,
                crc32c,
                position,
            },
        );
        Ok(())
    }

    /// Adds the extras and ends the stream of content.
    pub fn finish(mut self, extras: Vec<Extra>) -> Result<Streamed, StreamError> {
        let label = self
            .label
            .take()
            .ok_or(StreamError::Lacks("backup_label"))?;
        let control = self
            .control
            .take()
            .ok_or(StreamError::Lacks("global/pg_control"))?;
        let manifest = self
            .manifest
            .take()
            .ok_or(StreamError::Lacks("backup_manifest"))?;
        for extra in extras {
            let (position, size) = (self.content.position(), extra.content.len() as u64);
            self.content.write(&extra.content)?;
            let crc32c = crc32c::crc32c(&extra.content);
            self.push(
                extra.path.into_bytes(),
                0o600,
                now(),
                ItemBody::Extra {
                    size,
                    crc32c,
                    position,
                },
            );
        }
        let Streamer {
            content,
            items,
            doubts,
            more_doubts,
            ..
        } = self;
        content.finish()?;
        Ok(Streamed {
            items,
            doubts,
            more_doubts,
            label,
            control,
            manifest,
        })
    }
}

fn not_understood(
    file: &'static str,
    source: impl std::error::Error + Send + Sync + 'static,
) -> StreamError {
    StreamError::Understand {
        file,
        source: Box::new(source),
    }
}

/// An entry's path below PGDATA, without the `./` and the final `/` that tar may have.
fn full_path(below: &str, path: &[u8]) -> Vec<u8> {
    let path = path.strip_prefix(b"./").unwrap_or(path);
    let path = path.strip_suffix(b"/").unwrap_or(path);
    let path = if path == b"." { b"" } else { path };
    match (below.is_empty(), path.is_empty()) {
        (true, _) => path.to_vec(),
        (false, true) => below.as_bytes().to_vec(),
        (false, false) => [below.as_bytes(), b"/", path].concat(),
    }
}

/// Gives what is read to the content stream, too.
struct Tee<'a, R> {
    stream: R,
    content: &'a mut ContentWriter,
    crc32c: u32,
    size: u64,
}

impl<R: Read> Read for Tee<'_, R> {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        let length = self.stream.read(buffer)?;
        let read = buffer.get(..length).unwrap_or_default();
        self.content.write(read).map_err(std::io::Error::other)?;
        self.crc32c = crc32c::crc32c_append(self.crc32c, read);
        self.size += length as u64;
        Ok(length)
    }
}
