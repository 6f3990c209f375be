//! WAL records (`access/xlogrecord.h`): read from a segment, proven by their CRC, told apart by what they say.

mod decode;
mod event;
mod page;
mod reader;
mod record;
pub mod rmgr;

pub use event::{
    Checkpoint, EndKind, Event, HeapChange, PgTimestamp, RelFileLocator, RelationOid,
    TransactionEnd,
};
pub use reader::{PartBytes, SegmentEnd, SegmentReader, Stop};
pub use record::{Record, RecordHeader, record_end, whole_record};
