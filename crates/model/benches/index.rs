//! The index of a segment of 16 MiB, as eight clients of small transactions fill it: what a push spends on it.

#![allow(clippy::unwrap_used, reason = "a benchmark's way to fail")]

#[allow(dead_code, reason = "pg's tests use all of it")]
#[path = "../../pg/tests/synthetic/mod.rs"]
mod synthetic;

use std::hint::black_box;
use std::time::Duration;

use criterion::{Criterion, Throughput};
use walden_model::index::SegmentIndexer;
use walden_pg::wal_record::rmgr;
use walden_pg::{SegmentName, WalSegmentSize};

const CLIENTS: u32 = 8;
const BTREE: u8 = 11;

/// A record's body with one block of a file.
fn block(file: u32, data: u8, main: u8) -> Vec<u8> {
    let mut body = vec![0, 0x20, data, 0];
    for number in [1663_u32, 5, file, 7] {
        body.extend(number.to_le_bytes());
    }
    body.extend([255, main]);
    body.resize(body.len() + usize::from(data) + usize::from(main), 1);
    body
}

/// As pgbench does it: three updates, an insert, an index entry, and a commit, of several transactions at once.
fn segment(size: WalSegmentSize) -> Vec<u8> {
    let commit: Vec<u8> = [255, 8].into_iter().chain([3; 8]).collect();
    let mut writer = synthetic::Writer::new(0xD116, size.bytes(), size.bytes());
    let mut first = 1000;
    while writer.len() < size.bytes() as usize + (1 << 20) {
        let xids = first..first + CLIENTS;
        for (step, file) in [16_400, 16_401, 16_402].into_iter().enumerate() {
            for xid in xids.clone() {
                let info = if step == 0 { 0x20 } else { 0x40 };
                writer.put(rmgr::HEAP, info, xid, &block(file, 30, 14));
            }
        }
        for xid in xids.clone() {
            writer.put(rmgr::HEAP, 0x00, xid, &block(16_403, 40, 3));
            writer.put(BTREE, 0x00, xid, &block(16_404, 16, 2));
        }
        for xid in xids {
            writer.put(rmgr::XACT, 0x00, xid, &commit);
        }
        first += CLIENTS;
    }
    writer.segments().swap_remove(0)
}

fn main() {
    let mut criterion = Criterion::default()
        .warm_up_time(Duration::from_secs(1))
        .measurement_time(Duration::from_secs(3))
        .configure_from_args();
    let size = WalSegmentSize::DEFAULT;
    let name: SegmentName = "000000010000000000000001".parse().unwrap();
    let segment = segment(size);
    let mut group = criterion.benchmark_group("model");
    group.throughput(Throughput::Bytes(segment.len() as u64));
    group.bench_function("index of a segment", |bench| {
        bench.iter(|| {
            let mut indexer = SegmentIndexer::new(name, size);
            for piece in segment.chunks(1 << 20) {
                indexer.feed(black_box(piece));
            }
            indexer.finish()
        });
    });
    group.finish();
    criterion.final_summary();
}
