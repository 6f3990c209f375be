//! The header of a WAL segment's first page, and the proof that a segment is what its name says
//! (`XLogLongPageHeaderData` in `access/xlog_internal.h`; the layout is the same in 9.3 to 18).

use crate::field::{u16_at, u32_at, u64_at};
use crate::ids::BadSegmentSize;
use crate::{Lsn, MajorVersion, SegmentName, SystemIdentifier, TimelineId, WalSegmentSize};

/// The bit of `xlp_info` that marks the long header (`XLP_LONG_HEADER`).
const LONG_HEADER: u16 = 0x0002;

/// The header that the first page of every segment carries. Nothing in it is proven until [`check_segment`] agrees.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LongPageHeader {
    /// `xlp_magic`: changes with the record format; see [`MajorVersion::from_magic`].
    pub magic: u16,
    /// `xlp_info`: flag bits.
    pub info: u16,
    /// `xlp_tli`: the timeline of the page's first record.
    pub timeline: TimelineId,
    /// `xlp_pageaddr`: the page's own address.
    pub page_address: Lsn,
    /// `xlp_rem_len`: bytes that remain of a record that an earlier page began.
    pub remaining: u32,
    /// `xlp_sysid`: the cluster that wrote the page.
    pub system_identifier: SystemIdentifier,
    /// `xlp_seg_size`: the segment size in bytes, as it stands there.
    pub segment_size: u32,
    /// `xlp_xlog_blcksz`: the WAL page size in bytes, as it stands there.
    pub block_size: u32,
}

/// The bytes are not a long page header.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum WalPageError {
    /// Fewer bytes than a header has.
    #[error("a WAL page header has {need} bytes, only {0} are there", need = LongPageHeader::LENGTH)]
    Short(usize),
    /// The flag of the long header is not set.
    #[error(
        "the first page is not the start of a WAL segment: its long-header flag is not set (magic {magic:04X}, info {info:04X})"
    )]
    NotLong {
        /// The magic that stands there.
        magic: u16,
        /// The flags that stand there.
        info: u16,
    },
}

impl LongPageHeader {
    /// Bytes of a long header, with its alignment.
    pub const LENGTH: usize = 40;

    /// Reads the header at the start of `bytes`.
    pub fn parse(bytes: &[u8]) -> Result<LongPageHeader, WalPageError> {
        let header = Self::fields(bytes).ok_or(WalPageError::Short(bytes.len()))?;
        if header.info & LONG_HEADER == 0 {
            return Err(WalPageError::NotLong {
                magic: header.magic,
                info: header.info,
            });
        }
        Ok(header)
    }

    fn fields(bytes: &[u8]) -> Option<LongPageHeader> {
        Some(LongPageHeader {
            magic: u16_at(bytes, 0)?,
            info: u16_at(bytes, 2)?,
            timeline: TimelineId(u32_at(bytes, 4)?),
            page_address: Lsn(u64_at(bytes, 8)?),
            remaining: u32_at(bytes, 16)?,
            system_identifier: SystemIdentifier(u64_at(bytes, 24)?),
            segment_size: u32_at(bytes, 32)?,
            block_size: u32_at(bytes, 36)?,
        })
    }

    /// The version that wrote the page, where its magic is a known one.
    pub fn version(&self) -> Option<MajorVersion> {
        MajorVersion::from_magic(self.magic)
    }
}

/// What [`check_segment`] found out about a segment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SegmentFacts {
    /// The first page's header. Its system identifier is for the caller to compare.
    pub header: LongPageHeader,
    /// The version that wrote it; `None` for a magic that this crate does not know.
    pub version: Option<MajorVersion>,
    /// The segment size, from the header and equal to the file's length.
    pub size: WalSegmentSize,
}

/// The file is not the segment that its name says.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SegmentMismatch {
    /// It does not begin with a long page header.
    #[error("{name} does not begin as a WAL segment does")]
    Header {
        /// The file's name.
        name: SegmentName,
        /// What is wrong with the header.
        #[source]
        source: WalPageError,
    },
    /// The header's segment size is impossible.
    #[error("the header of {name} states an impossible segment size")]
    Size {
        /// The file's name.
        name: SegmentName,
        /// The size that stands there.
        #[source]
        source: BadSegmentSize,
    },
    /// The file is shorter or longer than its header says.
    #[error("{name} has {length} bytes, but its header says that its segments have {expected}")]
    Length {
        /// The file's name.
        name: SegmentName,
        /// The file's length in bytes.
        length: u64,
        /// The header's segment size in bytes.
        expected: u64,
    },
    /// No segment of the header's size can have this name.
    #[error("no segment of {size} can be called {name}: its last part is at most {last:08X}", last = size.segments_per_log() - 1)]
    Name {
        /// The file's name.
        name: SegmentName,
        /// The header's segment size.
        size: WalSegmentSize,
    },
    /// The content belongs at another place of the log.
    #[error("{name} should begin at {expected}, but its first page says {found}")]
    Address {
        /// The file's name.
        name: SegmentName,
        /// The address that the name stands for.
        expected: Lsn,
        /// The address that the page carries.
        found: Lsn,
    },
    /// The content belongs to a later timeline, or to none.
    #[error(
        "{name} is a segment of timeline {expected}, but its first page belongs to timeline {found}"
    )]
    Timeline {
        /// The file's name.
        name: SegmentName,
        /// The timeline of the name.
        expected: TimelineId,
        /// The timeline that the page carries.
        found: TimelineId,
    },
}

/// Proves that a whole file of `length` bytes that begins with `first_bytes` (at least 40) is the segment `name`, or
/// that segment's `.partial`.
///
/// The first page may belong to an earlier timeline than the name: a segment in which a switch happened begins with the
/// parent's pages. An unknown magic is no error: newer versions keep this header, and [`SegmentFacts::version`] tells.
/// Later pages prove nothing, since after a switch they are zeroes or old content.
pub fn check_segment(
    name: &SegmentName,
    first_bytes: &[u8],
    length: u64,
) -> Result<SegmentFacts, SegmentMismatch> {
    let name = *name;
    let header = LongPageHeader::parse(first_bytes)
        .map_err(|source| SegmentMismatch::Header { name, source })?;
    let size = WalSegmentSize::new(header.segment_size.into())
        .map_err(|source| SegmentMismatch::Size { name, source })?;
    if length != size.bytes() {
        return Err(SegmentMismatch::Length {
            name,
            length,
            expected: size.bytes(),
        });
    }
    let expected = name
        .start(size)
        .ok_or(SegmentMismatch::Name { name, size })?;
    if header.page_address != expected {
        return Err(SegmentMismatch::Address {
            name,
            expected,
            found: header.page_address,
        });
    }
    if header.timeline.0 == 0 || header.timeline > name.timeline {
        return Err(SegmentMismatch::Timeline {
            name,
            expected: name.timeline,
            found: header.timeline,
        });
    }
    Ok(SegmentFacts {
        header,
        version: header.version(),
        size,
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const NAME: SegmentName = SegmentName {
        timeline: TimelineId(2),
        log: 1,
        seg: 3,
    };

    fn page() -> Vec<u8> {
        let mut page = Vec::new();
        page.extend(0xD116u16.to_le_bytes());
        page.extend(7u16.to_le_bytes());
        page.extend(1u32.to_le_bytes());
        page.extend(0x1_0300_0000u64.to_le_bytes());
        page.extend([9, 0, 0, 0, 0, 0, 0, 0]);
        page.extend(42u64.to_le_bytes());
        page.extend((16u32 << 20).to_le_bytes());
        page.extend(8192u32.to_le_bytes());
        page
    }

    fn check(change: impl FnOnce(&mut Vec<u8>)) -> Result<SegmentFacts, SegmentMismatch> {
        let mut bytes = page();
        change(&mut bytes);
        check_segment(&NAME, &bytes, 16 << 20)
    }

    #[test]
    fn a_segment_that_begins_on_its_parent_timeline_is_right() {
        let facts = check(|_| ()).unwrap();
        assert_eq!(
            (facts.version, facts.size),
            (Some(MajorVersion(17)), WalSegmentSize::DEFAULT)
        );
        assert_eq!(
            (facts.header.remaining, facts.header.system_identifier),
            (9, SystemIdentifier(42))
        );
    }

    #[test]
    fn an_unknown_magic_is_reported_and_still_checked() {
        assert_eq!(check(|b| b[0] = 0xFF).unwrap().version, None);
        let wrong = check(|b| {
            b[0] = 0xFF;
            b[11] = 9;
        });
        assert!(
            matches!(wrong, Err(SegmentMismatch::Address { .. })),
            "the address was not checked: {wrong:?}"
        );
    }

    #[test]
    fn each_lie_has_its_own_name() {
        assert!(matches!(
            check(|b| b.truncate(39)),
            Err(SegmentMismatch::Header {
                source: WalPageError::Short(39),
                ..
            })
        ));
        assert!(matches!(
            check(|b| b[2] = 5),
            Err(SegmentMismatch::Header {
                source: WalPageError::NotLong { .. },
                ..
            })
        ));
        assert!(matches!(
            check(|b| b[32] = 1),
            Err(SegmentMismatch::Size { .. })
        ));
        assert!(matches!(
            check(|b| b[8] = 1),
            Err(SegmentMismatch::Address { .. })
        ));
        assert!(matches!(
            check(|b| b[4] = 3),
            Err(SegmentMismatch::Timeline {
                found: TimelineId(3),
                ..
            })
        ));
        assert!(matches!(
            check(|b| b[4] = 0),
            Err(SegmentMismatch::Timeline {
                found: TimelineId(0),
                ..
            })
        ));
        let short = check_segment(&NAME, &page(), 16 << 19);
        assert!(
            matches!(
                short,
                Err(SegmentMismatch::Length {
                    length: 0x80_0000,
                    expected: 0x100_0000,
                    ..
                })
            ),
            "{short:?}"
        );
        let name = SegmentName { seg: 256, ..NAME };
        assert!(matches!(
            check_segment(&name, &page(), 16 << 20),
            Err(SegmentMismatch::Name { .. })
        ));
    }

    proptest! {
        #[test]
        fn no_bytes_panic(bytes: Vec<u8>, length: u64, timeline: u32, log: u32, seg: u32) {
            let name = SegmentName { timeline: TimelineId(timeline), log, seg };
            if let Ok(facts) = check_segment(&name, &bytes, length) {
                prop_assert_eq!(facts.size.bytes(), length);
            }
        }

        #[test]
        fn a_changed_bit_is_named_or_in_a_field_that_is_not_bound_to_the_name(at in 0usize..40, bit in 0u8..8) {
            let verdict = check(|b| b[at] ^= 1 << bit);
            let bound = matches!(at, 8..=15 | 32..=35) || (at == 2 && bit == 1) || matches!(at, 5..=7);
            prop_assert!(verdict.is_err() || !bound, "byte {} bit {} went unnoticed", at, bit);
        }
    }
}
