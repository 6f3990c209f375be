//! The ways to a bucket: TLS with a CA of one's own, and AWS's chain of credentials.
//!
//! The certificates in `tls/` are made with openssl, for 127.0.0.1 and this test alone, and hold until 2126.

use std::fs;
use std::path::Path;
use std::process::Command;

use bytes::Bytes;
use walden_store::{Key, ObjectStore, PutMode, S3Credentials, S3Settings, S3Store, StoreErrorKind};
use walden_testkit::{S3Server, TlsFront, run};

async fn can_be_used(settings: S3Settings) -> Result<(), walden_store::StoreError> {
    let store = S3Store::open(settings).await?;
    let key = Key::parse("key").unwrap();
    let bytes = Bytes::from(vec![7; 100_000]);
    store.put(&key, bytes.clone(), PutMode::Overwrite).await?;
    assert!(store.get_range(&key, 0..100_000).await? == bytes);
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_ca_of_ones_own_is_believed_and_no_other() {
    let files = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/s3/tls");
    let server = S3Server::s3s_fs().unwrap();
    let front = TlsFront::before(server.address(), &files.join("server.pem")).unwrap();
    let mut settings = crate::settings(&server, front.endpoint());
    settings.ca_file = Some(files.join("ca.pem"));
    can_be_used(settings.clone()).await.unwrap();
    for other in [Some(files.join("other-ca.pem")), None] {
        settings.ca_file = other;
        let error = can_be_used(settings.clone()).await.unwrap_err();
        assert_eq!(error.kind(), StoreErrorKind::Unavailable, "{error:?}");
        assert!(error.to_string().contains("set the CA file"), "{error:?}");
    }
}

/// Runs itself in an environment of its own, for a process's own cannot be changed.
#[tokio::test(flavor = "multi_thread")]
async fn awss_chain_finds_the_credentials() {
    const ENDPOINT: &str = "WALDEN_TEST_CHAIN_ENDPOINT";
    if let Ok(endpoint) = std::env::var(ENDPOINT) {
        let mut settings = S3Settings::new(S3Server::BUCKET);
        settings.endpoint = Some(endpoint);
        settings.path_style = true;
        settings.credentials = S3Credentials::Chain {
            profile: Some("backups".to_owned()),
            credentials_file: None,
        };
        can_be_used(settings.clone()).await.unwrap();
        settings.credentials = S3Credentials::Chain {
            profile: None,
            credentials_file: None,
        };
        let error = can_be_used(settings).await.unwrap_err();
        assert_eq!(error.kind(), StoreErrorKind::PermissionDenied, "{error:?}");
        assert!(error.to_string().contains("credentials"), "{error}");
        return;
    }
    let server = S3Server::s3s_fs().unwrap();
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("credentials");
    let (id, secret) = (server.access_key(), server.secret_key());
    let text = format!("[backups]\naws_access_key_id = {id}\naws_secret_access_key = {secret}\n");
    fs::write(&file, text).unwrap();
    let mut itself = Command::new(std::env::current_exe().unwrap());
    itself
        .args(["--exact", "ways::awss_chain_finds_the_credentials"])
        .env(ENDPOINT, server.endpoint())
        .env("HOME", folder.path())
        .env("AWS_SHARED_CREDENTIALS_FILE", &file)
        .env("AWS_EC2_METADATA_DISABLED", "true");
    run(&mut itself).unwrap();
}
