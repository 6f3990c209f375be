//! Expiry that is killed at every system call that changes something: nothing looks whole that is not, and the next one ends the work.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, ensure};
use walden_integration::{Said, Site};
use walden_testkit::{PgInstall, TestDir, on_version, run_as_server};

use super::{archive, expire, objects, site};

#[test]
fn an_expiry_killed_at_any_system_call_is_ended_by_the_next() {
    on_version(17, "expire_kills", kills);
}

/// What changes files, in groups in which strace counts.
const CALLS: &[&str] = &[
    "unlink,unlinkat",
    "link,linkat,rename,renameat,renameat2",
    "fsync,fdatasync",
    "mkdir,mkdirat",
];

fn copy(from: &Path, to: &Path) -> Result<()> {
    if to.exists() {
        fs::remove_dir_all(to)?;
    }
    let mut cp = Command::new("cp");
    Said::run(cp.arg("-a").arg(from).arg(to))?.exited(0)?;
    Ok(())
}

/// What stands of the archive beside what expiry writes about itself. A note on WAL of a run that was killed stays for a day, because nobody
/// can tell whether that run is still at work.
fn stored(site: &Site<'_>) -> Result<BTreeSet<String>> {
    let mut objects = objects(site)?;
    objects.retain(|key| !key.contains("/events/") && !key.contains("/retired/wal/"));
    Ok(objects)
}

fn kills(install: &PgInstall, dir: &TestDir) -> Result<()> {
    let mut site = site(install, dir, "retention: { full: 1 }\n")?;
    site.production.start()?;
    archive(&site)?;
    let first = site.backup(&[])?.id;
    archive(&site)?;
    let second = site.backup(&[])?.id;
    archive(&site)?;

    let (here, before) = (site.repository(), dir.join("before"));
    copy(&here, &before)?;
    expire(&site, &[], 0)?;
    let expected = stored(&site)?;
    let (mut counted, mut undecided) = (0, 0);
    for calls in CALLS {
        for n in 1.. {
            copy(&before, &here)?;
            let trace = format!("trace={calls}");
            let inject = format!("inject={calls}:signal=SIGKILL:when={n}");
            let mut strace = Command::new("strace");
            install.set_environment(&mut strace);
            strace.args([
                "-f",
                "-qqq",
                "-o",
                "/dev/null",
                "-e",
                &trace,
                "-e",
                "signal=none",
            ]);
            strace
                .args(["-e", &inject])
                .arg(site.binaries.path("walden"));
            strace
                .arg("--config")
                .arg(dir.join("walden.yaml"))
                .arg("expire");
            let said = Said::run(&mut run_as_server(strace)?)?;
            let when = format!("killed at call {n} of {calls}");
            if said.code == Some(0) {
                ensure!(n > 1, "an expiry should make one of {calls} at least");
                break;
            }
            ensure!(
                n < 500,
                "an expiry that makes so many of {calls}: {}",
                said.stderr
            );
            counted += 1;
            undecided += usize::from(looks_right(&site, &first, &second).context(when.clone())?);
            expire(&site, &[], 0).context(when.clone())?;
            let left = stored(&site)?;
            ensure!(
                left == expected,
                "the expiry after one {when} should end its work; too much: {:?}, too little: {:?}",
                left.difference(&expected).collect::<Vec<_>>(),
                expected.difference(&left).collect::<Vec<_>>()
            );
        }
    }
    ensure!(
        undecided > 0 && undecided < counted,
        "kills both before and after the first backup was none any more should have been tried: {undecided} of {counted}"
    );
    site.planned(&["--backup", &second])?;
    Ok(())
}

/// Whether the first backup is still one; then it is whole, and so is the second always.
fn looks_right(site: &Site<'_>, first: &str, second: &str) -> Result<bool> {
    let mut still = false;
    for backup in site.backups()? {
        let missing = backup
            .json
            .get("missing_objects")
            .and_then(|keys| keys.as_array());
        ensure!(
            missing.is_some_and(Vec::is_empty)
                && backup
                    .json
                    .pointer("/window/whole")
                    .is_some_and(|whole| *whole == true),
            "{} is listed, and not whole: {}",
            backup.id,
            backup.json
        );
        site.planned(&["--backup", &backup.id])?;
        still |= backup.id == first;
    }
    ensure!(
        site.backups()?.iter().any(|backup| backup.id == second),
        "the second backup stays"
    );
    Ok(still)
}
