//! The one layer that asks again. The SDK's own is off: it would repeat a conditional write that had succeeded.

use std::future::Future;
use std::time::{Duration, Instant};

use rand::RngExt;
use tracing::Dispatch;
use tracing::instrument::WithSubscriber;

use super::failure::{Failure, FailureKind};

/// Bytes a second below which a transfer counts as dead.
const SLOWEST: u64 = 256 << 10;

/// So often something is tried without any progress.
const ATTEMPTS: u32 = 10;

const FIRST_PAUSE: Duration = Duration::from_millis(100);
const FIRST_PAUSE_WHEN_BUSY: Duration = Duration::from_millis(500);
const LONGEST_PAUSE: Duration = Duration::from_secs(5);

/// The time that an operation has left: what it waits for the store is taken off.
#[derive(Debug, Clone)]
pub(super) struct Budget {
    left: Duration,
    request: Duration,
    attempts: u32,
}

impl Budget {
    pub fn new(request: Duration, operation: Duration) -> Self {
        Self {
            left: operation,
            request,
            attempts: 0,
        }
    }

    /// Adds the time that moving so many bytes may take.
    pub fn allow(&mut self, bytes: u64) {
        self.left = self.left.saturating_add(transfer(bytes));
    }

    /// Something was achieved: attempts count anew.
    pub fn progressed(&mut self) {
        self.attempts = 0;
    }

    /// Waits for one answer of the store.
    pub async fn request<T>(
        &mut self,
        bytes: u64,
        answer: impl Future<Output = Result<T, Failure>>,
    ) -> Result<T, Failure> {
        let limit = self.request.saturating_add(transfer(bytes)).min(self.left);
        let started = Instant::now();
        // The SDK's own log would show tokens, and whatever a store says.
        let silent = answer.with_subscriber(Dispatch::none());
        let result = tokio::time::timeout(limit, silent).await;
        self.left = self.left.saturating_sub(started.elapsed());
        result.unwrap_or_else(|_| {
            Err(Failure::transient(format!(
                "no answer within {:.1} s",
                limit.as_secs_f64()
            )))
        })
    }

    /// After a failure: waits, and says whether it may be tried again. If not, the failure is what remains.
    pub async fn again(&mut self, failure: Failure) -> Result<(), Failure> {
        if !failure.passes() {
            return Err(failure);
        }
        self.attempts += 1;
        let first = match failure.kind {
            FailureKind::Busy => FIRST_PAUSE_WHEN_BUSY,
            _ => FIRST_PAUSE,
        };
        let longest = first
            .saturating_mul(1 << self.attempts.min(10))
            .min(LONGEST_PAUSE);
        // Anywhere in between, or those whom the same outage threw off come back together.
        let pause = rand::rng().random_range(Duration::ZERO..=longest);
        let pause = pause.max(failure.pause.unwrap_or_default());
        if self.attempts >= ATTEMPTS || pause >= self.left {
            return Err(Failure {
                what: format!("{} (tried {} times)", failure.what, self.attempts),
                ..failure
            });
        }
        // Not the store's own words, which could repeat a secret.
        tracing::debug!(
            attempt = self.attempts,
            kind = ?failure.kind,
            "a request failed; trying again in {pause:?}"
        );
        tokio::time::sleep(pause).await;
        self.left = self.left.saturating_sub(pause);
        Ok(())
    }

    /// Asks until there is an answer, or a failure that asking again does not mend, or no time left. Only for what may be
    /// done twice.
    pub async fn persist<T, F>(
        &mut self,
        bytes: u64,
        mut ask: impl FnMut() -> F,
    ) -> Result<T, Failure>
    where
        F: Future<Output = Result<T, Failure>>,
    {
        loop {
            match self.request(bytes, ask()).await {
                Ok(answer) => return Ok(answer),
                Err(failure) => self.again(failure).await?,
            }
        }
    }
}

fn transfer(bytes: u64) -> Duration {
    Duration::from_millis(bytes.saturating_mul(1000) / SLOWEST)
}
