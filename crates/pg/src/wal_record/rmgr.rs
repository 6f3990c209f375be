//! Resource managers by their numbers (`access/rmgrlist.h`); the same in versions 14 to 18.

use crate::MajorVersion;

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

/// Resource manager XLOG's operation `XLOG_SWITCH`.
pub(super) const XLOG_SWITCH: u8 = 0x40;

/// Whether a resource manager can have this number: a built-in one up to `RM_MAX_ID`, or from version 15 on one of an extension
/// (`RmgrIdIsCustom`).
pub(super) fn is_valid(id: u8, version: MajorVersion) -> bool {
    id <= 21 || (id >= 128 && version >= MajorVersion(15))
}
