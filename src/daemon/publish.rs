//! Turns each pass into what is served of it: a snapshot for the API, routes for the ingress, events for the store. Only what the
//! pass may show otherwise than the one before is made anew.

use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use setpoint_schema::app::Power;
use setpoint_schema::name::AppKey;
use setpoint_schema::observed::{GuestState, ObservedSandbox};
use setpoint_state::EventRecord;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::api::Snapshot;
use crate::converge::Pass;
use crate::converge::step::Hands;
use crate::idle::Uses;
use crate::ingress::{self, Naming, Routes, Upstream};
use crate::ledger::Ledger;
use crate::metrics::{Metrics, Stage};
use crate::report::chain;
use crate::status::{Changes, Identity, Names, Report, Reporter, Tracker, View};

mod rest;

/// Publishes passes.
pub(super) struct Publisher {
    reporter: Reporter,
    tracker: Tracker,
    naming: Naming,
    snapshots: watch::Sender<Option<Arc<Snapshot>>>,
    routes: watch::Sender<Arc<Routes>>,
    ledger: Ledger,
    metrics: Metrics,
    uses: Uses,
}

impl Publisher {
    /// Publishes to these; `earlier` is what earlier daemons announced, oldest first.
    pub fn new(
        identity: Identity,
        earlier: &[EventRecord],
        snapshots: watch::Sender<Option<Arc<Snapshot>>>,
        routes: watch::Sender<Arc<Routes>>,
        hands: Hands,
    ) -> Self {
        let Hands { ledger, metrics, uses, .. } = hands;
        let naming =
            Naming { domain: identity.domain.clone(), pattern: setpoint_schema::project::HostPattern::default() };
        let (reporter, tracker) = (Reporter::new(identity, earlier), Tracker::default());
        Self { reporter, tracker, naming, snapshots, routes, ledger, metrics, uses }
    }

    /// Publishes every pass until `shutdown`.
    pub async fn run(mut self, mut passes: watch::Receiver<Option<Arc<Pass>>>, shutdown: CancellationToken) {
        let mut until = None;
        loop {
            // Either way the newest pass is told; one that time alone changes the report of is told again, as of then.
            let later = tokio::select! {
                () = shutdown.cancelled() => return,
                changed = passes.changed() => match changed {
                    Ok(()) => None,
                    Err(_) => return,
                },
                () = sleep_until(until) => Some(Timestamp::now()),
            };
            let pass = passes.borrow_and_update().clone();
            if let Some(pass) = pass {
                let now = later.map_or(pass.at, |later| later.max(pass.at));
                let metrics = self.metrics.clone();
                until = metrics.timed(Stage::Publish, self.publish(&pass, now)).await;
            }
        }
    }

    async fn publish(&mut self, pass: &Arc<Pass>, now: Timestamp) -> Option<Timestamp> {
        let changes = self.tracker.advance(pass);
        let view = self.tracker.view(pass);
        self.naming.pattern = pass.followed.project.hosts.pattern.clone();
        let routes = Arc::new(reroute(&self.routes.borrow(), &self.naming, &view, &changes));
        let Report { snapshot, events, until } = self.reporter.report(&view, &changes, &self.naming, &routes, now);
        self.routes.send_replace(routes);
        rest::tell(&self.uses, &view, &changes);
        self.snapshots.send_if_modified(|current| {
            let says_more = current.as_ref().is_none_or(|current| !current.says_as_much_as(&snapshot));
            *current = Some(snapshot);
            // Who waits for news is not woken for none.
            says_more
        });
        if !events.is_empty()
            && let Err(error) = self.ledger.note(events, |_| Vec::new()).await
        {
            tracing::error!(error = %chain(&error), "events could not be recorded");
        }
        until
    }
}

/// Where each app can be reached, if it answers. One that is not declared any more is served for as long as it is kept: what keeps
/// it may be an error in the declarations, which must not take it away.
fn reroute(before: &Routes, naming: &Naming, view: &View<'_>, changes: &Changes) -> Routes {
    match changes.names {
        Names::Same => before.with(changes.apps.iter().filter_map(|key| Some((key.clone(), upstream(view, key)?)))),
        Names::Changed => {
            let apps = view.apps().filter_map(|key| Some((view.shown(key)?, upstream(view, key)?)));
            ingress::routes(apps, naming)
        }
    }
}

/// The guest of an app that is shown.
fn upstream(view: &View<'_>, key: &AppKey) -> Option<Upstream> {
    let app = view.shown(key)?;
    match view.power(key, app) {
        (Power::Running, _) => {}
        (Power::Paused, _) => return Some(Upstream::Asleep),
        (Power::Stopped, Some(held)) if held.is_idle() => return Some(Upstream::Asleep),
        (Power::Stopped, _) => return Some(Upstream::NotReady("it is stopped".to_owned())),
    }
    let not_ready = |why: &str| Upstream::NotReady(why.to_owned());
    let of = |sandbox: &ObservedSandbox| match &sandbox.guest {
        GuestState::Answering(guest) => match guest.unserved_for(&app.spec) {
            None => Upstream::Ready(sandbox.record.id.clone()),
            Some(reason) => Upstream::NotReady(reason),
        },
        GuestState::Connecting { .. } => not_ready("the microVM is booting"),
        GuestState::Silent { since } => Upstream::NotReady(format!("the guest has been silent since {since:.0}")),
        GuestState::Absent => not_ready("the microVM is not running"),
    };
    Some(view.sandbox(key).map_or_else(|| not_ready("there is no microVM yet"), of))
}

async fn sleep_until(at: Option<Timestamp>) {
    match at {
        // The report asks whether the time is over, so it is made just after it.
        Some(at) => {
            let left = Duration::try_from(at.duration_since(Timestamp::now())).unwrap_or_default();
            tokio::time::sleep(left + Duration::from_millis(1)).await;
        }
        None => std::future::pending().await,
    }
}

#[cfg(test)]
mod tests;
