//! What each byte of a segment or a backup passes through.

#![allow(clippy::unwrap_used, reason = "a benchmark's way to fail")]

use std::hint::black_box;
use std::io::Read;
use std::time::Duration;

use criterion::{Criterion, Throughput};
use jiff::Timestamp;
use tar::{Archive, Builder, Header};
use walden_engine::codec::{
    CodecError, Expected, FrameCompressor, MAX_FRAME_CONTENT, ObjectDecoder, encode_head,
    encode_tail,
};
use walden_model::{Head, HeadKind, RandomId, Sha256Digest, Tail, Writer};

const SEGMENT: usize = 16 << 20;
const ARCHIVE: RandomId = RandomId([7; 16]);
const KEY: &str = "1/wal/00000001/00000000/000000010000000000000004.zst";

/// As compressible as WAL of small updates: of each 64 bytes, 12 are random and the others come again.
fn content(length: usize) -> Vec<u8> {
    let mut content = Vec::with_capacity(length + 64);
    let mut state = 0x9E37_79B9_7F4A_7C15_u64;
    while content.len() < length {
        let mut random = || {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            state
        };
        content.extend(random().to_le_bytes());
        content.extend(&random().to_le_bytes()[..4]);
        let kind = random() % 16;
        content.extend((0..52).map(|place| (kind * 16 + place) as u8));
    }
    content.truncate(length);
    content
}

fn object(content: &[u8]) -> Vec<u8> {
    let writer = Writer {
        host: "db1".to_owned(),
        started_at: Timestamp::from_second(1_795_348_800).unwrap(),
        pid: 4711,
        version: "0.1.0".to_owned(),
    };
    let head = Head::new(HeadKind::Wal, ARCHIVE, KEY, None, writer);
    let mut object = encode_head(&head).unwrap();
    let mut compressor = FrameCompressor::new(1).unwrap();
    let mut frames = Vec::new();
    for part in content.chunks(MAX_FRAME_CONTENT) {
        let frame = compressor.compress(part).unwrap();
        object.extend(frame.stored);
        frames.push(frame.entry);
    }
    let tail = Tail {
        content_size: content.len() as u64,
        index: None,
        sha256: Some(Sha256Digest::of(content)),
        frames,
    };
    object.extend(encode_tail(&tail).unwrap().0);
    object
}

/// As pg_basebackup sends a cluster of small relations.
fn tar(files: usize) -> Vec<u8> {
    let mut builder = Builder::new(Vec::new());
    for number in 0..files {
        let mut header = Header::new_ustar();
        header.set_size(8192);
        header.set_mode(0o600);
        builder
            .append_data(&mut header, format!("base/16384/{number}"), &[7; 8192][..])
            .unwrap();
    }
    builder.into_inner().unwrap()
}

fn main() {
    let mut criterion = Criterion::default()
        .warm_up_time(Duration::from_secs(1))
        .measurement_time(Duration::from_secs(3))
        .configure_from_args();
    let segment = content(SEGMENT);

    let mut group = criterion.benchmark_group("engine");
    group.sample_size(20);
    for (size, words) in [(1 << 20, "1 MiB"), (MAX_FRAME_CONTENT, "4 MiB")] {
        let frame = segment.get(..size).unwrap();
        let mut compressor = FrameCompressor::new(1).unwrap();
        group.throughput(Throughput::Bytes(size as u64));
        group.bench_function(format!("compress a frame of {words}, level 1"), |bench| {
            bench.iter(|| compressor.compress(black_box(frame)).unwrap());
        });
    }

    let object = object(&segment);
    group.throughput(Throughput::Bytes(SEGMENT as u64));
    group.bench_function("decode and prove a stored segment of 16 MiB", |bench| {
        bench.iter(|| {
            let mut decoder = ObjectDecoder::new(Expected {
                kind: HeadKind::Wal,
                archive_id: ARCHIVE,
                key: KEY.to_owned(),
            });
            let mut take = |content: Vec<u8>| -> Result<(), CodecError> {
                black_box(content);
                Ok(())
            };
            for part in object.chunks(1 << 20) {
                decoder.feed(black_box(part), &mut take).unwrap();
            }
            decoder.finish(&mut take).unwrap()
        });
    });

    let tar = tar(1000);
    group.throughput(Throughput::Elements(1000));
    group.bench_function("tar: files of one page, with CRC32C", |bench| {
        let mut page = vec![0; 8192];
        bench.iter(|| {
            let mut archive = Archive::new(black_box(tar.as_slice()));
            let mut sum = 0;
            for entry in archive.entries().unwrap() {
                entry.unwrap().read_exact(&mut page).unwrap();
                sum ^= crc32c::crc32c(&page);
            }
            sum
        });
    });
    group.finish();
    criterion.final_summary();
}
