//! Who may read what Walden makes, and what it is told.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, ensure};
use walden_integration::{Said, Site, files};
use walden_testkit::{PgInstall, TestDir, on_version};

#[test]
fn what_walden_makes_is_its_users_alone_whatever_the_umask() {
    on_version(17, "umask", umask);
}

#[test]
fn no_secret_is_shown_and_a_configuration_with_one_is_nobody_elses() {
    on_version(17, "secrets", secrets);
}

fn umask(install: &PgInstall, dir: &TestDir) -> Result<()> {
    let place = format!("path: {}", dir.join("repository").display());
    let config = dir.join("walden.yaml").display().to_string();
    let mut site = Site::unregistered(install, dir, &place, |builder| builder)?;
    let push = site.binaries.path("walden-wal-push").display().to_string();
    let push = format!("umask 000; {push} --config {config} %p");
    site.production.set("archive_command", &push)?;
    open(&site, "walden init")?;
    site.production.start()?;
    let segment = site.archive_all()?;
    open(&site, "walden backup")?;
    let restored = dir.join("restored");
    open(&site, &format!("walden restore {}", restored.display()))?;
    let fetched = restored.join("pg_wal").join(&segment);
    open(
        &site,
        &format!("walden-wal-fetch {segment} {}", fetched.display()),
    )?;
    ensure!(fetched.exists(), "{segment} was fetched");
    for made in [site.repository(), restored] {
        let mut seen = 0;
        for path in files(&made)?.into_keys().chain([made.clone()]) {
            let mode = fs::symlink_metadata(&path)?.permissions().mode();
            ensure!(
                mode & 0o077 == 0,
                "{} has mode {mode:o}, and is for its user alone",
                path.display()
            );
            let folder = path.parent().context("a folder")?;
            let mode = fs::metadata(folder)?.permissions().mode();
            ensure!(
                mode & 0o077 == 0 || !folder.starts_with(&made),
                "{} has mode {mode:o}, and is for its user alone",
                folder.display()
            );
            seen += 1;
        }
        ensure!(seen > 5, "{} holds {seen} files", made.display());
    }
    Ok(())
}

/// Runs a program with a umask that keeps nothing from anybody.
fn open(site: &Site<'_>, line: &str) -> Result<Said> {
    let config = site.dir.join("walden.yaml");
    let line = format!("umask 000; {line} --config {}", config.display());
    Said::run(&mut site.shell(&line)?)?.exited(0)
}

const SECRET: &str = "Vier$Pinguine";

fn secrets(install: &PgInstall, dir: &TestDir) -> Result<()> {
    let mut site = Site::new(install, dir, |builder| builder)?;
    site.production.start()?;
    site.archive_all()?;
    // Beside the real program one that writes down how it was called.
    let seen = dir.join("seen");
    let programs = dir.server_dir("programs")?;
    let wrapper = dir.server_file(
        "programs/pg_basebackup",
        format!(
            "#!/bin/sh\nprintf '%s\\n' \"$@\" > {}\nexec {}/pg_basebackup \"$@\"\n",
            seen.display(),
            install.bin_dir().display()
        ),
    )?;
    fs::set_permissions(&wrapper, PermissionsExt::from_mode(0o755))?;
    let with_password = format!("{} password={SECRET}", site.production.connection_string());
    let text = fs::read_to_string(dir.join("walden.yaml"))?
        .replace(&site.production.connection_string(), &with_password);
    let text = format!("{text}log_level: trace\n").replace(
        "    connection:",
        &format!("    pg_bin_dir: {}\n    connection:", programs.display()),
    );
    let secret = dir.server_file("secret.yaml", &text)?;
    let broken = dir.server_file(
        "broken.yaml",
        text.replace(&format!("port={}", site.production.port()), "port=1"),
    )?;
    let close = |mode| -> Result<()> {
        for file in [&secret, &broken] {
            fs::set_permissions(file, PermissionsExt::from_mode(mode))?;
        }
        Ok(())
    };
    let run = |config: &str, args: &[&str], code| -> Result<Said> {
        hides(Said::run(&mut site.command(config, args)?)?, args)?.exited(code)
    };
    let program = |name: &str, args: &[&str]| -> Result<Command> {
        let mut command = site.binaries.command(install, name)?;
        command.arg("--config").arg(&secret).args(args);
        Ok(command)
    };
    let segment = site.archive_all()?;
    let own = site.production.pgdata().join("pg_wal").join(&segment);
    let own = own.display().to_string();
    let back = dir.join("restored/pg_wal/back").display().to_string();

    close(0o644)?;
    let words = ["chmod 600", "secret.yaml", "clusters.main.connection"];
    run("secret.yaml", &["list-backups"], 2)?.naming(&words)?;
    let push = Said::run(&mut program("walden-wal-push", &[&own])?)?;
    hides(push.exited(2)?.naming(&words)?, &["push"])?;
    let fetch = Said::run(&mut program("walden-wal-fetch", &[&segment, &back])?)?;
    hides(fetch.exited(203)?.naming(&words)?, &["fetch"])?;

    // A group is the administrator's own affair.
    close(0o640)?;
    run("secret.yaml", &["backup"], 0)?;
    let arguments = fs::read_to_string(&seen)?;
    ensure!(
        arguments.contains("--dbname") && !arguments.contains(SECRET),
        "whoever lists processes reads arguments: {arguments}"
    );
    close(0o600)?;
    for args in [
        &["list-backups", "--json"][..],
        &["windows", "--json"],
        &["find", "--json"],
        &["conflicts", "--json"],
        &["push-missing", "--json"],
    ] {
        run("secret.yaml", args, 0)?;
    }
    run("broken.yaml", &["backup"], 1)?;
    let restored = dir.join("restored").display().to_string();
    run("secret.yaml", &["restore", &restored, "--json"], 0)?;
    let push = Said::run(&mut program("walden-wal-push", &[&own])?)?;
    hides(push.exited(0)?, &["push"])?;
    let fetch = Said::run(&mut program("walden-wal-fetch", &[&segment, &back])?)?;
    hides(fetch.exited(0)?, &["fetch"])?;
    for folder in [site.repository(), dir.join("restored")] {
        stores_nothing_of_it(&folder)?;
    }
    Ok(())
}

/// Proves that a program's output does not show the secret.
fn hides(said: Said, what: &[&str]) -> Result<Said> {
    ensure!(
        !said.stdout.contains(SECRET) && !said.stderr.contains(SECRET),
        "{what:?} shows the password:\n{}{}",
        said.stdout,
        said.stderr
    );
    Ok(said)
}

fn stores_nothing_of_it(folder: &Path) -> Result<()> {
    for path in files(folder)?.into_keys() {
        let bytes = fs::read(&path)?;
        let shown = bytes
            .windows(SECRET.len())
            .any(|at| at == SECRET.as_bytes());
        ensure!(!shown, "{} holds the password", path.display());
    }
    Ok(())
}
