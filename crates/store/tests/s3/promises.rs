//! What every store promises, both ways to put only where nothing is.

use std::sync::Arc;

use bytes::Bytes;
use walden_store::conformance::{self, Exceptions};
use walden_store::{Checksums, CreateOnly, Key, ObjectStore, PutMode, S3Store};
use walden_testkit::{Fault, FaultProxy, S3Server};

async fn keeps_the_promises(
    server: &S3Server,
    endpoint: String,
    create_only: CreateOnly,
    checksums: Checksums,
    exceptions: Exceptions,
) {
    let mut settings = crate::settings(server, endpoint);
    settings.create_only = create_only;
    settings.checksums = checksums;
    let seed = rand::random();
    eprintln!("seed {seed}");
    let store = S3Store::open(settings).await.unwrap();
    conformance::run_except(Arc::new(store), seed, exceptions).await;
}

/// s3s-fs keeps checksums beside the object, and gives an old one with new bytes while an object is overwritten.
const NO_CHECKSUMS: Checksums = Checksums::WhenRequired;

/// s3s-fs looks whether an object is there, and then puts it: only one at a time are its conditions honoured.
fn one_write_at_a_time(server: &S3Server) -> FaultProxy {
    let proxy = FaultProxy::before(server.address()).unwrap();
    proxy.one_write_at_a_time();
    proxy
}

#[tokio::test(flavor = "multi_thread")]
async fn a_store_that_honours_conditions_keeps_them() {
    let server = S3Server::s3s_fs().unwrap();
    let proxy = one_write_at_a_time(&server);
    let exceptions = Exceptions {
        folders_as_keys: true,
        ..Exceptions::default()
    };
    let endpoint = proxy.endpoint();
    let way = CreateOnly::Conditional;
    keeps_the_promises(&server, endpoint, way, NO_CHECKSUMS, exceptions).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_store_that_overwrites_keeps_them_with_claims() {
    let server = S3Server::s3s_fs().unwrap();
    let exceptions = Exceptions {
        folders_as_keys: true,
        races_without_winner: true,
    };
    let way = CreateOnly::Claims;
    keeps_the_promises(&server, server.endpoint(), way, NO_CHECKSUMS, exceptions).await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "Garage takes ten minutes to build: continuous integration runs it"]
async fn garage_keeps_them_with_claims() {
    let server = S3Server::garage().unwrap();
    let exceptions = Exceptions {
        races_without_winner: true,
        ..Exceptions::default()
    };
    let (way, checksums) = (CreateOnly::Claims, Checksums::WhenSupported);
    keeps_the_promises(&server, server.endpoint(), way, checksums, exceptions).await;
}

async fn probed(server: &S3Server, endpoint: String) -> CreateOnly {
    let store = S3Store::open(crate::settings(server, endpoint)).await;
    store.unwrap().probe_create_only().await.unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_probe_finds_that_conditions_are_honoured() {
    let server = S3Server::s3s_fs().unwrap();
    let proxy = one_write_at_a_time(&server);
    let found = probed(&server, proxy.endpoint()).await;
    assert_eq!(found, CreateOnly::Conditional);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_probe_finds_that_a_race_has_two_winners() {
    let server = S3Server::s3s_fs().unwrap();
    for _ in 0..50 {
        if probed(&server, server.endpoint()).await == CreateOnly::Claims {
            return;
        }
    }
    panic!("50 probes did not find out that s3s-fs looks first, and puts then");
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "Garage takes ten minutes to build: continuous integration runs it"]
async fn a_probe_finds_that_garage_overwrites() {
    let server = S3Server::garage().unwrap();
    assert_eq!(probed(&server, server.endpoint()).await, CreateOnly::Claims);
}

/// s3s-fs does not list uploads.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "Garage takes ten minutes to build: continuous integration runs it"]
async fn an_upload_that_was_cut_off_is_swept_by_its_age() {
    let server = S3Server::garage().unwrap();
    let proxy = FaultProxy::before(server.address()).unwrap();
    let store = S3Store::open(crate::settings(&server, proxy.endpoint()));
    let store = store.await.unwrap();
    let key = Key::parse("cut/off").unwrap();
    let mut upload = store.begin(&key, PutMode::Create).await.unwrap();
    for _ in 0..65 {
        let chunk = Bytes::from(vec![1; 1 << 20]);
        upload.write(chunk).await.unwrap();
    }
    // Nobody is left to abort it.
    let denied = Fault::error(403, "AccessDenied");
    proxy.fault("DELETE", "cut/off", 0, 1, denied);
    drop(upload);
    while !proxy
        .take_seen()
        .iter()
        .any(|line| line.starts_with("DELETE"))
    {
        tokio::task::yield_now().await;
    }
    let hour = jiff::SignedDuration::from_hours(1);
    let now = jiff::Timestamp::now();
    assert_eq!(store.sweep_unfinished(now - hour).await.unwrap(), 0);
    assert_eq!(store.sweep_unfinished(now + hour).await.unwrap(), 1);
    assert_eq!(store.sweep_unfinished(now + hour).await.unwrap(), 0);
}
