//! A copy that could not copy everything.

use walden_engine::copy::{ClusterCopy, CopyReport, Finding, FindingKind, Tally};

use super::MB;

pub fn copied() -> CopyReport {
    CopyReport {
        from: "here".to_owned(),
        to: "elsewhere".to_owned(),
        dry_run: false,
        clusters: vec![ClusterCopy {
            cluster: "main".parse().expect("a name"),
            wal: Tally {
                objects: 12,
                bytes: 13 * MB,
            },
            contents: Tally {
                objects: 1,
                bytes: 52 * MB,
            },
            documents: Tally::default(),
            roll_ups: Tally::default(),
            backups: vec!["20261122T175007Z-0badcafe".parse().expect("an id")],
            there: 4711,
            findings: vec![Finding {
                kind: FindingKind::Damaged,
                key: "main/7/wal/00000001/00000000/000000010000000000000003.zst".to_owned(),
                why: "a frame does not fit".to_owned(),
            }],
            found: 2,
            unknown: vec!["main/7/tomorrow/".to_owned()],
        }],
    }
}
