//! One file's way into every repository: read, hashed, indexed and compressed once, stored in all of them side by side.

use std::future::Future;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use walden_model::index::{IndexedObject, SegmentIndex, SegmentIndexer, StopReason};
use walden_model::{
    Head, HeadKind, IdentityDocument, RandomId, Sha256Digest, SystemKeys, Tail, WalName, keys,
};
use walden_pg::{SystemIdentifier, WalFileName};
use walden_store::{PutMode, StoreError, StoreErrorKind};

use super::destination::{Destination, Lane};
use super::error::source_error;
use super::mark::{Copy, Statement};
use super::source::WalSource;
use super::{Lacking, PushError, PushOutcome, PushReport, PushRequest};
use crate::codec::{CodecError, encode_tail, keyed};
use crate::encryption::Recipient;
use crate::pipeline::Compressors;
use crate::repository::{ObjectEncoder, RepositoryError, Trouble};
use crate::side_by_side::side_by_side;
use crate::{catalog, host};

/// Content of a frame. A segment gives enough of them for every core, and what a compressor and a stream have in memory grows with it.
const FRAME: usize = 1024 * 1024;

/// A WAL file on its way.
pub(super) struct Job<'a> {
    pub request: &'a PushRequest,
    pub source: Arc<WalSource>,
    pub path: PathBuf,
    system: SystemIdentifier,
    /// For whom it is encrypted. History files never are: who may list what there is must be able to follow timelines.
    recipients: Option<Arc<[Recipient]>>,
}

/// How to store it.
#[derive(Debug, Clone)]
pub(super) struct Way {
    /// What compresses, for this file and others.
    pub compressors: Compressors,
    /// Frames under way at once.
    pub depth: usize,
}

pub(super) enum JobError {
    Push(Box<PushError>),
    Repository(RepositoryError),
    Encode(CodecError),
}

impl JobError {
    pub(super) fn told(self, file: WalFileName) -> PushError {
        match self {
            JobError::Push(e) => *e,
            JobError::Repository(source) => PushError::Repository {
                file: file.to_string(),
                source,
            },
            JobError::Encode(source) => PushError::Encode { file, source },
        }
    }
}

impl From<PushError> for JobError {
    fn from(error: PushError) -> Self {
        JobError::Push(Box::new(error))
    }
}

impl From<RepositoryError> for JobError {
    fn from(error: RepositoryError) -> Self {
        JobError::Repository(error)
    }
}

impl From<CodecError> for JobError {
    fn from(error: CodecError) -> Self {
        JobError::Encode(error)
    }
}

/// Runs what blocks on a thread of its own.
pub(super) async fn blocking<T: Send + 'static>(
    path: &std::path::Path,
    work: impl FnOnce() -> T + Send + 'static,
) -> Result<T, PushError> {
    tokio::task::spawn_blocking(work)
        .await
        .map_err(|source| PushError::Internal {
            path: path.to_owned(),
            source,
        })
}

/// A segment says itself whose it is. History files do not, so the data directory is asked.
fn system_of(
    request: &PushRequest,
    path: &std::path::Path,
    source: &WalSource,
) -> Result<SystemIdentifier, PushError> {
    if let Some(facts) = &source.facts {
        return Ok(facts.header.system_identifier);
    }
    let file = source.file;
    let pgdata =
        host::find_pgdata(request.pgdata.as_deref(), path).ok_or(PushError::NoPgdata { file })?;
    host::system_identifier(&pgdata).map_err(|source| PushError::Control { file, source })
}

/// A segment that was damaged before it came here is the only one there is, and so archived all the same; somebody should know.
fn damage(index: &SegmentIndex) -> Option<String> {
    let stopped = index.stopped?;
    (stopped.why == StopReason::Damaged).then(|| {
        format!(
            "damaged before it was archived: what stands at {} is no WAL record, and recovery will end there. It is archived as it is; \
            take a new base backup, and look at the disk",
            stopped.at
        )
    })
}

/// An object of which every byte is on its way.
struct Made<'d> {
    lanes: Vec<Lane<'d>>,
    /// Of the file.
    content: Sha256Digest,
    /// Of the object, in bytes.
    size: u64,
    /// What a person should know of the file.
    warning: Option<String>,
}

impl<'a> Job<'a> {
    /// Opens the file and checks that it is what its name says.
    pub async fn open(request: &'a PushRequest, path: PathBuf) -> Result<Self, PushError> {
        let opened = blocking(&path, {
            let path = path.clone();
            move || WalSource::open(&path)
        });
        let source = opened.await?.map_err(|e| source_error(&path, e))?;
        let system = system_of(request, &path, &source)?;
        // One for all repositories, as the object is.
        let keys = request.repositories.first().map(|first| &first.keys);
        let recipients = keys.map_or(Ok(None), |keys| keys.recipients());
        let recipients = recipients.map_err(|e| PushError::Repository {
            file: source.file.to_string(),
            source: RepositoryError::Recipients(e),
        })?;
        let is_history = matches!(source.file, WalFileName::History(_));
        Ok(Job {
            request,
            recipients: recipients.filter(|_| !is_history),
            source: Arc::new(source),
            path,
            system,
        })
    }

    /// What failed in the repository, as the push's error.
    pub fn failed(&self, source: RepositoryError) -> PushError {
        PushError::Repository {
            file: self.source.file.to_string(),
            source,
        }
    }

    pub fn report(&self, key: String, outcome: PushOutcome) -> PushReport {
        PushReport {
            file: self.source.file,
            key,
            outcome,
            size: self.source.size,
            stored: 0,
            stored_in: Vec::new(),
            lacking: Vec::new(),
            taken_along: 0,
            warning: self.source.warning(),
        }
    }

    pub(super) fn keys(&self) -> SystemKeys {
        SystemKeys {
            cluster: self.request.cluster.clone(),
            system: self.system,
        }
    }

    /// What can be said now of the file and of its object in every required repository; `None` where one lacks it, or where the name does
    /// not lead to one object alone. Of the other repositories nothing is said.
    ///
    /// # Errors
    /// Where a repository does not answer: whoever would store the file then waits for the same in vain.
    pub async fn statement(
        &self,
        to: &[Destination<'_>],
    ) -> Result<Option<(String, String)>, RepositoryError> {
        let Some(name) = WalName::of_file(self.source.file) else {
            return Ok(None);
        };
        let key = self.keys().wal(&name);
        let required = to.iter().filter(|destination| destination.required());
        let asked = required.map(|destination| self.copy(destination, &key));
        let mut copies = Vec::new();
        let mut all = true;
        for copy in futures::future::join_all(asked).await {
            match copy? {
                Some(copy) => copies.push(copy),
                None => all = false,
            }
        }
        let statement = Statement {
            file: self.source.file,
            stamp: &self.source.stamp,
            system: self.system,
            cluster: &self.request.cluster,
            copies,
        };
        Ok(all.then(|| (key, statement.to_string())))
    }

    /// What one repository knows of the object; `None` where it is not there.
    async fn copy(
        &self,
        destination: &Destination<'_>,
        key: &str,
    ) -> Result<Option<Copy>, RepositoryError> {
        let repository = destination.repository().await?;
        let place = repository.key(key)?;
        // At once: in a bucket each waits for an answer.
        let object = repository.store().head(&place);
        let (root, object) = futures::join!(repository.root(), object);
        match (root, object.map_err(|e| repository.failed(e))) {
            (Ok(root), Ok(object)) => Ok(Some(Copy {
                location: repository.location(),
                repository: root.repository_id,
                object,
            })),
            (Err(error), _) | (_, Err(error)) => match error.trouble() {
                Trouble::Outage => Err(error),
                _ => Ok(None),
            },
        }
    }

    /// Stores the file in every repository, or finds it there. Its objects get their names no sooner than all files before `place` have
    /// theirs.
    ///
    /// # Errors
    /// Where it does not stand in every required repository afterwards. In those where it does it stays.
    pub async fn run(
        &self,
        to: &[Destination<'_>],
        way: &Way,
        place: usize,
    ) -> Result<PushReport, PushError> {
        let outcome = self.archive(to, way, place).await;
        outcome.map_err(|e| self.told(e))
    }

    fn told(&self, error: JobError) -> PushError {
        error.told(self.source.file)
    }

    async fn archive(
        &self,
        to: &[Destination<'_>],
        way: &Way,
        place: usize,
    ) -> Result<PushReport, JobError> {
        let request = self.request;
        let mut left = request.optional_wait;
        let lanes: Vec<_> = to.iter().map(Lane::new).collect();
        let prepare = |lane| self.prepare(lane);
        let mut lanes = self.in_each(lanes, &mut left, prepare).await;
        let archive_id = self.one_archive(&mut lanes);
        if request.quarantine && archive_id.is_some() {
            // Where nothing is in its way the next push archives it.
            let no_conflict =
                |lane: &Lane| matches!(lane.ended, Some(Err(PushError::NoConflict { .. })));
            lanes.retain(|lane| !no_conflict(lane));
        }
        let system_keys = self.keys();
        let file = self.source.file;
        let name = WalName::of_file(file);
        let Some(archive_id) = archive_id else {
            let key = name.map(|name| system_keys.wal(&name));
            return Ok(self.conclude(lanes, key.unwrap_or_default())?);
        };
        // The keys of partial files and of quarantine hold a piece of the digest, so those are read once more, before.
        let digest = match file {
            WalFileName::Partial(_) => Some(self.digest().await?),
            _ if request.quarantine => Some(self.digest().await?),
            _ => None,
        };
        let named = digest.map(|digest| self.named(archive_id, digest));
        let key = match (&named, name) {
            (Some(named), _) if request.quarantine => system_keys.quarantine(&file, named),
            (Some(named), _) => system_keys.wal(&WalName::new(file, named)),
            (None, Some(name)) => system_keys.wal(&name),
            (None, None) => {
                return Err(CodecError::Damaged {
                    what: format!("{file} has no key"),
                }
                .into());
            }
        };
        let begin = |lane| self.begin(lane, &key);
        lanes = self.in_each(lanes, &mut left, begin).await;
        let of = IndexedObject {
            archive_id,
            key: keys::below_cluster(&key).to_owned(),
        };
        let made = self.make(of, way, lanes, &mut left).await?;
        // Its key holds a piece of the digest.
        if digest.is_some_and(|before| before != made.content) {
            return Err(PushError::Changed {
                path: self.path.clone(),
            }
            .into());
        }
        let finish = |lane| self.place(lane, &key, made.content, place);
        let lanes = self.in_each(made.lanes, &mut left, finish).await;
        let mut report = self.conclude(lanes, key)?;
        if report.outcome == PushOutcome::Stored {
            report.stored = made.size;
            report.warning = report.warning.or(made.warning);
        }
        Ok(report)
    }

    /// Carries out a step in every repository at once. Those that are not required share out what is `left` of the request's
    /// `optional_wait`.
    async fn in_each<'d, F: Future<Output = Lane<'d>>>(
        &self,
        lanes: Vec<Lane<'d>>,
        left: &mut Duration,
        step: impl Fn(Lane<'d>) -> F,
    ) -> Vec<Lane<'d>> {
        let destinations: Vec<_> = lanes.iter().map(|lane| lane.destination).collect();
        let works = lanes
            .into_iter()
            .map(|lane| (lane.destination.required(), step(lane)))
            .collect();
        let done = side_by_side(works, left).await;
        let late = |destination| {
            let mut lane = Lane::new(destination);
            lane.end(Err(PushError::TooSlow {
                limit: self.request.optional_wait,
            }));
            lane
        };
        done.into_iter()
            .zip(destinations)
            .map(|(lane, destination)| lane.unwrap_or_else(|| late(destination)))
            .collect()
    }

    /// The archive that the file goes into, which is one everywhere: an object's bytes name it, and are the same in every repository. The
    /// first required repository says which; `None` where the file goes nowhere.
    fn one_archive(&self, lanes: &mut [Lane<'_>]) -> Option<RandomId> {
        let known = |lane: &Lane<'_>| lane.identity.as_ref().map(|identity| identity.archive_id);
        let going = lanes.iter().filter(|lane| lane.identity.is_some());
        let first = going.min_by_key(|lane| !lane.destination.required())?;
        let (expected, other) = (known(first)?, first.destination.name().to_owned());
        for lane in lanes {
            if let Some(found) = known(lane)
                && found != expected
            {
                let error = RepositoryError::OtherArchive {
                    name: lane.destination.name().to_owned(),
                    other: other.clone(),
                    cluster: self.request.cluster.clone(),
                    system: self.system,
                    found,
                    expected,
                };
                lane.end(Err(self.failed(error)));
            }
        }
        Some(expected)
    }

    /// Whether the file may get into this repository.
    async fn prepare<'d>(&self, mut lane: Lane<'d>) -> Lane<'d> {
        if lane.ended.is_some() {
            return lane;
        }
        let prepared = async {
            let repository = lane.destination.repository().await?;
            let cluster = &self.request.cluster;
            let identity = repository.registration(cluster, self.system).await?;
            repository.recipients(&identity)?;
            self.check_size(&identity)?;
            let there =
                self.request.quarantine && self.not_in_conflict(repository, &identity).await?;
            Ok::<_, JobError>((identity, there))
        };
        match prepared.await {
            Ok((_, true)) => lane.end(Ok(PushOutcome::AlreadyThere)),
            Ok((identity, false)) => lane.identity = Some(identity),
            Err(e) => lane.end(Err(self.told(e))),
        }
        lane
    }

    /// What names and claims have a piece of: the content's digest or, where the file is encrypted, one that tells it to nobody.
    pub(super) fn named(&self, archive_id: RandomId, content: Sha256Digest) -> Sha256Digest {
        match self.recipients {
            Some(_) => Sha256Digest(keyed(archive_id, &content).0),
            None => content,
        }
    }

    pub(super) async fn digest(&self) -> Result<Sha256Digest, JobError> {
        let source = self.source.clone();
        let read = blocking(&self.path, move || source.digest()).await?;
        Ok(read.map_err(|e| source_error(&self.path, e))?)
    }

    /// Reads, hashes, indexes and compresses the file in one pass, and hands the object's bytes to every repository as they come. It has no
    /// name yet.
    async fn make<'d>(
        &self,
        of: IndexedObject,
        way: &Way,
        mut lanes: Vec<Lane<'d>>,
        left: &mut Duration,
    ) -> Result<Made<'d>, JobError> {
        let head = Head::new(
            HeadKind::Wal,
            of.archive_id,
            &of.key,
            Some(self.source.size),
            host::writer(),
        );
        let (mut encoder, first) = ObjectEncoder::begin(head, self.recipients.clone()).await?;
        let mut size = first.len() as u64;
        lanes = self.write(lanes, left, first).await;

        let (sink, mut frames) = way.compressors.stream(way.depth);
        let source = self.source.clone();
        let reading = tokio::task::spawn_blocking(move || {
            let mut indexer = source.indexer();
            let digest = source.read(FRAME, |content| {
                if let Some(indexer) = &mut indexer {
                    indexer.feed(&content);
                }
                sink.push(content).map_err(std::io::Error::other)
            })?;
            Ok((digest, indexer.map(SegmentIndexer::finish)))
        });
        let mut tail = Tail {
            content_size: self.source.size,
            index: None,
            sha256: None,
            frames: Vec::new(),
        };
        while let Some(frame) = frames.next().await {
            let frame = frame?;
            tail.frames.push(frame.entry);
            let bytes = encoder.write(frame.stored).await?;
            size += bytes.len() as u64;
            lanes = self.write(lanes, left, bytes).await;
        }
        let internal = |source| PushError::Internal {
            path: self.path.clone(),
            source,
        };
        let (content, index) = reading
            .await
            .map_err(internal)?
            .map_err(|e| source_error(&self.path, e))?;
        tail.sha256 = Some(content);
        let warning = index.as_ref().and_then(damage);
        let content_hmac = keyed(of.archive_id, &content);
        tail.index = index.map(|index| {
            Box::new(SegmentIndex {
                of: Some(of),
                ..index
            })
        });
        let (tail, _) = encode_tail(&tail)?;
        let last = encoder.end(tail, content_hmac).await?;
        size += last.len() as u64;
        let lanes = self.write(lanes, left, last).await;
        Ok(Made {
            lanes,
            content,
            size,
            warning,
        })
    }

    async fn begin<'d>(&self, mut lane: Lane<'d>, key: &str) -> Lane<'d> {
        if lane.ended.is_some() {
            return lane;
        }
        let begun = async {
            let repository = lane.destination.repository().await?;
            let place = repository.key(key)?;
            let upload = repository.store().begin(&place, PutMode::Create).await;
            upload.map_err(|e| repository.failed(e))
        };
        match begun.await {
            Ok(upload) => lane.upload = Some(upload),
            Err(e) => lane.end(Err(self.failed(e))),
        }
        lane
    }

    async fn write<'d>(
        &self,
        lanes: Vec<Lane<'d>>,
        left: &mut Duration,
        bytes: Bytes,
    ) -> Vec<Lane<'d>> {
        let write = |lane| self.write_into(lane, bytes.clone());
        self.in_each(lanes, left, write).await
    }

    async fn write_into<'d>(&self, mut lane: Lane<'d>, bytes: Bytes) -> Lane<'d> {
        if let Some(upload) = &mut lane.upload
            && let Err(e) = upload.write(bytes).await
        {
            lane.end(Err(self.refused(lane.destination, e)));
        }
        lane
    }

    /// Puts the object in place on its turn, and settles it where the name is taken.
    async fn place<'d>(
        &self,
        mut lane: Lane<'d>,
        key: &str,
        content: Sha256Digest,
        place: usize,
    ) -> Lane<'d> {
        let (Some(mut upload), Some(identity)) = (lane.upload.take(), lane.identity.take()) else {
            return lane;
        };
        // Not its bytes: the head names this call, and a call that was cut off comes again as another one.
        upload.means(self.named(identity.archive_id, content).0);
        if !lane.destination.turn(place).await {
            lane.end(Err(PushError::PassedOver));
            return lane;
        }
        let placed = match upload.commit().await {
            Ok(()) => Ok(PushOutcome::Stored),
            Err(e) if e.kind() == StoreErrorKind::AlreadyExists => {
                match self.settle(lane.destination, &identity, key).await {
                    // Nothing stands there: it is claimed, which the store's own error explains.
                    Err(JobError::Repository(none)) if none.trouble() == Trouble::Absent => {
                        Err(self.refused(lane.destination, e))
                    }
                    settled => settled.map_err(|e| self.told(e)),
                }
            }
            Err(e) => Err(self.refused(lane.destination, e)),
        };
        if placed.is_ok() {
            lane.destination.stands(place);
        }
        lane.end(placed);
        lane
    }

    fn refused(&self, destination: &Destination<'_>, source: StoreError) -> PushError {
        self.failed(RepositoryError::Store {
            name: destination.name().to_owned(),
            source,
        })
    }

    /// What the ways into the repositories come to.
    fn conclude(&self, lanes: Vec<Lane<'_>>, key: String) -> Result<PushReport, PushError> {
        let alone = lanes.len() == 1;
        let mut report = self.report(key, PushOutcome::AlreadyThere);
        let mut failed = Vec::new();
        for lane in lanes {
            let (repository, required) = (
                lane.destination.name().to_owned(),
                lane.destination.required(),
            );
            match lane.ended.unwrap_or(Err(PushError::PassedOver)) {
                Ok(outcome) => {
                    report.stored_in.push(repository);
                    if required {
                        report.outcome = report.outcome.max(outcome);
                    }
                }
                Err(why) if required => failed.push((repository, why)),
                Err(why) => report.lacking.push(Lacking {
                    repository,
                    key: report.key.clone(),
                    why,
                }),
            }
        }
        let mut failed = failed.into_iter();
        match failed.next() {
            None => Ok(report),
            Some((_, why)) if alone => Err(why),
            Some((repository, why)) => Err(PushError::Incomplete {
                file: self.source.file,
                stored_in: report.stored_in,
                repository,
                others: failed
                    .map(|(repository, why)| (repository, catalog::whole_text(&why)))
                    .collect(),
                source: Box::new(why),
            }),
        }
    }

    /// A segment of another size than the registered one would be read by its name as another stretch of the log.
    fn check_size(&self, identity: &IdentityDocument) -> Result<(), PushError> {
        let registered = identity.wal_segment_size;
        match self.source.facts.as_ref().map(|facts| facts.size) {
            Some(found) if found != registered => Err(PushError::SegmentSize {
                file: self.source.file,
                registered,
                found,
            }),
            _ => Ok(()),
        }
    }
}
