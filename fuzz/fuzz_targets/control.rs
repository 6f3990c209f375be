#![no_main]
//! Control files, also with a checksum that fits: no fuzzer finds one.

use libfuzzer_sys::fuzz_target;
use walden_pg::{ControlFile, system_identifier_of};

fuzz_target!(|bytes: &[u8]| {
    let _ = ControlFile::parse(bytes);
    for crc_at in [288, 292] {
        let Some(covered) = bytes.get(..crc_at) else {
            return;
        };
        let mut sealed = covered.to_vec();
        sealed.extend(crc32c::crc32c(covered).to_le_bytes());
        if let Ok(control) = ControlFile::parse(&sealed) {
            assert_eq!(Some(control.system_identifier), system_identifier_of(bytes));
        }
    }
});
