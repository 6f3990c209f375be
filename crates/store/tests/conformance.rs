//! The folder backend passes the suite that every backend passes.

#![allow(clippy::unwrap_used, reason = "a test's way to fail")]

use std::sync::Arc;

use walden_store::{LocalStore, conformance};

#[tokio::test(flavor = "multi_thread")]
async fn a_folder_keeps_what_every_store_promises() {
    let root = tempfile::tempdir().unwrap();
    let seed = rand::random();
    println!("seed {seed}");
    conformance::run(Arc::new(LocalStore::open(root.path()).unwrap()), seed).await;
}
