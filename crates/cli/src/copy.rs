//! `walden copy`.

use walden_engine::copy::{CopyRequest, copy};
use walden_engine::repository::RepositorySettings;

use crate::arguments::CopyArguments;
use crate::config::Settings;
use crate::exit::common;
use crate::problem::Problem;
use crate::walden::{call, print};
use crate::{progress, render};

/// Copies the one cluster that was named on the command line, else all of the configuration.
pub(crate) fn run(
    settings: Settings,
    named: bool,
    arguments: &CopyArguments,
) -> Result<u8, Problem> {
    let request = CopyRequest {
        from: repository(&settings, &arguments.from)?,
        to: repository(&settings, &arguments.to)?,
        clusters: match named {
            true => vec![settings.cluster.clone()],
            false => settings.clusters.clone(),
        },
        dry_run: arguments.dry_run,
        thorough: arguments.compare,
        jobs: usize::from(arguments.jobs),
    };
    let report = call(copy(&request, progress::on_standard_error()))?;
    print(&match arguments.json {
        true => render::copy_json(&report).map_err(Problem::failure)?,
        false => render::copy_page(&report),
    })?;
    Ok(match report.is_whole() {
        true => common::OK,
        false => common::NOT_WHOLE,
    })
}

/// A repository by its name in the configuration.
pub(crate) fn repository(settings: &Settings, name: &str) -> Result<RepositorySettings, Problem> {
    let known = &settings.repositories;
    let found = known.iter().find(|repository| repository.name == name);
    found.cloned().ok_or_else(|| {
        let names: Vec<_> = known.iter().map(|known| known.name.as_str()).collect();
        Problem::usage(format!(
            "{} has no repository {name:?}",
            settings.file.display()
        ))
        .with_hint(format!("it has {}", names.join(", ")))
    })
}
