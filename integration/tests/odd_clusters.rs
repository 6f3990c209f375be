//! Clusters that are not as most are: other segment sizes, no checksums, damaged pages, configuration elsewhere.

use std::fs;
use std::os::unix::fs::FileExt;
use std::path::Path;

use anyhow::{Context, Result, ensure};
use serde_json::Value;
use walden_integration::{Site, options, wait_open, wait_paused};
use walden_testkit::{
    Cluster, Ledger, PgInstall, StopMode, Target, TestDir, on_every_version, on_version, pg_amcheck,
};

on_every_version!(targets_in_other_files_do_not_lead_a_restore);

#[test]
fn segments_of_1_mb_are_archived_and_restored() {
    on_version(17, "segments_1mb", |install, dir| segments(install, dir, 1));
}

#[test]
fn segments_of_64_mb_are_archived_and_restored() {
    on_version(17, "segments_64mb", |install, dir| {
        segments(install, dir, 64)
    });
}

#[test]
fn a_cluster_without_data_checksums_is_backed_up() {
    on_version(18, "no_checksums", no_checksums);
}

#[test]
fn a_damaged_page_is_listed_and_ends_no_backup() {
    on_version(17, "damaged_page", damaged_page);
}

#[test]
fn pages_that_are_being_written_are_not_taken_for_damage() {
    on_version(17, "torn_pages", torn_pages);
}

#[test]
fn configuration_outside_the_data_directory_is_kept_and_a_copy_starts_without_it() {
    on_version(15, "debian", debian);
}

#[test]
fn each_system_identifier_of_a_cluster_is_restored_by_itself() {
    on_version(17, "two_systems", two_systems);
}

/// A backup under load, and restores to the end and to a commit.
fn round(site: &Site, ledger: &mut Ledger) -> Result<()> {
    let load = ledger.start_load(&site.production, 3)?;
    load.wait_for(30)?;
    site.archive_all()?;
    let backup = site.backup(&[])?;
    load.wait_for(60)?;
    ledger.finish(load, &site.production)?;
    site.archive_all()?;

    let mut restored = site.restore("latest", &[])?;
    restored.start()?;
    wait_open(&restored)?;
    ledger.compare(&restored, &Target::Latest)?;
    pg_amcheck(&restored)?;

    let commits = ledger.commits();
    // Well behind the backup: whether a transaction had ended before it is asked a little after its end.
    let at = commits.get(commits.len() - 15).context("commits")?;
    ensure!(at.time > backup.stopped_at, "the backup ended too late");
    let target = Target::Xid {
        xid: at.xid,
        inclusive: true,
    };
    let args = options(&target);
    let args: Vec<&str> = args.iter().map(String::as_str).collect();
    let mut restored = site.restore("at_commit", &args)?;
    restored.start()?;
    wait_paused(&restored)?;
    ledger.compare(&restored, &target)
}

fn segments(install: &PgInstall, dir: &TestDir, megabytes: u32) -> Result<()> {
    let size = format!("--wal-segsize={megabytes}");
    let mut site = Site::new(install, dir, |builder| builder.initdb_arg(&size))?;
    site.production.start()?;
    let mut ledger = Ledger::create(&site.production)?;
    round(&site, &mut ledger)
}

fn no_checksums(install: &PgInstall, dir: &TestDir) -> Result<()> {
    let mut site = Site::new(install, dir, |builder| builder.data_checksums(false))?;
    site.production.start()?;
    let mut ledger = Ledger::create(&site.production)?;
    round(&site, &mut ledger)?;
    let backup = site.backups()?.pop().context("a backup")?;
    ensure!(
        backup.json.get("data_checksums") == Some(&Value::Bool(false)),
        "the list should say that pages have no checksums: {}",
        backup.json
    );
    Ok(())
}

/// Bytes of a page.
const PAGE: u64 = 8192;
/// The block that is damaged.
const BLOCK: u64 = 3;

fn damaged_page(install: &PgInstall, dir: &TestDir) -> Result<()> {
    let mut site = Site::new(install, dir, |builder| builder.conf("autovacuum", "off"))?;
    site.production.start()?;
    let mut ledger = Ledger::create(&site.production)?;
    let file = site.production.psql(
        "CREATE TABLE victim AS SELECT n, repeat(md5(n::text), 10) AS text FROM generate_series(1, 1000) AS n;
         CHECKPOINT;
         SELECT pg_relation_filepath('victim')",
    )?;
    site.archive_all()?;
    site.production.stop(StopMode::Fast)?;
    scribble(&site.production.pgdata().join(&file))?;
    site.production.start()?;

    let load = ledger.start_load(&site.production, 2)?;
    load.wait_for(20)?;
    site.walden(&["backup"])?.exited(3)?.naming(&[
        "1 blocks of the cluster are damaged",
        &file,
        "block 3",
    ])?;
    load.wait_for(20)?;
    ledger.finish(load, &site.production)?;
    site.archive_all()?;
    let list = site.list()?;
    ensure!(
        list.pointer("/backups/0/damaged_blocks") == Some(&1.into())
            && list.pointer("/backups/0/damaged/0/path") == Some(&file.as_str().into())
            && list.pointer("/backups/0/damaged/0/block") == Some(&BLOCK.into()),
        "the list should name block {BLOCK} of {file}: {list}"
    );

    let mut restored = site.restore("restored", &[])?;
    restored.start()?;
    wait_open(&restored)?;
    ledger.compare(&restored, &Target::Latest)?;
    let whole = restored.psql(
        "SET zero_damaged_pages = on; SELECT count(*) BETWEEN 900 AND 999 FROM victim WHERE text = repeat(md5(n::text), 10)",
    )?;
    ensure!(whole == "t", "what is not damaged should be restored");
    Ok(())
}

/// Overwrites a part of a page that is not its header.
fn scribble(path: &Path) -> Result<()> {
    fs::OpenOptions::new()
        .write(true)
        .open(path)
        .and_then(|file| file.write_all_at(b"something else", BLOCK * PAGE + PAGE / 2))
        .with_context(|| format!("cannot write {}", path.display()))
}

fn torn_pages(install: &PgInstall, dir: &TestDir) -> Result<()> {
    // Pages leave so small a cache all the time.
    let mut site = Site::new(install, dir, |builder| {
        builder
            .conf("shared_buffers", "1MB")
            .conf("bgwriter_delay", "10ms")
    })?;
    site.production.start()?;
    let mut ledger = Ledger::create(&site.production)?;
    site.production.psql(
        "CREATE TABLE busy (n int PRIMARY KEY, text text) WITH (fillfactor = 50);
         INSERT INTO busy SELECT n, repeat('x', 400) FROM generate_series(1, 40000) AS n",
    )?;
    site.archive_all()?;
    let mut writers = Vec::new();
    for writer in 0..2 {
        let mut client = site.production.connect()?;
        let stop = client.cancel_token();
        let update = format!(
            "DO $$ BEGIN LOOP
               UPDATE busy SET text = repeat(md5(random()::text), 12) WHERE n % 2 = {writer} AND n % 20 = (random() * 19)::int;
               COMMIT;
             END LOOP; END $$"
        );
        let thread = std::thread::spawn(move || client.batch_execute(&update));
        writers.push((stop, thread));
    }
    // Three times, for a page is seldom caught.
    let mut taken = Ok(());
    for _ in 0..3 {
        taken = taken.and_then(|()| site.backup(&["--max-rate=16M"]).map(drop));
    }
    for (stop, thread) in writers {
        stop.cancel_query(walden_testkit::postgres::NoTls)?;
        ensure!(
            thread.join().is_ok_and(|ended| ended.is_err()),
            "a writer ended before it was told to"
        );
    }
    taken?;
    ledger.write(&site.production, 2, 10)?;
    site.archive_all()?;
    for backup in site.backups()? {
        ensure!(
            backup.json.get("damaged_blocks") == Some(&0.into()),
            "nothing is damaged: {}",
            backup.json
        );
    }
    let sums = "SELECT count(*), md5(string_agg(text, ',' ORDER BY n)) FROM busy";
    let mut restored = site.restore("restored", &[])?;
    restored.start()?;
    wait_open(&restored)?;
    ledger.compare(&restored, &Target::Latest)?;
    ensure!(
        restored.psql(sums)? == site.production.psql(sums)?,
        "the busy table is not restored as it was"
    );
    pg_amcheck(&restored)
}

/// As Debian's packages do it: a folder in /etc, and a data directory without configuration.
fn debian(install: &PgInstall, dir: &TestDir) -> Result<()> {
    let mut site = Site::new(install, dir, |builder| {
        builder
            .conf("max_connections", "137")
            .conf("max_locks_per_transaction", "99")
    })?;
    let etc = dir.server_dir("etc")?;
    let pgdata = site.production.pgdata().to_owned();
    let names = ["postgresql.conf", "pg_hba.conf", "pg_ident.conf"];
    for name in names {
        fs::rename(pgdata.join(name), etc.join(name))?;
    }
    dir.server_dir("etc/conf.d")?;
    dir.server_file("etc/conf.d/ours.conf", "work_mem = '5MB'\n")?;
    let place = etc.display();
    let mut conf = fs::read_to_string(etc.join("postgresql.conf"))?;
    conf += &format!(
        "hba_file = '{place}/pg_hba.conf'\nident_file = '{place}/pg_ident.conf'\ninclude_dir = 'conf.d'\n"
    );
    dir.server_file("etc/postgresql.conf", conf)?;
    site.production
        .set_options(&format!("-c config_file={place}/postgresql.conf"));
    site.production.start()?;
    ensure!(
        site.production.psql("SHOW work_mem")? == "5MB",
        "the included file should count"
    );
    let mut ledger = Ledger::create(&site.production)?;
    ledger.write(&site.production, 2, 20)?;
    site.archive_all()?;
    site.backup(&[])?;
    ledger.write(&site.production, 2, 20)?;
    site.archive_all()?;

    let mut restored = site.restore_ignoring("restored", &[], &names)?;
    let kept = dir.join("restored.extras");
    for name in names.into_iter().chain(["conf.d/ours.conf"]) {
        let original = etc.join(name);
        let copy = kept.join(original.strip_prefix("/")?);
        ensure!(
            fs::read(&copy).with_context(|| format!("no {}", copy.display()))?
                == fs::read(&original)?,
            "{name} should be kept as it was"
        );
    }
    restored.start()?;
    wait_open(&restored)?;
    ledger.compare(&restored, &Target::Latest)?;
    for (setting, least) in [("max_connections", 137), ("max_locks_per_transaction", 99)] {
        let found: u32 = restored.psql(&format!("SHOW {setting}"))?.parse()?;
        ensure!(
            found >= least,
            "recovery needs {setting} = {least}, found {found}"
        );
    }
    Ok(())
}

fn targets_in_other_files_do_not_lead_a_restore(install: &PgInstall, dir: &TestDir) -> Result<()> {
    let mut site = Site::new(install, dir, |builder| {
        builder
            .conf("recovery_target_xid", "1000000")
            .conf("recovery_target_inclusive", "off")
            .conf("recovery_target_action", "shutdown")
            .conf("recovery_target_timeline", "current")
            .conf("restore_command", "/bin/false")
    })?;
    site.production.start()?;
    let mut ledger = Ledger::create(&site.production)?;
    site.production.psql(
        "ALTER SYSTEM SET recovery_target_inclusive = off;
         ALTER SYSTEM SET restore_command = 'exit 1';
         ALTER SYSTEM SET archive_cleanup_command = 'exit 1';
         ALTER SYSTEM SET recovery_end_command = 'exit 1';",
    )?;
    ledger.write(&site.production, 2, 20)?;
    site.archive_all()?;
    site.backup(&[])?;
    ledger.write(&site.production, 2, 20)?;
    let point = "it's a \\ \"point\"";
    site.production.psql(&format!(
        "SELECT pg_create_restore_point('{}')",
        point.replace('\'', "''")
    ))?;
    ledger.write(&site.production, 2, 20)?;
    site.archive_all()?;

    let mut restored = site.restore("latest", &[])?;
    let auto = fs::read_to_string(restored.pgdata().join("postgresql.auto.conf"))?;
    ensure!(
        !auto.contains("exit 1"),
        "commands of the backup's time should be taken out: {auto}"
    );
    restored.start()?;
    wait_open(&restored)?;
    ledger.compare(&restored, &Target::Latest)?;

    let mut restored = site.restore("named", &["--target-name", point])?;
    restored.start()?;
    wait_paused(&restored)?;
    ledger.compare(&restored, &Target::Name(point.to_owned()))?;

    let last = ledger.commits().pop().context("commits")?.start;
    let target = Target::Lsn {
        lsn: last,
        inclusive: true,
    };
    let lsn = last.to_string();
    let stopping = ["--target-lsn", &lsn, "--target-action=shutdown"];
    let mut restored = site.restore("stopping", &stopping)?;
    // The server may be gone before pg_ctl sees it.
    let _ = restored.try_start()?;
    let log = restored.wait_exit()?;
    ensure!(
        log.contains("shutdown at recovery target"),
        "the server should stop at its target: {log}"
    );
    ensure!(
        ledger.expected_at(&target)?.len() == ledger.expected_at(&Target::Latest)?.len(),
        "the last commit was the target"
    );
    Ok(())
}

/// As after `pg_upgrade` or a new `initdb`.
fn two_systems(install: &PgInstall, dir: &TestDir) -> Result<()> {
    let mut site = Site::new(install, dir, |builder| builder)?;
    let push = format!(
        "{} --config {} %p",
        site.binaries.path("walden-wal-push").display(),
        dir.join("walden.yaml").display()
    );
    let mut lives = Vec::new();
    for life in ["before", "after"] {
        if life == "after" {
            site.production.stop(StopMode::Fast)?;
            site.production = Cluster::builder(install, dir, "upgraded")
                .conf("fsync", "off")
                .conf("archive_mode", "on")
                .conf("archive_command", &push)
                .build()?;
            site.configure("walden.yaml", &site.production, "")?;
            site.walden(&["init", "--new-system-identifier"])?
                .exited(0)?;
        }
        site.production.start()?;
        let mut ledger = Ledger::create(&site.production)?;
        ledger.write(&site.production, 2, 20)?;
        site.archive_all()?;
        site.backup(&[])?;
        ledger.write(&site.production, 2, 20)?;
        site.archive_all()?;
        let system = site
            .production
            .psql("SELECT system_identifier FROM pg_control_system()")?;
        lives.push((life, ledger, system));
    }
    let systems: Vec<_> = site
        .backups()?
        .into_iter()
        .map(|backup| backup.json.get("system_identifier").cloned())
        .collect();
    let expected: Vec<_> = lives
        .iter()
        .map(|(_, _, system)| Some(Value::from(system.as_str())))
        .collect();
    ensure!(
        systems == expected,
        "one backup of each system expected: {systems:?}"
    );
    let mut asked = Vec::new();
    for (life, ledger, system) in &lives {
        asked.push((*life, ledger, vec!["--system-identifier", system]));
    }
    // Not asked, it is the one that was registered last.
    let (_, last, _) = lives.last().context("two lives")?;
    asked.push(("unasked", last, Vec::new()));
    for (name, ledger, args) in asked {
        let mut restored = site.restore(name, &args)?;
        restored.start()?;
        wait_open(&restored)?;
        ledger
            .compare(&restored, &Target::Latest)
            .with_context(|| format!("{name}: restore {args:?}"))?;
    }
    Ok(())
}
