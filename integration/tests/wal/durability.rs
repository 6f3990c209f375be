//! In which order a push makes things durable, as the kernel sees it.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result, bail, ensure};
use walden_testkit::{PgInstall, TestDir};

use crate::bench::{Answer, Bench};

super::on_17!(
    a_push_makes_each_step_durable_before_the_next,
    a_repeated_push_makes_sure_that_the_first_one_is_durable,
    a_fetch_makes_the_file_durable_before_it_has_its_name,
);

/// A system call: its name, and its line as strace writes it.
struct Call {
    name: String,
    line: String,
}

impl Call {
    /// The file of a descriptor that it is about.
    fn descriptor(&self) -> &str {
        let (_, rest) = self.line.split_once('<').unwrap_or_default();
        rest.split_once('>').unwrap_or_default().0
    }

    /// Its paths.
    fn paths(&self) -> Vec<&str> {
        self.line.split('"').skip(1).step_by(2).collect()
    }
}

/// Runs a program and gives its calls that write, name and sync files, in the order in which they began. Each is waited for
/// by the next of the same thread; those that failed are left out.
fn calls(bench: &Bench, program: &str, arguments: &[&str]) -> Result<Vec<Call>> {
    let log = bench.elsewhere("strace", "log", b"")?;
    let output = format!("--output={}", log.display());
    let options = [
        "strace",
        "-f",
        "-y",
        "-s",
        "4096",
        "-e",
        "trace=write,pwrite64,fsync,fdatasync,/^link,/^rename,/^unlink,/^mkdir",
        "-e",
        "signal=none",
        &output,
    ];
    Answer::of(bench.command(&options, program, arguments)?)?.exits(0)?;
    let log = fs::read_to_string(&log)?;
    let mut calls = Vec::new();
    for line in log.lines() {
        let line = line.split_once(' ').map_or(line, |(_, rest)| rest.trim());
        let failed = line.contains(") = -1 ");
        if failed || line.starts_with("<...") || line.starts_with('+') {
            continue;
        }
        let (name, _) = line.split_once('(').context("a call")?;
        calls.push(Call {
            name: name.to_owned(),
            line: line.to_owned(),
        });
    }
    Ok(calls)
}

/// The first call at or after `from` that is so.
fn find(calls: &[Call], from: usize, what: &str, is: impl Fn(&Call) -> bool) -> Result<usize> {
    let found = calls.iter().skip(from).position(is);
    found.map(|at| at + from).with_context(|| {
        let lines: Vec<&str> = calls
            .iter()
            .map(|call| call.line.get(..160).unwrap_or(&call.line))
            .collect();
        format!("no {what} after call {from} of\n{}", lines.join("\n"))
    })
}

fn is_sync(call: &Call) -> bool {
    call.name == "fsync" || call.name == "fdatasync"
}

fn syncs(path: &Path) -> impl Fn(&Call) -> bool {
    move |call| is_sync(call) && Path::new(call.descriptor()) == path
}

fn a_push_makes_each_step_durable_before_the_next(
    install: &PgInstall,
    dir: &TestDir,
) -> Result<()> {
    let bench = Bench::new(install, dir)?;
    let (name, _) = bench.segment(0)?;
    let object = bench.object(&name)?;
    let file = format!("pg_wal/{name}");
    let calls = calls(&bench, "walden-wal-push", &[&file])?;

    let linked = find(&calls, 0, "link to the object's name", |call| {
        call.name.starts_with("link") && call.paths().last() == object.to_str().as_ref()
    })?;
    let temporary = calls
        .get(linked)
        .and_then(|call| call.paths().first().copied());
    let temporary = Path::new(temporary.context("the temporary's name")?);
    ensure!(
        temporary.starts_with(bench.mount.join(".tmp")),
        "the object should grow in .tmp of its file system, not at {}",
        temporary.display()
    );
    let written = calls
        .iter()
        .rposition(|call| call.name.contains("write") && Path::new(call.descriptor()) == temporary)
        .context("the temporary should be written")?;
    let synced = find(&calls, written, "fsync of the temporary", syncs(temporary))?;
    ensure!(
        synced < linked,
        "the bytes should be durable before the name leads to them"
    );
    let folder = object.parent().context("a folder")?;
    find(
        &calls,
        linked,
        "fsync of the object's folder",
        syncs(folder),
    )?;

    // Each folder on the way is durable in the one above before anything is put into it.
    let mut made = Vec::new();
    for (at, call) in calls.iter().enumerate() {
        if !call.name.starts_with("mkdir") {
            continue;
        }
        let [path] = call.paths()[..] else {
            bail!("an odd call: {}", call.line);
        };
        let path = Path::new(path);
        if path == bench.mount.join(".tmp") {
            continue;
        }
        let parent = path.parent().context("a parent")?;
        let synced = find(&calls, at, "fsync of a folder's parent", syncs(parent))?;
        ensure!(
            synced < linked,
            "{} should be durable before the object is linked",
            path.display()
        );
        if let Some(next) = calls.iter().skip(at + 1).position(|call| {
            call.name.starts_with("mkdir")
                && call
                    .paths()
                    .iter()
                    .any(|below| Path::new(below).starts_with(path))
        }) {
            ensure!(
                synced <= at + next,
                "{} should be durable before a folder is made in it",
                path.display()
            );
        }
        made.push(path.to_owned());
    }
    let mut expected: Vec<_> = folder
        .ancestors()
        .take_while(|path| *path != bench.mount.join("main"))
        .map(Path::to_path_buf)
        .collect();
    expected.reverse();
    ensure!(
        made == expected,
        "the first push should make {expected:?}, and made {made:?}"
    );
    Ok(())
}

fn a_repeated_push_makes_sure_that_the_first_one_is_durable(
    install: &PgInstall,
    dir: &TestDir,
) -> Result<()> {
    let bench = Bench::new(install, dir)?;
    let (name, _) = bench.segment(0)?;
    bench.archive(&name)?.exits(0)?;
    let object = bench.object(&name)?;
    let file = format!("pg_wal/{name}");
    let calls = calls(&bench, "walden-wal-push", &[&file])?;
    // The first one may have been killed between the link and the fsync of the folder.
    let mut path = object.as_path();
    find(&calls, 0, "fsync of the object", syncs(path))?;
    while path != bench.mount {
        path = path.parent().context("a parent")?;
        if path.starts_with(bench.cluster_folder()?) {
            find(
                &calls,
                0,
                &format!("fsync of {}", path.display()),
                syncs(path),
            )?;
        }
    }
    Ok(())
}

fn a_fetch_makes_the_file_durable_before_it_has_its_name(
    install: &PgInstall,
    dir: &TestDir,
) -> Result<()> {
    let bench = Bench::new(install, dir)?;
    let (name, _) = bench.segment(0)?;
    bench.archive(&name)?.exits(0)?;
    let calls = calls(&bench, "walden-wal-fetch", &[&name, "pg_wal/RECOVERYXLOG"])?;
    let named = find(&calls, 0, "rename to %p", |call| {
        call.name.starts_with("rename") && call.paths().last() == Some(&"pg_wal/RECOVERYXLOG")
    })?;
    let growing = calls
        .get(named)
        .and_then(|call| call.paths().first().copied());
    let growing = bench
        .pgdata
        .join(growing.context("the growing file's name")?);
    let written = calls
        .iter()
        .rposition(|call| call.name.contains("write") && Path::new(call.descriptor()) == growing)
        .context("the growing file should be written")?;
    let synced = find(
        &calls,
        written,
        "fsync of the growing file",
        syncs(&growing),
    )?;
    ensure!(
        written < named && synced < named,
        "the bytes should be durable before they have PostgreSQL's name"
    );
    find(
        &calls,
        named,
        "fsync of pg_wal",
        syncs(&bench.pgdata.join("pg_wal")),
    )?;
    Ok(())
}
