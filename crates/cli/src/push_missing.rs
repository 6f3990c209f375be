//! `walden push-missing`.

use walden_engine::push_missing::{PushMissingReport, PushMissingRequest, push_missing};
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
        repository: settings.repository,
        cluster: settings.cluster,
        level: settings.compression_level,
        dry_run: arguments.dry_run,
    };
    let report = call(push_missing(&request))?;
    print(&match arguments.json {
        true => render::push_missing_json(&report, request.dry_run).map_err(Problem::failure)?,
        false => render::push_missing_page(&report, request.dry_run),
    })?;
    Ok(match is_whole(&report) {
        true => common::OK,
        false => common::FAILURE,
    })
}

/// Whether nothing stands in the way of what is missing.
fn is_whole(report: &PushMissingReport) -> bool {
    report
        .files
        .iter()
        .all(|told| match (&told.pushed, told.fate) {
            (Some(pushed), _) => pushed.is_ok(),
            (None, Fate::Conflict | Fate::Unreadable | Fate::Withheld { .. }) => false,
            (None, _) => true,
        })
}
