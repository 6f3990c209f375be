//! A bucket as the repository, on real object stores: the whole way round, and what happens where the store is away or refuses.

mod faults;
mod nodes;
mod permissions;

use std::fs;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use walden_integration::{Said, Site, options, wait_open, wait_paused};
use walden_testkit::{
    Cluster, Fault, FaultProxy, Ledger, PgInstall, S3Server, Target, TestDir, on_version,
};

/// Below which all objects of these tests are.
const PREFIX: &str = "some/where";

/// Bytes of the key with which one may do everything in the bucket, and of one that is wrong: neither may ever be shown.
const CANARY: &str = "canaryCANARYcanaryCANARYcanaryCANARY";

#[test]
fn a_cluster_goes_into_a_bucket_and_comes_back_with_claims() {
    on_version(17, "bucket_claims", |install, dir| {
        let server = S3Server::s3s_fs()?;
        goes_and_comes_back(
            install,
            dir,
            &server,
            &server.endpoint(),
            "create_only: claims",
        )
    });
}

#[test]
fn a_cluster_goes_into_a_bucket_and_comes_back_with_conditions() {
    on_version(14, "bucket_conditions", |install, dir| {
        let server = S3Server::s3s_fs()?;
        // s3s-fs looks whether an object is there, and then puts it: only one at a time are its conditions honoured.
        let proxy = FaultProxy::before(server.address())?;
        proxy.one_write_at_a_time();
        goes_and_comes_back(
            install,
            dir,
            &server,
            &proxy.endpoint(),
            "create_only: conditional",
        )
    });
}

#[test]
#[ignore = "Garage takes ten minutes to build: continuous integration runs it"]
fn a_cluster_goes_into_garage_and_comes_back() {
    on_version(17, "bucket_garage", |install, dir| {
        let server = S3Server::garage()?;
        let endpoint = server.endpoint();
        let site = site(install, dir, &server, &endpoint, "create_only: conditional")?;
        let refused = site.walden(&["init"])?.exited(1)?;
        refused.naming(&[S3Server::BUCKET, "create_only: claims"])?;
        drop(site);
        for left in ["bin", "production", "production.socket"] {
            fs::remove_dir_all(dir.join(left))?;
        }
        goes_and_comes_back(install, dir, &server, &endpoint, "create_only: claims")
    });
}

#[test]
fn init_finds_out_that_a_store_overwrites() {
    on_version(17, "bucket_probe", |install, dir| {
        let server = S3Server::s3s_fs()?;
        let endpoint = server.endpoint();
        let site = site(install, dir, &server, &endpoint, "create_only: conditional")?;
        // Writers have to race for it.
        for _ in 0..50 {
            let said = site.walden(&["init"])?;
            if said.code == Some(1) {
                return said
                    .naming(&[S3Server::BUCKET, PREFIX, "create_only: claims"])
                    .map(drop);
            }
        }
        anyhow::bail!("50 times init did not find out that s3s-fs looks first, and puts then")
    });
}

#[test]
fn recovery_survives_that_the_bucket_goes_away() {
    on_version(17, "bucket_outage", recovery_survives_an_outage);
}

#[test]
fn what_the_store_refuses_is_named_and_never_taken_for_an_absence() {
    on_version(17, "bucket_refusals", refusals);
}

#[test]
fn a_push_ends_in_time_though_the_store_hangs() {
    on_version(17, "bucket_hangs", hangs);
}

/// A cluster with small segments whose repository is a bucket behind this endpoint.
fn site<'a>(
    install: &'a PgInstall,
    dir: &'a TestDir,
    server: &S3Server,
    endpoint: &str,
    more: &str,
) -> Result<Site<'a>> {
    let credentials = dir.server_file("credentials", server.credentials())?;
    let place = format!(
        "s3: {{ bucket: {}, region: {}, prefix: {PREFIX}, endpoint: '{endpoint}', credentials_file: {}, {more} }}",
        S3Server::BUCKET,
        server.region(),
        credentials.display()
    );
    Site::unregistered(install, dir, &place, |builder| {
        builder.initdb_arg("--wal-segsize=1")
    })
}

/// Adds lines to the site's configuration.
fn configure(site: &Site<'_>, more: &str) -> Result<()> {
    let file = site.configure("walden.yaml", &site.production, "")?;
    let text = fs::read_to_string(&file)?;
    site.dir.server_file("walden.yaml", text + more)?;
    Ok(())
}

fn silent(what: &str, text: &str, server: &S3Server) -> Result<()> {
    for secret in [server.secret_key(), CANARY] {
        ensure!(!text.contains(secret), "{what} shows a secret:\n{text}");
    }
    Ok(())
}

/// Archives, backs up, loses everything, restores to a time, to the end: as on any repository. Everything is logged, and no secret is.
fn goes_and_comes_back(
    install: &PgInstall,
    dir: &TestDir,
    server: &S3Server,
    endpoint: &str,
    more: &str,
) -> Result<()> {
    let mut site = site(install, dir, server, endpoint, more)?;
    configure(&site, "log_level: trace\n")?;
    let mut said = String::new();
    let mut hear = |heard: Said| -> Result<Said> {
        said += &heard.stdout;
        said += &heard.stderr;
        heard.exited(0)
    };
    let place = format!("s3://{}/{PREFIX} at {endpoint}", S3Server::BUCKET);
    let made = hear(site.walden(&["init"])?)?;
    ensure!(
        made.stdout.contains(&place),
        "init should say that the repository is in {place}: {}",
        made.stdout
    );
    let again = hear(site.walden(&["init"])?)?;
    ensure!(
        !again.stdout.contains("was made"),
        "a second init should change nothing: {}",
        again.stdout
    );

    site.production.start()?;
    let mut ledger = Ledger::create(&site.production)?;
    ledger.write(&site.production, 2, 20)?;
    site.archive_all()?;
    hear(site.walden(&["backup", "--annotate", "why=a test"])?)?;
    let load = ledger.start_load(&site.production, 2)?;
    load.wait_for(200)?;
    ledger.finish(load, &site.production)?;
    site.archive_all()?;
    let commits = ledger.commits();
    let time = commits
        .get(commits.len().saturating_sub(60))
        .context("a commit to go back to")?
        .time;
    site.production.psql("DROP TABLE ledger_total")?;
    let last = site.archive_all()?;

    hear(site.walden(&["list-backups", "--json"])?)?;
    let backups = site.backups()?;
    ensure!(backups.len() == 1, "one backup expected: {backups:?}");

    // The server and its disk are lost.
    site.production.stop(walden_testkit::StopMode::Immediate)?;
    silent("PostgreSQL's log", &site.production.log(), server)?;

    let target = Target::Time {
        time,
        inclusive: true,
    };
    let arguments = options(&target);
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let directory = dir.join("dry").display().to_string();
    hear(site.walden(&[&["restore", "--dry-run", &directory], &arguments[..]].concat())?)?;
    let mut restored = site.restore("to_the_time", &arguments)?;
    restored.start()?;
    wait_paused(&restored)?;
    ledger.compare(&restored, &target)?;
    silent("the restored server's log", &restored.log(), server)?;
    drop(restored);

    let mut restored = site.restore("to_the_end", &[])?;
    restored.start()?;
    wait_open(&restored)?;
    let log = restored.log();
    silent("the restored server's log", &log, server)?;
    ensure!(
        log.contains(&format!("{last} restored")),
        "the end of the archive is {last}; the server's log:\n{log}"
    );
    ensure!(
        restored.psql("SELECT to_regclass('ledger_total') IS NULL")? == "t",
        "at the end the table is dropped"
    );
    silent("a program", &said, server)
}

fn recovery_survives_an_outage(install: &PgInstall, dir: &TestDir) -> Result<()> {
    let server = S3Server::s3s_fs()?;
    let proxy = FaultProxy::before(server.address())?;
    let quick = "create_only: claims, request_deadline: 2s";
    let mut site = site(install, dir, &server, &proxy.endpoint(), quick)?;
    // What is tried here is how recovery stops, not how long it waits before.
    configure(&site, "fetch: { retry_for: 1ms }\n")?;
    site.walden(&["init"])?.exited(0)?;
    site.production.start()?;
    let mut ledger = Ledger::create(&site.production)?;
    ledger.write(&site.production, 2, 20)?;
    site.archive_all()?;
    site.backup(&[])?;
    let mut after = Vec::new();
    for _ in 0..12 {
        ledger.write(&site.production, 2, 20)?;
        after.push(site.archive_all()?);
    }
    site.production
        .psql("SELECT pg_create_restore_point('the goal')")?;
    ledger.write(&site.production, 2, 20)?;
    site.archive_all()?;

    let target = Target::Name("the goal".to_owned());
    let arguments = options(&target);
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let mut restored = site.restore("restored", &arguments)?;
    let middle = after.get(5).context("a segment")?;
    proxy.fault("GET", middle, 0, 1, Fault::Gone);
    let words = [S3Server::BUCKET, "unavailable", "error:"];
    stops(&mut restored, &words)?;
    // Started again while the outage lasts, it stops again.
    stops(&mut restored, &words)?;
    proxy.mend();
    restored.start()?;
    wait_paused(&restored)?;
    ledger.compare(&restored, &target)
}

/// Starts the server, which must stop by itself with these words in its log, and without being promoted.
fn stops(restored: &mut Cluster, says: &[&str]) -> Result<()> {
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
        pgdata.join("recovery.signal").exists() && !pgdata.join("pg_wal/00000002.history").exists(),
        "the server should not have ended recovery; its log:\n{log}"
    );
    Ok(())
}

/// Calls of the two programs, as PostgreSQL makes them.
struct Host<'a> {
    site: Site<'a>,
    server: &'a S3Server,
    /// Ready, and not archived.
    segment: String,
}

impl<'a> Host<'a> {
    /// A cluster that was registered, has archived one segment, and has another.
    fn new(
        install: &'a PgInstall,
        dir: &'a TestDir,
        server: &'a S3Server,
        proxy: &FaultProxy,
        more: &str,
    ) -> Result<Self> {
        let s3 = "create_only: claims, request_deadline: 2s";
        let mut site = site(install, dir, server, &proxy.endpoint(), s3)?;
        configure(&site, more)?;
        site.walden(&["init"])?.exited(0)?;
        site.production.start()?;
        site.archive_all()?;
        site.production
            .psql("ALTER SYSTEM SET archive_command = 'false'")?;
        site.production.psql("SELECT pg_reload_conf()")?;
        let mut host = Self {
            site,
            server,
            segment: String::new(),
        };
        host.next()?;
        Ok(host)
    }

    /// Goes on to another segment that is ready.
    fn next(&mut self) -> Result<()> {
        let rows =
            "CREATE TABLE IF NOT EXISTS t (n int); INSERT INTO t SELECT generate_series(1, 1000)";
        self.site.production.psql(rows)?;
        self.segment = self.site.production.switch_wal()?;
        Ok(())
    }

    /// Lets the server archive by itself, from here on.
    fn archives_again(&self) -> Result<()> {
        let production = &self.site.production;
        production.psql("ALTER SYSTEM RESET archive_command")?;
        production.psql("SELECT pg_reload_conf()")?;
        production.psql("INSERT INTO t VALUES (1)")?;
        self.site.archive_all().map(drop)
    }

    /// The segment comes back as it is in pg_wal.
    fn fetches_the_same(&self) -> Result<()> {
        self.fetch()?.exited(0)?;
        let wal = self.site.production.pgdata().join("pg_wal");
        let (archived, fetched) = (wal.join(&self.segment), wal.join("RECOVERYXLOG"));
        ensure!(
            fs::read(&archived)? == fs::read(&fetched)?,
            "{} should come back as it was",
            self.segment
        );
        fs::remove_file(fetched).context("cannot remove what was fetched")
    }

    fn call(&self, program: &str, arguments: &[&str]) -> Result<Said> {
        let mut command = self.site.binaries.command(self.site.install, program)?;
        command
            .arg("--config")
            .arg(self.site.dir.join("walden.yaml"))
            .args(arguments)
            .current_dir(self.site.production.pgdata());
        let said = Said::run(&mut command)?;
        silent(
            program,
            &format!("{}{}", said.stdout, said.stderr),
            self.server,
        )?;
        Ok(said)
    }

    fn push(&self) -> Result<Said> {
        self.call("walden-wal-push", &[&format!("pg_wal/{}", self.segment)])
    }

    fn fetch(&self) -> Result<Said> {
        self.call("walden-wal-fetch", &[&self.segment, "pg_wal/RECOVERYXLOG"])
    }

    /// Neither program succeeds, both say why, and nobody hears that the archive ends here.
    fn refused(&self, push: &[&str], fetch: &[&str]) -> Result<()> {
        let key = format!("{}.zst", self.segment);
        self.push()?
            .exited(1)?
            .naming(&[&[S3Server::BUCKET, "error:"], push].concat())?;
        let said = self.fetch()?.exited(200)?;
        ensure!(
            !said.stderr.contains("archive, which ends"),
            "{}: no word of an end: {}",
            key,
            said.stderr
        );
        said.naming(&[&[S3Server::BUCKET, "error:"], fetch].concat())
            .map(drop)
    }
}

fn refusals(install: &PgInstall, dir: &TestDir) -> Result<()> {
    let server = S3Server::s3s_fs()?;
    let proxy = FaultProxy::before(server.address())?;
    let more = "log_level: trace\nfetch: { retry_for: 1ms }\n";
    let host = Host::new(install, dir, &server, &proxy, more)?;
    let key = format!("{}.zst", host.segment);
    // The store is there, and has no such object: proven.
    host.fetch()?.exited(1)?;

    // The store refuses.
    let refuse = |methods: &[&'static str], name: &str| {
        for method in methods {
            let denied = Fault::error(403, "AccessDenied");
            proxy.fault(method, name, 0, usize::MAX, denied);
        }
    };
    refuse(&["GET", "HEAD"], &key);
    host.fetch()?.exited(200)?.naming(&[
        S3Server::BUCKET,
        &key,
        "s3:GetObject",
        "s3:ListBucket",
    ])?;
    proxy.mend();
    refuse(&["PUT"], &key);
    host.push()?
        .exited(1)?
        .naming(&[S3Server::BUCKET, &key, "s3:PutObject"])?;
    proxy.mend();
    // Cut off behind its claim: the next call is not in its way.
    refuse(&["PUT"], &format!("{PREFIX}/main/"));
    host.push()?.exited(1)?.naming(&["s3:PutObject"])?;
    proxy.mend();
    refuse(&["GET", "HEAD", "PUT"], PREFIX);
    host.refused(&["s3:"], &["s3:GetObject"])?;
    proxy.mend();
    // The proof of an absence takes a list.
    refuse(&["GET"], "list-type=2");
    host.fetch()?
        .exited(200)?
        .naming(&[S3Server::BUCKET, "s3:ListBucket"])?;
    proxy.mend();

    // Somebody else's credentials.
    let credentials = server.credentials();
    let wrong = credentials.replace(server.secret_key(), CANARY);
    dir.server_file("credentials", wrong)?;
    for said in [host.push()?.exited(1)?, host.fetch()?.exited(200)?] {
        said.naming(&[S3Server::BUCKET, "credentials do not hold"])?;
    }
    fs::remove_file(dir.join("credentials"))?;
    host.push()?
        .exited(1)?
        .naming(&["credentials file", "cannot be read"])?;
    host.fetch()?
        .exited(203)?
        .naming(&["credentials file", "cannot be read"])?;
    dir.server_file("credentials", credentials)?;

    // It was only ever the store.
    host.push()?.exited(0)?;
    host.fetch()?.exited(0)?;

    // The root document is gone, as in another bucket or under another prefix; then the bucket.
    proxy.fault(
        "GET",
        "walden.json",
        0,
        usize::MAX,
        Fault::error(404, "NoSuchKey"),
    );
    proxy.fault(
        "GET",
        "identity",
        0,
        usize::MAX,
        Fault::error(404, "NoSuchKey"),
    );
    host.refused(&["walden.json", "prefix"], &["walden.json", "prefix"])?;
    proxy.mend();
    server.drop_bucket()?;
    host.refused(&["make it"], &["make it"])?;
    host.site
        .walden(&["list-backups"])?
        .exited(1)?
        .naming(&[S3Server::BUCKET, "make it"])
        .map(drop)
}

fn hangs(install: &PgInstall, dir: &TestDir) -> Result<()> {
    let server = S3Server::s3s_fs()?;
    let proxy = FaultProxy::before(server.address())?;
    let more = "log_level: trace\npush: { deadline: 8s }\nfetch: { retry_for: 1ms }\n";
    let host = Host::new(install, dir, &server, &proxy, more)?;
    for method in ["GET", "HEAD", "PUT"] {
        proxy.fault(method, PREFIX, 0, usize::MAX, Fault::Hang);
    }
    let begun = Instant::now();
    host.push()?
        .exited(1)?
        .naming(&[S3Server::BUCKET, "no answer within"])?;
    ensure!(
        begun.elapsed() < Duration::from_secs(8),
        "the push should end before its deadline and say why, and took {:?}",
        begun.elapsed()
    );
    host.fetch()?
        .exited(200)?
        .naming(&[S3Server::BUCKET, "no answer within"])?;
    proxy.mend();
    host.push()?.exited(0)?;
    host.fetch()?.exited(0).map(drop)
}
