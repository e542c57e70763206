//! What one cold start spent its time on, by the daemon's own records.

use std::fs;
use std::time::Duration;

use jiff::Timestamp;
use setpoint_state::{EventKind, JournalEvent, Store};

use crate::figures::processor_time;
use crate::host::Host;

/// Consecutive parts of one cold start.
#[derive(Debug, Clone)]
pub struct Stages {
    pub noticed: Duration,
    pub planned: Duration,
    pub launched: Duration,
    pub agent: Duration,
    pub synced: Duration,
    pub applied: Duration,
    pub served: Duration,
    /// What QEMU used of processors for all of it.
    pub processor: Duration,
}

impl Stages {
    /// Reads the journal for when each step of `app` ended, and the microVM's directory for when QEMU was started.
    pub fn of(host: &Host, app: &str, begun: Timestamp, served: Timestamp) -> Self {
        let processor = processor_time(host.qemu_pids()[0]);
        let store = Store::snapshot_read(&host.state().join("store")).unwrap();
        let events = store.events_after(None, usize::MAX).unwrap();
        let noticed = events.iter().rfind(|event| event.kind == EventKind::RevisionAttempted).unwrap().at;
        let journal = store.journal(usize::MAX).unwrap();
        let begin = |step: &str| {
            let of_app = journal.iter().filter_map(|(_, record)| match &record.event {
                JournalEvent::Begun(entry) if entry.app.name.as_str() == app => Some(entry),
                JournalEvent::Begun(_) | JournalEvent::Ended { .. } => None,
            });
            of_app.into_iter().find(|entry| entry.step == step).unwrap_or_else(|| panic!("no step {step}"))
        };
        let end = |step: &str| {
            let seq = begin(step).seq;
            let ended = journal
                .iter()
                .find(|(_, record)| matches!(&record.event, JournalEvent::Ended { begun, .. } if *begun == seq));
            ended.unwrap_or_else(|| panic!("{step} has not ended")).1.at
        };
        let marks = [
            begun,
            noticed,
            begin("record").began_at,
            vmm_started(host),
            end("await-agent"),
            end("sync-files"),
            end("apply-processes"),
            served,
        ];
        let [noticed, planned, launched, agent, synced, applied, served] = std::array::from_fn(|at| {
            marks[at + 1].duration_since(marks[at]).max(jiff::SignedDuration::ZERO).unsigned_abs()
        });
        Self { noticed, planned, launched, agent, synced, applied, served, processor }
    }

    /// From the agent's answer to the page.
    pub fn agent_to_served(&self) -> Duration {
        self.synced + self.applied + self.served
    }

    /// All of it.
    pub fn whole(&self) -> Duration {
        self.noticed + self.planned + self.launched + self.agent + self.agent_to_served()
    }
}

/// When the only microVM's QEMU was started.
fn vmm_started(host: &Host) -> Timestamp {
    let files = crate::host::find(&host.state().join("vmm/vms"), "process.json");
    let record: serde_json::Value = serde_json::from_slice(&fs::read(&files[0]).unwrap()).unwrap();
    record["since"].as_str().unwrap().parse().unwrap()
}
