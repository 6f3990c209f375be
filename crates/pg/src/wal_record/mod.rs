//! WAL records (`access/xlogrecord.h`): read from a segment, proven by their CRC, told apart by what they say.

mod event;

pub use event::{
    Checkpoint, EndKind, Event, HeapChange, PgTimestamp, RelFileLocator, RelationOid,
    TransactionEnd,
};
