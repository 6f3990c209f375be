#![no_main]
//! Names of WAL files: what parses prints the same.

use libfuzzer_sys::fuzz_target;
use walden_pg::{Lsn, WalFileName};

fuzz_target!(|text: &str| {
    if let Ok(name) = text.parse::<WalFileName>() {
        assert_eq!(name.to_string(), text);
    }
    if let Ok(lsn) = text.parse::<Lsn>() {
        assert_eq!(lsn.to_string().parse(), Ok(lsn));
    }
});
