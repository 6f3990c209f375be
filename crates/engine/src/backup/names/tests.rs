use std::error::Error;
use std::fs;
use std::sync::Arc;

use walden_model::BackupRecord;
use walden_model::names::{Names, RelationKind, Wanted};

use super::*;
use crate::backup::targets::Targets;
use crate::names::read;
use crate::repository::Trouble;
use crate::restore::tests::bed::{Bed, cluster};

fn table(number: u32) -> NamedRelation {
    NamedRelation {
        oid: (5, number).into(),
        schema: "a schema with a long name".into(),
        name: format!("a table with an even longer name, number {number}")
            .as_str()
            .into(),
        kind: RelationKind::Table,
        persistence: Persistence::Permanent,
        file: Some((1663, 5, number + 1_000_000).into()),
        belongs_to: None,
        partition_of: None,
    }
}

fn toast(number: u32, of: u32) -> NamedRelation {
    NamedRelation {
        kind: RelationKind::Toast,
        belongs_to: Some(of),
        ..table(number)
    }
}

/// A backup that has recorded these.
async fn recorded(bed: &Bed, relations: impl Iterator<Item = NamedRelation>) -> BackupRecord {
    let mut record = bed.backup(1, &cluster(), Vec::new()).await;
    let writer = ObjectWriter {
        targets: Arc::new(Targets::over(bed.repository.clone())),
        keys: bed.keys.clone(),
        backup: record.backup_id.clone(),
        archive_id: bed.archive_id,
    };
    let mut shards = Shards {
        writer: &writer,
        compressor: FrameCompressor::new(1).unwrap(),
        open: None,
        done: Vec::new(),
    };
    for relation in relations {
        shards.add(&NameEntry::Relation(relation)).await.unwrap();
    }
    record.names = Some(NamesRef {
        shards: shards.finish().await.unwrap(),
        ..NamesRef::default()
    });
    record
}

async fn ask(bed: &Bed, record: &BackupRecord, numbers: &[u32]) -> Names {
    let mut wanted = Wanted::default();
    for number in numbers {
        wanted.relation((5, *number).into());
    }
    let names = read(&bed.repository, &bed.keys, record, wanted).await;
    names.unwrap().unwrap()
}

#[tokio::test]
async fn names_in_many_shards_are_found_and_no_others_are_kept() {
    const COUNT: u32 = 120_000;
    let bed = Bed::new().await;
    let record = recorded(&bed, (0..COUNT).map(table)).await;
    let shards = &record.names.as_ref().unwrap().shards;
    assert!(shards.len() > 1, "more than one shard is what is tested");
    let entries: u64 = shards.iter().map(|shard| shard.entries).sum();
    assert_eq!(entries, u64::from(COUNT));
    let names = ask(&bed, &record, &[0, 60_000, COUNT - 1, COUNT]).await;
    for number in [0, 60_000, COUNT - 1] {
        assert_eq!(names.relation((5, number).into()), Some(&table(number)));
    }
    assert_eq!(names.relation((5, COUNT).into()), None, "never recorded");
    assert_eq!(names.relation((5, 1).into()), None, "not asked for");
}

#[tokio::test]
async fn an_owner_that_was_not_asked_for_comes_along_wherever_it_stands() {
    let bed = Bed::new().await;
    // The owner's owner stands first, and one owner is nowhere.
    let relations = [table(1), toast(2, 1), toast(3, 2), toast(4, 9)];
    let record = recorded(&bed, relations.into_iter()).await;
    let names = ask(&bed, &record, &[3, 4]).await;
    let part = names.relation((5, 3).into()).unwrap();
    assert_eq!(names.root(part), &table(1));
    let orphan = names.relation((5, 4).into()).unwrap();
    assert_eq!(names.root(orphan), orphan, "it ends where nothing is known");
}

#[tokio::test]
async fn names_that_cannot_be_believed_are_damage() {
    let bed = Bed::new().await;
    let record = recorded(&bed, [table(1)].into_iter()).await;
    let mut wanted = Wanted::default();
    wanted.relation((5, 1).into());
    let fails = async |record: &BackupRecord| {
        let names = read(&bed.repository, &bed.keys, record, wanted.clone()).await;
        names.unwrap_err()
    };
    let mut other = record.clone();
    for shard in other.names.iter_mut().flat_map(|names| &mut names.shards) {
        shard.table.0[0] ^= 1;
    }
    assert_eq!(
        fails(&other).await.trouble(),
        Trouble::Damage,
        "another shard than the one that the commit document names"
    );
    let key = bed.keys.names(&record.backup_id, 0);
    let path = bed.dir.path().join("repository").join(key);
    fs::remove_file(&path).unwrap();
    assert_eq!(fails(&record).await.trouble(), Trouble::Absent, "no shard");
    let (_, table) = bed
        .framed(
            HeadKind::Names,
            &bed.keys.names(&record.backup_id, 0),
            &[b"{\"relation\":5}\n".to_vec()],
        )
        .await;
    let mut strange = record.clone();
    for shard in strange.names.iter_mut().flat_map(|names| &mut names.shards) {
        shard.table = table;
    }
    let error = fails(&strange).await;
    assert_eq!(error.trouble(), Trouble::Damage, "a line that is no entry");
    let cause = error.source().unwrap().to_string();
    assert!(
        cause.contains("not a well-formed entry"),
        "the cause should be told, found {cause}"
    );
}

#[test]
fn a_warning_names_a_few_and_counts_the_rest() {
    assert_eq!(warning(&[]), None, "nothing to warn of");
    let told: Vec<String> = (0..7).map(|n| format!("db{n}: closed")).collect();
    let text = warning(&told).unwrap();
    assert!(
        text.contains("db0: closed; db1") && text.ends_with("db4: closed; and 2 more"),
        "{text}"
    );
}
