//! `archive_command`: what is stored, where, and what a second push of the same name means.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use anyhow::{Context, Result, ensure};
use walden_testkit::{Cluster, PgInstall, TestDir, on_every_version};

use crate::bench::{Answer, Bench, read};

super::on_17!(
    a_segment_of_16_mb_goes_there_and_back,
    a_segment_of_64_mb_goes_there_and_back,
    a_segment_of_1_gb_goes_there_and_back,
    every_kind_of_wal_file_stands_where_the_format_says,
    the_same_file_again_is_a_success_and_changes_nothing,
    two_partial_files_of_one_name_are_both_kept,
    other_bytes_under_one_name_are_refused_until_they_are_set_aside,
    only_what_is_in_conflict_can_be_set_aside,
    segments_of_another_size_than_the_registered_are_refused,
    a_history_file_with_other_bytes_is_refused,
    the_data_directory_is_found,
    a_clusters_files_are_archived_only_where_it_is_registered,
);
on_every_version!(a_segment_of_each_version_goes_there_and_back);

/// The first segment of a new cluster, which `initdb` wrote.
const FIRST: &str = "000000010000000000000001";

/// The oldest segment in `pg_wal`: where segments are small, `initdb` itself writes more than one.
fn oldest(pg_wal: &Path) -> Result<String> {
    let mut names = Vec::new();
    for entry in fs::read_dir(pg_wal)? {
        names.push(entry?.file_name().to_string_lossy().into_owned());
    }
    names.retain(|name| name.len() == FIRST.len());
    names.into_iter().min().context("no segment in pg_wal")
}

/// Makes a cluster with segments of that many MB, registers it, and moves its first segment to the repository and back.
fn there_and_back(install: &PgInstall, dir: &TestDir, megabytes: u64) -> Result<()> {
    let cluster = Cluster::builder(install, dir, "cluster")
        .initdb_arg(&format!("--wal-segsize={megabytes}"))
        .build()?;
    let seventeen = PgInstall::get(17)?;
    let bench = Bench::unregistered(&seventeen, dir)?;
    bench.configure_as(&format!(
        "clusters: {{ main: {{ pgdata: {} }} }}\nrepositories: [{{ name: here, path: {} }}]",
        cluster.pgdata().display(),
        bench.mount.display()
    ))?;
    bench.walden(&["init"])?.exits(0)?;
    let name = oldest(&cluster.pgdata().join("pg_wal"))?;
    let file = cluster.pgdata().join("pg_wal").join(&name);
    ensure!(
        fs::metadata(&file)?.len() == megabytes << 20,
        "a segment of {megabytes} MB was asked for"
    );
    bench
        .push(&file)?
        .exits(0)?
        .never_says("WARN")?
        .says(&["archived"])?;
    let destination = cluster.pgdata().join("pg_wal/RECOVERYXLOG");
    let mut fetch = bench.command(&[], "walden-wal-fetch", &[&name, "pg_wal/RECOVERYXLOG"])?;
    fetch.current_dir(cluster.pgdata());
    Answer::of(fetch)?.exits(0)?;
    let mut cmp = std::process::Command::new("cmp");
    cmp.arg(&file).arg(&destination);
    Answer::of(cmp)?.exits(0)?;
    let object = bench
        .objects()?
        .into_iter()
        .map(|(path, _)| path)
        .find(|path| path.ends_with(format!("00000001/00000000/{name}.zst")))
        .context("the segment should be in the repository")?;
    let mut plain = std::process::Command::new("sh");
    plain.args(["-c", "zstd -dc \"$1\" | cmp - \"$2\"", "sh"]);
    plain.arg(object).arg(&file);
    Answer::of(plain)?.exits(0)?;
    Ok(())
}

fn a_segment_of_16_mb_goes_there_and_back(install: &PgInstall, dir: &TestDir) -> Result<()> {
    there_and_back(install, dir, 16)
}

fn a_segment_of_64_mb_goes_there_and_back(install: &PgInstall, dir: &TestDir) -> Result<()> {
    there_and_back(install, dir, 64)
}

fn a_segment_of_1_gb_goes_there_and_back(install: &PgInstall, dir: &TestDir) -> Result<()> {
    there_and_back(install, dir, 1024)
}

fn a_segment_of_each_version_goes_there_and_back(install: &PgInstall, dir: &TestDir) -> Result<()> {
    there_and_back(install, dir, 1)
}

fn every_kind_of_wal_file_stands_where_the_format_says(
    install: &PgInstall,
    dir: &TestDir,
) -> Result<()> {
    let bench = Bench::new(install, dir)?;
    let wal = &bench.wal;
    let backup = &wal.backup;
    let (segment, _) = bench.segment(0)?;
    let digits = &segment.get(8..16).context("digits")?;
    for (from, name, place) in [
        (
            wal.pgdata().join("pg_wal"),
            segment.as_str(),
            format!("wal/00000001/{digits}/{segment}.zst"),
        ),
        (
            wal.pgdata().join("pg_wal"),
            backup.as_str(),
            format!("wal/00000001/{digits}/{backup}.zst"),
        ),
        (
            wal.promoted("first"),
            "00000002.history",
            "wal/00000002.history.zst".to_owned(),
        ),
        (
            // Its first pages are still timeline 1's.
            wal.promoted("first"),
            wal.fork.as_str(),
            format!("wal/00000002/{digits}/{}.zst", wal.fork),
        ),
    ] {
        let content = read(from.join(name))?;
        bench.put(&bench.pg_wal(name), &content)?;
        bench.archive(name)?.exits(0)?.never_says("WARN")?;
        let object = bench.cluster_folder()?.join(&place);
        ensure!(object.is_file(), "{name} should be stored as {place}");
        ensure!(
            bench.unzstd(&object)? == content,
            "zstd -d of {place} should give {name}"
        );
        bench.gives(name, &content)?;
    }
    Ok(())
}

fn the_same_file_again_is_a_success_and_changes_nothing(
    install: &PgInstall,
    dir: &TestDir,
) -> Result<()> {
    let bench = Bench::new(install, dir)?;
    let (segment, _) = bench.segment(0)?;
    let history = read(bench.wal.promoted("first").join("00000002.history"))?;
    bench.put(&bench.pg_wal("00000002.history"), &history)?;
    for name in [segment.as_str(), "00000002.history"] {
        bench.archive(name)?.exits(0)?;
        let before = bench.objects()?;
        let inode = fs::metadata(bench.mount.join("walden.json"))?.ino();
        bench
            .archive(name)?
            .exits(0)?
            .says(&["archived already, with the same bytes"])?;
        ensure!(
            bench.objects()? == before,
            "a second push of {name} should change nothing"
        );
        ensure!(
            fs::metadata(bench.mount.join("walden.json"))?.ino() == inode,
            "the root document should be the same file"
        );
    }
    Ok(())
}

fn two_partial_files_of_one_name_are_both_kept(install: &PgInstall, dir: &TestDir) -> Result<()> {
    let bench = Bench::new(install, dir)?;
    let name = bench.wal.partial();
    let mut contents = Vec::new();
    for side in ["first", "second"] {
        let content = read(bench.wal.promoted(side).join(&name))?;
        let path = bench.elsewhere(side, &name, &content)?;
        bench.push(&path)?.exits(0)?;
        bench.push(&path)?.exits(0)?.says(&["already"])?;
        contents.push(content);
    }
    ensure!(
        contents.first() != contents.last(),
        "the standbys should have been promoted at different places of {name}"
    );
    let mut stored = Vec::new();
    for (path, _) in bench.objects()? {
        if path.to_string_lossy().contains(".partial.") {
            stored.push(bench.unzstd(&path)?);
        }
    }
    ensure!(
        stored.len() == 2 && contents.iter().all(|content| stored.contains(content)),
        "both files of the name {name} should be stored, and nothing else; found {}",
        stored.len()
    );
    bench.fetch(&name, "pg_wal/RECOVERYXLOG")?.exits(1)?;
    Ok(())
}

fn only_what_is_in_conflict_can_be_set_aside(install: &PgInstall, dir: &TestDir) -> Result<()> {
    let bench = Bench::new(install, dir)?;
    let (name, content) = bench.segment(0)?;
    let file = bench.pg_wal(&name);
    let before = bench.objects()?;
    bench
        .push_with(&["--quarantine"], &file)?
        .fails_as_archive_command()?
        .says(&[&name, "in conflict with nothing", "without --quarantine"])?;
    ensure!(
        bench.objects()? == before,
        "a segment that is archived nowhere must stay with PostgreSQL"
    );
    bench.push(&file)?.exits(0)?;
    let archived = bench.objects()?;
    bench.push_with(&["--quarantine"], &file)?.exits(0)?;
    ensure!(
        bench.objects()? == archived,
        "what is archived with the same bytes needs no setting aside"
    );
    bench.gives(&name, &content)
}

fn segments_of_another_size_than_the_registered_are_refused(
    install: &PgInstall,
    dir: &TestDir,
) -> Result<()> {
    let cluster = Cluster::builder(install, dir, "cluster").build()?;
    let bench = Bench::unregistered(install, dir)?;
    bench.configure_as(&format!(
        "clusters: {{ main: {{ pgdata: {} }} }}\nrepositories: [{{ name: here, path: {} }}]",
        cluster.pgdata().display(),
        bench.mount.display()
    ))?;
    bench.walden(&["init"])?.exits(0)?;
    let mut reset = install.server_command("pg_resetwal")?;
    reset.args(["--wal-segsize=1", "-D"]).arg(cluster.pgdata());
    walden_testkit::run(&mut reset)?;
    let pg_wal = cluster.pgdata().join("pg_wal");
    bench
        .push(pg_wal.join(oldest(&pg_wal)?))?
        .fails_as_archive_command()?
        .says(&["1MB", "16MB", "pg_resetwal", "another name"])?;
    Ok(())
}

/// The LSN of a byte of a segment of 1 MB.
fn lsn(segment: &str, offset: usize) -> Result<String> {
    let log = u64::from_str_radix(segment.get(8..16).context("digits")?, 16)?;
    let number = u64::from_str_radix(segment.get(16..).context("digits")?, 16)?;
    Ok(format!("{log:X}/{:X}", (number << 20) + offset as u64))
}

fn other_bytes_under_one_name_are_refused_until_they_are_set_aside(
    install: &PgInstall,
    dir: &TestDir,
) -> Result<()> {
    let bench = Bench::new(install, dir)?;
    let name = &bench.wal.fork;
    let [stood, came] = ["first", "second"].map(|side| read(bench.wal.promoted(side).join(name)));
    let (stood, came) = (stood?, came?);
    let differ = stood
        .iter()
        .zip(&came)
        .position(|(a, b)| a != b)
        .context("two promoted standbys should write different segments")?;
    let host = fs::read_to_string("/proc/sys/kernel/hostname")?;
    let host = host.trim();
    let first = bench.elsewhere("first", name, &stood)?;
    let second = bench.elsewhere("second", name, &came)?;
    bench.push(&first)?.exits(0)?;
    let before = bench.objects()?;
    let first_difference = format!("LSN {}", lsn(name, differ)?);
    let answer = bench.push(&second)?.fails_as_archive_command()?.says(&[
        name,
        &first_difference,
        "Archived by",
        "now offered by",
        "--quarantine",
        &second.display().to_string(),
    ])?;
    ensure!(
        answer.stderr.matches(host).count() >= 2,
        "both writers' host {host} should be named: {}",
        answer.stderr
    );
    ensure!(
        bench.objects()? == before,
        "a conflict should change nothing"
    );

    bench.push_with(&["--quarantine"], &second)?.exits(0)?;
    // The archiver's own next try.
    bench
        .push(&second)?
        .exits(0)?
        .says(&["set aside already"])?;
    bench.push_with(&["--quarantine"], &second)?.exits(0)?;
    ensure!(
        bench.unzstd(&bench.object(name)?)? == stood,
        "what stood first should stand"
    );
    // Whose it is, nobody can tell: it must not pass for this cluster's.
    bench
        .fetch(name, "pg_wal/RECOVERYXLOG")?
        .exits(201)?
        .says(&[name, "quarantine/", "after the conflict"])?;
    let mut after = bench.objects()?;
    after.retain(|object| !before.contains(object));
    let [(aside, _)] = after.as_slice() else {
        anyhow::bail!("one object should have been added, found {}", after.len());
    };
    ensure!(
        aside.starts_with(bench.cluster_folder()?.join("quarantine"))
            && bench.unzstd(aside)? == came,
        "{} should hold the newcomer",
        aside.display()
    );

    // What was set aside excuses that file alone.
    let mut third = came;
    let last = third.last_mut().context("a byte")?;
    *last ^= 1;
    let third = bench.elsewhere("third", name, &third)?;
    bench
        .push(&third)?
        .fails_as_archive_command()?
        .says(&["other bytes"])?;
    Ok(())
}

fn a_history_file_with_other_bytes_is_refused(install: &PgInstall, dir: &TestDir) -> Result<()> {
    let bench = Bench::new(install, dir)?;
    let name = "00000002.history";
    let [first, second] = ["first", "second"].map(|side| read(bench.wal.promoted(side).join(name)));
    let (first, second) = (first?, second?);
    ensure!(first != second, "the standbys' histories should differ");
    let differ = first.iter().zip(&second).position(|(a, b)| a != b);
    let differ = differ.context("neither should begin with the other")?;
    bench.put(&bench.pg_wal(name), &first)?;
    bench.archive(name)?.exits(0)?;
    for (content, offset) in [
        (second.as_slice(), differ),
        (
            first.get(..first.len() - 4).context("bytes")?,
            first.len() - 4,
        ),
        ([first.as_slice(), b"\n"].concat().as_slice(), first.len()),
        (b"", 0),
    ] {
        bench.put(&bench.pg_wal(name), content)?;
        bench.archive(name)?.fails_as_archive_command()?.says(&[
            name,
            &format!("byte {offset}"),
            "--quarantine",
        ])?;
        bench.gives(name, &first)?;
    }
    Ok(())
}

fn the_data_directory_is_found(install: &PgInstall, dir: &TestDir) -> Result<()> {
    let bench = Bench::new(install, dir)?;
    let name = "00000002.history";
    let content = read(bench.wal.promoted("first").join(name))?;
    bench.put(&bench.pg_wal(name), &content)?;
    let other = Cluster::builder(install, dir, "other").build()?;
    let push = |folder: &Path, options: &[&str], path: &Path| -> Result<Answer> {
        let mut command = bench.command(&[], "walden-wal-push", options)?;
        command.current_dir(folder).arg(path);
        Answer::of(command)
    };
    let root = Path::new("/");
    let pgdata = bench.pgdata.display().to_string();
    let absolute = bench.pg_wal(name);
    let moved = bench.elsewhere("moved", name, &content)?;

    push(&bench.pgdata, &[], Path::new("pg_wal/00000002.history"))?.exits(0)?;
    push(root, &[], &absolute)?.exits(0)?;
    push(&bench.pgdata.join("pg_wal"), &[], Path::new(name))?
        .fails_as_archive_command()?
        .says(&["--pgdata"])?;
    // pg_wal may be a link to another disk.
    push(&bench.pgdata, &[], &moved)?.exits(0)?;
    push(root, &["--pgdata", &pgdata], &moved)?.exits(0)?;
    push(root, &[], &moved)?
        .fails_as_archive_command()?
        .says(&["--pgdata"])?;
    // A person in another cluster's directory who names this one's file means this one.
    push(other.pgdata(), &[], &absolute)?.exits(0)?;
    push(root, &["--pgdata", "/nonexistent"], &absolute)?
        .fails_as_archive_command()?
        .says(&["--pgdata"])?;
    Ok(())
}

fn a_clusters_files_are_archived_only_where_it_is_registered(
    install: &PgInstall,
    dir: &TestDir,
) -> Result<()> {
    let bench = Bench::new(install, dir)?;
    let other = Cluster::builder(install, dir, "other").build()?;
    let before = bench.objects()?;
    let foreign = other.pgdata().join("pg_wal").join(FIRST);
    let control = read(other.pgdata().join("global/pg_control"))?;
    let system = u64::from_le_bytes(*control.first_chunk().context("bytes")?).to_string();
    bench.push(&foreign)?.fails_as_archive_command()?.says(&[
        "\"main\"",
        &system,
        "not registered",
        "walden init --cluster main",
    ])?;
    // The same for a history file, whose cluster is only known from where it stands.
    let history = read(bench.wal.promoted("first").join("00000002.history"))?;
    bench.put(&other.pgdata().join("pg_wal/00000002.history"), &history)?;
    bench
        .push(other.pgdata().join("pg_wal/00000002.history"))?
        .fails_as_archive_command()?
        .says(&["not registered", "walden init"])?;
    ensure!(
        bench.objects()? == before,
        "nothing of another cluster should be stored"
    );
    Ok(())
}
