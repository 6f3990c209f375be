//! One segment, several repositories.

use std::fs;
use std::net::TcpListener;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use walden_testkit::{PgInstall, TestDir, poll};

use crate::Three;
use crate::bench::{Answer, read};

super::on_17!(
    a_segment_is_read_once_and_stored_byte_for_byte_in_each,
    a_required_repository_that_is_out_keeps_the_file_with_postgresql,
    a_repository_that_is_not_required_fails_nobody,
    a_repository_that_hangs_costs_its_wait_and_no_more,
    a_conflict_counts_where_the_repository_is_required,
    a_mark_is_believed_only_while_every_required_repository_has_the_object,
);

const BY_EARLIER_CALL: &str = "archived already, by an earlier call";
const COMPARED: &str = "archived already, with the same bytes";

/// Every read of a file whose path ends so, in bytes, as strace saw them.
fn bytes_read(trace: &str, file: &str) -> u64 {
    let end = format!("{file}>");
    let reads = trace.lines().filter(|line| line.contains(&end));
    reads
        .filter_map(|line| line.rsplit_once(" = ")?.1.trim().parse::<u64>().ok())
        .sum()
}

fn a_segment_is_read_once_and_stored_byte_for_byte_in_each(
    install: &PgInstall,
    dir: &TestDir,
) -> Result<()> {
    let three = Three::new(install, dir, "")?;
    let (name, content) = three.0.segment(0)?;
    let traces = dir.server_dir("traces")?;
    let file = format!("pg_wal/{name}");
    // A file for each thread: in one, a call that another interrupts is shown without its file's name.
    let output = traces.join("of").display().to_string();
    let options = [
        "strace",
        "-ff",
        "-y",
        "-qqq",
        "-o",
        &output,
        "-e",
        "trace=read,pread64,readv,preadv",
    ];
    Answer::of(three.0.command(&options, "walden-wal-push", &[&file])?)?.exits(0)?;
    let mut bytes = 0;
    for trace in fs::read_dir(&traces)? {
        bytes += bytes_read(&String::from_utf8_lossy(&read(trace?.path())?), &name);
    }
    let once = content.len() as u64;
    ensure!(
        (once..once + 1024).contains(&bytes),
        "its {once} bytes should be read once, and its header before, found {bytes}"
    );
    three.stands_in(&name, &["here", "there", "spare"])?;
    // Also the head, in which the process that made the object stands with its time: there was one making of it.
    let first = read(three.object("here", &name)?)?;
    for other in ["there", "spare"] {
        ensure!(
            read(three.object(other, &name)?)? == first,
            "the object in {other} should be the same to the last byte"
        );
    }
    Ok(())
}

fn a_required_repository_that_is_out_keeps_the_file_with_postgresql(
    install: &PgInstall,
    dir: &TestDir,
) -> Result<()> {
    let three = Three::new(install, dir, "")?;
    let (name, _) = three.0.segment(0)?;
    three.unmount("there")?;
    for _ in 0..2 {
        three.0.archive(&name)?.exits(1)?.says(&[
            "was archived in \"here\" and \"spare\", but not in \"there\"",
            "walden.json",
        ])?;
        ensure!(
            fs::read_dir(three.folder("there"))?.next().is_none(),
            "nothing should be written into the empty mount point"
        );
    }
    let before = read(three.object("here", &name)?)?;
    three.mount("there")?;
    three
        .0
        .archive(&name)?
        .exits(0)?
        .says(&["archived in here, there, spare"])?;
    three.stands_in(&name, &["here", "there", "spare"])?;
    ensure!(
        read(three.object("here", &name)?)? == before,
        "what stood should stay as it was"
    );
    three.unmount("here")?;
    three.unmount("there")?;
    let (next, _) = three.0.segment(1)?;
    three
        .0
        .archive(&next)?
        .exits(1)?
        .says(&["not in \"here\" and \"there\""])?;
    three.mount("here")?;
    three.mount("there")?;
    three.0.archive(&next)?.exits(0)?;
    three.stands_in(&next, &["here", "there", "spare"])
}

fn a_repository_that_is_not_required_fails_nobody(
    install: &PgInstall,
    dir: &TestDir,
) -> Result<()> {
    let three = Three::new(install, dir, "")?;
    let (name, _) = three.0.segment(0)?;
    three.unmount("spare")?;
    three.0.archive(&name)?.exits(0)?.says(&[
        "WARN",
        "\"spare\"",
        "not required",
        &format!("{name}.zst"),
    ])?;
    three.stands_in(&name, &["here", "there"])?;
    three.mount("spare")?;
    let (next, _) = three.0.segment(1)?;
    three.0.archive(&next)?.exits(0)?.never_says("WARN")?;
    three.stands_in(&next, &["here", "there", "spare"])?;
    // PostgreSQL asks again after a crash, and what was lacking comes.
    three.0.archive(&name)?.exits(0)?.says(&[COMPARED])?;
    three.stands_in(&name, &["here", "there", "spare"])
}

/// Gives PostgreSQL's word that all segments are ready, and waits until they are old enough to be taken along.
fn all_ready(three: &Three<'_>) -> Result<[String; 4]> {
    three.0.dir.server_dir("pgdata/pg_wal/archive_status")?;
    for name in &three.0.wal.segments {
        let status = three.0.pg_wal(&format!("archive_status/{name}.ready"));
        three.0.put(&status, b"")?;
    }
    let written = Instant::now();
    poll("files that are not quite new", || {
        Ok((written.elapsed() > Duration::from_millis(150)).then_some(()))
    })?;
    let names = three.0.wal.segments.clone();
    names.try_into().ok().context("four segments")
}

fn a_repository_that_hangs_costs_its_wait_and_no_more(
    install: &PgInstall,
    dir: &TestDir,
) -> Result<()> {
    let three = Three::new(install, dir, "")?;
    // Whoever connects is heard by nobody.
    let silent = TcpListener::bind("127.0.0.1:0")?;
    let credentials = dir.server_file(
        "credentials",
        "[default]\naws_access_key_id = a\naws_secret_access_key = b\n",
    )?;
    let hangs = format!(
        "{}, {{ name: silent, required: false, s3: {{ bucket: b, region: r, endpoint: 'http://{}', credentials_file: {} }} }}",
        three.folders(),
        silent.local_addr()?,
        credentials.display()
    );
    three.configure(&hangs, "push: { optional_wait: 1s }")?;
    let names = all_ready(&three)?;
    let begun = Instant::now();
    three
        .0
        .archive(&names[0])?
        .exits(0)?
        .says(&["\"silent\"", "3 more files archived with it"])?;
    let took = begun.elapsed();
    // It alone would take the store's patience, 40 s, and each of the four files a second of its own.
    ensure!(
        took < Duration::from_secs(15),
        "a repository that is not required should cost about a second, and cost {took:?}"
    );
    for name in &names {
        three.stands_in(name, &["here", "there", "spare"])?;
        three.0.archive(name)?.exits(0)?;
    }
    Ok(())
}

fn a_conflict_counts_where_the_repository_is_required(
    install: &PgInstall,
    dir: &TestDir,
) -> Result<()> {
    let three = Three::new(install, dir, "")?;
    let (name, content) = three.0.segment(0)?;
    let mut other = content.clone();
    *other.get_mut(600_000).context("a byte")? ^= 1;
    let rival = three.0.elsewhere("rival", &name, &other)?;
    let only = |repository: &str| {
        let folder = three.folder(repository);
        three.configure(
            &format!("{{ name: {repository}, path: {} }}", folder.display()),
            "",
        )
    };

    // In the one that is not required it is a warning, at every call.
    only("spare")?;
    three.0.push(&rival)?.exits(0)?;
    three.configure(&three.folders(), "")?;
    for _ in 0..2 {
        three
            .0
            .archive(&name)?
            .exits(0)?
            .says(&["WARN", "\"spare\"", "other bytes"])?;
    }
    fs::remove_file(three.object("spare", &name)?)?;
    three.stands_in(&name, &["here", "there"])?;

    // In one that is required it is a failure, until a person has set the file aside where it is in conflict.
    let (name, content) = three.0.segment(1)?;
    let mut other = content.clone();
    *other.get_mut(600_000).context("a byte")? ^= 1;
    let rival = three.0.elsewhere("rival", &name, &other)?;
    only("there")?;
    three.0.push(&rival)?.exits(0)?;
    three.configure(&three.folders(), "")?;
    three.0.archive(&name)?.exits(1)?.says(&[
        "but not in \"there\"",
        "other bytes",
        "--quarantine",
    ])?;
    let file = format!("pg_wal/{name}");
    three.0.push_with(&["--quarantine"], &file)?.exits(0)?;
    let aside = |repository: &str| -> Result<bool> {
        let object = three.object(repository, &name)?;
        // <system>/wal/<timeline>/<log>/<segment>.zst
        let system = object.ancestors().nth(4).context("the cluster's folder")?;
        Ok(system.join("quarantine").exists())
    };
    ensure!(
        aside("there")? && !aside("here")? && !aside("spare")?,
        "it should be set aside where it is in conflict, and nowhere else"
    );
    three
        .0
        .archive(&name)?
        .exits(0)?
        .says(&["set aside already"])?;
    ensure!(
        three.0.unzstd(&three.object("there", &name)?)? == other,
        "what stood first should stand"
    );
    Ok(())
}

fn a_mark_is_believed_only_while_every_required_repository_has_the_object(
    install: &PgInstall,
    dir: &TestDir,
) -> Result<()> {
    let three = Three::new(install, dir, "")?;
    let names = all_ready(&three)?;
    three
        .0
        .archive(&names[0])?
        .exits(0)?
        .says(&["3 more files archived with it"])?;
    for name in &names {
        three.stands_in(name, &["here", "there", "spare"])?;
    }
    three
        .0
        .archive(&names[1])?
        .exits(0)?
        .says(&[BY_EARLIER_CALL])?;
    // One that is required has lost the object, and one that is not.
    fs::remove_file(three.object("there", &names[2])?)?;
    fs::remove_file(three.object("spare", &names[2])?)?;
    three
        .0
        .archive(&names[2])?
        .exits(0)?
        .never_says(BY_EARLIER_CALL)?;
    three.stands_in(&names[2], &["here", "there", "spare"])?;
    // What an earlier call took along is not looked for where nobody needs it.
    fs::remove_file(three.object("spare", &names[3])?)?;
    three
        .0
        .archive(&names[3])?
        .exits(0)?
        .says(&[BY_EARLIER_CALL])?;
    three.stands_in(&names[3], &["here", "there"])
}
