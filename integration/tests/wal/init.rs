//! `walden init`: once, again, and for another system identifier.

use std::fs;

use anyhow::{Context, Result, ensure};
use walden_testkit::{Cluster, PgInstall, TestDir};

use crate::bench::{Bench, read};

super::on_17!(
    init_again_changes_nothing,
    another_system_identifier_is_registered_only_on_an_explicit_word,
    init_makes_no_repository_where_another_one_should_be_mounted,
    inits_at_the_same_time_register_one_cluster_once,
);

fn init_again_changes_nothing(install: &PgInstall, dir: &TestDir) -> Result<()> {
    let bench = Bench::new(install, dir)?;
    let before = bench.objects()?;
    ensure!(
        before.len() == 2,
        "the root document and one registration should stand, found {}",
        before.len()
    );
    let again = bench.walden(&["init"])?.exits(0)?;
    ensure!(
        again.stdout.contains("already"),
        "it should be said that nothing was to be done: {}",
        again.stdout
    );
    ensure!(bench.objects()? == before, "the ids should be the same");
    Ok(())
}

fn another_system_identifier_is_registered_only_on_an_explicit_word(
    install: &PgInstall,
    dir: &TestDir,
) -> Result<()> {
    let mut bench = Bench::new(install, dir)?;
    let (old, old_content) = bench.segment(0)?;
    bench.archive(&old)?.exits(0)?;
    let before = bench.objects()?;
    let other = Cluster::builder(install, dir, "other").build()?;
    let old_pgdata = std::mem::replace(&mut bench.pgdata, other.pgdata().to_owned());
    bench.configure("")?;
    bench
        .walden(&["init"])?
        .exits(1)?
        .says(&["\"main\"", "--new-system-identifier"])?;
    ensure!(bench.objects()? == before, "nothing should be registered");
    let first = "000000010000000000000001";
    bench.archive(first)?.exits(1)?.says(&["walden init"])?;

    bench
        .walden(&["init", "--new-system-identifier"])?
        .exits(0)?;
    bench
        .walden(&["init", "--new-system-identifier"])?
        .exits(0)?;
    bench.walden(&["init"])?.exits(0)?;
    ensure!(
        fs::read_dir(bench.mount.join("main/identity"))?.count() == 2,
        "both system identifiers should be registered"
    );
    bench.archive(first)?.exits(0)?;
    bench.gives(first, &read(bench.pg_wal(first))?)?;
    // The old cluster goes on, with its own archive.
    bench.pgdata = old_pgdata;
    bench.gives(&old, &old_content)?;
    let (next, next_content) = bench.segment(1)?;
    bench.archive(&next)?.exits(0)?;
    bench.gives(&next, &next_content)?;

    // Where no data directory says which of the two is meant, nothing is guessed.
    let mut fetch = bench.command(&[], "walden-wal-fetch", &[&old, "RECOVERYXLOG"])?;
    fetch.current_dir(bench.dir.server_dir("nowhere")?);
    crate::bench::Answer::of(fetch)?
        .exits(203)?
        .says(&["--pgdata"])?;
    Ok(())
}

fn init_makes_no_repository_where_another_one_should_be_mounted(
    install: &PgInstall,
    dir: &TestDir,
) -> Result<()> {
    let bench = Bench::new(install, dir)?;
    let root = fs::read_to_string(bench.mount.join("walden.json"))?;
    let (_, id) = root
        .split_once("\"repository_id\":")
        .context("the root document's id")?;
    let id: String = id
        .chars()
        .filter(char::is_ascii_hexdigit)
        .take(32)
        .collect();
    bench.configure_repository(&format!(", id: {id}"), "")?;
    bench.walden(&["init"])?.exits(0)?;
    bench.unmount()?;
    bench.walden(&["init"])?.exits(1)?.says(&[&id, "mount"])?;
    ensure!(
        fs::read_dir(&bench.mount)?.next().is_none(),
        "nothing should be written into the empty mount point"
    );
    fs::remove_dir(&bench.mount)?;
    bench.walden(&["init"])?.exits(1)?.says(&[&id])?;
    ensure!(!bench.mount.exists(), "no folder should be made");
    fs::create_dir(&bench.mount)?;
    bench.mount_again()?;
    bench.walden(&["init"])?.exits(0)?;
    Ok(())
}

fn inits_at_the_same_time_register_one_cluster_once(
    install: &PgInstall,
    dir: &TestDir,
) -> Result<()> {
    let bench = Bench::unregistered(install, dir)?;
    for _ in 0..10 {
        let mut running = Vec::new();
        for _ in 0..3 {
            let mut init = bench.command(&[], "walden", &["init"])?;
            init.stdout(std::process::Stdio::piped());
            init.stderr(std::process::Stdio::piped());
            running.push(init.spawn()?);
        }
        for init in running {
            let output = init.wait_with_output()?;
            ensure!(
                output.status.success(),
                "each init should succeed: {}",
                String::from_utf8_lossy(&output.stderr)
            );
        }
        ensure!(
            bench.objects()?.len() == 2,
            "one root document and one registration should stand"
        );
        for entry in fs::read_dir(&bench.mount)? {
            let path = entry?.path();
            if path.is_dir() {
                fs::remove_dir_all(&path)?;
            } else {
                fs::remove_file(&path)?;
            }
        }
    }
    Ok(())
}
