//! What is taken along, in which order, and with how much memory.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::process::Command;
use std::time::{Duration, SystemTime};

use anyhow::{Context, Result, ensure};
use walden_testkit::{Binaries, PgInstall, StopMode, TestDir, own_by_server};

use crate::bench::{Answer, read};
use crate::{
    BY_EARLIER_CALL, MARKS, four, host, marks, names, ready, repository, segment, server, settle,
};

super::on_17!(
    what_has_waited_is_archived_in_order_and_each_byte_of_it,
    a_conflict_on_the_way_is_its_own_calls,
    what_is_not_ready_is_not_taken_along,
    under_a_backlog_another_level_is_used,
    two_pushes_that_take_the_same_files_along_agree,
    memory_has_a_bound_however_much_waits,
);

fn what_has_waited_is_archived_in_order_and_each_byte_of_it(
    install: &PgInstall,
    dir: &TestDir,
) -> Result<()> {
    let binaries = Binaries::stage(dir)?;
    let mut cluster = server(install, dir, |cluster| cluster)?;
    for round in 0..30 {
        segment(&cluster, round)?;
    }
    // A backup's history, and a promotion's history and partial segment, wait among the segments.
    cluster.psql("SELECT pg_backup_start('ahead', true); SELECT pg_backup_stop(false); CREATE TABLE unfinished ()")?;
    cluster.stop(StopMode::Immediate)?;
    cluster.append("standby.signal", "")?;
    cluster.start()?;
    cluster.promote()?;
    for round in 0..10 {
        segment(&cluster, round)?;
    }
    let pg_wal = cluster.pgdata().join("pg_wal");
    let mut waiting = BTreeMap::new();
    for name in names(&pg_wal.join("archive_status"))? {
        if let Some(name) = name.strip_suffix(".ready") {
            waiting.insert(name.to_owned(), read(pg_wal.join(name))?);
        }
    }
    let kinds = [".history", ".partial", ".backup"];
    ensure!(
        waiting.len() >= 42
            && kinds
                .iter()
                .all(|kind| waiting.keys().any(|name| name.ends_with(kind))),
        "files of every kind should wait, found {:?}",
        waiting.keys()
    );
    settle(cluster.pgdata())?;

    let (config, repository) = repository(install, dir, &binaries, &cluster)?;
    let command = format!(
        "{} --config {} %p",
        binaries.path("walden-wal-push").display(),
        config.display()
    );
    cluster.set("archive_command", &command)?;
    cluster.psql("SELECT pg_reload_conf()")?;
    for name in waiting.keys() {
        cluster.wait_archived(name)?;
    }
    ensure!(
        cluster.psql("SELECT failed_count FROM pg_stat_archiver")? == "0",
        "no push should fail"
    );

    let log = cluster.log();
    let taken = log.matches(BY_EARLIER_CALL).count();
    ensure!(
        taken >= 30,
        "most files should have been taken along by other calls, and {taken} were:\n{log}"
    );
    for name in waiting.keys() {
        ensure!(
            !names(&cluster.pgdata().join(MARKS))?.contains(name),
            "the mark of {name} should be gone once PostgreSQL knows"
        );
    }

    // Objects in the order in which they got their names: the archiver's.
    let mut objects = Vec::new();
    let mut folders = vec![repository.join("main")];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(&folder)? {
            let (path, metadata) = entry.and_then(|entry| Ok((entry.path(), entry.metadata()?)))?;
            if metadata.is_dir() {
                folders.push(path);
            } else if let Some(name) = path.file_name().and_then(|name| name.to_str()) {
                objects.push((name.to_owned(), metadata.ctime(), metadata.ctime_nsec()));
            }
        }
    }
    let when = |name: &str| {
        let object = format!("{name}.zst");
        let object = objects.iter().find(|(found, _, _)| *found == object);
        object
            .map(|(_, seconds, nanoseconds)| (*seconds, *nanoseconds))
            .with_context(|| format!("{name} should be archived, found {objects:?}"))
    };
    let mut before = (String::new(), (0, 0));
    let (histories, others): (Vec<_>, Vec<_>) =
        waiting.keys().partition(|name| name.ends_with(".history"));
    for name in histories.into_iter().chain(others) {
        // These are not taken along, and come in their own turn.
        if name.ends_with(".backup") || name.ends_with(".partial") {
            continue;
        }
        let now = (name.clone(), when(name)?);
        ensure!(
            before.1 <= now.1,
            "objects should appear in the archiver's order, but {before:?} came after {now:?}"
        );
        before = now;
    }

    for (name, content) in &waiting {
        if name.ends_with(".partial") {
            continue;
        }
        let destination = dir.join("fetched");
        let fetched = Answer::of({
            let mut fetch = binaries.command(install, "walden-wal-fetch")?;
            fetch
                .arg("--config")
                .arg(&config)
                .arg(name)
                .arg(&destination)
                .current_dir(cluster.pgdata());
            fetch
        })?;
        fetched.exits(0)?;
        ensure!(
            read(&destination)? == *content,
            "{name} should come back as it was"
        );
    }
    Ok(())
}

fn a_conflict_on_the_way_is_its_own_calls(install: &PgInstall, dir: &TestDir) -> Result<()> {
    let bench = host(install, dir, "")?;
    let files = four(&bench)?;
    let mut other = read(bench.pg_wal(&files[2]))?;
    *other.get_mut(700_000).context("a byte")? ^= 1;
    let rival = bench.elsewhere("rival", &files[2], &other)?;
    bench.push(&rival)?.exits(0)?;

    bench
        .archive(&files[0])?
        .exits(0)?
        .says(&["1 more files archived with it"])?;
    ensure!(
        marks(&bench)? == [files[1].clone()] && !bench.object(&files[3])?.exists(),
        "what cannot be archived should end the batch before {}, found marks {:?}",
        files[3],
        marks(&bench)?
    );
    bench
        .archive(&files[1])?
        .exits(0)?
        .says(&[BY_EARLIER_CALL])?;
    bench
        .archive(&files[2])?
        .exits(1)?
        .says(&["other bytes", "--quarantine"])?;
    bench.gives(&files[2], &other)
}

fn what_is_not_ready_is_not_taken_along(install: &PgInstall, dir: &TestDir) -> Result<()> {
    let bench = host(install, dir, "push: { ahead: 0 }")?;
    let files = four(&bench)?;
    bench
        .archive(&files[0])?
        .exits(0)?
        .never_says("more files")?;
    ensure!(
        !bench.pgdata.join(MARKS).exists() && !bench.object(&files[1])?.exists(),
        "nothing should be taken along where that is switched off"
    );

    // A person pushes what PostgreSQL does not ask for.
    bench.configure("push: { ahead: 2 }")?;
    fs::remove_file(ready(&bench, &files[0]))?;
    bench
        .archive(&files[0])?
        .exits(0)?
        .never_says("more files")?;
    bench.put(&ready(&bench, &files[0]), b"")?;

    // Written just now: whether it stays as it is cannot be told yet.
    let bytes = read(bench.pg_wal(&files[2]))?;
    let future = SystemTime::now() + Duration::from_secs(3600);
    fs::write(bench.pg_wal(&files[2]), bytes)?;
    let answer = bench.archive(&files[0])?.exits(0)?;
    let stored = bench.object(&files[2])?.exists();
    let age = SystemTime::now()
        .duration_since(fs::metadata(bench.pg_wal(&files[2]))?.modified()?)
        .unwrap_or_default();
    ensure!(
        future > SystemTime::now() && (!stored || age > Duration::from_millis(100)),
        "a file that is {age:?} old should be left to its own call:\n{}",
        answer.stderr
    );

    // Two, and not more.
    settle(&bench.pgdata)?;
    bench
        .archive(&files[0])?
        .exits(0)?
        .says(&["2 more files archived with it"])?;
    ensure!(
        marks(&bench)? == files[1..3] && !bench.object(&files[3])?.exists(),
        "two files should be taken along, found {:?}",
        marks(&bench)?
    );
    Ok(())
}

fn under_a_backlog_another_level_is_used(install: &PgInstall, dir: &TestDir) -> Result<()> {
    let mut sizes = Vec::new();
    let bench = host(install, dir, "")?;
    let files = four(&bench)?;
    for ahead in [2, 3] {
        bench.configure(&format!(
            "compression: {{ level: 15 }}\npush: {{ ahead: {ahead}, backlog_level: -7 }}"
        ))?;
        for folder in [bench.cluster_folder()?, bench.pgdata.join(MARKS)] {
            if folder.exists() {
                fs::remove_dir_all(folder)?;
            }
        }
        bench.archive(&files[0])?.exits(0)?;
        sizes.push(fs::metadata(bench.object(&files[1])?)?.len());
        bench.gives(&files[1], &read(bench.pg_wal(&files[1]))?)?;
    }
    ensure!(
        sizes[0] > sizes[1],
        "a backlog should be compressed faster and less: {} bytes of a file when more wait than are taken along, {} when not",
        sizes[0],
        sizes[1]
    );
    Ok(())
}

fn two_pushes_that_take_the_same_files_along_agree(
    install: &PgInstall,
    dir: &TestDir,
) -> Result<()> {
    let bench = host(install, dir, "")?;
    let files = four(&bench)?;
    for round in 0..10 {
        for folder in [bench.cluster_folder()?, bench.pgdata.join(MARKS)] {
            if folder.exists() {
                fs::remove_dir_all(folder)?;
            }
        }
        let (first, second) = std::thread::scope(|scope| {
            let second = scope.spawn(|| bench.archive(&files[0]));
            (bench.archive(&files[0]), second.join())
        });
        first?.exits(0)?;
        let second = second.map_err(|_| anyhow::anyhow!("a thread of the test broke off"))?;
        second?.exits(0)?;
        for name in &files {
            bench
                .archive(name)?
                .exits(0)
                .with_context(|| format!("round {round}"))?;
            ensure!(
                bench.unzstd(&bench.object(name)?)? == read(bench.pg_wal(name))?,
                "{name} should be archived as it is in round {round}"
            );
        }
    }
    Ok(())
}

/// Runs a command and says on its standard output how much memory it had at most, in KiB.
const MEASURE: &str = "import resource, subprocess, sys
ended = subprocess.run(sys.argv[1:])
print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)
sys.exit(ended.returncode)";

fn memory_has_a_bound_however_much_waits(install: &PgInstall, dir: &TestDir) -> Result<()> {
    const BOUND: u64 = 128 * 1024;
    let binaries = Binaries::stage(dir)?;
    let mut cluster = server(install, dir, |cluster| {
        cluster
            .initdb_arg("--wal-segsize=16")
            .conf("min_wal_size", "32MB")
    })?;
    cluster
        .psql("CREATE TABLE random AS SELECT gen_random_uuid() FROM generate_series(1, 1000000)")?;
    for round in 0..64 {
        segment(&cluster, round)?;
    }
    cluster.stop(StopMode::Fast)?;
    let (config, repository) = repository(install, dir, &binaries, &cluster)?;
    settle(cluster.pgdata())?;
    let status = cluster.pgdata().join("pg_wal/archive_status");
    for level in [1, 19] {
        let mut text = fs::read_to_string(&config)?;
        text.truncate(text.find("push:").map_or(text.len(), |at| at));
        fs::write(
            &config,
            format!("{text}push: {{ ahead: 64 }}\ncompression: {{ level: {level} }}\n"),
        )?;
        own_by_server(&config)?;
        let ready: Vec<String> = names(&status)?
            .iter()
            .filter_map(|name| name.strip_suffix(".ready").map(str::to_owned))
            .collect();
        ensure!(ready.len() > 48, "many files should wait: {ready:?}");
        let mut measured = walden_testkit::run_as_server(Command::new("python3"))?;
        measured
            .args(["-c", MEASURE])
            .arg(binaries.path("walden-wal-push"))
            .arg("--config")
            .arg(&config)
            .arg(format!("pg_wal/{}", ready.first().context("a file")?))
            .current_dir(cluster.pgdata());
        let answer = Answer::of(measured)?.exits(0)?;
        let most: u64 = answer.stdout.trim().parse()?;
        ensure!(
            most < BOUND,
            "a push at level {level} with {} files waiting should have at most {BOUND} KiB, and had {most}",
            ready.len()
        );
        fs::remove_dir_all(cluster.pgdata().join(MARKS))?;
        let identity = read(cluster.pgdata().join("global/pg_control"))?;
        let identity = u64::from_le_bytes(*identity.first_chunk().context("pg_control")?);
        fs::remove_dir_all(repository.join("main").join(identity.to_string()))?;
        // The highest level takes long over what can hardly be compressed.
        for name in ready.iter().take(8) {
            fs::remove_file(status.join(format!("{name}.ready")))?;
        }
    }
    Ok(())
}
