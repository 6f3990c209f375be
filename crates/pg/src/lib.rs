//! PostgreSQL's own formats: bytes in, values out.
//!
//! Nothing here touches files, the network or a clock, and no input makes it panic. Each module names the
//! file and symbol of PostgreSQL's source that defines what it reads; versions 14 to 18 are known.

pub mod backup_label;
pub mod conf;
pub mod control;
mod field;
pub mod history;
pub mod ids;
pub mod lsn;
pub mod manifest;
pub mod page;
pub mod relation_file;
pub mod tablespace_map;
pub mod wal_name;
pub mod wal_page;
pub mod wal_record;

pub use backup_label::BackupLabel;
pub use control::{ControlFile, system_identifier_of};
pub use history::{TimelineHistory, TimelineSpan};
pub use ids::{MajorVersion, SystemIdentifier, TimelineId, WalSegmentSize};
pub use lsn::Lsn;
pub use manifest::{ManifestFile, ManifestSummary, WalRange, parse_manifest};
pub use page::{PageVerdict, verify_page};
pub use relation_file::RelationFile;
pub use wal_name::{SegmentName, WalFileName};
pub use wal_page::{LongPageHeader, SegmentFacts, SegmentMismatch, check_segment};
