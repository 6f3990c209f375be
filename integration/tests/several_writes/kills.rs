//! Inits and pushes that are killed between and within their repositories.

use std::fs;

use anyhow::{Context, Result, bail, ensure};
use walden_testkit::{PgInstall, TestDir};

use crate::Three;
use crate::bench::Answer;

super::on_17!(
    an_init_killed_at_any_system_call_is_completed_by_the_next,
    a_push_killed_at_any_system_call_is_completed_by_the_next,
);

/// What changes files, in groups in which strace counts, and how far to go each time.
const CALLS: &[(&str, usize)] = &[
    ("write,pwrite64,writev", 3),
    ("fsync,fdatasync", 2),
    ("link,linkat,rename,renameat,renameat2", 1),
    ("unlink,unlinkat", 1),
    ("mkdir,mkdirat", 2),
];

/// More than any program here makes of a group.
const TOO_MANY: usize = 200;

/// Runs a program that is killed as it enters the n-th of these calls on any thread. `None` if it was killed.
fn killed_at(
    three: &Three<'_>,
    calls: &str,
    n: usize,
    program: &str,
    arguments: &[&str],
) -> Result<Option<Answer>> {
    let trace = format!("trace={calls}");
    let inject = format!("inject={calls}:signal=SIGKILL:when={n}");
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
    let answer = Answer::of(three.0.command(&options, program, arguments)?)?;
    Ok((!answer.killed_by(9)).then_some(answer))
}

/// Kills a program at every sampled call: `clean` before, `check` after, which is told whether it was killed.
fn each_kill(
    three: &Three<'_>,
    program: &str,
    arguments: &[&str],
    clean: impl Fn() -> Result<()>,
    mut check: impl FnMut(&str) -> Result<()>,
) -> Result<()> {
    for (calls, step) in CALLS {
        for n in (1..).step_by(*step) {
            clean()?;
            let when = format!("killed at call {n} of {calls}");
            let ended = killed_at(three, calls, n, program, arguments)?;
            let by_itself = ended.is_some();
            if let Some(answer) = ended {
                answer.exits(0).with_context(|| format!("not {when}"))?;
            }
            check(&when).with_context(|| when.clone())?;
            if by_itself {
                break;
            }
            if n > TOO_MANY {
                bail!("more than {TOO_MANY} calls of {calls}");
            }
        }
    }
    Ok(())
}

fn an_init_killed_at_any_system_call_is_completed_by_the_next(
    install: &PgInstall,
    dir: &TestDir,
) -> Result<()> {
    let three = Three::unregistered(install, dir, "")?;
    let names = ["here", "there", "spare"];
    let clean = || {
        // Absent altogether: the folders are init's, too.
        for name in names {
            let folder = three.folder(name);
            if folder.exists() {
                fs::remove_dir_all(folder)?;
            }
        }
        Ok(())
    };
    // After how many kills so many repositories had their registration.
    let mut stood = [0; 4];
    let check = |_: &str| {
        let registered = names.map(|name| three.registration(name));
        let before: Vec<Vec<u8>> = registered
            .into_iter()
            .filter_map(Result::transpose)
            .collect::<Result<_>>()?;
        if let Some(count) = stood.get_mut(before.len()) {
            *count += 1;
        }
        three.0.walden(&["init"])?.exits(0)?;
        let after = three.registration("here")?;
        for name in names {
            ensure!(
                three.registration(name)? == after,
                "the registration should be the same everywhere"
            );
        }
        ensure!(
            before.iter().all(|known| Some(known) == after.as_ref()),
            "an id that stood should be taken over, and none be made anew"
        );
        let (name, _) = three.0.segment(0)?;
        three.0.archive(&name)?.exits(0)?;
        three.stands_in(&name, &names)
    };
    // The test's folder belongs to somebody else, who lets the server's user make folders for once.
    let mode = fs::metadata(dir.path())?.permissions();
    three.0.mode(dir.path(), 0o777)?;
    let tried = each_kill(&three, "walden", &["init"], clean, check);
    fs::set_permissions(dir.path(), mode)?;
    tried?;
    ensure!(
        stood.iter().all(|count| *count > 0),
        "kills should have been tried before, between and after the three registrations: {stood:?}"
    );
    Ok(())
}

fn a_push_killed_at_any_system_call_is_completed_by_the_next(
    install: &PgInstall,
    dir: &TestDir,
) -> Result<()> {
    let three = Three::new(install, dir, "")?;
    let names = ["here", "there", "spare"];
    let (name, content) = three.0.segment(0)?;
    let file = format!("pg_wal/{name}");
    let clean = || {
        for repository in names {
            let object = three.object(repository, &name)?;
            // <system>/wal/<timeline>/<log>/<segment>.zst
            let system = object.ancestors().nth(4).context("the cluster's folder")?;
            for folder in [system.to_owned(), three.folder(repository).join(".tmp")] {
                if folder.exists() {
                    fs::remove_dir_all(folder)?;
                }
            }
        }
        Ok(())
    };
    let mut stood = [0; 4];
    each_kill(&three, "walden-wal-push", &[&file], clean, |_| {
        let mut standing = 0;
        for repository in names {
            let object = three.object(repository, &name)?;
            if object.exists() {
                standing += 1;
                ensure!(
                    three.0.unzstd(&object)? == content,
                    "what stands in {repository} should be whole"
                );
            }
        }
        if let Some(count) = stood.get_mut(standing) {
            *count += 1;
        }
        three.0.archive(&name)?.exits(0)?;
        three.stands_in(&name, &names)
    })?;
    ensure!(
        stood[0] > 0 && stood[1] + stood[2] > 0 && stood[3] > 0,
        "kills should have been tried before, between and after the three objects stood: {stood:?}"
    );
    Ok(())
}
