//! A child writes and acknowledges over a socket; it is killed at a random moment, while it opens the state too, and the state
//! is opened again: whatever was acknowledged must be there. Two thousand times over, several children at once.

#![expect(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

use std::collections::{BTreeMap, BTreeSet};
use std::io::{Read as _, Write as _};
use std::os::fd::{AsFd as _, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use setpoint_schema::id::DiskId;
use setpoint_schema::observed::{DiskRecord, DiskState};
use setpoint_schema::quantity::ByteSize;
use setpoint_state::{Batch, Disks, EventKind, NewEvent, Options, Outcome, PlanRef, Store};

/// Kills in one run of the test.
const KILLS: u64 = 2_000;
/// States that are written and killed side by side. Most of a round is waiting for processes and disks.
const LANES: u64 = 4;
/// A state is given up for a fresh one after this many kills, so that first openings are among them.
const KILLS_PER_STATE: u64 = 50;
/// Writers in each child, so that kills hit shared commits.
const WRITERS: u64 = 3;
/// Each writer goes round this many records.
const SLOTS: u64 = 8;
/// Set for the child: the state directory.
const CHILD_DIR: &str = "SETPOINT_STATE_SIGKILL_DIR";

#[test]
fn no_acknowledged_write_is_lost_in_two_thousand_kills() {
    let begun = Instant::now();
    let totals = std::thread::scope(|scope| {
        let lanes: Vec<_> = (0..LANES).map(|lane| scope.spawn(move || kill_over_and_over(lane))).collect();
        lanes.into_iter().map(|lane| lane.join().unwrap()).fold(Totals::default(), Totals::add)
    });
    println!("{totals:?} in {:.0?}", begun.elapsed());
    assert_eq!(totals.kills, KILLS);
    assert!(totals.while_opening >= KILLS / 5, "too few kills hit an opening: {totals:?}");
    assert!(totals.acknowledged >= KILLS, "too little was written: {totals:?}");
}

/// The child's half. Alone it does nothing.
#[test]
#[ignore = "it is run by the test above, as a process of its own"]
fn child() {
    let Some(dir) = std::env::var_os(CHILD_DIR) else { return };
    let acknowledgements = std::io::stdin().as_fd().try_clone_to_owned().unwrap();
    write_until_killed(Path::new(&dir), acknowledgements);
}

#[derive(Debug, Default)]
struct Totals {
    kills: u64,
    while_opening: u64,
    acknowledged: u64,
}

impl Totals {
    fn add(self, other: Self) -> Self {
        Self {
            kills: self.kills + other.kills,
            while_opening: self.while_opening + other.while_opening,
            acknowledged: self.acknowledged + other.acknowledged,
        }
    }
}

/// What a child says: that the state is open, or that a writer's write of this number is durable.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Word {
    Opened,
    Written { writer: u64, number: u64 },
}

impl Word {
    fn to_bytes(self) -> [u8; 16] {
        let (a, b) = match self {
            Self::Opened => (u64::MAX, 0),
            Self::Written { writer, number } => (writer, number),
        };
        let mut bytes = [0; 16];
        bytes[..8].copy_from_slice(&a.to_le_bytes());
        bytes[8..].copy_from_slice(&b.to_le_bytes());
        bytes
    }

    fn from_bytes(bytes: &[u8]) -> Self {
        let number = |range| u64::from_le_bytes(<[u8; 8]>::try_from(&bytes[range]).unwrap());
        match number(0..8) {
            u64::MAX => Self::Opened,
            writer => Self::Written { writer, number: number(8..16) },
        }
    }
}

fn options() -> Options {
    // Small logs, so that trimming is among what is interrupted.
    Options { events: 40, journal: 30, reserve: ByteSize::mib(1), ..Options::default() }
}

/// Write number `n` of a writer: its record of slot `n % SLOTS`, with an event in the same batch, inside a journalled step.
fn write_until_killed(dir: &Path, acknowledgements: OwnedFd) {
    let store = Store::open_with(dir, options()).unwrap();
    let socket = std::sync::Mutex::new(UnixStream::from(acknowledgements));
    let say = |word: Word| socket.lock().unwrap().write_all(&word.to_bytes()).unwrap();
    let newest = newest_writes(&store);
    say(Word::Opened);
    std::thread::scope(|scope| {
        for writer in 0..WRITERS {
            let (store, say, first) = (&store, &say, newest.get(&writer).map_or(1, |newest| newest + 1));
            scope.spawn(move || {
                for number in first.. {
                    let record = disk(writer, number);
                    let step = store.journal_begin(&record.app, &PlanRef("p".into()), 0, "step").unwrap();
                    let mut batch = Batch::new();
                    batch.put::<Disks>(&record.id, &record).unwrap();
                    batch.event(NewEvent::new(EventKind::Updated, "", format!("{writer} {number}")));
                    store.commit(batch).unwrap();
                    say(Word::Written { writer, number });
                    store.journal_end(step, Outcome::Done).unwrap();
                }
            });
        }
    });
}

fn disk(writer: u64, number: u64) -> DiskRecord {
    let id = DiskId(format!("disk-{writer}-{}", number % SLOTS).into());
    DiskRecord { id, app: "blog".parse().unwrap(), size: ByteSize::mib(number), state: DiskState::InUse }
}

/// The newest write of each writer that the store holds.
fn newest_writes(store: &Store) -> BTreeMap<u64, u64> {
    let mut newest = BTreeMap::new();
    for (id, disk) in store.all::<Disks>().unwrap() {
        let writer = id.0.split('-').nth(1).unwrap().parse().unwrap();
        let number = disk.size.as_mib();
        newest.entry(writer).and_modify(|n: &mut u64| *n = number.max(*n)).or_insert(number);
    }
    newest
}

fn kill_over_and_over(lane: u64) -> Totals {
    let mut random = Random(0x5e7_9017 + lane);
    let mut totals = Totals::default();
    let mut state = State::fresh();
    // How long the last opening took, process start included.
    let mut opening = Duration::from_millis(50);
    for round in 0..KILLS / LANES {
        if round % KILLS_PER_STATE == 0 {
            state = State::fresh();
        }
        let moment = if round % 3 == 0 {
            Moment::WhileOpening(random.within(opening))
        } else {
            Moment::WhileWriting(random.within(Duration::from_millis(30)))
        };
        let (words, took) = run_and_kill(&state.path, moment);
        opening = took.unwrap_or(opening);
        totals.kills += 1;
        totals.while_opening += u64::from(words.is_empty());
        totals.acknowledged += words.len() as u64;
        state.expect_all(&words, &format!("lane {lane}, round {round}"));
    }
    totals
}

/// When a child is killed.
enum Moment {
    /// So long after it was started.
    WhileOpening(Duration),
    /// So long after it said that the state is open.
    WhileWriting(Duration),
}

/// All that the child said before it was killed, and how long its opening took where that was waited for.
fn run_and_kill(dir: &Path, moment: Moment) -> (Vec<Word>, Option<Duration>) {
    let begun = Instant::now();
    let (mut ours, theirs) = UnixStream::pair().unwrap();
    let mut child = spawn_child(dir, theirs);
    let mut bytes = Vec::new();
    let took = match moment {
        Moment::WhileOpening(after) => {
            std::thread::sleep(after);
            None
        }
        Moment::WhileWriting(after) => {
            let mut first = [0; 16];
            ours.read_exact(&mut first).unwrap();
            bytes.extend(first);
            let took = begun.elapsed();
            std::thread::sleep(after);
            Some(took)
        }
    };
    child.kill().unwrap();
    let status = child.wait().unwrap();
    assert_eq!(status.code(), None, "the child ended by itself: {status}");
    ours.read_to_end(&mut bytes).unwrap();
    (bytes.chunks_exact(16).map(Word::from_bytes).collect(), took)
}

fn spawn_child(dir: &Path, socket: UnixStream) -> Child {
    Command::new(std::env::current_exe().unwrap())
        .args(["--ignored", "--exact", "child", "--nocapture"])
        .env(CHILD_DIR, dir)
        .stdin(Stdio::from(OwnedFd::from(socket)))
        .stdout(Stdio::null())
        .spawn()
        .unwrap()
}

/// A state, and what has been acknowledged of it.
struct State {
    path: PathBuf,
    acknowledged: BTreeMap<u64, u64>,
    _dir: tempfile::TempDir,
}

impl State {
    fn fresh() -> Self {
        let dir = tempfile::tempdir().unwrap();
        Self { path: dir.path().join("state"), acknowledged: BTreeMap::new(), _dir: dir }
    }

    /// Opens the state as a restarted daemon would and looks for every acknowledged write.
    fn expect_all(&mut self, words: &[Word], when: &str) {
        for word in words {
            if let Word::Written { writer, number } = word {
                self.acknowledged.insert(*writer, *number);
            }
        }
        let store = Store::open_with(&self.path, options()).unwrap_or_else(|e| panic!("{when}: {e}"));
        let newest = newest_writes(&store);
        for writer in 0..WRITERS {
            let acknowledged = self.acknowledged.get(&writer).copied().unwrap_or(0);
            let found = newest.get(&writer).copied().unwrap_or(0);
            assert!(
                found == acknowledged || found == acknowledged + 1,
                "{when}: writer {writer} had {acknowledged} acknowledged, the state holds {found}"
            );
            // The write in flight may have arrived without its acknowledgement.
            self.acknowledged.insert(writer, found);
            self.expect_slots(&store, writer, found, when);
        }
        expect_events(&store, &newest, when);
        let open = store.unfinished().unwrap();
        assert!(open.len() <= WRITERS as usize, "{when}: {} open steps", open.len());
        for step in open {
            store.journal_end(step, Outcome::Interrupted).unwrap();
        }
    }

    /// Each slot holds the writer's last write to it.
    fn expect_slots(&self, store: &Store, writer: u64, newest: u64, when: &str) {
        for number in newest.saturating_sub(SLOTS - 1).max(1)..=newest {
            let expected = disk(writer, number);
            assert_eq!(
                store.get::<Disks>(&expected.id).unwrap(),
                Some(expected),
                "{when}: writer {writer}, write {number}"
            );
        }
    }
}

/// A write and its event were one batch: as far as the events reach back, each is there for each write.
fn expect_events(store: &Store, newest: &BTreeMap<u64, u64>, when: &str) {
    let events: BTreeSet<String> = store.latest_events(1000).unwrap().into_iter().map(|e| e.message).collect();
    for (writer, newest) in newest {
        assert!(
            events.is_empty() || recent(&events, *writer, *newest),
            "{when}: the event of {writer} {newest} is lost"
        );
    }
}

/// Whether the newest write of a writer has its event, or so many others followed that it was trimmed.
fn recent(events: &BTreeSet<String>, writer: u64, newest: u64) -> bool {
    events.contains(&format!("{writer} {newest}")) || events.len() == options().events
}

/// SplitMix64: the kills of a run are random, and the same in every run.
struct Random(u64);

impl Random {
    fn within(&mut self, limit: Duration) -> Duration {
        Duration::from_micros(self.below(limit.as_micros().try_into().unwrap()))
    }

    fn below(&mut self, limit: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (z ^ (z >> 31)) % limit
    }
}
