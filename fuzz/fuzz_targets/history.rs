#![no_main]
//! Timeline histories: a lineage has no gaps and no overlaps.

use libfuzzer_sys::fuzz_target;
use walden_pg::{TimelineHistory, TimelineId};

fuzz_target!(|bytes: &[u8]| {
    let Ok(history) = TimelineHistory::parse(TimelineId(1000), bytes) else {
        return;
    };
    let lineage = history.lineage();
    assert_eq!(
        lineage.last().map(|span| (span.timeline, span.end)),
        Some((TimelineId(1000), None))
    );
    for pair in lineage.windows(2) {
        assert_eq!(pair[0].end, Some(pair[1].begin));
        assert!(pair[0].begin < pair[1].begin);
    }
});
