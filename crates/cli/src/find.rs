//! `walden find`: what took data away, and the way back.

use walden_engine::find::{FindRequest, Points, Sought, find};

use crate::arguments::FindArguments;
use crate::config::Settings;
use crate::exit::common;
use crate::problem::Problem;
use crate::render::{self, shell_word};
use crate::walden::{call, print};

pub(crate) fn run(settings: Settings, arguments: FindArguments) -> Result<u8, Problem> {
    let between = match arguments.between.as_slice() {
        [from, to] if from > to => {
            return Err(Problem::usage(
                "--between takes the earlier time first, and these are the other way round",
            ));
        }
        [from, to] => Some((*from, *to)),
        _ => None,
    };
    let walden = format!(
        "walden --config {} --cluster {}",
        shell_word(&settings.file),
        settings.cluster
    );
    let request = FindRequest {
        sought: sought(&arguments),
        repositories: settings.repositories,
        cluster: settings.cluster,
        system: arguments.system_identifier,
        timeline: arguments.target_timeline,
        between,
        target_directory: arguments.target_dir,
        pgdata: settings.pgdata,
    };
    let report = call(find(&request))?;
    print(&match arguments.json {
        true => render::findings_json(&report, &walden).map_err(Problem::failure)?,
        false => render::findings_page(&report, &walden),
    })?;
    Ok(common::OK)
}

fn sought(arguments: &FindArguments) -> Sought {
    let sought = Sought {
        dropped: arguments.dropped,
        truncated: arguments.truncated,
        deleted_more_than: arguments.deleted_more_than,
        updated_more_than: arguments.updated_more_than,
        restore_points: arguments
            .restore_point
            .clone()
            .map(|name| name.map_or(Points::All, Points::Named)),
    };
    if sought == Sought::nothing() {
        Sought::everything()
    } else {
        sought
    }
}
