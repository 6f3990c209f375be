//! `tablespace_map`: where a backup's tablespaces belong (written by `do_pg_backup_start` in `access/transam/xlog.c`, read
//! by `read_tablespace_map` in `xlogrecovery.c`).

/// The bytes are no tablespace map. Lines are counted from 1.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TablespaceMapError {
    /// A line is not an OID and a path.
    #[error("line {0} of the tablespace map is not an OID, a blank and a path")]
    Line(usize),
    /// The last line has no end.
    #[error("the tablespace map ends in mid-line: it is cut off")]
    Cut,
}

/// Reads a map: OIDs of tablespaces and their folders, in the file's order.
pub fn parse(bytes: &[u8]) -> Result<Vec<(u32, Vec<u8>)>, TablespaceMapError> {
    let mut map = Vec::new();
    let mut line = Vec::new();
    let mut escaped = false;
    for &byte in bytes {
        match byte {
            b'\n' | b'\r' if !escaped => {
                if !line.is_empty() {
                    map.push(entry(&line).ok_or(TablespaceMapError::Line(map.len() + 1))?);
                    line.clear();
                }
            }
            b'\\' if !escaped => escaped = true,
            _ => {
                line.push(byte);
                escaped = false;
            }
        }
    }
    if escaped || !line.is_empty() {
        return Err(TablespaceMapError::Cut);
    }
    Ok(map)
}

fn entry(line: &[u8]) -> Option<(u32, Vec<u8>)> {
    let blank = line.iter().position(|&b| b == b' ')?;
    let (oid, path) = line.split_at_checked(blank)?;
    let (oid, path) = (std::str::from_utf8(oid).ok()?, path.get(1..)?);
    let digits = oid.bytes().all(|b| b.is_ascii_digit());
    let oid = oid.parse().ok().filter(|&oid| digits && oid > 0)?;
    (!path.is_empty() && !path.contains(&0)).then(|| (oid, path.to_vec()))
}

/// Writes a map as PostgreSQL does: one line each, with a backslash before line feed, carriage return and backslash.
pub fn write(map: &[(u32, Vec<u8>)]) -> Vec<u8> {
    let mut out = Vec::new();
    for (oid, path) in map {
        out.extend_from_slice(oid.to_string().as_bytes());
        out.push(b' ');
        for &byte in path {
            if matches!(byte, b'\n' | b'\r' | b'\\') {
                out.push(b'\\');
            }
            out.push(byte);
        }
        out.push(b'\n');
    }
    out
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn escapes_are_those_of_postgresql() {
        let map = vec![
            (16387, b"/srv/back\\slash and blank".to_vec()),
            (9, b"/a\nb\rc".to_vec()),
        ];
        assert_eq!(
            write(&map),
            b"16387 /srv/back\\\\slash and blank\n9 /a\\\nb\\\rc\n"
        );
        assert_eq!(
            parse(b"1 /x\r\n2 /y\n"),
            Ok(vec![(1, b"/x".to_vec()), (2, b"/y".to_vec())])
        );
        assert_eq!(parse(b""), Ok(Vec::new()));
    }

    #[test]
    fn damage_is_named() {
        for text in [
            "x /y\n",
            "1\n",
            "1 \n",
            " /y\n",
            "0 /y\n",
            "+1 /y\n",
            "4294967296 /y\n",
            "1 /y\0\n",
        ] {
            assert_eq!(
                parse(text.as_bytes()),
                Err(TablespaceMapError::Line(1)),
                "{text:?} was taken"
            );
        }
        for text in ["1 /y", "1 /y\n2", "1 /y\\", "1 /y\\\n"] {
            assert_eq!(
                parse(text.as_bytes()),
                Err(TablespaceMapError::Cut),
                "{text:?} was taken"
            );
        }
    }

    proptest! {
        #[test]
        fn maps_round_trip(map in prop::collection::vec((1u32.., prop::collection::vec(1u8.., 1..40)), 0..5)) {
            prop_assert_eq!(parse(&write(&map)), Ok(map));
        }

        #[test]
        fn no_bytes_panic(bytes: Vec<u8>, text in "([0-9]{1,11} ?[/a\\\\\n\r]{0,4}\n?){0,4}") {
            for bytes in [&bytes[..], text.as_bytes()] {
                if let Ok(map) = parse(bytes) {
                    prop_assert_eq!(parse(&write(&map)), Ok(map));
                }
            }
        }
    }
}
