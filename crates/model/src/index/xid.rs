//! Transaction ids: 32 bits that wrap.

use std::hash::Hasher;

use super::XidRange;

/// The first id of a transaction of its own; 1 and 2 stand for what `initdb` did and for frozen rows (`FirstNormalTransactionId`).
const FIRST_NORMAL: u32 = 3;

/// Whether `a` comes before `b` in the circular order of `TransactionIdPrecedes` (transam.c). It is an order only among ids less than 2^31 apart.
#[must_use]
pub fn precedes(a: u32, b: u32) -> bool {
    if a < FIRST_NORMAL || b < FIRST_NORMAL {
        return a < b;
    }
    a.wrapping_sub(b).cast_signed() < 0
}

/// The 64-bit id whose lower half is `xid` and that is nearest to `reference`, a full id of about the same time.
#[must_use]
pub fn full_xid(reference: u64, xid: u32) -> u64 {
    let distance = i64::from(xid.wrapping_sub(reference as u32).cast_signed());
    match reference.checked_add_signed(distance) {
        Some(full) => full,
        // The nearest is before the first id of all, or behind the last.
        None => (reference & !u64::from(u32::MAX)) | u64::from(xid),
    }
}

impl XidRange {
    /// The range of one id.
    #[must_use]
    pub fn of(xid: u32) -> Self {
        Self {
            oldest: xid,
            newest: xid,
        }
    }

    /// Whether the id lies in the range.
    #[must_use]
    pub fn contains(&self, xid: u32) -> bool {
        xid.wrapping_sub(self.oldest) <= self.newest.wrapping_sub(self.oldest)
    }

    /// Makes the range cover an id, too.
    pub fn extend(&mut self, xid: u32) {
        if self.contains(xid) {
            return;
        }
        if precedes(xid, self.oldest) {
            self.oldest = xid;
        } else {
            self.newest = xid;
        }
    }

    /// Makes the range cover another. Two that together go around the circle become all ids.
    pub fn cover(&mut self, other: &XidRange) {
        let length = |range: &Self| i64::from(range.newest.wrapping_sub(range.oldest));
        // Places on a line on which this range begins at 0.
        let apart = other.oldest.wrapping_sub(self.oldest);
        let begin = if self.contains(other.oldest) {
            i64::from(apart)
        } else {
            i64::from(apart.cast_signed())
        };
        let first = begin.min(0);
        let last = length(self).max(begin + length(other));
        *self = if last - first < i64::from(u32::MAX) {
            Self {
                oldest: self.oldest.wrapping_add(first as u32),
                newest: self.oldest.wrapping_add(last as u32),
            }
        } else {
            Self {
                oldest: 0,
                newest: u32::MAX,
            }
        };
    }

    /// Both ranges, as far as there are any.
    pub(super) fn joined(first: Option<Self>, other: Option<Self>) -> Option<Self> {
        match (first, other) {
            (Some(mut range), Some(other)) => {
                range.cover(&other);
                Some(range)
            }
            (one, other) => one.or(other),
        }
    }
}

/// Ids as ranges without holes.
pub(super) fn ranges(mut xids: Vec<u32>) -> Vec<XidRange> {
    // Circular order: those of one transaction are near to each other.
    if let Some(&first) = xids.first() {
        xids.sort_unstable_by_key(|xid| xid.wrapping_sub(first).cast_signed());
    }
    let mut ranges: Vec<XidRange> = Vec::new();
    for xid in xids {
        match ranges.last_mut() {
            Some(last) if last.newest.wrapping_add(1) == xid => last.newest = xid,
            Some(last) if last.newest == xid => {}
            _ => ranges.push(XidRange::of(xid)),
        }
    }
    ranges
}

/// Ids of one segment are near to each other: multiplying spreads them.
#[derive(Default)]
pub(super) struct XidHasher(u64);

impl Hasher for XidHasher {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, bytes: &[u8]) {
        for byte in bytes {
            self.write_u32((*byte).into());
        }
    }

    fn write_u32(&mut self, number: u32) {
        let product = (self.0 ^ u64::from(number)).wrapping_mul(0x9E37_79B9_7F4A_7C15);
        self.0 = product ^ (product >> 32);
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn range() -> impl Strategy<Value = XidRange> {
        let lengths = prop_oneof![0..100_u32, any::<u32>()];
        (any::<u32>(), lengths).prop_map(|(oldest, length)| XidRange {
            oldest,
            newest: oldest.wrapping_add(length),
        })
    }

    #[test]
    fn ids_of_more_than_half_the_circle_stay_covered() {
        let mut range = XidRange {
            oldest: 1000,
            newest: 2000,
        };
        range.cover(&XidRange {
            oldest: 2000,
            newest: (1 << 31) + 5000,
        });
        assert!(range.contains(1_000_000), "expected 1000000 in {range:?}");
    }

    proptest! {
        #[test]
        fn two_ranges_ids_are_in_the_range_that_covers_both(
            one in range(),
            other in range(),
            at in any::<u32>(),
        ) {
            let mut both = one;
            both.cover(&other);
            for range in [one, other] {
                let length = range.newest.wrapping_sub(range.oldest);
                let within = range.oldest.wrapping_add(at.checked_rem(length).unwrap_or(0));
                for xid in [range.oldest, range.newest, within] {
                    prop_assert!(both.contains(xid), "{xid} of {one:?} and {other:?} in {both:?}");
                }
            }
        }

        #[test]
        fn near_ranges_are_covered_without_more(
            oldest in any::<u32>(),
            lengths in (0..1000_u32, 0..1000_u32),
            apart in -2000..2000_i32,
        ) {
            let mut both = XidRange { oldest, newest: oldest.wrapping_add(lengths.0) };
            let begin = oldest.wrapping_add_signed(apart);
            both.cover(&XidRange { oldest: begin, newest: begin.wrapping_add(lengths.1) });
            let expected = (apart + lengths.1.cast_signed()).max(lengths.0.cast_signed()) - apart.min(0);
            prop_assert_eq!(both.newest.wrapping_sub(both.oldest).cast_signed(), expected);
        }
    }
}
