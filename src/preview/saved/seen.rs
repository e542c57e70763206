//! What of an observation a plan rests on: for each app what there is and how it is, without the times and counts that pass
//! by themselves. Two of them differ where somebody has to look again.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use setpoint_schema::id::SpecDigest;
use setpoint_schema::observed::{
    AppRecord, DiskState, GuestState, GuestStatus, Machine, Observed, ObservedSandbox, SnapshotState, VmState,
};

/// What was seen, by app, by thing: a few words and, where those cannot tell it all, a digest.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(transparent)]
pub(super) struct Seen(BTreeMap<String, BTreeMap<String, String>>);

impl Seen {
    pub fn of(observed: &Observed) -> Self {
        let Observed { host: _, limits: _, sandboxes, unrecorded, disks, apps, snapshots } = observed;
        let mut seen = Self::default();
        for sandbox in sandboxes.values() {
            let ObservedSandbox { record, vm, guest } = &**sandbox;
            let (app, id) = (record.app.to_string(), &record.id);
            seen.note(&app, format!("microVM {id}"), state_of(vm));
            seen.note(&app, format!("guest of {id}"), answer_of(guest));
            seen.note(&app, format!("record of {id}"), digest(record));
        }
        for machine in unrecorded {
            let Machine { sandbox, app, .. } = machine;
            seen.note(&app.to_string(), format!("unrecorded microVM {sandbox}"), digest(machine));
        }
        for disk in disks.values() {
            let state = match &disk.state {
                DiskState::InUse => format!("{}, in use", disk.size),
                DiskState::Retained { until } => format!("{}, kept until {until:.0}", disk.size),
            };
            seen.note(&disk.app.to_string(), format!("disk {}", disk.id), state);
        }
        for record in apps.values() {
            let AppRecord {
                key,
                generation,
                digest: _,
                last_good: _,
                retry,
                heals,
                repeats: _,
                suspended,
                power,
                restored,
                usage: _,
            } = &**record;
            let trouble = format!("{} failures, {} heals", retry.failures, heals.len());
            if let Some(suspension) = suspended {
                seen.note(&key.to_string(), "suspension".to_owned(), format!("by {}", suspension.by));
            }
            if let Some(held) = power {
                seen.note(&key.to_string(), "power here".to_owned(), format!("{:?}", held.state).to_lowercase());
            }
            if let Some(token) = restored.last() {
                seen.note(&key.to_string(), "last restore".to_owned(), format!("of token {token}"));
            }
            seen.note(&key.to_string(), "history".to_owned(), format!("generation {generation}, {trouble}"));
        }
        for record in snapshots.values() {
            let state = match &record.state {
                SnapshotState::Wanted { since: _ } => "to be taken",
                SnapshotState::Failed { .. } => "failed",
                SnapshotState::Kept(_) => "there",
                SnapshotState::Retained { .. } => "retained",
                SnapshotState::Leaving => "being removed",
            };
            seen.note(&record.app.to_string(), format!("snapshot {} {}", record.key, record.id), state.to_owned());
        }
        seen
    }

    /// What is otherwise in `now`, one sentence each.
    pub fn moved(&self, now: &Self) -> Vec<String> {
        let nothing = BTreeMap::new();
        let apps: std::collections::BTreeSet<_> = self.0.keys().chain(now.0.keys()).collect();
        let mut moved = Vec::new();
        for app in apps {
            let (before, after) = (self.0.get(app).unwrap_or(&nothing), now.0.get(app).unwrap_or(&nothing));
            let things: std::collections::BTreeSet<_> = before.keys().chain(after.keys()).collect();
            for thing in things {
                match (before.get(thing), after.get(thing)) {
                    (Some(old), Some(new)) if old == new => {}
                    (Some(old), Some(new)) => moved.push(format!("{app}: {thing} was {old}, and is {new}")),
                    (Some(_), None) => moved.push(format!("{app}: {thing} is gone")),
                    (None, Some(_)) => moved.push(format!("{app}: {thing} is new")),
                    (None, None) => {}
                }
            }
        }
        moved
    }

    fn note(&mut self, app: &str, thing: String, state: String) {
        self.0.entry(app.to_owned()).or_default().insert(thing, state);
    }
}

fn state_of(vm: &VmState) -> String {
    match vm {
        VmState::Absent => "absent".to_owned(),
        VmState::Exited { reason } => format!("ended ({reason:?})"),
        VmState::Paused { nonce, since: _, bytes: _, fault } => {
            let boot: String = nonce.as_str().chars().take(8).collect();
            let fault = fault.as_ref().map(|fault| format!(", and cannot go on: {fault}")).unwrap_or_default();
            format!("paused in boot {boot}{fault}")
        }
        VmState::Running { nonce, since: _ } => {
            format!("running in boot {}", nonce.as_str().chars().take(8).collect::<String>())
        }
    }
}

fn answer_of(guest: &GuestState) -> String {
    match guest {
        GuestState::Absent => "absent".to_owned(),
        GuestState::Connecting { since: _ } => "not answering yet".to_owned(),
        GuestState::Silent { since: _ } => "silent".to_owned(),
        GuestState::Answering(status) => {
            let GuestStatus { nonce, tree, processes, build: _, web: _, workers: _, disk } = &**status;
            let health = if status.unready().is_none() { "well" } else { "not well" };
            format!("answering and {health} ({})", digest(&(nonce, tree, processes, disk)))
        }
    }
}

/// As many digits as tell two apart.
fn digest(value: &impl Serialize) -> String {
    SpecDigest::of(value).as_str().chars().take(12).collect()
}
