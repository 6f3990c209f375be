//! Pushes that take the next ready files along, and the marks they leave.
#![expect(
    clippy::print_stderr,
    reason = "a test says what it skipped, and with which seed it ran"
)]

mod batch;
#[path = "../wal/bench.rs"]
#[allow(dead_code)]
mod bench;
mod kills;
mod marks;

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use anyhow::{Context, Result, ensure};
use bench::{Answer, Bench};
use walden_testkit::{Binaries, Cluster, ClusterBuilder, PgInstall, TestDir, poll};

const MARKS: &str = "pg_wal/walden.ahead";
const BY_EARLIER_CALL: &str = "archived already, by an earlier call";
const COMPARED: &str = "archived already, with the same bytes";

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
use on_17;

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
