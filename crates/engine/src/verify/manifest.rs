//! A backup's file map against PostgreSQL's own manifest, which lies in the backup as a file.

use std::io::{self, Read};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};

use walden_model::{Affected, BackupRecord, Extent, FileContent, FindingKind, HeadKind};
use walden_pg::manifest::{ManifestError, ManifestSummary, parse_manifest};

use super::Check;
use super::map::{Files, Listed};
use crate::catalog::whole_text;
use crate::repository::RepositoryError;

/// Portions of the manifest on their way to who parses it.
const PORTIONS: usize = 4;

impl Check<'_> {
    /// To be called once the manifest's own bytes are proven.
    pub(super) async fn manifest(&self, record: &BackupRecord, files: &Files) {
        let what = match &files.manifest {
            None => Some("it holds no backup_manifest".to_owned()),
            Some(content) => match self.parsed(record, content).await {
                Ok((summary, listed)) => difference(record, files, &summary, listed),
                Err(Fault::Manifest(e)) => Some(whole_text(&e)),
                Err(Fault::Scattered) => {
                    Some("its backup_manifest lies in too many pieces".to_owned())
                }
                Err(Fault::Repository(key, e)) => {
                    let affected = Affected::lost(&record.backup_id);
                    return self.failed(&key, FindingKind::PackDamaged, affected, &e);
                }
            },
        };
        if let Some(what) = what {
            let id = &record.backup_id;
            let kind = FindingKind::ManifestMismatch;
            self.add(kind, id.as_str(), what, Affected::lost(id));
        }
    }

    async fn parsed(
        &self,
        record: &BackupRecord,
        content: &FileContent,
    ) -> Result<(ManifestSummary, Listed), Fault> {
        // Each is a reading of its pack.
        if content.extents.len() > record.packs.len() + 1 {
            return Err(Fault::Scattered);
        }
        let (send, receive) = sync_channel(PORTIONS);
        let parsing = tokio::task::spawn_blocking(move || {
            let mut listed = Listed::default();
            let reader = Portions {
                receive,
                portion: io::Cursor::default(),
            };
            let summary = parse_manifest(reader, |file| {
                let checksum = file.checksum.as_ref();
                let checksum = checksum.filter(|sum| sum.algorithm == "CRC32C");
                let bytes = checksum.map_or(&[][..], |sum| &sum.bytes);
                listed.add(&file.path, file.size, bytes);
                Ok::<_, ManifestError>(())
            });
            summary.map(|summary| (summary, listed))
        });
        let mut lost = None;
        for extent in &content.extents {
            if let Err(e) = self.portion(record, extent, send.clone()).await {
                lost = Some(e);
                break;
            }
        }
        drop(send);
        let parsed = parsing.await;
        if let Some((key, e)) = lost {
            return Err(Fault::Repository(key, e));
        }
        match parsed {
            Ok(parsed) => parsed.map_err(Fault::Manifest),
            Err(source) => {
                let key = record.backup_id.to_string();
                let e = RepositoryError::Internal {
                    key: key.clone(),
                    source,
                };
                Err(Fault::Repository(key, e))
            }
        }
    }

    /// Gives the bytes of one extent. Who parses them may hang up early: it says why.
    async fn portion(
        &self,
        record: &BackupRecord,
        extent: &Extent,
        send: SyncSender<Vec<u8>>,
    ) -> Result<(), (String, RepositoryError)> {
        let Extent::Data {
            length,
            pack,
            frame,
            frame_offset,
            ..
        } = *extent
        else {
            // No manifest has zeroes.
            let _ = send.send(vec![0]);
            return Ok(());
        };
        let Some(pack) = record.packs.get(pack as usize) else {
            return Ok(());
        };
        let key = self.keys.pack(&pack.backup, pack.number);
        let (mut at, mut from, mut wanted) = (0_u32, frame_offset as usize, length);
        let sink = move |mut content: Vec<u8>| {
            if at >= frame && wanted > 0 {
                content.drain(..from.min(content.len()));
                content.truncate(usize::try_from(wanted).unwrap_or(usize::MAX));
                from = 0;
                wanted -= content.len() as u64;
                let _ = send.send(content);
            }
            at = at.saturating_add(1);
            Ok::<_, io::Error>(())
        };
        let expected = self.expected(HeadKind::Pack, &key);
        let read = self.repository.read_object(&key, expected, sink).await;
        read.map(drop).map_err(|e| (key, e))
    }
}

enum Fault {
    Manifest(ManifestError),
    Scattered,
    Repository(String, RepositoryError),
}

/// What the manifest says otherwise.
fn difference(
    record: &BackupRecord,
    files: &Files,
    summary: &ManifestSummary,
    listed: Listed,
) -> Option<String> {
    let mut ranges: Vec<_> = summary.wal_ranges.iter().collect();
    ranges.sort_by_key(|range| (range.timeline, range.start));
    let ranges = ranges.iter().map(|r| (r.timeline, r.start, r.end));
    let mut named: Vec<_> = record.wal_ranges.iter().collect();
    named.sort_by_key(|range| (range.timeline, range.start));
    if !ranges.eq(named.iter().map(|r| (r.timeline, r.start, r.end))) {
        return Some(
            "its backup_manifest needs other WAL than the commit document says".to_owned(),
        );
    }
    let found = files.listed;
    (found != listed).then(|| match found.files == listed.files {
        true => {
            "its backup_manifest lists other files, sizes or checksums than the file map".to_owned()
        }
        false => format!(
            "its backup_manifest lists {} files, and the file map has {}",
            listed.files, found.files
        ),
    })
}

/// What comes through the channel, as a reader.
struct Portions {
    receive: Receiver<Vec<u8>>,
    portion: io::Cursor<Vec<u8>>,
}

impl Read for Portions {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        loop {
            let count = self.portion.read(buffer)?;
            if count > 0 || buffer.is_empty() {
                return Ok(count);
            }
            match self.receive.recv() {
                Ok(portion) => self.portion = io::Cursor::new(portion),
                Err(_) => return Ok(0),
            }
        }
    }
}
