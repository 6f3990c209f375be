//! One transaction's facts stand in many segments, in any order.

use proptest::prelude::*;

use super::*;

#[test]
fn a_dropped_database_begins_where_its_row_was_marked() {
    let mut mark = facts(0);
    let row = |what, lsn| At {
        what,
        lsn: Lsn(lsn),
    };
    mark.database_rows = vec![row(DatabaseRow::Inplace, 900)];
    let mut first = facts(XID);
    first.database_rows = vec![row(DatabaseRow::Deleted, 990)];
    let mut last = story(17);
    last.facts.first_lsn = Lsn(5_000);
    last.facts.databases_dropped = vec![At {
        what: DB,
        lsn: Lsn(5_000),
    }];
    let names = names();
    let told = gathered(
        17,
        vec![vec![mark, first], vec![], vec![last.clone().done()]],
    );
    let told = judge(told, Some(&names), None);
    assert_eq!(lines(&told), ["DROP DATABASE shop at 900"]);
    assert_eq!(told[0].lost, None);
    let told = judge(gathered(17, vec![vec![last.done()]]), Some(&names), None);
    assert_eq!(lines(&told), ["DROP DATABASE shop at 5000 ? Moved"]);
    assert_eq!(told[0].lost, Some(Lost::BeginningUnknown));
}

#[test]
fn an_end_that_no_fact_tells_is_awaited_and_taken_from_the_segment_itself() {
    let mut gathering = Gathering::new(1000);
    let open = story(17).delete(16_393, 2000).facts;
    assert_eq!(gathering.segment(index(17, vec![open])), []);
    assert!(
        gathering.awaits(&[XidRange::of(XID)]),
        "it deleted more than the limit"
    );
    assert!(!gathering.awaits(&[XidRange::of(XID + 1)]), "another one");
    let told = gathering.ends(&[Moment {
        lsn: Lsn(9_000),
        end_lsn: Lsn(9_100),
        what: MomentKind::End {
            kind: Outcome::Commit,
            xid: XID,
            time: Timestamp::from_second(1_795_348_800).unwrap(),
            subxids: Box::new([]),
            prepared: false,
        },
    }]);
    let told = judge(told, Some(&names()), None);
    assert_eq!(lines(&told), ["DELETE shop.public.b 2000 rows at 1010"]);
}

/// Cuts a transaction's facts into pieces, one for each segment; its end stays in the last.
fn cut(
    facts: &TransactionFacts,
    pieces: usize,
    random: &mut impl FnMut(usize) -> usize,
) -> Vec<TransactionFacts> {
    let mut cut: Vec<_> = (0..pieces)
        .map(|_| TransactionFacts {
            first_lsn: facts.first_lsn,
            ..super::facts(facts.xid)
        })
        .collect();
    for lock in &facts.locks {
        cut[random(pieces)].locks.push(*lock);
    }
    for created in &facts.created {
        cut[random(pieces)].created.push(*created);
    }
    for rows in &facts.deleted {
        let half = rows.rows / 2;
        for rows in [
            RowsOf {
                rows: half,
                ..*rows
            },
            RowsOf {
                rows: rows.rows - half,
                ..*rows
            },
        ] {
            cut[random(pieces)].deleted.push(rows);
        }
    }
    cut[random(pieces)].class_rows = facts.class_rows;
    cut[pieces - 1].end = facts.end.clone();
    cut
}

proptest! {
    #[test]
    fn how_facts_are_spread_over_segments_does_not_matter(
        which in 0..5_usize, version in prop::sample::select(vec![14_u16, 15, 17, 18]),
        pieces in 1..6_usize, picks in prop::collection::vec(0..1000_usize, 64), rotate in 0..7_usize,
    ) {
        let story = match which {
            0 => drop_b(version),
            1 => truncate_b(version, "r"),
            2 => vacuum_full(version),
            3 => story(version).delete(16_393, 4000).delete(16_441, 700).delete(16_442, 700),
            _ => drop_b(version).delete(16_422, 3000),
        };
        let mut sub = super::facts(XID + 7);
        sub.deleted = vec![RowsOf { file: file(16_422), rows: 1500, lsn: Lsn(1500) }];
        let mut whole = story;
        whole.outcome.subxids = vec![XidRange::of(XID + 7)];
        let whole = whole.done();
        let names = names();
        let expected = judge(gathered(version, vec![vec![whole.clone(), sub.clone()]]), Some(&names), None);

        let mut picks = picks.into_iter().cycle();
        let mut random = |below: usize| picks.next().unwrap_or(0) % below;
        let mut segments: Vec<Vec<TransactionFacts>> = cut(&whole, pieces, &mut random).into_iter().map(|facts| vec![facts]).collect();
        for facts in cut(&sub, pieces, &mut random) {
            segments[random(pieces)].push(facts);
        }
        for (segment, other) in segments.iter_mut().zip(800_u32..) {
            // Others' facts, and any order within a segment.
            segment.push(TransactionFacts { locks: vec![At { what: oid(16_393), lsn: Lsn(1) }], ..super::facts(other) });
            let turn = rotate % segment.len();
            segment.rotate_left(turn);
        }
        prop_assert_eq!(judge(gathered(version, segments), Some(&names), None), expected);
    }
}
