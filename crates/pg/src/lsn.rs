//! Positions in the write-ahead log (`XLogRecPtr` in `access/xlogdefs.h`).

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// A byte position in a cluster's write-ahead log.
///
/// Written as PostgreSQL's `pg_lsn` type prints it: both halves in hexadecimal, `0/16B3748`.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
)]
#[serde(try_from = "String", into = "String")]
pub struct Lsn(pub u64);

impl Lsn {
    /// `InvalidXLogRecPtr`: no position at all. No record ever starts here.
    pub const INVALID: Lsn = Lsn(0);

    /// The position `bytes` further on, or `None` beyond the end of the address space.
    pub fn checked_add(self, bytes: u64) -> Option<Lsn> {
        self.0.checked_add(bytes).map(Lsn)
    }

    /// The bytes from `earlier` up to this position, or `None` where `earlier` is in fact later.
    pub fn distance_from(self, earlier: Lsn) -> Option<u64> {
        self.0.checked_sub(earlier.0)
    }
}

impl fmt::Display for Lsn {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:X}/{:X}", self.0 >> 32, self.0 & 0xFFFF_FFFF)
    }
}

/// The text is not an LSN.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "{0:?} is not an LSN: two hexadecimal numbers of up to 8 digits with a slash between are expected, as in 0/16B3748"
)]
pub struct ParseLsnError(String);

impl FromStr for Lsn {
    type Err = ParseLsnError;

    /// Accepts what `pg_lsn_in_internal` (`utils/adt/pg_lsn.c`) does: 1 to 8 digits on each side, in either case.
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let half = |digits: &str| {
            let fits =
                (1..=8).contains(&digits.len()) && digits.bytes().all(|b| b.is_ascii_hexdigit());
            fits.then(|| u64::from_str_radix(digits, 16).ok()).flatten()
        };
        text.split_once('/')
            .and_then(|(high, low)| Some(Lsn(half(high)? << 32 | half(low)?)))
            .ok_or_else(|| ParseLsnError(text.to_owned()))
    }
}

impl TryFrom<String> for Lsn {
    type Error = ParseLsnError;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        text.parse()
    }
}

impl From<Lsn> for String {
    fn from(lsn: Lsn) -> String {
        lsn.to_string()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn prints_as_postgresql_does() {
        assert_eq!(Lsn(0x16B_3748).to_string(), "0/16B3748");
        assert_eq!(Lsn(u64::MAX).to_string(), "FFFFFFFF/FFFFFFFF");
        assert_eq!(Lsn::INVALID.to_string(), "0/0");
    }

    #[test]
    fn refuses_what_pg_lsn_refuses() {
        for text in [
            "",
            "/",
            "0/",
            "/0",
            "0",
            "0/0/0",
            "123456789/0",
            "0/123456789",
            "+1/0",
            "0/-1",
            "G/0",
            " 0/0",
            "0/0 ",
        ] {
            assert!(
                text.parse::<Lsn>().is_err(),
                "{text:?} was taken for an LSN"
            );
        }
        assert_eq!("00000001/0000000a".parse(), Ok(Lsn(0x1_0000_000A)));
    }

    #[test]
    fn distance_never_wraps() {
        assert_eq!(Lsn(5).distance_from(Lsn(3)), Some(2));
        assert_eq!(Lsn(3).distance_from(Lsn(5)), None);
        assert_eq!(Lsn(u64::MAX).checked_add(1), None);
    }

    proptest! {
        #[test]
        fn text_and_json_round_trip(raw: u64) {
            let lsn = Lsn(raw);
            prop_assert_eq!(lsn.to_string().parse(), Ok(lsn));
            let json = serde_json::to_string(&lsn).unwrap();
            prop_assert_eq!(serde_json::from_str::<Lsn>(&json).unwrap(), lsn);
        }

        #[test]
        fn no_text_panics(text: String) {
            if let Ok(lsn) = text.parse::<Lsn>() {
                prop_assert_eq!(lsn.to_string().parse(), Ok(lsn));
            }
        }
    }
}
