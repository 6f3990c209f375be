//! The S3 backend, on real servers.

#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::print_stderr,
    reason = "a test's way to fail"
)]

mod faults;
mod promises;
mod requests;
mod secrets;
mod settings;
mod ways;

use std::time::Duration;

use walden_store::{S3Credentials, S3Settings, Secret};
use walden_testkit::S3Server;

/// A bucket of a server, behind any endpoint, with deadlines that a test can wait for.
fn settings(server: &S3Server, endpoint: String) -> S3Settings {
    let mut settings = S3Settings::new(S3Server::BUCKET);
    settings.endpoint = Some(endpoint);
    settings.region = Some(server.region().to_owned());
    settings.path_style = true;
    settings.prefix = "some/where".to_owned();
    settings.credentials = S3Credentials::Static {
        access_key_id: server.access_key().to_owned(),
        secret_access_key: Secret::new(server.secret_key()),
        session_token: None,
    };
    settings.request_deadline = Duration::from_secs(5);
    settings.operation_deadline = Duration::from_secs(20);
    settings
}
