//! Makes identities: new ids from the caller's entropy, and digests of what was observed and planned.

use std::io::{self, BufWriter, Write};

use serde::Serialize;
use setpoint_schema::id::{BootNonce, DiskId, SandboxId, SpecDigest, hex, sha256_hex};
use setpoint_schema::name::AppKey;
use setpoint_schema::observed::{AppRecord, LastGood, Observed, ObservedSandbox, SandboxRecord};
use sha2::{Digest as _, Sha256};

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
        self.unused(app, "sandbox", |id| observed.sandboxes.contains_key(&SandboxId(id.to_owned())), SandboxId)
    }

    /// An id for a new data disk of `app` that no disk in the inventory has.
    pub(super) fn disk(self, app: &AppKey, observed: &Observed) -> DiskId {
        self.unused(app, "disk", |id| observed.disks.contains_key(&DiskId(id.to_owned())), DiskId)
    }

    /// A nonce for the next boot of `sandbox`, which last booted as `previous`.
    pub(super) fn nonce(self, sandbox: &SandboxId, previous: Option<&BootNonce>) -> BootNonce {
        let previous = previous.map_or("", BootNonce::as_str);
        let hash = sha256_hex(&[&self.0, b"boot", sandbox.as_str().as_bytes(), previous.as_bytes()]);
        BootNonce(hash.chars().take(32).collect())
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
}

impl Hashes {
    /// The digest of `newer`, where `older` is what this was last asked of, or nothing at first.
    pub fn of(&mut self, older: Option<&Observed>, newer: &Observed) -> SpecDigest {
        let nothing = Observed {
            host: newer.host.clone(),
            limits: newer.limits,
            sandboxes: Default::default(),
            unrecorded: Vec::new(),
            disks: Default::default(),
            apps: Default::default(),
        };
        let older = older.unwrap_or(&nothing);
        for (_, difference) in older.sandboxes.differences(&newer.sandboxes) {
            replace(&mut self.sandboxes, sides(difference), |sandbox| of_sandbox(sandbox));
        }
        for (_, difference) in older.disks.differences(&newer.disks) {
            replace(&mut self.disks, sides(difference), hash);
        }
        for (_, difference) in older.apps.differences(&newer.apps) {
            replace(&mut self.apps, sides(difference), |app| of_app(app));
        }
        let Observed { host, limits, sandboxes: _, unrecorded, disks: _, apps: _ } = newer;
        let parts = (self.sandboxes.digest(), self.disks.digest(), self.apps.digest());
        digest(&(host, limits, unrecorded, parts))
    }
}

fn replace<V>(tally: &mut Tally, (before, after): (Option<&V>, Option<&V>), hash: impl Fn(&V) -> Hash) {
    if let Some(before) = before {
        tally.remove(&hash(before));
    }
    if let Some(after) = after {
        tally.add(hash(after));
    }
}

/// A spec stands for itself by its digest, which is made once.
fn of_sandbox(sandbox: &ObservedSandbox) -> Hash {
    let ObservedSandbox { record, vm, guest } = sandbox;
    let SandboxRecord { id, app, uid, host, disk, machine, applied, intent, created_at } = record;
    let applied =
        applied.as_ref().map(|applied| (applied.spec.digest(), applied.generation, &applied.revision, applied.at));
    hash(&((id, app, uid, host, disk, machine, applied, intent, created_at), vm, guest))
}

fn of_app(app: &AppRecord) -> Hash {
    let AppRecord { key, generation, digest, last_good, retry, heals, suspended } = app;
    let LastGood { app, revision } = last_good;
    hash(&(key, generation, digest, &app.metadata, app.spec.digest(), &app.path, revision, retry, heals, suspended))
}

/// Names a plan by where it leads, from what, and what it does to whom. The rest follows from these: planning is a function.
pub(super) fn name(plan: &Plan, entropy: Entropy) -> PlanId {
    let Plan { id: _, parent, revision, observation, actions, held, unchanged } = plan;
    let action = |action: &Action| {
        let Action { app, sandbox, kind, reasons, changes, steps, blocked } = action;
        let steps: Vec<_> = steps.iter().map(Step::name).collect();
        hash(&(app, sandbox, kind, reasons, changes, steps, blocked))
    };
    let actions: Vec<_> = actions.iter().map(|of| action(of)).collect();
    PlanId(digest(&(parent, revision, observation, entropy.0, actions, held, unchanged.len())).0)
}

/// The digest of anything, hashed as it is written: nothing large is ever in memory as text.
fn digest(value: &impl Serialize) -> SpecDigest {
    SpecDigest(hex(&hash(value)))
}

fn hash(value: &impl Serialize) -> Hash {
    let mut hash = BufWriter::with_capacity(1 << 12, Hasher(Sha256::new()));
    serde_json::to_writer(&mut hash, value).expect("hashing cannot fail, and all keys are text");
    let Hasher(hash) = hash.into_inner().map_err(io::IntoInnerError::into_error).expect("hashing cannot fail");
    hash.finalize().into()
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
