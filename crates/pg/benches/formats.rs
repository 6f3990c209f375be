//! PostgreSQL's formats, as often as a busy archive or a large backup meets them.

#![allow(clippy::unwrap_used, reason = "a benchmark's way to fail")]

use std::fmt::Write;
use std::hint::black_box;
use std::time::Duration;

use criterion::{Criterion, Throughput};
use sha2::{Digest, Sha256};
use walden_pg::manifest::ManifestError;
use walden_pg::{ManifestFile, SegmentName, check_segment, parse_manifest, verify_page};

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
