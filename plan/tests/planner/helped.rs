//! A planner that has help makes the plans that one without help makes, of worlds large enough that help is called.

use std::sync::Arc;
use std::thread;

use setpoint_plan::assumed;
use setpoint_plan::desired::Desired;
use setpoint_plan::planner::{Crew, Entropy, Inputs, Planner, plan, plan_with};
use setpoint_schema::app::{DesiredApp, Power, Retain};
use setpoint_schema::observed::{ExitReason, GuestState, Observed, VmState};

use crate::declare::{Declare, app, days, desired, key};

/// Begins at the end, and does all at once.
struct Everybody;

impl Crew for Everybody {
    fn map<T: Sync, R: Send>(&self, things: &[T], work: impl Fn(&T) -> R + Sync) -> Vec<R> {
        let work = &work;
        thread::scope(|scope| {
            let helpers: Vec<_> = things.iter().rev().map(|thing| scope.spawn(move || work(thing))).collect();
            let mut done: Vec<_> = helpers.into_iter().map(|helper| helper.join().unwrap()).collect();
            done.reverse();
            done
        })
    }
}

const APPS: usize = 700;

fn name(n: usize) -> String {
    format!("app-{n}")
}

fn before(n: usize) -> DesiredApp {
    let app = app(&name(n)).retain(if n.is_multiple_of(2) { days(1) } else { Retain::None });
    if n.is_multiple_of(5) { app.uid(&format!("u{n}")) } else { app }
}

/// Every app as another one of several changes leaves it; none, where it is removed.
fn after(n: usize) -> Option<DesiredApp> {
    Some(match n % 11 {
        0 => before(n).files("f2"),
        1 => before(n).memory(512),
        2 => before(n).template("t2"),
        3 => before(n).depends_on(&[&name((n * 7 + 1) / 11 * 11)]),
        4 => before(n).power(Power::Stopped),
        5 => before(n).spec(|spec| spec.suspend = true),
        6 => return None,
        _ => before(n),
    })
}

/// Every thirteenth guest has trouble of some kind, one in forty has left its disk alone.
fn happen(observed: &mut Observed) {
    for (n, sandbox) in observed.sandboxes.values_mut().enumerate() {
        let sandbox = Arc::make_mut(sandbox);
        match n % 39 {
            0 => sandbox.vm = VmState::Exited { reason: ExitReason::Reset },
            13 => sandbox.guest = GuestState::Silent { since: assumed::NOW },
            26 => Arc::make_mut(&mut sandbox.record).applied = None,
            _ => {}
        }
    }
    let lost: Vec<_> = observed.sandboxes.keys().step_by(40).cloned().collect();
    for id in lost {
        observed.sandboxes.remove(&id);
    }
}

fn inputs<'a>(desired: &'a Desired, observed: &'a Observed) -> Inputs<'a> {
    Inputs { desired, observed, parent: None, now: assumed::NOW, entropy: Entropy([3; 16]) }
}

#[test]
fn help_changes_no_plan() {
    let (older, newer) = (desired((0..APPS).map(before)), desired((0..APPS).filter_map(after)));
    let converged = assumed::carried_out(&older);
    let mut troubled = converged.clone();
    happen(&mut troubled);
    let mut planner = Planner::new();
    for (desired, observed) in [
        (&newer, &assumed::nothing()),
        (&older, &converged),
        (&newer, &converged),
        (&newer, &troubled),
        (&older, &troubled),
    ] {
        let inputs = inputs(desired, observed);
        let alone = plan(&inputs);
        assert_eq!(plan_with(&inputs, &Everybody), alone);
        assert_eq!(planner.plan_with(&inputs, &Everybody), alone);
    }
    let kinds = plan(&inputs(&newer, &troubled)).actions.iter().map(|action| action.kind).collect::<Vec<_>>();
    assert!(kinds.len() > APPS / 3 && !kinds.contains(&setpoint_plan::model::ActionKind::Adopt), "{kinds:?}");
}

#[test]
fn what_is_read_anew_and_equal_is_as_declared() {
    let older = desired((0..APPS).map(before));
    let observed = assumed::carried_out(&older);
    let again = |app: &DesiredApp| serde_json::from_str::<DesiredApp>(&serde_json::to_string(app).unwrap()).unwrap();
    let anew =
        Desired { apps: older.apps.iter().map(|(key, app)| (key.clone(), Arc::new(again(app)))).collect(), ..older };
    let plan = plan(&inputs(&anew, &observed));
    assert!(plan.is_empty() && plan.held.is_empty() && plan.unchanged.contains(&key(&name(1))), "{plan:#?}");
}
