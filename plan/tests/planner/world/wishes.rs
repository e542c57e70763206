//! What people on the host, requests and idleness ask for: it is written into the records as the daemon does.

use std::collections::BTreeSet;
use std::sync::Arc;

use setpoint_plan::model::{Action, ActionKind, Reason, Step};
use setpoint_schema::app::Power;
use setpoint_schema::id::{Generation, SnapshotId};
use setpoint_schema::name::AppKey;
use setpoint_schema::observed::{
    AppRecord, ExitReason, ObservedSandbox, PowerCause, PowerOverride, SnapshotCause, SnapshotRecord, SnapshotState,
    VmState,
};
use setpoint_schema::power::IdleAction;
use setpoint_schema::snapshot::{Content, default_retain};

use super::World;

impl World {
    /// Somebody on this host asks for a snapshot.
    pub fn ask_for_snapshot(&mut self, id: &str, name: &str, of: &AppKey, content: Content) {
        let record = SnapshotRecord {
            id: SnapshotId(id.to_owned()),
            key: name.parse().unwrap(),
            app: of.clone(),
            generation: Generation(1),
            cause: SnapshotCause::Asked { by: "uid 1000".to_owned() },
            content,
            exclude: BTreeSet::new(),
            retain: default_retain(),
            moment: None,
            state: SnapshotState::Wanted { since: self.now },
        };
        self.observed.snapshots.insert(record.id.clone(), Arc::new(record));
    }

    /// Nobody has used an app that rests by itself; nothing happens to one that does not, or that does not run.
    pub fn let_rest(&mut self, app: &AppKey) {
        let since = self.now;
        let Some(spec) = self.desired.apps.get(app).map(|app| app.spec.app.power.clone()) else { return };
        let Some(rule) = spec.idle.as_ref() else { return };
        let state = match rule.action {
            IdleAction::Pause => Power::Paused,
            IdleAction::Stop => Power::Stopped,
        };
        let runs = self.sandboxes_of(app).any(|sandbox| matches!(sandbox.vm, VmState::Running { .. }));
        let memory = self.memory(app);
        if runs && memory.power_here(spec.state) == Power::Running {
            self.put_power(app, Some(state), PowerCause::Idle { since });
        }
    }

    /// A request for an app, or somebody here, wants it to run: also the boot that could not go on before, where somebody says so.
    pub fn wake(&mut self, app: &AppKey, cause: PowerCause) {
        let Some(declared) = self.desired.apps.get(app).map(|app| app.spec.app.power.state) else { return };
        if matches!(cause, PowerCause::Asked { .. }) {
            let faulty = self.sandboxes_of(app).find_map(|sandbox| match &sandbox.vm {
                VmState::Paused { nonce, fault: Some(_), .. } => Some(nonce.clone()),
                _ => None,
            });
            let memory = self.memory(app);
            *memory = memory.with_usage(|usage| usage.again = faulty.or(usage.again.take()));
        }
        if declared != Power::Stopped && self.memory(app).power_here(declared) != Power::Running {
            self.put_power(app, Some(Power::Running), cause);
        }
    }

    /// This holds from now on, or what is declared where nothing is said or the same.
    pub fn put_power(&mut self, app: &AppKey, state: Option<Power>, cause: PowerCause) {
        let declared = self.desired.apps[app].spec.app.power.state;
        let held = state.map(|state| PowerOverride { state, declared, since: self.now, cause });
        let lifts = held.clone().filter(|held| held.state == declared && declared == Power::Running);
        let memory = self.memory(app);
        *memory = AppRecord {
            power: held.filter(|held| held.state != declared),
            ..memory.with_usage(|usage| usage.woken = lifts)
        };
    }

    /// Which boot an action is about to shut down though its app is declared to run.
    pub(super) fn note_stop(&mut self, action: &Action) {
        let is_here = action.reasons.iter().any(|reason| matches!(reason, Reason::PowerHere(_)));
        let Some(sandbox) = self.observed.sandboxes.get(&action.sandbox) else { return };
        if !is_here || action.kind != ActionKind::Stop || !self.observed.apps.contains_key(&action.app) {
            return;
        }
        let resumed = action.steps.iter().find_map(|step| match step {
            Step::Resume(machine) => Some(&machine.nonce),
            _ => None,
        });
        let nonce = resumed.unwrap_or(&sandbox.record.machine.nonce).clone();
        self.rested.insert(action.sandbox.clone(), nonce.clone());
        let memory = self.memory(&action.app);
        *memory = memory.with_usage(|usage| usage.stopped = Some(nonce));
    }

    /// What came to rest on purpose is not taken for an accident.
    pub(super) fn assert_no_accident(&self, action: &Action) {
        let is_down = |reason: &Reason| matches!(reason, Reason::VmDown(_));
        let rested = self.rested.get(&action.sandbox);
        let is_that_boot =
            |sandbox: &&Arc<ObservedSandbox>| rested == Some(&sandbox.record.machine.nonce) && self.ended_well(sandbox);
        let sandbox = self.observed.sandboxes.get(&action.sandbox).filter(is_that_boot);
        assert!(sandbox.is_none() || !action.reasons.iter().any(is_down), "{action:#?}");
    }

    fn ended_well(&self, sandbox: &ObservedSandbox) -> bool {
        matches!(&sandbox.vm, VmState::Exited { reason: ExitReason::Shutdown })
    }

    fn sandboxes_of(&self, app: &AppKey) -> impl Iterator<Item = &Arc<ObservedSandbox>> {
        self.observed.sandboxes.values().filter(move |sandbox| sandbox.record.app == *app)
    }
}
