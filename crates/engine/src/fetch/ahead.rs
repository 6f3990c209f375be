//! The process that fetches ahead while PostgreSQL replays. It tells nobody of its failures: the call that asks for the segment meets them
//! itself, and knows what they mean there.

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use futures::StreamExt;
use futures::stream::FuturesUnordered;
use walden_model::{IdentityDocument, SystemKeys, WalName};
use walden_pg::wal_name::ParseWalNameError;
use walden_pg::{SegmentName, WalFileName, WalSegmentSize};

use super::ready::{Brought, Claimed, Ready};
use super::{FetchError, FetchRequest, create, identity, receive, write_error};
use crate::archive::Archive;
use crate::host;

/// How often is looked what PostgreSQL has taken; a segment takes longer to replay.
const LOOK: Duration = Duration::from_millis(20);

/// Without a call for so long, as when recovery is paused, the disk is given back.
const IDLE: Duration = Duration::from_secs(30);

/// Without a call for so long, half as many segments are enough.
const SLOW: Duration = Duration::from_secs(2);

/// Downloads at the same time, where one does not keep up.
const PARALLEL: usize = 2;

/// Segments larger than this count as several.
const USUAL_SEGMENT: u64 = 16 << 20;

/// Whom to fetch ahead for.
#[derive(Debug, Clone)]
pub struct PrefetchRequest {
    /// The call that has just been served.
    pub served: FetchRequest,
    /// The cluster's segment size.
    pub segment_size: WalSegmentSize,
    /// How many segments of 16 MiB, or as many bytes, may lie ready. At least one segment does.
    pub ahead: usize,
}

/// Why fetching ahead ended before recovery did.
#[derive(Debug, thiserror::Error)]
pub enum PrefetchError {
    /// `%f` is no WAL file's name.
    #[error("it does not name a WAL file")]
    Name(#[source] ParseWalNameError),
    /// The folder beside `%p` cannot be used.
    #[error("no segments can be laid ready beside {}", destination.display())]
    Folder {
        /// `%p`.
        destination: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// The next segment cannot be had.
    #[error("the next segment cannot be fetched")]
    Fetch(#[source] FetchError),
}

impl From<FetchError> for PrefetchError {
    fn from(error: FetchError) -> Self {
        PrefetchError::Fetch(error)
    }
}

/// Fetches what PostgreSQL will ask for next, until nobody needs it any more: recovery has ended, the server is gone, the archive has no next
/// segment or does not answer, no call has come for half a minute, or another process is at it already.
pub async fn prefetch(request: &PrefetchRequest) -> Result<(), PrefetchError> {
    let served = &request.served;
    let WalFileName::Segment(last) = served.name.parse().map_err(PrefetchError::Name)? else {
        return Ok(());
    };
    let Some(ready) = Ready::of(served) else {
        return Ok(());
    };
    let claimed = Claimed::claim(ready).map_err(|source| PrefetchError::Folder {
        destination: served.destination.clone(),
        source,
    })?;
    let Some(claimed) = claimed else {
        return Ok(());
    };
    let repositories = Archive::open(&served.repositories)
        .await
        .map_err(FetchError::from)?;
    let pgdata = host::find_pgdata(served.pgdata.as_deref(), &served.destination);
    let identity = identity(&repositories, &served.cluster, pgdata.as_deref()).await?;
    let source = Source {
        system: SystemKeys {
            cluster: served.cluster.clone(),
            system: identity.system_identifier,
        },
        repositories,
        identity,
    };
    fill(
        &claimed,
        &source,
        Window::new(request.segment_size, request.ahead, last),
    )
    .await
}

async fn fill(claimed: &Claimed, source: &Source, mut window: Window) -> Result<(), PrefetchError> {
    let mut coming = FuturesUnordered::new();
    let mut expected = BTreeSet::new();
    let mut failure: Option<(SegmentName, FetchError)> = None;
    while claimed.is_needed() {
        if let Some(brought) = claimed.brought() {
            window.follow(brought);
        }
        if window.is_idle() {
            break;
        }
        let near = window.following(window.most);
        window.ready.retain(|segment| {
            // The window may have become shorter; PostgreSQL will ask for it all the same.
            let keep = near.contains(segment);
            if !keep {
                claimed.discard(*segment);
            }
            keep && claimed.has(*segment)
        });
        // PostgreSQL may have got it in the meantime, or have gone elsewhere.
        failure = failure.filter(|(segment, _)| near.contains(segment));
        let end = failure.as_ref().map(|(segment, _)| *segment);
        let mut wanted = window.following(window.length);
        wanted.truncate(
            wanted
                .iter()
                .position(|segment| Some(*segment) == end)
                .unwrap_or(wanted.len()),
        );
        if wanted.is_empty() && coming.is_empty() {
            break;
        }
        let behind = wanted
            .first()
            .is_some_and(|next| !window.ready.contains(next));
        let most = if behind {
            PARALLEL.min(host::cores())
        } else {
            1
        };
        let missing = wanted
            .iter()
            .filter(|segment| !window.ready.contains(*segment) && !expected.contains(*segment))
            .take(most.saturating_sub(coming.len()))
            .copied()
            .collect::<Vec<_>>();
        for segment in missing {
            expected.insert(segment);
            coming.push(async move { (segment, source.bring(claimed, segment).await) });
        }
        tokio::select! {
            Some((segment, brought)) = coming.next() => {
                expected.remove(&segment);
                match brought {
                    Ok(()) => {
                        window.ready.insert(segment);
                    }
                    Err(error) => {
                        claimed.discard(segment);
                        // The earliest one counts.
                        if end.is_none_or(|end| segment < end) {
                            failure = Some((segment, error));
                        }
                    }
                }
            }
            () = tokio::time::sleep(LOOK) => {}
        }
    }
    failure.map_or(Ok(()), |(_, error)| Err(error.into()))
}

/// Where segments come from.
struct Source {
    repositories: Archive,
    system: SystemKeys,
    identity: IdentityDocument,
}

impl Source {
    /// Brings a segment to where PostgreSQL's next call finds it.
    async fn bring(&self, claimed: &Claimed, segment: SegmentName) -> Result<(), FetchError> {
        let path = claimed.path(segment);
        let file = WalFileName::Segment(segment);
        let key = self.system.wal(&WalName::Segment(segment));
        // A call that was killed may have left the proof of an earlier file.
        claimed.discard(segment);
        // A call that comes now sees that it is on its way.
        create(&path).map_err(|source| write_error(&path, source))?;
        let received = receive(&self.repositories, &self.identity, &key, file, &path).await?;
        let ready = claimed.ready().clone();
        let from = received.repository;
        let laid = tokio::task::spawn_blocking(move || Claimed::lay_ready(&ready, segment, &from));
        laid.await
            .unwrap_or_else(|panic| Err(std::io::Error::other(panic)))
            .map_err(|source| write_error(&path, source))
    }
}

/// Which segments are to be ready.
struct Window {
    /// What PostgreSQL was given last.
    last: SegmentName,
    segment_size: WalSegmentSize,
    /// How many are to be ready now: more where a call had to wait, fewer where calls are slow to come.
    length: usize,
    most: usize,
    ready: BTreeSet<SegmentName>,
    called: Instant,
    slowed: Instant,
}

impl Window {
    fn new(segment_size: WalSegmentSize, ahead: usize, last: SegmentName) -> Window {
        let larger = segment_size.bytes().div_ceil(USUAL_SEGMENT);
        let most = usize::try_from(larger).map_or(1, |larger| (ahead / larger).max(1));
        Window {
            last,
            segment_size,
            length: most.min(2),
            most,
            ready: BTreeSet::new(),
            called: Instant::now(),
            slowed: Instant::now(),
        }
    }

    fn follow(&mut self, brought: Brought) {
        if brought.segment != self.last {
            self.last = brought.segment;
            self.called = Instant::now();
            self.slowed = self.called;
            if !brought.at_once {
                self.length = (self.length * 2).min(self.most);
            }
        } else if self.slowed.elapsed() > SLOW {
            self.slowed = Instant::now();
            self.length = (self.length / 2).max(1);
        }
    }

    fn is_idle(&self) -> bool {
        self.called.elapsed() > IDLE
    }

    /// What PostgreSQL will ask for next, as long as it stays on its timeline.
    fn following(&self, count: usize) -> Vec<SegmentName> {
        std::iter::successors(self.last.next(self.segment_size), |segment| {
            segment.next(self.segment_size)
        })
        .take(count)
        .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn window(segment_size: u64, ahead: usize) -> Window {
        let segment_size = WalSegmentSize::new(segment_size).expect("a segment size");
        Window::new(segment_size, ahead, segment("000000010000000000000001"))
    }

    fn segment(name: &str) -> SegmentName {
        match name.parse() {
            Ok(WalFileName::Segment(segment)) => segment,
            other => panic!("{name} is a segment: {other:?}"),
        }
    }

    fn names(window: &Window) -> Vec<String> {
        let segments = window.following(window.length);
        segments.iter().map(SegmentName::to_string).collect()
    }

    #[test]
    fn a_call_that_waits_makes_the_window_longer_up_to_the_setting() {
        let mut window = window(16 << 20, 5);
        assert_eq!(
            names(&window),
            ["000000010000000000000002", "000000010000000000000003"],
            "it begins with two"
        );
        let call = |name: &str, at_once| Brought {
            segment: segment(name),
            at_once,
        };
        window.follow(call("000000010000000000000002", true));
        assert_eq!(window.length, 2, "a call that finds its segment ready");
        window.follow(call("000000010000000000000003", false));
        window.follow(call("000000010000000000000003", false));
        assert_eq!(window.length, 4, "one call that waits, seen twice");
        window.follow(call("0000000100000000000000FE", false));
        assert_eq!(
            names(&window),
            [
                "0000000100000000000000FF",
                "000000010000000100000000",
                "000000010000000100000001",
                "000000010000000100000002",
                "000000010000000100000003",
            ],
            "no more than the setting says, across the end of a log"
        );
        window.follow(call("0000000200000001000000A0", true));
        assert_eq!(
            names(&window).first().map(String::as_str),
            Some("0000000200000001000000A1"),
            "after a switch it is on the new timeline"
        );
    }

    #[test]
    fn larger_segments_count_as_several_and_one_is_always_ready() {
        for (segment_size, ahead, most) in [
            (1 << 20, 8, 8),
            (16 << 20, 8, 8),
            (32 << 20, 8, 4),
            (64 << 20, 7, 1),
            (1 << 30, 8, 1),
            (16 << 20, 1, 1),
        ] {
            let window = window(segment_size, ahead);
            assert_eq!(
                window.most, most,
                "with segments of {segment_size} bytes and ahead: {ahead}"
            );
            assert!(window.length <= window.most, "it begins within its bound");
        }
    }

    #[test]
    fn the_end_of_the_log_ends_the_window() {
        let mut window = window(16 << 20, 8);
        window.follow(Brought {
            segment: segment("00000001FFFFFFFF000000FE"),
            at_once: true,
        });
        assert_eq!(
            names(&window),
            ["00000001FFFFFFFF000000FF"],
            "there is one segment left"
        );
    }
}
