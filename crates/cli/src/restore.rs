//! `walden restore`: plans, shows the plan, and carries it out.

use std::fmt::Write as _;
use std::io;
use std::path::{Path, PathBuf};

use walden_engine::host;
use walden_engine::restore::{PlannedRestore, RestoreReport, RestoreRequest, plan, restore};
use walden_model::RecoveryPlan;

use crate::arguments::RestoreArguments;
use crate::config::Settings;
use crate::exit::common;
use crate::problem::Problem;
use crate::progress;
use crate::render::{self, Destination, shell_word};
use crate::walden::{call, print};

/// PostgreSQL's `restore_command`, which is installed beside `walden`.
const FETCH: &str = "walden-wal-fetch";

pub(crate) fn run(
    settings: Settings,
    arguments: RestoreArguments,
    executable: io::Result<PathBuf>,
) -> Result<u8, Problem> {
    let target_directory = std::path::absolute(&arguments.target_dir).map_err(Problem::usage)?;
    let request = RestoreRequest {
        target: arguments.target(),
        restore_command: restore_command(&fetch_program(executable)?, &settings)?,
        repositories: settings.repositories,
        cluster: settings.cluster,
        system: arguments.system_identifier,
        backup: arguments.backup,
        target_directory,
        original: settings.pgdata,
        tablespace_map: arguments
            .tablespace_map
            .into_iter()
            .map(|map| (map.old, map.new))
            .collect(),
        waldir: arguments.waldir,
        standby: arguments.standby,
        take_over: arguments.take_over,
        workers: host::cores(),
    };
    let planned = call(plan(&request))?;
    if arguments.dry_run {
        print(&plan_text(&planned, arguments.json)?)?;
        return Ok(common::OK);
    }
    if !arguments.json {
        print(&plan_text(&planned, false)?)?;
    }
    // Carrying it out takes it.
    let mut recovery = planned.plan.clone();
    let places = planned.places.clone();
    let (other_systems, as_root) = (planned.other_systems.clone(), planned.as_root);
    let (whole_in, out) = (planned.whole_in.clone(), planned.out().to_vec());
    let progress = progress::on_standard_error();
    let report = call(restore(planned, progress))?;
    if arguments.json {
        recovery.notes.extend(report.notes.iter().cloned());
        let destination = Destination {
            directory: &places.data,
            wal: places.wal.as_deref(),
            extras: report.extras.as_deref(),
            tablespaces: &places.tablespaces,
            other_systems: &other_systems,
            as_root,
            whole_in: &whole_in,
            out: &out,
            served: Some(&report.served),
        };
        let page = render::plan_json(&recovery, &destination, true).map_err(Problem::failure)?;
        print(&page)?;
    } else {
        print(&report_text(&report, &recovery))?;
    }
    Ok(common::OK)
}

fn plan_text(planned: &PlannedRestore, as_json: bool) -> Result<String, Problem> {
    let destination = destination(planned);
    if as_json {
        render::plan_json(&planned.plan, &destination, false).map_err(Problem::failure)
    } else {
        Ok(render::plan_page(&planned.plan, &destination))
    }
}

fn destination(planned: &PlannedRestore) -> Destination<'_> {
    Destination {
        directory: &planned.places.data,
        wal: planned.places.wal.as_deref(),
        extras: planned.extras(),
        tablespaces: &planned.places.tablespaces,
        other_systems: &planned.other_systems,
        as_root: planned.as_root,
        whole_in: &planned.whole_in,
        out: planned.out(),
        served: None,
    }
}

fn report_text(report: &RestoreReport, plan: &RecoveryPlan) -> String {
    let mut text = format!(
        "\nrestored {} files, {}, each verified, into {}\n",
        report.files,
        render::size(report.bytes),
        report.directory.display()
    );
    if let Some(extras) = &report.extras {
        let _ = writeln!(
            text,
            "configuration from outside the data directory lies in {}",
            extras.display()
        );
    }
    if report.several {
        let served = report.served.iter();
        let parts: Vec<String> = served
            .map(|(name, packs)| format!("{packs} packs from \"{name}\""))
            .collect();
        let _ = writeln!(text, "read {}", parts.join(", "));
    }
    for added in &report.added {
        let _ = writeln!(text, "added {}", added.display());
    }
    for note in &report.notes {
        let _ = writeln!(text, "{note}");
    }
    let _ = writeln!(
        text,
        "PostgreSQL {} recovers when it is started: pg_ctl start -D {}",
        plan.backup.pg_version,
        shell_word(&report.directory)
    );
    text
}

fn fetch_program(executable: io::Result<PathBuf>) -> Result<PathBuf, Problem> {
    let hint = "walden, walden-wal-push and walden-wal-fetch belong into one folder";
    let executable = executable.map_err(|e| Problem::failure(e).with_hint(hint))?;
    let program = executable.with_file_name(FETCH);
    if program.is_file() {
        Ok(program)
    } else {
        Err(Problem::failure(format!(
            "{} is not there, which the restored cluster needs as its restore_command",
            program.display()
        ))
        .with_hint(hint))
    }
}

/// With absolute paths and names: PostgreSQL starts it with another working directory and another environment.
fn restore_command(program: &Path, settings: &Settings) -> Result<String, Problem> {
    let word = |path: &Path| match path.to_str() {
        // PostgreSQL replaces %f, %p and %r, and takes %% for % (BuildRestoreCommand, common/percentrepl.c).
        Some(_) => Ok(shell_word(path).replace('%', "%%")),
        None => Err(Problem::usage(format!(
            "restore_command cannot hold the path {path:?}, which is not UTF-8"
        ))),
    };
    let (program, config) = (word(program)?, word(&settings.file)?);
    Ok(format!(
        "{program} --config {config} --cluster {} %f \"%p\"",
        settings.cluster
    ))
}

#[cfg(test)]
mod tests {
    use walden_model::Note;

    use super::*;
    use crate::render::samples;

    fn command(program: &str, config: &str) -> String {
        let text = "clusters: { main: }\nrepositories: [{ name: here, path: /r }]";
        let settings =
            crate::config::resolve(Path::new(config), text, None).expect("a configuration");
        restore_command(Path::new(program), &settings).expect("a command")
    }

    #[test]
    fn a_restore_command_means_the_same_to_postgresql_and_its_shell() {
        assert_eq!(
            command("/usr/bin/walden-wal-fetch", "/etc/walden/walden.yaml"),
            "/usr/bin/walden-wal-fetch --config /etc/walden/walden.yaml --cluster main %f \"%p\""
        );
        assert_eq!(
            command("/opt/my tools/walden-wal-fetch", "/home/o'hara/100%f.yaml"),
            r#"'/opt/my tools/walden-wal-fetch' --config '/home/o'\''hara/100%%f.yaml' --cluster main %f "%p""#,
            "blanks, quotes and percent signs stay part of a path"
        );
    }

    #[test]
    fn a_restore_ends_with_how_to_start_it() {
        let report = RestoreReport {
            backup: samples::record().backup_id,
            directory: "/restored here".into(),
            files: 1234,
            bytes: 16 << 20,
            extras: Some("/restored here.extras".into()),
            added: vec!["/restored here/recovery.signal".into()],
            notes: vec![Note::ArchivesNotYet],
            served: [("here".to_owned(), 3)].into(),
            several: false,
        };
        assert_eq!(
            report_text(&report, &samples::plan()),
            "\nrestored 1234 files, 16 MB, each verified, into /restored here\n\
             configuration from outside the data directory lies in /restored here.extras\n\
             added /restored here/recovery.signal\n\
             Started with the postgresql.conf that was made in the data directory, the copy does NOT archive: neither the server's own \
             postgresql.conf nor postgresql.auto.conf says how. Set archive_mode = on and archive_command in it before you start it.\n\
             PostgreSQL 17 recovers when it is started: pg_ctl start -D '/restored here'\n"
        );
    }

    #[test]
    fn without_the_program_that_fetches_wal_no_restore_begins() {
        let problem =
            fetch_program(Ok("/nonexistent/walden".into())).expect_err("nothing is there");
        assert!(
            problem
                .render()
                .contains("/nonexistent/walden-wal-fetch is not there"),
            "{}",
            problem.render()
        );
    }
}
