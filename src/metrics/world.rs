//! States, read off the newest pass when somebody asks: phases, queues, lag and sizes.

use std::path::Path;
use std::sync::atomic::AtomicU64;
use std::sync::{Mutex, PoisonError};
use std::time::Instant;

use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::{Registry, Unit};
use setpoint_schema::id::CommitId;
use setpoint_schema::observed::{GuestState, SnapshotState, VmState};
use setpoint_schema::wire::AppCounts;

use super::Label;
use crate::converge::Pass;

/// What the gauges are read off.
pub struct World<'a> {
    /// The newest pass.
    pub pass: &'a Pass,
    /// How the apps are.
    pub apps: AppCounts,
    /// The directory of the store.
    pub store: &'a Path,
}

pub(super) struct WorldGauges {
    microvms: Family<Label<1>, Gauge>,
    apps: Family<Label<1>, Gauge>,
    actions: Family<Label<1>, Gauge>,
    snapshots: Family<Label<1>, Gauge>,
    snapshots_size: Gauge,
    source_up: Gauge,
    source_lag: Gauge<f64, AtomicU64>,
    mistakes: Gauge,
    last_pass: Gauge<f64, AtomicU64>,
    store: Gauge,
    tip: Mutex<Tip>,
}

/// The newest tip, and since when a tip has been waiting to be applied.
#[derive(Default)]
struct Tip {
    seen: Option<CommitId>,
    behind_since: Option<Instant>,
}

impl WorldGauges {
    pub(super) fn register(registry: &mut Registry) -> Self {
        let this = Self {
            microvms: Family::default(),
            apps: Family::default(),
            actions: Family::default(),
            snapshots: Family::default(),
            snapshots_size: Gauge::default(),
            source_up: Gauge::default(),
            source_lag: Gauge::default(),
            mistakes: Gauge::default(),
            last_pass: Gauge::default(),
            store: Gauge::default(),
            tip: Mutex::default(),
        };
        let lag = "Since when the branch has had a tip that is not carried out in full";
        registry.register("microvms", "MicroVMs in the inventory, by phase", this.microvms.clone());
        registry.register("apps", "Apps, by phase", this.apps.clone());
        registry.register("plan_actions", "Actions of the newest plan, by what they wait for", this.actions.clone());
        registry.register("snapshots", "Snapshots in the inventory, by state", this.snapshots.clone());
        registry.register_with_unit(
            "snapshots_size",
            "What snapshots take up on the disk",
            Unit::Bytes,
            this.snapshots_size.clone(),
        );
        registry.register("source_up", "Whether the branch can be followed", this.source_up.clone());
        registry.register_with_unit("source_lag", lag, Unit::Seconds, this.source_lag.clone());
        registry.register("declaration_mistakes", "Mistakes in the declarations", this.mistakes.clone());
        registry.register_with_unit(
            "last_pass_time",
            "When the last pass was made",
            Unit::Seconds,
            this.last_pass.clone(),
        );
        registry.register_with_unit("store_size", "Size of the store's files", Unit::Bytes, this.store.clone());
        this
    }

    pub(super) fn tip(&self, commit: &CommitId) {
        let mut tip = self.tip.lock().unwrap_or_else(PoisonError::into_inner);
        if tip.seen.as_ref() != Some(commit) {
            tip.seen = Some(commit.clone());
            // A tip that comes before the last one was applied does not make the lag any shorter.
            tip.behind_since.get_or_insert_with(Instant::now);
        }
    }

    pub(super) fn look(&self, world: &World<'_>) {
        let World { pass, apps, store } = world;
        self.look_at_microvms(pass);
        self.look_at_actions(pass);
        self.look_at_snapshots(pass);
        let AppCounts { total: _, ready, reconciling, unready, blocked, stalled, resting } = *apps;
        let phases = [
            ("ready", ready),
            ("reconciling", reconciling),
            ("unready", unready),
            ("blocked", blocked),
            ("stalled", stalled),
            ("resting", resting),
        ];
        phases.into_iter().for_each(|(phase, count)| set(&self.apps, "phase", phase, count.into()));
        self.source_up.set(i64::from(pass.followed.trouble.is_none()));
        self.source_lag.set(self.lag(pass));
        self.mistakes.set(count(pass.followed.diagnostics.len()));
        self.last_pass.set(pass.at.as_millisecond() as f64 / 1000.0);
        self.store.set(size_of(store));
    }

    fn look_at_microvms(&self, pass: &Pass) {
        const PHASES: [&str; 6] = ["absent", "exited", "booting", "running", "silent", "paused"];
        let mut counts = [0_usize; PHASES.len()];
        for sandbox in pass.observed.sandboxes.values() {
            let phase = match (&sandbox.vm, &sandbox.guest) {
                (VmState::Absent, _) => 0,
                (VmState::Exited { .. }, _) => 1,
                (VmState::Running { .. }, GuestState::Connecting { .. } | GuestState::Absent) => 2,
                (VmState::Running { .. }, GuestState::Answering(_)) => 3,
                (VmState::Running { .. }, GuestState::Silent { .. }) => 4,
                (VmState::Paused { .. }, _) => 5,
            };
            counts[phase] += 1;
        }
        PHASES.into_iter().zip(counts).for_each(|(phase, n)| set(&self.microvms, "phase", phase, count(n)));
    }

    fn look_at_actions(&self, pass: &Pass) {
        let (mut waiting, mut blocked) = (0, 0);
        for action in &pass.plan.actions {
            if !action.blocked.is_empty() {
                blocked += 1;
            } else if !pass.busy.contains(&action.app) {
                waiting += 1;
            }
        }
        let states = [("running", pass.busy.len()), ("waiting", waiting), ("blocked", blocked)];
        states.into_iter().for_each(|(state, n)| set(&self.actions, "state", state, count(n)));
    }

    fn look_at_snapshots(&self, pass: &Pass) {
        const STATES: [&str; 5] = ["wanted", "failed", "kept", "retained", "leaving"];
        let mut counts = [0_usize; STATES.len()];
        let mut size = 0;
        for record in pass.observed.snapshots.values() {
            let state = match record.state {
                SnapshotState::Wanted { .. } => 0,
                SnapshotState::Failed { .. } => 1,
                SnapshotState::Kept(_) => 2,
                SnapshotState::Retained { .. } => 3,
                SnapshotState::Leaving => 4,
            };
            counts[state] += 1;
            size += record.kept().map_or(0, |kept| kept.bytes.as_bytes());
        }
        STATES.into_iter().zip(counts).for_each(|(state, n)| set(&self.snapshots, "state", state, count(n)));
        self.snapshots_size.set(i64::try_from(size).unwrap_or(i64::MAX));
    }

    fn lag(&self, pass: &Pass) -> f64 {
        let mut tip = self.tip.lock().unwrap_or_else(PoisonError::into_inner);
        if tip.seen == pass.last_applied {
            tip.behind_since = None;
        }
        tip.behind_since.map_or(0.0, |since| since.elapsed().as_secs_f64())
    }
}

fn set(family: &Family<Label<1>, Gauge>, label: &'static str, value: &str, to: i64) {
    family.get_or_create(&[(label, value.to_owned())]).set(to);
}

fn count(n: usize) -> i64 {
    i64::try_from(n).unwrap_or(i64::MAX)
}

/// The length of every file below `dir`. What cannot be read counts as nothing.
fn size_of(dir: &Path) -> i64 {
    let entries = std::fs::read_dir(dir).into_iter().flatten().flatten();
    let size = |entry: std::fs::DirEntry| match entry.metadata() {
        Ok(found) if found.is_dir() => size_of(&entry.path()),
        Ok(found) => i64::try_from(found.len()).unwrap_or(i64::MAX),
        Err(_) => 0,
    };
    entries.map(size).sum()
}
