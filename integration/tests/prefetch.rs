//! Segments that lie ready before PostgreSQL asks: used in recovery, and never believed where they are not what is asked for.

use std::fs::{self, File};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use walden_integration::{Said, Site, wait_open, wait_paused};
use walden_testkit::{
    Cluster, PgInstall, StopMode, TestDir, own_by_server, poll, run, run_as_server,
};

/// Makes a `#[test]` of each named function, on PostgreSQL 17.
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

/// The last version whose server leaves its descriptors to the commands that it runs.
#[test]
fn nothing_of_an_older_server_stays_open() {
    walden_testkit::on_version(
        15,
        "nothing_of_an_older_server_stays_open",
        a_paused_server_stops_at_once_and_nothing_stays_behind,
    );
}

on_17!(
    a_standby_follows_with_it_and_without,
    a_recovery_takes_its_segments_from_what_lies_ready,
    what_lies_ready_of_one_timeline_is_not_taken_for_another,
    an_outage_is_no_end_of_the_archive,
    a_paused_server_stops_at_once_and_nothing_stays_behind,
    what_was_not_proven_for_this_file_is_not_handed_over,
    no_more_lies_ready_than_the_configuration_allows,
    killed_at_any_moment_it_is_replaced,
);

/// Segments of 1 MiB, `count` of them archived behind a base backup. Each has rows of its own.
fn site<'a>(
    install: &'a PgInstall,
    dir: &'a TestDir,
    count: usize,
) -> Result<(Site<'a>, Vec<String>)> {
    let mut site = Site::new(install, dir, |builder| {
        builder.initdb_arg("--wal-segsize=1")
    })?;
    site.production.start()?;
    site.production
        .psql("CREATE TABLE rows (segment int, text text)")?;
    site.archive_all()?;
    site.backup(&[])?;
    let mut segments = Vec::new();
    for number in 0..count {
        segments.push(write(&site.production, number)?);
    }
    site.production
        .wait_archived(segments.last().context("segments")?)?;
    Ok((site, segments))
}

/// Fills the present segment with rows and ends it.
fn write(cluster: &Cluster, number: usize) -> Result<String> {
    cluster.psql(&format!(
        "INSERT INTO rows SELECT {number}, md5(g::text) FROM generate_series(1, 3000) g"
    ))?;
    cluster.switch_wal()
}

/// How many rows each segment has brought, as text.
const ROWS: &str = "SELECT count(*), sum(segment), min(text), max(text) FROM rows";

/// The segments that a log says were restored, and whether they had been prefetched.
fn restored(log: &str) -> Vec<(String, bool)> {
    log.lines()
        .filter_map(|line| {
            let (before, after) = line.split_once(" restored: ")?;
            let name = before.rsplit(' ').next()?.to_owned();
            Some((name, after.ends_with(", prefetched")))
        })
        .collect()
}

/// The processes that fetch ahead for a configuration.
fn prefetchers(config: &Path) -> Result<Vec<u32>> {
    let mut found = Vec::new();
    for entry in fs::read_dir("/proc")? {
        let path = entry?.path();
        let Ok(line) = fs::read(path.join("cmdline")) else {
            continue;
        };
        let arguments: Vec<&[u8]> = line.split(|byte| *byte == 0).collect();
        let of_config = arguments.contains(&config.as_os_str().as_encoded_bytes());
        if of_config
            && arguments
                .first()
                .is_some_and(|name| *name == b"walden-wal-prefetch")
        {
            let pid = path.file_name().and_then(|name| name.to_str());
            found.push(pid.context("a process id")?.parse()?);
        }
    }
    Ok(found)
}

/// Waits until nothing fetches ahead and its folder is gone.
fn all_gone(site: &Site<'_>, cluster: &Cluster) -> Result<()> {
    let config = site.dir.join("walden.yaml");
    let folder = cluster.pgdata().join("pg_wal/walden.prefetch");
    poll("the process that fetches ahead to end", || {
        Ok((prefetchers(&config)?.is_empty() && !folder.exists()).then_some(()))
    })
}

fn a_recovery_takes_its_segments_from_what_lies_ready(
    install: &PgInstall,
    dir: &TestDir,
) -> Result<()> {
    let (site, segments) = site(install, dir, 40)?;
    let expected = site.production.psql(ROWS)?;
    // Two servers of one host, which have nothing to do with each other.
    let mut one = site.restore("one", &[])?;
    let mut two = site.restore("two", &[])?;
    one.start()?;
    two.start()?;
    for cluster in [&one, &two] {
        wait_open(cluster)?;
        ensure!(
            cluster.psql(ROWS)? == expected,
            "every row should be there after recovery"
        );
        let restored = restored(&cluster.log());
        let ready = restored.iter().filter(|(_, ready)| *ready).count();
        ensure!(
            segments
                .iter()
                .all(|name| restored.iter().any(|(found, _)| found == name)),
            "every segment should be restored: {restored:?}"
        );
        ensure!(
            ready * 2 > segments.len(),
            "most segments should have been ready, found {ready} of {}",
            restored.len()
        );
    }
    all_gone(&site, &one)?;
    all_gone(&site, &two)
}

fn a_standby_follows_with_it_and_without(install: &PgInstall, dir: &TestDir) -> Result<()> {
    let (site, _) = site(install, dir, 20)?;
    let mut standby = site.restore("standby", &["--standby"])?;
    standby.set("wal_retrieve_retry_interval", "100ms")?;
    standby.start()?;
    let follows = |why: &str| -> Result<()> {
        let expected = site.production.psql(ROWS)?;
        standby.wait_for(ROWS, &expected, why)
    };
    follows("the standby to catch up")?;
    ensure!(
        restored(&standby.log()).iter().any(|(_, ready)| *ready),
        "some segments should have been ready while it caught up"
    );
    // The archive has nothing more, and the standby stays.
    all_gone(&site, &standby)?;
    for number in 20..24 {
        write(&site.production, number)?;
        follows("the standby to follow")?;
    }
    all_gone(&site, &standby)?;
    ensure!(
        standby.psql("SELECT pg_is_in_recovery()")? == "t",
        "it should be a standby still"
    );
    Ok(())
}

fn what_lies_ready_of_one_timeline_is_not_taken_for_another(
    install: &PgInstall,
    dir: &TestDir,
) -> Result<()> {
    let (mut site, _) = site(install, dir, 20)?;
    // The archive has segments of the first timeline beyond the fork, which are another history.
    site.production
        .psql("SELECT pg_create_restore_point('fork')")?;
    for number in 100..110 {
        write(&site.production, number)?;
    }
    site.archive_all()?;
    site.production.stop(StopMode::Fast)?;
    let mut successor = site.restore(
        "successor",
        &[
            "--target-name=fork",
            "--target-action=promote",
            "--take-over",
        ],
    )?;
    successor.start()?;
    wait_open(&successor)?;
    let mut last = String::new();
    for number in 200..220 {
        last = write(&successor, number)?;
    }
    successor.wait_archived(&last)?;
    let expected = successor.psql(ROWS)?;
    let mut again = site.restore("again", &[])?;
    again.start()?;
    wait_open(&again)?;
    ensure!(
        again.psql(ROWS)? == expected,
        "the rows should be the new timeline's"
    );
    let log = again.log();
    let restored = restored(&log);
    let of = |timeline: &str| {
        restored
            .iter()
            .filter(|(name, ready)| *ready && name.starts_with(timeline))
            .count()
    };
    ensure!(
        of("00000001") > 5 && of("00000002") > 5,
        "segments of both timelines should have been ready: {restored:?}"
    );
    let fork = restored
        .iter()
        .filter_map(|(name, _)| name.strip_prefix("00000002"))
        .filter(|place| *place != ".history")
        .min()
        .context("segments of the new timeline")?;
    ensure!(
        !restored
            .iter()
            .filter_map(|(name, _)| name.strip_prefix("00000001"))
            .any(|name| name > fork),
        "nothing of the old timeline behind the fork should be restored: {restored:?}"
    );
    all_gone(&site, &again)
}

fn an_outage_is_no_end_of_the_archive(install: &PgInstall, dir: &TestDir) -> Result<()> {
    let (site, _) = site(install, dir, 60)?;
    let expected = site.production.psql(ROWS)?;
    let config = dir.join("walden.yaml");
    let text = fs::read_to_string(&config)?;
    dir.server_file(
        "walden.yaml",
        format!("{text}fetch: {{ retry_for: 100ms }}\n"),
    )?;
    let mut cluster = site.restore("restored", &[])?;
    let (repository, away) = (site.repository(), dir.join("away"));
    let log = dir.join("restored.log");
    let outage = std::thread::spawn(move || -> Result<()> {
        poll("some segments to be restored", || {
            let log = fs::read_to_string(&log).unwrap_or_default();
            Ok((restored(&log).len() > 8).then_some(()))
        })?;
        Ok(fs::rename(repository, away)?)
    });
    let started = cluster.try_start()?;
    outage
        .join()
        .map_err(|_| anyhow::anyhow!("the thread broke off"))??;
    if started.is_ok() {
        cluster.wait_exit()?;
    }
    let log = cluster.log();
    ensure!(
        log.contains("FATAL") && !log.contains("archive recovery complete"),
        "an outage should stop the server: {log}"
    );
    let before = restored(&log).len();
    fs::rename(dir.join("away"), site.repository())?;
    cluster.start()?;
    wait_open(&cluster)?;
    ensure!(
        cluster.psql(ROWS)? == expected,
        "every row should be there after the second start ({before} segments before the outage)"
    );
    all_gone(&site, &cluster)
}

fn a_paused_server_stops_at_once_and_nothing_stays_behind(
    install: &PgInstall,
    dir: &TestDir,
) -> Result<()> {
    let (site, _) = site(install, dir, 10)?;
    site.production
        .psql("SELECT pg_create_restore_point('here')")?;
    for number in 10..30 {
        write(&site.production, number)?;
    }
    site.archive_all()?;
    let mut cluster = site.restore("restored", &["--target-name=here"])?;
    cluster.start()?;
    wait_paused(&cluster)?;
    let config = dir.join("walden.yaml");
    ensure!(
        prefetchers(&config)?.len() == 1,
        "while recovery is paused, one process should have more ready: {:?}",
        prefetchers(&config)?
    );
    let pid = prefetchers(&config)?
        .first()
        .copied()
        .context("a process")?;
    let held: Vec<PathBuf> = fs::read_dir(format!("/proc/{pid}/fd"))?
        .filter_map(|entry| fs::read_link(entry.ok()?.path()).ok())
        .collect();
    for path in &held {
        let text = path.to_string_lossy();
        ensure!(
            !text.starts_with("pipe:") && !text.ends_with(".log") && !text.contains("/base/"),
            "it should hold nothing of the server's: {held:?}"
        );
    }
    let begun = Instant::now();
    cluster.stop(StopMode::Fast)?;
    let took = begun.elapsed();
    ensure!(
        took < Duration::from_secs(10),
        "the stop should not wait for it, but took {took:?}"
    );
    let begun = Instant::now();
    all_gone(&site, &cluster)?;
    let took = begun.elapsed();
    ensure!(
        took < Duration::from_secs(5),
        "it should end with its server, but took {took:?}"
    );
    // And with its data directory.
    cluster.start()?;
    wait_paused(&cluster)?;
    cluster.stop(StopMode::Immediate)?;
    fs::remove_dir_all(cluster.pgdata())?;
    all_gone(&site, &cluster)?;
    ensure!(
        !cluster.pgdata().exists(),
        "it should not make the data directory again"
    );
    Ok(())
}

/// A restored cluster whose server is played by the test: a process id, and calls in PGDATA.
struct Host<'a> {
    site: &'a Site<'a>,
    pgdata: PathBuf,
}

impl<'a> Host<'a> {
    fn new(site: &'a Site<'a>, name: &str) -> Result<Self> {
        let pgdata = site.restore(name, &[])?.pgdata().to_owned();
        let pid = pgdata.join("postmaster.pid");
        fs::write(&pid, format!("{}\n", std::process::id()))?;
        own_by_server(&pid)?;
        Ok(Self { site, pgdata })
    }

    fn ready(&self, name: &str) -> PathBuf {
        self.pgdata.join("pg_wal/walden.prefetch").join(name)
    }

    fn proof(&self, segment: &str) -> PathBuf {
        self.ready(&format!("{segment}.proof"))
    }

    fn is_ready(&self, segment: &str) -> bool {
        self.proof(segment).exists() && self.ready(segment).exists()
    }

    fn fetch_command(&self, segment: &str) -> Result<Command> {
        let mut command = self
            .site
            .binaries
            .command(self.site.install, "walden-wal-fetch")?;
        command
            .arg("--config")
            .arg(self.site.dir.join("walden.yaml"))
            .args([segment, "pg_wal/RECOVERYXLOG"])
            .current_dir(&self.pgdata);
        Ok(command)
    }

    /// Fetches a segment, compares it with production's, and tells whether it had been ready.
    fn fetch(&self, segment: &str) -> Result<bool> {
        let said = Said::run(&mut self.fetch_command(segment)?)?.exited(0)?;
        self.compare(segment)?;
        Ok(said.stderr.contains(", prefetched"))
    }

    fn compare(&self, segment: &str) -> Result<()> {
        let brought = fs::read(self.pgdata.join("pg_wal/RECOVERYXLOG"))?;
        let original = fs::read(self.site.production.pgdata().join("pg_wal").join(segment))?;
        ensure!(
            brought == original,
            "{segment} should be brought as it was archived"
        );
        Ok(())
    }

    fn wait_ready(&self, segment: &str) -> Result<()> {
        poll(&format!("{segment} to lie ready"), || {
            Ok(self.is_ready(segment).then_some(()))
        })
    }

    /// Plays the server's end.
    fn end(&self) -> Result<()> {
        let _ = fs::remove_file(self.pgdata.join("postmaster.pid"));
        let config = self.site.dir.join("walden.yaml");
        poll("the process that fetches ahead to end", || {
            Ok(prefetchers(&config)?.is_empty().then_some(()))
        })
    }
}

fn what_was_not_proven_for_this_file_is_not_handed_over(
    install: &PgInstall,
    dir: &TestDir,
) -> Result<()> {
    let (site, segments) = site(install, dir, 6)?;
    let [first, second, third, ..] = segments.as_slice() else {
        anyhow::bail!("six segments");
    };
    let host = Host::new(&site, "host")?;
    ensure!(!host.fetch(first)?, "the first call finds nothing ready");
    host.wait_ready(second)?;
    host.wait_ready(third)?;
    ensure!(host.fetch(second)?, "what lies ready should be handed over");
    ensure!(
        !host.fetch(second)?,
        "what is asked for twice is fetched the second time"
    );

    // From here on, a process of the test's own plays the one that fetches ahead: what it has proven stays as it is.
    host.wait_ready(third)?;
    let proof = fs::read_to_string(host.proof(third))?;
    let content = fs::read(host.ready(third))?;
    host.end()?;
    fs::write(
        host.pgdata.join("postmaster.pid"),
        format!("{}\n", std::process::id()),
    )?;
    let folder = host.ready("");
    fs::create_dir_all(&folder)?;
    own_by_server(&folder)?;
    let mode = std::os::unix::fs::PermissionsExt::from_mode(0o700);
    fs::set_permissions(&folder, mode)?;
    let lock = File::create(host.ready("lock"))?;
    own_by_server(&host.ready("lock"))?;
    let plant = |content: &[u8], change: &dyn Fn(String) -> String| -> Result<()> {
        let path = host.ready(third);
        let _ = fs::remove_file(&path);
        fs::write(&path, content)?;
        own_by_server(&path)?;
        let meta = fs::metadata(&path)?;
        let (before, _) = proof.split_once("file ").context("a line about the file")?;
        let text = format!(
            "{before}file true {} {} {} {}.{:09}\n",
            meta.dev(),
            meta.ino(),
            meta.len(),
            meta.ctime(),
            meta.ctime_nsec()
        );
        fs::write(host.proof(third), change(text))?;
        own_by_server(&host.proof(third))
    };
    let mut damaged = content.clone();
    *damaged.get_mut(600_000).context("a byte")? ^= 1;
    let mut foreign = content.clone();
    // The first page's system identifier (XLogLongPageHeaderData).
    *foreign.get_mut(24).context("a byte")? ^= 1;
    let same = |text: String| text;

    // Nobody holds the lock: what lies there is of a process that was killed.
    plant(&content, &same)?;
    ensure!(
        !host.fetch(third)?,
        "without a process that fetches ahead nothing is believed"
    );
    host.end()?;
    fs::write(
        host.pgdata.join("postmaster.pid"),
        format!("{}\n", std::process::id()),
    )?;
    fs::create_dir_all(&folder)?;
    own_by_server(&folder)?;
    drop(lock);
    let lock = File::create(host.ready("lock"))?;
    own_by_server(&host.ready("lock"))?;
    lock.lock()?;

    plant(&content, &same)?;
    ensure!(
        host.fetch(third)?,
        "what the test plants should be believed where all of it is right"
    );
    type Change = Box<dyn Fn(String) -> String>;
    let replaced = |from: &'static str, to: &'static str| -> Change {
        Box::new(move |text: String| text.replacen(from, to, 1))
    };
    let second = second.clone();
    let third_name = third.clone();
    let cases: Vec<(&str, &[u8], Change)> = vec![
        (
            "another system identifier",
            &content,
            replaced("system ", "system 1"),
        ),
        (
            "another cluster",
            &content,
            replaced("cluster main", "cluster other"),
        ),
        (
            "another repository",
            &content,
            replaced("/repository", "/other"),
        ),
        (
            "another repository's id",
            &content,
            replaced("None", "Some(0)"),
        ),
        (
            "another form",
            &content,
            replaced("prefetch 2", "prefetch 1"),
        ),
        (
            "another segment",
            &content,
            Box::new(move |text| text.replace(&third_name, &second)),
        ),
        (
            "half a proof",
            &content,
            Box::new(|text: String| text.chars().take(40).collect()),
        ),
        ("no proof", &content, Box::new(|_| String::new())),
        (
            "another cluster's content, proven",
            &foreign,
            Box::new(|text| text),
        ),
        (
            "half a segment, proven",
            content.get(..500_000).context("bytes")?,
            Box::new(|text| text),
        ),
    ];
    for (what, content, change) in &cases {
        plant(content, change.as_ref())?;
        ensure!(!host.fetch(third)?, "{what} should not be handed over");
    }
    // Written to since it was proven.
    plant(&content, &same)?;
    fs::write(host.ready(third), &damaged)?;
    ensure!(
        !host.fetch(third)?,
        "a file that has changed since its proof"
    );
    // Another file under the name.
    plant(&content, &same)?;
    fs::write(host.ready("other"), &damaged)?;
    fs::rename(host.ready("other"), host.ready(third))?;
    ensure!(
        !host.fetch(third)?,
        "another file than the one that was proven"
    );
    // A link to a good file.
    plant(&content, &same)?;
    fs::rename(host.ready(third), host.ready("good"))?;
    std::os::unix::fs::symlink(host.ready("good"), host.ready(third))?;
    ensure!(!host.fetch(third)?, "a link is no segment");

    // What grows is waited for, but not without end.
    fs::remove_file(host.proof(third))?;
    fs::remove_file(host.ready(third))?;
    fs::write(host.ready(third), b"a beginning")?;
    ensure!(
        !host.fetch(third)?,
        "a segment that does not grow should be fetched"
    );
    drop(lock);
    host.end()
}

fn no_more_lies_ready_than_the_configuration_allows(
    install: &PgInstall,
    dir: &TestDir,
) -> Result<()> {
    let (site, segments) = site(install, dir, 24)?;
    let text = fs::read_to_string(dir.join("walden.yaml"))?;
    let host = Host::new(&site, "host")?;
    for ahead in [3, 1, 0] {
        dir.server_file(
            "walden.yaml",
            format!("{text}fetch: {{ ahead: {ahead} }}\n"),
        )?;
        let count = || -> usize {
            fs::read_dir(host.ready("")).map_or(0, |entries| {
                let names = entries.filter_map(|entry| entry.ok()?.file_name().into_string().ok());
                names.filter(|name| name.len() == 24).count()
            })
        };
        let mut most = 0;
        let mut ready = 0;
        for segment in &segments {
            ready += usize::from(host.fetch(segment)?);
            for _ in 0..5 {
                most = most.max(count());
                std::thread::sleep(Duration::from_millis(2));
            }
        }
        ensure!(
            most <= ahead && (most > 0) == (ahead > 0) && (ready > 0) == (ahead > 0),
            "with ahead: {ahead}, {most} lay ready at most and {ready} were taken from there"
        );
        host.end()?;
        let pid = host.pgdata.join("postmaster.pid");
        fs::write(&pid, format!("{}\n", std::process::id()))?;
        own_by_server(&pid)?;
    }
    host.end()
}

fn killed_at_any_moment_it_is_replaced(install: &PgInstall, dir: &TestDir) -> Result<()> {
    let (site, segments) = site(install, dir, 12)?;
    let host = Host::new(&site, "host")?;
    let config = dir.join("walden.yaml");
    let mut ready = 0;
    // The process that fetches ahead.
    for round in 0..25_u64 {
        for (number, segment) in (0_u64..).zip(&segments) {
            ready += usize::from(
                host.fetch(segment)
                    .with_context(|| format!("{segment} in round {round}"))?,
            );
            if number % 4 == 1 {
                // Where in its life it is then is chance, and that is the point.
                std::thread::sleep(Duration::from_millis(round));
                for pid in prefetchers(&config)? {
                    let _ = run(Command::new("kill").args(["-9", &pid.to_string()]));
                }
            }
        }
    }
    ensure!(ready > 0, "some should have been ready all the same");
    // The call itself.
    let mut kills = 0;
    for calls in [
        "openat",
        "rename,renameat,renameat2",
        "unlink,unlinkat",
        "write",
        "flock",
    ] {
        for n in 1.. {
            let first = segments.first().context("segments")?;
            let second = segments.get(1).context("segments")?;
            host.fetch(first)?;
            poll("the second segment to lie ready", || {
                // The process may have ended where an earlier call has led it, and only a call starts one.
                if prefetchers(&config)?.is_empty() {
                    host.fetch(first)?;
                }
                Ok(host.is_ready(second).then_some(()))
            })?;
            let destination = host.pgdata.join("pg_wal/RECOVERYXLOG");
            fs::write(&destination, b"of an earlier call")?;
            let mut command = Command::new("strace");
            install.set_environment(&mut command);
            command
                .args(["-qqq", "-o", "/dev/null", "-e"])
                .arg(format!("trace={calls}"))
                .args(["-e", "signal=none", "-e"])
                .arg(format!("inject={calls}:signal=SIGKILL:when={n}"))
                .arg(site.binaries.path("walden-wal-fetch"))
                .arg("--config")
                .arg(&config)
                .args([second, "pg_wal/RECOVERYXLOG"])
                .current_dir(&host.pgdata)
                .stderr(Stdio::piped());
            let said = Said::run(&mut run_as_server(command)?)?;
            let found = fs::read(&destination)?;
            if said.code.is_some() {
                let said = said.exited(0)?;
                ensure!(
                    said.stderr.contains(", prefetched"),
                    "a call that is not killed at call {n} of {calls} should find the segment ready: {}",
                    said.stderr
                );
                host.compare(second)?;
                break;
            }
            kills += 1;
            ensure!(
                found == b"of an earlier call" || host.compare(second).is_ok(),
                "killed at call {n} of {calls}, it should leave %p whole or as it was"
            );
            host.fetch(second)
                .with_context(|| format!("after a call killed at call {n} of {calls}"))?;
            // The next round begins with this one's first segment: the window goes back with it.
        }
    }
    ensure!(kills > 10, "kills should have been tried, found {kills}");
    host.end()
}
