//! Whole listings, from the pages that the port gives.

use std::future;

use futures::stream::{self, BoxStream};
use futures::{Stream, StreamExt, TryStreamExt};

use crate::{ListOptions, ListPage, ObjectMeta, ObjectStore, StoreError};

/// S3 gives at most so many a page.
const PAGE: usize = 1000;

/// Requests under way at the same time: with a million objects, and 20 ms for a request, a listing is then a second away.
const LANES: usize = 32;

/// Folders that are looked into, at most, for finer places to cut a listing.
const MOST_CUT: usize = 256;

/// Levels of folders below the prefix that are looked at for places to cut.
const DEPTH: usize = 2;

/// Every object whose key begins with `prefix`, in byte order, page by page as the stream is read.
pub fn list_all<'a>(
    store: &'a dyn ObjectStore,
    prefix: &'a str,
) -> impl Stream<Item = Result<ObjectMeta, StoreError>> + Send + 'a {
    pages(store, prefix, false)
        .map_ok(|page| stream::iter(page.objects.into_iter().map(Ok)))
        .try_flatten()
}

/// Every folder directly below `prefix`, each with the prefix before and a `/` after, in byte order.
pub fn list_folders<'a>(
    store: &'a dyn ObjectStore,
    prefix: &'a str,
) -> impl Stream<Item = Result<String, StoreError>> + Send + 'a {
    pages(store, prefix, true)
        .map_ok(|page| stream::iter(page.prefixes.into_iter().map(Ok)))
        .try_flatten()
}

/// Every object whose key begins with `prefix`, page by page: a page is in byte order, and the pages come in any. What fits on one page costs one
/// request. A longer listing is cut at the folders below the prefix, and its parts are listed at the same time.
pub fn list_in_lanes<'a>(
    store: &'a dyn ObjectStore,
    prefix: &'a str,
) -> impl Stream<Item = Result<Vec<ObjectMeta>, StoreError>> + Send + 'a {
    let listing = async move {
        let options = ListOptions {
            prefix,
            start_after: None,
            delimiter: false,
            limit: PAGE,
        };
        let first = store.list(options).await?;
        let mut starts: Vec<String> = first.next.into_iter().collect();
        if let Some(next) = starts.first().cloned() {
            let mut cuts = cuts(store, prefix).await?;
            cuts.retain(|cut| *cut > next);
            let lanes = LANES.min(cuts.len() + 1);
            starts
                .extend((1..lanes).filter_map(|lane| cuts.get(lane * cuts.len() / lanes).cloned()));
        }
        let ends: Vec<Option<String>> = starts.iter().skip(1).cloned().map(Some).collect();
        let ends = ends.into_iter().chain([None]);
        let lanes: Vec<_> = starts.into_iter().zip(ends).collect();
        let lanes = stream::iter(lanes)
            .map(move |(after, until)| lane(store, prefix, after, until))
            .flatten_unordered(LANES);
        let first = stream::once(future::ready(Ok(first.objects)));
        Ok::<_, StoreError>(first.chain(lanes))
    };
    stream::once(listing).try_flatten()
}

/// The pages between two places, neither of which is a key.
fn lane<'a>(
    store: &'a dyn ObjectStore,
    prefix: &'a str,
    after: String,
    until: Option<String>,
) -> BoxStream<'a, Result<Vec<ObjectMeta>, StoreError>> {
    stream::try_unfold(Some(after), move |after| {
        let until = until.clone();
        async move {
            let Some(after) = after else { return Ok(None) };
            let options = ListOptions {
                prefix,
                start_after: Some(&after),
                delimiter: false,
                limit: PAGE,
            };
            let ListPage {
                mut objects, next, ..
            } = store.list(options).await?;
            let within = |key: &str| until.as_deref().is_none_or(|until| key < until);
            objects.retain(|object| within(object.key.as_str()));
            Ok(Some((objects, next.filter(|next| within(next)))))
        }
    })
    .boxed()
}

/// Folders below the prefix, in byte order: where a listing may be cut.
async fn cuts(store: &dyn ObjectStore, prefix: &str) -> Result<Vec<String>, StoreError> {
    let mut folders: Vec<String> = list_folders(store, prefix).try_collect().await?;
    for _ in 1..DEPTH {
        if folders.len() > MOST_CUT {
            break;
        }
        let finer: Vec<Vec<String>> = stream::iter(folders.clone())
            .map(|folder| async move { list_folders(store, &folder).try_collect().await })
            .buffered(LANES)
            .try_collect()
            .await?;
        folders.extend(finer.into_iter().flatten());
        folders.sort_unstable();
    }
    Ok(folders)
}

fn pages<'a>(
    store: &'a dyn ObjectStore,
    prefix: &'a str,
    delimiter: bool,
) -> impl Stream<Item = Result<ListPage, StoreError>> + Send + 'a {
    enum Cursor {
        First,
        After(String),
        Done,
    }
    stream::try_unfold(Cursor::First, move |cursor| async move {
        let start_after = match &cursor {
            Cursor::First => None,
            Cursor::After(text) => Some(text.as_str()),
            Cursor::Done => return Ok(None),
        };
        let page = store
            .list(ListOptions {
                prefix,
                start_after,
                delimiter,
                limit: PAGE,
            })
            .await?;
        let next = page.next.clone().map_or(Cursor::Done, Cursor::After);
        Ok(Some((page, next)))
    })
}
