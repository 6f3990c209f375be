//! Which records matter, by their headers alone.

use walden_pg::wal_record::rmgr;

/// Whether a record can matter, by its header alone.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Matter {
    /// It says something that is told.
    Yes,
    /// It brings content, which matters if its file is a new one.
    Content,
    /// It says nothing.
    No,
}

impl Matter {
    /// By resource manager and `xl_info` (heapam_xlog.h, pg_control.h).
    pub fn of(manager: u8, info: u8) -> Self {
        const HEAP_OPERATIONS: u8 = 0x70;
        match (manager, info & 0xF0, info & HEAP_OPERATIONS) {
            // XLOG_FPI_FOR_HINT, XLOG_FPI.
            (rmgr::XLOG, 0xA0, _) => Self::No,
            (rmgr::XLOG, 0xB0, _) => Self::Content,
            // XLOG_HEAP_INSERT, XLOG_HEAP_CONFIRM, XLOG_HEAP_LOCK; XLOG_HEAP2_MULTI_INSERT.
            (rmgr::HEAP, _, 0x00) | (rmgr::HEAP2, _, 0x50) => Self::Content,
            (rmgr::HEAP, _, 0x50 | 0x60) | (rmgr::HEAP2, ..) => Self::No,
            (rmgr::XLOG | rmgr::XACT | rmgr::SMGR | rmgr::DBASE | rmgr::STANDBY, ..)
            | (rmgr::HEAP, ..) => Self::Yes,
            _ => Self::No,
        }
    }
}
