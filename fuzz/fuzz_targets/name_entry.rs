//! A line of a backup's names: any bytes are refused or read, and what is read can be written, looked up and shown.
#![no_main]

use libfuzzer_sys::fuzz_target;
use walden_model::names::{NameEntry, Names};

fuzz_target!(|line: &[u8]| {
    let Ok(Some(entry)) = NameEntry::decode_line(line) else {
        return;
    };
    let written = entry.encode_line().expect("an entry that was read is written");
    assert_eq!(
        NameEntry::decode_line(&written).expect("what was written is read"),
        Some(entry.clone())
    );
    let mut names = Names::default();
    names.insert(entry.clone());
    if let NameEntry::Relation(relation) = entry {
        assert_eq!(names.relation(relation.oid), Some(&relation));
        assert_eq!(names.root(&relation).oid, relation.oid);
        assert!(!relation.to_string().chars().any(char::is_control), "{relation}");
    }
});
