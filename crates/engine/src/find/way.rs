//! The way back: the restore command that ends just before an incident, or at a restore point.

use std::path::{Path, PathBuf};

use walden_model::{
    Catalog, PlanOptions, RecoveryPlan, RecoveryTarget, TargetAction, TargetKind, TargetTimeline,
};
use walden_pg::{Lsn, TimelineId};

use super::{FindRequest, NoWayBack, What};

/// The arguments of `walden` from `restore` on, where a plan leads there.
pub(super) fn back(
    request: &FindRequest,
    catalog: &Catalog,
    timeline: TimelineId,
    xid: Option<u64>,
    lsn: Lsn,
    what: &What,
) -> Result<Vec<String>, NoWayBack> {
    let before = match what {
        What::Incident(incident) => match incident.lost {
            Some(lost) => return Err(NoWayBack::Lost(lost)),
            None => true,
        },
        What::RestorePoint(_) => false,
    };
    let target = RecoveryTarget {
        kind: TargetKind::Lsn(lsn),
        inclusive: !before,
        timeline: TargetTimeline::Number(timeline),
        action: TargetAction::Pause,
    };
    let plan = RecoveryPlan::build(catalog, &target, &PlanOptions::default())?;
    let directory = match &request.target_directory {
        Some(directory) => directory.clone(),
        None => beside(request.pgdata.as_deref(), xid, lsn),
    };
    let mut arguments = vec![
        "restore".to_owned(),
        directory.to_string_lossy().into_owned(),
        "--target-lsn".to_owned(),
        lsn.to_string(),
    ];
    if before {
        arguments.push("--target-exclusive".to_owned());
    }
    arguments.extend(["--target-timeline".to_owned(), timeline.to_string()]);
    for tablespace in &plan.backup.tablespaces {
        let new = format!("{}-tablespace-{}", directory.display(), tablespace.oid);
        let new = std::path::absolute(&new).map_or(new, |path| path.to_string_lossy().into_owned());
        let escaped = |path: &str| path.replace('=', "\\=");
        arguments.extend([
            "--tablespace-map".to_owned(),
            format!("{}={}", escaped(&tablespace.path), escaped(&new)),
        ]);
    }
    Ok(arguments)
}

/// A directory that says what it is for, beside the original one, or in the working directory.
fn beside(pgdata: Option<&Path>, xid: Option<u64>, lsn: Lsn) -> PathBuf {
    let which = match xid {
        Some(xid) => format!("before-{xid}"),
        None => format!("at-{}", lsn.to_string().replace('/', "-")),
    };
    let parted = pgdata.and_then(|pgdata| Some((pgdata, pgdata.file_name()?.to_str()?)));
    match parted {
        Some((pgdata, name)) => pgdata.with_file_name(format!("{name}-{which}")),
        None => PathBuf::from(format!("restored-{which}")),
    }
}
