//! `walden verify`.

use walden_engine::repository::RepositorySettings;
use walden_engine::verify::{VerifyReport, VerifyRequest, verify};
use walden_model::{Severity, VerifyMode};

use crate::arguments::{self, VerifyArguments};
use crate::command;
use crate::config::Settings;
use crate::copy::repository;
use crate::exit::common;
use crate::problem::Problem;
use crate::walden::print;
use crate::{progress, render};

/// Verifies each repository by itself: what one holds says nothing of another.
pub(crate) fn run(settings: &Settings, arguments: &VerifyArguments) -> Result<u8, Problem> {
    let chosen = match &arguments.repository {
        Some(name) => vec![repository(settings, name)?],
        None => settings.repositories.clone(),
    };
    let mut reports: Vec<VerifyReport> = Vec::new();
    for repository in chosen {
        let request = request(settings, arguments, repository);
        let progress = progress::on_standard_error();
        let report = command::run(verify(&request, progress)).map_err(Problem::failure)?;
        for warning in &report.warnings {
            eprint_line(&format!("warning: {warning}"));
        }
        reports.push(report);
    }
    print(&match arguments.json {
        true => render::verify_json(&reports).map_err(Problem::failure)?,
        false => render::verify_page(&reports),
    })?;
    Ok(code(reports.iter().filter_map(VerifyReport::worst).min()))
}

fn request(
    settings: &Settings,
    arguments: &VerifyArguments,
    repository: RepositorySettings,
) -> VerifyRequest {
    VerifyRequest {
        repository,
        cluster: settings.cluster.clone(),
        system: arguments.system_identifier,
        mode: match arguments.mode {
            arguments::VerifyMode::Names => VerifyMode::Names,
            arguments::VerifyMode::New => VerifyMode::New,
            arguments::VerifyMode::All => VerifyMode::All,
        },
        backup: arguments.backup.clone(),
        jobs: arguments
            .jobs
            .map_or_else(walden_engine::host::cores, usize::from),
    }
}

/// The worst decides.
fn code(worst: Option<Severity>) -> u8 {
    match worst {
        None | Some(Severity::Note) => common::OK,
        Some(Severity::Damage) => common::VERIFY_DAMAGE,
        Some(Severity::Gap) => common::VERIFY_GAPS,
        Some(Severity::Outage) => common::VERIFY_OUTAGE,
        Some(Severity::Unproven) => common::VERIFY_UNPROVEN,
    }
}

fn eprint_line(line: &str) {
    use std::io::Write as _;
    let _ = writeln!(std::io::stderr().lock(), "{line}");
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_severity_has_a_code_of_its_own_and_all_is_well_is_zero() {
        let codes: Vec<u8> = Severity::ALL.iter().map(|s| code(Some(*s))).collect();
        assert_eq!(codes, [10, 11, 12, 13, 0]);
        assert_eq!(code(None), 0);
    }
}
