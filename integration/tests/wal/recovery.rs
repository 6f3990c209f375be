//! PostgreSQL's recovery with a repository that goes away, has a hole, or is damaged: it stops, and goes on later.

use std::fs;

use anyhow::{Context, Result, ensure};
use walden_integration::{Site, options, wait_open, wait_paused};
use walden_testkit::{Cluster, Ledger, PgInstall, Target, TestDir, own_by_server};

use crate::bench::read;

super::on_17!(
    recovery_to_a_target_survives_an_outage,
    recovery_to_the_end_never_takes_trouble_for_the_end,
);

const POINT: &str = "the goal";

/// A production of small segments and a backup, with five segments after it and a restore point at their end.
struct Scene<'a> {
    site: Site<'a>,
    ledger: Ledger,
    after: Vec<String>,
}

impl<'a> Scene<'a> {
    fn new(install: &'a PgInstall, dir: &'a TestDir) -> Result<Self> {
        let mut site = Site::new(install, dir, |builder| {
            builder.initdb_arg("--wal-segsize=1")
        })?;
        // What is tried here is how recovery stops, not how long it waits before.
        let config = fs::read_to_string(dir.join("walden.yaml"))?;
        dir.server_file("walden.yaml", config + "fetch: { retry_for: 1ms }\n")?;
        site.production.start()?;
        let mut ledger = Ledger::create(&site.production)?;
        ledger.write(&site.production, 2, 20)?;
        site.archive_all()?;
        site.backup(&[])?;
        let mut after = Vec::new();
        for _ in 0..5 {
            ledger.write(&site.production, 2, 20)?;
            after.push(site.archive_all()?);
        }
        ledger.write(&site.production, 2, 20)?;
        let point = format!("SELECT pg_create_restore_point('{POINT}')");
        site.production.psql(&point)?;
        ledger.write(&site.production, 2, 20)?;
        site.archive_all()?;
        Ok(Self {
            site,
            ledger,
            after,
        })
    }

    /// A segment in the middle.
    fn middle(&self) -> Result<&str> {
        Ok(self.after.get(2).context("a segment")?)
    }

    /// Starts the server, which must stop by itself with these words in its log, and without being promoted.
    fn stops(&self, restored: &mut Cluster, says: &[&str]) -> Result<()> {
        let logged = restored.log().len();
        if restored.try_start()?.is_ok() {
            restored.wait_exit()?;
        }
        let log = restored.log();
        let log = log.get(logged..).unwrap_or_default();
        for text in says {
            ensure!(log.contains(text), "{text:?} expected in the log:\n{log}");
        }
        // At its end recovery writes the new timeline's history and takes recovery.signal away.
        let pgdata = restored.pgdata();
        ensure!(
            pgdata.join("recovery.signal").exists()
                && !pgdata.join("pg_wal/00000002.history").exists(),
            "the server should not have ended recovery; its log:\n{log}"
        );
        Ok(())
    }
}

fn recovery_to_a_target_survives_an_outage(install: &PgInstall, dir: &TestDir) -> Result<()> {
    let scene = Scene::new(install, dir)?;
    let target = Target::Name(POINT.to_owned());
    let arguments = options(&target);
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let mut restored = scene.site.restore("restored", &arguments)?;
    // The repository goes away at one moment in the middle of recovery.
    let repository = scene.site.repository().display().to_string();
    let script = dir.server_file(
        "fetch.sh",
        format!(
            "if [ \"$1\" = {} ] && [ ! -e {repository}.away ]; then\n\
             mv {repository} {repository}.away && mkdir {repository} || exit 204\n\
             fi\n\
             exec {} --config {} \"$1\" \"$2\"\n",
            scene.middle()?,
            scene.site.binaries.path("walden-wal-fetch").display(),
            dir.join("walden.yaml").display()
        ),
    )?;
    restored.append(
        "postgresql.auto.conf",
        &format!("restore_command = 'sh {} %f %p'\n", script.display()),
    )?;
    let missing = scene.middle()?;
    let words = [missing, "not mounted", "error:"];
    scene.stops(&mut restored, &words)?;
    // Started again while the outage lasts, it stops again.
    scene.stops(&mut restored, &["not mounted", "error:"])?;

    fs::remove_dir(&repository).context("the mount point should be empty as it was")?;
    fs::rename(format!("{repository}.away"), &repository)?;
    fs::create_dir(format!("{repository}.away"))?;
    restored.start()?;
    wait_paused(&restored)?;
    scene.ledger.compare(&restored, &target)
}

fn recovery_to_the_end_never_takes_trouble_for_the_end(
    install: &PgInstall,
    dir: &TestDir,
) -> Result<()> {
    let scene = Scene::new(install, dir)?;
    let mut restored = scene.site.restore("restored", &[])?;
    let repository = scene.site.repository();
    let away = dir.join("away");

    fs::rename(&repository, &away)?;
    dir.server_dir("repository")?;
    scene.stops(&mut restored, &["not mounted", "error:"])?;
    fs::remove_dir(&repository).context("the mount point should be empty as it was")?;
    fs::rename(&away, &repository)?;

    let middle = scene.middle()?;
    let object = scene.site.stored(middle)?;
    fs::rename(&object, &away)?;
    scene.stops(&mut restored, &[middle, "a hole, not the archive's end"])?;

    let whole = read(&away)?;
    let mut damaged = whole.clone();
    let byte = damaged.get_mut(whole.len() / 2).context("a byte")?;
    *byte ^= 1;
    fs::write(&object, damaged)?;
    own_by_server(&object)?;
    scene.stops(&mut restored, &[middle, "damaged"])?;

    fs::write(&object, whole)?;
    restored.start()?;
    wait_open(&restored)?;
    scene.ledger.compare(&restored, &Target::Latest)
}
