//! Spans of time as people write them in PostgreSQL's configuration: a number and a unit.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

/// A span of time written with one of PostgreSQL's units (`ms`, `s`, `min`, `h`, `d`; guc.c `time_unit_conversion_table`).
///
/// Unlike PostgreSQL's, a number without a unit is refused: there is no unit that everybody would expect.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Span(pub Duration);

/// A text that is no [`Span`].
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "\"{0}\" is not a span of time: write a whole number and a unit, as in 50s, 10min, 1h (units: ms, s, min, h, d)"
)]
pub struct BadSpan(String);

const UNITS: [(&str, u64); 5] = [
    ("ms", 1),
    ("s", 1_000),
    ("min", 60_000),
    ("h", 3_600_000),
    ("d", 86_400_000),
];

impl FromStr for Span {
    type Err = BadSpan;

    fn from_str(text: &str) -> Result<Self, BadSpan> {
        let bad = || BadSpan(text.to_owned());
        let (digits, unit) = text
            .find(|c: char| !c.is_ascii_digit())
            .and_then(|at| text.split_at_checked(at))
            .ok_or_else(bad)?;
        let number: u64 = digits.parse().map_err(|_| bad())?;
        let (_, milliseconds) = UNITS
            .iter()
            .find(|(name, _)| *name == unit.trim_start())
            .ok_or_else(bad)?;
        let span = number.checked_mul(*milliseconds).ok_or_else(bad)?;
        // Beyond a year nothing here is meant, and deadlines computed from it could overflow a clock.
        if span == 0 || span > 366 * 86_400_000 {
            return Err(bad());
        }
        Ok(Self(Duration::from_millis(span)))
    }
}

impl fmt::Display for Span {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let milliseconds = u64::try_from(self.0.as_millis()).unwrap_or(u64::MAX);
        let (unit, size) = UNITS
            .iter()
            .rev()
            .find(|(_, size)| milliseconds.is_multiple_of(*size))
            .copied()
            .unwrap_or(("ms", 1));
        write!(f, "{}{unit}", milliseconds / size)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn spans_are_written_in_postgresql_units() {
        for (text, milliseconds, shown) in [
            ("50s", 50_000, "50s"),
            ("10min", 600_000, "10min"),
            ("1h", 3_600_000, "1h"),
            ("1 h", 3_600_000, "1h"),
            ("250ms", 250, "250ms"),
            ("90s", 90_000, "90s"),
            ("120s", 120_000, "2min"),
            ("2d", 172_800_000, "2d"),
        ] {
            let span: Span = text
                .parse()
                .unwrap_or_else(|e| panic!("{text} is a span: {e}"));
            assert_eq!(span.0.as_millis(), milliseconds, "{text} in milliseconds");
            assert_eq!(
                span.to_string(),
                shown,
                "{text} printed in its largest whole unit"
            );
        }
    }

    #[test]
    fn what_is_no_span_is_refused() {
        for text in [
            "",
            "50",
            "s",
            "-5s",
            "5 minutes",
            "1.5h",
            "0s",
            "99999999999999999999s",
            "18446744073709551615h",
            "400d",
            "5S",
        ] {
            assert_eq!(
                text.parse::<Span>(),
                Err(BadSpan(text.to_owned())),
                "{text:?} is no span"
            );
        }
    }
}
