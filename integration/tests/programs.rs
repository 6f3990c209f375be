//! The programs themselves, as the database host's user runs them.

use anyhow::Result;
use walden_testkit::{Binaries, PgInstall, TestDir, run};

#[test]
fn each_program_runs_as_the_database_hosts_user() -> Result<()> {
    let dir = TestDir::new("programs")?;
    let binaries = Binaries::stage(&dir)?;
    let install = PgInstall::all()?
        .pop()
        .ok_or_else(|| anyhow::anyhow!("WALDEN_TEST_PG leaves no PostgreSQL"))?;
    for program in ["walden", "walden-wal-push", "walden-wal-fetch"] {
        run(binaries.command(&install, program)?.arg("--version"))?;
    }
    Ok(())
}
