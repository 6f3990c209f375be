//! Transaction ids: 32 bits that wrap.

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
    const EPOCH: u64 = 1 << 32;
    let distance = xid.wrapping_sub(reference as u32).cast_signed();
    match reference.checked_add_signed(distance.into()) {
        Some(full) => full,
        // Before the first id of all, or behind the last: there is only the other direction.
        None if distance < 0 => reference.saturating_add_signed(distance.into()) + u64::from(xid),
        None => (reference & !(EPOCH - 1)) | u64::from(xid),
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

    /// Makes the range cover another.
    pub fn cover(&mut self, other: &XidRange) {
        self.extend(other.oldest);
        self.extend(other.newest);
    }
}
