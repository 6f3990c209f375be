//! PostgreSQL's own formats: bytes in, values out.
//!
//! Nothing here touches files, the network or a clock, and no input makes it panic. Each module names the
//! file and symbol of PostgreSQL's source that defines what it reads; versions 14 to 18 are known.

mod field;
pub mod ids;
pub mod lsn;
pub mod wal_name;
pub mod wal_page;

pub use ids::{MajorVersion, SystemIdentifier, TimelineId, WalSegmentSize};
pub use lsn::Lsn;
pub use wal_name::{SegmentName, WalFileName};
pub use wal_page::{LongPageHeader, SegmentFacts, SegmentMismatch, check_segment};
