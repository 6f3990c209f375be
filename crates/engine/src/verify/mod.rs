//! `walden verify`: reads what a repository holds of a cluster, and proves it. What a finding means, `walden_model::verify` says.

mod backup;
mod manifest;
mod map;
mod objects;
mod remedy;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, HashSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use jiff::{SignedDuration, Timestamp};
use walden_model::catalog::HistoryTrouble;
use walden_model::{
    Affected, BackupId, Catalog, ClusterName, Event, Finding, FindingKind, Findings, Gap,
    IdentityDocument, RandomId, Severity, SystemKeys, Verified, VerifyMode, WalName, keys,
};
use walden_pg::SystemIdentifier;

use crate::catalog::{self, SystemCatalog, whole_text};
use crate::event;
use crate::index::mark_breaks;
use crate::progress::Progress;
use crate::repository::{Repository, RepositoryError, RepositorySettings, Trouble};

/// How far `new` looks behind what was proven: an object may bear the time at which its upload began, and a store has several clocks.
const OVERLAP: SignedDuration = SignedDuration::from_hours(1);
/// A backup without a commit document in which nothing was stored for so long is nobody's any more.
const ABANDONED: SignedDuration = SignedDuration::from_hours(24);
/// After so many objects that could not be read no further one is begun: each may have taken its whole deadline.
const MOST_OUTAGES: u64 = 100;
/// Results of earlier verifies that are looked at for one that `new` can go on from.
const MOST_EVENTS: usize = 100;

/// What to verify. Each repository stands for itself.
#[derive(Debug, Clone)]
pub struct VerifyRequest {
    /// The repository.
    pub repository: RepositorySettings,
    /// The cluster's name in it.
    pub cluster: ClusterName,
    /// One of its system identifiers; `None`: all.
    pub system: Option<SystemIdentifier>,
    /// How much is read.
    pub mode: VerifyMode,
    /// Only this backup, and the WAL that it needs itself.
    pub backup: Option<BackupId>,
    /// Objects that are read at the same time.
    pub jobs: usize,
}

/// What was found in one repository.
#[derive(Debug, Clone)]
pub struct VerifyReport {
    /// Its name in the configuration.
    pub repository: String,
    /// Where it is, for people.
    pub location: String,
    /// The cluster.
    pub cluster: ClusterName,
    /// How much was read.
    pub mode: VerifyMode,
    /// The one backup that was looked at.
    pub backup: Option<BackupId>,
    /// When it began.
    pub started_at: Timestamp,
    /// How long it took.
    pub took: Duration,
    /// One for each registration that could be read.
    pub systems: Vec<SystemReport>,
    /// What belongs to none of them.
    pub findings: Findings,
    /// The result could not be kept in the repository; in words.
    pub warnings: Vec<String>,
}

/// What was found of one system identifier.
#[derive(Debug, Clone)]
pub struct SystemReport {
    /// Which.
    pub system: SystemIdentifier,
    /// With [`VerifyMode::New`]: what was stored before was read by an earlier verify. `None`: there was none to go on from.
    pub since: Option<Timestamp>,
    /// Objects that were read.
    pub objects: u64,
    /// Their bytes.
    pub bytes: u64,
    /// Backups that there are.
    pub backups: u64,
    /// Segments that there are.
    pub segments: u64,
    /// Whether everything could be looked at that should be.
    pub complete: bool,
    /// What was found.
    pub findings: Findings,
}

impl VerifyReport {
    /// The worst of everything; `None` where all is well.
    #[must_use]
    pub fn worst(&self) -> Option<Severity> {
        let systems = self.systems.iter().filter_map(|s| s.findings.worst());
        systems.chain(self.findings.worst()).min()
    }
}

/// Verifies one repository. What fails is a finding: there is always a report.
pub async fn verify(request: &VerifyRequest, progress: Arc<dyn Progress>) -> VerifyReport {
    match Repository::open(&request.repository).await {
        Ok(repository) => verify_in(&repository, request, progress).await,
        Err(e) => {
            let mut report = empty(request, request.repository.place.to_string());
            report.findings.add(not_seen(&report.repository, &e));
            report
        }
    }
}

fn empty(request: &VerifyRequest, location: String) -> VerifyReport {
    VerifyReport {
        repository: request.repository.name.clone(),
        location,
        cluster: request.cluster.clone(),
        mode: request.mode,
        backup: request.backup.clone(),
        started_at: Timestamp::now(),
        took: Duration::ZERO,
        systems: Vec::new(),
        findings: Findings::default(),
        warnings: Vec::new(),
    }
}

/// The repository as a whole cannot be looked at.
fn not_seen(name: &str, error: &(dyn std::error::Error + 'static)) -> Finding {
    let repository = std::iter::successors(Some(error), |e| e.source())
        .find_map(|e| e.downcast_ref::<RepositoryError>());
    let kind = match repository.map(RepositoryError::trouble) {
        Some(Trouble::Damage) => FindingKind::RegistrationDamaged,
        _ => FindingKind::Unreachable,
    };
    Finding {
        kind,
        system: None,
        subject: name.to_owned(),
        what: whole_text(error),
        affected: Affected::default(),
        remedy: remedy::of(kind, "it", name),
    }
}

/// Verifies an open repository.
pub async fn verify_in(
    repository: &Repository,
    request: &VerifyRequest,
    progress: Arc<dyn Progress>,
) -> VerifyReport {
    let begin = Instant::now();
    let mut report = empty(request, repository.location());
    let root = match repository.root().await {
        Ok(root) => root.repository_id,
        Err(e) => {
            report.findings.add(not_seen(&report.repository, &e));
            return report;
        }
    };
    let (loaded, damaged) = match catalog::load_readable(repository, &request.cluster).await {
        Ok(loaded) => loaded,
        Err(e) => {
            report.findings.add(not_seen(&report.repository, &e));
            return report;
        }
    };
    for document in damaged {
        let kind = FindingKind::RegistrationDamaged;
        report.findings.add(Finding {
            kind,
            system: keys::parse_identity(&request.cluster, &document.key),
            remedy: remedy::of(kind, &document.key, repository.name()),
            what: format!(
                "{}, so nothing that belongs to it was looked at",
                document.why
            ),
            subject: document.key,
            affected: Affected::default(),
        });
    }
    let wanted = |system: &SystemCatalog| {
        let is = |wanted| wanted == system.identity.system_identifier;
        let holds = |id: &BackupId| system.catalog.backup(id).is_some();
        request.system.is_none_or(is) && request.backup.as_ref().is_none_or(holds)
    };
    for system in loaded.into_iter().filter(wanted) {
        let warnings = &mut report.warnings;
        let system = verify_system(repository, root, system, request, &progress, warnings).await;
        report.systems.push(system);
    }
    if report.systems.is_empty() && report.findings.worst().is_none() {
        let (kind, subject) = match (&request.backup, request.system) {
            (Some(id), _) => (FindingKind::BackupUnknown, id.to_string()),
            (None, Some(system)) => (FindingKind::Unreachable, system.to_string()),
            (None, None) => (FindingKind::Unreachable, request.cluster.to_string()),
        };
        report.findings.add(Finding {
            kind,
            system: None,
            what: "the repository holds nothing of that name".to_owned(),
            affected: Affected::default(),
            remedy: remedy::of(kind, &subject, repository.name()),
            subject,
        });
    }
    report.took = begin.elapsed();
    report
}

/// The newest result of a verify of everything that this wants; those that cannot be read are passed over.
pub(crate) async fn last_event(
    repository: &Repository,
    repository_id: RandomId,
    keys: &SystemKeys,
    identity: &IdentityDocument,
    wanted: impl Fn(&Verified) -> bool,
) -> Result<Option<Event<Verified>>, RepositoryError> {
    let names = event::names(repository, keys).await?;
    let verified = names
        .iter()
        .filter(|name| name.kind == <Verified as walden_model::EventBody>::EVENT);
    for name in verified.take(MOST_EVENTS) {
        match event::read::<Verified>(repository, keys, identity.archive_id, name).await {
            Ok(Some(event)) => {
                let body = &event.body;
                let here = body.repository_id == repository_id && body.backup.is_none();
                if here && wanted(body) {
                    return Ok(Some(event));
                }
            }
            Err(e) if matches!(e.trouble(), Trouble::Outage | Trouble::Local) => return Err(e),
            Ok(None) | Err(_) => {}
        }
    }
    Ok(None)
}

async fn verify_system(
    repository: &Repository,
    repository_id: RandomId,
    SystemCatalog {
        identity,
        mut catalog,
        archive,
    }: SystemCatalog,
    request: &VerifyRequest,
    progress: &Arc<dyn Progress>,
    warnings: &mut Vec<String>,
) -> SystemReport {
    let begin = Instant::now();
    progress.phase("names", None);
    let broken = mark_breaks(&archive, &mut catalog).await.err();
    let keys = SystemKeys {
        cluster: request.cluster.clone(),
        system: identity.system_identifier,
    };
    let mut since = None;
    if request.mode == VerifyMode::New && request.backup.is_none() {
        let good = |verified: &Verified| verified.proven_until.is_some();
        let last = last_event(repository, repository_id, &keys, &identity, good).await;
        let proven = last.ok().flatten().and_then(|e| e.body.proven_until);
        since = proven.and_then(|until| until.checked_sub(OVERLAP).ok());
    }
    let check = Check {
        repository,
        keys,
        identity: &identity,
        catalog: &catalog,
        request,
        since,
        progress: progress.clone(),
        tally: Mutex::default(),
    };
    if let Some(e) = broken {
        check.failed(
            &check.keys.prefix(),
            FindingKind::Unreachable,
            Affected::default(),
            &e,
        );
    }
    check.names();
    check.objects().await;
    check.unfinished();
    if request.mode != VerifyMode::Names {
        for record in catalog.ordered_backups() {
            if check.is_wanted(&record.backup_id) {
                check.backup(record).await;
            }
        }
    }
    let tally = std::mem::take(&mut *check.tally());
    let findings = tally.findings;
    let count = |severity| findings.count(severity);
    let complete = count(Severity::Outage) == 0;
    let proven = complete
        && request.backup.is_none()
        && request.mode != VerifyMode::Names
        && count(Severity::Damage) + count(Severity::Unproven) == 0;
    let event = Verified {
        repository_id,
        mode: request.mode,
        backup: request.backup.clone(),
        complete,
        proven_until: tally.newest.filter(|_| proven),
        objects: tally.objects,
        bytes: tally.bytes,
        seconds: begin.elapsed().as_secs(),
        damaged: count(Severity::Damage),
        gaps: count(Severity::Gap),
        outages: count(Severity::Outage),
        unproven: count(Severity::Unproven),
        notes: count(Severity::Note),
        lost_backups: findings.lost_backups(),
    };
    if let Err(e) = event::append(repository, &check.keys, identity.archive_id, event).await {
        warnings.push(format!(
            "the result cannot be kept in repository \"{}\": {}",
            repository.name(),
            whole_text(&e)
        ));
    }
    SystemReport {
        system: identity.system_identifier,
        since,
        objects: tally.objects,
        bytes: tally.bytes,
        backups: catalog.backups.len() as u64,
        segments: catalog.wal.values().map(|w| w.segments.len() as u64).sum(),
        complete,
        findings,
    }
}

/// What has been found so far.
#[derive(Debug, Default)]
struct Tally {
    findings: Findings,
    objects: u64,
    bytes: u64,
    /// By the store's clock.
    newest: Option<Timestamp>,
    /// The newest object of each backup's folder.
    backups: BTreeMap<BackupId, Timestamp>,
    /// Keys that were found damaged while the catalog was read.
    named: HashSet<String>,
}

/// The verify of one system identifier.
struct Check<'a> {
    repository: &'a Repository,
    keys: SystemKeys,
    identity: &'a IdentityDocument,
    catalog: &'a Catalog,
    request: &'a VerifyRequest,
    since: Option<Timestamp>,
    progress: Arc<dyn Progress>,
    tally: Mutex<Tally>,
}

impl Check<'_> {
    fn tally(&self) -> MutexGuard<'_, Tally> {
        self.tally.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn jobs(&self) -> usize {
        self.request.jobs.max(1)
    }

    /// Whether a backup's contents are to be read.
    fn is_wanted(&self, id: &BackupId) -> bool {
        let newest = self.tally().backups.get(id).copied();
        let is_new = self
            .since
            .is_none_or(|since| newest.is_none_or(|at| at > since));
        is_new && self.request.backup.as_ref().is_none_or(|only| only == id)
    }

    /// Whether so much could not be read that the rest is not tried.
    fn gave_up(&self) -> bool {
        self.tally().findings.count(Severity::Outage) >= MOST_OUTAGES
    }

    fn add(&self, kind: FindingKind, subject: &str, what: String, affected: Affected) {
        let finding = Finding {
            kind,
            system: Some(self.keys.system),
            subject: subject.to_owned(),
            what,
            affected,
            remedy: remedy::of(kind, subject, self.repository.name()),
        };
        self.tally().findings.add(finding);
    }

    /// An object could not be read as what it should be; `damage` is what that is called if it is its own fault.
    fn failed(&self, key: &str, damage: FindingKind, affected: Affected, e: &RepositoryError) {
        let kind = match (e, e.trouble()) {
            // What takes the content refuses it for what it says.
            (RepositoryError::Sink { .. }, _) | (_, Trouble::Damage) => damage,
            (_, Trouble::Absent) => FindingKind::Vanished,
            (_, Trouble::Configuration) => FindingKind::NotReadable,
            (_, Trouble::Outage | Trouble::Local) => FindingKind::Unreachable,
        };
        let concerns = kind == damage;
        let affected = if concerns {
            affected
        } else {
            Affected::default()
        };
        self.add(kind, key, whole_text(e), affected);
    }

    /// An object was read whole.
    fn read(&self, bytes: u64) {
        self.progress.advance(bytes);
        let mut tally = self.tally();
        tally.objects += 1;
        tally.bytes = tally.bytes.saturating_add(bytes);
    }

    /// What the catalog tells, of which nothing more has to be read.
    fn names(&self) {
        let catalog = self.catalog;
        for document in &catalog.damaged_documents {
            let key = document.key.as_str();
            let wal = key.strip_prefix(&self.keys.wal_prefix());
            let (kind, affected) = match (self.keys.parse_commit(key), wal) {
                (Some(id), _) => (FindingKind::CommitDamaged, Affected::lost(&id)),
                (None, None) => (FindingKind::DocumentDamaged, Affected::default()),
                (None, Some(wal)) => match keys::parse_wal_key(wal) {
                    Some(WalName::History(timeline)) => {
                        let kind = match catalog.disputed_histories.contains(&timeline) {
                            true => FindingKind::HistoryMissing,
                            false => FindingKind::HistoryDamaged,
                        };
                        (kind, catalog.affected_by_history(timeline))
                    }
                    // Its head was read; if its bytes are read, too, that tells more.
                    _ if self.request.mode == VerifyMode::All => continue,
                    Some(WalName::Segment(name)) => {
                        (FindingKind::SegmentDamaged, catalog.affected_by(name))
                    }
                    _ => (FindingKind::WalFileDamaged, Affected::default()),
                },
            };
            if self.concerns(&affected) {
                self.add(kind, key, document.why.clone(), affected);
                self.tally().named.insert(key.to_owned());
            }
        }
        for (id, missing) in &catalog.missing_packs {
            for key in missing {
                let affected = Affected::lost(id);
                if self.concerns(&affected) {
                    let what = format!("backup {id} needs it: it is missing or has another size");
                    self.add(FindingKind::PackMissing, key, what, affected);
                }
            }
        }
        let gaps = catalog.gaps();
        for found in gaps.gaps {
            if self.concerns(&found.affected) {
                let (kind, what) = told(&found.gap);
                let subject = match found.gap.first == found.gap.last {
                    true => found.gap.first.to_string(),
                    false => format!("{} to {}", found.gap.first, found.gap.last),
                };
                self.add(kind, &subject, what, found.affected);
            }
        }
        for missing in gaps.histories {
            if missing.trouble == HistoryTrouble::Absent {
                let affected = catalog.affected_by_history(missing.timeline);
                let key = self.keys.wal(&WalName::History(missing.timeline));
                self.add(
                    FindingKind::HistoryMissing,
                    &key,
                    missing.to_string(),
                    affected,
                );
            }
        }
        for record in catalog.backups.iter().filter(|r| r.damaged_blocks > 0) {
            let id = record.backup_id.as_str();
            let blocks = record.damaged_blocks;
            let what = format!("{blocks} blocks were damaged on the server when it was taken");
            self.add(FindingKind::BlocksDamaged, id, what, Affected::default());
        }
        let has_wal = catalog.timelines_with_wal().next().is_some();
        if catalog.backups.is_empty() && has_wal {
            let what = "there is archived WAL, and no backup from which to restore".to_owned();
            let subject = self.keys.cluster.as_str();
            self.add(FindingKind::NoBackup, subject, what, Affected::default());
        }
    }

    /// Whether that is about what was asked for.
    fn concerns(&self, affected: &Affected) -> bool {
        let Some(only) = &self.request.backup else {
            return true;
        };
        affected.lost.contains(only) || affected.shortened.contains(only)
    }

    /// Backups without a commit document, once the age of their objects is known.
    fn unfinished(&self) {
        if self.request.backup.is_some() {
            return;
        }
        let now = Timestamp::now();
        for backup in &self.catalog.unfinished {
            let newest = self.tally().backups.get(&backup.id).copied();
            let at = newest.unwrap_or(backup.started_at);
            let kind = match now.duration_since(at) > ABANDONED {
                true => FindingKind::BackupAbandoned,
                false => FindingKind::BackupRunning,
            };
            let what = format!(
                "it was begun at {} on {} and has no commit document; its newest object is of {at}",
                backup.started_at, backup.host
            );
            self.add(kind, backup.id.as_str(), what, Affected::default());
        }
    }
}

/// What a gap is called, and what is said of it.
fn told(gap: &Gap) -> (FindingKind, String) {
    if gap.broken.is_some() {
        return (FindingKind::SegmentBroken, gap.to_string());
    }
    if gap.begins_in_conflict() {
        return (FindingKind::SegmentsInConflict, gap.to_string());
    }
    let what = format!("not in the repository: {gap}");
    (FindingKind::SegmentsMissing, what)
}
