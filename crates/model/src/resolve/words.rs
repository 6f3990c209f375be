//! What the index refuses, and what is offered instead, word for word.

use crate::catalog::Catalog;
use crate::index::{End, Moment, MomentKind, Outcome, RestorePoint, SegmentDetail, SegmentIndex};
use crate::plan::PlanOptions;
use crate::resolve::{Hunt, Stop, no_record};
use crate::sample::{self, SEGMENT, broken, id, lsn, plan, time, whole};
use crate::target::TargetKind;
use crate::unreachable::Unreachable;

/// Where a record begins, and when: in hundredths of a segment, and in as many seconds.
type At = u64;

const LAST: At = 960;

fn end(at: At, kind: Outcome, xid: u32, subxids: &[u32]) -> (At, MomentKind) {
    let what = MomentKind::End {
        kind,
        xid,
        time: time(at as i64),
        subxids: subxids.into(),
        prepared: false,
    };
    (at, what)
}

fn point(at: At, name: &str) -> (At, MomentKind) {
    let what = MomentKind::RestorePoint {
        name: name.to_owned(),
        time: time(at as i64),
    };
    (at, what)
}

/// What segment `number` says.
fn detail(number: u64) -> SegmentDetail {
    let history = [
        end(710, Outcome::Commit, 750, &[751, 752]),
        end(720, Outcome::Abort, 753, &[754]),
        point(730, "a"),
        point(740, "a"),
        point(750, "b"),
        end(LAST, Outcome::Commit, 760, &[]),
    ];
    let here = history
        .into_iter()
        .filter(|(at, _)| lsn(*at).0 / SEGMENT == number);
    let moments: Vec<Moment> = here
        .map(|(at, what)| Moment {
            lsn: lsn(at),
            end_lsn: lsn(at + 1),
            what,
        })
        .collect();
    let mut index = SegmentIndex::empty();
    for moment in &moments {
        if let MomentKind::RestorePoint { name, time } = &moment.what {
            index.restore_points.push(RestorePoint {
                name: name.clone(),
                lsn: moment.lsn,
                end_lsn: moment.end_lsn,
                time: *time,
            });
        }
    }
    SegmentDetail {
        index,
        moments,
        filled: vec![],
    }
}

fn hunt(catalog: &Catalog, kind: TargetKind) -> Result<Stop, Unreachable> {
    let (target, options) = (sample::target(kind), PlanOptions::default());
    let mut hunt = Hunt::new(catalog, &target, &options)?.expect("a target that the WAL places");
    while let Some(mut walk) = hunt.next_walk() {
        for number in walk.first()..=walk.last() {
            if walk.read(number, &detail(number)).is_break() {
                break;
            }
        }
        hunt.take(walk)?;
    }
    hunt.stop()
}

fn refused(kind: TargetKind) -> String {
    hunt(&whole(), kind).unwrap_err().to_string()
}

fn last() -> String {
    format!(
        "(its last commit is that of transaction 760, 2026-11-22 12:16:00.000000+00, at {})",
        lsn(LAST)
    )
}

#[test]
fn behind_the_last_commit_and_the_last_record_all_that_is_archived_is_offered() {
    assert_eq!(
        refused(TargetKind::Time(time(961))),
        format!(
            "2026-11-22 12:16:01.000000+00 is not before any commit or abort in the archived WAL of timeline 1 {}: leave the target out to \
             restore everything that is archived",
            last()
        )
    );
    let (catalog, kind) = (whole(), TargetKind::Lsn(lsn(990)));
    let planned = plan(&catalog, kind.clone()).unwrap();
    let commit = End {
        kind: Outcome::Commit,
        xid: 760,
        lsn: lsn(LAST),
        end_lsn: lsn(LAST + 1),
        time: time(LAST as i64),
    };
    let (target, options) = (sample::target(kind), PlanOptions::default());
    let no_record = no_record(
        &catalog,
        &target,
        &options,
        &planned,
        lsn(970),
        Some(commit),
    );
    assert_eq!(
        no_record.to_string(),
        format!(
            "{} on timeline 1 lies behind the last record of the archived WAL, which ends at {} {}: leave the target out to restore all of it",
            lsn(990),
            lsn(970),
            last()
        )
    );
    assert!(plan(&catalog, TargetKind::Latest).is_ok(), "the offer");
}

#[test]
fn of_a_transaction_that_aborted_the_state_right_after_it_is_offered() {
    let offered = format!("The state right after that is --target-lsn {}", lsn(720));
    for (xid, with) in [(753, ""), (754, " as a part of transaction 753")] {
        assert_eq!(
            refused(TargetKind::Xid(xid)),
            format!(
                "transaction {xid} did not commit: it aborted{with} at 2026-11-22 12:12:00.000000+00, at {}. {offered}",
                lsn(720)
            )
        );
    }
    assert!(
        plan(&whole(), TargetKind::Lsn(lsn(720))).is_ok(),
        "the offer"
    );
}

#[test]
fn instead_of_a_subtransaction_its_whole_transaction_is_offered() {
    assert_eq!(
        refused(TargetKind::Xid(752)),
        format!(
            "752 is a subtransaction of transaction 750, which committed at 2026-11-22 12:11:50.000000+00 at {}, and recovery stops only at \
             whole transactions: choose --target-xid 750",
            lsn(710)
        )
    );
    assert!(hunt(&whole(), TargetKind::Xid(750)).is_ok(), "the offer");
}

#[test]
fn a_transaction_that_nobody_saw_end_is_told_from_one_that_had_ended_before() {
    // The second shares its lower 32 bits with one that committed.
    for xid in [799, (1 << 32) + 750] {
        assert_eq!(
            refused(TargetKind::Xid(xid)),
            format!(
                "the archived WAL of timeline 1 does not say that transaction {xid} ended {}: it was under way or prepared when the WAL ended, \
                 was cut off by a crash, wrote nothing, or there was none of that number. Leave the target out to restore everything that is \
                 archived",
                last()
            )
        );
    }
    assert_eq!(
        refused(TargetKind::Xid(741)),
        format!(
            "--target-xid 741 lies before the end of the earliest backup that could lead to it, {} (ended at 0/380000 on timeline 1, \
             2026-11-22 12:05:50.000000+00): the earliest target is --target-immediate --backup {}",
            id(1),
            id(1)
        )
    );
}

#[test]
fn restore_points_of_one_name_are_offered_one_by_one_and_for_an_unknown_name_those_that_there_are()
{
    assert_eq!(
        refused(TargetKind::Name("a".to_owned())),
        format!(
            "more than one restore point is called \"a\", and recovery would stop at the first that it meets: choose --target-lsn {} for that \
             of 2026-11-22 12:12:10.000000+00 or --target-lsn {} for that of 2026-11-22 12:12:20.000000+00",
            lsn(730),
            lsn(740)
        )
    );
    assert!(hunt(&whole(), TargetKind::Name("b".to_owned())).is_ok());
    let known = "the newest are \"b\" (2026-11-22 12:12:30.000000+00), \"a\" (2026-11-22 12:12:20.000000+00), \"a\" \
                 (2026-11-22 12:12:10.000000+00)";
    assert_eq!(
        refused(TargetKind::Name("c".to_owned())),
        format!("no restore point \"c\" is in the archived WAL of timeline 1; {known}")
    );
    // Here segments 7 and 8 are missing, and with them all restore points.
    assert_eq!(
        hunt(&broken(), TargetKind::Name("c".to_owned()))
            .unwrap_err()
            .to_string(),
        "no restore point \"c\" is in the archived WAL of timeline 1 as far as it is there (WAL is missing: 000000010000000000000007 to \
         000000010000000000000008); there is none at all"
    );
}

#[test]
fn behind_a_gap_the_gap_is_told_and_not_that_the_target_may_lie_before_it() {
    let mut catalog = broken();
    catalog.backups.pop();
    let refused = hunt(&catalog, TargetKind::Time(time(700)))
        .unwrap_err()
        .to_string();
    assert!(
        refused.starts_with("WAL is missing on the way")
            && refused.contains("can be reached, surely with"),
        "{refused}"
    );
}
