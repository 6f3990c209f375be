//! The index that a push stores with each segment, held against `pg_waldump` of the same version.

#![expect(clippy::print_stdout, reason = "a test tells how much it compared")]

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use anyhow::{Context, Result, bail, ensure};
use walden_engine::codec::tail_of;
use walden_integration::{Said, Site};
use walden_model::index::{
    Crossing, DetailReader, Ends, MomentKind, Outcome, SegmentDetail, SegmentIndex, SegmentIndexer,
    StopReason, XidRange, crossing,
};
use walden_pg::{Lsn, SegmentName, WalSegmentSize};
use walden_testkit::{Cluster, PgInstall, StopMode, TestDir, Timestamp, run};

walden_testkit::on_every_version!(
    each_segments_index_agrees_with_pg_waldump,
    a_segment_that_was_damaged_before_is_archived_as_it_is_and_said_so,
);

/// Many edges for records to cross.
const SIZE: u64 = 1 << 20;

fn site<'a>(install: &'a PgInstall, dir: &'a TestDir) -> Result<Site<'a>> {
    let mut site = Site::new(install, dir, |cluster| {
        cluster
            .initdb_arg("--wal-segsize=1")
            .conf("max_prepared_transactions", "10")
            .conf("wal_keep_size", "4GB")
            .conf("max_wal_size", "4GB")
    })?;
    site.production.start()?;
    Ok(site)
}

fn pgbench(cluster: &Cluster, args: &[&str]) -> Result<()> {
    let mut command = cluster.install().command("pgbench");
    command
        .args(args)
        .args(["--username=postgres", "--no-vacuum"]);
    command.arg("--host").arg(cluster.socket_dir());
    command.arg(format!("--port={}", cluster.port()));
    run(command.arg("postgres")).map(drop)
}

const LOAD: &str = "
CREATE TABLE rows (id bigint PRIMARY KEY, words text);
INSERT INTO rows SELECT n, md5(n::text) FROM generate_series(1, 20000) AS s (n);
BEGIN; DELETE FROM rows WHERE id <= 5000; SAVEPOINT a; DELETE FROM rows WHERE id <= 6000; RELEASE a;
SAVEPOINT b; DELETE FROM rows WHERE id <= 7000; ROLLBACK TO b; COMMIT;
BEGIN; DELETE FROM rows; ROLLBACK;
BEGIN; INSERT INTO rows VALUES (-1, 'prepared'); PREPARE TRANSACTION 'kept';
COMMIT PREPARED 'kept';
BEGIN; INSERT INTO rows VALUES (-2, 'prepared'); PREPARE TRANSACTION 'not kept';
ROLLBACK PREPARED 'not kept';
SELECT pg_create_restore_point('twice');
SELECT pg_create_restore_point('twice');
DROP TABLE rows;
CHECKPOINT;
SELECT pg_create_restore_point('Überfall, ''quoted''; and so on');
";

fn each_segments_index_agrees_with_pg_waldump(install: &PgInstall, dir: &TestDir) -> Result<()> {
    let mut site = site(install, dir)?;
    let production = &site.production;
    pgbench(production, &["--initialize", "--scale=1"])?;
    // Commits that cross edges are needed: so WAL of almost nothing else.
    let commits = dir.server_file("commits.sql", "SELECT pg_current_xact_id();\n")?;
    let commits = commits.display().to_string();
    pgbench(
        production,
        &["--client=4", "--transactions=30000", "--file", &commits],
    )?;
    production.psql(LOAD)?;
    pgbench(production, &["--client=4", "--transactions=500"])?;
    let last = site.archive_all()?;
    let wal = site.production.pgdata().join("pg_wal");
    let mut archived = archived(&site)?;
    let names: Vec<SegmentName> = archived.keys().copied().collect();
    let said = Told::by_pg_waldump(install, &wal, &names)?;

    let (mut crossings, mut asked) = (0, 0);
    for (at, name) in names.iter().enumerate() {
        let bytes = fs::read(wal.join(name.to_string()))?;
        let mut index = archived.remove(name).context("an index")?;
        let of = index.of.take().context("the object that it stands in")?;
        ensure!(
            of.key.ends_with(&format!("/{name}.zst")),
            "the index of {name} says that it stands in {}",
            of.key
        );
        for piece in [8192, 100_003] {
            ensure!(
                indexed(*name, &bytes, piece)? == index,
                "in pieces of {piece} bytes {name} reads in another way"
            );
        }
        let next = names.get(at + 1).and_then(|next| archived.get(next));
        let ends_before = index.ends.as_ref().map(|ends| ends.last);
        let detail = in_full(*name, &bytes, names.get(at + 1), &wal)
            .with_context(|| format!("{name}, read in full"))?;
        match next.map_or(Crossing::None, |next| crossing(&index, &[next])) {
            Crossing::NeedsSegments => {
                asked += 1;
                index = detail.index.clone();
            }
            crossed @ (Crossing::None | Crossing::Said(_)) => index.absorb(&crossed),
            crossed => bail!("the record across the end of {name}: {crossed:?}"),
        }
        crossings += u32::from(ends_before != index.ends.as_ref().map(|ends| ends.last));
        said.compare(*name, &index)
            .with_context(|| format!("the index of {name}"))?;
        same(&detail, &index).with_context(|| format!("{name}, read in full"))?;
        if name.to_string() == last {
            let why = index.stopped.map(|stopped| stopped.why);
            ensure!(
                why == Some(StopReason::Switch),
                "{name} ends with a switch, its index says {why:?}"
            );
        }
    }
    println!(
        "version {}: {} segments, {} ends, {crossings} of them across segments",
        install.major(),
        names.len(),
        said.ends.values().map(Vec::len).sum::<usize>()
    );
    ensure!(crossings > 0, "no commit crossed an edge");
    ensure!(
        asked * 4 < names.len(),
        "{asked} of {} segments must be read for a record at their edge",
        names.len()
    );
    unfinished(&mut site)
}

/// A `.partial`: what was written of a segment, and zeros.
fn unfinished(site: &mut Site<'_>) -> Result<()> {
    site.production
        .psql("SELECT pg_create_restore_point('at the very end'); CREATE TABLE flushed ()")?;
    let wal = site.production.pgdata().join("pg_wal");
    let lsn = site.production.insert_lsn()?;
    let timeline = site.production.timeline()?;
    let name = SegmentName::containing(timeline, lsn, WalSegmentSize::new(SIZE)?);
    site.production.stop(StopMode::Immediate)?;
    let bytes = fs::read(wal.join(name.to_string()))?;
    let copy = site.dir.server_file(&format!("{name}.partial"), bytes)?;
    push(site, &copy)?;
    let stored = walden_integration::files(&site.repository())?;
    let stored = stored
        .keys()
        .find(|path| path.display().to_string().contains(".partial."))
        .context("the partial segment is archived")?;
    let index = index_of(stored)?.context("a partial segment has an index")?;
    let why = index.stopped.map(|stopped| stopped.why);
    let point = index.restore_points.last().map(|point| point.name.as_str());
    ensure!(
        why == Some(StopReason::EndOfWal) && point == Some("at the very end"),
        "a partial segment's index ends with WAL: {index:?}"
    );
    Ok(())
}

fn a_segment_that_was_damaged_before_is_archived_as_it_is_and_said_so(
    install: &PgInstall,
    dir: &TestDir,
) -> Result<()> {
    let site = site(install, dir)?;
    pgbench(&site.production, &["--initialize", "--scale=1"])?;
    site.archive_all()?;
    let wal = site.production.pgdata().join("pg_wal");
    let names: Vec<SegmentName> = archived(&site)?.into_keys().collect();
    let name = *names.get(names.len() / 2).context("a segment")?;
    let text = name.to_string();
    let mut bytes = fs::read(wal.join(&text))?;
    let start = name
        .start(WalSegmentSize::new(SIZE)?)
        .context("an odd name")?;
    let records = records(install, &wal, name, name)?;
    let hurt = records
        .iter()
        .map(|record| record.lsn)
        .find(|lsn| lsn.0 - start.0 > SIZE / 2)
        .context("a record")?;
    // Within its header's transaction id.
    let at = usize::try_from(hurt.0 - start.0)? + 5;
    *bytes.get_mut(at).context("a byte")? ^= 0x10;
    let copy = dir.server_file(&text, &bytes)?;
    fs::remove_file(site.stored(&text)?)?;

    push(&site, &copy)?.naming(&["damaged", &text, &hurt.to_string()])?;
    let index = index_of(&site.stored(&text)?)?.context("an index")?;
    let stopped = index.stopped.context("reading stopped")?;
    ensure!(
        stopped.why == StopReason::Damaged && stopped.at == hurt,
        "damage at {hurt} expected, the index says {stopped:?}"
    );
    let before = records.iter().filter(|record| record.lsn < hurt).count();
    ensure!(
        index.records == before as u64,
        "{before} records stand before the damage, the index counts {}",
        index.records
    );
    let back = dir.join("back");
    let mut fetch = site.binaries.command(install, "walden-wal-fetch")?;
    fetch.arg("--config").arg(dir.join("walden.yaml"));
    fetch.arg("--pgdata").arg(site.production.pgdata());
    Said::run(fetch.arg(&text).arg(&back))?.exited(0)?;
    ensure!(
        fs::read(&back)? == bytes,
        "{text} is archived byte for byte"
    );
    Ok(())
}

/// A push by hand, which succeeds.
fn push(site: &Site<'_>, file: &Path) -> Result<Said> {
    let mut push = site.binaries.command(site.install, "walden-wal-push")?;
    push.arg("--config").arg(site.dir.join("walden.yaml"));
    push.arg("--pgdata").arg(site.production.pgdata());
    Said::run(push.arg(file))?.exited(0)
}

fn index_of(object: &Path) -> Result<Option<SegmentIndex>> {
    let bytes = fs::read(object)?;
    let tail = tail_of(&bytes)?
        .ok()
        .context("an object is longer than its tail")?;
    let json = serde_json::to_vec(&tail.tail.index)?;
    ensure!(
        json.len() < 60 << 10,
        "an index of {} bytes is too long",
        json.len()
    );
    Ok(tail.tail.index.map(|index| *index))
}

/// The indexes in the repository. Every segment has one.
fn archived(site: &Site<'_>) -> Result<BTreeMap<SegmentName, SegmentIndex>> {
    let mut found = BTreeMap::new();
    for entry in fs::read_dir(site.production.pgdata().join("pg_wal/archive_status"))? {
        let entry = entry?.file_name();
        let name = entry.to_str().and_then(|name| name.strip_suffix(".done"));
        if let Some(Ok(name)) = name.map(str::parse::<SegmentName>) {
            let index = index_of(&site.stored(&name.to_string())?)?;
            found.insert(name, index.with_context(|| format!("{name} has no index"))?);
        }
    }
    Ok(found)
}

fn indexed(name: SegmentName, bytes: &[u8], piece: usize) -> Result<SegmentIndex> {
    let mut indexer = SegmentIndexer::new(name, WalSegmentSize::new(SIZE)?);
    for piece in bytes.chunks(piece) {
        indexer.feed(piece);
    }
    Ok(indexer.finish())
}

/// A segment read in full, with the record that goes on in the next one.
fn in_full(
    name: SegmentName,
    bytes: &[u8],
    next: Option<&SegmentName>,
    wal: &Path,
) -> Result<SegmentDetail> {
    let mut reader = DetailReader::new(name, WalSegmentSize::new(SIZE)?);
    for piece in bytes.chunks(100_003) {
        reader.feed(piece);
    }
    if let Some(next) = next {
        reader.next_segment();
        for piece in fs::read(wal.join(next.to_string()))?.chunks(5000) {
            if reader.is_joined() {
                break;
            }
            reader.feed(piece);
        }
        ensure!(reader.is_joined(), "all of the next segment does not do");
    }
    Ok(reader.finish())
}

/// Reading a segment in full tells the same as its index.
fn same(detail: &SegmentDetail, index: &SegmentIndex) -> Result<()> {
    ensure!(
        detail.index.ends == index.ends
            && detail.index.records == index.records
            && detail.index.end_lsn == index.end_lsn
            && detail.index.restore_points == index.restore_points,
        "{:?} differs from {index:?}",
        detail.index
    );
    let (ends, points) = detail
        .moments
        .iter()
        .fold((0, 0), |(ends, points), moment| match moment.what {
            MomentKind::End { .. } => (ends + 1, points),
            MomentKind::RestorePoint { .. } => (ends, points + 1),
        });
    let counted = index
        .ends
        .as_ref()
        .map_or(0, |ends| ends.commits + ends.aborts);
    ensure!(
        ends == counted && points == index.restore_points.len(),
        "{ends} ends and {points} restore points, the index has {counted} and {}",
        index.restore_points.len()
    );
    for facts in &index.transactions {
        ensure!(
            detail.index.transactions.contains(facts),
            "{facts:?} is not among {:?}",
            detail.index.transactions
        );
    }
    Ok(())
}

/// A record, as `pg_waldump` has it.
struct Line {
    lsn: Lsn,
    manager: String,
    xid: u32,
    desc: String,
}

fn records(
    install: &PgInstall,
    wal: &Path,
    first: SegmentName,
    last: SegmentName,
) -> Result<Vec<Line>> {
    let mut command = install.command("pg_waldump");
    command.arg("--path").arg(wal);
    // At WAL's end it complains and exits with 1.
    let output = command
        .args([first.to_string(), last.to_string()])
        .output()?;
    String::from_utf8(output.stdout)?
        .lines()
        .filter(|line| line.starts_with("rmgr: "))
        .map(|line| parse(line).with_context(|| format!("odd line of pg_waldump: {line}")))
        .collect()
}

fn parse(line: &str) -> Option<Line> {
    let (front, desc) = line.split_once(", desc: ")?;
    let field = |name: &str| front.split_once(name)?.1.split(',').next().map(str::trim);
    Some(Line {
        lsn: field("lsn: ")?.parse().ok()?,
        manager: front.split_whitespace().nth(1)?.to_owned(),
        xid: field("tx:")?.parse().ok()?,
        desc: desc.to_owned(),
    })
}

/// A commit or an abort: whether it is a commit, whose, where, and when.
type Fact = (bool, u32, Lsn, Timestamp);

/// What `pg_waldump` says of each segment.
#[derive(Default)]
struct Told {
    records: BTreeMap<u64, (Lsn, u64)>,
    ends: BTreeMap<u64, Vec<Fact>>,
    points: BTreeMap<u64, Vec<(String, Lsn)>>,
}

impl Told {
    fn by_pg_waldump(install: &PgInstall, wal: &Path, names: &[SegmentName]) -> Result<Self> {
        let mut told = Self::default();
        let (first, last) = names.first().zip(names.last()).context("no segments")?;
        for line in records(install, wal, *first, *last)? {
            let segment = line.lsn.0 / SIZE;
            told.records.entry(segment).or_insert((line.lsn, 0)).1 += 1;
            let (kind, rest) = line.desc.split_once(' ').unwrap_or((&line.desc, ""));
            match (line.manager.as_str(), kind) {
                ("Transaction", "COMMIT" | "ABORT" | "COMMIT_PREPARED" | "ABORT_PREPARED") => {
                    let (xid, at) = match rest.split_once(": ") {
                        Some((xid, at)) if kind.ends_with("PREPARED") => (xid.parse()?, at),
                        _ => (line.xid, rest),
                    };
                    let (time, _) = at.split_once(" UTC").context("no time")?;
                    let time: Timestamp = format!("{time}Z").parse()?;
                    let end = (kind.starts_with("COMMIT"), xid, line.lsn, time);
                    told.ends.entry(segment).or_default().push(end);
                }
                ("XLOG", "RESTORE_POINT") => {
                    let point = (rest.to_owned(), line.lsn);
                    told.points.entry(segment).or_default().push(point);
                }
                _ => {}
            }
        }
        Ok(told)
    }

    fn compare(&self, name: SegmentName, index: &SegmentIndex) -> Result<()> {
        let segment = name
            .number(WalSegmentSize::new(SIZE)?)
            .context("an odd name")?;
        // A segment can be all of one record's middle.
        let records = self.records.get(&segment).copied();
        let mut found = index.first_lsn.map(|first| (first, index.records));
        found = found.filter(|(_, records)| *records > 0);
        ensure!(
            records == found,
            "records and the first one's place: {records:?} expected, found {found:?}"
        );
        let ends = self.ends.get(&segment).map_or(&[][..], Vec::as_slice);
        ensure!(
            summary(ends) == index.ends.as_ref().map(words),
            "ends: expected {:?}, found {:?}",
            summary(ends),
            index.ends
        );
        let points: Vec<_> = index
            .restore_points
            .iter()
            .map(|point| (point.name.clone(), point.lsn))
            .collect();
        let expected = self.points.get(&segment).cloned().unwrap_or_default();
        ensure!(
            points == expected,
            "restore points: expected {expected:?}, found {points:?}"
        );
        Ok(())
    }
}

/// What an index should say of ends.
#[derive(Debug, PartialEq)]
struct Words {
    counts: (u64, u64),
    first: Fact,
    last: Fact,
    last_commit: Option<Fact>,
    times: (Timestamp, Timestamp),
    xids: (u32, u32),
}

fn summary(ends: &[Fact]) -> Option<Words> {
    let commits = ends.iter().filter(|end| end.0);
    Some(Words {
        counts: (
            commits.clone().count() as u64,
            ends.iter().filter(|end| !end.0).count() as u64,
        ),
        first: *ends.first()?,
        last: *ends.last()?,
        last_commit: commits.clone().next_back().copied(),
        times: (
            ends.iter().map(|end| end.3).min()?,
            ends.iter().map(|end| end.3).max()?,
        ),
        xids: (
            ends.iter().map(|end| end.1).min()?,
            ends.iter().map(|end| end.1).max()?,
        ),
    })
}

fn words(ends: &Ends) -> Words {
    let said =
        |end: walden_model::index::End| (end.kind == Outcome::Commit, end.xid, end.lsn, end.time);
    let XidRange { oldest, newest } = ends.xids;
    Words {
        counts: (ends.commits, ends.aborts),
        first: said(ends.first),
        last: said(ends.last),
        last_commit: ends.last_commit.map(said),
        times: (ends.min_time, ends.max_time),
        xids: (oldest, newest),
    }
}
