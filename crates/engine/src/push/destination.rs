//! The repositories of one call, and a file's way into each.

use tokio::sync::{OnceCell, watch};
use walden_model::IdentityDocument;
use walden_store::Upload;

use super::{PushError, PushOutcome};
use crate::repository::{Repository, RepositoryError, RepositorySettings};

/// A repository that a call stores files in.
#[derive(Debug)]
pub(super) struct Destination<'a> {
    settings: &'a RepositorySettings,
    open: OnceCell<Repository>,
    /// How many of the call's files stand here, the one that was asked for first; `None`: no further one is to get here. Objects get their
    /// names in this order alone: whoever fetches from the archive meanwhile would take a later segment without the one before it for a
    /// hole.
    standing: watch::Sender<Option<usize>>,
}

impl<'a> Destination<'a> {
    pub fn new(settings: &'a RepositorySettings) -> Self {
        Destination {
            settings,
            open: OnceCell::new(),
            standing: watch::Sender::new(Some(0)),
        }
    }

    pub fn name(&self) -> &str {
        &self.settings.name
    }

    pub fn required(&self) -> bool {
        self.settings.required
    }

    /// Opened when it is first needed: each file that finds it closed has the reason.
    pub async fn repository(&self) -> Result<&Repository, RepositoryError> {
        let open = || Repository::open(self.settings);
        self.open.get_or_try_init(open).await
    }

    /// Comes when all files before this place stand. False: nothing more is to get here.
    pub async fn turn(&self, place: usize) -> bool {
        let mut standing = self.standing.subscribe();
        let come = standing.wait_for(|standing| standing.is_none_or(|count| count >= place));
        come.await.is_ok_and(|standing| standing.is_some())
    }

    pub fn stands(&self, place: usize) {
        self.standing.send_if_modified(|standing| {
            let count = standing.as_mut();
            count.map(|count| *count = place + 1).is_some()
        });
    }

    /// Nothing more is to get here in this call: one that is not required and failed once would cost every file its time.
    fn give_up(&self) {
        self.standing.send_replace(None);
    }

    fn is_given_up(&self) -> bool {
        self.standing.borrow().is_none()
    }
}

/// A file's way into one repository.
pub(super) struct Lane<'d> {
    pub destination: &'d Destination<'d>,
    /// While it goes on: whose the archive is there.
    pub identity: Option<IdentityDocument>,
    pub upload: Option<Box<dyn Upload>>,
    /// How it ended.
    pub ended: Option<Result<PushOutcome, PushError>>,
}

impl<'d> Lane<'d> {
    pub fn new(destination: &'d Destination<'d>) -> Self {
        let mut lane = Lane {
            destination,
            identity: None,
            upload: None,
            ended: None,
        };
        if destination.is_given_up() {
            lane.end(Err(PushError::PassedOver));
        }
        lane
    }

    pub fn end(&mut self, how: Result<PushOutcome, PushError>) {
        if how.is_err() && !self.destination.required() {
            self.destination.give_up();
        }
        self.identity = None;
        self.upload = None;
        self.ended = Some(how);
    }
}
