//! What people read: sizes, times, tables, pages. Values in, text out.

mod backup;
mod backups;
mod conflicts;
mod copy;
mod expiry;
mod find;
mod plan;
mod push_missing;
#[cfg(test)]
#[allow(clippy::expect_used, reason = "fixtures")]
pub(crate) mod samples;
mod segment;
mod several;
mod verify;
mod wal;
mod windows;

use std::path::Path;
use std::time::Duration;

pub use backup::backup_json;
pub use backups::{backups_json, backups_table};
use comfy_table::{Table, TableStyle};
pub use conflicts::{conflicts_json, conflicts_page, resolved_json, resolved_page};
pub use copy::{copy_json, copy_page};
pub use expiry::{expiry_json, expiry_page, expiry_warnings};
pub use find::{findings_json, findings_page};
use jiff::Timestamp;
pub use plan::{Destination, plan_json, plan_page};
pub use push_missing::{push_missing_json, push_missing_page};
pub use segment::{segment_json, segment_page};
pub use verify::{verify_json, verify_page};
pub use wal::{WAL_JSON_END, wal_header, wal_json_begin, wal_json_line, wal_line};
pub use windows::{windows_json, windows_table};

/// A table with a header and a line for each row; no cell may hold a line's end.
fn table<const COLUMNS: usize>(header: &[&str; COLUMNS], rows: Vec<[String; COLUMNS]>) -> String {
    let mut table = Table::new();
    table
        .load_style(TableStyle::new())
        .set_header(header.to_vec());
    table.add_rows(rows);
    for column in table.column_iter_mut() {
        column.set_padding((0, 2));
    }
    table
        .lines()
        .fold(String::new(), |page, line| page + line.trim_end() + "\n")
}

/// A path as one word of a shell's command line.
#[must_use]
pub fn shell_word(path: &Path) -> String {
    let text = path.display().to_string();
    let plain = |c: char| c.is_ascii_alphanumeric() || "/._-+,:@".contains(c);
    if text.chars().all(plain) {
        text
    } else {
        format!("'{}'", text.replace('\'', r"'\''"))
    }
}

/// Bytes as PostgreSQL's `pg_size_pretty` shows them: the largest unit of which there are ten at least, powers of 1024.
#[must_use]
pub fn size(bytes: u64) -> String {
    const UNITS: [&str; 6] = ["kB", "MB", "GB", "TB", "PB", "EB"];
    if bytes < 10 * 1024 {
        return format!("{bytes} bytes");
    }
    let mut size = u128::from(bytes);
    let mut unit = "bytes";
    for larger in UNITS {
        unit = larger;
        size = (size + 512) / 1024;
        if size < 10 * 1024 {
            break;
        }
    }
    format!("{size} {unit}")
}

/// Bytes a second.
#[must_use]
pub fn rate(bytes: u64, time: Duration) -> String {
    let milliseconds = time.as_millis().max(1);
    let rate = u64::try_from(u128::from(bytes) * 1000 / milliseconds).unwrap_or(u64::MAX);
    format!("{}/s", size(rate))
}

/// A span of time: `45s`, `3min 20s`, `2h 5min`.
#[must_use]
pub fn span(time: Duration) -> String {
    let seconds = (time.as_millis() + 500) / 1000;
    match (seconds / 3600, seconds / 60 % 60, seconds % 60) {
        (0, 0, _) if time < Duration::from_secs(10) => format!("{:.1}s", time.as_secs_f64()),
        (0, 0, seconds) => format!("{seconds}s"),
        (0, minutes, seconds) => format!("{minutes}min {seconds}s"),
        (hours, minutes, _) => format!("{hours}h {minutes}min"),
    }
}

/// A moment, RFC 3339 in UTC, to the second.
#[must_use]
pub fn moment(time: Timestamp) -> String {
    time.strftime("%Y-%m-%dT%H:%M:%SZ").to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Every key of a JSON value, at any depth, but not the names that a person chose, nor an index's, which docs/FORMAT.md describes.
    fn keys(value: &serde_json::Value, found: &mut std::collections::BTreeSet<String>) {
        match value {
            serde_json::Value::Object(fields) => {
                for (key, value) in fields {
                    found.insert(key.clone());
                    if key != "annotations" && key != "index" {
                        keys(value, found);
                    }
                }
            }
            serde_json::Value::Array(values) => {
                values.iter().for_each(|value| keys(value, found));
            }
            _ => {}
        }
    }

    #[test]
    fn the_page_on_json_names_every_key_that_is_printed() {
        let page = include_str!("../../../docs/json.md");
        let destination = Destination {
            directory: Path::new("/restored"),
            wal: None,
            extras: None,
            tablespaces: &[],
            other_systems: &[],
            as_root: false,
            whole_in: &[],
            out: &[],
            served: None,
        };
        let listing = backups_json(&samples::listing(), samples::now()).expect("JSON");
        let plan = plan_json(&samples::plan(), &destination, false).expect("JSON");
        let segment = segment_json(&samples::shown_segment()).expect("JSON");
        let mut printed = std::collections::BTreeSet::new();
        for file in samples::archived_wal() {
            let file = wal_json_line(&file).expect("JSON");
            keys(&serde_json::from_str(&file).expect("JSON"), &mut printed);
        }
        let windows = windows_json(&samples::windows(), samples::now()).expect("JSON");
        let findings = findings_json(&samples::findings(), "walden").expect("JSON");
        let copied = copy_json(&samples::copied()).expect("JSON");
        let conflicts = conflicts_json(&samples::conflicts()).expect("JSON");
        let resolved = [("here".to_owned(), samples::resolved())];
        let resolved = resolved_json(&resolved).expect("JSON");
        let pushed = push_missing_json(&samples::push_missing(), false).expect("JSON");
        let backup = backup_json(&samples::taken()).expect("JSON");
        let expiry = samples::expiry();
        let expiry = expiry_json(&expiry.cluster.clone(), &[expiry], &[]).expect("JSON");
        let verified = verify_json(&[samples::verified()]).expect("JSON");
        for text in [
            listing, plan, segment, windows, findings, copied, pushed, backup, conflicts, resolved,
            expiry, verified,
        ] {
            keys(&serde_json::from_str(&text).expect("JSON"), &mut printed);
        }
        printed.retain(|key| !page.contains(&format!("`{key}`")));
        assert!(printed.is_empty(), "docs/json.md does not name {printed:?}");
    }

    #[test]
    fn sizes_are_those_of_pg_size_pretty() {
        for (bytes, shown) in [
            (0, "0 bytes"),
            (10_239, "10239 bytes"),
            (10_240, "10 kB"),
            (16 * 1024 * 1024, "16 MB"),
            (1_000_000_000, "954 MB"),
            (4_400_000_000, "4196 MB"),
            (20_000_000_000_000, "18 TB"),
        ] {
            assert_eq!(size(bytes), shown, "{bytes} bytes");
        }
    }

    #[test]
    fn spans_show_what_matters() {
        for (milliseconds, shown) in [
            (840, "0.8s"),
            (45_000, "45s"),
            (59_999, "1min 0s"),
            (200_000, "3min 20s"),
            (7_500_000, "2h 5min"),
        ] {
            assert_eq!(
                span(Duration::from_millis(milliseconds)),
                shown,
                "{milliseconds} ms"
            );
        }
    }
}
