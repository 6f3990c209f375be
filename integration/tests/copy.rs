//! `walden copy`: a region is lost, and the other restores.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result, ensure};
use serde_json::Value;
use walden_integration::{Site, files, options, wait_open, wait_paused};
use walden_testkit::{Ledger, PgInstall, S3Server, StopMode, Target, TestDir, on_version};

#[test]
fn a_region_is_lost_and_the_copy_restores() {
    on_version(17, "copy", |install, dir| {
        let place = format!("path: {}", dir.join("elsewhere").display());
        region_lost(install, dir, &place)
    });
}

#[test]
fn a_folder_is_lost_and_the_copy_in_a_bucket_restores() {
    on_version(17, "copy_bucket", |install, dir| {
        let server = S3Server::s3s_fs()?;
        let credentials = dir.server_file("credentials", server.credentials())?;
        let place = format!(
            "s3: {{ bucket: {}, region: {}, prefix: copy, endpoint: '{}', credentials_file: {}, create_only: claims }}",
            S3Server::BUCKET,
            server.region(),
            server.endpoint(),
            credentials.display()
        );
        region_lost(install, dir, &place)
    });
}

/// Writes the site's configuration anew, with these repositories.
fn configure(site: &Site<'_>, repositories: &str) -> Result<()> {
    let file = site.configure("walden.yaml", &site.production, "")?;
    let text = fs::read_to_string(file)?;
    let (before, _) = text
        .split_once("repositories:\n")
        .context("repositories in the configuration")?;
    site.dir.server_file(
        "walden.yaml",
        format!("{before}repositories:\n{repositories}"),
    )?;
    Ok(())
}

fn copied(site: &Site<'_>, more: &[&str], code: i32) -> Result<Value> {
    let arguments = ["copy", "--from", "here", "--to", "elsewhere", "--json"];
    let said = site.walden(&[&arguments, more].concat())?.exited(code)?;
    let report: Value = serde_json::from_str(&said.stdout)?;
    report
        .pointer("/clusters/0")
        .cloned()
        .context("a cluster in the report")
}

fn number(report: &Value, pointer: &str) -> Result<u64> {
    let number = report.pointer(pointer).and_then(Value::as_u64);
    number.with_context(|| format!("no {pointer} in {report}"))
}

fn region_lost(install: &PgInstall, dir: &TestDir, elsewhere: &str) -> Result<()> {
    let mut site = Site::new(install, dir, |builder| {
        builder.initdb_arg("--wal-segsize=1")
    })?;
    let here = format!(
        "  - name: here\n    path: {}\n",
        site.repository().display()
    );
    let both = format!("{here}  - name: elsewhere\n    {elsewhere}\n    required: false\n");
    configure(&site, &both)?;
    let arguments = ["copy", "--from", "here", "--to", "elsewhere"];
    // Nobody made the other one yet: its place may be a mount that is missing.
    site.walden(&arguments)?
        .exited(1)?
        .naming(&["elsewhere", "walden init"])?;
    configure(&site, &here)?;

    site.production.start()?;
    let mut ledger = Ledger::create(&site.production)?;
    ledger.write(&site.production, 2, 20)?;
    site.archive_all()?;
    let backup = site.backup(&[])?;
    let load = ledger.start_load(&site.production, 2)?;
    load.wait_for(200)?;
    ledger.finish(load, &site.production)?;
    let commits = ledger.commits();
    let time = commits
        .get(commits.len().saturating_sub(60))
        .context("a commit to go back to")?
        .time;
    site.production.psql("DROP TABLE ledger_total")?;
    let last = site.archive_all()?;
    site.production.stop(StopMode::Immediate)?;

    // From now on there are two.
    configure(&site, &both)?;
    site.walden(&["init"])?.exited(0)?;
    let planned = copied(&site, &["--dry-run"], 0)?;
    let done = copied(&site, &["--jobs", "8"], 0)?;
    for what in ["/wal/objects", "/wal/bytes", "/backup_objects/objects"] {
        ensure!(
            number(&planned, what)? == number(&done, what)? && number(&done, what)? > 0,
            "{what} should be as planned: {planned} planned, {done} done"
        );
    }
    ensure!(
        done.pointer("/backups/0").and_then(Value::as_str) == Some(&backup.id),
        "the backup should be there now: {done}"
    );
    let again = copied(&site, &["--compare"], 0)?;
    ensure!(
        number(&again, "/wal/objects")? + number(&again, "/backup_objects/objects")? == 0,
        "a second copy has nothing to do: {again}"
    );

    // The region, and the server, are lost.
    fs::remove_dir_all(site.repository())?;
    configure(&site, &format!("  - name: elsewhere\n    {elsewhere}\n"))?;
    let target = Target::Time {
        time,
        inclusive: true,
    };
    let arguments = options(&target);
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let mut restored = site.restore("to_the_time", &arguments)?;
    restored.start()?;
    wait_paused(&restored)?;
    ledger.compare(&restored, &target)?;
    drop(restored);
    let mut restored = site.restore("to_the_end", &[])?;
    restored.start()?;
    wait_open(&restored)?;
    let log = restored.log();
    ensure!(
        log.contains(&format!("{last} restored")),
        "the end of the archive is {last}; the server's log:\n{log}"
    );
    ensure!(
        restored.psql("SELECT to_regclass('ledger_total') IS NULL")? == "t",
        "at the end the table is dropped"
    );
    Ok(())
}

#[test]
fn what_is_damaged_or_in_conflict_is_named_with_an_exit_code_of_its_own() {
    on_version(17, "copy_damage", |install, dir| {
        let mut site = Site::new(install, dir, |builder| {
            builder.initdb_arg("--wal-segsize=1")
        })?;
        let elsewhere = dir.join("elsewhere");
        let place =
            |name: &str, path: &Path| format!("  - name: {name}\n    path: {}\n", path.display());
        let both = place("here", &site.repository()) + &place("elsewhere", &elsewhere);
        site.production.start()?;
        let damaged = site.archive_all()?;
        let backup = site.backup(&[])?;
        site.production.psql("CREATE TABLE t (n int)")?;
        let other = site.archive_all()?;
        site.production.stop(StopMode::Fast)?;
        configure(&site, &both)?;
        site.walden(&["init"])?.exited(0)?;
        let stored = site.stored(&damaged)?;
        let mut bytes = fs::read(&stored)?;
        let middle = bytes.len() / 2;
        if let Some(byte) = bytes.get_mut(middle) {
            *byte ^= 1;
        }
        fs::write(&stored, bytes)?;
        let below = |path: &Path| -> Result<std::path::PathBuf> {
            Ok(elsewhere.join(path.strip_prefix(site.repository())?))
        };
        let conflict = below(&site.stored(&other)?)?;
        fs::create_dir_all(conflict.parent().context("a folder")?)?;
        fs::write(&conflict, "somebody else's")?;
        // Everything there belongs to the one who runs the programs.
        std::process::Command::new("chown")
            .arg("-R")
            .arg(format!(
                "--reference={}",
                elsewhere.join("walden.json").display()
            ))
            .arg(&elsewhere)
            .status()?;

        let report = copied(&site, &[], 8)?;
        let text = report.to_string();
        ensure!(
            number(&report, "/not_copied")? == 2
                && text.contains(&format!("{damaged}.zst"))
                && text.contains(&format!("{other}.zst")),
            "one damaged, one in conflict: {report}"
        );
        ensure!(
            fs::read(&conflict)? == b"somebody else's" && !below(&stored)?.exists(),
            "nothing is written over, and nothing damaged is copied"
        );
        ensure!(
            text.contains(&backup.id) && number(&report, "/backup_objects/objects")? > 0,
            "all else is copied: {report}"
        );
        ensure!(
            files(&elsewhere)?
                .into_keys()
                .all(|path| !path.to_string_lossy().contains(".tmp")),
            "no temporary is left behind"
        );
        Ok(())
    });
}
