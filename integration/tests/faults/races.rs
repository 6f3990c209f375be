//! Two pushes of one name at the same time.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Result, anyhow, bail, ensure};
use rand::RngExt;
use walden_testkit::{PgInstall, TestDir};

use crate::bench::{Answer, Bench, read};
use crate::chance;

super::on_17!(of_two_pushes_at_once_one_wins_and_none_is_lied_to);

const ROUNDS: usize = 1000;

/// A file's name with two contents, each in a file of its own.
struct Rivals {
    name: String,
    object: PathBuf,
    files: [(PathBuf, Vec<u8>); 2],
}

impl Rivals {
    fn new(bench: &Bench<'_>, name: &str, object: PathBuf, contents: [Vec<u8>; 2]) -> Result<Self> {
        let [one, two] = contents;
        Ok(Self {
            name: name.to_owned(),
            object,
            files: [
                (bench.elsewhere("one", name, &one)?, one),
                (bench.elsewhere("two", name, &two)?, two),
            ],
        })
    }
}

fn of_two_pushes_at_once_one_wins_and_none_is_lied_to(
    install: &PgInstall,
    dir: &TestDir,
) -> Result<()> {
    let bench = Bench::new(install, dir)?;
    let mut random = chance()?;
    let (name, content) = bench.segment(0)?;
    let mut other = content.clone();
    if let Some(byte) = other.get_mut(600_000) {
        *byte ^= 1;
    }
    let segment = Rivals::new(&bench, &name, bench.object(&name)?, [content, other])?;
    // Two standbys that were promoted to one timeline. Small, so that nothing but the race takes time.
    let name = "00000002.history";
    let histories = ["first", "second"].map(|side| read(bench.wal.promoted(side).join(name)));
    let [first, second] = histories;
    let folder = bench.cluster_folder()?;
    let object = folder.join("wal").join(format!("{name}.zst"));
    let history = Rivals::new(&bench, name, object, [first?, second?])?;

    let (mut wins, mut same) = ([0, 0], 0);
    for round in 0..ROUNDS {
        for folder in [&folder, &bench.mount.join(".tmp")] {
            if folder.exists() {
                fs::remove_dir_all(folder)?;
            }
        }
        let rivals = if round % 10 == 0 { &segment } else { &history };
        let rival = usize::from(round % 3 != 0);
        let delays = [random.random_range(0..3000), random.random_range(0..3000)];
        let push = |path: &Path, microseconds: u64| -> Result<Answer> {
            // Where one is when the other comes is chance, and that is the point.
            std::thread::sleep(Duration::from_micros(microseconds));
            bench.push(path)
        };
        let (first, second) = std::thread::scope(|scope| {
            let second = scope.spawn(|| push(&rivals.files[rival].0, delays[1]));
            (push(&rivals.files[0].0, delays[0]), second.join())
        });
        let first = first?;
        let second = second.map_err(|_| anyhow!("a thread of the test broke off"))??;
        let codes = (first.status.code(), second.status.code());
        let told = format!(
            "round {round}, {}, exit codes {codes:?}:\n{}{}",
            rivals.name, first.stderr, second.stderr
        );
        let winner = match (rival, codes) {
            (0, (Some(0), Some(0))) => {
                same += 1;
                0
            }
            (1, (Some(0), Some(1))) => {
                wins[0] += 1;
                second.says(&["--quarantine"])?;
                0
            }
            (1, (Some(1), Some(0))) => {
                wins[1] += 1;
                first.says(&["--quarantine"])?;
                1
            }
            (0, _) => bail!("two pushes of the same bytes should succeed: {told}"),
            _ => bail!("one of two pushes of different bytes should succeed: {told}"),
        };
        ensure!(
            bench.unzstd(&rivals.object)? == rivals.files[winner].1,
            "what was said to be stored should stand there: {told}"
        );
    }
    eprintln!("{same} rounds with the same bytes, {wins:?} won with different ones");
    ensure!(
        wins.iter().all(|wins| *wins > 50),
        "each of the two should have won more often: {wins:?}"
    );
    Ok(())
}
