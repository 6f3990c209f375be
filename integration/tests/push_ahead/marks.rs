//! When a mark is believed, and when not.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::MetadataExt;

use anyhow::{Context, Result, ensure};
use walden_testkit::{PgInstall, TestDir};

use crate::bench::{Answer, copy, read};
use crate::{
    BY_EARLIER_CALL, COMPARED, MARKS, host, marks, names, ready, segment, server, take_along,
};

super::on_17!(
    a_mark_ends_with_its_call,
    a_mark_of_another_file_is_not_believed,
    a_recycled_segment_keeps_its_inode_and_changes_its_time,
    a_copied_clusters_marks_are_not_believed,
    a_mark_is_not_believed_of_another_repository,
);

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
