//! Tells who uses apps and puts them to rest how each is: which rest by themselves, and which have come to rest.

use setpoint_schema::app::Power;
use setpoint_schema::name::AppKey;
use setpoint_schema::observed::{BuildState, GuestState, ObservedSandbox, VmState};

use crate::idle::{Rule, Situation, Uses, Work};
use crate::status::{Changes, View};

/// Tells of the apps that may be otherwise than before. The routes say so by now.
pub(super) fn tell(uses: &Uses, view: &View<'_>, changes: &Changes) {
    for key in &changes.apps {
        uses.note(key, situation(view, key));
        if is_at_rest(view, key) {
            uses.unhush(key);
        }
    }
}

/// How an app is that runs and rests by itself.
fn situation(view: &View<'_>, key: &AppKey) -> Option<Situation> {
    let app = view.shown(key)?;
    let spec = app.spec.app.power.idle.as_ref().filter(|_| !app.spec.app.suspend)?;
    let record = view.record(key).filter(|record| record.suspended.is_none())?;
    let sandbox = view.sandbox(key)?;
    let VmState::Running { since, .. } = sandbox.vm else { return None };
    let runs = view.power(key, app).0 == Power::Running;
    let usage = record.usage();
    runs.then(|| Situation {
        sandbox: sandbox.record.id.clone(),
        rule: Rule::new(spec, &usage.wakes),
        since,
        used: usage.used,
        keepalive: usage.keepalive.as_ref().map(|keepalive| keepalive.until),
        work: if view.is_busy(key) || is_building(sandbox) { Work::Goes } else { Work::Rests },
    })
}

fn is_building(sandbox: &ObservedSandbox) -> bool {
    match &sandbox.guest {
        GuestState::Answering(guest) => guest.build == BuildState::Running,
        GuestState::Absent | GuestState::Connecting { .. } | GuestState::Silent { .. } => false,
    }
}

/// Whether nothing puts an app to rest any more, and it is no longer routed to as if it ran.
fn is_at_rest(view: &View<'_>, key: &AppKey) -> bool {
    let Some(app) = view.shown(key) else { return true };
    let runs = view.sandbox(key).is_some_and(|sandbox| matches!(sandbox.vm, VmState::Running { .. }));
    !view.is_busy(key) && (view.power(key, app).0 != Power::Running || !runs)
}
