//! A small backup, written by hand into a repository of its own.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use crc32c::crc32c;
use jiff::Timestamp;
use tempfile::TempDir;
use walden_model::keys::{self, ROOT_KEY};
use walden_model::*;
use walden_pg::{Lsn, SystemIdentifier, TimelineId, WalFileName, WalSegmentSize};
use walden_store::{LocalStore, PutMode};

use crate::codec::{FrameCompressor, encode_head, encode_tail};
use crate::host;
use crate::repository::{Place, Repository, RepositorySettings};
use crate::restore::RestoreRequest;

pub const CONTROL_BYTES: &[u8] = &[7; 8192];
pub const PACK_FRAMES: usize = 3;

/// A file, directory or link of the cluster.
#[derive(Debug, Clone)]
pub struct Part {
    pub path: String,
    pub mode: u32,
    pub body: PartBody,
}

#[derive(Debug, Clone)]
pub enum PartBody {
    File(Vec<u8>),
    Extra(Vec<u8>),
    Directory,
    Link(String),
}

pub fn file(path: &str, content: impl AsRef<[u8]>) -> Part {
    Part {
        path: path.to_owned(),
        mode: 0o600,
        body: PartBody::File(content.as_ref().to_vec()),
    }
}

pub fn extra(path: &str, content: &str) -> Part {
    Part {
        path: path.to_owned(),
        mode: 0o640,
        body: PartBody::Extra(content.into()),
    }
}

pub fn directory(path: &str) -> Part {
    Part {
        path: path.to_owned(),
        mode: 0o700,
        body: PartBody::Directory,
    }
}

pub fn link(path: &str, target: &str) -> Part {
    Part {
        path: path.to_owned(),
        mode: 0o777,
        body: PartBody::Link(target.to_owned()),
    }
}

/// What every cluster has.
pub fn cluster() -> Vec<Part> {
    vec![
        directory("base"),
        directory("base/1"),
        directory("global"),
        directory("pg_wal"),
        directory("pg_wal/archive_status"),
        directory("pg_tblspc"),
        file("PG_VERSION", "17\n"),
        file(
            "backup_label",
            "START WAL LOCATION: 0/3000028 (file 000000010000000000000003)\n",
        ),
        file(host::CONTROL, CONTROL_BYTES),
        file("base/1/1259", [1; 300]),
        file("base/1/1260", b""),
        file("postgresql.auto.conf", "work_mem = 8MB\n"),
    ]
}

pub struct Bed {
    pub dir: TempDir,
    pub keys: SystemKeys,
    pub archive_id: RandomId,
    pub repository: Repository,
    pub frame: usize,
}

impl Bed {
    pub async fn new() -> Bed {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path().join("repository");
        LocalStore::create_root(&root).unwrap();
        let repository = Repository::open(&settings(&root)).await.unwrap();
        let bed = Bed {
            keys: SystemKeys {
                cluster: "main".parse().unwrap(),
                system: SystemIdentifier(7_000_000_000_000_000_001),
            },
            archive_id: RandomId([3; 16]),
            repository,
            frame: 64,
            dir,
        };
        let document = RepositoryDocument {
            repository_id: RandomId([1; 16]),
            created_at: Timestamp::UNIX_EPOCH,
        };
        bed.repository
            .put_document(ROOT_KEY, &document)
            .await
            .unwrap();
        let identity = IdentityDocument {
            cluster: bed.keys.cluster.clone(),
            system_identifier: bed.keys.system,
            archive_id: bed.archive_id,
            wal_segment_size: WalSegmentSize::DEFAULT,
            pg_version: 17,
            created_at: Timestamp::UNIX_EPOCH,
            host: "db".into(),
            encryption: Encryption::None,
        };
        bed.repository
            .put_document(
                &keys::identity(&bed.keys.cluster, bed.keys.system),
                &identity,
            )
            .await
            .unwrap();
        bed.wal("000000010000000000000003", b"segment").await;
        bed
    }

    pub async fn wal(&self, name: &str, content: &[u8]) {
        let file: WalFileName = name.parse().unwrap();
        let key = self
            .keys
            .wal(&WalName::new(file, &Sha256Digest::of(content)));
        self.framed(HeadKind::Wal, &key, &[content.to_vec()]).await;
    }

    pub fn id(number: u32) -> BackupId {
        BackupId::new(Timestamp::UNIX_EPOCH, number)
    }

    /// Stores a framed object; its size and its tail's digest.
    pub async fn framed(
        &self,
        kind: HeadKind,
        key: &str,
        frames: &[Vec<u8>],
    ) -> (u64, Sha256Digest) {
        let head = Head::new(
            kind,
            self.archive_id,
            keys::below_cluster(key),
            None,
            host::writer(),
        );
        let mut object = encode_head(&head).unwrap();
        let mut tail = Tail {
            content_size: 0,
            index: None,
            sha256: None,
            frames: Vec::new(),
        };
        if kind != HeadKind::Pack {
            tail.sha256 = Some(Sha256Digest::of(&frames.concat()));
        }
        let mut compressor = FrameCompressor::new(1).unwrap();
        for content in frames {
            let frame = compressor.compress(content).unwrap();
            object.extend_from_slice(&frame.stored);
            tail.content_size += frame.entry.content;
            tail.frames.push(frame.entry);
        }
        let (tail, table) = encode_tail(&tail).unwrap();
        object.extend_from_slice(&tail);
        let size = object.len() as u64;
        self.repository
            .store()
            .put(
                &self.repository.key(key).unwrap(),
                object.into(),
                PutMode::Overwrite,
            )
            .await
            .unwrap();
        (size, table)
    }

    /// Takes a backup of these parts.
    pub async fn backup(
        &self,
        number: u32,
        parts: &[Part],
        tablespaces: Vec<Tablespace>,
    ) -> BackupRecord {
        let (packs, lines) = self.contents(number, parts).await;
        self.commit(number, packs, &lines, parts, tablespaces).await
    }

    /// Stores the packs of these parts; gives them, and the lines of the file map.
    pub async fn contents(&self, number: u32, parts: &[Part]) -> (Vec<PackRef>, Vec<Vec<u8>>) {
        let mut parts = parts.to_vec();
        let mut content = Vec::new();
        let mut entries = Vec::new();
        for part in &parts {
            if let PartBody::File(bytes) | PartBody::Extra(bytes) = &part.body {
                entries.push((content.len(), bytes.len()));
                content.extend_from_slice(bytes);
            } else {
                entries.push((0, 0));
            }
        }
        let frames: Vec<Vec<u8>> = content.chunks(self.frame).map(<[u8]>::to_vec).collect();
        let mut packs = Vec::new();
        for (pack, frames) in (0..).zip(frames.chunks(PACK_FRAMES)) {
            let key = self.keys.pack(&Bed::id(number), pack);
            let (size, table) = self.framed(HeadKind::Pack, &key, frames).await;
            packs.push(PackRef {
                backup: Bed::id(number),
                number: pack,
                size,
                table,
            });
        }
        let mut lines: Vec<(String, Vec<u8>)> = parts
            .drain(..)
            .zip(entries)
            .map(|(part, (at, _))| {
                (
                    part.path.clone(),
                    self.entry(part, at).encode_line().unwrap(),
                )
            })
            .collect();
        lines.sort();
        (packs, lines.into_iter().map(|(_, line)| line).collect())
    }

    fn entry(&self, part: Part, at: usize) -> FileEntry {
        let content = |bytes: &[u8]| FileContent {
            size: bytes.len() as u64,
            crc32c: crc32c(bytes),
            extents: self.extents(at, bytes.len()),
        };
        let body = match &part.body {
            PartBody::File(bytes) => FileBody::File(content(bytes)),
            PartBody::Extra(bytes) => FileBody::Extra(content(bytes)),
            PartBody::Directory => FileBody::Directory,
            PartBody::Link(target) => FileBody::Link {
                target: target.clone().into_bytes(),
            },
        };
        FileEntry {
            path: part.path.into_bytes(),
            mode: part.mode,
            mtime: 0,
            body,
        }
    }

    fn extents(&self, at: usize, length: usize) -> Vec<Extent> {
        let pack_bytes = self.frame * PACK_FRAMES;
        let (mut from, end) = (at, at + length);
        let mut extents = Vec::new();
        while from < end {
            let until = end.min((from / pack_bytes + 1) * pack_bytes);
            extents.push(Extent::Data {
                offset: (from - at) as u64,
                length: (until - from) as u64,
                pack: (from / pack_bytes) as u32,
                frame: (from % pack_bytes / self.frame) as u32,
                frame_offset: (from % self.frame) as u32,
            });
            from = until;
        }
        extents
    }

    /// Writes the file map, in two shards, and the commit document.
    pub async fn commit(
        &self,
        number: u32,
        packs: Vec<PackRef>,
        lines: &[Vec<u8>],
        parts: &[Part],
        tablespaces: Vec<Tablespace>,
    ) -> BackupRecord {
        let mut file_map = Vec::new();
        for (shard, lines) in (0..).zip(lines.chunks(lines.len().div_ceil(2))) {
            let key = self.keys.file_map(&Bed::id(number), shard);
            let frames: Vec<_> = lines.chunks(2).map(<[Vec<u8>]>::concat).collect();
            let (size, table) = self.framed(HeadKind::FileMap, &key, &frames).await;
            file_map.push(ShardRef {
                number: shard,
                size,
                table,
                entries: lines.len() as u64,
            });
        }
        let record = self.record(number, packs, file_map, parts, tablespaces);
        self.repository
            .put_document(&self.keys.commit(&record.backup_id), &record)
            .await
            .unwrap();
        record
    }

    fn record(
        &self,
        number: u32,
        packs: Vec<PackRef>,
        file_map: Vec<ShardRef>,
        parts: &[Part],
        tablespaces: Vec<Tablespace>,
    ) -> BackupRecord {
        let extras = parts
            .iter()
            .filter(|part| matches!(part.body, PartBody::Extra(_)));
        BackupRecord {
            backup_id: Bed::id(number),
            archive_id: self.archive_id,
            cluster: self.keys.cluster.clone(),
            system_identifier: self.keys.system,
            write_token: RandomId([9; 16]),
            backup_kind: BackupKind::Full,
            parents: Vec::new(),
            pg_version: 17,
            pg_version_num: 170_011,
            wal_segment_size: WalSegmentSize::DEFAULT,
            block_size: 8192,
            data_checksums: true,
            host: "db".into(),
            from_standby: false,
            label: "test".into(),
            annotations: BTreeMap::new(),
            started_at: Timestamp::UNIX_EPOCH,
            stopped_at: Timestamp::UNIX_EPOCH,
            start_lsn: Lsn(0x0300_0028),
            stop_lsn: Lsn(0x0300_0100 + u64::from(number)),
            checkpoint_lsn: Lsn(0x0300_0060),
            timeline: TimelineId(1),
            wal_ranges: vec![WalRange {
                timeline: TimelineId(1),
                start: Lsn(0x0300_0028),
                end: Lsn(0x0300_0100),
            }],
            snapshot: None,
            control: ControlSettings {
                max_connections: 123,
                max_worker_processes: 8,
                max_wal_senders: 10,
                max_prepared_transactions: 4,
                max_locks_per_transaction: 64,
                wal_level: "replica".into(),
            },
            tablespaces,
            cluster_size: 1,
            stored_size: 1,
            files: 1,
            packs,
            file_map,
            damaged: Vec::new(),
            damaged_blocks: 0,
            extras: extras.map(|part| part.path.clone()).collect(),
            names: None,
        }
    }

    pub fn target(&self) -> PathBuf {
        self.dir.path().join("pgdata")
    }

    pub fn request(&self) -> RestoreRequest {
        RestoreRequest {
            repositories: vec![settings(&self.dir.path().join("repository"))],
            cluster: self.keys.cluster.clone(),
            system: None,
            target: RecoveryTarget::default(),
            backup: None,
            target_directory: self.target(),
            original: None,
            tablespace_map: Vec::new(),
            waldir: None,
            standby: false,
            take_over: false,
            restore_command: "/bin/fetch 'it''s' %f %p".into(),
            workers: 3,
        }
    }

    /// Every object of the repository, by key.
    pub fn objects(&self) -> Vec<(String, PathBuf)> {
        let root = self.dir.path().join("repository");
        let mut found = Vec::new();
        let mut open = vec![root.clone()];
        while let Some(folder) = open.pop() {
            for entry in fs::read_dir(folder).unwrap() {
                let path = entry.unwrap().path();
                let key = path
                    .strip_prefix(&root)
                    .unwrap()
                    .to_str()
                    .unwrap()
                    .to_owned();
                match path.is_dir() {
                    _ if key.starts_with('.') => {}
                    true => open.push(path),
                    false => found.push((key, path)),
                }
            }
        }
        found.sort();
        found
    }
}

fn settings(root: &Path) -> RepositorySettings {
    RepositorySettings {
        keys: Default::default(),
        name: "here".into(),
        place: Place::Folder(root.to_path_buf()),
        id: None,
        required: true,
    }
}
