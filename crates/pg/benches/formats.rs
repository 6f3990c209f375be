//! PostgreSQL's formats, as often as a busy archive or a large backup meets them.

#![allow(clippy::unwrap_used, reason = "a benchmark's way to fail")]

#[allow(dead_code, reason = "the tests use all of it")]
#[path = "../tests/synthetic/mod.rs"]
mod synthetic;

use std::fmt::Write;
use std::hint::black_box;
use std::time::Duration;

use criterion::{Criterion, Throughput};
use sha2::{Digest, Sha256};
use walden_pg::manifest::ManifestError;
use walden_pg::wal_record::{SegmentReader, rmgr};
use walden_pg::{
    Lsn, ManifestFile, SegmentName, TimelineId, check_segment, parse_manifest, verify_page,
};

const SEGMENT: &[u8] = include_bytes!("../tests/fixtures/17/000000010000000000000004");
const PAGES: &[u8] = include_bytes!("../tests/fixtures/17/relation.pages");
const FILES: u64 = 10_000;

fn manifest() -> Vec<u8> {
    let mut text = String::from(
        "{ \"PostgreSQL-Backup-Manifest-Version\": 2,\n\"System-Identifier\": 7711081143950882152,\n\"Files\": [\n",
    );
    for number in 0..FILES {
        let comma = if number + 1 == FILES { "" } else { "," };
        writeln!(
            text,
            "{{ \"Path\": \"base/16384/{number}\", \"Size\": 8192, \"Last-Modified\": \"2026-11-22 19:33:06 GMT\", \
             \"Checksum-Algorithm\": \"CRC32C\", \"Checksum\": \"41c30cc3\" }}{comma}"
        )
        .unwrap();
    }
    text.push_str("],\n\"WAL-Ranges\": [\n{ \"Timeline\": 1, \"Start-LSN\": \"0/2000028\", \"End-LSN\": \"0/2000120\" }\n],\n");
    let digest: String = Sha256::digest(&text)
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect();
    writeln!(text, "\"Manifest-Checksum\": \"{digest}\"}}").unwrap();
    text.into_bytes()
}

/// A segment of 16 MiB as small transactions fill it: of each an insert, an update, two index entries and a commit, and every now and
/// then a page.
fn segment() -> Vec<u8> {
    let block = |image: &[u8], data: u8, main: u8| {
        let mut body = vec![0, 0x20, data, 0];
        if !image.is_empty() {
            body[1] |= 0x10;
            body.extend((image.len() as u16).to_le_bytes());
            body.extend([0, 0, 2]);
        }
        for number in [1663_u32, 5, 16400, 7] {
            body.extend(number.to_le_bytes());
        }
        body.extend([255, main]);
        body.extend(image);
        body.resize(body.len() + usize::from(data) + usize::from(main), 1);
        body
    };
    let mut commit = vec![255, 8];
    commit.extend(&[3; 8]);
    let mut writer = synthetic::Writer::new(0xD116, 16 << 20, 16 << 20);
    let mut xid = 1000;
    while writer.len() < 17 << 20 {
        xid += 1;
        let image = if xid % 30 == 0 { &[7; 6000][..] } else { &[] };
        writer.put(rmgr::HEAP, 0x40, xid, &block(image, 30, 14));
        writer.put(rmgr::HEAP, 0x00, xid, &block(&[], 40, 3));
        writer.put(11, 0x00, xid, &block(&[], 16, 2));
        writer.put(rmgr::XACT, 0x00, xid, &commit);
    }
    writer.segments().swap_remove(0)
}

fn main() {
    let mut criterion = Criterion::default()
        .warm_up_time(Duration::from_secs(1))
        .measurement_time(Duration::from_secs(3))
        .configure_from_args();

    let name: SegmentName = "000000010000000000000004".parse().unwrap();
    criterion.bench_function("pg/segment: name against first page", |bench| {
        bench.iter(|| check_segment(black_box(&name), black_box(SEGMENT), 16 << 20).unwrap());
    });

    let mut group = criterion.benchmark_group("pg");
    let segment = segment();
    group.throughput(Throughput::Bytes(segment.len() as u64));
    group.bench_function("segment: its records and events", |bench| {
        bench.iter(|| {
            let mut reader = SegmentReader::new(Lsn(16 << 20), TimelineId(1));
            let mut events = 0_u64;
            for piece in segment.chunks(1 << 20) {
                reader.feed(black_box(piece), &mut |record| {
                    events += u64::from(black_box(record.event()).is_some());
                });
            }
            (events, reader.finish().records)
        });
    });
    group.throughput(Throughput::Bytes(8192));
    let page = PAGES.first_chunk::<8192>().unwrap();
    group.bench_function("data page: checksum", |bench| {
        bench.iter(|| verify_page(black_box(page), 0));
    });
    group.throughput(Throughput::Elements(FILES));
    let manifest = manifest();
    group.bench_function("backup manifest: files", |bench| {
        bench.iter(|| {
            let take = |file: ManifestFile| {
                black_box(file);
                Ok(())
            };
            parse_manifest::<_, ManifestError>(black_box(manifest.as_slice()), take).unwrap()
        });
    });
    group.finish();
    criterion.final_summary();
}
