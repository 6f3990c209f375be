#![no_main]
//! Lines of a file map: what is accepted stays inside the directory, and reads the same when written again.

use libfuzzer_sys::fuzz_target;
use walden_model::{FileBody, FileEntry};

fuzz_target!(|line: &[u8]| {
    let Ok(entry) = FileEntry::decode_line(line) else {
        return;
    };
    let outside = entry
        .path
        .split(|byte| *byte == b'/')
        .any(|part| part == b"..");
    let absolute = entry.path.starts_with(b"/") && !matches!(entry.body, FileBody::Extra(_));
    assert!(
        !outside && !absolute,
        "{entry:?} leads out of the directory"
    );
    let again = entry
        .encode_line()
        .map(|line| FileEntry::decode_line(&line));
    assert!(matches!(again, Ok(Ok(again)) if again == entry));
});
