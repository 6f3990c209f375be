//! One backup, several repositories.

use std::fs;
use std::path::PathBuf;
use std::process::Command;

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use walden_integration::{Said, Site, files, wait_open};
use walden_testkit::{Ledger, PgInstall, S3Server, Target, TestDir, run};

use crate::bench::Disk;
use crate::registration;

super::on_17!(
    a_backup_is_the_same_in_every_repository_and_each_restores_alone,
    a_backup_is_committed_only_where_it_is_whole,
    a_backup_outlives_a_disk_that_fills_up,
    a_folder_and_a_bucket_are_one_archive,
);

/// A site with a second repository; `more` are further keys of it.
fn two<'a>(install: &'a PgInstall, dir: &'a TestDir, second: &str) -> Result<Site<'a>> {
    let place = format!(
        "path: {}\n  - name: there\n    {second}",
        dir.join("repository").display()
    );
    let mut site = Site::unregistered(install, dir, &place, |builder| {
        builder.initdb_arg("--wal-segsize=1")
    })?;
    site.walden(&["init"])?.exited(0)?;
    site.production.start()?;
    Ok(site)
}

fn folder(dir: &TestDir, more: &str) -> Result<String> {
    let there = dir.server_dir("there")?;
    Ok(format!("path: {}{more}", there.display()))
}

/// Takes a backup and gives what it says of itself.
fn taken(site: &Site<'_>, code: i32) -> Result<(Value, Said)> {
    let said = site.walden(&["backup", "--json"])?.exited(code)?;
    let report = serde_json::from_str(&said.stdout).context("backup --json prints no JSON")?;
    Ok((report, said))
}

fn commits(repository: PathBuf) -> Result<usize> {
    let commit = |path: &&PathBuf| {
        path.parent()
            .is_some_and(|parent| parent.ends_with("commits"))
    };
    Ok(files(&repository)?.keys().filter(commit).count())
}

/// A configuration that knows the second repository alone.
fn there_alone(site: &Site<'_>, second: &str) -> Result<()> {
    let file = site.dir.join("walden.yaml");
    let text = fs::read_to_string(&file)?;
    let (clusters, _) = text.split_once("repositories:").context("repositories")?;
    let alone = format!("{clusters}repositories:\n  - name: there\n    {second}\n");
    site.dir.server_file("walden.yaml", alone)?;
    Ok(())
}

fn a_backup_is_the_same_in_every_repository_and_each_restores_alone(
    install: &PgInstall,
    dir: &TestDir,
) -> Result<()> {
    let second = folder(dir, "")?;
    let site = two(install, dir, &second)?;
    let mut ledger = Ledger::create(&site.production)?;
    ledger.write(&site.production, 2, 20)?;
    site.archive_all()?;
    let (report, _) = taken(&site, 0)?;
    ensure!(
        report.get("committed_in") == Some(&json!(["here", "there"]))
            && report.get("lacking") == Some(&json!([])),
        "both should have the backup: {report}"
    );
    ledger.write(&site.production, 2, 20)?;
    site.archive_all()?;
    let below = |root: PathBuf| -> Result<Vec<(PathBuf, Vec<u8>)>> {
        let mut found = Vec::new();
        for path in files(&root)?.into_keys() {
            let below = path.strip_prefix(&root)?.to_owned();
            if !below.starts_with(".tmp") && !below.ends_with("walden.json") {
                found.push((below, fs::read(&path)?));
            }
        }
        Ok(found)
    };
    let (here, there) = (below(site.repository())?, below(dir.join("there"))?);
    let differing: Vec<_> = here
        .iter()
        .zip(&there)
        .filter(|(a, b)| a != b)
        .map(|(a, _)| &a.0)
        .collect();
    ensure!(
        here.len() == there.len() && differing.is_empty() && here.len() > 5,
        "every object but the root documents should be the same in both: {} and {}, {differing:?}",
        here.len(),
        there.len()
    );
    there_alone(&site, &second)?;
    fs::rename(site.repository(), dir.join("lost"))?;
    let mut restored = site.restore("restored", &[])?;
    restored.start()?;
    wait_open(&restored)?;
    ledger.compare(&restored, &Target::Latest)
}

fn a_backup_is_committed_only_where_it_is_whole(install: &PgInstall, dir: &TestDir) -> Result<()> {
    let second = folder(dir, "")?;
    let site = two(install, dir, &second)?;
    site.archive_all()?;
    // Where packs are to go stands what is no folder, while WAL finds its way.
    let there = dir.join("there");
    let wal = files(&there)?
        .into_keys()
        .find(|path| path.to_string_lossy().contains("/wal/"))
        .context("a segment")?;
    let system = wal.ancestors().nth(4).context("the cluster's folder")?;
    let backups = system.join("backups");
    dir.server_file(&backups.strip_prefix(dir.path())?.display().to_string(), "")?;

    let (report, said) = taken(&site, 1)?;
    ensure!(
        report.get("committed_in") == Some(&json!(["here"])),
        "the backup should be worth having where it is whole: {report}"
    );
    let lacking = report.pointer("/lacking/0").context("what lacks it")?;
    ensure!(
        lacking.get("repository") == Some(&json!("there"))
            && lacking.get("required") == Some(&json!(true)),
        "{lacking}"
    );
    said.naming(&["error: repository \"there\" lacks the backup"])?;
    ensure!(
        commits(site.repository())? == 1 && commits(there.clone())? == 0,
        "a commit document should stand in the one repository alone"
    );

    // The same where nobody needs it is a warning.
    let second = format!("{second}\n    required: false");
    let config = fs::read_to_string(dir.join("walden.yaml"))?;
    let (before, _) = config.split_once("  - name: there").context("there")?;
    dir.server_file(
        "walden.yaml",
        format!("{before}  - name: there\n    {second}\n"),
    )?;
    let (_, said) = taken(&site, 0)?;
    said.naming(&["WARN", "\"there\"", "not required"])?;
    ensure!(
        commits(site.repository())? == 2 && commits(there.clone())? == 0,
        "as before"
    );

    // Mended, the next one is whole in both.
    fs::remove_file(&backups)?;
    let (report, _) = taken(&site, 0)?;
    ensure!(
        report.get("committed_in") == Some(&json!(["here", "there"])) && commits(there)? == 1,
        "{report}"
    );
    ensure!(
        registration(&dir.join("there"))?.is_some(),
        "registered as before"
    );
    Ok(())
}

fn a_backup_outlives_a_disk_that_fills_up(install: &PgInstall, dir: &TestDir) -> Result<()> {
    let second = folder(dir, "\n    required: false")?;
    let there = dir.join("there");
    let Some(_disk) = Disk::mount(&there, "3m")? else {
        return Ok(());
    };
    let site = two(install, dir, &second)?;
    // What does not compress, more of it than the disk has.
    site.production.psql(
        "CREATE TABLE t AS SELECT gen_random_uuid() a, gen_random_uuid() b FROM generate_series(1, 100000); CHECKPOINT",
    )?;
    site.archive_all()?;
    run(Command::new("sh")
        .args(["-c", "rm -rf \"$1\"/main/*/wal/*/*/*", "sh"])
        .arg(&there))?;
    site.production
        .psql("SELECT pg_create_restore_point('behind it')")?;
    site.archive_all()?;
    let (report, said) = taken(&site, 0)?;
    ensure!(
        report.get("committed_in") == Some(&json!(["here"])) && commits(there)? == 0,
        "a disk that is full should have no backup, and be in nobody's way: {report}"
    );
    said.naming(&["WARN", "\"there\"", "No space left"])?;
    site.restore("restored", &[]).map(drop)
}

fn a_folder_and_a_bucket_are_one_archive(install: &PgInstall, dir: &TestDir) -> Result<()> {
    let server = S3Server::s3s_fs()?;
    let credentials = dir.server_file("credentials", server.credentials())?;
    let second = format!(
        "s3: {{ bucket: {}, region: {}, endpoint: '{}', credentials_file: {}, create_only: claims }}",
        S3Server::BUCKET,
        server.region(),
        server.endpoint(),
        credentials.display()
    );
    let site = two(install, dir, &second)?;
    let mut ledger = Ledger::create(&site.production)?;
    ledger.write(&site.production, 2, 20)?;
    site.archive_all()?;
    let (report, _) = taken(&site, 0)?;
    ensure!(
        report.get("committed_in") == Some(&json!(["here", "there"])),
        "both should have the backup: {report}"
    );
    ledger.write(&site.production, 2, 20)?;
    site.archive_all()?;
    there_alone(&site, &second)?;
    fs::rename(site.repository(), dir.join("lost"))?;
    let mut restored = site.restore("restored", &[])?;
    restored.start()?;
    wait_open(&restored)?;
    ledger.compare(&restored, &Target::Latest)
}
