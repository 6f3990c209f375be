//! Resource managers by their numbers (`access/rmgrlist.h`); the same in versions 14 to 18.

/// `RM_XLOG_ID`.
pub const XLOG: u8 = 0;
/// `RM_XACT_ID`.
pub const XACT: u8 = 1;
/// `RM_SMGR_ID`.
pub const SMGR: u8 = 2;
/// `RM_DBASE_ID`.
pub const DBASE: u8 = 4;
/// `RM_STANDBY_ID`.
pub const STANDBY: u8 = 8;
/// `RM_HEAP2_ID`.
pub const HEAP2: u8 = 9;
/// `RM_HEAP_ID`.
pub const HEAP: u8 = 10;
