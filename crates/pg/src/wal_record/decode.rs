//! What a record's body says. The layouts are those of versions 14 to 18; where they differ, it is said.

use super::event::{
    Checkpoint, EndKind, Event, HeapChange, PgTimestamp, RelFileLocator, RelationOid,
    TransactionEnd,
};
use super::record::{Record, RecordHeader};
use super::rmgr;
use crate::field::{Cursor, u16_at, u32_at};
use crate::{Lsn, MajorVersion, TimelineId};

impl Record<'_> {
    /// What it says; `None` where that is of no interest, of a resource manager that this program does not know, or not as it should be.
    #[must_use]
    pub fn event(&self) -> Option<Event> {
        let operation = self.header.operation();
        match self.header.rmgr {
            rmgr::XLOG => self.xlog(operation),
            rmgr::XACT => self.transaction(operation),
            rmgr::HEAP => self.heap(operation),
            // XLOG_HEAP2_MULTI_INSERT
            rmgr::HEAP2 if operation & HEAP_OPERATION == 0x50 => {
                let file = self.first_block()?.file;
                let rows = u16_at(self.main()?.0, 2)?.into();
                let change = HeapChange::Insert;
                Some(Event::Heap { change, file, rows })
            }
            // XLOG_SMGR_CREATE
            rmgr::SMGR if operation == 0x10 => {
                let mut main = self.main()?;
                let file = locator(main.take()?);
                matches!(main.u32()?, MAIN_FORK | INIT_FORK).then_some(Event::FileCreated(file))
            }
            // XLOG_DBASE_DROP
            rmgr::DBASE if operation == dbase_drop(self.version) => {
                let database = self.main()?.u32()?;
                Some(Event::DatabaseDropped { database })
            }
            rmgr::STANDBY => self.standby(operation),
            _ => None,
        }
    }

    /// The transaction that the record's subtransaction is a part of, where the record says so (`XLR_BLOCK_ID_TOPLEVEL_XID`): with
    /// `wal_level = logical`, the first record of each subtransaction does.
    #[must_use]
    pub fn top_xid(&self) -> Option<u32> {
        self.parts()?.top_xid
    }

    fn main(&self) -> Option<Cursor<'_>> {
        self.parts().map(|parts| Cursor(parts.main))
    }

    /// Operations in `catalog/pg_control.h`.
    fn xlog(&self, operation: u8) -> Option<Event> {
        match operation {
            // XLOG_CHECKPOINT_SHUTDOWN, XLOG_CHECKPOINT_ONLINE
            0x00 | 0x10 => checkpoint(operation == 0, self.main()?).map(Event::Checkpoint),
            rmgr::XLOG_SWITCH => Some(Event::Switch),
            // XLOG_RESTORE_POINT
            0x70 => {
                let mut main = self.main()?;
                let time = time(&mut main)?;
                let name = main.0.split(|byte| *byte == 0).next()?;
                Some(Event::RestorePoint {
                    time,
                    name: String::from_utf8_lossy(name).into_owned(),
                })
            }
            // XLOG_END_OF_RECOVERY
            0x90 => {
                let mut main = self.main()?;
                Some(Event::EndOfRecovery {
                    time: time(&mut main)?,
                    timeline: TimelineId(main.u32()?),
                    previous_timeline: TimelineId(main.u32()?),
                })
            }
            // XLOG_FPI
            0xB0 => {
                let block = self.first_block()?;
                (block.fork == MAIN_FORK).then_some(Event::Pages(block.file))
            }
            _ => None,
        }
    }

    /// Operations in `access/xact.h`.
    fn transaction(&self, operation: u8) -> Option<Event> {
        /// `XLOG_XACT_OPMASK`.
        const OPERATION: u8 = 0x70;
        let (kind, prepared) = match operation & OPERATION {
            0x00 => (EndKind::Commit, false),
            0x20 => (EndKind::Abort, false),
            0x30 => (EndKind::Commit, true),
            0x40 => (EndKind::Abort, true),
            // XLOG_XACT_ASSIGNMENT
            0x50 => {
                let mut main = self.main()?;
                return Some(Event::Assignment {
                    top: main.u32()?,
                    subxids: numbers(main.counted()?),
                });
            }
            _ => return None,
        };
        end(&self.header, self.version, kind, prepared, self.main()?).map(Event::End)
    }

    /// Operations in `access/heapam_xlog.h`.
    fn heap(&self, operation: u8) -> Option<Event> {
        /// `XLH_DELETE_IS_SUPER` and `XLH_DELETE_IS_PARTITION_MOVE`.
        const NOT_GONE: u8 = 1 << 3 | 1 << 4;
        let change = match operation & HEAP_OPERATION {
            0x00 => HeapChange::Insert,
            0x10 => HeapChange::Delete,
            // XLOG_HEAP_UPDATE, XLOG_HEAP_HOT_UPDATE
            0x20 | 0x40 => HeapChange::Update,
            // XLOG_HEAP_TRUNCATE
            0x30 => return truncate(self.main()?),
            0x70 => HeapChange::Inplace,
            _ => return None,
        };
        if change == HeapChange::Delete && self.main()?.0.get(7)? & NOT_GONE != 0 {
            return None;
        }
        let file = self.first_block()?.file;
        Some(Event::Heap {
            change,
            file,
            rows: 1,
        })
    }

    /// Operations in `storage/standbydefs.h`.
    fn standby(&self, operation: u8) -> Option<Event> {
        match operation {
            // XLOG_STANDBY_LOCK
            0x00 => {
                let locks = self.main()?.counted::<12>()?.iter().map(|lock| {
                    let [xid, database, relation] = thirds(*lock);
                    (xid, RelationOid { database, relation })
                });
                Some(Event::Locks(locks.collect()))
            }
            // XLOG_RUNNING_XACTS
            0x10 => Some(Event::RunningXacts {
                next_xid: u32_at(self.main()?.0, 12)?,
            }),
            _ => None,
        }
    }

    /// The first block that it changed. Blocks' headers stand in front, so most records need not be taken apart for it.
    fn first_block(&self) -> Option<Block> {
        let mut body = Cursor(self.body?);
        let id = body.u8()?;
        let (_, block) = block(self.version, &mut body)?;
        block.filter(|_| id <= MAX_BLOCK_ID)
    }

    /// Takes the body apart (`DecodeXLogRecord` in `access/transam/xlogreader.c`).
    fn parts(&self) -> Option<Parts<'_>> {
        let mut body = Cursor(self.body?);
        let mut parts = Parts::default();
        // Bytes of all blocks' images and data, which stand behind the headers.
        let mut blocks = 0_usize;
        let mut main = 0;
        while body.0.len() > blocks {
            match body.u8()? {
                BLOCK_ID_DATA_SHORT => main = body.u8()?.into(),
                BLOCK_ID_DATA_LONG => main = usize::try_from(body.u32()?).ok()?,
                BLOCK_ID_ORIGIN => {
                    body.u16()?;
                    continue;
                }
                BLOCK_ID_TOPLEVEL_XID => {
                    parts.top_xid = Some(body.u32()?);
                    continue;
                }
                id if id <= MAX_BLOCK_ID => {
                    blocks += block(self.version, &mut body)?.0;
                    continue;
                }
                _ => return None,
            }
            // The main data's header is the last.
            break;
        }
        let (_, data) = body.0.split_at_checked(blocks)?;
        (data.len() == main).then_some(Parts {
            main: data,
            ..parts
        })
    }
}

/// What a body is made of.
#[derive(Default)]
struct Parts<'a> {
    top_xid: Option<u32>,
    /// The resource manager's own data.
    main: &'a [u8],
}

/// Which file a record changed.
#[derive(Clone, Copy)]
struct Block {
    fork: u32,
    file: RelFileLocator,
}

/// `XLR_BLOCK_ID_DATA_SHORT`.
const BLOCK_ID_DATA_SHORT: u8 = 255;
/// `XLR_BLOCK_ID_DATA_LONG`.
const BLOCK_ID_DATA_LONG: u8 = 254;
/// `XLR_BLOCK_ID_ORIGIN`.
const BLOCK_ID_ORIGIN: u8 = 253;
/// `XLR_BLOCK_ID_TOPLEVEL_XID`.
const BLOCK_ID_TOPLEVEL_XID: u8 = 252;
/// `XLR_MAX_BLOCK_ID`.
const MAX_BLOCK_ID: u8 = 32;
/// `MAIN_FORKNUM`.
const MAIN_FORK: u32 = 0;
/// `INIT_FORKNUM`: the only fork of an unlogged relation whose creation is in the WAL.
const INIT_FORK: u32 = 3;
/// `XLOG_HEAP_OPMASK`.
const HEAP_OPERATION: u8 = 0x70;

/// `XLOG_DBASE_DROP`, which made room for another way to create databases in version 15.
fn dbase_drop(version: MajorVersion) -> u8 {
    if version < MajorVersion(15) {
        0x10
    } else {
        0x20
    }
}

/// Reads a block's header behind its id (`XLogRecordBlockHeader`): how many bytes of image and data belong to it, and the block unless it is
/// in the same file as the one before.
fn block(version: MajorVersion, body: &mut Cursor<'_>) -> Option<(usize, Option<Block>)> {
    const FORK: u8 = 0x0F;
    const HAS_IMAGE: u8 = 0x10;
    const SAME_REL: u8 = 0x80;
    const IMAGE_HAS_HOLE: u8 = 0x01;
    // BKPIMAGE_IS_COMPRESSED, from version 15 on a bit for each method.
    let compressed = if version < MajorVersion(15) {
        0x02
    } else {
        0x04 | 0x08 | 0x10
    };
    let flags = body.u8()?;
    let mut length = usize::from(body.u16()?);
    if flags & HAS_IMAGE != 0 {
        length += usize::from(body.u16()?);
        let _hole_offset = body.u16()?;
        let image = body.u8()?;
        if image & compressed != 0 && image & IMAGE_HAS_HOLE != 0 {
            let _hole_length = body.u16()?;
        }
    }
    let mut block = None;
    if flags & SAME_REL == 0 {
        block = Some(Block {
            fork: u32::from(flags & FORK),
            file: locator(body.take()?),
        });
    }
    let _block_number = body.u32()?;
    Some((length, block))
}

fn thirds(bytes: [u8; 12]) -> [u32; 3] {
    let [a, b, c, d, e, f, g, h, i, j, k, l] = bytes;
    [[a, b, c, d], [e, f, g, h], [i, j, k, l]].map(u32::from_le_bytes)
}

fn locator(bytes: [u8; 12]) -> RelFileLocator {
    let [tablespace, database, number] = thirds(bytes);
    RelFileLocator {
        tablespace,
        database,
        number,
    }
}

fn numbers(items: &[[u8; 4]]) -> Vec<u32> {
    items.iter().copied().map(u32::from_le_bytes).collect()
}

fn time(main: &mut Cursor<'_>) -> Option<PgTimestamp> {
    main.take().map(i64::from_le_bytes).map(PgTimestamp)
}

/// `xl_heap_truncate`.
fn truncate(mut main: Cursor<'_>) -> Option<Event> {
    let database = main.u32()?;
    let count = usize::try_from(main.u32()?).ok()?;
    let _flags_and_padding = main.u32()?;
    Some(Event::Truncate {
        database,
        relations: numbers(main.items(count)?),
    })
}

/// `CheckPoint`, up to its time.
fn checkpoint(shutdown: bool, mut main: Cursor<'_>) -> Option<Checkpoint> {
    /// `PgTimestamp`'s beginning in `pg_time_t`.
    const EPOCH: i64 = 946_684_800;
    let redo = Lsn(main.u64()?);
    let timeline = TimelineId(main.u32()?);
    let previous_timeline = TimelineId(main.u32()?);
    // fullPageWrites, and from version 17 on wal_level in what was padding.
    main.u64()?;
    let next_xid = main.u64()?;
    // nextOid to oldestMultiDB, and padding.
    main.take::<32>()?;
    let seconds = i64::from_le_bytes(main.take()?).checked_sub(EPOCH)?;
    Some(Checkpoint {
        shutdown,
        redo,
        timeline,
        previous_timeline,
        next_xid,
        time: PgTimestamp(seconds.checked_mul(1_000_000)?),
    })
}

/// `xl_xact_commit` and `xl_xact_abort`, which are the same but for the invalidations, which aborts do not have (`ParseCommitRecord` and
/// `ParseAbortRecord` in `access/rmgrdesc/xactdesc.c`).
fn end(
    header: &RecordHeader,
    version: MajorVersion,
    kind: EndKind,
    prepared: bool,
    mut main: Cursor<'_>,
) -> Option<TransactionEnd> {
    /// `XLOG_XACT_HAS_INFO`, in the header.
    const HAS_INFO: u8 = 0x80;
    const HAS_DBINFO: u32 = 1 << 0;
    const HAS_SUBXACTS: u32 = 1 << 1;
    const HAS_RELFILELOCATORS: u32 = 1 << 2;
    const HAS_INVALS: u32 = 1 << 3;
    const HAS_TWOPHASE: u32 = 1 << 4;
    const HAS_DROPPED_STATS: u32 = 1 << 8;

    let mut end = TransactionEnd {
        kind,
        xid: header.xid,
        prepared,
        time: time(&mut main)?,
        subxids: Vec::new(),
        database: 0,
        dropped_files: Vec::new(),
        dropped_stats: Vec::new(),
        invalidated: Vec::new(),
    };
    let present = match header.info & HAS_INFO {
        0 => 0,
        _ => main.u32()?,
    };
    if present & HAS_DBINFO != 0 {
        end.database = main.u32()?;
        let _tablespace = main.u32()?;
    }
    if present & HAS_SUBXACTS != 0 {
        end.subxids = numbers(main.counted()?);
    }
    if present & HAS_RELFILELOCATORS != 0 {
        end.dropped_files = main.counted()?.iter().copied().map(locator).collect();
    }
    if present & HAS_DROPPED_STATS != 0 && version >= MajorVersion(15) {
        end.dropped_stats = dropped_stats(version, &mut main)?;
    }
    if present & HAS_INVALS != 0 && kind == EndKind::Commit {
        end.invalidated = invalidated(main.counted()?);
    }
    if present & HAS_TWOPHASE != 0 {
        end.xid = main.u32()?;
    }
    Some(end)
}

/// `xl_xact_stats_item`: kind, database, object; from version 18 on objects' numbers have 64 bits, of which relations use the lower half.
fn dropped_stats(version: MajorVersion, main: &mut Cursor<'_>) -> Option<Vec<RelationOid>> {
    /// `PGSTAT_KIND_RELATION`.
    const RELATION: u32 = 2;
    let count = usize::try_from(main.u32()?).ok()?;
    let relation = |item: [u8; 12]| {
        let [kind, database, relation] = thirds(item);
        (kind == RELATION).then_some(RelationOid { database, relation })
    };
    Some(if version < MajorVersion(18) {
        main.items(count)?
            .iter()
            .copied()
            .filter_map(relation)
            .collect()
    } else {
        main.items::<16>(count)?
            .iter()
            .filter_map(|item| relation(*item.first_chunk()?))
            .collect()
    })
}

/// Of `SharedInvalidationMessage`s (`storage/sinval.h`) the relations named by `SharedInvalRelcacheMsg`, each once.
fn invalidated(messages: &[[u8; 16]]) -> Vec<RelationOid> {
    /// `SHAREDINVALRELCACHE_ID`, of whose four bytes the message leaves three undefined.
    const RELCACHE: u8 = (-2_i8).cast_unsigned();
    let mut relations: Vec<_> = messages
        .iter()
        .filter_map(|message| {
            let (id, rest) = message.split_first()?;
            let (database, relation) = (u32_at(rest, 3)?, u32_at(rest, 7)?);
            // 0 stands for all relations.
            (*id == RELCACHE && relation != 0).then_some(RelationOid { database, relation })
        })
        .collect();
    relations.sort_unstable();
    relations.dedup();
    relations
}
