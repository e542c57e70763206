//! What a pass knows of one app, and what follows from that: its phase, whether it is ready, why not.

use jiff::Timestamp;
use setpoint_plan::model::{Action, ActionKind, Block, Hold};
use setpoint_schema::app::{DesiredApp, Power};
use setpoint_schema::id::CommitId;
use setpoint_schema::observed::{
    AppRecord, GuestState, GuestStatus, Health, ObservedSandbox, OriginRestore, PowerCause, PowerOverride, VmState,
};
use setpoint_schema::power::WakeOn;
use setpoint_schema::quantity::Span;
use setpoint_schema::runtime;
use setpoint_schema::wire::{self, Phase};

use crate::idle;

/// Everything that a pass knows of one app.
#[derive(Clone, Copy)]
pub(super) struct AppFacts<'a> {
    /// As it is declared, or was last.
    pub declared: &'a DesiredApp,
    /// The mistakes in its newest declaration.
    pub stalled: Option<&'a str>,
    pub record: Option<&'a AppRecord>,
    pub sandbox: Option<&'a ObservedSandbox>,
    pub action: Option<&'a Action>,
    pub held: Option<&'a Hold>,
    pub busy: Busy,
    /// How it was said to be last.
    pub before: Before,
    /// The newest revision that was tried.
    pub attempted: Option<&'a CommitId>,
}

/// Whether an app is being worked on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Busy {
    Yes,
    No,
}

/// Whether an app was ready when that was looked at last.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Before {
    Ready,
    Unready,
}

impl<'a> AppFacts<'a> {
    pub fn guest(&self) -> Option<&'a GuestStatus> {
        match &self.sandbox?.guest {
            GuestState::Answering(status) => Some(status),
            GuestState::Absent | GuestState::Connecting { .. } | GuestState::Silent { .. } => None,
        }
    }

    pub fn blocked(&self) -> &'a [Block] {
        self.action.map_or(&[], |action| &action.blocked)
    }

    /// What somebody on this host has set over the declaration, maybe under an earlier name.
    pub fn overridden(&self) -> Option<wire::Override> {
        let recorded = self.record.and_then(|record| record.suspended.as_ref()).map(Into::into);
        recorded.or_else(|| match self.held? {
            Hold::SuspendedHere(suspension) => Some(suspension.into()),
            Hold::Suspended
            | Hold::PruneDisabled
            | Hold::PruneUnsafe(_)
            | Hold::Stalled(_)
            | Hold::Unready(_)
            | Hold::Unresumable(_) => None,
        })
    }

    pub fn phase(&self) -> Phase {
        let deleting = self.action.is_some_and(|action| action.kind == ActionKind::Delete);
        match (self.busy, self.action, self.held) {
            (_, Some(_), _) if deleting => Phase::Deleting,
            (Busy::Yes, _, _) => Phase::Reconciling,
            _ if self.stalled.is_some() => Phase::Stalled,
            (Busy::No, Some(action), _) if !action.blocked.is_empty() => Phase::Blocked,
            (Busy::No, Some(action), _) if action.kind == ActionKind::Create => Phase::Pending,
            (Busy::No, Some(_), _) => Phase::Reconciling,
            (Busy::No, None, Some(Hold::Suspended | Hold::SuspendedHere(_))) => Phase::Suspended,
            (Busy::No, None, Some(Hold::Stalled(_) | Hold::Unresumable(_))) => Phase::Stalled,
            (Busy::No, None, Some(Hold::Unready(_))) => Phase::Unready,
            (Busy::No, None, Some(Hold::PruneDisabled | Hold::PruneUnsafe(_)) | None) => self.settled_phase(),
        }
    }

    /// What holds in place of the declared power.
    pub fn power_here(&self) -> Option<&'a PowerOverride> {
        self.record?.power_over(self.declared.spec.app.power.state)
    }

    /// How its resting by itself stands.
    pub fn idle(&self) -> Option<wire::Idle> {
        let spec = self.declared.spec.app.power.idle.as_ref()?;
        let usage = self.record?.usage();
        let waits = idle::patience(spec.after, &usage.wakes);
        let running = match self.sandbox.map(|sandbox| &sandbox.vm) {
            Some(VmState::Running { since, .. }) if self.power() == Power::Running => Some(*since),
            Some(VmState::Running { .. } | VmState::Absent | VmState::Exited { .. } | VmState::Paused { .. })
            | None => None,
        };
        let in_use = running.map(|since| usage.used.map_or(since, |used| used.max(since)));
        let at_rest = self.power_here().and_then(|held| match held.cause {
            PowerCause::Idle { since } => Some(since),
            PowerCause::Asked { .. } | PowerCause::Request => None,
        });
        let due = in_use.filter(|_| self.busy == Busy::No).and_then(|since| since.checked_add(waits).ok());
        let kept = usage.keepalive.as_ref().map_or(Timestamp::MIN, |keepalive| keepalive.until);
        Some(wire::Idle {
            after: spec.after,
            waits: Span::millis(u64::try_from(waits.as_millis()).unwrap_or(u64::MAX)),
            action: spec.action,
            since: in_use.or(at_rest),
            due: due.map(|due| due.max(kept)),
        })
    }

    /// What its state began as, unless a restore has replaced that.
    pub fn from(&self) -> Option<wire::Origin> {
        let origin = self.sandbox?.record.origin.as_deref()?;
        origin.restore.is_none().then(|| origin.into())
    }

    /// The restore that its state is from, once it is carried out.
    pub fn restored(&self) -> Option<wire::Restored> {
        let record = &self.sandbox?.record;
        record.applied.as_ref()?;
        let origin = record.origin.as_deref()?;
        let OriginRestore { token, safety } = origin.restore.as_ref()?;
        Some(wire::Restored { token: token.clone(), from: origin.into(), safety: safety.clone() })
    }

    /// What keeps it from resting by itself.
    pub fn keepalive(&self) -> Option<wire::Keepalive> {
        self.record?.usage().keepalive.as_ref().map(Into::into)
    }

    /// How often it was woken lately, if it sleeps and wakes in a loop.
    pub fn looping_wakes(&self) -> Option<usize> {
        let wakes = &self.record?.usage().wakes;
        idle::wakes_often(wakes).then_some(wakes.len())
    }

    fn power(&self) -> Power {
        self.power_here().map_or(self.declared.spec.app.power.state, |held| held.state)
    }

    fn settled_phase(&self) -> Phase {
        match self.power() {
            Power::Paused => Phase::Paused,
            Power::Stopped => Phase::Stopped,
            Power::Running if self.is_ready() => Phase::Ready,
            Power::Running => Phase::Unready,
        }
    }

    /// This generation is carried out, and the agent of the running boot says that all is up. Work makes an app ready with its
    /// end: until then nobody has been told that it was done.
    pub fn is_ready(&self) -> bool {
        let may_be = match (self.busy, self.before) {
            (Busy::No, _) | (Busy::Yes, Before::Ready) => true,
            (Busy::Yes, Before::Unready) => false,
        };
        may_be && self.is_carried_out() && self.guest().is_some_and(|guest| self.is_well(guest))
    }

    fn is_well(&self, guest: &GuestStatus) -> bool {
        guest.unready_for(&self.declared.spec).is_none()
    }

    fn is_carried_out(&self) -> bool {
        let applied = self.sandbox.and_then(|sandbox| sandbox.record.applied.as_ref());
        applied.is_some_and(|applied| applied.spec == self.declared.spec)
    }

    /// Whether the guest of a finished app runs and has not been asked yet: so nobody knows how the app is.
    pub fn is_unasked(&self) -> bool {
        let connecting = |sandbox: &ObservedSandbox| {
            matches!(sandbox.vm, VmState::Running { .. }) && matches!(sandbox.guest, GuestState::Connecting { .. })
        };
        self.is_carried_out() && self.busy == Busy::No && self.sandbox.is_some_and(connecting)
    }

    /// Why it is not ready, in a word for programs and a sentence for people.
    pub fn unready(&self) -> (&'static str, String) {
        match (self.sandbox, self.guest()) {
            (None, _) => ("NoSandbox", "there is no microVM yet".to_owned()),
            (Some(sandbox), None) => match (&sandbox.vm, &sandbox.guest) {
                (VmState::Absent, _) => ("VmAbsent", "the microVM is not started".to_owned()),
                (VmState::Exited { .. }, _) => ("VmExited", "the microVM has ended".to_owned()),
                (VmState::Paused { fault: None, .. }, _) => ("Paused", "the microVM is paused".to_owned()),
                (VmState::Paused { fault: Some(fault), .. }, _) => {
                    ("Unresumable", format!("the microVM is paused and cannot go on: {fault}"))
                }
                (VmState::Running { .. }, GuestState::Silent { since }) => {
                    ("AgentSilent", format!("the agent has been silent since {since:.0}"))
                }
                (VmState::Running { .. }, _) => ("Booting", "the microVM is booting".to_owned()),
            },
            (Some(_), Some(guest)) => match guest.unready_for(&self.declared.spec) {
                Some(reason) => ("NotHealthy", reason),
                None if self.is_carried_out() => ("NotFinished", "its last step is being finished".to_owned()),
                None => ("NotApplied", "the newest declaration is not carried out yet".to_owned()),
            },
        }
    }

    /// What the ingress does: an app that only waits to be changed is served as it was.
    pub fn preview(&self) -> wire::Preview {
        let web = self.guest().and_then(|guest| guest.web.as_ref());
        let is_starting = self.busy == Busy::Yes || web.is_some_and(|web| web.health == Health::Unknown);
        let is_served = self.guest().is_some_and(|guest| guest.unserved_for(&self.declared.spec).is_none());
        match self.declared.spec.runtime().preview() {
            runtime::Preview::None => wire::Preview::None,
            runtime::Preview::Web if is_served => wire::Preview::Up,
            runtime::Preview::Web => match (self.power(), self.power_here(), is_starting) {
                (Power::Running, _, true) => wire::Preview::Starting,
                (Power::Running, _, false) => wire::Preview::Down,
                (Power::Paused, _, _) => self.asleep(),
                (Power::Stopped, Some(held), _) if held.is_idle() => self.asleep(),
                (Power::Stopped, _, _) => wire::Preview::Off,
            },
        }
    }

    fn asleep(&self) -> wire::Preview {
        match self.declared.spec.app.wake.on {
            WakeOn::Request => wire::Preview::Asleep,
            WakeOn::Manual => wire::Preview::Off,
        }
    }

    /// The revision that last declared it otherwise than before; the newest one, while that has mistakes in it.
    pub fn attempted_revision(&self) -> Option<CommitId> {
        match (self.stalled, self.record) {
            (Some(_), _) => self.attempted.cloned(),
            (None, Some(record)) => Some(record.last_good.revision.clone()),
            (None, None) => None,
        }
    }
}

/// How often any of the guest's processes has started again.
pub(super) fn restarts(guest: &GuestStatus) -> u32 {
    let workers = guest.workers.iter().map(|worker| wire::Process::from(&worker.process).restarts());
    let web = guest.web.iter().map(|web| wire::Process::from(&web.process).restarts());
    workers.chain(web).fold(0, u32::saturating_add)
}
