//! Credentials show nowhere: not in errors, not in what is logged, not in `Debug`.

use std::io::Write;
use std::sync::{Arc, Mutex};

use bytes::Bytes;
use tracing_subscriber::EnvFilter;
use walden_store::{Key, ObjectStore, PutMode, S3Credentials, S3Store, Secret};
use walden_testkit::{Fault, FaultProxy, S3Server};

const CANARY: &str = "canary-of-a-secret-access-key";
const TOKEN_CANARY: &str = "canary-of-a-session-token";

#[derive(Clone, Default)]
struct Log(Arc<Mutex<Vec<u8>>>);

impl Write for Log {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().unwrap().extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

#[tokio::test]
async fn credentials_show_nowhere() {
    let log = Log::default();
    let writer = log.clone();
    let logging = tracing_subscriber::fmt()
        .with_env_filter(EnvFilter::new("trace"))
        .with_writer(move || writer.clone())
        .finish();
    let _logging = tracing::subscriber::set_default(logging);

    let server = S3Server::s3s_fs().unwrap();
    let proxy = FaultProxy::before(server.address()).unwrap();
    let mut settings = crate::settings(&server, proxy.endpoint());
    settings.credentials = S3Credentials::Static {
        access_key_id: server.access_key().to_owned(),
        secret_access_key: Secret::new(CANARY),
        session_token: Some(Secret::new(TOKEN_CANARY)),
    };
    let mut shown = format!("{settings:?}");
    let store = S3Store::open(settings).await.unwrap();
    let key = Key::parse("some/key").unwrap();
    // A server may repeat what it was sent.
    let talkative = Fault::Answer(
        403,
        "",
        format!(
            "<Error><Code>AccessDenied</Code><Message>token {TOKEN_CANARY} of {CANARY}</Message></Error>"
        ),
    );
    proxy.fault("GET", "", 1, 1, talkative);
    proxy.fault("HEAD", "", 0, 1, Fault::error(503, "SlowDown"));
    for _ in 0..2 {
        let error = store.head(&key).await.unwrap_err();
        shown.push_str(&format!("{error} {error:?}"));
        let error = store
            .put(&key, Bytes::from_static(b"x"), PutMode::Create)
            .await
            .unwrap_err();
        shown.push_str(&format!("{error} {error:?}"));
        let error = store.get(&key).await.map(drop).unwrap_err();
        shown.push_str(&format!(
            "{error} {error:?} {:?}",
            std::error::Error::source(&error)
        ));
    }
    shown.push_str(&format!("{store:?} {}", store.location()));
    let logged = String::from_utf8_lossy(&log.0.lock().unwrap()).into_owned();
    assert!(
        logged.contains("trying again"),
        "what is logged is looked at: {} bytes",
        logged.len()
    );
    for canary in [CANARY, TOKEN_CANARY] {
        assert!(!shown.contains(canary), "{canary} is shown in: {shown}");
        let line = logged.lines().find(|line| line.contains(canary));
        assert_eq!(line, None, "{canary} is logged");
    }
}
