#![no_main]
//! Backup manifests: the summary counts what was handed out.

use libfuzzer_sys::fuzz_target;
use walden_pg::manifest::ManifestError;
use walden_pg::parse_manifest;

fuzz_target!(|bytes: &[u8]| {
    let mut files = 0;
    let summary = parse_manifest(bytes, |file| {
        assert!(!file.path.is_empty());
        files += 1;
        Ok::<(), ManifestError>(())
    });
    if let Ok(summary) = summary {
        assert_eq!(summary.files, files);
        assert!(
            summary
                .wal_ranges
                .iter()
                .all(|range| range.start <= range.end)
        );
    }
});
