//! The files of a backup as they stream by: remembered compactly, held against the manifest, written as the file map.

use jiff::Timestamp;
use walden_model::{FileBody, FileContent, FileEntry, HeadKind, ShardRef};
use walden_pg::manifest::ManifestFile;

use super::BackupError;
use super::content::{ObjectWriter, Packs};
use super::shard::Shard;
use crate::codec::FrameCompressor;

/// One entry of the tar stream. A million of them are in memory at once, so it is small.
#[derive(Debug)]
pub(super) struct Item {
    pub path: Box<[u8]>,
    pub mode: u32,
    pub mtime: i64,
    pub body: ItemBody,
    /// Whether the manifest lists it.
    pub listed: bool,
}

#[derive(Debug)]
pub(super) enum ItemBody {
    Directory,
    Link(Box<[u8]>),
    File {
        size: u64,
        crc32c: u32,
        position: u64,
    },
    Extra {
        size: u64,
        crc32c: u32,
        position: u64,
    },
}

/// Everything that streamed by.
#[derive(Debug, Default)]
pub(super) struct Items {
    items: Vec<Item>,
    sorted: bool,
}

/// The manifest and what arrived do not agree: the stream was damaged or cut, or there is a mistake in Walden.
#[derive(Debug, thiserror::Error)]
pub enum ManifestMismatch {
    /// In the manifest alone.
    #[error("the manifest lists {0}, which did not arrive")]
    Missing(String),
    /// In the stream alone.
    #[error("{0} arrived, but the manifest does not list it")]
    Surplus(String),
    /// Both have it, differently.
    #[error("{path} arrived with {found}, the manifest says {expected}")]
    Differs {
        /// The file.
        path: String,
        /// What arrived.
        found: String,
        /// What the manifest says.
        expected: String,
    },
}

impl Items {
    pub fn push(&mut self, item: Item) {
        self.items.push(item);
        self.sorted = false;
    }

    fn sort(&mut self) {
        if !self.sorted {
            self.items.sort_unstable_by(|a, b| a.path.cmp(&b.path));
            self.sorted = true;
        }
    }

    /// Holds one line of the manifest against what arrived.
    pub fn check(&mut self, listed: &ManifestFile) -> Result<(), ManifestMismatch> {
        self.sort();
        let path = || String::from_utf8_lossy(&listed.path).into_owned();
        let found = self
            .items
            .binary_search_by(|item| item.path.as_ref().cmp(listed.path.as_slice()));
        let item = found.ok().and_then(|at| self.items.get_mut(at));
        let Some(Item {
            body: ItemBody::File { size, crc32c, .. },
            listed: seen,
            ..
        }) = item
        else {
            return Err(ManifestMismatch::Missing(path()));
        };
        // PostgreSQL prints the four bytes as they stand in memory (backup_manifest.c, AddFileToBackupManifest).
        let expected = listed
            .checksum
            .as_ref()
            .map(|checksum| checksum.bytes.as_slice());
        if *size != listed.size || expected != Some(crc32c.to_le_bytes().as_slice()) {
            let expected = listed
                .checksum
                .as_ref()
                .map(|c| format!("{} {:02x?}", c.algorithm, c.bytes));
            return Err(ManifestMismatch::Differs {
                path: path(),
                found: format!("{size} bytes and CRC32C {:02x?}", crc32c.to_le_bytes()),
                expected: format!(
                    "{} bytes and {}",
                    listed.size,
                    expected.unwrap_or_else(|| "no checksum".to_owned())
                ),
            });
        }
        *seen = true;
        Ok(())
    }

    /// After the manifest's last line: every file but the manifest itself and those below `pg_wal` must have been listed.
    pub fn check_complete(&self) -> Result<(), ManifestMismatch> {
        let surplus = self.items.iter().find(|item| {
            let exempt =
                item.path.starts_with(b"pg_wal/") || item.path.as_ref() == super::stream::MANIFEST;
            matches!(item.body, ItemBody::File { .. }) && !item.listed && !exempt
        });
        match surplus {
            Some(item) => Err(ManifestMismatch::Surplus(
                String::from_utf8_lossy(&item.path).into_owned(),
            )),
            None => Ok(()),
        }
    }

    /// Number and bytes of the files, below those paths that begin so.
    pub fn totals(&self, prefix: &[u8]) -> (u64, u64) {
        let files = self
            .items
            .iter()
            .filter(|item| item.path.starts_with(prefix))
            .filter_map(|item| match item.body {
                ItemBody::File { size, .. } => Some(size),
                _ => None,
            });
        files.fold((0, 0), |(count, bytes), size| (count + 1, bytes + size))
    }

    pub fn extras(&self) -> Vec<String> {
        let extras = self
            .items
            .iter()
            .filter(|item| matches!(item.body, ItemBody::Extra { .. }));
        extras
            .map(|item| String::from_utf8_lossy(&item.path).into_owned())
            .collect()
    }

    /// Writes the file map, shard by shard.
    pub async fn store(
        mut self,
        writer: &ObjectWriter,
        packs: std::sync::Arc<Packs>,
        level: i32,
    ) -> Result<Vec<ShardRef>, BackupError> {
        self.sort();
        let mut items = self.items.into_iter();
        let mut shards = Vec::new();
        while !items.as_slice().is_empty() {
            let number = shards.len() as u32;
            let key = writer.keys.file_map(&writer.backup, number);
            let mut shard = Shard::new(writer.head(HeadKind::FileMap, &key)?);
            let packs = packs.clone();
            (shard, items) = tokio::task::spawn_blocking(move || {
                let mut compressor = FrameCompressor::new(level).map_err(BackupError::Encode)?;
                while !shard.is_full() {
                    let Some(item) = items.next() else { break };
                    shard.add(
                        &entry(item, &packs)
                            .encode_line()
                            .map_err(BackupError::Entry)?,
                        &mut compressor,
                    )?;
                }
                shard.end_frame(&mut compressor)?;
                Ok::<_, BackupError>((shard, items))
            })
            .await
            .map_err(BackupError::Internal)??;
            shards.push(shard.put(writer, key, number).await?);
        }
        Ok(shards)
    }
}

fn entry(item: Item, packs: &Packs) -> FileEntry {
    let content = |size, crc32c, position| FileContent {
        size,
        crc32c,
        extents: packs.extents(position, size),
    };
    FileEntry {
        path: item.path.into_vec(),
        mode: item.mode,
        mtime: item.mtime,
        body: match item.body {
            ItemBody::Directory => FileBody::Directory,
            ItemBody::Link(target) => FileBody::Link {
                target: target.into_vec(),
            },
            ItemBody::File {
                size,
                crc32c,
                position,
            } => FileBody::File(content(size, crc32c, position)),
            ItemBody::Extra {
                size,
                crc32c,
                position,
            } => FileBody::Extra(content(size, crc32c, position)),
        },
    }
}

/// Seconds since 1970, for files that Walden itself adds.
pub(super) fn now() -> i64 {
    Timestamp::now().as_second()
}
