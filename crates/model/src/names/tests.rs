use proptest::prelude::*;

use super::*;

fn shown(name: &str) -> String {
    Name::from(name).to_string()
}

fn orders() -> NamedRelation {
    NamedRelation {
        oid: (5, 16390).into(),
        schema: "public".into(),
        name: "orders".into(),
        kind: RelationKind::Table,
        persistence: Persistence::Permanent,
        file: Some((1663, 5, 24576).into()),
        belongs_to: None,
        partition_of: None,
    }
}

fn part(oid: u32, of: u32, kind: RelationKind) -> NameEntry {
    NameEntry::Relation(NamedRelation {
        oid: (5, oid).into(),
        kind,
        file: None,
        belongs_to: Some(of),
        ..orders()
    })
}

#[test]
fn a_name_is_shown_as_sql_would_take_it() {
    for (name, expected) in [
        ("orders", "orders"),
        ("_x1", "_x1"),
        ("1x", "\"1x\""),
        ("", "\"\""),
        ("Orders", "\"Orders\""),
        ("a.b", "\"a.b\""),
        ("a\"b", "\"a\"\"b\""),
        ("it's", "\"it's\""),
        ("back\\slash", "\"back\\slash\""),
        ("größe", "\"größe\""),
        ("select", "\"select\""),
        ("xmltable", "\"xmltable\""),
        ("abort", "abort"),
    ] {
        assert_eq!(shown(name), expected, "as quote_ident({name:?})");
    }
}

#[test]
fn no_name_can_tamper_with_what_is_shown_around_it() {
    for (name, expected) in [
        ("a\nb", "U&\"a\\000Ab\""),
        ("a\u{1b}[2J\"\\", "U&\"a\\001B[2J\"\"\\\\\""),
        ("\u{202e}txet", "U&\"\\202Etxet\""),
        ("\u{e0001}", "U&\"\\+0E0001\""),
    ] {
        assert_eq!(shown(name), expected);
    }
}

#[test]
fn lines_are_spelled_as_the_format_says() {
    let database = NameEntry::Database(NamedDatabase {
        oid: 5,
        name: "Shop".into(),
        tablespace: 1663,
    });
    let toast = NameEntry::Relation(NamedRelation {
        kind: RelationKind::Toast,
        persistence: Persistence::Unlogged,
        belongs_to: Some(16390),
        ..orders()
    });
    let strange = NameEntry::Database(NamedDatabase {
        oid: 6,
        name: vec![b'a', 0xFF].into(),
        tablespace: 1663,
    });
    for (entry, expected) in [
        (
            database,
            r#"{"database":5,"name":"Shop","tablespace":1663}"#,
        ),
        (
            NameEntry::Relation(orders()),
            r#"{"relation":[5,16390],"schema":"public","name":"orders","kind":"r","file":[1663,5,24576]}"#,
        ),
        (
            toast,
            r#"{"relation":[5,16390],"schema":"public","name":"orders","kind":"t","persistence":"u","file":[1663,5,24576],"belongs_to":16390}"#,
        ),
        (
            strange,
            r#"{"database":6,"name":{"hex":"61ff"},"tablespace":1663}"#,
        ),
    ] {
        let line = entry.encode_line().unwrap();
        assert_eq!(String::from_utf8_lossy(&line), format!("{expected}\n"));
        assert_eq!(
            NameEntry::decode_line(&line).unwrap(),
            Some(entry),
            "what was written is read back"
        );
    }
}

#[test]
fn what_is_not_known_is_passed_over_and_what_is_malformed_is_refused() {
    assert_eq!(
        NameEntry::decode_line(br#"{"role":10,"name":"x"}"#).unwrap(),
        None,
        "an entry of a later version"
    );
    let later =
        br#"{"relation":[5,16390],"schema":"public","name":"orders","kind":"g","file":[1663,5,24576],"colour":"red"}"#;
    assert_eq!(
        NameEntry::decode_line(later).unwrap(),
        Some(NameEntry::Relation(NamedRelation {
            kind: RelationKind::Other('g'),
            ..orders()
        })),
        "a later version's keys and kinds"
    );
    let long = format!(
        r#"{{"database":5,"name":"{}","tablespace":1663}}"#,
        "x".repeat(64 * 1024)
    );
    for bad in [
        "",
        "[]",
        r#"{"database":5}"#,
        r#"{"database":-1,"name":"x","tablespace":1663}"#,
        r#"{"database":5,"name":{"hex":"6"},"tablespace":1663}"#,
        r#"{"relation":5,"schema":"public","name":"orders","kind":"r"}"#,
        &long,
    ] {
        assert!(
            NameEntry::decode_line(bad.as_bytes()).is_err(),
            "{bad:?} must be refused"
        );
    }
}

#[test]
fn a_relation_is_found_by_its_oid_and_by_its_file() {
    let mut names = Names::default();
    names.insert(NameEntry::Relation(orders()));
    let by_oid = names.relation((5, 16390).into());
    let by_file = names.by_file((1663, 5, 24576).into());
    assert_eq!(by_oid, Some(&orders()));
    assert_eq!(by_file, Some(&orders()));
    assert_eq!(
        names.by_file((1663, 5, 16390).into()),
        None,
        "an OID is no file's number"
    );
    assert_eq!(
        names.relation((6, 16390).into()),
        None,
        "another database has OIDs of its own"
    );
}

#[test]
fn parts_lead_to_the_table_that_they_go_along_with() {
    let mut names = Names::default();
    names.insert(part(16395, 16393, RelationKind::Index));
    assert_eq!(
        names.missing_owners(),
        HashSet::from([(5, 16393).into()]),
        "the owner is not there yet"
    );
    names.insert(part(16393, 16390, RelationKind::Toast));
    names.insert(NameEntry::Relation(orders()));
    assert_eq!(names.missing_owners(), HashSet::new());
    let index = names.relation((5, 16395).into()).unwrap();
    assert_eq!(
        names.root(index).oid.relation,
        16390,
        "the TOAST index belongs to the table"
    );
    names.insert(part(16390, 16395, RelationKind::Table));
    let index = names.relation((5, 16395).into()).unwrap();
    assert_eq!(
        names.root(index).oid.database,
        5,
        "a circle of owners, which only damage can make, ends somewhere"
    );
}

#[test]
fn only_what_is_asked_for_is_wanted() {
    let mut wanted = Wanted::default();
    let entry = NameEntry::Relation(orders());
    assert!(!wanted.wants(&entry), "nothing was asked for");
    wanted.file((1663, 5, 24576).into());
    assert!(wanted.wants(&entry), "its file was asked for");
    let mut wanted = Wanted::default();
    wanted.relation((5, 16390).into());
    assert!(wanted.wants(&entry), "its OID was asked for");
    let database = NameEntry::Database(NamedDatabase {
        oid: 5,
        name: "shop".into(),
        tablespace: 1663,
    });
    assert!(
        wanted.wants(&database),
        "a relation's database goes with it"
    );
}

proptest! {
    #[test]
    fn every_name_is_read_back_and_shown_on_one_line(bytes in prop::collection::vec(any::<u8>(), 0..64)) {
        let name = Name::from(bytes);
        let json = serde_json::to_vec(&name).unwrap();
        prop_assert_eq!(&serde_json::from_slice::<Name>(&json).unwrap(), &name);
        prop_assert!(!name.to_string().chars().any(char::is_control), "{}", name);
    }

    #[test]
    fn no_line_panics(line: Vec<u8>, text in "\\{\"(relation|database)\":\\PC*\\}") {
        let _ = NameEntry::decode_line(&line);
        let _ = NameEntry::decode_line(text.as_bytes());
    }
}
