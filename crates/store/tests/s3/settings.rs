//! What the settings make of requests, and what they refuse.

use std::time::Duration;

use bytes::Bytes;
use futures::TryStreamExt;
use walden_store::{
    Checksums, Key, ObjectLock, ObjectLockMode, ObjectStore, PutMode, S3Settings, S3Store,
    ServerEncryption, StoreErrorKind, list_all,
};
use walden_testkit::{FaultProxy, S3Server};

/// The header lines of the put that these settings make.
async fn headers_of_a_put(change: impl FnOnce(&mut S3Settings)) -> Vec<String> {
    let server = S3Server::s3s_fs().unwrap();
    let proxy = FaultProxy::before(server.address()).unwrap();
    let mut settings = crate::settings(&server, proxy.endpoint());
    change(&mut settings);
    let store = S3Store::open(settings).await.unwrap();
    let key = Key::parse("key").unwrap();
    store
        .put(&key, Bytes::from_static(b"x"), PutMode::Create)
        .await
        .unwrap();
    proxy.last_headers()
}

#[tokio::test(flavor = "multi_thread")]
async fn each_object_gets_what_is_set() {
    let headers = headers_of_a_put(|settings| {
        settings.storage_class = Some("REDUCED_REDUNDANCY".to_owned());
        settings.encryption = Some(ServerEncryption::Kms {
            key: Some("some-key".to_owned()),
        });
        settings.tags = [("for", "a&b"), ("of", "me")]
            .map(|(name, value)| (name.to_owned(), value.to_owned()))
            .into();
        settings.object_lock = Some(ObjectLock {
            mode: ObjectLockMode::Governance,
            days: 3,
        });
        settings.checksums = Checksums::WhenRequired;
    })
    .await;
    for expected in [
        "x-amz-storage-class: REDUCED_REDUNDANCY",
        "x-amz-server-side-encryption: aws:kms",
        "x-amz-server-side-encryption-aws-kms-key-id: some-key",
        "x-amz-tagging: for=a%26b&of=me",
        "x-amz-object-lock-mode: GOVERNANCE",
        "if-none-match: *",
    ] {
        assert!(
            headers.iter().any(|line| line == expected),
            "'{expected}' should be in: {headers:#?}"
        );
    }
    for expected in [
        "x-amz-object-lock-retain-until-date: ",
        "x-amz-checksum-crc32: ",
    ] {
        assert!(
            headers.iter().any(|line| line.starts_with(expected)),
            "'{expected}' should begin one of: {headers:#?}"
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_store_that_refuses_checksums_gets_none() {
    let checksum = |line: &String| line.contains("checksum") || line.contains("trailer");
    let headers = headers_of_a_put(|settings| settings.checksums = Checksums::WhenRequired).await;
    assert!(!headers.iter().any(checksum), "{headers:#?}");
    let headers = headers_of_a_put(|_| ()).await;
    assert!(
        headers.iter().any(checksum),
        "without the setting there is one: {headers:#?}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_prefix_keeps_repositories_apart() {
    let server = S3Server::s3s_fs().unwrap();
    let mut settings = crate::settings(&server, server.endpoint());
    let key = Key::parse("same/key").unwrap();
    let mut stores = Vec::new();
    for prefix in ["", "a", "a/b", "ab"] {
        settings.prefix = prefix.to_owned();
        let store = S3Store::open(settings.clone()).await.unwrap();
        store
            .put(&key, Bytes::from(prefix.to_owned()), PutMode::Create)
            .await
            .unwrap();
        stores.push((prefix, store));
    }
    for (prefix, store) in &stores {
        let end = store.get_suffix(&key, 100).await.unwrap().1;
        assert!(end == prefix.as_bytes(), "{prefix} has its own object");
    }
    let (_, ab) = stores.last().unwrap();
    let found: Vec<_> = list_all(ab, "").try_collect().await.unwrap();
    assert_eq!(found.len(), 1, "{found:?}");
}

#[tokio::test]
async fn settings_that_can_not_work_are_refused_with_a_reason() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("ca.pem");
    let broken = "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n";
    let mut base = S3Settings::new("bucket");
    base.region = Some("eu-west-1".to_owned());
    base.request_deadline = Duration::from_secs(1);
    let refused = async |settings: S3Settings, word: &str| {
        let error = S3Store::open(settings).await.unwrap_err();
        assert_eq!(error.kind(), StoreErrorKind::Invalid, "{error:?}");
        assert!(error.to_string().contains(word), "{error}");
    };
    for content in ["", "no PEM", broken] {
        std::fs::write(&file, content).unwrap();
        let mut settings = base.clone();
        settings.ca_file = Some(file.clone());
        refused(settings, "ca.pem").await;
    }
    let mut settings = base.clone();
    settings.ca_file = Some(folder.path().join("absent.pem"));
    refused(settings, "absent.pem").await;
    for prefix in ["/a", "a/", "a//b", ".a", "ä", &"a".repeat(81)] {
        let mut settings = base.clone();
        settings.prefix = prefix.to_owned();
        refused(settings, "prefix").await;
    }
    for endpoint in ["store.example.net", "ftp://store.example.net"] {
        let mut settings = base.clone();
        settings.endpoint = Some(endpoint.to_owned());
        refused(settings, "https://").await;
    }
    let mut settings = base.clone();
    settings.endpoint = Some("https://me:canary@store.example.net".to_owned());
    let error = S3Store::open(settings).await.unwrap_err();
    assert!(
        !format!("{error} {error:?}").contains("canary"),
        "{error:?}"
    );
}
