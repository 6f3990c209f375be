//! A configuration that cannot be used, told by each program in its own way.

use std::fs;

use anyhow::{Result, ensure};
use walden_testkit::{PgInstall, TestDir};

use crate::bench::Bench;

super::on_17!(a_bad_configuration_is_told_by_every_program);

fn a_bad_configuration_is_told_by_every_program(install: &PgInstall, dir: &TestDir) -> Result<()> {
    let bench = Bench::new(install, dir)?;
    let (name, _) = bench.segment(0)?;
    let before = bench.objects()?;
    let good = fs::read_to_string(bench.config())?;
    let all = |says: &[&str]| -> Result<()> {
        bench.archive(&name)?.exits(2)?.says(says)?;
        bench.walden(&["init"])?.exits(2)?.says(says)?;
        bench.walden(&["list-backups"])?.exits(2)?.says(says)?;
        bench
            .fetch(&name, "pg_wal/RECOVERYXLOG")?
            .exits(203)?
            .says(says)?;
        Ok(())
    };
    for (text, says) in [
        (
            format!("{good}compresion: {{ level: 1 }}\n"),
            [
                "unknown key \"compresion\"",
                "did you mean \"compression\"?",
            ],
        ),
        (
            good.replace("pgdata:", "pg_data:"),
            ["unknown key \"pg_data\"", "did you mean \"pgdata\"?"],
        ),
        (
            good.replace("path:", "pat:"),
            ["unknown key \"pat\"", "did you mean \"path\"?"],
        ),
        (
            good.replace("retry_for:", "retry-for:"),
            ["unknown key \"retry-for\"", "did you mean \"retry_for\"?"],
        ),
    ] {
        bench.configure_as(&text)?;
        all(&says)?;
    }
    bench.configure_as(&good)?;
    bench.mode(&bench.config(), 0o000)?;
    let file = bench.config().display().to_string();
    all(&["cannot read the configuration", &file, "ermission"])?;
    fs::remove_file(bench.config())?;
    all(&["cannot read the configuration", &file, "No such file"])?;
    ensure!(bench.objects()? == before, "nothing should be stored");
    bench.configure("")?;
    bench.archive(&name)?.exits(0)?;
    Ok(())
}
