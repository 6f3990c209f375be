//! Expiry, backups and pins at the same time: every order of their steps, over the decisions that they really take. The steps are those of
//! `engine::expire`, `engine::backup` and `engine::pin`; any of them may be killed between two.

use std::collections::HashSet;

use walden_pg::{Lsn, TimelineId};

use super::*;
use crate::catalog::Catalog;
use crate::records::{BackupRecord, RandomId, StartedDocument};
use crate::sample::{backup, catalog, id, lsn, time};

/// The backup that runs meanwhile; 1 and 2 are committed before.
const RUNNING: u32 = 3;

/// What stands in the repository. A backup has one pack; segments are of timeline 1.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Default)]
struct Stored {
    commits: BTreeSet<u32>,
    closed: BTreeSet<u32>,
    started: BTreeSet<u32>,
    packs: BTreeSet<u32>,
    segments: BTreeSet<u64>,
    /// Whose, and who says so.
    retired: BTreeSet<(u32, usize)>,
    retired_wal: BTreeSet<(usize, u64)>,
    pinned: bool,
}

/// What does not change.
#[derive(Debug, Clone, Copy)]
struct Scene {
    /// On whose pack the running backup leans.
    parent: Option<u32>,
    /// Where it starts, in hundredths of a segment.
    start: u64,
    /// Whether expiry takes it for abandoned.
    looks_dead: bool,
}

impl Scene {
    fn record(&self, number: u32) -> BackupRecord {
        let start = match number {
            1 => 150,
            2 => 1150,
            _ => self.start,
        };
        let mut record = backup(number, 1, start, start + 100);
        let mut packs = record.packs.clone();
        if number == RUNNING {
            packs.extend(
                self.parent
                    .map(|parent| backup(parent, 1, 1, 2).packs.remove(0)),
            );
        }
        record.packs = packs;
        record
    }

    fn started(&self) -> StartedDocument {
        StartedDocument {
            backup_id: id(RUNNING),
            archive_id: RandomId([7; 16]),
            started_at: time(0),
            host: String::new(),
            pid: 1,
            parents: self.parent.into_iter().map(id).collect(),
            wal_from: Some(lsn(self.start - 20)),
            write_token: RandomId([1; 16]),
        }
    }

    fn open(&self) -> OpenBackup {
        let started = self.started();
        OpenBackup {
            id: id(RUNNING),
            newest: time(if self.looks_dead { -1_000_000 } else { 0 }),
            wal_from: started.wal_from,
            parents: Some(started.parents),
        }
    }
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, Default)]
struct Expiry {
    step: u8,
    commits: BTreeSet<u32>,
    retiring: BTreeSet<u32>,
    begun: BTreeSet<u32>,
    removed: BTreeSet<u32>,
    abandoned: bool,
    kept_wal: Option<KeptWal>,
    needed: BTreeSet<u32>,
}

const DONE: u8 = 100;

fn numbers(ids: impl IntoIterator<Item = BackupId>) -> BTreeSet<u32> {
    ids.into_iter()
        .map(|found| (1..9).find(|number| id(*number) == found).unwrap())
        .collect()
}

impl Expiry {
    fn step(&mut self, me: usize, scene: &Scene, stored: &mut Stored) {
        self.step += 1;
        match self.step {
            1 => self.commits = stored.commits.clone(),
            2 => {
                self.retiring = stored.retired.iter().map(|(backup, _)| *backup).collect();
            }
            3 => self.plan(scene, stored),
            // Now everybody is told. First the backups,
            4 => {
                let told = self.removed.union(&self.begun).copied();
                stored.retired.extend(told.map(|backup| (backup, me)));
            }
            // then the WAL.
            5 => {
                let floor = self.kept_wal.as_ref().unwrap().floor();
                stored.retired_wal.insert((me, floor));
            }
            6 => {
                if self.abandoned && !stored.commits.contains(&RUNNING) {
                    stored.closed.insert(RUNNING);
                }
            }
            // Who has come meanwhile? Folders first, then commit documents: a backup is in one of them at least.
            7 => {
                let open = stored.started.contains(&RUNNING) && !stored.closed.contains(&RUNNING);
                let committed = stored.commits.contains(&RUNNING);
                let running: Vec<OpenBackup> = (open && !committed)
                    .then(|| scene.open())
                    .into_iter()
                    .collect();
                // Who told it takes it back; who only goes on with what another told leaves it.
                if stored.pinned {
                    stored.retired.remove(&(1, me));
                    self.removed.remove(&1);
                    self.begun.remove(&1);
                }
                let going: BTreeSet<u32> = self.removed.union(&self.begun).copied().collect();
                let committed: Vec<BackupRecord> = stored
                    .commits
                    .iter()
                    .map(|number| scene.record(*number))
                    .collect();
                let going = going.into_iter().map(id).collect();
                let kept = self.kept_wal.as_ref().unwrap();
                let staying =
                    Staying::new(kept, &committed, &going, &running, crate::sample::size());
                self.needed = (1..=RUNNING)
                    .filter(|number| staying.packs.needs(&id(*number), 0))
                    .collect();
                self.kept_wal = Some(staying.wal);
            }
            8 => {
                for number in self.removed.union(&self.begun) {
                    stored.commits.remove(number);
                }
            }
            9 => {
                let gone = self.removed.union(&self.begun).copied();
                for number in gone.chain(stored.closed.iter().copied()) {
                    if !self.needed.contains(&number) {
                        stored.packs.remove(&number);
                    }
                }
            }
            10 => {
                for number in self.removed.union(&self.begun) {
                    stored.started.remove(number);
                }
            }
            11 => {
                let kept = self.kept_wal.as_ref().unwrap();
                stored
                    .segments
                    .retain(|number| kept.keeps(TimelineId(1), *number));
            }
            12 => {
                stored.retired_wal.retain(|(who, _)| *who != me);
                let going: BTreeSet<u32> = self.removed.union(&self.begun).copied().collect();
                let packs = stored.packs.clone();
                stored
                    .retired
                    .retain(|(backup, _)| !going.contains(backup) || packs.contains(backup));
                self.step = DONE;
            }
            _ => unreachable!(),
        }
    }

    fn plan(&mut self, scene: &Scene, stored: &Stored) {
        let segments: Vec<u64> = stored.segments.iter().copied().collect();
        let mut found: Catalog = catalog(&[(1, &segments)], &[]);
        found.retiring = self.retiring.iter().map(|number| id(*number)).collect();
        let staying = self.commits.difference(&self.retiring);
        found.backups = staying.map(|number| scene.record(*number)).collect();
        let open = stored.started.contains(&RUNNING)
            && !self.commits.contains(&RUNNING)
            && !stored.closed.contains(&RUNNING)
            && !self.retiring.contains(&RUNNING);
        let open: Vec<OpenBackup> = open.then(|| scene.open()).into_iter().collect();
        let pins: BTreeMap<BackupId, Pin> = stored
            .pinned
            .then(|| (id(1), Pin::Forever))
            .into_iter()
            .collect();
        let plan = ExpirePlan::build(&ExpireFacts {
            catalog: &found,
            policy: &RetentionPolicy {
                full: Some(1),
                ..RetentionPolicy::default()
            },
            pins: &pins,
            proven: &BTreeSet::new(),
            damaged: &BTreeSet::new(),
            open: &open,
            now: time(100_000),
            store_now: time(0),
            abandoned_after: SignedDuration::from_hours(24),
        });
        let Ok(plan) = plan else {
            self.step = DONE;
            return;
        };
        self.removed = numbers(plan.removed);
        self.begun = numbers(plan.begun);
        self.abandoned = !plan.abandoned.is_empty();
        self.kept_wal = Some(plan.kept_wal);
    }
}

/// The backup's steps; gives up where it must.
fn back_up(step: &mut u8, scene: &Scene, stored: &mut Stored) {
    *step += 1;
    match *step {
        // It chose its parent while that was there.
        1 => {
            stored.started.insert(RUNNING);
        }
        2 | 5 => {
            let backups = stored
                .retired
                .iter()
                .map(|(number, _)| Retirement::Backup(id(*number)));
            let size = crate::sample::size().bytes();
            let wal = stored.retired_wal.iter();
            let wal = wal.map(|(_, floor)| Retirement::WalBefore(Lsn(floor * size)));
            let mut all = backups.chain(wal);
            let parents = scene.parent.iter();
            // What was removed to the end is in no document any more.
            let mut gone = parents.filter(|parent| !stored.commits.contains(parent));
            if gone.next().is_some()
                || all.any(|retirement| retirement.check(&scene.started()).is_err())
            {
                *step = DONE;
            }
        }
        3 => {
            stored.packs.insert(RUNNING);
        }
        4 => {
            let (first, last) = build::needed(&scene.record(RUNNING));
            if !(first..=last).all(|number| stored.segments.contains(&number)) {
                *step = DONE;
            }
        }
        6 => {
            if !stored.closed.contains(&RUNNING) {
                stored.commits.insert(RUNNING);
            }
            *step = DONE;
        }
        _ => unreachable!(),
    }
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct World {
    stored: Stored,
    backup: u8,
    expiries: Vec<Expiry>,
    kills: u8,
    pin: u8,
    /// What the person was told.
    pin_holds: bool,
}

impl World {
    fn check(&self, scene: &Scene, way: &[String]) {
        let stored = &self.stored;
        for number in &stored.commits {
            if stored.retired.iter().any(|(retired, _)| retired == number) {
                continue;
            }
            let record = scene.record(*number);
            for pack in &record.packs {
                let owner = numbers([pack.backup.clone()]).pop_first().unwrap();
                assert!(
                    stored.packs.contains(&owner),
                    "backup {number} lacks the pack of {owner} in {scene:?} after {way:#?}\n{self:#?}"
                );
            }
            let (first, last) = build::needed(&record);
            assert!(
                (first..=last).all(|segment| stored.segments.contains(&segment)),
                "backup {number} lacks WAL in {scene:?} after {way:#?}\n{self:#?}"
            );
        }
        assert!(
            stored
                .commits
                .iter()
                .any(|number| stored.retired.iter().all(|(retired, _)| retired != number)),
            "no backup is left in {scene:?} after {way:#?}"
        );
        assert!(
            !self.pin_holds || stored.commits.contains(&1) && stored.packs.contains(&1),
            "backup 1 was said to be pinned, and goes, after {way:#?}\n{self:#?}"
        );
    }
}

/// Walks through every state that any order of steps leads to, and says how many there are.
fn explore(scene: &Scene, first: World) -> usize {
    let mut seen = HashSet::new();
    let mut open = vec![(first, Vec::<String>::new())];
    while let Some((world, way)) = open.pop() {
        if !seen.insert(world.clone()) {
            continue;
        }
        world.check(scene, &way);
        let mut go = |what: String, next: World| {
            let mut way = way.clone();
            way.push(what);
            open.push((next, way));
        };
        if world.backup < DONE {
            let mut next = world.clone();
            back_up(&mut next.backup, scene, &mut next.stored);
            go(format!("backup {}", world.backup + 1), next);
        }
        for me in 0..world.expiries.len() {
            if world.expiries[me].step == DONE {
                continue;
            }
            let mut next = world.clone();
            let World {
                stored, expiries, ..
            } = &mut next;
            expiries[me].step(me, scene, stored);
            go(
                format!("expiry {me}: {}", world.expiries[me].step + 1),
                next,
            );
            if world.kills > 0 && world.expiries[me].step > 3 {
                let mut next = world.clone();
                next.expiries[me] = Expiry {
                    step: DONE,
                    ..Expiry::default()
                };
                next.kills -= 1;
                go(format!("expiry {me} killed"), next);
            }
        }
        if world.pin < DONE {
            let mut next = world.clone();
            next.pin += 1;
            if next.pin == 1 {
                next.stored.pinned = true;
            } else {
                let stored = &next.stored;
                next.pin_holds = stored.commits.contains(&1)
                    && stored.retired.iter().all(|(number, _)| *number != 1);
                next.stored.pinned = next.pin_holds;
                next.pin = DONE;
            }
            go(format!("pin {}", world.pin + 1), next);
        }
    }
    seen.len()
}

fn world(backup: u8, pin: u8, expiries: usize, kills: u8) -> World {
    World {
        stored: Stored {
            commits: [1, 2].into(),
            started: [1, 2].into(),
            packs: [1, 2].into(),
            segments: (1..=20).collect(),
            ..Stored::default()
        },
        backup,
        expiries: vec![Expiry::default(); expiries],
        kills,
        pin,
        pin_holds: false,
    }
}

#[test]
fn no_order_of_steps_takes_from_a_backup_what_it_needs() {
    let mut states = 0;
    for parent in [None, Some(1), Some(2)] {
        // Behind the newest committed backup; and between the two, as on a standby that lags behind.
        for start in [1650, 550] {
            for looks_dead in [false, true] {
                let scene = Scene {
                    parent,
                    start,
                    looks_dead,
                };
                states += explore(&scene, world(0, DONE, 2, 1));
            }
        }
    }
    assert!(
        states > 10_000,
        "{states} states are too few to have met each other"
    );
}

#[test]
fn a_pin_that_was_promised_holds_in_every_order_of_steps() {
    let scene = Scene {
        parent: None,
        start: 1650,
        looks_dead: false,
    };
    let states = explore(&scene, world(DONE, 0, 2, 1));
    assert!(
        states > 300,
        "{states} states are too few to have met each other"
    );
}
