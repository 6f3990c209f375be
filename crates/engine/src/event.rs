//! Events beside what they are about: writing one, and finding those of a kind.

use futures::TryStreamExt;
use jiff::Timestamp;
use walden_model::{DocumentError, Event, EventBody, EventName, RandomId, SystemKeys};

use crate::host;
use crate::repository::{Repository, RepositoryError};

/// Writes an event of now.
///
/// # Errors
/// The store's. An event that stands already is none: the id has random digits, so it is one's own after a lost reply.
pub async fn append<T: EventBody + Send + Sync>(
    repository: &Repository,
    keys: &SystemKeys,
    archive_id: RandomId,
    body: T,
) -> Result<Event<T>, RepositoryError> {
    let now = Timestamp::now();
    let event = Event::new(archive_id, now, rand::random(), host::writer(), body);
    let key = keys.event(&event.name());
    repository.put_document(&key, &event).await?;
    Ok(event)
}

/// The names of all events, the newest first: some hundred bytes each, and none is read.
///
/// # Errors
/// The store's.
pub async fn names(
    repository: &Repository,
    keys: &SystemKeys,
) -> Result<Vec<EventName>, RepositoryError> {
    let prefix = keys.events_prefix();
    let mut pages = std::pin::pin!(repository.list_pages(&prefix));
    let mut names = Vec::new();
    while let Some(page) = pages.try_next().await? {
        names.extend(
            page.iter()
                .filter_map(|object| keys.parse_event(object.key.as_str())),
        );
    }
    names.sort_unstable_by(|a: &EventName, b| b.cmp(a));
    Ok(names)
}

/// Reads an event; `None` where there is none of that name.
///
/// # Errors
/// The store's; an event that cannot be believed, or was moved here from elsewhere.
pub async fn read<T: EventBody>(
    repository: &Repository,
    keys: &SystemKeys,
    archive_id: RandomId,
    name: &EventName,
) -> Result<Option<Event<T>>, RepositoryError> {
    let key = keys.event(name);
    let Some(event) = repository.document::<Event<T>>(&key).await? else {
        return Ok(None);
    };
    if event.archive_id != archive_id || event.event_id != name.id {
        let what = format!(
            "the document belongs elsewhere: it is event {} of archive {}",
            event.event_id, event.archive_id
        );
        let source = DocumentError::Damaged(what);
        return Err(RepositoryError::Document { key, source });
    }
    Ok(Some(event))
}
