//! Where single records stand.

use std::io;
use std::sync::{Arc, Mutex, PoisonError};

use walden_model::HeadKind;
use walden_model::resolve::{Around, RecordSpan};
use walden_pg::wal_record::{SegmentReader, Stop, record_end};
use walden_pg::{Lsn, SegmentName};

use super::Indexes;
use crate::repository::RepositoryError;

impl Indexes<'_> {
    /// The first record of a segment that begins at `lsn` or behind it, from the segment's own bytes. One that goes on in the next segment is
    /// taken by its length.
    ///
    /// # Errors
    /// The segment is missing or damaged in the repository ([`RepositoryError::trouble`]), or the repository cannot be asked.
    pub async fn record_from(
        &self,
        name: SegmentName,
        lsn: Lsn,
    ) -> Result<Around, RepositoryError> {
        let size = self.catalog.segment_size;
        let start = name.start(size).unwrap_or(Lsn::INVALID);
        let reading = Arc::new(Mutex::new((None, None::<RecordSpan>)));
        let sink = || {
            let reader = SegmentReader::new(start, name.timeline);
            *reading.lock().unwrap_or_else(PoisonError::into_inner) = (Some(reader), None);
            let fed = reading.clone();
            move |content: Vec<u8>| {
                let mut reading = fed.lock().unwrap_or_else(PoisonError::into_inner);
                let (reader, found) = &mut *reading;
                if let Some(reader) = reader {
                    reader.feed(&content, &mut |record| {
                        if found.is_none() && record.lsn >= lsn {
                            *found = Some(RecordSpan {
                                lsn: record.lsn,
                                end_lsn: record.end_lsn,
                            });
                        }
                    });
                }
                match found {
                    Some(_) => Err(io::Error::other("no more is needed")),
                    None => Ok(()),
                }
            }
        };
        let key = self.key(name);
        match self
            .archive
            .read_object(&key, &self.expected(HeadKind::Wal, &key), None, sink)
            .await
        {
            Err(RepositoryError::Sink { .. }) => {}
            read => drop(read?),
        }
        let mut reading = reading.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(span) = reading.1 {
            return Ok(Around::Record(span));
        }
        let Some(end) = reading.0.take().map(SegmentReader::finish) else {
            return Ok(Around::Broken);
        };
        let tail = end.tail.and_then(|tail| {
            let length = u32::try_from(tail.length.checked_add(tail.remaining)?).ok()?;
            let lsn = tail.lsn.filter(|begin| *begin >= lsn)?;
            let end_lsn = record_end(lsn, length, size)?;
            Some(RecordSpan { lsn, end_lsn })
        });
        Ok(match (tail, end.stop) {
            (Some(span), _) => Around::Record(span),
            (None, None | Some(Stop::Switch)) => Around::None { end: end.end },
            (None, Some(Stop::EndOfWal)) => Around::EndOfWal { end: end.end },
            (None, Some(Stop::Damaged | Stop::UnknownVersion)) => Around::Broken,
        })
    }
}
