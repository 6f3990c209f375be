//! `walden expire`, `walden pin` and `walden unpin`.

use std::io::Write as _;

use walden_engine::expire::{ExpireError, ExpireReport, ExpireRequest, expire};
use walden_engine::pin::{PinError, PinRequest, pin, unpin};
use walden_engine::repository::RepositorySettings;
use walden_model::retention::{CannotExpire, Pin};

use crate::arguments::{ExpireArguments, PinArguments, UnpinArguments};
use crate::command::run;
use crate::config::Settings;
use crate::exit::common;
use crate::problem::Problem;
use crate::render;
use crate::walden::print;

/// The repositories that are meant.
fn chosen(settings: &Settings, name: Option<&str>) -> Result<Vec<RepositorySettings>, Problem> {
    let all = settings.repositories.iter();
    let chosen: Vec<_> = all
        .filter(|repository| name.is_none_or(|name| repository.name == name))
        .cloned()
        .collect();
    if chosen.is_empty() {
        let names: Vec<_> = settings
            .repositories
            .iter()
            .map(|r| r.name.as_str())
            .collect();
        let name = name.unwrap_or_default();
        let unknown = format!("{} has no repository {name:?}", settings.file.display());
        return Err(Problem::usage(unknown).with_hint(format!("known here: {}", names.join(", "))));
    }
    Ok(chosen)
}

/// Each repository by itself: one that fails keeps no other from being expired.
pub(crate) fn run_expire(settings: Settings, arguments: &ExpireArguments) -> Result<u8, Problem> {
    if settings.retention.is_empty() {
        return Err(Problem::usage(CannotExpire::NoPolicy));
    }
    let requests = chosen(&settings, arguments.repository.as_deref())?;
    let requests = requests.into_iter().map(|repository| ExpireRequest {
        repository,
        cluster: settings.cluster.clone(),
        system: arguments.system_identifier,
        policy: settings.retention.clone(),
        abandoned_after: settings.expire_abandoned_after,
        dry_run: arguments.dry_run,
    });
    let mut reports: Vec<ExpireReport> = Vec::new();
    let mut failed: Vec<ExpireError> = Vec::new();
    for request in requests {
        match run(expire(&request)).map_err(Problem::failure)? {
            Ok(mut report) => {
                failed.extend(report.failed.take());
                reports.push(report);
            }
            Err(e) => failed.push(e),
        }
    }
    let page = if arguments.json {
        render::expiry_json(&settings.cluster, &reports, &failed).map_err(Problem::failure)?
    } else {
        render::expiry_page(&reports, settings.repositories.len() > 1)
    };
    print(&page)?;
    let _ = std::io::stderr()
        .lock()
        .write_all(render::expiry_warnings(&reports).as_bytes());
    let whole = failed.is_empty() && reports.iter().all(is_whole);
    for error in failed {
        Problem::failure(error).print();
    }
    Ok(if whole { common::OK } else { common::FAILURE })
}

fn is_whole(report: &ExpireReport) -> bool {
    report.systems.iter().all(|system| {
        let left = system.done.as_ref().map_or(0, |done| done.left_count);
        system.plan.is_ok() && left == 0
    })
}

pub(crate) fn run_pin(settings: Settings, arguments: &PinArguments) -> Result<u8, Problem> {
    let pin_until = arguments.until;
    let said = match pin_until {
        Pin::Until(until) => format!("pinned until {}", render::moment(until)),
        Pin::Forever => "pinned for ever".to_owned(),
    };
    let requests = requests(
        &settings,
        arguments.repository.as_deref(),
        &arguments.backup,
    )?;
    let outcomes = requests.into_iter().map(|request| {
        let done = run(pin(&request, pin_until));
        done.map(|done| (request.repository.name, done))
    });
    told(
        outcomes
            .collect::<Result<_, _>>()
            .map_err(Problem::failure)?,
        &arguments.backup.to_string(),
        &said,
    )
}

pub(crate) fn run_unpin(settings: Settings, arguments: &UnpinArguments) -> Result<u8, Problem> {
    let requests = requests(
        &settings,
        arguments.repository.as_deref(),
        &arguments.backup,
    )?;
    let outcomes = requests.into_iter().map(|request| {
        let done = run(unpin(&request));
        done.map(|done| (request.repository.name, done))
    });
    told(
        outcomes
            .collect::<Result<_, _>>()
            .map_err(Problem::failure)?,
        &arguments.backup.to_string(),
        "not pinned any more",
    )
}

fn requests(
    settings: &Settings,
    repository: Option<&str>,
    backup: &walden_model::BackupId,
) -> Result<Vec<PinRequest>, Problem> {
    let repositories = chosen(settings, repository)?.into_iter();
    Ok(repositories
        .map(|repository| PinRequest {
            repository,
            cluster: settings.cluster.clone(),
            backup: backup.clone(),
        })
        .collect())
}

/// A backup need not be in every repository, but in one.
fn told(
    outcomes: Vec<(String, Result<(), PinError>)>,
    backup: &str,
    said: &str,
) -> Result<u8, Problem> {
    let mut lines = String::new();
    let (mut absent, mut failed) = (Vec::new(), Vec::new());
    for (repository, outcome) in outcomes {
        match outcome {
            Ok(()) => lines += &format!("backup {backup} in repository {repository}: {said}\n"),
            Err(e @ (PinError::NoBackup { .. } | PinError::NotPinned(_))) => absent.push(e),
            Err(e) => failed.push(e),
        }
    }
    print(&lines)?;
    if lines.is_empty() {
        failed.extend(absent);
    }
    let code = if failed.is_empty() {
        common::OK
    } else {
        common::FAILURE
    };
    for error in failed {
        Problem::failure(error).print();
    }
    Ok(code)
}
