//! What a file map must be, beyond what its digests prove: held against the commit document line by line, in bounded memory.

use std::io;

use walden_model::{BackupRecord, Extent, FileBody, FileEntry};

use crate::host;

/// Larger than any control file (`PG_CONTROL_FILE_SIZE` in catalog/pg_control.h is 8192); it is held in memory.
const MAX_CONTROL: u64 = 64 * 1024;

/// What a restored cluster cannot be recovered without. Without `backup_label` PostgreSQL would start as after a crash, from the wrong
/// place, and corrupt the cluster.
const REQUIRED: [&str; 3] = [host::CONTROL, "backup_label", "PG_VERSION"];

/// Why a file map is refused although its digests fit.
#[derive(Debug, thiserror::Error)]
pub enum FileMapError {
    /// A chunk of the map does not end at a line's end.
    #[error("the file map has a line that is not ended")]
    CutLine,
    /// More lines than the commit document says.
    #[error("the file map has not {0} entries, as the commit document says")]
    Entries(u64),
    /// Entries do not rise.
    #[error("the file map names {0:?} twice or out of order")]
    Order(String),
    /// An extent names a pack that the backup has not.
    #[error("the file map's entry {path:?} lies in pack {pack}, and the backup has {packs}")]
    NoPack {
        /// The entry.
        path: String,
        /// The index that it names.
        pack: u32,
        /// How many there are.
        packs: usize,
    },
    /// A link that is none of the backup's tablespaces.
    #[error("the file map has a link {0:?}, which is none of the backup's tablespaces")]
    StrangeLink(String),
    /// A file without which nothing starts.
    #[error("the backup has no {0}")]
    Lacks(&'static str),
    /// A control file of impossible size.
    #[error("the backup's global/pg_control has {0} bytes")]
    ControlSize(u64),
    /// More than this program counts.
    #[error("the backup has more files, or pieces of files, than Walden can count")]
    TooMany,
}

/// Takes the lines of a file map, which may be hostile, shard by shard.
#[derive(Debug, Clone)]
pub(crate) struct MapCheck {
    last: Vec<u8>,
    last_is_file: bool,
    packs: usize,
    links: Vec<Vec<u8>>,
    lacking: Vec<&'static str>,
    entries_left: u64,
}

impl MapCheck {
    /// Of the map that this commit document names.
    pub fn new(record: &BackupRecord) -> Self {
        let link = |oid: u32| format!("pg_tblspc/{oid}").into_bytes();
        MapCheck {
            last: Vec::new(),
            last_is_file: false,
            packs: record.packs.len(),
            links: record.tablespaces.iter().map(|t| link(t.oid)).collect(),
            lacking: REQUIRED.to_vec(),
            entries_left: 0,
        }
    }

    /// A shard of so many entries comes.
    pub fn begin_shard(&mut self, entries: u64) {
        self.entries_left = entries;
    }

    /// It has come.
    ///
    /// # Errors
    /// It had fewer.
    pub fn end_shard(&self, entries: u64) -> Result<(), FileMapError> {
        match self.entries_left {
            0 => Ok(()),
            _ => Err(FileMapError::Entries(entries)),
        }
    }

    /// Some lines of the shard, whole ones.
    ///
    /// # Errors
    /// A line that is refused, here or by `take`.
    pub fn lines(
        &mut self,
        content: &[u8],
        mut take: impl FnMut(FileEntry) -> Result<(), FileMapError>,
    ) -> io::Result<()> {
        let lines = content
            .strip_suffix(b"\n")
            .ok_or(FileMapError::CutLine)
            .map_err(refused)?;
        for line in lines.split(|&byte| byte == b'\n') {
            let more = self.entries_left.checked_sub(1);
            self.entries_left = more.ok_or(FileMapError::Entries(0)).map_err(refused)?;
            let entry = FileEntry::decode_line(line).map_err(refused)?;
            self.entry(&entry)
                .and_then(|()| take(entry))
                .map_err(refused)?;
        }
        Ok(())
    }

    /// All shards have come.
    ///
    /// # Errors
    /// A file is not there without which nothing starts.
    pub fn finish(self) -> Result<(), FileMapError> {
        match self.lacking.first() {
            Some(name) => Err(FileMapError::Lacks(name)),
            None => Ok(()),
        }
    }

    fn entry(&mut self, entry: &FileEntry) -> Result<(), FileMapError> {
        let content = entry.content();
        // A tablespace's folder may come as the link and as the root of its own tree; two contents of one file may not.
        let rises = entry.path > self.last
            || (entry.path == self.last && content.is_none() && !self.last_is_file);
        if !rises {
            return Err(FileMapError::Order(entry.path_text()));
        }
        self.last.clone_from(&entry.path);
        self.last_is_file = content.is_some();
        if matches!(entry.body, FileBody::Link { .. }) && !self.links.contains(&entry.path) {
            return Err(FileMapError::StrangeLink(entry.path_text()));
        }
        for extent in content.iter().flat_map(|content| &content.extents) {
            if let Extent::Data { pack, .. } = *extent
                && pack as usize >= self.packs
            {
                return Err(FileMapError::NoPack {
                    path: entry.path_text(),
                    pack,
                    packs: self.packs,
                });
            }
        }
        if let FileBody::File(content) = &entry.body {
            self.lacking.retain(|name| name.as_bytes() != entry.path);
            if entry.path == host::CONTROL.as_bytes() && content.size > MAX_CONTROL {
                return Err(FileMapError::ControlSize(content.size));
            }
        }
        Ok(())
    }
}

fn refused(why: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, why)
}
