//! What is to be said where several repositories are read as one archive.

use std::fmt::Write as _;

use serde::Serialize;
use walden_engine::archive::OutRepository;
use walden_engine::list::{ListedRepository, SystemListing};
use walden_model::{BackupId, ClusterName, Lack};
use walden_pg::{SystemIdentifier, TimelineId};

/// A repository that was not read.
#[derive(Serialize)]
pub(super) struct Unread<'a> {
    name: &'a str,
    why: String,
}

pub(super) fn unread(out: &[OutRepository]) -> Vec<Unread<'_>> {
    let unread = out.iter().map(|out| Unread {
        name: &out.name,
        why: out.why(),
    });
    unread.collect()
}

/// One line for each repository that was not read.
pub(super) fn unread_lines(out: &[OutRepository]) -> String {
    let mut lines = String::new();
    for out in out {
        let why = out.why();
        let _ = writeln!(
            lines,
            "not read: repository \"{}\", so what it alone holds is not told: {why}",
            out.name
        );
    }
    lines
}

/// What each repository lacks, and the command that makes good; nothing where there is but one.
pub(super) fn repository_lines(cluster: &ClusterName, system: &SystemListing) -> String {
    let mut lines = String::new();
    for backup in &system.backups {
        if system.repositories.len() > 1 && backup.repositories.len() < system.repositories.len() {
            let names = match backup.repositories.as_slice() {
                [] => "no repository alone".to_owned(),
                names => names.join(", "),
            };
            let id = &backup.record.backup_id;
            let _ = writeln!(lines, "backup {id} is whole in {names}");
        }
    }
    for repository in &system.repositories {
        let ListedRepository {
            name,
            lack,
            copy_from,
        } = repository;
        let _ = match (lack, copy_from) {
            (Err(why), _) => writeln!(
                lines,
                "not read: repository \"{name}\", so what it holds is not in this list: {why}"
            ),
            (Ok(lack), Some(from)) if !lack.is_empty() => writeln!(
                lines,
                "behind: repository \"{name}\" lacks {}; make it good with: walden --cluster {cluster} copy --from {from} --to {name}",
                lack_text(lack)
            ),
            (Ok(_), _) => Ok(()),
        };
    }
    lines
}

fn lack_text(lack: &Lack) -> String {
    let mut parts = Vec::new();
    match (lack.segments, lack.first, lack.last) {
        (0, ..) | (_, None, _) | (_, _, None) => {}
        (1, Some(only), _) => parts.push(format!("1 segment ({only})")),
        (count, Some(first), Some(last)) => {
            parts.push(format!("{count} segments ({first} to {last})"));
        }
    }
    let count = |count: usize, one: &str, many: &str| match count {
        0 => None,
        1 => Some(format!("1 {one}")),
        count => Some(format!("{count} {many}")),
    };
    parts.extend(count(lack.histories.len(), "history file", "history files"));
    parts.extend(count(lack.backups.len(), "backup", "backups"));
    parts.join(", ")
}

/// One of several repositories, in JSON.
#[derive(Serialize)]
pub(super) struct JsonRepository<'a> {
    system_identifier: SystemIdentifier,
    name: &'a str,
    read: bool,
    why: Option<&'a str>,
    lacks: Option<Lacks<'a>>,
    copy_from: Option<&'a str>,
}

#[derive(Serialize)]
struct Lacks<'a> {
    segments: u64,
    first_segment: Option<String>,
    last_segment: Option<String>,
    histories: &'a [TimelineId],
    backups: &'a [BackupId],
}

pub(super) fn json_repositories(system: &SystemListing) -> Vec<JsonRepository<'_>> {
    let json = system.repositories.iter().map(|one| JsonRepository {
        system_identifier: system.identity.system_identifier,
        name: &one.name,
        read: one.lack.is_ok(),
        why: one.lack.as_ref().err().map(String::as_str),
        lacks: one.lack.as_ref().ok().map(json_lack),
        copy_from: one.copy_from.as_deref(),
    });
    json.collect()
}

fn json_lack(lack: &Lack) -> Lacks<'_> {
    Lacks {
        segments: lack.segments,
        first_segment: lack.first.map(|segment| segment.to_string()),
        last_segment: lack.last.map(|segment| segment.to_string()),
        histories: &lack.histories,
        backups: &lack.backups,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::render::samples::{listing, segment};

    fn behind() -> SystemListing {
        let mut system = listing().systems.remove(0);
        let (first, second) = (
            system.backups[0].record.backup_id.clone(),
            system.backups[1].record.backup_id.clone(),
        );
        system.backups[0].repositories = vec!["here".to_owned()];
        system.backups[1].repositories = Vec::new();
        let lack = Lack {
            segments: 3,
            first: Some(segment(1, 7)),
            last: Some(segment(2, 9)),
            histories: vec![TimelineId(2)],
            backups: vec![first, second],
        };
        let repository = |name: &str, lack, from: Option<&str>| ListedRepository {
            name: name.to_owned(),
            lack,
            copy_from: from.map(str::to_owned),
        };
        system.repositories = vec![
            repository("here", Ok(Lack::default()), None),
            repository("there", Ok(lack), Some("here")),
            repository("far", Err("it is not mounted".to_owned()), None),
        ];
        system
    }

    #[test]
    fn what_is_behind_is_named_with_the_command_that_makes_it_good() {
        let cluster = "main".parse().expect("a name");
        assert_eq!(
            repository_lines(&cluster, &behind()),
            "\
backup 20261122T175007Z-0badcafe is whole in here
backup 20261123T175007Z-0badcaff is whole in no repository alone
behind: repository \"there\" lacks 3 segments (000000010000000000000007 to 000000020000000000000009), 1 history file, 2 backups; \
make it good with: walden --cluster main copy --from here --to there
not read: repository \"far\", so what it holds is not in this list: it is not mounted
"
        );
        let one = listing().systems.remove(0);
        assert_eq!(
            repository_lines(&cluster, &one),
            "",
            "of one there is nothing to say"
        );
    }

    #[test]
    fn json_says_what_each_repository_lacks() {
        let system = behind();
        let json = serde_json::to_value(json_repositories(&system)).expect("JSON");
        assert_eq!(json[0]["lacks"]["segments"], 0);
        assert_eq!(
            json[1]["lacks"]["first_segment"],
            "000000010000000000000007"
        );
        assert_eq!(json[1]["lacks"]["backups"][1], "20261123T175007Z-0badcaff");
        assert_eq!(json[1]["copy_from"], "here");
        assert_eq!(json[2]["read"], false, "nobody can tell what it lacks");
        assert_eq!(json[2]["lacks"], serde_json::Value::Null);
    }
}
