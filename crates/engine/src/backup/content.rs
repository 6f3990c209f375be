//! The content stream of a backup: files one after the other, cut into frames, compressed on all cores, stored in packs.

use std::sync::Arc;

use tokio::task::JoinSet;
use walden_model::{
    BackupId, Extent, Head, HeadKind, PackRef, RandomId, Sha256Digest, SystemKeys, Tail, keys,
};

use super::BackupError;
use super::targets::Targets;
use crate::codec::{encode_head, encode_tail};
use crate::host;
use crate::pipeline::{Closed, ContentSink, FrameSource};

/// Content bytes of each frame but the last. Small enough that a reader of one small file reads little; zstd gains next to
/// nothing from more.
pub(super) const FRAME: u64 = 1 << 20;

/// Stored bytes at which a pack is closed. Half of what the format allows: three packs are in memory at once.
const PACK: usize = 32 << 20;

/// Frames at which a pack is closed, too: frames of zeroes are small, and the frame table has its bound as well.
const PACK_FRAMES: usize = 1 << 14;

/// Packs that are being stored while the next one fills.
const PUTS: usize = 2;

/// Cuts the content stream into frames. For a blocking thread.
pub(super) struct ContentWriter {
    sink: ContentSink,
    frame: Vec<u8>,
    position: u64,
}

impl ContentWriter {
    pub fn new(sink: ContentSink) -> Self {
        ContentWriter {
            sink,
            frame: Vec::with_capacity(FRAME as usize),
            position: 0,
        }
    }

    /// Where the next byte will stand.
    pub fn position(&self) -> u64 {
        self.position
    }

    pub fn write(&mut self, mut bytes: &[u8]) -> Result<(), Closed> {
        self.position += bytes.len() as u64;
        while let Some((now, later)) = bytes.split_at_checked(FRAME as usize - self.frame.len()) {
            self.frame.extend_from_slice(now);
            self.sink.push(std::mem::replace(
                &mut self.frame,
                Vec::with_capacity(FRAME as usize),
            ))?;
            bytes = later;
        }
        self.frame.extend_from_slice(bytes);
        Ok(())
    }

    pub fn finish(self) -> Result<(), Closed> {
        if self.frame.is_empty() {
            Ok(())
        } else {
            self.sink.push(self.frame)
        }
    }
}

/// What packs and shards of one backup have in common.
#[derive(Clone)]
pub(super) struct ObjectWriter {
    pub targets: Arc<Targets>,
    pub keys: SystemKeys,
    pub backup: BackupId,
    pub archive_id: RandomId,
}

/// A stored framed object.
pub(super) struct Stored {
    pub size: u64,
    pub table: Sha256Digest,
}

impl ObjectWriter {
    pub fn head(&self, kind: HeadKind, key: &str) -> Result<Vec<u8>, BackupError> {
        let head = Head::new(
            kind,
            self.archive_id,
            keys::below_cluster(key),
            None,
            host::writer(),
        );
        encode_head(&head).map_err(BackupError::Encode)
    }

    /// Appends the tail and stores the object, in every repository that is still whole.
    pub async fn put(
        &self,
        key: String,
        mut object: Vec<u8>,
        tail: Tail,
    ) -> Result<Stored, BackupError> {
        let (tail, table) = encode_tail(&tail).map_err(BackupError::Encode)?;
        object.extend_from_slice(&tail);
        let object = self.targets.sealed(&key, object).await?;
        let size = object.len() as u64;
        self.targets.put(&key, object).await?;
        Ok(Stored { size, table })
    }
}

/// The packs of a backup, and where the content stream stands in them.
#[derive(Default)]
pub(super) struct Packs {
    pub refs: Vec<PackRef>,
    /// The number of each pack's first frame in the whole stream.
    first_frames: Vec<u64>,
}

impl Packs {
    /// The extents of `length` bytes of the content stream that begin at `position`.
    pub fn extents(&self, position: u64, length: u64) -> Vec<Extent> {
        let mut extents = Vec::new();
        let (mut at, end) = (position, position + length);
        while at < end {
            let frame = at / FRAME;
            let after = self.first_frames.partition_point(|first| *first <= frame);
            let first = after
                .checked_sub(1)
                .and_then(|pack| self.first_frames.get(pack))
                .copied()
                .unwrap_or(0);
            let pack_end = self
                .first_frames
                .get(after)
                .map_or(u64::MAX, |next| next * FRAME);
            let length = end.min(pack_end) - at;
            extents.push(Extent::Data {
                offset: at - position,
                length,
                pack: after.saturating_sub(1) as u32,
                frame: (frame - first) as u32,
                frame_offset: (at % FRAME) as u32,
            });
            at += length;
        }
        extents
    }

    pub fn stored_size(&self) -> u64 {
        self.refs.iter().map(|pack| pack.size).sum()
    }
}

/// Collects frames into packs and stores them, until the stream of frames ends.
pub(super) async fn store_packs(
    writer: ObjectWriter,
    mut frames: FrameSource,
) -> Result<Packs, BackupError> {
    let mut packs = Packs::default();
    let mut puts: JoinSet<Result<PackRef, BackupError>> = JoinSet::new();
    let (mut number, mut seen) = (0_u32, 0_u64);
    let mut open: Option<(String, Vec<u8>, Tail)> = None;
    loop {
        let frame = frames
            .next()
            .await
            .transpose()
            .map_err(BackupError::Encode)?;
        let full = |object: &[u8], frames: usize| {
            frame.as_ref().is_none_or(|frame| {
                object.len() + frame.stored.len() > PACK || frames >= PACK_FRAMES
            })
        };
        if let Some((key, object, tail)) =
            open.take_if(|(_, object, tail)| full(object, tail.frames.len()))
        {
            while puts.len() >= PUTS {
                collect(&mut puts, &mut packs).await?;
            }
            let (writer, this) = (writer.clone(), number);
            puts.spawn(async move {
                let stored = writer.put(key, object, tail).await?;
                Ok(PackRef {
                    backup: writer.backup.clone(),
                    number: this,
                    size: stored.size,
                    table: stored.table,
                })
            });
            number += 1;
        }
        let Some(frame) = frame else { break };
        let (_, object, tail) = match &mut open {
            Some(open) => open,
            none => {
                let key = writer.keys.pack(&writer.backup, number);
                let mut object = Vec::with_capacity(PACK + PACK / 16);
                object.extend_from_slice(&writer.head(HeadKind::Pack, &key)?);
                packs.first_frames.push(seen);
                none.insert((
                    key,
                    object,
                    Tail {
                        content_size: 0,
                        index: None,
                        sha256: None,
                        frames: Vec::new(),
                    },
                ))
            }
        };
        object.extend_from_slice(&frame.stored);
        tail.content_size += frame.entry.content;
        tail.frames.push(frame.entry);
        seen += 1;
    }
    while !puts.is_empty() {
        collect(&mut puts, &mut packs).await?;
    }
    packs.refs.sort_by_key(|pack| pack.number);
    Ok(packs)
}

async fn collect(
    puts: &mut JoinSet<Result<PackRef, BackupError>>,
    packs: &mut Packs,
) -> Result<(), BackupError> {
    if let Some(done) = puts.join_next().await {
        packs.refs.push(done.map_err(BackupError::Internal)??);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn extents_of_a_range_follow_the_packs_and_cover_it_without_overlap() {
        let packs = Packs {
            refs: Vec::new(),
            first_frames: vec![0, 3, 4],
        };
        let extents = packs.extents(FRAME * 2 + 5, FRAME * 3);
        let expected = [
            Extent::Data {
                offset: 0,
                length: FRAME - 5,
                pack: 0,
                frame: 2,
                frame_offset: 5,
            },
            Extent::Data {
                offset: FRAME - 5,
                length: FRAME,
                pack: 1,
                frame: 0,
                frame_offset: 0,
            },
            Extent::Data {
                offset: 2 * FRAME - 5,
                length: FRAME + 5,
                pack: 2,
                frame: 0,
                frame_offset: 0,
            },
        ];
        assert_eq!(
            extents, expected,
            "a range over three packs has an extent in each"
        );
        assert!(
            packs.extents(7, 0).is_empty(),
            "an empty file has no extent"
        );
    }
}
