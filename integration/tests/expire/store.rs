//! Expiry in a bucket, with claims, and where the store does not let everything go.

use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt;

use anyhow::{Context, Result, ensure};
use walden_integration::{Site, wait_open};
use walden_testkit::{Fault, FaultProxy, PgInstall, S3Server, TestDir, on_version};

use super::{archive, expire, ids, nothing_left, objects, site, system};

#[test]
fn what_a_folder_does_not_let_go_is_named_and_goes_later() {
    on_version(17, "expire_folder", folder);
}

#[test]
fn a_bucket_with_claims_is_expired() {
    on_version(17, "expire_claims", |install, dir| {
        bucket(install, dir, &S3Server::s3s_fs()?)
    });
}

#[test]
#[ignore = "Garage takes ten minutes to build: continuous integration runs it"]
fn garage_is_expired() {
    on_version(17, "expire_garage", |install, dir| {
        bucket(install, dir, &S3Server::garage()?)
    });
}

fn folder(install: &PgInstall, dir: &TestDir) -> Result<()> {
    let mut site = site(install, dir, "retention: { full: 1 }\n")?;
    site.production.start()?;
    archive(&site)?;
    let old = site.backup(&[])?.id;
    archive(&site)?;
    let new = site.backup(&[])?.id;
    let key = objects(&site)?
        .into_iter()
        .find(|key| key.contains(&format!("{old}/packs/")))
        .context("a pack")?;
    let pack = site.repository().join(key);
    let packs = pack.parent().context("its folder")?;
    fs::set_permissions(packs, Permissions::from_mode(0o500))?;
    let said = site.walden(&["expire", "--json"])?.exited(1)?;
    let left = system(&said)?;
    ensure!(
        left.pointer("/done/left_count")
            .is_some_and(|count| *count == 1),
        "the pack cannot be removed: {left}"
    );
    said.naming(&[
        "kept 1 objects",
        &format!("{old}/packs/00000000.zst"),
        "ermission denied",
    ])?;
    let listed: Vec<String> = site
        .backups()?
        .into_iter()
        .map(|backup| backup.id)
        .collect();
    ensure!(
        listed == [new],
        "what is being removed is no backup: {listed:?}"
    );
    fs::set_permissions(packs, Permissions::from_mode(0o700))?;
    expire(&site, &[], 0)?;
    nothing_left(&site, &old)
}

fn bucket(install: &PgInstall, dir: &TestDir, server: &S3Server) -> Result<()> {
    let proxy = FaultProxy::before(server.address())?;
    let credentials = dir.server_file("credentials", server.credentials())?;
    let place = format!(
        "s3: {{ bucket: {}, region: {}, prefix: p, endpoint: '{}', credentials_file: {}, create_only: claims }}",
        S3Server::BUCKET,
        server.region(),
        proxy.endpoint(),
        credentials.display()
    );
    let mut site = Site::unregistered(install, dir, &place, |builder| {
        builder.initdb_arg("--wal-segsize=1")
    })?;
    super::retain(&site, "retention: { full: 1 }\n")?;
    site.walden(&["init"])?.exited(0)?;
    site.production.start()?;
    site.production.psql("CREATE TABLE t AS SELECT 1 AS n")?;
    archive(&site)?;
    let old = site.backup(&[])?.id;
    archive(&site)?;
    let new = site.backup(&[])?.id;
    archive(&site)?;

    drop(proxy.take_seen());
    proxy.fault(
        "DELETE",
        &format!("commits/{old}"),
        0,
        1000,
        Fault::error(403, "AccessDenied"),
    );
    let said = site.walden(&["expire"])?.exited(1)?;
    said.naming(&["kept 1 objects", &old, "s3:DeleteObject"])?;
    let seen = proxy.take_seen();
    ensure!(
        !seen
            .iter()
            .any(|request| request.starts_with("DELETE") && request.contains("/packs/")),
        "no pack goes whose commit document stays: {seen:?}"
    );
    let listed: Vec<String> = site
        .backups()?
        .into_iter()
        .map(|backup| backup.id)
        .collect();
    ensure!(
        listed == [new.clone()],
        "what is being removed is no backup: {listed:?}"
    );
    proxy.mend();

    let done = expire(&site, &[], 0)?;
    ensure!(ids(&done, "begun") == [old.clone()], "it goes on: {done}");
    let seen = proxy.take_seen();
    let of = |what: &str| {
        let deleted = |request: &&String| request.starts_with("DELETE") && request.contains(what);
        seen.iter().filter(deleted).cloned().collect::<Vec<_>>()
    };
    let packs = of(&format!("{old}/packs/"));
    let object = packs
        .iter()
        .position(|request| !request.contains(".claims"));
    let claim = packs.iter().position(|request| request.contains(".claims"));
    ensure!(
        object.is_some() && claim.is_some() && object < claim,
        "the object goes first, then its claims: {packs:?}"
    );
    let again = expire(&site, &[], 0)?;
    ensure!(
        again
            .pointer("/done/objects")
            .is_some_and(|count| *count == 0),
        "{again}"
    );
    // A key that was removed can be taken again.
    archive(&site)?;
    let mut restored = site.restore("restored", &["--backup", &new])?;
    restored.start()?;
    wait_open(&restored)?;
    ensure!(restored.psql("SELECT n FROM t")? == "1", "the row is there");
    Ok(())
}
