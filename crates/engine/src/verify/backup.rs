//! One backup's contents: every pack read once, every file proven against the map, the map against PostgreSQL's manifest.

use std::collections::{BTreeSet, HashSet};
use std::io;
use std::ops::Range;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex};

use crc32c::crc32c_append;
use futures::{StreamExt, stream};
use walden_model::names::NameEntry;
use walden_model::{Affected, BackupRecord, FileEntry, FindingKind, HeadKind, Severity};

use super::Check;
use super::map::{Files, MOST_PIECES, Piece, lock, moved, other_table};
use super::objects::damaged;
use crate::repository::Trouble;

/// Files that a finding names.
const FILES_SHOWN: usize = 20;

/// What each file still lacks of its checksum.
type Left = Arc<Vec<AtomicU32>>;

impl Check<'_> {
    /// Proves what a commit document names.
    pub(super) async fn backup(&self, record: &BackupRecord) {
        let id = &record.backup_id;
        let name = format!("backup {id}");
        self.progress.phase(&name, Some(record.stored_size));
        self.names_of(record).await;
        let missing = self.catalog.missing_packs.get(id);
        let missing: HashSet<&str> = missing.into_iter().flatten().map(String::as_str).collect();
        let mut map = None;
        let shards = record.file_map.iter();
        let keys = shards.map(|shard| self.keys.file_map(id, shard.number));
        if !keys.into_iter().any(|key| missing.contains(key.as_str())) {
            match self.files(record, MOST_PIECES).await {
                Ok(files) => map = Some(files),
                Err((key, e)) => {
                    self.failed(&key, FindingKind::FileMapDamaged, Affected::lost(id), &e);
                }
            }
        }
        let Some(mut files) = map else {
            // Without a map the packs can still be proven.
            let all = 0..u32::try_from(record.packs.len()).unwrap_or(u32::MAX);
            let (pieces, left) = (Arc::new(Vec::new()), Left::default());
            self.packs(record, all, &missing, &pieces, &left).await;
            return;
        };
        let left = std::mem::take(&mut files.left).into_iter();
        let left: Left = Arc::new(left.map(AtomicU32::new).collect());
        let whole = self.contents(record, &mut files, &missing, &left).await;
        if whole {
            self.damaged_files(record, &left).await;
            if left.iter().all(|left| left.load(Ordering::Acquire) == 0) {
                self.manifest(record, &files).await;
            }
        }
    }

    fn not_looked_at(&self) -> u64 {
        let tally = self.tally();
        tally.findings.count(Severity::Outage) + tally.findings.count(Severity::Unproven)
    }

    /// Reads every pack; says whether each that is there could be read, damaged or not.
    async fn contents(
        &self,
        record: &BackupRecord,
        files: &mut Files,
        missing: &HashSet<&str>,
        left: &Left,
    ) -> bool {
        let before = self.not_looked_at();
        let held = !files.pieces.is_empty();
        let portions = files.portions(if held { usize::MAX } else { MOST_PIECES });
        for portion in portions {
            let pieces = match held {
                true => std::mem::take(&mut files.pieces),
                false => match self.pieces(record, portion.clone()).await {
                    Ok(pieces) => pieces,
                    Err((key, e)) => {
                        let affected = Affected::lost(&record.backup_id);
                        self.failed(&key, FindingKind::FileMapDamaged, affected, &e);
                        return false;
                    }
                },
            };
            let pieces = Arc::new(pieces);
            self.packs(record, portion, missing, &pieces, left).await;
        }
        before == self.not_looked_at() && !self.gave_up()
    }

    async fn packs(
        &self,
        record: &BackupRecord,
        packs: Range<u32>,
        missing: &HashSet<&str>,
        pieces: &Arc<Vec<Piece>>,
        left: &Left,
    ) {
        stream::iter(packs)
            .map(|number| self.pack(record, number, missing, pieces, left))
            .buffer_unordered(self.jobs())
            .for_each(|()| std::future::ready(()))
            .await;
    }

    async fn pack(
        &self,
        record: &BackupRecord,
        number: u32,
        missing: &HashSet<&str>,
        pieces: &Arc<Vec<Piece>>,
        left: &Left,
    ) {
        let Some(pack) = record.packs.get(number as usize) else {
            return;
        };
        let key = self.keys.pack(&pack.backup, pack.number);
        // One of another size is a finding already, and cannot be whole.
        if missing.contains(key.as_str()) || self.gave_up() {
            return;
        }
        let first = pieces.partition_point(|piece| piece.pack < number);
        let behind = pieces.partition_point(|piece| piece.pack <= number);
        let sums = Arc::new(Mutex::new(Sums {
            pieces: pieces.clone(),
            next: first,
            behind,
            frame: 0,
            begun: Vec::new(),
            left: left.clone(),
        }));
        let sink = {
            let sums = sums.clone();
            move |content: Vec<u8>| {
                lock(&sums).take(&content);
                Ok::<_, io::Error>(())
            }
        };
        let expected = self.expected(HeadKind::Pack, &key);
        let read = self.repository.read_object(&key, expected, sink).await;
        let read = read.and_then(|object| match object.table == pack.table {
            true if lock(&sums).is_done() => Ok(()),
            true => Err(damaged(
                &key,
                "the file map says that files have bytes in it which it does not hold".to_owned(),
            )),
            false => Err(other_table(&key, object.table, pack.table)),
        });
        match read {
            Ok(()) => self.read(pack.size),
            Err(e) => {
                let affected = Affected::lost(&record.backup_id);
                self.failed(&key, FindingKind::PackDamaged, affected, &e);
            }
        }
    }

    /// Names the files whose bytes are not theirs.
    async fn damaged_files(&self, record: &BackupRecord, left: &Left) {
        let is_damaged = |left: &&AtomicU32| left.load(Ordering::Acquire) != 0;
        let count = left.iter().filter(is_damaged).count();
        if count == 0 {
            return;
        }
        let found = Arc::new(Mutex::new(BTreeSet::new()));
        let visit = {
            let (found, left) = (found.clone(), left.clone());
            move |number: u32, entry: &FileEntry| {
                let of = left.get(number as usize).filter(is_damaged);
                let mut found = lock(&found);
                if entry.content().is_some() && of.is_some() && found.len() < FILES_SHOWN {
                    found.insert(entry.path_text());
                }
                Ok(())
            }
        };
        // It was read a moment ago; if it cannot be now, the files have no names here.
        let named = self.map(record, false, visit).await;
        let shown: Vec<String> = lock(&found).iter().cloned().collect();
        let what = match (named, count - shown.len().min(count)) {
            (Err(_), _) => format!("{count} files are not whole"),
            (Ok(()), 0) => format!("not whole: {}", shown.join(", ")),
            (Ok(()), more) => format!("not whole: {} and {more} more", shown.join(", ")),
        };
        let id = &record.backup_id;
        let kind = FindingKind::FilesDamaged;
        self.add(kind, id.as_str(), what, Affected::lost(id));
    }

    /// Proves the shards of names. A restore does not need them.
    async fn names_of(&self, record: &BackupRecord) {
        for shard in record.names.iter().flat_map(|names| &names.shards) {
            if self.gave_up() {
                return;
            }
            let key = self.keys.names(&record.backup_id, shard.number);
            let sink = |content: Vec<u8>| {
                let lines = content.strip_suffix(b"\n");
                let lines = lines.ok_or_else(|| io::Error::other("a line is not ended"))?;
                lines.split(|&byte| byte == b'\n').try_for_each(|line| {
                    NameEntry::decode_line(line)
                        .map(drop)
                        .map_err(io::Error::other)
                })
            };
            let expected = self.expected(HeadKind::Names, &key);
            let read = self.repository.read_object(&key, expected, sink).await;
            let read = read.and_then(|object| match object.table == shard.table {
                true => Ok(()),
                false => Err(other_table(&key, object.table, shard.table)),
            });
            match read {
                Ok(()) => self.read(shard.size),
                Err(e) if e.trouble() == Trouble::Absent => {
                    let what = format!("backup {} names it: it is missing", record.backup_id);
                    self.add(FindingKind::NamesDamaged, &key, what, Affected::default());
                }
                Err(e) => self.failed(&key, FindingKind::NamesDamaged, Affected::default(), &e),
            }
        }
    }
}

/// Takes the checksums of one pack's pieces off their files', frame by frame.
struct Sums {
    pieces: Arc<Vec<Piece>>,
    next: usize,
    /// Behind the pack's last piece.
    behind: usize,
    frame: u32,
    begun: Vec<Begun>,
    left: Left,
}

/// A piece that goes on in the next frame.
struct Begun {
    piece: Piece,
    from: usize,
    done: u64,
    checksum: u32,
}

impl Sums {
    fn take(&mut self, content: &[u8]) {
        while let Some(piece) = self.pieces.get(self.next).copied() {
            if self.next >= self.behind || piece.frame != self.frame {
                break;
            }
            self.begun.push(Begun {
                piece,
                from: piece.offset as usize,
                done: 0,
                checksum: 0,
            });
            self.next += 1;
        }
        let left = &self.left;
        self.begun.retain_mut(|begun| {
            let Some(rest) = content.get(begun.from..) else {
                return true;
            };
            let wanted = usize::try_from(begun.piece.length - begun.done).unwrap_or(usize::MAX);
            let bytes = rest.get(..wanted).unwrap_or(rest);
            begun.checksum = crc32c_append(begun.checksum, bytes);
            begun.done += bytes.len() as u64;
            begun.from = 0;
            if begun.done < begun.piece.length {
                return true;
            }
            if let Some(left) = left.get(begun.piece.file as usize) {
                left.fetch_xor(moved(begun.checksum, begun.piece.behind), Ordering::AcqRel);
            }
            false
        });
        self.frame = self.frame.saturating_add(1);
    }

    /// Whether the pack held every piece.
    fn is_done(&self) -> bool {
        self.begun.is_empty() && self.next >= self.behind
    }
}
