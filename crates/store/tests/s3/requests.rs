//! How many requests each call makes: they are what a distant store costs.

use bytes::Bytes;
use walden_store::{CreateOnly, Key, ListOptions, ObjectStore, PutMode, S3Store};
use walden_testkit::{FaultProxy, S3Server};

struct Counted {
    proxy: FaultProxy,
    store: S3Store,
    _server: S3Server,
}

impl Counted {
    async fn new(create_only: CreateOnly) -> Self {
        let server = S3Server::s3s_fs().unwrap();
        let proxy = FaultProxy::before(server.address()).unwrap();
        let mut settings = crate::settings(&server, proxy.endpoint());
        settings.create_only = create_only;
        Self {
            store: S3Store::open(settings).await.unwrap(),
            proxy,
            _server: server,
        }
    }

    fn made(&self, what: &str, expected: usize) {
        let seen = self.proxy.take_seen();
        assert_eq!(seen.len(), expected, "requests of {what}: {seen:#?}");
    }
}

fn key(name: &str) -> Key {
    Key::parse(name).unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn most_calls_are_one_request() {
    let counted = Counted::new(CreateOnly::Conditional).await;
    let store = &counted.store;
    counted.made("opening", 0);
    let body = Bytes::from(vec![1; 5_000_000]);
    let name = key("folder/object");
    store
        .put(&name, body.clone(), PutMode::Create)
        .await
        .unwrap();
    counted.made("a put", 1);
    let streamed = key("folder/streamed");
    let mut upload = store.begin(&streamed, PutMode::Create).await.unwrap();
    upload.write(body.clone()).await.unwrap();
    upload.commit().await.unwrap();
    counted.made("a streamed put of a segment's size", 1);
    store.put(&name, body, PutMode::Create).await.unwrap();
    counted.made("a put of what is there", 2);
    store.get_range(&name, 10..1_000_000).await.unwrap();
    counted.made("a range", 1);
    store.get_suffix(&name, 1000).await.unwrap();
    counted.made("a suffix", 1);
    store.head(&name).await.unwrap();
    counted.made("a head", 1);
    store.confirm_durable(&name).await.unwrap();
    counted.made("a confirmation", 1);
    store.head(&key("absent")).await.unwrap_err();
    counted.made("a head of what is absent", 2);
    store.get(&key("absent")).await.map(drop).unwrap_err();
    counted.made("a get of what is absent", 1);
    for (delimiter, start_after) in [
        (false, None),
        (true, None),
        (false, Some("folder/object")),
        (true, Some("folder/")),
    ] {
        let options = ListOptions {
            prefix: "folder/",
            start_after,
            delimiter,
            limit: 1000,
        };
        store.list(options).await.unwrap();
        counted.made("a page of a list", 1);
    }
    store.delete(&name).await.unwrap();
    counted.made("a deletion", 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn claims_cost_three_requests_more() {
    let counted = Counted::new(CreateOnly::Claims).await;
    let store = &counted.store;
    let body = Bytes::from_static(b"bytes");
    store
        .put(&key("object"), body.clone(), PutMode::Create)
        .await
        .unwrap();
    counted.made("a put with a claim", 4);
    store
        .put(&key("object"), body.clone(), PutMode::Create)
        .await
        .unwrap();
    counted.made("a put of what is there", 1);
    store
        .put(&key("object"), body, PutMode::Overwrite)
        .await
        .unwrap();
    counted.made("an overwriting put", 1);
}
