//! What the documents tell people to type, typed; and what they say of the house, held against it.

use std::fs;
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail, ensure};
use walden_testkit::{
    Binaries, Cluster, PgInstall, S3Server, StopMode, TestDir, on_version, run, run_as_server,
};

const README: &str = include_str!("../../README.md");
const FIND: &str = include_str!("../../docs/find.md");
const DISASTER: &str = include_str!("../../docs/disaster-recovery.md");
const RELIABILITY: &str = include_str!("../../docs/reliability.md");
const RUNBOOK: &str = include_str!("../../docs/restore.md");
/// The documents speak of this one.
const MAJOR: u16 = 17;
/// The machine's name in the documents.
const HOST: &str = "db1";

#[test]
fn five_minutes_of_the_readme() {
    on_version(MAJOR, "readme", |install, dir| {
        let mut reader = Reader::new(install, dir)?;
        let blocks = blocks(README);
        ensure!(
            blocks.iter().filter(|block| block.language == "sh").count() >= 7,
            "the README should have its shell blocks"
        );
        let mut said = String::new();
        for block in &blocks {
            match block.language {
                "sh" => said = reader.types(&block.text)?,
                "text" => same_words(&block.text, &reader.in_the_documents_words(&said))?,
                _ => {}
            }
        }
        Ok(())
    });
}

#[test]
fn the_runbook() {
    on_version(MAJOR, "runbook", |install, dir| {
        let mut reader = Reader::new(install, dir)?;
        // Where the runbook begins, the README was followed and the accident has happened.
        let preparation = blocks(README);
        let shell = preparation.iter().filter(|block| block.language == "sh");
        for block in shell.take(4) {
            reader.types(&block.text)?;
        }
        let (dropped, lost) = RUNBOOK
            .split_once("\n## The disk is gone\n")
            .context("the runbook should have a chapter for a lost disk")?;
        let typed = |reader: &mut Reader<'_>, chapter: &'static str| -> Result<Vec<String>> {
            let blocks = blocks(chapter);
            let shell = blocks.iter().filter(|block| block.language == "sh");
            shell.map(|block| reader.types(&block.text)).collect()
        };
        let said = typed(&mut reader, dropped)?;
        ensure!(
            said.iter().any(|said| said == "1001\n"),
            "the copy should have all orders: {said:?}"
        );
        let orders = "SELECT count(*) FROM orders";
        ensure!(
            reader.cluster.psql(orders)? == "1001",
            "the table should be back where it was lost"
        );
        let last = reader.cluster.switch_wal()?;
        reader.cluster.wait_archived(&last)?;
        reader.cluster.stop(StopMode::Immediate)?;
        fs::remove_dir_all(reader.cluster.pgdata())?;
        typed(&mut reader, lost)?;
        ensure!(
            reader.cluster.psql(orders)? == "1001",
            "the cluster should be back as it was"
        );
        let next = reader.cluster.switch_wal()?;
        ensure!(
            next.starts_with("00000002"),
            "the new primary should be on a timeline of its own: {next}"
        );
        reader.cluster.wait_archived(&next)
    });
}

#[test]
fn what_happened_and_the_way_back() {
    on_version(MAJOR, "find", |install, dir| {
        let mut reader = Reader::new(install, dir)?;
        let preparation = blocks(README);
        let shell = preparation.iter().filter(|block| block.language == "sh");
        for block in shell.take(4) {
            reader.types(&block.text)?;
        }
        let blocks = blocks(FIND);
        let shell = blocks.iter().filter(|block| block.language == "sh");
        let mut said = Vec::new();
        for block in shell {
            said.push(reader.types(&block.text)?);
        }
        ensure!(
            said.iter()
                .any(|said| said.contains("DROP TABLE") && said.contains("postgres.public.orders")),
            "the loss should be found by its name: {said:?}"
        );
        ensure!(
            said.iter().any(|said| said == "1001\n"),
            "the copy should have all orders: {said:?}"
        );
        ensure!(
            reader.cluster.psql("SELECT count(*) FROM orders")? == "1001",
            "the table should be back where it was lost"
        );
        Ok(())
    });
}

#[test]
fn everything_is_gone_but_the_bucket() {
    on_version(MAJOR, "disaster", |install, dir| {
        let server = S3Server::s3s_fs()?;
        let mut reader = Reader::new(install, dir)?;
        let bucket = |document: &str, here: &str| (document.to_owned(), here.to_owned());
        reader.names.extend([
            bucket("acme-backups", S3Server::BUCKET),
            bucket("eu-west-1", server.region()),
            bucket("/etc/walden/credentials", text(&dir.join("credentials"))?),
        ]);
        let store = format!("endpoint: '{}', create_only: claims", server.endpoint());
        let config = yaml(DISASTER)?.replace("prefix: pg", &format!("prefix: pg, {store}"));
        reader.configure(&config)?;
        dir.server_file("credentials", server.credentials())?;

        // The README was followed, up to the accident, with the bucket in place of the folder.
        let preparation = blocks(README);
        let shell = preparation.iter().filter(|block| block.language == "sh");
        for block in shell.take(3) {
            reader.types(&block.text)?;
        }
        reader
            .cluster
            .psql("INSERT INTO orders VALUES (1001, 'the last one')")?;
        let last = reader.cluster.switch_wal()?;
        reader.cluster.wait_archived(&last)?;

        // Programs, configuration and credentials are on the new machine, and nothing else.
        reader.cluster.stop(StopMode::Immediate)?;
        let programs = reader.binaries.path("walden");
        let programs = programs.parent().context("no folder")?.to_owned();
        for entry in fs::read_dir(dir.path())? {
            let path = entry?.path();
            let name = path.file_name().and_then(|name| name.to_str());
            if path == programs || name == Some("main.socket") {
                continue;
            }
            if path.is_dir() {
                fs::remove_dir_all(path)?;
            } else if !matches!(name, Some("walden.yaml" | "credentials")) {
                fs::remove_file(path)?;
            }
        }
        reader.home = Some(dir.server_dir("home")?);
        let page = blocks(DISASTER);
        let mut said = Vec::new();
        for block in page.iter().filter(|block| block.language == "sh") {
            said.push(reader.types(&block.text)?);
        }
        ensure!(said.len() == 5, "the page should have its five blocks");
        ensure!(
            reader.cluster.psql("SELECT count(*) FROM orders")? == "1001",
            "every order should be back, the last one too"
        );
        ensure!(
            said.last().is_some_and(|list| list.lines().count() >= 4),
            "the list should have both backups: {said:?}"
        );
        Ok(())
    });
}

/// A person who follows the documents on a machine of their own.
struct Reader<'a> {
    install: &'a PgInstall,
    dir: &'a TestDir,
    binaries: Binaries,
    cluster: Cluster,
    /// What the documents call it, and what it is called here.
    names: Vec<(String, String)>,
    /// The moment before the accident, as the server told it.
    moment: Option<String>,
    /// Their home directory, if it is not just anybody's.
    home: Option<PathBuf>,
}

impl<'a> Reader<'a> {
    fn new(install: &'a PgInstall, dir: &'a TestDir) -> Result<Self> {
        let sockets = dir.join("main.socket");
        let mut cluster = Cluster::builder(install, dir, "main")
            .conf("fsync", "off")
            // A copy has these from here; what stands on the server's command line it has not.
            .conf("listen_addresses", "")
            .conf("unix_socket_directories", text(&sockets)?)
            .build()?;
        cluster.set("port", &cluster.port().to_string())?;
        cluster.start()?;
        let other_port = TcpListener::bind("127.0.0.1:0")?.local_addr()?.port();
        let binaries = Binaries::stage(dir)?;
        let bin = binaries.path("walden");
        let name = |document: &str, here: &Path| -> Result<(String, String)> {
            Ok((document.to_owned(), text(here)?.to_owned()))
        };
        let names = vec![
            name("/var/lib/postgresql/17", dir.path())?,
            name("/var/run/postgresql", &sockets)?,
            name("/usr/lib/postgresql/17/bin", &install.bin_dir())?,
            name("/var/lib/walden/repository", &dir.join("repository"))?,
            name("/usr/local/bin", bin.parent().context("no folder")?)?,
            ("-p 5433".to_owned(), format!("-p {other_port}")),
        ];
        let reader = Self {
            install,
            dir,
            binaries,
            cluster,
            names,
            moment: None,
            home: None,
        };
        reader.configure(&yaml(README)?)?;
        Ok(reader)
    }

    /// Writes the configuration that a document shows.
    fn configure(&self, config: &str) -> Result<()> {
        let port = format!("port={} user=postgres", self.cluster.port());
        let config = self.here(config).replace("user=postgres", &port);
        self.dir.server_file("walden.yaml", config).map(drop)
    }

    /// A document's text with this machine's names in it.
    fn here(&self, document: &str) -> String {
        let mut text = document.to_owned();
        for (document, here) in &self.names {
            text = text.replace(document, here);
        }
        match (&self.moment, example_moment()) {
            (Some(moment), Some(example)) => text.replace(example, moment),
            _ => text,
        }
    }

    /// What was said here, with the documents' names in it.
    fn in_the_documents_words(&self, said: &str) -> String {
        let host = fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
        let mut text = said
            .split(' ')
            .map(|word| if word == host.trim() { HOST } else { word })
            .collect::<Vec<_>>()
            .join(" ");
        // The test's folder holds the others, so it comes last.
        for (document, here) in self.names.iter().rev() {
            text = text.replace(here, document);
        }
        text
    }

    /// Types a block; gives what came on standard output.
    fn types(&mut self, block: &str) -> Result<String> {
        let mut shell = Command::new("bash");
        self.install.set_environment(&mut shell);
        let bin = self.binaries.path("");
        let path = format!(
            "{}:{}:{}",
            bin.display(),
            self.install.bin_dir().display(),
            std::env::var("PATH")?
        );
        shell
            .args(["-euo", "pipefail", "-c", &self.here(block)])
            .env("PATH", path)
            .env("PGHOST", self.cluster.socket_dir())
            .env("PGPORT", self.cluster.port().to_string())
            .env("PGUSER", "postgres")
            .env("PGOPTIONS", "-c lock_timeout=30s")
            .env("WALDEN_CONFIG", self.dir.join("walden.yaml"));
        let mut shell = run_as_server(shell)?;
        if let Some(home) = &self.home {
            shell.env("HOME", home);
        }
        let said = run(&mut shell)
            .with_context(|| format!("a block of the documents failed:\n{block}"))?;
        if block.contains("SELECT clock_timestamp()") {
            let moment = said.lines().find(|line| is_moment(line));
            self.moment = Some(moment.context("no time was printed")?.to_owned());
        }
        // A person reads for longer than the archiver takes.
        if block.contains("pg_switch_wal()") {
            let segment = said.lines().last().context("no segment was printed")?;
            self.cluster.wait_archived(segment)?;
        }
        Ok(said)
    }
}

impl Drop for Reader<'_> {
    /// Servers that the documents' own commands started.
    fn drop(&mut self) {
        for name in ["main", "restored"] {
            let data = self.dir.join(name);
            if data.join("postmaster.pid").exists()
                && let Ok(mut stop) = self.install.server_command("pg_ctl")
            {
                let _ = run(stop.args(["stop", "--mode=immediate", "-D"]).arg(data));
            }
        }
    }
}

/// The configuration that a document shows.
fn yaml(document: &'static str) -> Result<String> {
    let mut blocks = blocks(document).into_iter();
    let block = blocks.find(|block| block.language == "yaml");
    Ok(block
        .context("the document should show a configuration")?
        .text)
}

/// The moment in the README's commands.
fn example_moment() -> Option<&'static str> {
    let (_, after) = README.split_once("--target-time '")?;
    after.split_once('\'').map(|(moment, _)| moment)
}

fn is_moment(line: &str) -> bool {
    line.starts_with("20") && line.ends_with("+00") && line.contains(':')
}

/// A fenced block.
struct Block {
    language: &'static str,
    text: String,
}

/// The fenced blocks of a document, also those that are indented in a list.
fn blocks(document: &'static str) -> Vec<Block> {
    let mut blocks = Vec::new();
    let mut open: Option<(usize, Block)> = None;
    for line in document.lines() {
        let indent = line.len() - line.trim_start().len();
        match (&mut open, line.trim_start().strip_prefix("```")) {
            (None, Some(language)) => {
                let text = String::new();
                open = Some((indent, Block { language, text }));
            }
            (Some((indent, block)), None) => {
                block.text.push_str(line.get(*indent..).unwrap_or_default());
                block.text.push('\n');
            }
            (Some(_), Some(_)) => blocks.extend(open.take().map(|(_, block)| block)),
            (None, None) => {}
        }
    }
    blocks
}

fn is_variable(word: &str) -> bool {
    word.contains(|c: char| c.is_ascii_digit()) || ["bytes", "kB", "MB"].contains(&word)
}

/// Whether a document shows what is said today. Whatever has a digit in it (sizes, ids, times) may differ, and so may units of sizes.
fn same_words(shown: &str, said: &str) -> Result<()> {
    let words = |text: &str| -> Vec<String> {
        text.split_whitespace()
            .map(|word| match is_variable(word) {
                true => "#".to_owned(),
                false => word.to_owned(),
            })
            .collect()
    };
    if words(shown) != words(said) {
        bail!("the README shows:\n{shown}\nbut this is said now:\n{said}");
    }
    Ok(())
}

#[test]
fn links_between_the_documents_lead_somewhere() -> Result<()> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let mut documents: Vec<PathBuf> = ["README.md", "CHANGELOG.md"]
        .map(|name| root.join(name))
        .into();
    for entry in fs::read_dir(root.join("docs"))? {
        documents.push(entry?.path());
    }
    documents.retain(|path| path.extension().is_some_and(|extension| extension == "md"));
    ensure!(
        documents.len() >= 5,
        "README, CHANGELOG and three pages: {documents:?}"
    );
    for document in documents {
        let content = fs::read_to_string(&document)?;
        for link in content.split("](").skip(1) {
            let link = link.split([')', '#']).next().unwrap_or_default();
            let local = !link.is_empty() && !link.contains("://");
            let place = document.parent().context("no folder")?.join(link);
            ensure!(
                !local || place.exists(),
                "{} links to {link}, which is not there",
                document.display()
            );
        }
    }
    Ok(())
}

#[test]
fn each_promise_names_a_test_that_is_there() -> Result<()> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let mut held = 0;
    for line in RELIABILITY.lines().filter(|line| line.starts_with("| ")) {
        let tests: Vec<_> = line
            .split('`')
            .filter_map(|word| word.split_once("::"))
            .collect();
        ensure!(
            !tests.is_empty() || line == "| promise | test |",
            "a promise without a test: {line}"
        );
        for (file, name) in tests {
            let source = fs::read_to_string(root.join(file))
                .with_context(|| format!("no {file}, in which {name} should stand"))?;
            ensure!(
                source.contains(&format!("fn {name}(")),
                "{file} has no {name}, which should hold a promise"
            );
            held += 1;
        }
    }
    ensure!(held > 40, "more than {held} tests should be named");
    Ok(())
}

/// Crates that do IO, or know what a room must not know; ARCHITECTURE.md, "The rooms".
#[test]
fn no_room_reaches_where_it_must_not() -> Result<()> {
    let io = [
        "tokio",
        "rustix",
        "tempfile",
        "async-trait",
        "tokio-postgres",
    ];
    let front = [
        "clap",
        "anyhow",
        "serde_yaml",
        "indicatif",
        "comfy-table",
        "tracing-subscriber",
    ];
    for (room, never) in [
        (
            "walden-pg",
            [
                &io[..],
                &front[..],
                &["walden-model", "walden-store", "walden-engine", "jiff"],
            ]
            .concat(),
        ),
        (
            "walden-model",
            [
                &io[..],
                &front[..],
                &["walden-store", "walden-engine", "rand"],
            ]
            .concat(),
        ),
        (
            "walden-store",
            [
                &front[..],
                &["walden-pg", "walden-model", "walden-engine", "zstd"],
            ]
            .concat(),
        ),
        (
            "walden-engine",
            [&front[..], &["walden", "walden-testkit"]].concat(),
        ),
        ("walden", vec!["walden-testkit", "proptest"]),
    ] {
        let tree = run(Command::new(env!("CARGO"))
            .args([
                "tree",
                "--locked",
                "--edges=normal",
                "--prefix=none",
                "--package",
                room,
            ])
            .current_dir(env!("CARGO_MANIFEST_DIR")))?;
        let crates: Vec<&str> = tree
            .lines()
            .filter_map(|line| line.split(' ').next())
            .collect();
        ensure!(
            crates.first() == Some(&room),
            "cargo tree should begin with {room}: {tree}"
        );
        for name in never {
            ensure!(
                !crates.contains(&name),
                "{room} must do without {name}, and leans on it"
            );
        }
    }
    Ok(())
}

fn text(path: &Path) -> Result<&str> {
    path.to_str().context("a path that is not UTF-8")
}
