//! Pushes that take the next ready files along, and the marks they leave.
#![expect(
    clippy::print_stderr,
    reason = "a test says what it skipped, and with which seed it ran"
)]

#[path = "wal/bench.rs"]
#[allow(dead_code)]
mod bench;

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, SystemTime};

use anyhow::{Context, Result, ensure};
use bench::{Answer, Bench, copy, read};
use walden_testkit::{
    Binaries, Cluster, ClusterBuilder, PgInstall, StopMode, TestDir, own_by_server, poll,
};

const MARKS: &str = "pg_wal/walden.ahead";
const BY_EARLIER_CALL: &str = "archived already, by an earlier call";
const COMPARED: &str = "archived already, with the same bytes";

macro_rules! on_17 {
    ($($test:ident),+ $(,)?) => {
        mod on_17 {
            $(
                #[test]
                fn $test() {
                    walden_testkit::on_version(17, stringify!($test), super::$test);
                }
            )+
        }
    };
}

on_17!(
    what_has_waited_is_archived_in_order_and_each_byte_of_it,
    a_mark_ends_with_its_call,
    a_mark_of_another_file_is_not_believed,
    a_recycled_segment_keeps_its_inode_and_changes_its_time,
    a_copied_clusters_marks_are_not_believed,
    a_mark_is_not_believed_of_another_repository,
    a_conflict_on_the_way_is_its_own_calls,
    what_is_not_ready_is_not_taken_along,
    under_a_backlog_another_level_is_used,
    a_push_killed_at_any_system_call_leaves_no_gap_and_no_lie,
    memory_has_a_bound_however_much_waits,
);

/// A host without a server, with four segments that its PostgreSQL has ready.
fn host<'a>(install: &'a PgInstall, dir: &'a TestDir, more: &str) -> Result<Bench<'a>> {
    let bench = Bench::new(install, dir)?;
    bench.configure(more)?;
    dir.server_dir("pgdata/pg_wal/archive_status")?;
    for segment in &bench.wal.segments {
        bench.put(&ready(&bench, segment), b"")?;
    }
    settle(&bench.pgdata)?;
    Ok(bench)
}

fn ready(bench: &Bench, name: &str) -> PathBuf {
    bench.pg_wal(&format!("archive_status/{name}.ready"))
}

/// Waits until no file of `pg_wal` has just been changed: those are left to their own calls.
fn settle(pgdata: &Path) -> Result<()> {
    poll("files that are not quite new", || {
        for entry in fs::read_dir(pgdata.join("pg_wal"))? {
            let metadata = entry?.metadata()?;
            let nanoseconds = u32::try_from(metadata.ctime_nsec())?;
            let changed = SystemTime::UNIX_EPOCH
                + Duration::new(u64::try_from(metadata.ctime())?, nanoseconds);
            let age = SystemTime::now().duration_since(changed);
            if metadata.is_file() && !age.is_ok_and(|age| age > Duration::from_millis(150)) {
                return Ok(None);
            }
        }
        Ok(Some(()))
    })
}

/// The names in a folder, in order; none where there is no folder.
fn names(folder: &Path) -> Result<Vec<String>> {
    let mut names = Vec::new();
    if folder.exists() {
        for entry in fs::read_dir(folder)? {
            names.push(entry?.file_name().to_string_lossy().into_owned());
        }
    }
    names.sort();
    Ok(names)
}

fn marks(bench: &Bench) -> Result<Vec<String>> {
    names(&bench.pgdata.join(MARKS))
}

/// Pushes the first segment: the three others are taken along.
fn take_along(bench: &Bench) -> Result<[String; 4]> {
    let names = four(bench)?;
    bench
        .archive(&names[0])?
        .exits(0)?
        .says(&["3 more files archived with it"])?;
    ensure!(
        marks(bench)? == names[1..],
        "each file that was taken along should have a mark, found {:?}",
        marks(bench)?
    );
    Ok(names)
}

fn four(bench: &Bench) -> Result<[String; 4]> {
    let names = bench.wal.segments.clone();
    names
        .try_into()
        .ok()
        .context("the bench should have four segments")
}

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

/// A running server of segments of 1 MB that archives nothing yet.
fn server(
    install: &PgInstall,
    dir: &TestDir,
    customize: impl FnOnce(ClusterBuilder) -> ClusterBuilder,
) -> Result<Cluster> {
    let builder = Cluster::builder(install, dir, "server")
        .initdb_arg("--wal-segsize=1")
        .conf("fsync", "off")
        .conf("min_wal_size", "2MB")
        .conf("archive_mode", "on")
        // Without a command the archiver waits.
        .conf("archive_command", "");
    let mut cluster = customize(builder).build()?;
    cluster.start()?;
    cluster.psql("CREATE TABLE t (n int, text text)")?;
    Ok(cluster)
}

/// Writes some WAL and ends its segment.
fn segment(cluster: &Cluster, round: i32) -> Result<String> {
    cluster.psql(&format!(
        "INSERT INTO t SELECT {round}, md5(g::text) FROM generate_series(1, 2000) g"
    ))?;
    cluster.switch_wal()
}

/// Makes a repository and registers the cluster: the configuration's file, and the repository's folder.
fn repository(
    install: &PgInstall,
    dir: &TestDir,
    binaries: &Binaries,
    cluster: &Cluster,
) -> Result<(PathBuf, PathBuf)> {
    let repository = dir.server_dir("repository")?;
    let config = dir.server_file(
        "walden.yaml",
        format!(
            "clusters: {{ main: {{ pgdata: {} }} }}\nrepositories: [{{ name: here, path: {} }}]\n",
            cluster.pgdata().display(),
            repository.display()
        ),
    )?;
    let mut init = binaries.command(install, "walden")?;
    init.args(["init", "--config"]).arg(&config);
    Answer::of(init)?.exits(0)?;
    Ok((config, repository))
}

fn a_mark_ends_with_its_call(install: &PgInstall, dir: &TestDir) -> Result<()> {
    let bench = host(install, dir, "")?;
    let files = take_along(&bench)?;
    fs::remove_file(ready(&bench, &files[0]))?;
    let objects = bench.objects()?;
    bench
        .archive(&files[1])?
        .exits(0)?
        .says(&[BY_EARLIER_CALL])?;
    ensure!(
        marks(&bench)? == files[2..],
        "the mark of {} should be gone, found {:?}",
        files[1],
        marks(&bench)?
    );
    // PostgreSQL crashed before it wrote down that the file is archived.
    bench.archive(&files[1])?.exits(0)?.says(&[COMPARED])?;
    ensure!(
        bench.objects()? == objects,
        "what is archived should stay as it is"
    );
    // The marks of files that are done by other means go with the next batch; so does what a killed call left.
    for done in &files[2..] {
        fs::remove_file(ready(&bench, done))?;
    }
    let half = bench.pgdata.join(MARKS).join(format!("{}.5f", files[3]));
    bench.put(&half, b"half")?;
    bench.archive(&files[1])?.exits(0)?.says(&[COMPARED])?;
    ensure!(
        marks(&bench)?.is_empty(),
        "no mark should be left where no file is ready, found {:?}",
        marks(&bench)?
    );
    for name in &files {
        bench.gives(name, &read(bench.pg_wal(name))?)?;
    }
    Ok(())
}

fn a_mark_of_another_file_is_not_believed(install: &PgInstall, dir: &TestDir) -> Result<()> {
    let bench = host(install, dir, "")?;
    let files = take_along(&bench)?;

    // Renamed away and back, as recycling renames: name, inode and size are the same.
    let (file, aside) = (bench.pg_wal(&files[1]), bench.pg_wal("aside"));
    fs::rename(&file, &aside)?;
    fs::rename(&aside, &file)?;
    bench
        .archive(&files[1])?
        .exits(0)?
        .never_says(BY_EARLIER_CALL)?
        .says(&[COMPARED])?;

    // Other bytes, in place.
    let mut other = read(bench.pg_wal(&files[2]))?;
    *other.get_mut(700_000).context("a byte")? ^= 1;
    fs::write(bench.pg_wal(&files[2]), &other)?;
    bench
        .archive(&files[2])?
        .exits(1)?
        .says(&["other bytes", &files[2]])?;

    // A torn mark, and one of another file.
    let mark = bench.pgdata.join(MARKS).join(&files[3]);
    let whole = read(&mark)?;
    for length in [0, 1, whole.len() / 2, whole.len() - 1] {
        bench.put(&mark, whole.get(..length).unwrap_or_default())?;
        bench
            .archive(&files[3])?
            .exits(0)?
            .never_says(BY_EARLIER_CALL)?;
        ensure!(
            !marks(&bench)?.contains(&files[3]),
            "a mark that is not believed should be removed"
        );
    }
    bench.put(&mark, &whole)?;
    bench
        .archive(&files[3])?
        .exits(0)?
        .says(&[BY_EARLIER_CALL])
        .context(
            "the whole mark, to show that only what was changed made the others unbelievable",
        )?;
    bench.put(&bench.pgdata.join(MARKS).join(&files[0]), &whole)?;
    bench
        .archive(&files[0])?
        .exits(0)?
        .never_says(BY_EARLIER_CALL)
        .map(drop)
}

fn a_recycled_segment_keeps_its_inode_and_changes_its_time(
    install: &PgInstall,
    dir: &TestDir,
) -> Result<()> {
    // Archives without Walden: what is believed of a segment, and when it is recycled, is what is looked at.
    let cluster = server(install, dir, |cluster| {
        cluster
            .conf("wal_keep_size", "0")
            .conf("min_wal_size", "32MB")
            .conf("archive_command", "true")
    })?;
    let mut before = BTreeMap::new();
    let mut last = String::new();
    for round in 0..8 {
        last = segment(&cluster, round)?;
        let metadata = fs::metadata(cluster.pgdata().join("pg_wal").join(&last))?;
        before.insert(
            metadata.ino(),
            (
                last.clone(),
                metadata.ctime(),
                metadata.ctime_nsec(),
                metadata.len(),
            ),
        );
    }
    cluster.wait_archived(&last)?;
    cluster.psql("CHECKPOINT")?;
    let mut recycled = 0;
    for name in names(&cluster.pgdata().join("pg_wal"))? {
        let metadata = fs::metadata(cluster.pgdata().join("pg_wal").join(&name))?;
        let Some((was, seconds, nanoseconds, size)) = before.get(&metadata.ino()) else {
            continue;
        };
        if *was == name {
            continue;
        }
        recycled += 1;
        ensure!(
            metadata.len() == *size
                && (metadata.ctime(), metadata.ctime_nsec()) != (*seconds, *nanoseconds),
            "{was} that was recycled as {name} should have its size and another change time"
        );
    }
    ensure!(
        recycled > 0,
        "the checkpoint should have recycled segments under new names"
    );
    Ok(())
}

fn a_copied_clusters_marks_are_not_believed(install: &PgInstall, dir: &TestDir) -> Result<()> {
    let bench = host(install, dir, "")?;
    let files = take_along(&bench)?;
    let whole = dir.join("copied");
    copy(&bench.pgdata, &whole)?;
    ensure!(
        names(&whole.join(MARKS))? == files[1..],
        "the copy should have the marks"
    );
    let push = |name: &str| -> Result<Answer> {
        let mut push = bench.command(&[], "walden-wal-push", &[&format!("pg_wal/{name}")])?;
        push.current_dir(&whole);
        Answer::of(push)
    };
    push(&files[1])?
        .exits(0)?
        .never_says(BY_EARLIER_CALL)?
        .says(&[COMPARED])?;
    let file = whole.join("pg_wal").join(&files[2]);
    let mut other = read(&file)?;
    *other.get_mut(700_000).context("a byte")? ^= 1;
    fs::write(&file, other)?;
    push(&files[2])?.exits(1)?.says(&["other bytes"])?;

    // Of a cluster that was made anew in its place, even one mark whose words all fit but the identifier is not believed.
    let control = bench.pgdata.join("global/pg_control");
    let mut bytes = read(&control)?;
    *bytes.get_mut(0).context("a byte")? ^= 1;
    bench.put(&control, &bytes)?;
    let name = &files[3];
    let mut segment = read(bench.pg_wal(name))?;
    *segment.get_mut(24).context("the header's identifier")? ^= 1;
    fs::write(bench.pg_wal(name), segment)?;
    bench
        .archive(name)?
        .exits(1)?
        .says(&["is not registered", "walden init"])
        .map(drop)
}

fn a_mark_is_not_believed_of_another_repository(install: &PgInstall, dir: &TestDir) -> Result<()> {
    let bench = host(install, dir, "")?;
    let files = take_along(&bench)?;

    // Not mounted.
    bench.unmount()?;
    bench.archive(&files[1])?.exits(1)?.says(&["walden.json"])?;
    // Another one in its place.
    bench.walden(&["init"])?.exits(0)?;
    bench
        .archive(&files[2])?
        .exits(0)?
        .never_says("archived already")?;
    ensure!(
        bench.object(&files[2])?.exists(),
        "the file should be in the repository that is there now"
    );
    fs::rename(&bench.mount, dir.join("other"))?;
    fs::rename(dir.join("away"), &bench.mount)?;

    // The right one, without the object, or with another one in its place.
    let mark = bench.pgdata.join(MARKS).join(&files[3]);
    bench.archive(&files[0])?.exits(0)?;
    let whole = read(&mark)?;
    let object = bench.object(&files[3])?;
    let bytes = read(&object)?;
    fs::remove_file(&object)?;
    bench
        .archive(&files[3])?
        .exits(0)?
        .never_says("archived already")?;
    ensure!(object.exists(), "the missing object should be stored again");
    bench.put(&object, bytes.get(1..).unwrap_or_default())?;
    bench.put(&mark, &whole)?;
    bench
        .archive(&files[3])?
        .exits(1)?
        .says(&["damaged"])
        .map(drop)
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

/// What changes files, in groups in which strace counts, and how far to go each time.
const CALLS: &[(&str, usize)] = &[
    ("write,pwrite64,writev", 2),
    ("fsync,fdatasync", 1),
    ("link,linkat,rename,renameat,renameat2", 1),
    ("unlink,unlinkat", 1),
    ("mkdir,mkdirat", 1),
    ("openat", 7),
];

fn a_push_killed_at_any_system_call_leaves_no_gap_and_no_lie(
    install: &PgInstall,
    dir: &TestDir,
) -> Result<()> {
    let bench = host(install, dir, "push: { ahead: 2 }")?;
    let files = four(&bench)?;
    let taken = &files[..3];
    let contents: Vec<Vec<u8>> = taken
        .iter()
        .map(|name| read(bench.pg_wal(name)))
        .collect::<Result<_>>()?;
    let mut prefixes = [0; 4];
    for (calls, step) in CALLS {
        for n in (1..400).step_by(*step) {
            for folder in [
                bench.cluster_folder()?,
                bench.mount.join(".tmp"),
                bench.pgdata.join(MARKS),
            ] {
                if folder.exists() {
                    fs::remove_dir_all(folder)?;
                }
            }
            let when = format!("killed at call {n} of {calls}");
            let file = format!("pg_wal/{}", taken[0]);
            let (trace, inject) = (
                format!("trace={calls}"),
                format!("inject={calls}:signal=SIGKILL:when={n}"),
            );
            let options = [
                "strace",
                "-f",
                "-qqq",
                "-o",
                "/dev/null",
                "-e",
                &trace,
                "-e",
                "signal=none",
                "-e",
                &inject,
            ];
            let ended = Answer::of(bench.command(&options, "walden-wal-push", &[&file])?)?;
            let killed = ended.killed_by(9);
            if !killed {
                ended.exits(0)?;
            }
            let stand = taken
                .iter()
                .map(|name| Ok(bench.object(name)?.exists()))
                .collect::<Result<Vec<_>>>()?;
            let prefix = stand.iter().take_while(|stands| **stands).count();
            ensure!(
                stand.iter().skip(prefix).all(|stands| !stands),
                "no file should be archived before those in front of it, {when}: {stand:?}"
            );
            for (name, stands) in taken.iter().zip(&stand) {
                ensure!(
                    *stands || !bench.pgdata.join(MARKS).join(name).exists(),
                    "{name} should not be marked before it is archived, {when}"
                );
            }
            if let Some(count) = prefixes.get_mut(prefix) {
                *count += 1;
            }
            for (name, content) in taken.iter().zip(&contents) {
                bench
                    .archive(name)?
                    .exits(0)
                    .with_context(|| format!("{name} after a push {when}"))?;
                ensure!(
                    bench.unzstd(&bench.object(name)?)? == *content,
                    "{name} should be archived as it is after a push {when}"
                );
            }
            if !killed {
                break;
            }
        }
    }
    ensure!(
        prefixes.iter().all(|count| *count > 0),
        "kills should have been tried at each stage of the batch: {prefixes:?}"
    );
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
