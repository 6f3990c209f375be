//! Data pages: their checksum and what it proves (`storage/checksum_impl.h`, `storage/bufpage.h`; which pages are
//! held against it, as in `backup/basebackup.c`).

use crate::Lsn;
use crate::field::{u16_at, u32_at};

/// The page is summed as rows of this many 32-bit words, each column by itself.
const LANES: usize = 32;
/// Bytes of a row.
const ROW: usize = LANES * 4;
/// The multiplier of FNV-1a.
const PRIME: u32 = 16_777_619;
/// What the columns start from (`checksumBaseOffsets`).
const START: [u32; LANES] = [
    0x5B1F_36E9,
    0xB852_5960,
    0x02AB_50AA,
    0x1DE6_6D2A,
    0x79FF_467A,
    0x9BB9_F8A3,
    0x217E_7CD2,
    0x83E1_3D2C,
    0xF8D4_474F,
    0xE39E_B970,
    0x42C6_AE16,
    0x9932_16FA,
    0x7B09_3B5D,
    0x98DA_FF3C,
    0xF718_902A,
    0x0B1C_9CDB,
    0xE58F_764B,
    0x1876_36BC,
    0x5D7B_3BB1,
    0xE73D_E7DE,
    0x92BE_C979,
    0xCCA6_C0B2,
    0x304A_0979,
    0x85AA_43D4,
    0x7831_25BB,
    0x6CA8_EAA2,
    0xE407_EAC6,
    0x4B5C_FC3E,
    0x9FBF_8C76,
    0x15CA_20BE,
    0xF2CA_9FD3,
    0x959B_D756,
];

/// Bytes before the checksum in a page (`pd_lsn`).
const CHECKSUM_AT: usize = 8;
/// Where `pd_upper` stands: zero in a page that was never initialised.
const UPPER_AT: usize = 14;

/// The checksum that `page` should carry as block `block_number` of its relation (`pg_checksum_page`).
///
/// `block_number` counts from the relation's start, over all its files. A page's size is a power of two from 1 to 32 KiB;
/// bytes behind the last whole 128 are not looked at.
pub fn page_checksum(page: &[u8], block_number: u32) -> u16 {
    let mut sums = START;
    let (rows, _) = page.as_chunks::<ROW>();
    for (index, row) in rows.iter().enumerate() {
        let (words, _) = row.as_chunks::<4>();
        let mut values = [0u32; LANES];
        for (value, word) in values.iter_mut().zip(words) {
            *value = u32::from_le_bytes(*word);
        }
        if index == 0 {
            // The checksum does not cover itself.
            values[CHECKSUM_AT / 4] &= 0xFFFF_0000;
        }
        mix(&mut sums, &values);
    }
    mix(&mut sums, &[0; LANES]);
    mix(&mut sums, &[0; LANES]);
    let folded = sums.iter().fold(0, |all, sum| all ^ sum) ^ block_number;
    // Never zero, which would mean "none".
    (folded % 0xFFFF) as u16 + 1
}

/// One round on all columns. Arrays of a fixed size, so that the compiler uses vector instructions.
#[inline(always)]
fn mix(sums: &mut [u32; LANES], values: &[u32; LANES]) {
    for (sum, value) in sums.iter_mut().zip(values) {
        let mixed = *sum ^ value;
        *sum = mixed.wrapping_mul(PRIME) ^ (mixed >> 17);
    }
}

/// What [`verify_page`] finds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PageVerdict {
    /// The checksum is right.
    Valid,
    /// The page was never initialised (`PageIsNew`: `pd_upper` is zero) and carries no checksum.
    New,
    /// The checksum is wrong.
    Mismatch {
        /// What the page carries.
        stored: u16,
        /// What its content has.
        computed: u16,
        /// Its LSN. In a backup of a running cluster a page whose LSN is not below the backup's start may be torn without
        /// harm: replay writes it anew.
        lsn: Lsn,
    },
}

/// Checks a page of a cluster whose checksums are on, as block `block` of its relation.
///
/// Like the server's own backups, this takes every page with a zero `pd_upper` for new, whatever else stands in it.
/// What is shorter than a page header is new too.
pub fn verify_page(page: &[u8], block: u32) -> PageVerdict {
    let (Some(stored), Some(upper), Some(lsn)) = (
        u16_at(page, CHECKSUM_AT),
        u16_at(page, UPPER_AT),
        page_lsn(page),
    ) else {
        return PageVerdict::New;
    };
    if upper == 0 {
        return PageVerdict::New;
    }
    let computed = page_checksum(page, block);
    if stored == computed {
        PageVerdict::Valid
    } else {
        PageVerdict::Mismatch {
            stored,
            computed,
            lsn,
        }
    }
}

/// The end of the last WAL record that changed the page (`pd_lsn`: the upper half stands first). `None` where the bytes end before.
pub fn page_lsn(page: &[u8]) -> Option<Lsn> {
    Some(Lsn(
        u64::from(u32_at(page, 0)?) << 32 | u64::from(u32_at(page, 4)?)
    ))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn an_all_zero_page_is_new() {
        assert_eq!(verify_page(&[0; 8192], 7), PageVerdict::New);
        assert_eq!(verify_page(&[], 7), PageVerdict::New);
    }

    #[test]
    fn the_upper_half_of_an_lsn_stands_first() {
        assert_eq!(
            page_lsn(&[1, 0, 0, 0, 2, 0, 0, 0]),
            Some(Lsn(0x1_0000_0002))
        );
        assert_eq!(page_lsn(&[1, 0, 0, 0, 2, 0, 0]), None);
    }

    proptest! {
        #[test]
        fn a_stored_checksum_is_valid_and_any_flipped_bit_shows(mut page in prop::collection::vec(any::<u8>(), 1024), block: u32, at in 0usize..1024, bit in 0u8..8) {
            page[UPPER_AT] |= 1;
            let sum = page_checksum(&page, block);
            prop_assert_ne!(sum, 0);
            page[CHECKSUM_AT..CHECKSUM_AT + 2].copy_from_slice(&sum.to_le_bytes());
            prop_assert_eq!(verify_page(&page, block), PageVerdict::Valid);
            page[at] ^= 1 << bit;
            prop_assume!(page[UPPER_AT] != 0 || page[UPPER_AT + 1] != 0);
            prop_assert_ne!(verify_page(&page, block), PageVerdict::Valid);
        }

        #[test]
        fn no_bytes_panic(page: Vec<u8>, block: u32) {
            verify_page(&page, block);
        }
    }
}
