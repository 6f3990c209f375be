//! What verifies found, as far as expiry asks.

use std::collections::BTreeSet;

use jiff::Timestamp;

use crate::event::{Verified, VerifyMode};
use crate::keys::BackupId;

/// What the verifies of a repository found, taken together from the newest back.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Verdict {
    /// Backups that cannot be restored, as found since the last time that every byte was read, or then: to look at names alone, or at what
    /// is new, takes no finding back.
    pub lost: BTreeSet<BackupId>,
    /// Until when what is stored has been read and found whole, but for the lost.
    pub proven_until: Option<Timestamp>,
    all_read: bool,
}

impl Verdict {
    /// Adds the next older one.
    pub fn add(&mut self, verified: Verified) {
        if !verified.complete {
            return;
        }
        if !self.all_read {
            self.lost.extend(verified.lost_backups);
        }
        if verified.backup.is_none() {
            self.all_read |= verified.mode == VerifyMode::All;
            self.proven_until = self.proven_until.or(verified.proven_until);
        }
    }

    /// Whether older ones say nothing more.
    #[must_use]
    pub fn is_whole(&self) -> bool {
        self.all_read && self.proven_until.is_some()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sample::{id, time};

    fn verified(mode: VerifyMode, lost: &[u32], proven_until: Option<i64>) -> Verified {
        let json = serde_json::json!({
            "repository_id": "01".repeat(16), "mode": mode, "complete": true, "proven_until": proven_until.map(time), "objects": 1, "bytes": 1,
            "seconds": 1, "damaged": 0, "gaps": 0, "outages": 0, "unproven": 0, "notes": 0,
            "lost_backups": lost.iter().map(|lost| id(*lost)).collect::<Vec<_>>(),
        });
        serde_json::from_value(json).unwrap()
    }

    #[test]
    fn only_reading_every_byte_takes_a_finding_back() {
        use VerifyMode::{All, Names, New};
        let mut verdict = Verdict::default();
        let mut incomplete = verified(All, &[9], Some(9));
        incomplete.complete = false;
        let mut single = verified(All, &[6], None);
        single.backup = Some(id(6));
        let newest_first = [
            incomplete,
            verified(Names, &[], None),
            single,
            verified(New, &[5], None),
            verified(All, &[3], None),
            verified(New, &[1], Some(7)),
        ];
        for event in newest_first {
            assert!(!verdict.is_whole(), "{verdict:?}: an older one says more");
            verdict.add(event);
        }
        assert_eq!(verdict.lost, [id(3), id(5), id(6)].into());
        assert_eq!(verdict.proven_until, Some(time(7)));
        assert!(verdict.is_whole());
    }
}
