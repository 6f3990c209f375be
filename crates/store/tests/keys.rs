//! Which texts are keys.

use walden_store::{BadKey, Key};

#[test]
fn keys_are_taken_as_they_are() {
    let long = format!("{}/{}", vec!["c".repeat(255); 3].join("/"), "d".repeat(132));
    assert_eq!(long.len(), Key::MAX_LENGTH, "the test's own arithmetic");
    for text in [
        "a",
        "walden.json",
        "main/1/wal/00000001/a.b",
        "a b/~!'\"",
        "a./b..c",
        &long,
    ] {
        let key = Key::parse(text).unwrap_or_else(|error| panic!("{text:?} is a key: {error}"));
        assert_eq!(key.as_str(), text, "a key is the text that was parsed");
    }
}

#[test]
fn what_leaves_the_root_or_hides_is_no_key() {
    let component = "c".repeat(256);
    for text in [
        "", "/", "/a", "a/", "a//b", ".", "..", "../a", "a/../b", "a/.", ".tmp/a", "a/.b",
        &component,
    ] {
        assert_eq!(
            Key::parse(text),
            Err(BadKey::BadComponent(text.to_owned())),
            "{text:?} is no key"
        );
    }
    for text in ["a\\b", "a\nb", "a\0b", "\u{e9}", "a\u{7f}"] {
        assert_eq!(
            Key::parse(text),
            Err(BadKey::BadCharacter(text.to_owned())),
            "{text:?} is no key"
        );
    }
    let text = [
        "c".repeat(255),
        "c".repeat(255),
        "c".repeat(255),
        "d".repeat(133),
    ]
    .join("/");
    assert_eq!(
        Key::parse(&text),
        Err(BadKey::TooLong(901)),
        "901 bytes are too many"
    );
}
