//! Events (`docs/FORMAT.md`, "Events"): what was done to a repository, or found in it, written down beside what it is about. Append-only:
//! a later event says otherwise, none is changed.

use jiff::Timestamp;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use walden_pg::WalFileName;

use crate::digest::{Sha256Digest, ShortDigest};
use crate::document::Document;
use crate::framed::Writer;
use crate::keys::{BackupId, EventId, EventName};
use crate::records::RandomId;

/// What an event of one kind says.
pub trait EventBody: Serialize + DeserializeOwned {
    /// The kind: in the key, and in the document's `event`. Lower-case letters and hyphens.
    const EVENT: &'static str;
}

/// An event.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(bound = "")]
pub struct Event<T: EventBody> {
    /// Its kind: [`EventBody::EVENT`].
    event: String,
    /// The id that stands in its key.
    pub event_id: EventId,
    /// The registration's archive id.
    pub archive_id: RandomId,
    /// When, by the writer's clock.
    pub at: Timestamp,
    /// Who wrote it.
    pub writer: Writer,
    /// What it says.
    #[serde(flatten)]
    pub body: T,
}

impl<T: EventBody> Event<T> {
    /// An event of `at`; `random` keeps two of one second apart.
    #[must_use]
    pub fn new(archive_id: RandomId, at: Timestamp, random: u32, writer: Writer, body: T) -> Self {
        Self {
            event: T::EVENT.to_owned(),
            event_id: EventId::new(at, random),
            archive_id,
            at,
            writer,
            body,
        }
    }

    /// What its key says.
    #[must_use]
    pub fn name(&self) -> EventName {
        EventName {
            id: self.event_id.clone(),
            kind: self.event.clone(),
        }
    }
}

impl<T: EventBody> Document for Event<T> {
    const KIND: &'static str = "event";

    fn validate(&self) -> Result<(), String> {
        if self.event == T::EVENT {
            Ok(())
        } else {
            Err(format!(
                "it is an event of kind {:?}, not {:?}",
                self.event,
                T::EVENT
            ))
        }
    }
}

/// What every event says, of whatever kind.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct AnyEvent {
    /// Its kind.
    pub event: String,
    /// The id that stands in its key.
    pub event_id: EventId,
    /// The registration's archive id.
    pub archive_id: RandomId,
}

impl Document for AnyEvent {
    const KIND: &'static str = "event";
}

/// How much a verify reads.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum VerifyMode {
    /// What is there, by listing: presence, sizes, gaps.
    Names,
    /// Names of everything, and the bytes of what was stored since the last good verify.
    New,
    /// Every byte.
    All,
}

impl std::fmt::Display for VerifyMode {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.pad(match self {
            Self::Names => "names",
            Self::New => "new",
            Self::All => "all",
        })
    }
}

/// The archive, or one backup of it, was verified.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Verified {
    /// Which repository: copies of the event in another one say nothing of that.
    pub repository_id: RandomId,
    /// How much was read.
    pub mode: VerifyMode,
    /// The one backup that was looked at; `None`: everything.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub backup: Option<BackupId>,
    /// Whether everything could be looked at that should be.
    pub complete: bool,
    /// By the store's clock, until when everything that is stored has been read and found whole, by this verify or those before it; absent
    /// where that is not so.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub proven_until: Option<Timestamp>,
    /// Objects that were read.
    pub objects: u64,
    /// Their bytes.
    pub bytes: u64,
    /// How long it took.
    pub seconds: u64,
    /// Findings: stored, and damaged or not what it should be.
    pub damaged: u64,
    /// Findings: WAL that backups need, or that would carry them on, and that is not there.
    pub gaps: u64,
    /// Findings: could not be looked at.
    pub outages: u64,
    /// Findings: not proven, because it is encrypted.
    pub unproven: u64,
    /// Findings that a person should know and that are no fault.
    pub notes: u64,
    /// Backups that cannot be restored, by what was found; the first 1000.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub lost_backups: Vec<BackupId>,
}

impl EventBody for Verified {
    const EVENT: &'static str = "verified";
}

/// A person said whose an archived WAL file is, of whose name another file was set aside.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Resolved {
    /// The file.
    pub file: WalFileName,
    /// The content of the archived one.
    pub archived: Sha256Digest,
    /// The content of the one that was set aside.
    pub aside: Sha256Digest,
    /// Whose the archived one is.
    pub archived_is: Whose,
}

impl Resolved {
    /// Whether it speaks of these two.
    #[must_use]
    pub fn is_of(&self, file: WalFileName, archived: &Sha256Digest, aside: ShortDigest) -> bool {
        self.file == file && self.archived == *archived && self.aside.short() == aside
    }
}

impl EventBody for Resolved {
    const EVENT: &'static str = "resolved";
}

/// Whose an archived file is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Whose {
    /// This cluster's: it may be recovered with, and what was set aside does not matter.
    Ours,
    /// Another server's: nothing goes across it, for good.
    Foreign,
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::document::{decode, encode};

    #[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
    struct Other {}

    impl EventBody for Other {
        const EVENT: &'static str = "other";
    }

    #[test]
    fn an_event_is_read_back_and_one_of_another_kind_is_refused() {
        let at: Timestamp = "2026-11-23T01:30:00Z".parse().unwrap();
        let writer = Writer {
            host: "db1".to_owned(),
            started_at: at,
            pid: 4711,
            version: "0.1.0".to_owned(),
        };
        let body = Verified {
            repository_id: RandomId([1; 16]),
            mode: VerifyMode::All,
            backup: None,
            complete: true,
            proven_until: Some(at),
            objects: 3,
            bytes: 4096,
            seconds: 1,
            damaged: 0,
            gaps: 0,
            outages: 0,
            unproven: 0,
            notes: 0,
            lost_backups: Vec::new(),
        };
        let event = Event::new(RandomId([7; 16]), at, 0x0bad_cafe, writer, body);
        let bytes = encode(&event).unwrap();
        assert_eq!(decode::<Event<Verified>>(&bytes).unwrap(), event);
        let refused = decode::<Event<Other>>(&bytes).unwrap_err().to_string();
        assert!(
            refused.contains(r#"an event of kind "verified", not "other""#),
            "expected both kinds to be named, found: {refused}"
        );
    }
}
