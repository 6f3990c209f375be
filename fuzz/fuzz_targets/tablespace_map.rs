#![no_main]
//! Tablespace maps: what was read is written so that it reads the same.

use libfuzzer_sys::fuzz_target;
use walden_pg::tablespace_map;

fuzz_target!(|bytes: &[u8]| {
    if let Ok(map) = tablespace_map::parse(bytes) {
        assert_eq!(tablespace_map::parse(&tablespace_map::write(&map)), Ok(map));
    }
});
