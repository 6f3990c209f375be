//! The names of events.

use std::fmt;
use std::str::FromStr;

use jiff::Timestamp;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use super::{SystemKeys, is_stamp, stamp};
use crate::digest::parse_text;

/// An event's id, `20261122T175007Z-0badcafe`: when it was written, by the writer's clock, and random digits. Ids sort by time.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct EventId(String);

impl EventId {
    /// The id of an event of `at`; `random` keeps two of one second apart.
    #[must_use]
    pub fn new(at: Timestamp, random: u32) -> Self {
        Self(stamp(at, random))
    }

    /// The id as text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// A text that is not an event's id.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not an event's id (they look like 20261122T175007Z-0badcafe)")]
pub struct BadEventId(String);

impl FromStr for EventId {
    type Err = BadEventId;

    fn from_str(text: &str) -> Result<Self, BadEventId> {
        if is_stamp(text) {
            Ok(Self(text.to_owned()))
        } else {
            Err(BadEventId(text.chars().take(100).collect()))
        }
    }
}

impl fmt::Display for EventId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.0)
    }
}

impl Serialize for EventId {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&self.0)
    }
}

impl<'de> Deserialize<'de> for EventId {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        parse_text(deserializer)
    }
}

/// What an event's key says. Names sort by time.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct EventName {
    /// Which event.
    pub id: EventId,
    /// What kind; readers ignore those that they do not know.
    pub kind: String,
}

impl SystemKeys {
    /// An event.
    #[must_use]
    pub fn event(&self, name: &EventName) -> String {
        self.under(format_args!("events/{}.{}.json", name.id, name.kind))
    }

    /// Every event.
    #[must_use]
    pub fn events_prefix(&self) -> String {
        self.under(format_args!("events/"))
    }

    /// What this key, from the repository's root, says of its event; `None` where it is no event's.
    #[must_use]
    pub fn parse_event(&self, key: &str) -> Option<EventName> {
        let (id, kind) = key
            .strip_prefix(&self.events_prefix())?
            .strip_suffix(".json")?
            .split_once('.')?;
        let letters = |byte: u8| byte.is_ascii_lowercase() || byte == b'-';
        let fits = (1..=63).contains(&kind.len()) && kind.bytes().all(letters);
        Some(EventName {
            id: id.parse().ok().filter(|_| fits)?,
            kind: kind.to_owned(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use walden_pg::SystemIdentifier;

    #[test]
    fn an_events_key_is_read_back_and_others_are_not_read_as_one() {
        let keys = SystemKeys {
            cluster: "main".parse().unwrap(),
            system: SystemIdentifier(7_302_911),
        };
        let name = EventName {
            id: EventId::new("2026-11-23T01:30:00.5Z".parse().unwrap(), 0x0bad_cafe),
            kind: "verified".to_owned(),
        };
        let key = "main/7302911/events/20261123T013000Z-0badcafe.verified.json";
        assert_eq!(keys.event(&name), key);
        assert_eq!(keys.parse_event(key), Some(name));
        for other in [
            "main/7302911/events/20261123T013000Z-0badcafe.json",
            "main/7302911/events/20261123T013000Z-0badcafe..json",
            "main/7302911/events/20261123T013000Z-0badcafe.a/b.json",
            "main/7302911/events/x/20261123T013000Z-0badcafe.verified.json",
            "main/7302911/events/20261123T013000Z.verified.json",
            "main/7302912/events/20261123T013000Z-0badcafe.verified.json",
        ] {
            assert_eq!(keys.parse_event(other), None, "{other}");
        }
    }
}
