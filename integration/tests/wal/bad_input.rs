//! Files that are not what they should be, pushed and fetched.

use std::fs;

use anyhow::{Context, Result, ensure};
use walden_engine::codec::{FrameCompressor, encode_tail};
use walden_model::{Sha256Digest, Tail};
use walden_testkit::{Cluster, PgInstall, TestDir};

use crate::bench::{Bench, read};

super::on_17!(
    a_segment_that_is_not_what_its_name_says_is_refused,
    a_segment_with_an_unknown_page_magic_is_stored_and_reported,
    a_damaged_object_is_never_taken_for_the_same_bytes,
    a_damaged_object_is_never_restored,
    an_object_that_stands_elsewhere_is_never_restored,
    a_few_bytes_that_stand_for_many_do_not_fill_the_disk,
);

const AFTER_MAGIC: usize = 2;

fn a_segment_that_is_not_what_its_name_says_is_refused(
    install: &PgInstall,
    dir: &TestDir,
) -> Result<()> {
    let bench = Bench::new(install, dir)?;
    let (name, content) = bench.segment(1)?;
    let (other_name, _) = bench.segment(2)?;
    let timeline_2 = format!("00000002{}", name.get(8..).context("digits")?);
    let before = bench.objects()?;
    let changed = |at: usize, bytes: &[u8]| {
        let mut content = content.clone();
        content.splice(at..at + bytes.len(), bytes.iter().copied());
        content
    };
    let cut = |length: usize| content.get(..length).unwrap_or_default().to_vec();
    let partial = format!("{name}.partial");
    let half = content.len() / 2;
    for (what, name, content, says) in [
        ("empty", &name, Vec::new(), "WAL segment"),
        ("shorter than its header", &name, cut(39), "WAL segment"),
        ("cut in the middle", &name, cut(half), "524288 bytes"),
        (
            "a page short",
            &name,
            cut(content.len() - 8192),
            "1040384 bytes",
        ),
        (
            "a byte too long",
            &name,
            [content.as_slice(), b"x"].concat(),
            "1048577 bytes",
        ),
        (
            "a partial one that is cut",
            &partial,
            cut(half),
            "524288 bytes",
        ),
        (
            "another one's content",
            &other_name,
            content.clone(),
            "should begin at",
        ),
        (
            "zeroes",
            &name,
            vec![0; content.len()],
            "does not begin as a WAL segment",
        ),
        (
            "without the long header",
            &name,
            changed(AFTER_MAGIC, &[0, 0]),
            "long-header flag",
        ),
        (
            "of a later timeline",
            &name,
            changed(4, &[2, 0, 0, 0]),
            "timeline 2",
        ),
        (
            "of timeline 0",
            &name,
            changed(4, &[0, 0, 0, 0]),
            "timeline 0",
        ),
        (
            "of an impossible size",
            &name,
            changed(32, &[1, 0, 0, 0]),
            "impossible segment size",
        ),
        (
            "of another size",
            &name,
            changed(32, &[0, 0, 32, 0]),
            "1048576 bytes",
        ),
        (
            "of another cluster",
            &name,
            changed(24, &[7; 8]),
            "not registered",
        ),
    ] {
        let path = bench.elsewhere("bad", name, &content)?;
        bench
            .push(&path)?
            .fails_as_archive_command()
            .and_then(|answer| answer.says(&[name, says]))
            .with_context(|| format!("a segment {what}"))?;
    }
    // The first segment of a timeline may begin with its parent's pages, so a later name is no contradiction.
    let path = bench.elsewhere("good", &timeline_2, &content)?;
    ensure!(
        bench.objects()? == before,
        "nothing of all these should be stored"
    );
    bench.push(&path)?.exits(0)?;

    let path = bench.dir.join("bad").join("0000000100000000000000F0");
    fs::create_dir(&path)?;
    bench.push(&path)?.fails_as_archive_command()?;
    for name in [
        "0000000100000000000000F0.zst",
        "0000000100000000000000Fg",
        "x",
    ] {
        let path = bench.elsewhere("bad", name, &content)?;
        bench
            .push(&path)?
            .fails_as_archive_command()?
            .says(&["does not name a WAL file"])?;
    }
    Ok(())
}

fn a_segment_with_an_unknown_page_magic_is_stored_and_reported(
    install: &PgInstall,
    dir: &TestDir,
) -> Result<()> {
    let bench = Bench::new(install, dir)?;
    let (name, mut content) = bench.segment(0)?;
    content.splice(..AFTER_MAGIC, [0x99, 0xD1]);
    bench.put(&bench.pg_wal(&name), &content)?;
    bench
        .archive(&name)?
        .exits(0)?
        .says(&["WARN", &name, "D199"])?;
    bench.gives(&name, &content)
}

/// A segment of 16 MB, so of several frames, in the repository, and its cluster's first segment's content.
struct LargeSegment<'a> {
    bench: Bench<'a>,
    name: &'static str,
    content: Vec<u8>,
    object: Vec<u8>,
}

impl<'a> LargeSegment<'a> {
    fn new(install: &'a PgInstall, dir: &'a TestDir) -> Result<Self> {
        let mut bench = Bench::unregistered(install, dir)?;
        let cluster = Cluster::builder(install, dir, "large").build()?;
        bench.pgdata = cluster.pgdata().to_owned();
        bench.configure("")?;
        bench.walden(&["init"])?.exits(0)?;
        let name = "000000010000000000000001";
        bench.archive(name)?.exits(0)?;
        let content = read(bench.pg_wal(name))?;
        let object = read(bench.object(name)?)?;
        Ok(Self {
            bench,
            name,
            content,
            object,
        })
    }

    fn store(&self, object: &[u8]) -> Result<()> {
        Ok(fs::write(self.bench.object(self.name)?, object)?)
    }

    /// Damage in every region of the object, and what each is called.
    fn damaged(&self) -> Result<Vec<(String, Vec<u8>)>> {
        let object = &self.object;
        let length = object.len();
        let flipped = |at: usize| {
            let mut object = object.clone();
            if let Some(byte) = object.get_mut(at) {
                *byte ^= 0x10;
            }
            object
        };
        let cut = |at: usize| object.get(..at).unwrap_or_default().to_vec();
        let layout = Layout::of(object)?;
        let [first, second, third, ..] = layout.frames.as_slice() else {
            anyhow::bail!("a segment of 16 MB should have several frames");
        };
        let mut damaged = vec![
            ("nothing of it left".to_owned(), Vec::new()),
            ("all zeroes".to_owned(), vec![0; length]),
            (
                "something appended".to_owned(),
                [object, b"x".as_slice()].concat(),
            ),
            (
                "itself appended".to_owned(),
                [object.as_slice(), object].concat(),
            ),
            (
                "its tail twice".to_owned(),
                [object, object.get(layout.tail..).context("tail")?].concat(),
            ),
            (
                "a frame missing".to_owned(),
                [&cut(*second), object.get(*third..).context("frames")?].concat(),
            ),
            (
                "a frame twice".to_owned(),
                [&cut(*third), object.get(*second..).context("frames")?].concat(),
            ),
        ];
        for (at, where_) in [
            (0, "the head's magic"),
            (5, "the head's length"),
            (40, "the head"),
            (*first - 4, "the head's mark"),
            (*first, "the first frame's magic"),
            (*first + 5, "the first frame's header"),
            (*first + 200, "the first frame"),
            (*second - 1, "the first frame's checksum"),
            (*second + 10, "a frame in the middle"),
            (layout.tail - 1, "the last frame's checksum"),
            (layout.tail, "the tail's magic"),
            (layout.tail + 50, "the tail"),
            (length - 20, "the tail's digest"),
            (length - 10, "the tail's length"),
            (length - 1, "the tail's mark"),
        ] {
            damaged.push((format!("a bit flipped in {where_}"), flipped(at)));
        }
        for (at, where_) in [
            (4, "within the head's magic"),
            (*first, "after the head"),
            (*first + 100, "within the first frame"),
            (*second, "at a frame's edge"),
            (*third, "at another frame's edge"),
            (layout.tail, "before the tail"),
            (length - 30, "within the tail"),
            (length - 1, "before the last byte"),
        ] {
            damaged.push((format!("cut {where_}"), cut(at)));
        }
        Ok(damaged)
    }
}

/// Where the parts of an object begin, from docs/FORMAT.md.
struct Layout {
    frames: Vec<usize>,
    tail: usize,
}

impl Layout {
    fn of(object: &[u8]) -> Result<Self> {
        let number = |at: usize| -> Result<usize> {
            let bytes = object.get(at..at + 4).context("four bytes")?;
            Ok(u32::from_le_bytes(bytes.try_into()?) as usize)
        };
        let json = number(object.len() - 12)?;
        let tail = object.len() - 44 - json - 8;
        let text = object.get(tail + 8..tail + 8 + json).context("the tail")?;
        let text: serde_json::Value = serde_json::from_slice(text)?;
        let mut at = 8 + number(4)?;
        let mut frames = Vec::new();
        for frame in text["frames"].as_array().context("the frame table")? {
            frames.push(at);
            at += usize::try_from(frame[0].as_u64().context("a stored length")?)?;
        }
        ensure!(at == tail, "the frames should end where the tail begins");
        Ok(Self { frames, tail })
    }
}

fn a_damaged_object_is_never_taken_for_the_same_bytes(
    install: &PgInstall,
    dir: &TestDir,
) -> Result<()> {
    let large = LargeSegment::new(install, dir)?;
    let bench = &large.bench;
    let key = bench.object(large.name)?;
    let key = key.strip_prefix(&bench.mount)?.display().to_string();
    for (what, object) in large.damaged()? {
        large.store(&object)?;
        bench
            .archive(large.name)?
            .fails_as_archive_command()
            .and_then(|answer| answer.says(&[large.name, &key, "damaged"]))
            .with_context(|| format!("a push onto an object with {what}"))?;
        ensure!(
            read(bench.object(large.name)?)? == object,
            "a push should not touch an object with {what}"
        );
    }
    // The way out that the message names.
    fs::rename(bench.object(large.name)?, bench.dir.join("damaged"))?;
    bench.archive(large.name)?.exits(0)?;
    bench.gives(large.name, &large.content)
}

fn a_damaged_object_is_never_restored(install: &PgInstall, dir: &TestDir) -> Result<()> {
    let large = LargeSegment::new(install, dir)?;
    let bench = &large.bench;
    let destination = bench.pg_wal("RECOVERYXLOG");
    let key = bench.object(large.name)?;
    let key = key.strip_prefix(&bench.mount)?.display().to_string();
    for old in [None, Some("of an earlier call")] {
        for (what, object) in large.damaged()? {
            large.store(&object)?;
            if let Some(old) = old {
                bench.put(&destination, old.as_bytes())?;
            }
            bench
                .fetch(large.name, "pg_wal/RECOVERYXLOG")?
                .exits(201)
                .and_then(|answer| answer.says(&[large.name, &key]))
                .with_context(|| format!("a fetch of an object with {what}"))?;
            let now = fs::read_to_string(&destination).ok();
            ensure!(
                now.as_deref() == old,
                "a fetch of an object with {what} should leave {old:?} under %p, found {} bytes",
                now.unwrap_or_default().len()
            );
        }
    }
    large.store(&large.object)?;
    bench.gives(large.name, &large.content)
}

fn an_object_that_stands_elsewhere_is_never_restored(
    install: &PgInstall,
    dir: &TestDir,
) -> Result<()> {
    let bench = Bench::new(install, dir)?;
    let (one, _) = bench.segment(0)?;
    let (two, _) = bench.segment(1)?;
    bench.archive(&one)?.exits(0)?;
    bench.archive(&two)?.exits(0)?;
    let (first, second) = (bench.object(&one)?, bench.object(&two)?);
    let aside = bench.dir.join("aside");
    fs::rename(&first, &aside)?;
    fs::rename(&second, &first)?;
    fs::rename(&aside, &second)?;
    for name in [&one, &two] {
        bench
            .fetch(name, "pg_wal/RECOVERYXLOG")?
            .exits(201)?
            .says(&[name, "belongs elsewhere"])?;
        bench
            .archive(name)?
            .fails_as_archive_command()?
            .says(&["belongs elsewhere"])?;
    }
    ensure!(
        !bench.pg_wal("RECOVERYXLOG").exists(),
        "nothing should be restored"
    );

    // Another archive of the same key: a repository made anew, its objects copied together.
    fs::remove_file(&first)?;
    fs::remove_file(&second)?;
    bench.archive(&one)?.exits(0)?;
    let identity = bench.mount.join("main/identity");
    fs::rename(&identity, bench.dir.join("identity"))?;
    bench.walden(&["init"])?.exits(0)?;
    bench
        .fetch(&one, "pg_wal/RECOVERYXLOG")?
        .exits(201)?
        .says(&["archive_id"])?;
    Ok(())
}

/// Every digest of it is right: whoever may write into the repository can compute them.
fn a_few_bytes_that_stand_for_many_do_not_fill_the_disk(
    install: &PgInstall,
    dir: &TestDir,
) -> Result<()> {
    let bench = Bench::new(install, dir)?;
    let (name, content) = bench.segment(0)?;
    bench.push(bench.pg_wal(&name))?.exits(0)?;
    let object = bench.object(&name)?;
    let stored = read(&object)?;
    let head = stored
        .get(4..8)
        .and_then(|length| length.try_into().ok())
        .map(u32::from_le_bytes)
        .and_then(|length| stored.get(..8 + length as usize))
        .context("a head")?;
    let zeroes = vec![0; 4 << 20];
    let frame = FrameCompressor::new(1)?.compress(&zeroes)?;
    let frames = 8;
    let mut bomb = head.to_vec();
    for _ in 0..frames {
        bomb.extend_from_slice(&frame.stored);
    }
    let all = zeroes.repeat(frames);
    let tail = Tail {
        content_size: all.len() as u64,
        index: None,
        sha256: Some(Sha256Digest::of(&all)),
        frames: vec![frame.entry; frames],
    };
    bomb.extend_from_slice(&encode_tail(&tail)?.0);
    ensure!(
        bomb.len() < content.len() / 10 && all.len() > 10 * content.len(),
        "{} bytes stand for {}",
        bomb.len(),
        all.len()
    );
    fs::remove_file(&object)?;
    bench.put(&object, &bomb)?;
    let back = bench.pg_wal("back");
    bench
        .fetch(&name, &back)?
        .exits(201)?
        .says(&[&name, "longer than any file of its name"])?;
    ensure!(!back.exists(), "nothing of it must be left");
    Ok(())
}
