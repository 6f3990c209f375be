//! Names of relation files: which files hold data pages, and which blocks (`common/relpath.c`: `GetRelationPath`;
//! `storage/file/reinit.c`: `parse_filename_for_nontemp_relation`).

/// A file of a relation that a base backup holds.
///
/// Everything else in a data directory carries no page checksums. What `basebackup.c` lists as `noChecksumFiles`
/// (`pg_control`, `pg_filenode.map`, `pg_internal.init`, `PG_VERSION`) has no such name, nor has what backups leave out: temporary
/// relations and sorting files.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct RelationFile {
    /// Which of the relation's forks the file belongs to.
    pub fork: Fork,
    /// The file's number in the fork: relations are cut every `relseg_size` blocks.
    pub segment: u32,
}

/// `ForkNumber`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Fork {
    /// The rows or index entries.
    Main,
    /// `_fsm`: the free space map.
    FreeSpaceMap,
    /// `_vm`: the visibility map.
    VisibilityMap,
    /// `_init`: what an unlogged relation is reset to.
    Init,
}

impl RelationFile {
    /// Reads a path relative to the data directory (`base/5/1259_fsm.2`, `global/1262`,
    /// `pg_tblspc/16400/PG_17_202406281/5/16401.1`) or to a tablespace's folder (`PG_17_202406281/5/16401.1`), with or without
    /// a leading `./`. `None` for whatever is no relation's file.
    pub fn parse(path: &[u8]) -> Option<RelationFile> {
        let path = std::str::from_utf8(path).ok()?;
        let parts: Vec<&str> = path
            .strip_prefix("./")
            .unwrap_or(path)
            .split('/')
            .take(6)
            .collect();
        let name = match *parts.as_slice() {
            ["global", name] => name,
            ["base", database, name] if is_number(database) => name,
            [version, database, name] | ["pg_tblspc", _, version, database, name]
                if version.starts_with("PG_") && is_number(database) =>
            {
                name
            }
            _ => return None,
        };
        if let ["pg_tblspc", tablespace, ..] = *parts.as_slice()
            && !is_number(tablespace)
        {
            return None;
        }
        let (stem, segment) = match name.split_once('.') {
            None => (name, 0),
            Some((stem, segment)) => (stem, number(segment)?),
        };
        let (relation, fork) = match stem.split_once('_') {
            None => (stem, Fork::Main),
            Some((relation, "fsm")) => (relation, Fork::FreeSpaceMap),
            Some((relation, "vm")) => (relation, Fork::VisibilityMap),
            Some((relation, "init")) => (relation, Fork::Init),
            Some(_) => return None,
        };
        is_number(relation).then_some(RelationFile { fork, segment })
    }

    /// The number of the file's first block, given `relseg_size`. `None` beyond the last block that a relation can have.
    pub fn first_block(&self, blocks_per_segment: u32) -> Option<u32> {
        self.segment.checked_mul(blocks_per_segment)
    }
}

/// As PostgreSQL writes numbers in names: no leading zero.
fn number(text: &str) -> Option<u32> {
    let written = text.bytes().all(|b| b.is_ascii_digit()) && !text.starts_with('0');
    written.then(|| text.parse().ok()).flatten()
}

fn is_number(text: &str) -> bool {
    number(text).is_some()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn parse(path: &str) -> Option<RelationFile> {
        RelationFile::parse(path.as_bytes())
    }

    #[test]
    fn relation_files_are_known_everywhere_they_stand() {
        let file = |fork, segment| Some(RelationFile { fork, segment });
        assert_eq!(parse("base/5/1259_fsm.2"), file(Fork::FreeSpaceMap, 2));
        assert_eq!(parse("global/1262"), file(Fork::Main, 0));
        assert_eq!(parse("./global/1262_vm"), file(Fork::VisibilityMap, 0));
        assert_eq!(
            parse("pg_tblspc/16400/PG_17_202406281/5/16401.1"),
            file(Fork::Main, 1)
        );
        assert_eq!(parse("PG_17_202406281/5/16401_init"), file(Fork::Init, 0));
        assert_eq!(
            file(Fork::Main, 3).unwrap().first_block(131_072),
            Some(393_216)
        );
        assert_eq!(
            file(Fork::Main, u32::MAX).unwrap().first_block(131_072),
            None
        );
    }

    #[test]
    fn files_without_page_checksums_are_not_taken_for_relations() {
        for path in [
            "global/pg_control",
            "base/5/pg_filenode.map",
            "base/5/pg_internal.init",
            "base/5/PG_VERSION",
            "PG_VERSION",
            "global/config_exec_params",
            "base/5/t3_16400",
            "base/pgsql_tmp/pgsql_tmp1.0",
            "base/5/1259_fsm.",
            "base/5/1259.0",
            "base/5/01259",
            "base/5/1259_x",
            "base/5/1259.1.1",
            "base/5/x/1259",
            "base/1259",
            "pg_xact/0000",
            "pg_tblspc/16400",
            "pg_tblspc/x/PG_17_202406281/5/16401",
            "pg_tblspc/16400/PG_17_202406281/5/6/16401",
            "pg_wal/000000010000000000000001",
            "base/5/4294967296",
            "/base/5/1259",
            "",
        ] {
            assert_eq!(
                parse(path),
                None,
                "{path:?} was taken for a relation's file"
            );
        }
    }

    proptest! {
        #[test]
        fn no_bytes_panic(path: Vec<u8>, text in "(\\./)?(base|global|pg_tblspc|PG_1)?/?[0-9]{0,11}/?[0-9]{0,11}(_fsm|_vm|_)?(\\.[0-9]{0,11})?") {
            RelationFile::parse(&path);
            RelationFile::parse(text.as_bytes());
        }

        #[test]
        fn segments_are_read_as_written(relation in 1u32.., segment in 1u32..) {
            let path = format!("base/1/{relation}.{segment}");
            prop_assert_eq!(RelationFile::parse(path.as_bytes()), Some(RelationFile { fork: Fork::Main, segment }));
        }
    }
}
