//! WAL of real servers, record for record as `pg_waldump` of the same version lists it.

#![expect(clippy::print_stdout, reason = "a test tells how much it compared")]

mod load;
mod waldump;

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

use anyhow::{Context, Result, bail, ensure};
use walden_pg::wal_record::{
    Checkpoint, Event, PartBytes, Record, RecordHeader, SegmentEnd, SegmentReader, Stop,
    record_end, whole_record,
};
use walden_pg::{Lsn, SegmentName, TimelineId, WalSegmentSize};
use walden_testkit::{PgInstall, TestDir};
use waldump::Line;

walden_testkit::on_every_version!(every_record_reads_as_pg_waldump_reads_it);

const SIZE: u64 = 4 << 20;

fn every_record_reads_as_pg_waldump_reads_it(install: &PgInstall, dir: &TestDir) -> Result<()> {
    let mut cluster = load::cluster(install, dir)?;
    cluster.start()?;
    load::write(&cluster)?;
    load::promote(&mut cluster)?;
    let end = cluster.insert_lsn()?;
    drop(cluster);

    let wal = dir.join("written/pg_wal");
    let mut seen = Seen::default();
    for timeline in [TimelineId(1), TimelineId(2)] {
        let ours = Timeline::read(&wal, timeline, end, &mut seen)?;
        let theirs = pg_waldump(install, &wal, &ours.names)?;
        compare(&ours.lines, &theirs).with_context(|| format!("timeline {timeline}"))?;
        println!(
            "version {}, timeline {timeline}: {} segments, {} records, {} of them across segments",
            install.major(),
            ours.names.len(),
            ours.lines.len(),
            ours.crossing
        );
    }
    seen.judge(install.major())
}

/// The records of one timeline, from all of its segments.
#[derive(Default)]
struct Timeline {
    names: Vec<SegmentName>,
    lines: Vec<Line>,
    /// Parts of a record that crosses segments, as far as segments were read.
    parts: Vec<PartBytes>,
    crossing: usize,
}

impl Timeline {
    fn read(wal: &Path, timeline: TimelineId, end: Lsn, seen: &mut Seen) -> Result<Self> {
        /// Files come in pieces of any size.
        const PIECES: [usize; 6] = [SIZE as usize, 1 << 20, 8192, 8191, 100_003, 7];
        let size = WalSegmentSize::new(SIZE)?;
        let mut read = Self::default();
        for (name, piece) in segments(wal, timeline)?
            .into_iter()
            .zip(PIECES.into_iter().cycle())
        {
            let start = name.start(size).context("an odd name")?;
            // What follows was laid ready for later.
            if start >= end {
                break;
            }
            let bytes = fs::read(wal.join(name.to_string()))?;
            let (mut lines, mut ends) = (Vec::new(), Vec::new());
            let mut reader = SegmentReader::new(start, timeline);
            for piece in bytes.chunks(piece) {
                reader.feed(piece, &mut |record| {
                    seen.note(record);
                    lines.push(waldump::expected(record));
                    ends.push(record.end_lsn);
                });
            }
            let found = reader.finish();
            for (end, next) in ends.iter().zip(lines.iter().skip(1)) {
                ensure!(
                    begins(*end) == next.lsn,
                    "a record of {name} ends at {end}, the next begins at {}",
                    next.lsn
                );
            }
            ensure!(
                found.records == lines.len() as u64 && found.end == ends.last().copied(),
                "the summary of {name} should fit its records: {found:?}"
            );
            ensure!(
                !matches!(found.stop, Some(Stop::Damaged | Stop::UnknownVersion)),
                "{name} is whole: {found:?}"
            );
            seen.kinds.insert(format!("stop {:?}", found.stop));
            read.join(&found, size, seen)
                .with_context(|| format!("the record across the edge before {name}"))?;
            read.parts.extend(found.tail);
            read.lines.extend(lines);
            read.names.push(name);
        }
        Ok(read)
    }

    /// Joins a record that an earlier segment began with its part in this one.
    fn join(&mut self, found: &SegmentEnd, size: WalSegmentSize, seen: &mut Seen) -> Result<()> {
        let Some(head) = &found.head else {
            ensure!(self.parts.is_empty(), "the record's rest is missing");
            return Ok(());
        };
        // The timeline's first segment may begin with the rest of one that is not here.
        if self.names.is_empty() {
            return Ok(());
        }
        self.parts.push(head.clone());
        if head.remaining > 0 {
            seen.kinds
                .insert("a record longer than a segment".to_owned());
            return Ok(());
        }
        let parts = std::mem::take(&mut self.parts);
        let lsn = parts.first().and_then(|tail| tail.lsn).context("no tail")?;
        let bytes: Vec<u8> = parts
            .iter()
            .flat_map(|part| part.bytes.iter().copied())
            .collect();
        let length: u64 = parts.iter().map(|part| part.length).sum();
        let header = RecordHeader::parse(&bytes).context("no header")?;
        ensure!(
            u64::from(header.total_length) == length,
            "{length} bytes of {}",
            header.total_length
        );
        let version = found.version.context("no version")?;
        let record = if bytes.len() as u64 == length {
            let whole = whole_record(lsn, &bytes, version, size).context("its CRC does not fit")?;
            seen.note(&whole);
            whole
        } else {
            seen.kinds
                .insert("a record across segments that is too long".to_owned());
            Record {
                lsn,
                end_lsn: record_end(lsn, header.total_length, size).context("beyond the end")?,
                header,
                version,
                body: None,
            }
        };
        if let Some(first) = found.first {
            ensure!(
                begins(record.end_lsn) == first,
                "it ends at {}, the next begins at {first}",
                record.end_lsn
            );
        }
        self.crossing += 1;
        self.lines.push(waldump::expected(&record));
        Ok(())
    }
}

/// Where the record begins that follows one that ended at `end`: a page's first one behind the page's header.
fn begins(end: Lsn) -> Lsn {
    match end.0 {
        at if at.is_multiple_of(SIZE) => Lsn(at + 40),
        at if at.is_multiple_of(8192) => Lsn(at + 24),
        at => Lsn(at),
    }
}

fn segments(wal: &Path, timeline: TimelineId) -> Result<BTreeSet<SegmentName>> {
    let mut names = BTreeSet::new();
    for entry in fs::read_dir(wal)? {
        let name = entry?.file_name();
        let name = name
            .to_str()
            .and_then(|name| name.parse::<SegmentName>().ok());
        names.extend(name.filter(|name| name.timeline == timeline));
    }
    Ok(names)
}

/// What `pg_waldump` lists. At WAL's end it complains and exits with 1.
fn pg_waldump(install: &PgInstall, wal: &Path, names: &[SegmentName]) -> Result<Vec<Line>> {
    let (Some(first), Some(last)) = (names.first(), names.last()) else {
        bail!("no segments");
    };
    let mut command = install.command("pg_waldump");
    command.arg("--path").arg(wal);
    let output = command
        .args([first.to_string(), last.to_string()])
        .output()?;
    String::from_utf8(output.stdout)?
        .lines()
        .filter(|line| line.starts_with("rmgr: "))
        .map(waldump::parse)
        .collect()
}

fn compare(ours: &[Line], theirs: &[Line]) -> Result<()> {
    for (ours, theirs) in ours.iter().zip(theirs) {
        ensure!(
            ours == theirs,
            "read:       {ours:?}\npg_waldump: {theirs:?}"
        );
    }
    ensure!(
        ours.len() == theirs.len(),
        "{} records were read, pg_waldump lists {}",
        ours.len(),
        theirs.len()
    );
    Ok(())
}

/// Which kinds of things occurred: a test that never met one proves nothing about it.
#[derive(Default)]
struct Seen {
    records: u64,
    kinds: BTreeSet<String>,
}

impl Seen {
    fn note(&mut self, record: &Record<'_>) {
        self.records += 1;
        if record.body.is_none() {
            self.kinds.insert("a record without its body".to_owned());
        }
        if record.top_xid().is_some_and(|top| top < record.header.xid) {
            self.kinds.insert("a subtransaction's top".to_owned());
        }
        let Some(event) = record.event() else { return };
        if let Event::End(end) = &event {
            for (name, found) in [
                ("subtransactions", !end.subxids.is_empty()),
                ("dropped files", !end.dropped_files.is_empty()),
                ("dropped statistics", !end.dropped_stats.is_empty()),
                ("invalidations", !end.invalidated.is_empty()),
            ] {
                if found {
                    self.kinds.insert(format!("{:?} with {name}", end.kind));
                }
            }
        }
        self.kinds.insert(match event {
            Event::End(end) => format!("{:?} prepared {}", end.kind, end.prepared),
            Event::Heap { change, rows, .. } => format!("{change:?} many {}", rows > 1),
            Event::Checkpoint(Checkpoint { shutdown, .. }) => {
                format!("checkpoint shutdown {shutdown}")
            }
            other => {
                let words = format!("{other:?}");
                let end = words.find(|c: char| !c.is_alphanumeric());
                words
                    .get(..end.unwrap_or(words.len()))
                    .unwrap_or_default()
                    .to_owned()
            }
        });
    }

    fn judge(&self, major: u16) -> Result<()> {
        let mut expected = BTreeSet::from([
            "Abort prepared false",
            "Abort prepared true",
            "Abort with dropped files",
            "Abort with subtransactions",
            "Assignment",
            "Commit prepared false",
            "Commit prepared true",
            "Commit with dropped files",
            "Commit with invalidations",
            "Commit with subtransactions",
            "DatabaseDropped",
            "Delete many false",
            "EndOfRecovery",
            "FileCreated",
            "Inplace many false",
            "Insert many false",
            "Insert many true",
            "Locks",
            "Pages",
            "RestorePoint",
            "RunningXacts",
            "Switch",
            "Update many false",
            "a record across segments that is too long",
            "a record longer than a segment",
            "a record without its body",
            "checkpoint shutdown false",
            "checkpoint shutdown true",
            "stop None",
            "stop Some(EndOfWal)",
            "stop Some(Switch)",
        ]);
        if major >= 15 {
            expected.extend([
                "Abort with dropped statistics",
                "Commit with dropped statistics",
            ]);
        }
        if load::is_logical(major) {
            expected.extend(["Truncate", "a subtransaction's top"]);
        }
        let missing: Vec<&&str> = expected
            .iter()
            .filter(|kind| !self.kinds.contains(**kind))
            .collect();
        ensure!(
            missing.is_empty(),
            "the load never made: {missing:?}; it made {:?}",
            self.kinds
        );
        ensure!(
            self.records > 20_000,
            "{} records are too few",
            self.records
        );
        Ok(())
    }
}
