//! Makes identities: new ids from the caller's entropy, and digests of what was observed and planned.

use std::io::{self, BufWriter, Write};
use std::sync::Arc;

use serde::Serialize;
use setpoint_schema::id::{BootNonce, DiskId, SandboxId, SnapshotId, SpecDigest, hex, sha256_hex};
use setpoint_schema::name::AppKey;
use setpoint_schema::observed::{AppRecord, LastGood, Observed, ObservedSandbox, SandboxRecord, SnapshotRecord, Usage};
use setpoint_schema::shared::SharedMap;
use sha2::{Digest as _, Sha256};

use super::crew::{self, Crew};
use super::index::sides;
use super::tally::{Hash, Tally};
use crate::model::{Action, Plan, PlanId, Step};

/// Randomness for the ids of plans. The same entropy gives the same ids, so it may serve for several plans as long as nothing
/// that got its id from it has been forgotten.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Entropy(pub [u8; 16]);

impl Entropy {
    /// An id for a new sandbox of `app` that no sandbox in the inventory has.
    pub(super) fn sandbox(self, app: &AppKey, observed: &Observed) -> SandboxId {
        self.unused(app, "sandbox", |id| observed.sandboxes.contains_key(id), |id| SandboxId(id.into()))
    }

    /// An id for a new data disk of `app` that no disk in the inventory has.
    pub(super) fn disk(self, app: &AppKey, observed: &Observed) -> DiskId {
        self.unused(app, "disk", |id| observed.disks.contains_key(id), |id| DiskId(id.into()))
    }

    /// A nonce for the next boot of `sandbox`, which last booted as `previous`.
    pub(super) fn nonce(self, sandbox: &SandboxId, previous: Option<&BootNonce>) -> BootNonce {
        let previous = previous.map_or("", BootNonce::as_str);
        let hash = sha256_hex(&[&self.0, b"boot", sandbox.as_str().as_bytes(), previous.as_bytes()]);
        BootNonce(hash.chars().take(32).collect::<String>().into())
    }

    /// A name for the files of a snapshot of `app` that is wanted as `what`, which no snapshot in the inventory has.
    pub(super) fn snapshot(self, app: &AppKey, what: &str, observed: &Observed) -> SnapshotId {
        let app = app.to_string();
        let ids = (0_u64..).map(|attempt| {
            let hash = sha256_hex(&[&self.0, b"snapshot", app.as_bytes(), what.as_bytes(), &attempt.to_le_bytes()]);
            SnapshotId(hash.chars().take(32).collect())
        });
        let mut free = ids.skip_while(|id| observed.snapshots.contains_key(id));
        free.next().unwrap_or_else(|| SnapshotId(String::new()))
    }

    /// What the saved state of a boot is called. Whatever goes on from it is another boot, so each is paused but once.
    pub(super) fn pause(nonce: &BootNonce) -> SnapshotId {
        SnapshotId(sha256_hex(&[b"pause", nonce.as_str().as_bytes()]).chars().take(32).collect())
    }

    /// Two ids of eight digits may collide, so a taken one is passed over. The inventory is finite, so this ends.
    fn unused<T>(self, app: &AppKey, what: &str, taken: impl Fn(&str) -> bool, wrap: impl Fn(String) -> T) -> T {
        let key = app.to_string();
        let ids = (0_u64..).map(|attempt| {
            let hash = sha256_hex(&[&self.0, what.as_bytes(), key.as_bytes(), &attempt.to_le_bytes()]);
            format!("{}-{}", app.name, hash.get(..8).unwrap_or(&hash))
        });
        let mut ids = ids.skip_while(|id| taken(id));
        wrap(ids.next().unwrap_or_default())
    }
}

/// What the digest of everything that was observed is made from, kept up to date by what changes.
#[derive(Debug, Default)]
pub(super) struct Hashes {
    sandboxes: Tally,
    disks: Tally,
    apps: Tally,
    snapshots: Tally,
}

impl Hashes {
    /// The digest of `newer`, where `older` is what this was last asked of, or nothing at first.
    pub fn of(&mut self, older: Option<&Observed>, newer: &Observed, crew: &impl Crew) -> SpecDigest {
        let nothing = Observed {
            host: newer.host.clone(),
            limits: newer.limits,
            sandboxes: Default::default(),
            unrecorded: Vec::new(),
            disks: Default::default(),
            apps: Default::default(),
            snapshots: Default::default(),
        };
        let older = older.unwrap_or(&nothing);
        take_in(&mut self.sandboxes, &older.sandboxes, &newer.sandboxes, of_sandbox, crew);
        take_in(&mut self.disks, &older.disks, &newer.disks, |disk, scribe| scribe.hash(disk), crew);
        take_in(&mut self.apps, &older.apps, &newer.apps, of_app, crew);
        let of_snapshot = |snapshot: &SnapshotRecord, scribe: &mut Scribe| scribe.hash(snapshot);
        take_in(&mut self.snapshots, &older.snapshots, &newer.snapshots, of_snapshot, crew);
        let Observed { host, limits, sandboxes: _, unrecorded, disks: _, apps: _, snapshots: _ } = newer;
        let parts = (self.sandboxes.digest(), self.disks.digest(), self.apps.digest(), self.snapshots.digest());
        digest(&(host, limits, unrecorded, parts))
    }
}

/// Replaces in `tally` the objects of `older` by those of `newer`.
fn take_in<K: Ord + Sync, V: PartialEq + Send + Sync>(
    tally: &mut Tally,
    older: &SharedMap<K, Arc<V>>,
    newer: &SharedMap<K, Arc<V>>,
    hash: impl Fn(&V, &mut Scribe) -> Hash + Sync,
    crew: &impl Crew,
) {
    let changes: Vec<_> = older.differences(newer).map(|(_, difference)| sides(difference)).collect();
    let hashes = crew::in_batches(crew, &changes, |changes| {
        let mut scribe = Scribe::default();
        let mut hash = |object: Option<&Arc<V>>| object.map(|object| hash(object, &mut scribe));
        changes.iter().map(|(before, after)| (hash(*before), hash(*after))).collect()
    });
    for (before, after) in hashes {
        if let Some(before) = before {
            tally.remove(&before);
        }
        if let Some(after) = after {
            tally.add(after);
        }
    }
}

/// A spec stands for itself by its digest, which is made once.
fn of_sandbox(sandbox: &ObservedSandbox, scribe: &mut Scribe) -> Hash {
    let ObservedSandbox { record, vm, guest } = sandbox;
    // What it began as long ago is told and decides nothing.
    let SandboxRecord { id, app, uid, host, disk, from, origin: _, machine, applied, intent, created_at } = &**record;
    let applied =
        applied.as_ref().map(|applied| (applied.spec.digest(), applied.generation, &applied.revision, applied.at));
    scribe.hash(&((id, app, uid, host, disk, from, machine, applied, intent, created_at), vm, guest))
}

fn of_app(app: &AppRecord, scribe: &mut Scribe) -> Hash {
    // Of how it is used, no plan depends on more than this.
    let Usage { used: _, keepalive: _, wakes: _, stopped, again, woken } = app.usage();
    let AppRecord { key, generation, digest, last_good, retry, heals, repeats, suspended, power, restored, usage: _ } =
        app;
    let LastGood { app, revision } = last_good;
    let history = (retry, heals, repeats, suspended, power, restored, stopped, again, woken);
    scribe.hash(&(key, generation, digest, &app.metadata, app.spec.digest(), &app.path, revision, history))
}

/// Names a plan by where it leads, from what, and what it does to whom. The rest follows from these: planning is a function.
pub(super) fn name(plan: &Plan, entropy: Entropy, crew: &impl Crew) -> PlanId {
    let Plan { id: _, parent, revision, observation, actions, held, snapshots, unchanged } = plan;
    let action = |action: &Action, scribe: &mut Scribe| {
        let Action { app, sandbox, kind, reasons, changes, steps, blocked } = action;
        let steps: Vec<_> = steps.iter().map(Step::name).collect();
        scribe.hash(&(app, sandbox, kind, reasons, changes, steps, blocked))
    };
    let actions = crew::in_batches(crew, actions, |actions| {
        let mut scribe = Scribe::default();
        actions.iter().map(|of| action(of, &mut scribe)).collect()
    });
    PlanId(
        digest(&(parent, revision, observation, entropy.0, actions, (held, snapshots), unchanged.len()))
            .as_str()
            .to_owned(),
    )
}

/// The digest of a whole, hashed as it is written: nothing large is ever in memory as text.
fn digest(value: &impl Serialize) -> SpecDigest {
    let mut hash = BufWriter::with_capacity(1 << 12, Hasher(Sha256::new()));
    serde_json::to_writer(&mut hash, value).expect("hashing cannot fail, and all keys are text");
    let Hasher(hash) = hash.into_inner().map_err(io::IntoInnerError::into_error).expect("hashing cannot fail");
    SpecDigest(hex(&hash.finalize()).into())
}

struct Hasher(Sha256);

impl Write for Hasher {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.update(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Hashes one object after the other, and writes them all in the same place to do so.
#[derive(Default)]
struct Scribe {
    text: Vec<u8>,
}

impl Scribe {
    fn hash(&mut self, object: &impl Serialize) -> Hash {
        self.text.clear();
        serde_json::to_writer(&mut self.text, object).expect("memory takes any text, and all keys are text");
        Sha256::digest(&self.text).into()
    }
}
