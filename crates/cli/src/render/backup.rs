//! What `walden backup` came to, as JSON.

use jiff::Timestamp;
use serde::Serialize;
use walden_engine::backup::BackupReport;
use walden_model::{BackupId, BackupKind};
use walden_pg::{Lsn, SystemIdentifier, TimelineId};

#[derive(Serialize)]
struct Report<'a> {
    version: u32,
    id: &'a BackupId,
    kind: BackupKind,
    system_identifier: SystemIdentifier,
    timeline: TimelineId,
    start_lsn: Lsn,
    stop_lsn: Lsn,
    started_at: Timestamp,
    stopped_at: Timestamp,
    cluster_size: u64,
    stored_size: u64,
    damaged_blocks: u64,
    committed_in: &'a [String],
    lacking: Vec<Lacking<'a>>,
    warnings: &'a [String],
}

#[derive(Serialize)]
struct Lacking<'a> {
    repository: &'a str,
    required: bool,
    why: String,
}

/// One object; docs/json.md describes it.
///
/// # Errors
/// Where a value cannot be written as JSON.
pub fn backup_json(report: &BackupReport) -> serde_json::Result<String> {
    let record = &report.record;
    let lacking = report.lacking.iter().map(|lacking| Lacking {
        repository: &lacking.repository,
        required: lacking.required,
        why: whole_text(&lacking.why),
    });
    let text = serde_json::to_string_pretty(&Report {
        version: 1,
        id: &record.backup_id,
        kind: record.backup_kind,
        system_identifier: record.system_identifier,
        timeline: record.timeline,
        start_lsn: record.start_lsn,
        stop_lsn: record.stop_lsn,
        started_at: record.started_at,
        stopped_at: record.stopped_at,
        cluster_size: record.cluster_size,
        stored_size: record.stored_size,
        damaged_blocks: record.damaged_blocks,
        committed_in: &report.committed,
        lacking: lacking.collect(),
        warnings: &report.warnings,
    })?;
    Ok(text + "\n")
}

fn whole_text(error: &dyn std::error::Error) -> String {
    let chain = std::iter::successors(Some(error), |e| e.source());
    let texts: Vec<_> = chain.map(ToString::to_string).collect();
    texts.join(": ")
}
