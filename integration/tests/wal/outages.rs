//! Repositories that are not there, refuse, or are full: nothing half-written, and later a success.

use std::fs;

use anyhow::{Context, Result, ensure};
use walden_testkit::{PgInstall, TestDir, own_by_server};

use crate::bench::{Bench, Disk, read};

super::on_17!(
    a_push_into_a_repository_that_is_not_there_fails,
    a_push_that_is_refused_leaves_nothing,
    a_push_onto_a_full_disk_leaves_nothing,
    a_push_onto_a_read_only_file_system_leaves_nothing,
    a_fetch_that_cannot_prove_an_absence_stops_recovery,
    a_fetch_to_a_full_disk_leaves_nothing,
);

fn a_push_into_a_repository_that_is_not_there_fails(
    install: &PgInstall,
    dir: &TestDir,
) -> Result<()> {
    let bench = Bench::new(install, dir)?;
    let (name, content) = bench.segment(0)?;
    let place = bench.mount.display().to_string();

    bench.unmount()?;
    bench.archive(&name)?.fails_as_archive_command()?.says(&[
        &name,
        &place,
        "walden.json",
        "mount",
    ])?;
    ensure!(
        fs::read_dir(&bench.mount)?.next().is_none(),
        "nothing should be written into the empty mount point"
    );
    fs::remove_dir(&bench.mount)?;
    bench
        .archive(&name)?
        .fails_as_archive_command()?
        .says(&[&name, &place, "mounted"])?;
    ensure!(
        !bench.mount.exists(),
        "only walden init makes a repository's folder"
    );
    // Something else under the path.
    fs::write(&bench.mount, "")?;
    bench
        .archive(&name)?
        .fails_as_archive_command()?
        .says(&[&place])?;
    fs::remove_file(&bench.mount)?;
    fs::create_dir(&bench.mount)?;
    bench.mount_again()?;

    // The wrong one mounted.
    let pinned = ", id: 00000000000000000000000000000000";
    bench.configure_repository(pinned, "")?;
    let before = bench.objects()?;
    let wrong = bench.archive(&name)?;
    wrong
        .fails_as_archive_command()?
        .says(&["00000000000000000000000000000000"])?;
    ensure!(
        bench.objects()? == before,
        "nothing should be stored in a repository of another id"
    );
    bench.configure("")?;
    bench.archive(&name)?.exits(0)?;
    bench.gives(&name, &content)
}

fn a_push_that_is_refused_leaves_nothing(install: &PgInstall, dir: &TestDir) -> Result<()> {
    let bench = Bench::new(install, dir)?;
    let (first, _) = bench.segment(0)?;
    bench.archive(&first)?.exits(0)?;
    let (name, content) = bench.segment(1)?;
    let before = bench.objects()?;
    let folder = bench.object(&name)?;
    let folder = folder.parent().context("a folder")?;
    let temporaries = bench.mount.join(".tmp");
    for (refusing, mode) in [
        (bench.mount.as_path(), 0o000),
        (&temporaries, 0o500),
        (&temporaries, 0o000),
        (folder, 0o500),
        (folder, 0o000),
    ] {
        bench.mode(refusing, mode)?;
        let answer = bench.archive(&name)?;
        bench.mode(refusing, 0o700)?;
        answer
            .fails_as_archive_command()
            .and_then(|answer| answer.says(&[&name, "ermission"]))
            .with_context(|| format!("mode {mode:o} of {}", refusing.display()))?;
        ensure!(
            bench.objects()? == before,
            "a push should leave nothing where {} refuses",
            refusing.display()
        );
        ensure!(
            fs::read_dir(&temporaries)?.next().is_none(),
            "a push that fails should take its temporary away"
        );
    }
    bench.archive(&name)?.exits(0)?;
    bench.gives(&name, &content)
}

fn a_push_onto_a_full_disk_leaves_nothing(install: &PgInstall, dir: &TestDir) -> Result<()> {
    let bench = Bench::unregistered(install, dir)?;
    let Some(disk) = Disk::mount(&bench.mount, "512k")? else {
        return Ok(());
    };
    bench.walden(&["init"])?.exits(0)?;
    let before = bench.objects()?;
    let (name, content) = bench.segment(0)?;
    let filler = bench.mount.join(".filler");
    // Full at the first byte, and in the middle of the object.
    for free in [0_usize, 8 << 10] {
        let _ = fs::write(&filler, vec![1; 1 << 20]);
        let full = fs::metadata(&filler)?.len();
        fs::OpenOptions::new()
            .write(true)
            .open(&filler)?
            .set_len(full - free as u64)?;
        bench
            .archive(&name)?
            .fails_as_archive_command()?
            .says(&[&name, "No space left"])?;
        ensure!(
            bench.objects()? == before,
            "nothing should be stored on a disk with {free} bytes left"
        );
        ensure!(
            fs::read_dir(bench.mount.join(".tmp")).map_or(0, Iterator::count) == 0,
            "a push that fails should give its space back"
        );
    }
    fs::remove_file(&filler)?;
    bench.archive(&name)?.exits(0)?;
    bench.gives(&name, &content)?;
    drop(disk);
    Ok(())
}

fn a_push_onto_a_read_only_file_system_leaves_nothing(
    install: &PgInstall,
    dir: &TestDir,
) -> Result<()> {
    let bench = Bench::unregistered(install, dir)?;
    let Some(disk) = Disk::mount(&bench.mount, "16m")? else {
        return Ok(());
    };
    bench.walden(&["init"])?.exits(0)?;
    let (first, first_content) = bench.segment(0)?;
    bench.archive(&first)?.exits(0)?;
    let (name, content) = bench.segment(1)?;
    let before = bench.objects()?;
    disk.remount("ro")?;
    bench
        .archive(&name)?
        .fails_as_archive_command()?
        .says(&[&name, "Read-only file system"])?;
    ensure!(bench.objects()? == before, "nothing should be stored");
    bench.gives(&first, &first_content)?;
    disk.remount("rw")?;
    bench.archive(&name)?.exits(0)?;
    bench.gives(&name, &content)
}

fn a_fetch_that_cannot_prove_an_absence_stops_recovery(
    install: &PgInstall,
    dir: &TestDir,
) -> Result<()> {
    let bench = Bench::new(install, dir)?;
    let (there, content) = bench.segment(0)?;
    let (absent, _) = bench.segment(1)?;
    bench.archive(&there)?.exits(0)?;
    let wanted = [there.as_str(), absent.as_str(), "00000002.history"];
    let destination = bench.pg_wal("RECOVERYXLOG");
    bench.put(&destination, b"of an earlier call")?;
    let all = |what: &str, code: i32, says: &[&str]| -> Result<()> {
        for name in wanted {
            bench
                .fetch(name, "pg_wal/RECOVERYXLOG")?
                .exits(code)
                .and_then(|answer| answer.says(says))
                .with_context(|| format!("{name} from {what}"))?;
            ensure!(
                read(&destination)? == b"of an earlier call",
                "a fetch of {name} from {what} should leave what stands under %p"
            );
        }
        Ok(())
    };
    let absences = |what: &str, code: i32, says: &[&str]| -> Result<()> {
        for name in [absent.as_str(), "00000002.history"] {
            bench
                .fetch(name, "pg_wal/RECOVERYXLOG")?
                .exits(code)
                .and_then(|answer| answer.says(says))
                .with_context(|| format!("{name} from {what}"))?;
        }
        Ok(())
    };

    bench.unmount()?;
    all("an empty mount point", 200, &["mounted"])?;
    fs::remove_dir(&bench.mount)?;
    all("a missing folder", 200, &["mounted"])?;
    fs::create_dir(&bench.mount)?;
    bench.mount_again()?;

    bench.mode(&bench.mount, 0o000)?;
    let refused = all("a folder without permission", 200, &["ermission"]);
    bench.mode(&bench.mount, 0o700)?;
    refused?;
    let wal = bench.cluster_folder()?.join("wal");
    bench.mode(&wal, 0o000)?;
    let refused = all("a wal folder without permission", 200, &["ermission"]);
    bench.mode(&wal, 0o700)?;
    refused?;

    let root = bench.mount.join("walden.json");
    fs::rename(&root, bench.dir.join("walden.json"))?;
    absences(
        "a repository without its root document",
        200,
        &["walden.json"],
    )?;
    let mut document = read(bench.dir.join("walden.json"))?;
    let byte = document.get_mut(20).context("a byte")?;
    *byte ^= 1;
    bench.put(&root, &document)?;
    absences(
        "a repository with a damaged root document",
        201,
        &["walden.json"],
    )?;
    fs::rename(bench.dir.join("walden.json"), &root)?;

    bench.configure_repository(", id: 00000000000000000000000000000000", "")?;
    all(
        "a repository of another id",
        203,
        &["00000000000000000000000000000000"],
    )?;
    bench.configure("")?;

    let identity = bench.mount.join("main/identity");
    fs::rename(&identity, bench.dir.join("identity"))?;
    all(
        "a repository that does not know the cluster",
        203,
        &["walden init"],
    )?;
    fs::rename(bench.dir.join("identity"), &identity)?;

    bench.gives(&there, &content)?;
    absences("the repository, back again", 1, &[])?;
    Ok(())
}

fn a_fetch_to_a_full_disk_leaves_nothing(install: &PgInstall, dir: &TestDir) -> Result<()> {
    let bench = Bench::new(install, dir)?;
    let (name, content) = bench.segment(0)?;
    bench.archive(&name)?.exits(0)?;
    bench
        .fetch(&name, "no_such_folder/RECOVERYXLOG")?
        .exits(204)?
        .says(&["no_such_folder"])?;

    let folder = bench.dir.server_dir("small")?;
    let Some(disk) = Disk::mount(&folder, "256k")? else {
        return Ok(());
    };
    let destination = folder.join("RECOVERYXLOG");
    fs::write(&destination, "of an earlier call")?;
    own_by_server(&destination)?;
    bench
        .fetch(&name, &destination)?
        .exits(204)?
        .says(&["No space left"])?;
    ensure!(
        fs::read_to_string(&destination)? == "of an earlier call",
        "what stood under %p should stand there"
    );
    ensure!(
        fs::read_dir(&folder)?.count() == 1,
        "a fetch that fails should give its space back"
    );
    disk.remount("size=4m")?;
    bench.fetch(&name, &destination)?.exits(0)?;
    ensure!(
        read(&destination)? == content,
        "with space enough the segment should come"
    );
    Ok(())
}
