#![no_main]
//! Paths of relation files, and pages.

use libfuzzer_sys::fuzz_target;
use walden_pg::{RelationFile, verify_page};

fuzz_target!(|bytes: &[u8]| {
    if let Some(file) = RelationFile::parse(bytes) {
        assert!(file.first_block(1).is_some());
    }
    verify_page(bytes, 1);
});
