//! Conflicts, and what a person said of them: pages, and JSON.

use std::fmt::Write as _;

use serde::Serialize;
use walden_engine::conflicts::{Conflict, Refused, RepositoryConflicts, Side};
use walden_engine::push::Difference;
use walden_model::{Event, Resolved, Sha256Digest, Whose, Writer};
use walden_pg::{SegmentName, SystemIdentifier, WalFileName};

use super::{moment, size};

/// Each conflict with both sides and what can be done.
#[must_use]
pub fn conflicts_page(told: &[RepositoryConflicts]) -> String {
    let mut page = String::new();
    for repository in told {
        let name = &repository.repository;
        if repository.set_aside.is_empty() && repository.refused.is_empty() {
            let _ = writeln!(page, "repository {name}: no conflicts");
        }
        for conflict in &repository.set_aside {
            page.push_str(&conflict_page(name, conflict));
        }
        for refused in &repository.refused {
            let _ = match &refused.archived {
                Ok((difference, writer)) => writeln!(
                    page,
                    "{}: the archiver is refused, because other content is archived in repository {name}; they differ first at {difference}\n  \
                     archived by {writer}\n  \
                     if the archived one is another server's: walden-wal-push --quarantine, and a new backup; if this server is the wrong one: \
                     stop it, or let it archive under another cluster's name",
                    refused.file
                ),
                Err(why) => writeln!(
                    page,
                    "{}: the archiver is refused by repository {name}: {why}",
                    refused.file
                ),
            };
        }
        for (segment, count) in &repository.partials {
            let _ = writeln!(
                page,
                "{segment}.partial is archived {count} times in repository {name}: that many servers left a timeline in it, and nothing is wrong with that"
            );
        }
    }
    page
}

fn conflict_page(repository: &str, conflict: &Conflict) -> String {
    let mut page = String::new();
    let _ = writeln!(
        page,
        "{} is archived in repository {repository}, and another file of that name was set aside{}",
        conflict.file,
        conflict
            .difference
            .map(|difference| format!("; they differ first at {difference}"))
            .unwrap_or_default()
    );
    for (what, side) in [
        ("archived", &conflict.archived),
        ("set aside", &conflict.aside),
    ] {
        let _ = match &side.read {
            Ok(facts) => writeln!(
                page,
                "  {what}: {}, by {}\n             {}",
                size(facts.size),
                facts.writer,
                side.key
            ),
            Err(why) => writeln!(page, "  {what}: {}: {why}", side.key),
        };
    }
    let _ = match &conflict.decision {
        Some(decision) => writeln!(
            page,
            "  decided: the archived one is {}, said {} at {}",
            whose_text(decision.body.archived_is),
            decision.writer.host,
            moment(decision.at)
        ),
        None => writeln!(
            page,
            "  nothing is restored across it. If the archived one is this cluster's: walden conflicts resolve {0} --archived-is ours\n  \
             if it is another server's: take a new backup; to write that down: walden conflicts resolve {0} --archived-is foreign",
            conflict.file
        ),
    };
    page
}

fn whose_text(whose: Whose) -> &'static str {
    match whose {
        Whose::Ours => "this cluster's: restores go across it",
        Whose::Foreign => "another server's: nothing is restored across it",
    }
}

/// What was written down.
#[must_use]
pub fn resolved_page(written: &[(String, Event<Resolved>)]) -> String {
    let mut page = String::new();
    for (repository, event) in written {
        let _ = writeln!(
            page,
            "{} in repository {repository}: the archived one is {}",
            event.body.file,
            whose_text(event.body.archived_is)
        );
    }
    page
}

#[derive(Serialize)]
struct Json<'a> {
    version: u32,
    repositories: Vec<JsonRepository<'a>>,
}

#[derive(Serialize)]
struct JsonRepository<'a> {
    repository: &'a str,
    system_identifier: SystemIdentifier,
    set_aside: Vec<JsonConflict<'a>>,
    refused: Vec<JsonRefused<'a>>,
    partials: Vec<JsonPartial>,
}

#[derive(Serialize)]
struct JsonConflict<'a> {
    file: WalFileName,
    differs_at: Option<String>,
    archived: JsonSide<'a>,
    aside: JsonSide<'a>,
    decision: Option<JsonDecision<'a>>,
}

#[derive(Serialize)]
struct JsonSide<'a> {
    key: &'a str,
    size: Option<u64>,
    sha256: Option<Sha256Digest>,
    writer: Option<&'a Writer>,
    damaged: Option<&'a str>,
}

#[derive(Serialize)]
struct JsonDecision<'a> {
    archived_is: Whose,
    at: jiff::Timestamp,
    writer: &'a Writer,
}

#[derive(Serialize)]
struct JsonRefused<'a> {
    file: WalFileName,
    differs_at: Option<String>,
    writer: Option<&'a Writer>,
    why: Option<&'a str>,
}

#[derive(Serialize)]
struct JsonPartial {
    segment: SegmentName,
    count: usize,
}

fn differs_at(difference: Difference) -> Option<String> {
    match difference {
        Difference::Lsn(lsn) => Some(lsn.to_string()),
        Difference::Byte(offset) => Some(offset.to_string()),
        Difference::Unknown => None,
    }
}

fn json_side(side: &Side) -> JsonSide<'_> {
    let facts = side.read.as_ref().ok();
    JsonSide {
        key: &side.key,
        size: facts.map(|facts| facts.size),
        sha256: facts.and_then(|facts| facts.sha256),
        writer: facts.map(|facts| &facts.writer),
        damaged: side.read.as_ref().err().map(String::as_str),
    }
}

fn json_decision(event: &Event<Resolved>) -> JsonDecision<'_> {
    JsonDecision {
        archived_is: event.body.archived_is,
        at: event.at,
        writer: &event.writer,
    }
}

fn json_refused(refused: &Refused) -> JsonRefused<'_> {
    let known = refused.archived.as_ref().ok();
    JsonRefused {
        file: refused.file,
        differs_at: known.and_then(|(difference, _)| differs_at(*difference)),
        writer: known.map(|(_, writer)| writer),
        why: refused.archived.as_ref().err().map(String::as_str),
    }
}

/// The same as JSON.
///
/// # Errors
/// None that is known of.
pub fn conflicts_json(told: &[RepositoryConflicts]) -> Result<String, serde_json::Error> {
    let repositories = told.iter().map(|told| JsonRepository {
        repository: &told.repository,
        system_identifier: told.system,
        set_aside: told
            .set_aside
            .iter()
            .map(|conflict| JsonConflict {
                file: conflict.file,
                differs_at: conflict.difference.and_then(differs_at),
                archived: json_side(&conflict.archived),
                aside: json_side(&conflict.aside),
                decision: conflict.decision.as_ref().map(json_decision),
            })
            .collect(),
        refused: told.refused.iter().map(json_refused).collect(),
        partials: told
            .partials
            .iter()
            .map(|(segment, count)| JsonPartial {
                segment: *segment,
                count: *count,
            })
            .collect(),
    });
    let json = Json {
        version: 1,
        repositories: repositories.collect(),
    };
    serde_json::to_string_pretty(&json).map(|text| text + "\n")
}

#[derive(Serialize)]
struct JsonWritten<'a> {
    version: u32,
    resolved: Vec<JsonResolved<'a>>,
}

#[derive(Serialize)]
struct JsonResolved<'a> {
    repository: &'a str,
    file: WalFileName,
    decision: JsonDecision<'a>,
}

/// What was written down, as JSON.
///
/// # Errors
/// None that is known of.
pub fn resolved_json(written: &[(String, Event<Resolved>)]) -> Result<String, serde_json::Error> {
    let json = JsonWritten {
        version: 1,
        resolved: written
            .iter()
            .map(|(repository, event)| JsonResolved {
                repository,
                file: event.body.file,
                decision: json_decision(event),
            })
            .collect(),
    };
    serde_json::to_string_pretty(&json).map(|text| text + "\n")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::render::samples;

    #[test]
    fn each_conflict_is_told_with_both_sides_and_a_way_out() {
        let page = conflicts_page(&samples::conflicts());
        for words in [
            "000000010000000000000006 is archived in repository here, and another file of that name was set aside; they differ first at LSN 0/6002000\n",
            "  archived: 16 MB, by process 4711 on db1 at 2026-11-22T17:58:13.123456Z (Walden 0.1.0)\n             main/1/wal/x.zst\n",
            "  set aside: 16 MB, by process 4711 on clone",
            "  decided: the archived one is this cluster's: restores go across it, said laptop at 2026-11-22T17:58:13Z\n",
            "walden conflicts resolve 000000010000000000000007 --archived-is ours\n",
            "000000010000000000000008: the archiver is refused, because other content is archived in repository here; they differ first at LSN 0/8000120\n",
            "000000010000000000000009.partial is archived 2 times",
        ] {
            assert!(page.contains(words), "{words:?} is not in:\n{page}");
        }
        assert!(
            !page.contains("resolve 000000010000000000000006"),
            "what is decided needs no command:\n{page}"
        );
    }
}
