#![no_main]
//! Backup labels and backup history files.

use libfuzzer_sys::fuzz_target;
use walden_pg::BackupLabel;

fuzz_target!(|bytes: &[u8]| {
    if let Ok(label) = BackupLabel::parse(bytes) {
        assert_eq!(label.start_segment.timeline, label.start_timeline);
    }
});
