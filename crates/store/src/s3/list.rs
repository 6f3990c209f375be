//! Listing by `ListObjectsV2`.
//!
//! Stores differ in what they make of a start before the prefix, and of one inside a folder that a delimiter rolls up. Neither is ever
//! asked of them.

use aws_sdk_s3::operation::list_objects_v2::ListObjectsV2Output;

use super::Bucket;
use super::failure::{Failure, FailureKind};
use super::read::time;
use super::retry::Budget;
use crate::{Key, ListOptions, ListPage, ObjectMeta, StoreError};

/// After every key's character, so that a folder and this is after all that is in the folder.
const LAST: char = '\u{7f}';

/// After every name that begins with a dot, which are Walden's own, and before every later key.
const AFTER_DOTS: &str = "/";

/// S3 gives at most so many a page.
const MOST: usize = 1000;

pub(super) async fn page(
    bucket: &Bucket,
    options: ListOptions<'_>,
) -> Result<ListPage, StoreError> {
    let mut budget = bucket.budget();
    gather(bucket, options, &mut budget)
        .await
        .map_err(|failure| bucket.failed("list", options.prefix, failure))
}

async fn gather(
    bucket: &Bucket,
    options: ListOptions<'_>,
    budget: &mut Budget,
) -> Result<ListPage, Failure> {
    let ListOptions {
        prefix, delimiter, ..
    } = options;
    let limit = options.limit.clamp(1, MOST);
    let mut page = ListPage::default();
    let mut after = options.start_after.unwrap_or_default().to_owned();
    if !after.starts_with(prefix) {
        if after.as_str() > prefix {
            return Ok(page);
        }
        // Garage finds nothing from a start before the prefix on.
        after.clear();
    }
    if !begins_a_key(prefix) {
        return Ok(page);
    }
    if prefix.is_empty() && after.starts_with('.') {
        AFTER_DOTS.clone_into(&mut after);
    }
    if let Some(folder) = folder(&after, prefix).filter(|_| delimiter) {
        let beyond = format!("{folder}{LAST}");
        if after < beyond {
            let found = request(bucket, budget, folder, &after, false, 1).await?;
            if !found.contents().is_empty() {
                page.prefixes.push(folder.to_owned());
            }
            after = beyond;
        }
    }
    let room = limit - page.prefixes.len();
    if room == 0 {
        page.next = Some(after);
        return Ok(page);
    }
    let answer = request(bucket, budget, prefix, &after, delimiter, room).await?;
    let base = bucket.name("");
    let mut last = String::new();
    for object in answer.contents() {
        let Some(name) = object.key().and_then(|name| name.strip_prefix(&base)) else {
            return Err(odd());
        };
        if name > last.as_str() {
            name.clone_into(&mut last);
        }
        // What other hands put there, and what the store need not have listed.
        let Ok(key) = Key::parse(name) else { continue };
        if name <= after.as_str() || !name.starts_with(prefix) {
            continue;
        }
        page.objects.push(ObjectMeta {
            key,
            size: object
                .size()
                .and_then(|size| u64::try_from(size).ok())
                .ok_or_else(odd)?,
            modified: time(object.last_modified())?,
        });
    }
    for rolled_up in answer.common_prefixes() {
        let name = rolled_up.prefix().and_then(|name| name.strip_prefix(&base));
        let name = name.ok_or_else(odd)?;
        if name > last.as_str() {
            last = format!("{name}{LAST}");
        }
        if name > after.as_str() && begins_a_key(name) {
            page.prefixes.push(name.to_owned());
        }
    }
    // The order is the promise that paging stands on.
    if !page.objects.is_sorted_by(|one, next| one.key < next.key) || !page.prefixes.is_sorted() {
        return Err(odd());
    }
    if answer.is_truncated() == Some(true) {
        if last <= after {
            return Err(odd());
        }
        if prefix.is_empty() && last.starts_with('.') {
            AFTER_DOTS.clone_into(&mut last);
        }
        page.next = Some(last);
    }
    Ok(page)
}

/// The names directly below one of Walden's own folders, `limit` at most.
pub(super) async fn own(
    bucket: &Bucket,
    folder: &str,
    limit: usize,
    budget: &mut Budget,
) -> Result<Vec<String>, Failure> {
    let answer = request(bucket, budget, folder, "", false, limit).await?;
    let start = bucket.name(folder);
    answer
        .contents()
        .iter()
        .map(|object| {
            let name = object.key().and_then(|name| name.strip_prefix(&start));
            name.map(str::to_owned).ok_or_else(odd)
        })
        .collect()
}

async fn request(
    bucket: &Bucket,
    budget: &mut Budget,
    prefix: &str,
    after: &str,
    delimiter: bool,
    limit: usize,
) -> Result<ListObjectsV2Output, Failure> {
    let limit = i32::try_from(limit).unwrap_or(i32::MAX);
    budget
        .persist(0, || async {
            bucket
                .client
                .list_objects_v2()
                .bucket(&bucket.settings.bucket)
                .prefix(bucket.name(prefix))
                .set_start_after(Some(bucket.name(after)).filter(|_| !after.is_empty()))
                .set_delimiter(delimiter.then(|| "/".to_owned()))
                .max_keys(limit)
                .send()
                .await
                .map_err(|error| match Failure::of(error) {
                    // A list's 404 can only be about the bucket.
                    failure if failure.kind == FailureKind::NotFound => Failure {
                        kind: FailureKind::NoSuchBucket,
                        ..failure
                    },
                    failure => failure,
                })
        })
        .await
}

/// The folder directly below `prefix` that a text is in.
fn folder<'a>(text: &'a str, prefix: &str) -> Option<&'a str> {
    let rest = text.strip_prefix(prefix)?;
    let end = prefix.len() + rest.find('/')? + 1;
    // A key begins with no slash: this is the mark behind the dots.
    text.get(..end).filter(|folder| *folder != AFTER_DOTS)
}

/// Whether any key can begin with this text.
fn begins_a_key(text: &str) -> bool {
    text.is_empty() || Key::parse(text).is_ok() || Key::parse(&format!("{text}a")).is_ok()
}

fn odd() -> Failure {
    Failure::transient("the list is not one of what was asked for, in order")
}
