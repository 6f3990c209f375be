//! What a store makes of `If-None-Match: *`, tried out. Its word is not enough: some answer 200 and overwrite.

use std::sync::Arc;

use bytes::Bytes;
use futures::future::join_all;

use super::failure::{Failure, FailureKind};
use super::retry::Budget;
use super::{Bucket, CreateOnly, PROBES, create, list};
use crate::StoreError;

/// Keys that writers race for.
const ROUNDS: usize = 8;

/// Writers of each.
const WRITERS: usize = 8;

pub(super) async fn run(bucket: &Arc<Bucket>) -> Result<CreateOnly, StoreError> {
    let folder = format!("{PROBES}{:016x}/", rand::random::<u64>());
    let mut budget = bucket.budget();
    let found = probe(bucket, &folder, &mut budget).await;
    // What was put goes in any case.
    let cleaned = clean(bucket, &folder, &mut budget).await;
    found
        .and_then(|found| cleaned.map(|()| found))
        .map_err(|failure| bucket.failed("try out create-only puts in", &folder, failure))
}

async fn probe(
    bucket: &Arc<Bucket>,
    folder: &str,
    budget: &mut Budget,
) -> Result<CreateOnly, Failure> {
    let mut honoured = 0;
    while honoured < ROUNDS {
        let name = bucket.name(&format!("{folder}{:08x}", rand::random::<u32>()));
        match budget.request(0, race(bucket, &name)).await {
            Ok(CreateOnly::Conditional) => honoured += 1,
            Ok(CreateOnly::Claims) => return Ok(CreateOnly::Claims),
            // An answer that is lost may have been a success: the round counts for nothing.
            Err(failure) => budget.again(failure).await?,
        }
    }
    Ok(CreateOnly::Conditional)
}

/// Several writers of one key at once, then one who comes late.
async fn race(bucket: &Arc<Bucket>, name: &str) -> Result<CreateOnly, Failure> {
    let writers = (0..WRITERS).map(|number| conditional(bucket, name, number));
    let mut stored = 0;
    for outcome in join_all(writers).await {
        match outcome {
            Ok(()) => stored += 1,
            Err(failure) => match failure.kind {
                FailureKind::Precondition | FailureKind::Conflict => {}
                FailureKind::Unsupported | FailureKind::Refused => {
                    // The condition, or the put as such?
                    create::send(bucket, name, Bytes::new(), false).await?;
                    return Ok(CreateOnly::Claims);
                }
                _ => return Err(failure),
            },
        }
    }
    let late = match conditional(bucket, name, WRITERS).await {
        Ok(()) => 1,
        Err(failure) if failure.kind == FailureKind::Precondition => 0,
        Err(failure) => return Err(failure),
    };
    Ok(match stored + late {
        0 | 1 => CreateOnly::Conditional,
        _ => CreateOnly::Claims,
    })
}

async fn conditional(bucket: &Arc<Bucket>, name: &str, number: usize) -> Result<(), Failure> {
    let body = Bytes::from(format!("writer {number}"));
    create::send(bucket, name, body, true).await
}

async fn clean(bucket: &Arc<Bucket>, folder: &str, budget: &mut Budget) -> Result<(), Failure> {
    for name in list::own(bucket, folder, 1000, budget).await? {
        create::remove(bucket, &format!("{folder}{name}"), budget).await?;
    }
    Ok(())
}
