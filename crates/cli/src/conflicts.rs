//! `walden conflicts`.

use walden_engine::conflicts::{ConflictsRequest, ResolveRequest, conflicts, resolve};
use walden_model::Whose;

use crate::arguments::{ArchivedIs, ConflictsArguments, ConflictsCommand, ResolveArguments};
use crate::config::Settings;
use crate::exit::common;
use crate::problem::Problem;
use crate::render;
use crate::walden::{call, print};

pub(crate) fn run(settings: Settings, arguments: ConflictsArguments) -> Result<u8, Problem> {
    if let Some(ConflictsCommand::Resolve(arguments)) = arguments.command {
        return run_resolve(settings, &arguments);
    }
    let request = ConflictsRequest {
        repositories: settings.repositories,
        cluster: settings.cluster,
        system: arguments.system_identifier,
        pgdata: arguments.pgdata,
    };
    let told = call(conflicts(&request))?;
    print(&match arguments.json {
        true => render::conflicts_json(&told).map_err(Problem::failure)?,
        false => render::conflicts_page(&told),
    })?;
    Ok(common::OK)
}

fn run_resolve(settings: Settings, arguments: &ResolveArguments) -> Result<u8, Problem> {
    let request = ResolveRequest {
        repositories: settings.repositories,
        cluster: settings.cluster,
        system: arguments.system_identifier,
        file: arguments.file,
        archived_is: match arguments.archived_is {
            ArchivedIs::Ours => Whose::Ours,
            ArchivedIs::Foreign => Whose::Foreign,
        },
    };
    let written = call(resolve(&request))?;
    print(&match arguments.json {
        true => render::resolved_json(&written).map_err(Problem::failure)?,
        false => render::resolved_page(&written),
    })?;
    Ok(common::OK)
}
