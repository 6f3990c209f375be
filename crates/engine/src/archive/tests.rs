use std::fs;
use std::path::Path;
use std::sync::{Arc, Mutex};

use futures::TryStreamExt;
use walden_model::{HeadKind, RandomId};
use walden_store::LocalStore;

use super::*;
use crate::repository::Place;

/// Three frames.
const CONTENT: usize = 5 << 19;

fn settings(folder: &Path, name: &str) -> RepositorySettings {
    RepositorySettings {
        name: name.to_owned(),
        place: Place::Folder(folder.join(name)),
        id: None,
        required: true,
        keys: Default::default(),
    }
}

fn expected(key: &str) -> Expected {
    Expected {
        kind: HeadKind::Names,
        archive_id: RandomId([3; 16]),
        key: key.to_owned(),
    }
}

fn content() -> Vec<u8> {
    (0..CONTENT)
        .map(|at| (at % 251) as u8 ^ (at >> 9) as u8)
        .collect()
}

/// Repositories a, b and c; each of these objects in each of these.
async fn archive(folder: &Path, objects: &[(&str, &str)]) -> Archive {
    let all = ["a", "b", "c"].map(|name| settings(folder, name));
    for name in ["a", "b", "c"] {
        LocalStore::create_root(&folder.join(name)).unwrap();
    }
    let archive = Archive::open(&all).await.unwrap();
    for (key, names) in objects {
        for repository in archive
            .repositories()
            .filter(|one| names.contains(one.name()))
        {
            let put = repository.put_small(key, expected(key), content(), 1);
            put.await.unwrap();
        }
    }
    archive
}

fn change(path: &Path, change: impl FnOnce(&mut Vec<u8>)) {
    let mut bytes = fs::read(path).unwrap();
    change(&mut bytes);
    fs::remove_file(path).unwrap();
    fs::write(path, bytes).unwrap();
}

async fn read(archive: &Archive, key: &str) -> Result<(Vec<u8>, String), RepositoryError> {
    let got = Arc::new(Mutex::new(Vec::new()));
    let sink = || {
        let mine = got.clone();
        mine.lock().unwrap().clear();
        move |content: Vec<u8>| {
            mine.lock().unwrap().extend(content);
            Ok(())
        }
    };
    let served = archive.read_object(key, &expected(key), None, sink).await?;
    let got = got.lock().unwrap().clone();
    Ok((got, served.repository))
}

#[tokio::test]
async fn the_next_repository_gives_all_of_what_the_one_before_gave_in_part() {
    let dir = tempfile::tempdir().unwrap();
    let archive = archive(
        dir.path(),
        &[("x/first", "bc"), ("x/cut", "abc"), ("x/flipped", "ab")],
    )
    .await;
    change(&dir.path().join("a/x/cut"), |bytes| {
        bytes.truncate(bytes.len() * 2 / 3)
    });
    change(&dir.path().join("a/x/flipped"), |bytes| {
        let at = bytes.len() * 2 / 3;
        bytes[at] ^= 1;
    });
    for key in ["x/first", "x/cut", "x/flipped"] {
        let (got, from) = read(&archive, key).await.unwrap();
        assert!(
            got == content(),
            "{key}: {} bytes, not the content",
            got.len()
        );
        assert_eq!(from, "b", "{key} is whole in b, and a comes before it");
    }
    let small = archive
        .read_small("x/cut", &expected("x/cut"), CONTENT)
        .await;
    assert!(small.unwrap() == content(), "read_small goes on as well");
    let (stored, _) = archive.read_tail("x/cut").await.unwrap();
    let whole = fs::metadata(dir.path().join("b/x/cut")).unwrap().len();
    assert_eq!(stored, whole, "and so does read_tail");
}

#[tokio::test]
async fn an_absence_counts_only_where_nothing_else_was_met() {
    let dir = tempfile::tempdir().unwrap();
    let archive = archive(dir.path(), &[("x/damaged", "b")]).await;
    change(&dir.path().join("b/x/damaged"), |bytes| bytes.truncate(100));
    let trouble = async |key| read(&archive, key).await.unwrap_err().trouble();
    assert_eq!(
        trouble("x/none").await,
        Trouble::Absent,
        "in none of the three"
    );
    assert_eq!(
        trouble("x/damaged").await,
        Trouble::Damage,
        "damaged in b, absent elsewhere"
    );
    fs::remove_dir_all(dir.path().join("c")).unwrap();
    fs::write(dir.path().join("c"), "no folder").unwrap();
    assert_eq!(
        trouble("x/damaged").await,
        Trouble::Outage,
        "c may have it whole"
    );
}

#[tokio::test]
async fn what_cannot_be_opened_is_out_and_does_not_prevent_the_rest() {
    let dir = tempfile::tempdir().unwrap();
    LocalStore::create_root(&dir.path().join("b")).unwrap();
    let all = ["a", "b"].map(|name| settings(dir.path(), name));
    let archive = Archive::open(&all).await.unwrap();
    assert_eq!(archive.first().name(), "b");
    assert_eq!(archive.out().len(), 1, "a is out");
    assert!(archive.is_one_of_several() && !archive.has_several());
    let error = Archive::open(&all[..1]).await.unwrap_err();
    assert!(
        error.to_string().contains("\"a\""),
        "alone it is the error: {error}"
    );
}

#[tokio::test]
async fn a_listing_is_the_union_in_order_and_names_nothing_twice() {
    let dir = tempfile::tempdir().unwrap();
    let objects = [
        ("x/1", "c"),
        ("x/2", "ab"),
        ("x/3/1", "abc"),
        ("x/4", "a"),
        ("y", "b"),
    ];
    let archive = archive(dir.path(), &objects).await;
    let listed: Vec<_> = archive.list_all("x/").try_collect().await.unwrap();
    let keys: Vec<_> = listed.iter().map(|object| object.key.as_str()).collect();
    assert_eq!(keys, ["x/1", "x/2", "x/3/1", "x/4"]);
}
