#![no_main]
//! Configuration files: what is removed is gone, what is not stays, and quoted values come back.

use libfuzzer_sys::fuzz_target;
use walden_pg::conf;

fuzz_target!(|bytes: &[u8]| {
    let before = conf::settings(bytes);
    let left = conf::without_settings(bytes, &["restore_command"], &["recovery_target"]);
    let mut expected = before.clone();
    expected.retain(|(name, _)| name != "restore_command" && !name.starts_with("recovery_target"));
    assert_eq!(conf::settings(&left), expected);
    for (_, value) in before {
        if let Ok(quoted) = conf::quote(&value) {
            assert_eq!(
                conf::settings(format!("name = {quoted}").as_bytes()),
                [("name".to_owned(), value)]
            );
        }
    }
});
