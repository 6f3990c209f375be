//! The same work in several repositories at once, of which some have to be waited for and others do not.

use std::time::Duration;

use futures::StreamExt;
use futures::stream::FuturesUnordered;
use tokio::time::{Instant, timeout};

/// Carries out all works at once. Those with `true` take what they take; the others are given up, `None`, once `left` has gone by in which
/// nothing else was waited for. What is left of it stands in `left` afterwards, for the next step.
pub(crate) async fn side_by_side<F: Future>(
    works: Vec<(bool, F)>,
    left: &mut Duration,
) -> Vec<Option<F::Output>> {
    let mut done: Vec<Option<F::Output>> = works.iter().map(|_| None).collect();
    let mut needed = works.iter().filter(|(required, _)| *required).count();
    let mut pending: FuturesUnordered<_> = works
        .into_iter()
        .enumerate()
        .map(|(at, (required, work))| async move { (at, required, work.await) })
        .collect();
    let mut keep = |at: usize, output| {
        if let Some(place) = done.get_mut(at) {
            *place = Some(output);
        }
    };
    while needed > 0
        && let Some((at, required, output)) = pending.next().await
    {
        needed -= usize::from(required);
        keep(at, output);
    }
    let begun = Instant::now();
    while let Ok(Some((at, _, output))) =
        timeout(left.saturating_sub(begun.elapsed()), pending.next()).await
    {
        keep(at, output);
    }
    *left = left.saturating_sub(begun.elapsed());
    done
}

#[cfg(test)]
mod tests {
    use futures::FutureExt;
    use futures::future::{pending, ready};
    use tokio::time::sleep;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn whoever_is_not_required_is_waited_for_only_so_long_behind_the_others() {
        let mut left = Duration::from_secs(5);
        let begun = Instant::now();
        let works = vec![
            (true, sleep(Duration::from_secs(60)).map(|()| 'a').boxed()),
            (false, sleep(Duration::from_secs(62)).map(|()| 'b').boxed()),
            (false, pending().boxed()),
            (false, ready('d').boxed()),
        ];
        assert_eq!(
            side_by_side(works, &mut left).await,
            [Some('a'), Some('b'), None, Some('d')]
        );
        assert_eq!(
            begun.elapsed().as_secs(),
            65,
            "five seconds after the required one"
        );
        assert_eq!(left, Duration::ZERO);

        let works = vec![(true, ready('a').boxed()), (false, ready('b').boxed())];
        assert_eq!(
            side_by_side(works, &mut left).await,
            [Some('a'), Some('b')],
            "what is done at once counts even where no time is left"
        );
    }
}
