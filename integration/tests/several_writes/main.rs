//! Several repositories, as those who write see them: init, pushes and backups, where one is out, full, slow, or another archive.

mod backup;
#[path = "../wal/bench.rs"]
#[allow(dead_code, clippy::print_stderr)]
mod bench;
mod init;
mod kills;
mod push;

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use bench::{Bench, read};
use walden_testkit::{PgInstall, TestDir};

/// Makes a `#[test]` of each named function, on PostgreSQL 17.
macro_rules! on_17 {
    ($($test:ident),+ $(,)?) => {
        mod on_17 {
            $(
                #[test]
                fn $test() {
                    walden_testkit::on_version(17, stringify!($test), super::$test);
                }
            )+
        }
    };
}
use on_17;

/// A host without a server that archives into three folders: `here` (the bench's own) and `there` are required, `spare` is not.
struct Three<'a>(Bench<'a>);

impl<'a> Three<'a> {
    /// With the cluster registered in each.
    fn new(install: &'a PgInstall, dir: &'a TestDir, more: &str) -> Result<Self> {
        let three = Self::unregistered(install, dir, more)?;
        three.0.walden(&["init"])?.exits(0)?;
        Ok(three)
    }

    fn unregistered(install: &'a PgInstall, dir: &'a TestDir, more: &str) -> Result<Self> {
        let three = Self(Bench::unregistered(install, dir)?);
        dir.server_dir("there")?;
        dir.server_dir("spare")?;
        three.configure(&three.folders(), more)?;
        Ok(three)
    }

    /// The three folders, as the configuration says them.
    fn folders(&self) -> String {
        format!(
            "{{ name: here, path: {} }}, {{ name: there, path: {} }}, {{ name: spare, path: {}, required: false }}",
            self.0.mount.display(),
            self.folder("there").display(),
            self.folder("spare").display()
        )
    }

    fn configure(&self, repositories: &str, more: &str) -> Result<()> {
        self.0.configure_as(&format!(
            "clusters: {{ main: {{ pgdata: {} }} }}\nrepositories: [{repositories}]\n{more}\n",
            self.0.pgdata.display()
        ))
    }

    fn folder(&self, name: &str) -> PathBuf {
        match name {
            "here" => self.0.mount.clone(),
            name => self.0.dir.join(name),
        }
    }

    /// Where a segment's object stands in a repository.
    fn object(&self, repository: &str, name: &str) -> Result<PathBuf> {
        let here = self.0.object(name)?;
        let below = here.strip_prefix(&self.0.mount)?;
        Ok(self.folder(repository).join(below))
    }

    /// Each of these holds the segment as it is, and none of the others has it.
    fn stands_in(&self, name: &str, repositories: &[&str]) -> Result<()> {
        let content = read(self.0.pg_wal(name))?;
        for repository in ["here", "there", "spare"] {
            let object = self.object(repository, name)?;
            ensure!(
                object.exists() == repositories.contains(&repository),
                "{name} should stand in {repositories:?}, which is not so in {repository}"
            );
            ensure!(
                !object.exists() || self.0.unzstd(&object)? == content,
                "{name} should be as it is in {repository}"
            );
        }
        Ok(())
    }

    /// Takes a repository away, and leaves the empty mount point.
    fn unmount(&self, name: &str) -> Result<()> {
        let folder = self.folder(name);
        fs::rename(&folder, folder.with_extension("away"))?;
        fs::create_dir(&folder)?;
        Ok(())
    }

    fn mount(&self, name: &str) -> Result<()> {
        let folder = self.folder(name);
        fs::remove_dir(&folder).context("the mount point should be empty as it was")?;
        Ok(fs::rename(folder.with_extension("away"), &folder)?)
    }

    /// The registration in a repository, as it stands there.
    fn registration(&self, name: &str) -> Result<Option<Vec<u8>>> {
        registration(&self.folder(name))
    }
}

/// The only registration of a repository's cluster.
fn registration(folder: &Path) -> Result<Option<Vec<u8>>> {
    let identity = folder.join("main/identity");
    if !identity.exists() {
        return Ok(None);
    }
    let mut found = None;
    for entry in fs::read_dir(identity)? {
        ensure!(found.is_none(), "one registration expected in {folder:?}");
        found = Some(read(entry?.path())?);
    }
    Ok(found)
}
