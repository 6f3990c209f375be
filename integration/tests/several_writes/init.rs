//! One archive id in every repository.

use std::fs;

use anyhow::{Result, ensure};
use walden_testkit::{PgInstall, TestDir};

use crate::Three;

super::on_17!(
    one_registration_stands_in_every_repository,
    a_repository_that_comes_later_takes_the_archive_over,
    no_archive_is_begun_where_one_may_be_out_of_sight,
    two_archives_are_never_made_one,
);

fn one_registration_stands_in_every_repository(install: &PgInstall, dir: &TestDir) -> Result<()> {
    let three = Three::unregistered(install, dir, "")?;
    let said = three.0.walden(&["init"])?.exits(0)?;
    for name in ["here", "there", "spare"] {
        ensure!(
            said.stdout.contains(&format!("repository {name} in ")),
            "each repository should be told: {}",
            said.stdout
        );
    }
    let first = three.registration("here")?;
    ensure!(
        first.is_some()
            && three.registration("there")? == first
            && three.registration("spare")? == first,
        "the registration should be the same everywhere"
    );
    let root = |name: &str| fs::read(three.folder(name).join("walden.json"));
    ensure!(
        root("here")? != root("there")?,
        "each repository should have an id of its own"
    );
    let again = three.0.walden(&["init"])?.exits(0)?;
    ensure!(
        again.stdout.matches("was there already").count() == 3
            && again.stdout.contains("was registered already"),
        "init again should say that nothing was to be done: {}",
        again.stdout
    );
    Ok(())
}

fn a_repository_that_comes_later_takes_the_archive_over(
    install: &PgInstall,
    dir: &TestDir,
) -> Result<()> {
    let three = Three::unregistered(install, dir, "")?;
    three
        .0
        .walden(&["init", "--repository", "spare"])?
        .exits(0)?;
    ensure!(
        three.registration("here")?.is_none() && three.registration("there")?.is_none(),
        "only the repository that was named should be made"
    );
    three
        .0
        .walden(&["init", "--repository", "elsewhere"])?
        .exits(1)?
        .says(&["\"elsewhere\"", "\"here\", \"there\", \"spare\""])?;
    let said = three.0.walden(&["init"])?.exits(0)?;
    ensure!(
        said.stdout.contains("was registered in here, there"),
        "it should be said where it is new: {}",
        said.stdout
    );
    let first = three.registration("spare")?;
    ensure!(
        three.registration("here")? == first && three.registration("there")? == first,
        "what was made later should have the same registration"
    );
    // Lost for good, and made anew.
    fs::remove_dir_all(three.folder("here"))?;
    dir.server_dir("mount")?;
    three.0.walden(&["init"])?.exits(0)?;
    ensure!(
        three.registration("here")? == first,
        "a repository in the place of a lost one should have the same registration"
    );
    Ok(())
}

fn no_archive_is_begun_where_one_may_be_out_of_sight(
    install: &PgInstall,
    dir: &TestDir,
) -> Result<()> {
    let three = Three::unregistered(install, dir, "")?;
    // Neither a folder nor absent: who knows what it will be tomorrow.
    let spare = three.folder("spare");
    fs::remove_dir(&spare)?;
    fs::write(&spare, "")?;
    three
        .0
        .walden(&["init"])?
        .exits(1)?
        .says(&["\"spare\"", "\"main\"", "configuration"])?;
    ensure!(
        three.registration("here")?.is_none() && three.registration("there")?.is_none(),
        "nothing should be registered anywhere"
    );
    fs::remove_file(&spare)?;
    dir.server_dir("spare")?;
    three.0.walden(&["init"])?.exits(0)?;
    let first = three.registration("here")?;

    // With a registration in sight the others are made good, and what is out is told by whether it is required.
    fs::remove_dir_all(three.folder("there"))?;
    dir.server_dir("there")?;
    fs::remove_dir_all(&spare)?;
    fs::write(&spare, "")?;
    three
        .0
        .walden(&["init"])?
        .exits(0)?
        .says(&["WARN", "\"spare\"", "not required"])?;
    ensure!(three.registration("there")? == first, "taken over");
    fs::remove_dir_all(three.folder("there"))?;
    fs::write(three.folder("there"), "")?;
    three
        .0
        .walden(&["init"])?
        .exits(1)?
        .says(&["error: repository \"there\"", "\"spare\""])?;
    Ok(())
}

fn two_archives_are_never_made_one(install: &PgInstall, dir: &TestDir) -> Result<()> {
    let three = Three::unregistered(install, dir, "")?;
    let alone = |name: &str| {
        let path = three.folder(name);
        format!("{{ name: {name}, path: {} }}", path.display())
    };
    for name in ["here", "there"] {
        three.configure(&alone(name), "")?;
        three.0.walden(&["init"])?.exits(0)?;
    }
    three.configure(&three.folders(), "")?;
    three
        .0
        .walden(&["init"])?
        .exits(1)?
        .says(&["two archives", "\"here\"", "\"there\""])?;
    ensure!(
        three.registration("spare")?.is_none(),
        "neither should be taken over"
    );
    let (name, _) = three.0.segment(0)?;
    three.0.archive(&name)?.exits(1)?.says(&[
        "\"there\"",
        "must not be mixed",
        "was archived in \"here\"",
    ])?;
    three.stands_in(&name, &["here"])?;
    Ok(())
}
