//! Records that cross a segment's edge, put together from the parts that the neighbours' indexes keep.

use crc32c::{crc32c, crc32c_combine};
use walden_pg::wal_record::{Record, RecordHeader};
use walden_pg::{Lsn, MajorVersion};

use super::detail::SegmentDetail;
use super::gather::Gatherer;
use super::matter::Matter;
use super::{Fragment, SegmentIndex, limit};

/// The record that a segment begins and a later one ends.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Crossing {
    /// There is none: the segment's last record ends in it, or reading stopped before.
    None,
    /// It is whole: the segment's index with what it says, and the moment that it is, if it is one.
    Said(Box<SegmentDetail>),
    /// It never became whole: given up for another one at a promotion or after a crash, or the next segment is none of its followers.
    Unreadable,
    /// Its parts are there and do not fit together: one of them was damaged before its segment was archived. Recovery does not get past it.
    Damaged,
    /// Its parts are not kept. Who needs it reads the segments ([`super::DetailReader::next_segment`]).
    NeedsSegments,
    /// It goes on behind the last of the segments that were given.
    GoesOn,
}

/// Puts the record together that `first` begins, and that goes on in the segments `following` it: one, unless the record is longer than a segment.
#[must_use]
pub fn crossing(first: &SegmentIndex, following: &[&SegmentIndex]) -> Crossing {
    let joined = match join(first, following) {
        Ok(joined) => joined,
        Err(why) => return why,
    };
    let mut index = SegmentIndex {
        end_lsn: Some(joined.end_lsn),
        records: first.records.saturating_add(1),
        tail: None,
        ..first.clone()
    };
    let mut gatherer = Gatherer::resume(first);
    joined.visit(&mut gatherer);
    let transactions = gatherer.take_transactions();
    let moments = gatherer.take_moments();
    gatherer.finish_into(&mut index);
    index.transactions.clear();
    limit::take_all(&mut index, transactions);
    Crossing::Said(Box::new(SegmentDetail {
        index,
        moments,
        filled: Vec::new(),
    }))
}

impl SegmentIndex {
    /// Adds what the record says that this segment begins and another ends. Its [`SegmentIndex::tail`] is then no longer there. Where more
    /// segments are needed for that, nothing changes.
    pub fn absorb(&mut self, crossing: &Crossing) {
        match crossing {
            Crossing::Said(said) => *self = said.index.clone(),
            Crossing::Unreadable | Crossing::Damaged => self.tail = None,
            Crossing::None | Crossing::NeedsSegments | Crossing::GoesOn => {}
        }
    }
}

/// A record that its CRC has proven.
pub(super) struct Joined {
    pub lsn: Lsn,
    pub end_lsn: Lsn,
    first_lsn: Lsn,
    version: MajorVersion,
    /// `None`: it cannot matter, and was not kept.
    bytes: Option<Vec<u8>>,
}

impl Joined {
    /// Hands the record over, as the last one of its segment.
    pub fn visit(&self, gatherer: &mut Gatherer) {
        let Some(bytes) = &self.bytes else {
            return;
        };
        if let Some(header) = RecordHeader::parse(bytes) {
            gatherer.began(header.xid, self.first_lsn);
            gatherer.visit(&Record {
                lsn: self.lsn,
                end_lsn: self.end_lsn,
                header,
                version: self.version,
                body: bytes.get(RecordHeader::LENGTH..),
            });
        }
    }
}

/// A part whose bytes were read back from hexadecimal.
struct Part<'a> {
    fragment: &'a Fragment,
    kept: Vec<u8>,
}

impl<'a> Part<'a> {
    fn of(fragment: &'a Fragment) -> Option<Self> {
        let kept = unhex(&fragment.bytes)?;
        (kept.len() as u64 <= fragment.length).then_some(Part { fragment, kept })
    }

    fn is_kept(&self) -> bool {
        self.kept.len() as u64 == self.fragment.length
    }
}

pub(super) fn join(first: &SegmentIndex, following: &[&SegmentIndex]) -> Result<Joined, Crossing> {
    const BROKEN: Crossing = Crossing::Unreadable;
    let Some(tail) = &first.tail else {
        return Err(Crossing::None);
    };
    let (lsn, end_lsn) = tail.lsn.zip(tail.end_lsn).ok_or(BROKEN)?;
    let tail_part = Part::of(tail).ok_or(BROKEN)?;
    // The first part of a record has at least 8 bytes, of which these 4 say its length.
    let total = tail_part.kept.first_chunk::<4>().ok_or(BROKEN)?;
    let total = u64::from(u32::from_le_bytes(*total));
    let mut rest = total.checked_sub(tail.length).ok_or(BROKEN)?;
    let mut parts = vec![tail_part];
    for segment in following {
        let part = segment.head.as_ref().and_then(Part::of).ok_or(BROKEN)?;
        let length = part.fragment.length;
        rest = rest.checked_sub(length).ok_or(Crossing::Damaged)?;
        parts.push(part);
        if rest == 0 {
            break;
        }
        // A segment that the record fills has none of its own.
        if segment.records > 0 || segment.tail.is_some() || segment.stopped.is_some() {
            return Err(Crossing::Damaged);
        }
    }
    if rest > 0 {
        return Err(Crossing::GoesOn);
    }

    let header = proven_header(&parts).ok_or(Crossing::Damaged)?;
    let known = RecordHeader::parse(&header).ok_or(BROKEN)?;
    let version = MajorVersion(first.pg_version);
    let matters = match Matter::of(known.rmgr, known.info) {
        Matter::Yes => true,
        Matter::Content => has_open_files(first),
        Matter::No => false,
    };
    let bytes = match (parts.iter().all(Part::is_kept), matters) {
        (true, _) => {
            let bytes: Vec<u8> = parts.into_iter().flat_map(|part| part.kept).collect();
            let body = bytes.get(RecordHeader::LENGTH..).ok_or(BROKEN)?;
            if !RecordHeader::proves(&bytes, crc32c(body)) {
                return Err(BROKEN);
            }
            Some(bytes)
        }
        (false, true) => return Err(Crossing::NeedsSegments),
        (false, false) => None,
    };
    Ok(Joined {
        lsn,
        end_lsn,
        first_lsn: tail.first_lsn.unwrap_or(lsn),
        version,
        bytes,
    })
}

/// Whether a file was created here that could still get its first rows or pages.
fn has_open_files(index: &SegmentIndex) -> bool {
    let empty = |created: &super::CreatedFile| !created.rows && !created.pages;
    let open =
        |facts: &super::TransactionFacts| facts.end.is_none() && facts.created.iter().any(empty);
    index.transactions.iter().any(open)
}

/// The record's header, if it and the parts' CRCs fit: then no part was changed. The header may stand in two parts.
fn proven_header(parts: &[Part<'_>]) -> Option<[u8; RecordHeader::LENGTH]> {
    let (tail, heads) = parts.split_first()?;
    let split = tail.kept.len().min(RecordHeader::LENGTH);
    let mut header = [0; RecordHeader::LENGTH];
    let (here, behind) = header.split_at_mut(split);
    here.copy_from_slice(tail.kept.get(..split)?);
    let mut crc = tail.fragment.crc32c;
    for (number, part) in heads.iter().enumerate() {
        let mut length = part.fragment.length;
        let mut of_part = part.fragment.crc32c;
        if number == 0 && !behind.is_empty() {
            let rest = part.kept.get(..behind.len())?;
            behind.copy_from_slice(rest);
            length -= rest.len() as u64;
            // The CRC of two pieces is the first one's, moved on by the second one's length, XOR the second one's.
            of_part ^= crc32c_combine(crc32c(rest), 0, usize::try_from(length).ok()?);
        }
        crc = crc32c_combine(crc, of_part, usize::try_from(length).ok()?);
    }
    RecordHeader::proves(&header, crc).then_some(header)
}

fn unhex(text: &str) -> Option<Vec<u8>> {
    let digit = |byte: u8| char::from(byte).to_digit(16);
    text.as_bytes()
        .chunks(2)
        .map(|pair| match pair {
            [high, low] => u8::try_from(digit(*high)? << 4 | digit(*low)?).ok(),
            _ => None,
        })
        .collect()
}
