//! A store that holds a million segments without holding them: names are computed, tails and roll-ups made when they are asked for. Each
//! request takes [`LATENCY`] of virtual time.

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use jiff::Timestamp;
use walden_model::index::{End, Ends, IndexedObject, Outcome, SegmentIndex, Summary, XidRange};
use walden_model::{
    BackupId, BackupKind, BackupRecord, Block, ControlSettings, Encryption, HeadKind,
    IdentityDocument, Level, RandomId, RepositoryDocument, RollUp, SegmentRange, SystemKeys, Tail,
    WalName, WalRange, document, keys,
};
use walden_pg::{Lsn, SegmentName, SystemIdentifier, TimelineId, WalSegmentSize};
use walden_store::{
    ByteStream, Key, ListOptions, ListPage, ObjectMeta, ObjectStore, PutMode, StoreError,
    StoreErrorKind, Upload,
};

use crate::codec::{Expected, encode_tail};
use crate::repository::encode_small;

pub const LATENCY: Duration = Duration::from_millis(20);
/// Bytes of each stored segment.
const STORED: u64 = 5_000_000;
const SIZE: WalSegmentSize = WalSegmentSize::DEFAULT;
const TIMELINE: TimelineId = TimelineId(1);
const ARCHIVE: RandomId = RandomId([3; 16]);
/// Comes after every key below a folder.
const LAST: char = char::MAX;

/// Where commits end: the segments behind say nothing.
pub const QUIET: u64 = 40;

#[derive(Debug)]
pub struct Million {
    /// Segments 1 to this.
    pub segments: u64,
    keys: SystemKeys,
    small: BTreeMap<String, Small>,
    requests: AtomicU64,
}

#[derive(Debug, Clone)]
enum Small {
    Document(Bytes),
    RollUp(Block),
}

impl Million {
    /// With roll-ups of every whole block, and a backup that begins in the second segment.
    pub fn new(segments: u64, rolled_up: bool) -> Arc<Self> {
        let keys = SystemKeys {
            cluster: "main".parse().unwrap(),
            system: SystemIdentifier(7_000_000_000_000_000_001),
        };
        let mut small = BTreeMap::new();
        let root = RepositoryDocument {
            repository_id: RandomId([1; 16]),
            created_at: Timestamp::UNIX_EPOCH,
        };
        let identity = IdentityDocument {
            cluster: keys.cluster.clone(),
            system_identifier: keys.system,
            archive_id: ARCHIVE,
            wal_segment_size: SIZE,
            pg_version: 17,
            created_at: Timestamp::UNIX_EPOCH,
            host: "db".to_owned(),
            encryption: Encryption::None,
        };
        let backup = backup(&keys);
        for (key, bytes) in [
            (keys::ROOT_KEY.to_owned(), document::encode(&root)),
            (
                keys::identity(&keys.cluster, keys.system),
                document::encode(&identity),
            ),
            (keys.commit(&backup.backup_id), document::encode(&backup)),
        ] {
            small.insert(key, Small::Document(bytes.unwrap().into()));
        }
        let all = SegmentRange {
            timeline: TIMELINE,
            first: 1,
            last: segments - 1,
        };
        for level in Level::COARSEST_FIRST.into_iter().filter(|_| rolled_up) {
            for block in Block::within(all, level) {
                small.insert(keys.rollup(&block, SIZE), Small::RollUp(block));
            }
        }
        Arc::new(Self {
            segments,
            keys,
            small,
            requests: AtomicU64::new(0),
        })
    }

    /// Requests since this was asked last.
    pub fn requests(&self) -> u64 {
        self.requests.swap(0, Ordering::Relaxed)
    }

    async fn asked(&self) {
        self.requests.fetch_add(1, Ordering::Relaxed);
        tokio::time::sleep(LATENCY).await;
    }

    /// The commit of a segment, if it has one.
    pub fn commit(&self, number: u64) -> Option<End> {
        let lsn = Lsn(number * SIZE.bytes() + 4096);
        (number <= self.segments - QUIET).then_some(End {
            kind: Outcome::Commit,
            xid: number as u32 + 700,
            lsn,
            end_lsn: Lsn(lsn.0 + 40),
            time: Timestamp::from_second(1_800_000_000 + number as i64).unwrap(),
        })
    }

    fn index(&self, number: u64) -> SegmentIndex {
        let start = number * SIZE.bytes();
        SegmentIndex {
            pg_version: 17,
            of: Some(IndexedObject {
                archive_id: ARCHIVE,
                key: keys::below_cluster(&self.segment_key(number)).to_owned(),
            }),
            first_lsn: Some(Lsn(start + 40)),
            end_lsn: Some(Lsn(start + 8192)),
            records: 100,
            ends: self.commit(number).map(|end| Ends {
                commits: 1,
                aborts: 0,
                first: end,
                last: end,
                last_commit: Some(end),
                min_time: end.time,
                max_time: end.time,
                xids: XidRange::of(end.xid),
                subxids: None,
            }),
            ..SegmentIndex::empty()
        }
    }

    /// The first page of a segment, with all that it says: a record that means nothing, its commit, and that the rest is empty
    /// (xlog_internal.h, `XLogLongPageHeaderData`; xlogrecord.h; xact.h, `xl_xact_commit`; pg_control.h, `XLOG_SWITCH`).
    fn page(&self, number: u64) -> Vec<u8> {
        let start = number * SIZE.bytes();
        let mut page = Vec::new();
        page.extend(0xD116_u16.to_le_bytes());
        page.extend(2_u16.to_le_bytes());
        page.extend(TIMELINE.0.to_le_bytes());
        page.extend(start.to_le_bytes());
        page.extend(0_u64.to_le_bytes());
        page.extend(self.keys.system.0.to_le_bytes());
        page.extend((SIZE.bytes() as u32).to_le_bytes());
        page.extend(8192_u32.to_le_bytes());
        let Some(end) = self.commit(number) else {
            record(&mut page, start - 64, [0x40, 0], 0, &[]);
            page.resize(8192, 0);
            return page;
        };
        let filler = (end.lsn.0 - start) as usize - page.len() - 24 - 5;
        let long = [&[254][..], &(filler as u32).to_le_bytes(), &vec![0; filler]].concat();
        record(&mut page, start - 64, [0x20, 0], 0, &long);
        let since_2000 = end.time.as_microsecond() - 946_684_800_000_000;
        let short = [&[255, 8][..], &since_2000.to_le_bytes()].concat();
        record(&mut page, start + 40, [0, 1], end.xid, &short);
        record(&mut page, end.lsn.0, [0x40, 0], 0, &[]);
        page.resize(8192, 0);
        page
    }

    fn roll_up(&self, block: Block) -> RollUp {
        let each = |number| Summary::of(number, &self.index(number));
        let parts = match block.level {
            Level::One => block.segments().map(each).collect(),
            Level::Two => Block::within(block.range(), Level::One)
                .filter_map(|part| self.roll_up(part).summary())
                .collect(),
        };
        RollUp {
            block,
            stored: STORED * block.level.segments(),
            parts,
        }
    }

    fn segment_key(&self, number: u64) -> String {
        let name = SegmentName::from_number(TIMELINE, number, SIZE);
        self.keys.wal(&WalName::Segment(name))
    }

    /// The first segment whose key is greater.
    fn first_behind(&self, text: &str) -> u64 {
        let (mut low, mut high) = (1, self.segments + 1);
        while low < high {
            let middle = (low + high) / 2;
            match self.segment_key(middle).as_str() > text {
                true => high = middle,
                false => low = middle + 1,
            }
        }
        low
    }

    /// Objects that are no segments, and that are called greater than this text.
    fn small_behind<'a>(
        &'a self,
        text: &str,
    ) -> impl Iterator<Item = (&'a String, &'a Small)> + use<'a> {
        use std::ops::Bound::{Excluded, Unbounded};
        self.small.range::<str, _>((Excluded(text), Unbounded))
    }

    fn number(&self, key: &Key) -> Option<u64> {
        let below = key.as_str().strip_prefix(&self.keys.wal_prefix())?;
        match keys::parse_wal_key(below)? {
            WalName::Segment(name) => name.number(SIZE),
            _ => None,
        }
        .filter(|number| (1..=self.segments).contains(number))
    }

    fn object(&self, key: &Key) -> Result<Bytes, StoreError> {
        if let Some(number) = self.number(key) {
            let place = Expected {
                kind: HeadKind::Wal,
                archive_id: ARCHIVE,
                key: keys::below_cluster(key.as_str()).to_owned(),
            };
            let content = self.page(number);
            return Ok(encode_small(place, &content, 1).unwrap().into());
        }
        match self.small.get(key.as_str()) {
            Some(Small::Document(bytes)) => Ok(bytes.clone()),
            Some(Small::RollUp(block)) => {
                let place = Expected {
                    kind: HeadKind::RollUp,
                    archive_id: ARCHIVE,
                    key: keys::below_cluster(key.as_str()).to_owned(),
                };
                let content = self.roll_up(*block).encode().unwrap();
                Ok(encode_small(place, &content, 1).unwrap().into())
            }
            None => Err(StoreError::new(
                StoreErrorKind::NotFound,
                "read",
                key.as_str(),
            )),
        }
    }
}

fn record(page: &mut Vec<u8>, previous: u64, [info, manager]: [u8; 2], xid: u32, body: &[u8]) {
    let mut head = Vec::new();
    head.extend((24 + body.len() as u32).to_le_bytes());
    head.extend(xid.to_le_bytes());
    head.extend(previous.to_le_bytes());
    head.extend([info, manager, 0, 0]);
    let crc = crc32c::crc32c_append(crc32c::crc32c(body), &head);
    head.extend(crc.to_le_bytes());
    page.extend(head);
    page.extend(body);
    page.resize(page.len().next_multiple_of(8), 0);
}

fn meta(key: &str, size: u64) -> ObjectMeta {
    ObjectMeta {
        key: Key::parse(key).unwrap(),
        size,
        modified: Timestamp::UNIX_EPOCH,
    }
}

#[async_trait]
impl ObjectStore for Million {
    async fn get(&self, key: &Key) -> Result<(ObjectMeta, ByteStream), StoreError> {
        self.asked().await;
        let bytes = self.object(key)?;
        let meta = meta(key.as_str(), bytes.len() as u64);
        let chunks: Vec<_> = bytes.chunks(1 << 20).map(Bytes::copy_from_slice).collect();
        let stream = futures::stream::iter(chunks.into_iter().map(Ok));
        Ok((meta, Box::pin(stream)))
    }

    async fn get_range(&self, key: &Key, range: Range<u64>) -> Result<Bytes, StoreError> {
        self.asked().await;
        let bytes = self.object(key)?;
        let end = (range.end as usize).min(bytes.len());
        Ok(bytes.slice(range.start as usize..end))
    }

    async fn get_suffix(&self, key: &Key, _: u64) -> Result<(ObjectMeta, Bytes), StoreError> {
        self.asked().await;
        let number = self.number(key).expect("only tails of segments are read");
        let tail = Tail {
            content_size: 0,
            index: Some(Box::new(self.index(number))),
            sha256: None,
            frames: Vec::new(),
        };
        let (tail, _) = encode_tail(&tail).unwrap();
        Ok((meta(key.as_str(), STORED), tail.into()))
    }

    async fn head(&self, key: &Key) -> Result<ObjectMeta, StoreError> {
        self.asked().await;
        Ok(meta(key.as_str(), self.object(key)?.len() as u64))
    }

    async fn list(&self, options: ListOptions<'_>) -> Result<ListPage, StoreError> {
        self.asked().await;
        let mut page = ListPage::default();
        let mut after = match options.start_after {
            Some(after) if after >= options.prefix => after.to_owned(),
            // Nothing is called like its prefix.
            _ => options.prefix.to_owned(),
        };
        let mut small = self.small_behind(&after).peekable();
        let mut number = self.first_behind(&after);
        loop {
            let segment = (number <= self.segments).then(|| self.segment_key(number));
            let is_small = match (small.peek(), &segment) {
                (Some((small, _)), Some(segment)) => *small < segment,
                (small, _) => small.is_some(),
            };
            let key = match is_small {
                true => small.peek().map(|(key, _)| (*key).clone()),
                false => segment,
            };
            let below = key
                .as_ref()
                .and_then(|key| key.strip_prefix(options.prefix));
            let (Some(key), Some(below)) = (&key, below) else {
                break;
            };
            if page.objects.len() + page.prefixes.len() == options.limit {
                page.next = Some(after);
                break;
            }
            if let Some(end) = below.find('/').filter(|_| options.delimiter) {
                let folder = format!("{}{}", options.prefix, &below[..=end]);
                after = format!("{folder}{LAST}");
                page.prefixes.push(folder);
                small = self.small_behind(&after).peekable();
                number = self.first_behind(&after);
            } else {
                page.objects
                    .push(meta(key, if is_small { 1000 } else { STORED }));
                after.clone_from(key);
                match is_small {
                    true => drop(small.next()),
                    false => number += 1,
                }
            }
        }
        Ok(page)
    }

    fn location(&self) -> String {
        "a million segments".to_owned()
    }

    async fn put(&self, key: &Key, _: Bytes, _: PutMode) -> Result<(), StoreError> {
        let kind = StoreErrorKind::PermissionDenied;
        Err(StoreError::new(kind, "store", key.as_str()))
    }

    async fn begin(&self, _: &Key, _: PutMode) -> Result<Box<dyn Upload>, StoreError> {
        unreachable!("nothing is written")
    }

    async fn delete(&self, _: &Key) -> Result<(), StoreError> {
        unreachable!("nothing is deleted")
    }

    async fn confirm_durable(&self, _: &Key) -> Result<(), StoreError> {
        unreachable!("nothing is written")
    }

    async fn sweep_unfinished(&self, _: Timestamp) -> Result<u64, StoreError> {
        unreachable!("nothing is deleted")
    }
}

fn backup(keys: &SystemKeys) -> BackupRecord {
    let (start, stop) = (Lsn(2 * SIZE.bytes() + 40), Lsn(2 * SIZE.bytes() + 400));
    BackupRecord {
        backup_id: BackupId::new(Timestamp::UNIX_EPOCH, 1),
        archive_id: ARCHIVE,
        cluster: keys.cluster.clone(),
        system_identifier: keys.system,
        write_token: RandomId([9; 16]),
        backup_kind: BackupKind::Full,
        parents: vec![],
        pg_version: 17,
        pg_version_num: 170_011,
        wal_segment_size: SIZE,
        block_size: 8192,
        data_checksums: true,
        host: "db".to_owned(),
        from_standby: false,
        label: "walden".to_owned(),
        annotations: BTreeMap::new(),
        started_at: Timestamp::UNIX_EPOCH,
        stopped_at: Timestamp::UNIX_EPOCH,
        start_lsn: start,
        stop_lsn: stop,
        checkpoint_lsn: Lsn(start.0 + 40),
        timeline: TIMELINE,
        wal_ranges: vec![WalRange {
            timeline: TIMELINE,
            start,
            end: stop,
        }],
        snapshot: None,
        control: ControlSettings {
            max_connections: 100,
            max_worker_processes: 8,
            max_wal_senders: 10,
            max_prepared_transactions: 0,
            max_locks_per_transaction: 64,
            wal_level: "replica".to_owned(),
        },
        tablespaces: vec![],
        cluster_size: 1 << 30,
        stored_size: 1 << 28,
        files: 1000,
        packs: vec![],
        file_map: vec![],
        damaged: vec![],
        damaged_blocks: 0,
        extras: vec![],
        names: None,
    }
}
