//! A store of three nodes of which one dies in the middle, and comes back.

use std::process::Stdio;

use anyhow::{Context, Result, ensure};
use walden_integration::{Said, Site, options, wait_paused};
use walden_testkit::{
    FaultProxy, Ledger, PgInstall, S3Server, StopMode, Target, TestDir, on_version, poll,
};

use super::site;

#[test]
#[ignore = "Garage takes ten minutes to build: continuous integration runs it"]
fn one_of_three_nodes_dies_during_a_backup_and_another_during_a_restore() {
    on_version(17, "bucket_nodes", nodes_die);
}

fn nodes_die(install: &PgInstall, dir: &TestDir) -> Result<()> {
    let mut server = S3Server::garage_of_three()?;
    let proxy = FaultProxy::before(server.address())?;
    let claims = "create_only: claims";
    let mut site = site(install, dir, &server, &proxy.endpoint(), claims)?;
    site.walden(&["init"])?.exited(0)?;
    site.production.start()?;
    let mut ledger = Ledger::create(&site.production)?;
    ledger.write(&site.production, 2, 20)?;
    // Tens of megabytes, after compression: the store splits them into blocks.
    site.production.psql(
        "CREATE TABLE large AS SELECT i, (SELECT string_agg(md5(random()::text), '') FROM generate_series(1, 50 + i % 2)) AS what \
         FROM generate_series(1, 20000) AS i",
    )?;
    site.archive_all()?;

    let seen = ["PUT started.json", "PUT packs/00000000"];
    let said = meanwhile(&site, &["backup"], &proxy, &seen, |at| match at {
        0 => server.stop_node(1),
        _ => server.start_node(1),
    })?;
    said.exited(0)?;
    ledger.write(&site.production, 2, 20)?;
    let time = ledger.commits().last().context("a commit")?.time;
    ledger.write(&site.production, 2, 20)?;
    site.archive_all()?;
    let rows = "SELECT count(*), sum(hashtext(what)) FROM large";
    let expected = site.production.psql(rows)?;
    site.production.stop(StopMode::Immediate)?;

    let target = Target::Time {
        time,
        inclusive: true,
    };
    let directory = dir.join("restored").display().to_string();
    let restore: Vec<String> = ["restore".to_owned(), directory]
        .into_iter()
        .chain(options(&target))
        .collect();
    let restore: Vec<&str> = restore.iter().map(String::as_str).collect();
    // Another one: what the first did not hear of while it was dead, it has learned by now, or the third has.
    let seen = ["GET packs/00000000"];
    let said = meanwhile(&site, &restore, &proxy, &seen, |_| server.stop_node(2))?;
    said.exited(0)?;
    server.start_node(2)?;
    let mut restored =
        walden_testkit::Cluster::adopt(install, dir, "restored", dir.join("restored"))?;
    restored.start()?;
    wait_paused(&restored)?;
    ledger.compare(&restored, &target)?;
    ensure!(
        restored.psql(rows)? == expected,
        "every row of the large table should be back"
    );
    Ok(())
}

/// Runs `walden`; `change` is called each time one of these requests, in this order, was seen on its way.
fn meanwhile(
    site: &Site<'_>,
    arguments: &[&str],
    proxy: &FaultProxy,
    requests: &[&str],
    mut change: impl FnMut(usize) -> Result<()>,
) -> Result<Said> {
    drop(proxy.take_seen());
    let mut command = site.command("walden.yaml", arguments)?;
    let running = command
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .context("cannot start walden")?;
    for (at, request) in requests.iter().enumerate() {
        let (method, name) = request.split_once(' ').context("a method and a name")?;
        poll(request, || {
            let asked = |line: &String| line.starts_with(method) && line.contains(name);
            Ok(proxy.take_seen().iter().any(asked).then_some(()))
        })?;
        change(at)?;
    }
    let output = running
        .wait_with_output()
        .context("cannot wait for walden")?;
    Ok(Said {
        code: output.status.code(),
        stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
        stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
    })
}
