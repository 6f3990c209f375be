//! Entries of the file map there and back, and entries that would lead a restore astray.

use proptest::prelude::*;

use crate::file_map::{Extent, FileBody, FileContent, FileEntry, FileEntryError};

fn data(offset: u64, length: u64) -> Extent {
    Extent::Data {
        offset,
        length,
        pack: 2,
        frame: 3,
        frame_offset: 4,
    }
}

fn content(size: u64, extents: Vec<Extent>) -> FileContent {
    FileContent {
        size,
        crc32c: 0x00c0_ffee,
        extents,
    }
}

fn file(path: &[u8], content: FileContent) -> FileEntry {
    FileEntry {
        path: path.to_vec(),
        mode: 0o600,
        mtime: 1_795_348_800,
        body: FileBody::File(content),
    }
}

#[test]
fn an_entry_looks_as_the_format_says() {
    let entry = file(
        b"base/5/1259",
        content(
            9000,
            vec![
                data(0, 8192),
                Extent::Zero {
                    offset: 8192,
                    length: 808,
                },
            ],
        ),
    );
    let line = entry.encode_line().unwrap();
    assert_eq!(
        String::from_utf8(line.clone()).unwrap(),
        "{\"path\":\"base/5/1259\",\"type\":\"file\",\"mode\":\"0600\",\"mtime\":1795348800,\"size\":9000,\"crc32c\":\"00c0ffee\",\
         \"extents\":[[\"data\",0,8192,2,3,4],[\"zero\",8192,808]]}\n"
    );
    assert_eq!(FileEntry::decode_line(&line).unwrap(), entry);
    let directory = FileEntry {
        path: b"pg_wal".to_vec(),
        mode: 0o700,
        mtime: -1,
        body: FileBody::Directory,
    };
    assert_eq!(
        String::from_utf8(directory.encode_line().unwrap()).unwrap(),
        "{\"path\":\"pg_wal\",\"type\":\"directory\",\"mode\":\"0700\",\"mtime\":-1}\n"
    );
}

#[test]
fn a_path_that_is_not_utf8_is_kept_byte_by_byte() {
    let entry = FileEntry {
        path: b"pg_tblspc/16400".to_vec(),
        mode: 0o777,
        mtime: 0,
        body: FileBody::Link {
            target: b"/srv/\xff".to_vec(),
        },
    };
    let line = entry.encode_line().unwrap();
    assert!(
        String::from_utf8(line.clone())
            .unwrap()
            .contains("\"target_hex\":\"2f7372762fff\"")
    );
    assert_eq!(FileEntry::decode_line(&line).unwrap(), entry);
}

#[test]
fn entries_that_would_lead_a_restore_astray_are_refused() {
    let empty = || content(0, vec![]);
    let with = |path: &[u8], body: FileBody| FileEntry {
        path: path.to_vec(),
        mode: 0o600,
        mtime: 0,
        body,
    };
    let link = |path: &[u8], target: &[u8]| {
        with(
            path,
            FileBody::Link {
                target: target.to_vec(),
            },
        )
    };
    let sized = |size, extents| file(b"a", content(size, extents));
    for (what, entry) in [
        ("an absolute path", file(b"/etc/passwd", empty())),
        ("a parent", file(b"base/../../x", empty())),
        ("a parent alone", with(b"..", FileBody::Directory)),
        ("a dot", file(b"./x", empty())),
        ("an empty component", file(b"base//x", empty())),
        ("a slash at the end", with(b"base/", FileBody::Directory)),
        ("an empty path", file(b"", empty())),
        ("a NUL", file(b"base/5\0", empty())),
        ("a long path", file(&[b'x'; 5000], empty())),
        ("a relative extra", with(b"etc/x", FileBody::Extra(empty()))),
        (
            "an extra through a parent",
            with(b"/etc/../x", FileBody::Extra(empty())),
        ),
        (
            "an extra that is the root",
            with(b"/", FileBody::Extra(empty())),
        ),
        ("a link elsewhere", link(b"base", b"/srv")),
        (
            "a link below a tablespace",
            link(b"pg_tblspc/16400/x", b"/srv"),
        ),
        ("a link with another name", link(b"pg_tblspc/x", b"/srv")),
        ("a link without a name", link(b"pg_tblspc/", b"/srv")),
        ("a relative link", link(b"pg_tblspc/16400", b"../srv")),
        ("a link with a NUL", link(b"pg_tblspc/16400", b"/srv\0")),
        ("too few bytes", sized(10, vec![data(0, 9)])),
        ("too many bytes", sized(10, vec![data(0, 11)])),
        ("no extents", sized(10, vec![])),
        ("an overlap", sized(10, vec![data(0, 6), data(5, 5)])),
        (
            "extents out of order",
            sized(10, vec![data(5, 5), data(0, 5)]),
        ),
        ("a skipped range", sized(10, vec![data(0, 4), data(5, 5)])),
        ("an empty extent", sized(10, vec![data(0, 10), data(10, 0)])),
        (
            "an overflow",
            sized(8, vec![data(0, u64::MAX), data(u64::MAX, 9)]),
        ),
        (
            "a hole",
            sized(
                10,
                vec![Extent::Hole {
                    offset: 0,
                    length: 10,
                }],
            ),
        ),
        (
            "a mode that is more than permissions",
            FileEntry {
                mode: 0o100_600,
                ..file(b"a", empty())
            },
        ),
    ] {
        let result = entry.validate();
        assert!(
            matches!(result, Err(FileEntryError::Refused { .. })),
            "{what} must be refused"
        );
        assert!(
            entry.encode_line().is_err(),
            "{what} must not be written either"
        );
    }
}

#[test]
fn malformed_lines_are_refused() {
    let line = |more: &str| {
        format!("{{\"path\":\"a\",\"type\":\"file\",\"mode\":\"0600\",\"mtime\":0{more}}}")
    };
    let whole = line(",\"size\":0,\"crc32c\":\"00000000\",\"extents\":[]");
    assert!(FileEntry::decode_line(whole.as_bytes()).is_ok(), "{whole}");
    for bad in [
        line(""),
        line(",\"size\":0,\"crc32c\":\"00000000\""),
        line(",\"size\":0,\"crc32c\":\"0\",\"extents\":[]"),
        line(",\"size\":0,\"crc32c\":\"+0000000\",\"extents\":[]"),
        line(",\"size\":-1,\"crc32c\":\"00000000\",\"extents\":[]"),
        line(",\"size\":4,\"crc32c\":\"00000000\",\"extents\":[[\"data\",0,4,0,0]]"),
        line(",\"size\":4,\"crc32c\":\"00000000\",\"extents\":[[\"zero\",0,4,0]]"),
        line(",\"size\":4,\"crc32c\":\"00000000\",\"extents\":[[\"copy\",0,4]]"),
        whole.replace("\"0600\"", "\"+600\""),
        whole.replace("\"0600\"", "\"0900\""),
        whole.replace("\"path\":\"a\"", "\"path\":\"a\",\"path_hex\":\"61\""),
        whole.replace("\"path\":\"a\"", "\"path_hex\":\"6\""),
        whole.replace("\"path\":\"a\"", "\"path_hex\":\"2e2e\""),
        whole.replace("\"path\":\"a\",", ""),
        whole.replace("\"file\"", "\"socket\""),
        whole.replace("\"file\"", "\"link\""),
    ] {
        assert!(
            FileEntry::decode_line(bad.as_bytes()).is_err(),
            "{bad} must be refused"
        );
    }
}

proptest! {
    #[test]
    fn every_valid_entry_is_read_back_as_it_was_written(
        path in proptest::collection::vec(proptest::collection::vec(any::<u8>(), 1..8), 1..5),
        lengths in proptest::collection::vec(1_u64..1 << 40, 0..6),
        numbers: [u32; 4],
        mtime: i64,
        mode in 0_u32..=0o7777,
    ) {
        let mut offset = 0;
        let mut extents = Vec::new();
        for (turn, length) in lengths.into_iter().enumerate() {
            let [pack, frame, frame_offset, _] = numbers;
            extents.push(if turn % 3 == 2 {
                Extent::Zero { offset, length }
            } else {
                Extent::Data { offset, length, pack, frame, frame_offset }
            });
            offset += length;
        }
        let content = FileContent { size: offset, crc32c: numbers[3], extents };
        let entry = FileEntry { path: path.join(&b'/'), mode, mtime, body: FileBody::File(content) };
        prop_assume!(entry.validate().is_ok());
        prop_assert_eq!(FileEntry::decode_line(&entry.encode_line().unwrap()).unwrap(), entry);
    }
}
