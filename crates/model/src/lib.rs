//! Walden's own words: the repository's keys and documents, what a cluster's archive covers, and the plans made from that.
//! Values in, values out: no files, no network, no clock (see docs/ARCHITECTURE.md and docs/FORMAT.md).

pub mod catalog;
mod choice;
pub mod copy;
pub mod coverage;
pub mod digest;
pub mod document;
pub mod event;
pub mod file_map;
pub mod framed;
pub mod incident;
pub mod index;
pub mod keys;
pub mod names;
pub mod note;
mod path;
pub mod plan;
pub mod records;
pub mod resolve;
pub mod retention;
pub mod rollup;
pub mod target;
pub mod unarchived;
pub mod union;
pub mod unreachable;
pub mod verify;
pub mod windows;

pub use catalog::{Catalog, DamagedDocument, MissingHistory, UnfinishedBackup, Window};
pub use coverage::{Break, Gap, TimelineWal};
pub use digest::{KeyedDigest, Sha256Digest, ShortDigest};
pub use document::{Document, DocumentError};
pub use event::{Event, EventBody, Resolved, Verified, VerifyMode, Whose};
pub use file_map::{Extent, FileBody, FileContent, FileEntry, FileEntryError};
pub use framed::{FrameEntry, Head, HeadKind, Seal, Tail, Writer};
pub use keys::{BackupId, ClusterName, EventId, EventName, SystemKeys, WalName};
pub use note::Note;
pub use path::WalPath;
pub use plan::{GUARDS, PlanOptions, RecoveryPlan, Signal, WalRun, main_configuration};
pub use records::{
    AbandonedDocument, BackupKind, BackupRecord, CommitDocument, ControlSettings, DamagedBlock,
    Encryption, IdentityDocument, NamesRef, PackRef, RandomId, RepositoryDocument, SegmentRange,
    ShardRef, Snapshot, StartedDocument, Tablespace, UnreadDatabase, WalRange,
};
pub use rollup::{Block, Level, MAX_ROLLUP, Piece, RollUp, RollUps};
pub use target::{
    BadTarget, RecoveryTarget, TargetAction, TargetKind, TargetTimeline, parse_target_time,
    postgres_time,
};
pub use union::{Holding, Lack};
pub use unreachable::{Candidate, CannotReach, GapOnTheWay, Offer, Unreachable};
pub use verify::{Affected, Finding, FindingKind, Findings, FoundGap, Gaps, Severity, Stored};
pub use windows::{TimelineWindow, WindowStart};

#[cfg(test)]
mod break_tests;
#[cfg(test)]
mod document_tests;
#[cfg(test)]
mod file_map_tests;
#[cfg(test)]
mod plan_oracle;
#[cfg(test)]
mod plan_tests;
#[cfg(test)]
mod refusal_tests;
#[cfg(test)]
mod sample;
