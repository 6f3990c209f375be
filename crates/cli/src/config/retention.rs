//! `retention` and `expire`.

use std::str::FromStr;

use jiff::SignedDuration;
use serde::Deserialize;
use walden_model::retention::RetentionPolicy;

use super::duration::Span;
use super::raw::{Text, seconds};

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct RawRetention {
    full: Option<Text<Count>>,
    days: Option<Text<Count>>,
    window: Option<Text<Span>>,
    daily: Option<Text<Count>>,
    weekly: Option<Text<Count>>,
    monthly: Option<Text<Count>>,
    yearly: Option<Text<Count>>,
    minimum: Option<Text<Count>>,
}

impl RawRetention {
    pub fn resolve(self) -> RetentionPolicy {
        let count = |count: Option<Text<Count>>| count.map(|count| count.0.0);
        RetentionPolicy {
            full: count(self.full),
            days: count(self.days),
            window: self
                .window
                .map(|span| SignedDuration::try_from(span.0.0).unwrap_or(SignedDuration::MAX)),
            daily: count(self.daily),
            weekly: count(self.weekly),
            monthly: count(self.monthly),
            yearly: count(self.yearly),
            minimum: count(self.minimum).unwrap_or(RetentionPolicy::default().minimum),
        }
    }
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct RawExpire {
    pub abandoned_after: Text<Span>,
}

impl Default for RawExpire {
    fn default() -> Self {
        Self {
            abandoned_after: seconds(24 * 60 * 60),
        }
    }
}

/// How many.
#[derive(Debug, Clone, Copy)]
struct Count(u32);

impl FromStr for Count {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text.parse() {
            Ok(count @ 1..=100_000) => Ok(Self(count)),
            _ => Err(format!(
                "{text} is not a number of things to keep: write 1 to 100000, or leave the key out"
            )),
        }
    }
}
