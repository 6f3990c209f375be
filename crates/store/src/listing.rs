//! Whole listings, from the pages that the port gives.

use futures::{Stream, TryStreamExt, stream};

use crate::{ListOptions, ListPage, ObjectMeta, ObjectStore, StoreError};

/// S3 gives at most so many a page.
const PAGE: usize = 1000;

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
