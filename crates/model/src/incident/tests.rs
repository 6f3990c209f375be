//! Verdicts, on facts as real servers' WAL says them.

use jiff::Timestamp;
use walden_pg::Lsn;
use walden_pg::wal_record::{RelFileLocator, RelationOid};

use super::*;
use crate::index::{
    At, CreatedFile, DatabaseRow, End, Moment, MomentKind, Outcome, RowsOf, SegmentIndex,
    TransactionFacts, TransactionOutcome, XidRange,
};
use crate::names::{NameEntry, NamedDatabase, Names, Persistence};

mod spread;

const DB: u32 = 5;
const XID: u32 = 739;

fn oid(relation: u32) -> RelationOid {
    RelationOid {
        database: DB,
        relation,
    }
}

fn file(number: u32) -> RelFileLocator {
    RelFileLocator {
        tablespace: 1663,
        database: DB,
        number,
    }
}

fn end(xid: u32, lsn: u64, kind: Outcome) -> End {
    End {
        kind,
        xid,
        lsn: Lsn(lsn),
        end_lsn: Lsn(lsn + 100),
        time: Timestamp::from_second(1_795_348_800).unwrap(),
    }
}

/// One transaction's records, each 10 bytes behind the one before.
#[derive(Clone)]
struct Story {
    facts: TransactionFacts,
    outcome: TransactionOutcome,
    at: u64,
    version: u16,
}

fn story(version: u16) -> Story {
    Story {
        facts: TransactionFacts {
            xid: XID,
            first_lsn: Lsn(990),
            ..facts(XID)
        },
        outcome: outcome(end(XID, 9_000, Outcome::Commit)),
        at: 1_000,
        version,
    }
}

fn facts(xid: u32) -> TransactionFacts {
    TransactionFacts {
        xid,
        first_lsn: Lsn(990),
        top: None,
        locks: vec![],
        created: vec![],
        databases_dropped: vec![],
        database_rows: vec![],
        truncated: vec![],
        deleted: vec![],
        updated: vec![],
        class_rows: Default::default(),
        end: None,
    }
}

fn outcome(end: End) -> TransactionOutcome {
    TransactionOutcome {
        end,
        subxids: vec![],
        database: 0,
        dropped_files: vec![],
        dropped_stats: vec![],
        invalidated: vec![],
    }
}

impl Story {
    fn lsn(&mut self) -> Lsn {
        self.at += 10;
        Lsn(self.at)
    }

    fn lock(mut self, relations: &[u32]) -> Self {
        for relation in relations {
            let (what, lsn) = (oid(*relation), self.lsn());
            self.facts.locks.push(At { what, lsn });
        }
        self
    }

    /// `content`: `r`ows, `p`ages.
    fn create(mut self, number: u32, content: &str) -> Self {
        let lsn = self.lsn();
        self.facts.created.push(CreatedFile {
            file: file(number),
            lsn,
            rows: content.contains('r'),
            pages: content.contains('p'),
        });
        self
    }

    fn class(mut self, inserted: u32, updated: u32, deleted: u32) -> Self {
        self.facts.class_rows.inserted += inserted;
        self.facts.class_rows.updated += updated;
        self.facts.class_rows.deleted += deleted;
        self
    }

    fn delete(mut self, number: u32, rows: u64) -> Self {
        let lsn = self.lsn();
        self.facts.deleted.push(RowsOf {
            file: file(number),
            rows,
            lsn,
        });
        self
    }

    /// What the commit says: files, and from 15 on the relations that were dropped.
    fn commit(mut self, files: &[u32], dropped: &[u32], invalidated: &[u32]) -> Self {
        self.outcome.dropped_files = files.iter().map(|number| file(*number)).collect();
        if self.version >= 15 {
            self.outcome.dropped_stats = dropped.iter().map(|relation| oid(*relation)).collect();
        }
        self.outcome.invalidated = invalidated.iter().map(|relation| oid(*relation)).collect();
        self
    }

    fn done(mut self) -> TransactionFacts {
        self.facts.end = Some(self.outcome);
        self.facts
    }

    fn told(self, before: Option<&Names>, after: Option<&Names>) -> Vec<Incident> {
        let version = self.version;
        judge(gathered(version, vec![vec![self.done()]]), before, after)
    }
}

fn index(version: u16, transactions: Vec<TransactionFacts>) -> SegmentIndex {
    SegmentIndex {
        pg_version: version,
        transactions,
        ..SegmentIndex::empty()
    }
}

fn gathered(version: u16, segments: Vec<Vec<TransactionFacts>>) -> Vec<Transaction> {
    let mut gathering = Gathering::new(1000);
    let segments = segments.into_iter();
    segments
        .flat_map(|facts| gathering.segment(index(version, facts)))
        .collect()
}

const ALL: Limits = Limits {
    dropped: true,
    truncated: true,
    deleted: Some(1000),
    updated: Some(1000),
};

fn judge(
    transactions: Vec<Transaction>,
    before: Option<&Names>,
    after: Option<&Names>,
) -> Vec<Incident> {
    let judge = Judge {
        before,
        after,
        limits: ALL,
    };
    let suspects = transactions.iter().filter(|told| ALL.suspect(told));
    suspects.flat_map(|told| judge.incidents(told)).collect()
}

fn relation(number: u32, name: &str, kind: RelationKind, belongs_to: Option<u32>) -> NamedRelation {
    NamedRelation {
        oid: oid(number),
        schema: "public".into(),
        name: name.into(),
        kind,
        persistence: Persistence::Permanent,
        file: Some(file(number)),
        belongs_to,
        partition_of: None,
    }
}

/// A table with a TOAST table and an index, one without either, a view, and a partitioned table.
fn names() -> Names {
    let mut names = Names::default();
    let mut put = |relation| names.insert(NameEntry::Relation(relation));
    put(relation(16_393, "b", RelationKind::Table, None));
    put(relation(
        16_396,
        "pg_toast_16393",
        RelationKind::Toast,
        Some(16_393),
    ));
    put(relation(
        16_397,
        "pg_toast_16393_index",
        RelationKind::Index,
        Some(16_396),
    ));
    put(relation(
        16_398,
        "b_pkey",
        RelationKind::Index,
        Some(16_393),
    ));
    put(relation(16_422, "bare", RelationKind::Table, None));
    put(relation(16_430, "numbers", RelationKind::Sequence, None));
    put(NamedRelation {
        file: None,
        ..relation(16_440, "parts", RelationKind::PartitionedTable, None)
    });
    for part in [16_441, 16_442] {
        put(NamedRelation {
            partition_of: Some(16_440),
            ..relation(part, "part", RelationKind::Table, None)
        });
    }
    put(NamedRelation {
        file: None,
        ..relation(16_450, "seen", RelationKind::View, None)
    });
    names.insert(NameEntry::Database(NamedDatabase {
        oid: DB,
        name: "shop".into(),
        tablespace: 1663,
    }));
    names
}

/// `DROP TABLE shop.public.b at 1010`, with ` ?` where it is ambiguous.
fn lines(incidents: &[Incident]) -> Vec<String> {
    let line = |told: &Incident| {
        let doubt = told
            .doubt
            .map_or(String::new(), |doubt| format!(" ? {doubt:?}"));
        let along = match told.along {
            0 => String::new(),
            more => format!(" and {more} more"),
        };
        let rows = told
            .rows
            .map_or(String::new(), |rows| format!(" {rows} rows"));
        let (what, lsn) = (told.statement(), told.lsn.0);
        format!("{what} {}{along}{rows} at {lsn}{doubt}", told.object)
    };
    incidents.iter().map(line).collect()
}

const VERSIONS: [u16; 2] = [14, 17];
const B: [u32; 4] = [16_393, 16_396, 16_397, 16_398];

fn drop_b(version: u16) -> Story {
    story(version).lock(&B).class(0, 0, 4).commit(&B, &B, &B)
}

#[test]
fn a_dropped_table_is_told_once_and_without_what_goes_along() {
    for version in VERSIONS {
        let told = drop_b(version).told(Some(&names()), None);
        assert_eq!(
            lines(&told),
            ["DROP TABLE shop.public.b at 1010"],
            "{version}"
        );
        let told = drop_b(version).told(None, None);
        assert_eq!(
            lines(&told),
            ["DROP 5, OID 16393 and 3 more at 1010"],
            "{version}, without names"
        );
    }
}

#[test]
fn a_table_that_was_made_anew_in_the_same_transaction_was_dropped_all_the_same() {
    for version in VERSIONS {
        let told = story(version)
            .lock(&B)
            .class(3, 1, 4)
            .lock(&[16_472])
            .create(16_472, "r")
            .lock(&[16_476])
            .create(16_476, "")
            .create(16_477, "p")
            .lock(&[16_477])
            .commit(&B, &B, &B);
        let told = told.told(Some(&names()), None);
        assert_eq!(
            lines(&told),
            ["DROP TABLE shop.public.b at 1010"],
            "{version}"
        );
    }
}

/// As PostgreSQL 14 and 17 write it.
fn vacuum_full(version: u16) -> Story {
    story(version)
        .lock(&[16_393, 16_425])
        .create(16_425, "p")
        .lock(&[16_428])
        .create(16_428, "")
        .create(16_429, "p")
        .lock(&[16_429, 16_396, 16_397, 16_398])
        .create(16_430, "p")
        .class(3, 9, 3)
        .commit(&B, &[16_425, 16_428, 16_429], &B)
}

#[test]
fn rewrites_take_nothing_away() {
    for version in VERSIONS {
        for names in [Some(&names()), None] {
            let told = vacuum_full(version).told(names, None);
            assert_eq!(lines(&told), [""; 0], "VACUUM FULL, {version}");
            let told = story(version)
                .lock(&[16_393, 16_455])
                .create(16_455, "r")
                .lock(&[16_458])
                .create(16_458, "")
                .create(16_459, "p")
                .lock(&[16_459, 16_398])
                .create(16_460, "p")
                .lock(&[16_396, 16_397])
                .class(3, 10, 3)
                .commit(&B, &[16_455, 16_396, 16_397], &B);
            let told = told.told(names, None);
            assert_eq!(lines(&told), [""; 0], "ALTER TABLE, {version}");
            let told = story(version)
                .lock(&[16_397])
                .create(16_432, "p")
                .lock(&[16_398])
                .create(16_433, "p")
                .class(0, 2, 0)
                .commit(&[16_397, 16_398], &[], &B);
            assert_eq!(
                lines(&told.told(names, None)),
                [""; 0],
                "REINDEX, {version}"
            );
            let told = story(version).lock(&[16_398]).class(0, 0, 1);
            let told = told.commit(&[16_398], &[16_398], &[16_398, 16_393]);
            let told = told.told(names, None);
            assert_eq!(lines(&told), [""; 0], "REINDEX CONCURRENTLY, {version}");
        }
    }
}

#[test]
fn without_its_indexes_a_rewrite_in_14_is_called_ambiguous_until_a_later_backup_knows_the_table() {
    let rewrite = |version| {
        story(version)
            .lock(&[16_422, 16_502])
            .create(16_502, "p")
            .class(1, 3, 1)
            .commit(&[16_422], &[16_502], &[16_422, 16_502])
    };
    let names = names();
    assert_eq!(lines(&rewrite(17).told(Some(&names), None)), [""; 0]);
    assert_eq!(
        lines(&rewrite(14).told(Some(&names), None)),
        ["DROP TABLE shop.public.bare at 1010 ? Rewritten"]
    );
    assert_eq!(
        lines(&rewrite(14).told(Some(&names), Some(&names))),
        [""; 0]
    );
}

#[test]
fn what_is_created_and_dropped_in_one_transaction_or_temporary_is_no_loss() {
    for version in VERSIONS {
        let own = story(version)
            .lock(&[16_480])
            .create(16_480, "r")
            .class(1, 0, 1)
            .commit(&[16_480], &[16_480], &[16_480]);
        assert_eq!(
            lines(&own.told(Some(&names()), None)),
            [""; 0],
            "CREATE and DROP, {version}"
        );
        let temporary = story(version).lock(&[16_503, 16_506]).class(0, 0, 2);
        let temporary = temporary.commit(&[], &[16_503, 16_506], &[16_503, 16_506]);
        assert_eq!(
            lines(&temporary.told(None, None)),
            [""; 0],
            "temporary, {version}"
        );
        let view = story(version).lock(&[16_450]).class(0, 0, 1);
        let view = view.commit(&[], &[16_450], &[16_450]);
        assert_eq!(
            lines(&view.told(Some(&names()), None)),
            [""; 0],
            "a view, {version}"
        );
    }
}

#[test]
fn an_index_that_was_created_before_its_transaction_had_an_id_is_its_own() {
    let mut nobodys = facts(0);
    nobodys.created.push(CreatedFile {
        file: file(16_500),
        lsn: Lsn(980),
        rows: false,
        pages: false,
    });
    let own = story(17).lock(&[16_500]).class(1, 0, 1);
    let own = own.commit(&[16_500], &[16_500], &[16_500]).done();
    let told = judge(gathered(17, vec![vec![nobodys, own]]), None, None);
    assert_eq!(lines(&told), [""; 0]);
}

fn truncate_b(version: u16, content: &str) -> Story {
    story(version)
        .lock(&[16_393])
        .create(16_483, content)
        .lock(&[16_396])
        .create(16_484, "")
        .lock(&[16_397])
        .create(16_485, "p")
        .lock(&[16_398])
        .create(16_486, "p")
        .class(0, 4, 0)
        .commit(&B, &[], &B)
}

#[test]
fn a_truncated_table_is_told_be_it_filled_again_or_not() {
    for version in VERSIONS {
        for content in ["", "r"] {
            let told = truncate_b(version, content).told(Some(&names()), None);
            assert_eq!(
                lines(&told),
                ["TRUNCATE shop.public.b at 1010"],
                "{version} {content:?}"
            );
            let told = truncate_b(version, content).told(None, None);
            assert_eq!(
                lines(&told),
                ["TRUNCATE 5, OID 16393 and 3 more at 1010"],
                "{version} {content:?}, without names"
            );
        }
    }
}

#[test]
fn a_table_that_got_another_file_since_the_backup_is_told_by_its_name() {
    for version in VERSIONS {
        let files = [16_483, 16_484, 16_485, 16_486];
        let mut again = truncate_b(version, "");
        for (created, number) in again.facts.created.iter_mut().zip(16_583..) {
            created.file = file(number);
        }
        let again = again.commit(&files, &[], &B).told(Some(&names()), None);
        assert_eq!(
            lines(&again),
            ["TRUNCATE shop.public.b at 1010"],
            "{version}"
        );
        let dropped = drop_b(version)
            .commit(&files, &B, &B)
            .told(Some(&names()), None);
        let first = lines(&dropped);
        assert_eq!(first.len(), 1, "{version}: {first:?}");
        assert!(
            first[0].starts_with("DROP TABLE shop.public.b at 1010"),
            "{version}: {first:?}"
        );
    }
}

#[test]
fn a_move_to_another_tablespace_truncates_nothing() {
    for version in VERSIONS {
        let mut moved = truncate_b(version, "p");
        for created in &mut moved.facts.created {
            created.file.tablespace = 16_999;
        }
        assert_eq!(
            lines(&moved.told(Some(&names()), None)),
            [""; 0],
            "{version}"
        );
    }
}

#[test]
fn logical_decodings_record_of_a_truncation_is_certain() {
    let mut told = vacuum_full(17);
    let lsn = told.lsn();
    told.facts.truncated.push(At {
        what: oid(16_393),
        lsn,
    });
    let told = told.told(Some(&names()), None);
    assert_eq!(lines(&told), ["TRUNCATE shop.public.b at 1010"]);

    let mut own = story(17).lock(&[16_480]).create(16_480, "r");
    let lsn = own.lsn();
    own.facts.truncated.push(At {
        what: oid(16_480),
        lsn,
    });
    let told = own.told(Some(&names()), None);
    assert_eq!(lines(&told), [""; 0], "a table of the transaction's own");
}

#[test]
fn rows_are_counted_by_whole_tables_and_only_above_the_limit() {
    let told = story(17)
        .delete(16_393, 1001)
        .delete(16_396, 5000)
        .delete(16_422, 1000);
    let told = told.told(Some(&names()), None);
    assert_eq!(lines(&told), ["DELETE shop.public.b 1001 rows at 1010"]);
    let told = story(17).delete(16_441, 600).delete(16_442, 600);
    let told = told.told(Some(&names()), None);
    assert_eq!(lines(&told), ["DELETE shop.public.parts 1200 rows at 1010"]);
    let told = story(17).delete(20_000, 1200).told(None, None);
    assert_eq!(lines(&told), ["DELETE 5, file 20000 1200 rows at 1010"]);
}

#[test]
fn what_was_rolled_back_or_has_not_ended_is_no_loss() {
    let names = names();
    let mut aborted = drop_b(17);
    aborted.outcome.end.kind = Outcome::Abort;
    assert_eq!(
        lines(&aborted.told(Some(&names), None)),
        [""; 0],
        "rolled back"
    );
    let mut open = drop_b(17);
    open.outcome.dropped_files.clear();
    let open = gathered(
        17,
        vec![vec![TransactionFacts {
            end: None,
            ..open.facts
        }]],
    );
    assert_eq!(open, [], "not ended");
    // A savepoint that was rolled back, and one that was not.
    for (kind, lines_expected) in [
        (Outcome::Abort, vec![]),
        (
            Outcome::Commit,
            vec!["DELETE shop.public.b 2000 rows at 1010".to_owned()],
        ),
    ] {
        let mut sub = story(17).delete(16_393, 2000).facts;
        sub.xid = XID + 1;
        sub.top = Some(XID);
        let mut top = story(17);
        if kind == Outcome::Abort {
            sub.end = Some(outcome(end(XID + 1, 8_000, Outcome::Abort)));
        } else {
            top.outcome.subxids = vec![XidRange::of(XID + 1)];
        }
        let told = judge(
            gathered(17, vec![vec![top.done(), sub]]),
            Some(&names),
            None,
        );
        assert_eq!(lines(&told), lines_expected, "{kind:?}");
    }
}
