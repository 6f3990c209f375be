//! What goes wrong on the way to a bucket: nothing is lost, nothing half-written, and each call ends within its deadline.

use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures::TryStreamExt;
use rand::RngExt;
use walden_store::{
    CreateOnly, Key, ListOptions, ObjectStore, PutMode, S3Store, StoreError, StoreErrorKind,
};
use walden_testkit::{Fault, FaultProxy, S3Server};

/// A bucket behind a proxy, and the same bucket without.
struct Way {
    server: S3Server,
    proxy: FaultProxy,
    store: S3Store,
    beside: S3Store,
}

const REQUEST: Duration = Duration::from_secs(1);
const OPERATION: Duration = Duration::from_secs(4);

/// Beyond the deadline of an operation: the time for its bytes, and what a busy machine adds.
const SLACK: Duration = Duration::from_secs(10);

impl Way {
    async fn new(create_only: CreateOnly) -> Self {
        let server = S3Server::s3s_fs().unwrap();
        let proxy = FaultProxy::before(server.address()).unwrap();
        let mut settings = crate::settings(&server, server.endpoint());
        settings.create_only = create_only;
        let beside = S3Store::open(settings.clone()).await.unwrap();
        settings.endpoint = Some(proxy.endpoint());
        settings.request_deadline = REQUEST;
        settings.operation_deadline = OPERATION;
        Self {
            store: S3Store::open(settings).await.unwrap(),
            server,
            proxy,
            beside,
        }
    }

    async fn put(&self, key: &Key, body: &Bytes) -> Result<(), StoreError> {
        in_time(self.store.put(key, body.clone(), PutMode::Create)).await
    }

    /// What stands there, as it is seen without a fault.
    async fn truth(&self, key: &Key) -> Option<Bytes> {
        match self.beside.get(key).await {
            Ok((_, chunks)) => {
                let chunks: Vec<Bytes> = chunks.try_collect().await.unwrap();
                Some(chunks.concat().into())
            }
            Err(error) if error.kind() == StoreErrorKind::NotFound => None,
            Err(error) => panic!("the store itself fails: {error:?}"),
        }
    }

    async fn read(&self, key: &Key) -> Result<Bytes, StoreError> {
        in_time(async {
            let (_, chunks) = self.store.get(key).await?;
            let chunks: Vec<Bytes> = chunks.try_collect().await?;
            Ok(chunks.concat().into())
        })
        .await
    }
}

async fn in_time<T>(work: impl Future<Output = T>) -> T {
    let started = Instant::now();
    let done = work.await;
    let took = started.elapsed();
    assert!(
        took < OPERATION + SLACK,
        "an operation ends by its deadline, this one took {took:?}"
    );
    done
}

fn key(name: &str) -> Key {
    Key::parse(name).unwrap()
}

fn body(length: usize) -> Bytes {
    let mut bytes = vec![0; length];
    rand::rng().fill(&mut bytes[..]);
    bytes.into()
}

/// All that a person is shown: the error and its causes.
fn told(error: &StoreError) -> String {
    let mut text = error.to_string();
    let mut cause = std::error::Error::source(error);
    while let Some(error) = cause {
        text = format!("{text}: {error}");
        cause = error.source();
    }
    text
}

fn refused<T>(result: Result<T, StoreError>, kind: StoreErrorKind, words: &[&str]) {
    let Err(error) = result else {
        panic!("{kind:?} is expected, and it succeeded");
    };
    assert_eq!(error.kind(), kind, "{error:?}");
    let told = told(&error);
    for word in words {
        assert!(told.contains(word), "'{word}' should be in: {told}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_storm_of_refusals_is_outlived() {
    let way = Way::new(CreateOnly::Conditional).await;
    let (name, bytes) = (key("storm"), body(100_000));
    let faults = [
        Fault::error(503, "SlowDown"),
        Fault::error(500, "InternalError"),
        Fault::error(409, "ConditionalRequestConflict"),
    ];
    for fault in &faults {
        way.proxy.fault("PUT", "storm", 0, 1, fault.clone());
    }
    way.put(&name, &bytes).await.unwrap();
    for fault in &faults {
        way.proxy.fault("GET", "storm", 0, 1, fault.clone());
    }
    assert!(way.read(&name).await.unwrap() == bytes);
    way.proxy.fault("HEAD", "storm", 0, 2, faults[0].clone());
    assert_eq!(way.store.head(&name).await.unwrap().size, 100_000);
    way.proxy.fault("DELETE", "storm", 0, 2, faults[0].clone());
    way.store.delete(&name).await.unwrap();
    assert_eq!(way.truth(&name).await, None);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_storm_without_end_is_an_outage() {
    let way = Way::new(CreateOnly::Conditional).await;
    let name = key("storm");
    let storm = Fault::error(503, "SlowDown");
    way.proxy.fault("PUT", "storm", 0, 1000, storm.clone());
    way.proxy.fault("GET", "", 0, 1000, storm);
    let words = ["storm", S3Server::BUCKET, "fewer requests", "SlowDown"];
    refused(
        way.put(&name, &body(10)).await,
        StoreErrorKind::Unavailable,
        &words,
    );
    refused(way.read(&name).await, StoreErrorKind::Unavailable, &words);
    assert_eq!(way.truth(&name).await, None);
    let requests = way.proxy.take_seen().len();
    assert!(
        requests <= 30,
        "a storm is not answered by another: {requests} requests"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn the_store_is_left_alone_for_as_long_as_it_asks() {
    let way = Way::new(CreateOnly::Conditional).await;
    let Fault::Answer(status, _, text) = Fault::error(503, "SlowDown") else {
        panic!("an error is an answer");
    };
    let later = Fault::Answer(status, "Retry-After: 2\r\n", text);
    way.proxy.fault("PUT", "later", 0, 1, later);
    let started = Instant::now();
    way.put(&key("later"), &body(10)).await.unwrap();
    let took = started.elapsed();
    assert!(
        took >= Duration::from_secs(2),
        "it came back after {took:?}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn an_upload_that_is_cut_is_sent_again_whole() {
    for create_only in [CreateOnly::Conditional, CreateOnly::Claims] {
        let way = Way::new(create_only).await;
        let (name, bytes) = (key("cut/upload"), body(300_000));
        way.proxy
            .fault("PUT", "/where/cut", 0, 3, Fault::CutUpload(100_000));
        way.put(&name, &bytes).await.unwrap();
        assert!(way.truth(&name).await.unwrap() == bytes, "{create_only:?}");
        // With no end to it there is nothing, rather than a part.
        let other = key("cut/other");
        way.proxy
            .fault("PUT", "/where/cut", 0, 1000, Fault::CutUpload(100_000));
        refused(
            way.put(&other, &bytes).await,
            StoreErrorKind::Unavailable,
            &["cut/other", S3Server::BUCKET],
        );
        assert_eq!(way.truth(&other).await, None, "{create_only:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lost_answer_to_ones_own_put_is_recognised() {
    for create_only in [CreateOnly::Conditional, CreateOnly::Claims] {
        let way = Way::new(create_only).await;
        let (name, bytes) = (key("own"), body(2_000_000));
        way.proxy
            .fault("PUT", "/where/own", 0, 1, Fault::LoseAnswer);
        way.put(&name, &bytes).await.unwrap();
        assert!(way.truth(&name).await.unwrap() == bytes, "{create_only:?}");
        // Another's object is not taken for one's own, with the answer lost or not.
        for lost in [0, 1] {
            way.proxy.mend();
            way.proxy
                .fault("PUT", "/where/own", 0, lost, Fault::LoseAnswer);
            for other in [body(2_000_000), body(1)] {
                refused(
                    way.put(&name, &other).await,
                    StoreErrorKind::AlreadyExists,
                    &["own", S3Server::BUCKET],
                );
            }
            assert!(way.truth(&name).await.unwrap() == bytes, "{create_only:?}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_claim_outlives_its_writer() {
    let way = Way::new(CreateOnly::Claims).await;
    let (again, other) = (key("again"), key("other"));
    let bytes = body(1000);
    for name in [&again, &other] {
        // The claim is made, and the object is not.
        let path = format!("/where/{name}");
        way.proxy
            .fault("PUT", &path, 0, 1, Fault::error(403, "AccessDenied"));
        refused(
            way.put(name, &bytes).await,
            StoreErrorKind::PermissionDenied,
            &[],
        );
    }
    way.put(&again, &bytes).await.unwrap();
    assert!(way.truth(&again).await.unwrap() == bytes);
    refused(
        way.put(&other, &body(1000)).await,
        StoreErrorKind::AlreadyExists,
        &["other", S3Server::BUCKET, "some/where/.claims/other/"],
    );
    assert_eq!(way.truth(&other).await, None);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_success_without_an_etag_is_looked_at() {
    let way = Way::new(CreateOnly::Conditional).await;
    let (name, bytes) = (key("said"), body(1000));
    let Fault::Answer(_, headers, text) = Fault::error(200, "InternalError") else {
        panic!("an error is an answer");
    };
    let error_under_200 = Fault::Answer(200, headers, text);
    way.proxy
        .fault("PUT", "said", 0, 2, error_under_200.clone());
    way.put(&name, &bytes).await.unwrap();
    assert!(
        way.truth(&name).await.unwrap() == bytes,
        "an error under the status 200 is no success"
    );
    // And in a list, where it is no list.
    way.proxy
        .fault("GET", "list-type", 0, 1000, error_under_200);
    let options = ListOptions {
        prefix: "",
        start_after: None,
        delimiter: false,
        limit: 10,
    };
    refused(
        in_time(way.store.list(options)).await,
        StoreErrorKind::Unavailable,
        &[S3Server::BUCKET],
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_download_that_is_cut_goes_on_where_it_was() {
    let way = Way::new(CreateOnly::Conditional).await;
    let (name, bytes) = (key("long"), body(1_000_000));
    way.put(&name, &bytes).await.unwrap();
    let _ = way.proxy.take_seen();
    way.proxy
        .fault("GET", "long", 0, 3, Fault::CutDownload(300_000));
    assert!(way.read(&name).await.unwrap() == bytes);
    let requests = way.proxy.take_seen().len();
    assert_eq!(requests, 4, "each request goes on where the last ended");
    // Cut again and again without a byte, it is an outage, never a short object.
    way.proxy
        .fault("GET", "long", 0, 1, Fault::CutDownload(200_000));
    way.proxy
        .fault("GET", "long", 0, 1000, Fault::CutDownload(0));
    refused(
        way.read(&name).await,
        StoreErrorKind::Unavailable,
        &["long", S3Server::BUCKET],
    );
    way.proxy.mend();
    way.proxy
        .fault("GET", "long", 0, 1, Fault::CutDownload(100));
    let range = way.store.get_range(&name, 1000..900_000).await.unwrap();
    assert!(range == bytes.slice(1000..900_000));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_connection_that_is_dead_hangs_nothing() {
    let way = Way::new(CreateOnly::Conditional).await;
    let (name, bytes) = (key("dead"), body(300_000));
    // Once: another connection does it.
    way.proxy.fault("PUT", "dead", 0, 1, Fault::Hang);
    way.put(&name, &bytes).await.unwrap();
    way.proxy.fault("GET", "dead", 0, 1, Fault::Hang);
    way.proxy
        .fault("GET", "dead", 0, 1, Fault::HangDownload(100_000));
    assert!(way.read(&name).await.unwrap() == bytes);
    // For ever.
    way.proxy.fault("PUT", "", 0, 1000, Fault::Hang);
    way.proxy.fault("GET", "", 0, 1000, Fault::Hang);
    way.proxy.fault("HEAD", "", 0, 1000, Fault::Hang);
    let words = ["dead", S3Server::BUCKET, "no answer within"];
    let kind = StoreErrorKind::Unavailable;
    let other = key("dead-too");
    let (put, read, head) = tokio::join!(
        way.put(&other, &bytes),
        way.read(&name),
        in_time(way.store.head(&name))
    );
    refused(put, kind, &words);
    refused(read, kind, &words);
    refused(head.map(drop), kind, &words);
    assert_eq!(way.truth(&other).await, None);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_trickle_ends_at_the_deadline() {
    let way = Way::new(CreateOnly::Conditional).await;
    let (name, bytes) = (key("trickle"), body(100_000));
    way.put(&name, &bytes).await.unwrap();
    let slow = Fault::Trickle(Duration::from_millis(200));
    way.proxy.fault("GET", "trickle", 0, 1000, slow);
    refused(
        way.read(&name).await,
        StoreErrorKind::Unavailable,
        &["trickle", S3Server::BUCKET],
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_wrong_etag_makes_nothing_wrong() {
    let way = Way::new(CreateOnly::Conditional).await;
    let (name, bytes) = (key("tag"), body(1_500_000));
    way.proxy.fault("PUT", "tag", 0, 1, Fault::WrongEtag);
    way.put(&name, &bytes).await.unwrap();
    assert!(way.truth(&name).await.unwrap() == bytes);
    way.proxy.fault("GET", "tag", 0, 1, Fault::WrongEtag);
    assert!(way.read(&name).await.unwrap() == bytes);
    // Of a part: a store that looks refuses to put the parts together.
    let large = key("large");
    way.proxy
        .fault("PUT", "partNumber=2", 0, 1, Fault::WrongEtag);
    let mut upload = way.store.begin(&large, PutMode::Create).await.unwrap();
    let bytes = body(70 << 20);
    upload.write(bytes.clone()).await.unwrap();
    let stored = upload.commit().await.is_ok();
    let found = way.truth(&large).await;
    assert!(found == stored.then_some(bytes), "whole or nothing");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_large_upload_survives_what_a_small_one_does() {
    for create_only in [CreateOnly::Conditional, CreateOnly::Claims] {
        let way = Way::new(create_only).await;
        let (name, bytes) = (key("large"), body(70 << 20));
        for (method, part, fault) in [
            ("POST", "uploads", Fault::error(503, "SlowDown")),
            ("PUT", "partNumber=1", Fault::CutUpload(5_000_000)),
            ("PUT", "partNumber=2", Fault::LoseAnswer),
            ("PUT", "partNumber=3", Fault::error(500, "InternalError")),
            ("POST", "uploadId", Fault::LoseAnswer),
        ] {
            way.proxy.fault(method, part, 0, 1, fault);
        }
        let mut upload = way.store.begin(&name, PutMode::Create).await.unwrap();
        for start in (0..bytes.len()).step_by(1 << 20) {
            upload
                .write(bytes.slice(start..start + (1 << 20)))
                .await
                .unwrap();
        }
        upload.commit().await.unwrap();
        assert!(way.truth(&name).await.unwrap() == bytes, "{create_only:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_refusal_is_never_taken_for_an_absence() {
    let way = Way::new(CreateOnly::Conditional).await;
    let name = key("refused");
    let denied = Fault::error(403, "AccessDenied");
    way.proxy.fault("GET", "", 0, 1000, denied.clone());
    way.proxy.fault("HEAD", "", 0, 1000, denied.clone());
    way.proxy.fault("PUT", "", 0, 1000, denied);
    let kind = StoreErrorKind::PermissionDenied;
    let words = ["refused", S3Server::BUCKET, "s3:ListBucket"];
    refused(way.read(&name).await, kind, &words);
    refused(way.store.head(&name).await.map(drop), kind, &words);
    refused(
        way.put(&name, &body(1)).await,
        kind,
        &["refused", S3Server::BUCKET, "s3:PutObject"],
    );
    // 404 from somebody who is no S3.
    way.proxy.mend();
    let nobody = Fault::Answer(404, "Content-Type: text/html\r\n", "<html>".to_owned());
    way.proxy.fault("GET", "", 0, 1000, nobody.clone());
    way.proxy.fault("HEAD", "", 0, 1000, nobody);
    let kind = StoreErrorKind::Unavailable;
    refused(way.read(&name).await, kind, &[S3Server::BUCKET]);
    refused(
        way.store.head(&name).await.map(drop),
        kind,
        &[S3Server::BUCKET],
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_bucket_that_is_gone_is_an_outage() {
    let way = Way::new(CreateOnly::Conditional).await;
    let name = key("gone");
    way.put(&name, &body(10)).await.unwrap();
    way.server.drop_bucket().unwrap();
    // s3s-fs says so only where it lists; the rest is said for it.
    let gone = Fault::error(404, "NoSuchBucket");
    way.proxy.fault("GET", "gone", 0, 1000, gone.clone());
    way.proxy.fault("PUT", "gone", 0, 1000, gone);
    let kind = StoreErrorKind::Unavailable;
    let words = [S3Server::BUCKET, "make it"];
    refused(way.read(&name).await, kind, &words);
    refused(way.store.head(&name).await.map(drop), kind, &words);
    refused(way.put(&name, &body(1)).await, kind, &words);
    let options = ListOptions {
        prefix: "",
        start_after: None,
        delimiter: false,
        limit: 10,
    };
    refused(way.store.list(options).await.map(drop), kind, &words);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_probe_is_not_deceived_by_lost_answers() {
    let way = Way::new(CreateOnly::Conditional).await;
    way.proxy.one_write_at_a_time();
    way.proxy.fault("PUT", ".probe", 2, 1, Fault::LoseAnswer);
    way.proxy
        .fault("PUT", ".probe", 9, 1, Fault::error(503, "SlowDown"));
    let found = way.store.probe_create_only().await.unwrap();
    assert_eq!(found, CreateOnly::Conditional);
    // What the store refuses as such is no answer about conditions.
    way.proxy
        .fault("PUT", ".probe", 0, 1000, Fault::error(403, "AccessDenied"));
    refused(
        way.store.probe_create_only().await.map(drop),
        StoreErrorKind::PermissionDenied,
        &[S3Server::BUCKET],
    );
    // A store that does not know the condition.
    way.proxy.mend();
    way.proxy
        .fault("PUT", ".probe", 0, 4, Fault::error(501, "NotImplemented"));
    let found = way.store.probe_create_only().await.unwrap();
    assert_eq!(found, CreateOnly::Claims);
    let left = way.beside.list(ListOptions {
        prefix: "",
        start_after: None,
        delimiter: false,
        limit: 10,
    });
    let left = left.await.unwrap();
    assert!(left.objects.is_empty() && left.next.is_none(), "{left:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn nobody_there_is_an_outage() {
    let way = Way::new(CreateOnly::Conditional).await;
    let Way {
        server,
        store,
        proxy,
        ..
    } = way;
    drop(server);
    drop(proxy);
    let store: Arc<dyn ObjectStore> = Arc::new(store);
    refused(
        in_time(store.head(&key("nobody"))).await.map(drop),
        StoreErrorKind::Unavailable,
        &["nobody", S3Server::BUCKET],
    );
}
