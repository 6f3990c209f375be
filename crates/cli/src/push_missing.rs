//! `walden push-missing`.

use walden_engine::push_missing::{PushMissingRequest, Told, push_missing};
use walden_model::unarchived::Fate;

use crate::arguments::PushMissingArguments;
use crate::config::Settings;
use crate::exit::common;
use crate::problem::Problem;
use crate::render;
use crate::walden::{call, needed, print};

pub(crate) fn run(settings: Settings, arguments: PushMissingArguments) -> Result<u8, Problem> {
    let pgdata = arguments.pgdata.or_else(|| settings.pgdata.clone());
    let request = PushMissingRequest {
        pgdata: needed(pgdata, &settings, "pgdata", ", or give --pgdata")?,
        repositories: settings.repositories,
        cluster: settings.cluster,
        level: settings.compression_level,
        dry_run: arguments.dry_run,
    };
    let reports = call(push_missing(&request))?;
    print(&match arguments.json {
        true => render::push_missing_json(&reports, request.dry_run).map_err(Problem::failure)?,
        false => render::push_missing_page(&reports, request.dry_run),
    })?;
    let whole = reports
        .iter()
        .filter(|report| report.required)
        .all(|report| report.told.as_ref().is_ok_and(is_whole));
    Ok(match whole {
        true => common::OK,
        false => common::FAILURE,
    })
}

/// Whether nothing stands in the way of what is missing.
fn is_whole(told: &Told) -> bool {
    told.files
        .iter()
        .all(|file| match (&file.pushed, file.fate) {
            (Some(pushed), _) => pushed.is_ok(),
            (None, Fate::Conflict | Fate::Unreadable | Fate::Withheld { .. }) => false,
            (None, _) => true,
        })
}
