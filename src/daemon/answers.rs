//! Answers what the API and the ingress ask beyond the snapshot: from the store, the planner and the guests.

use std::collections::BTreeSet;
use std::pin::Pin;
use std::sync::Arc;

use async_trait::async_trait;
use axum::body::Bytes;
use futures_util::StreamExt as _;
use setpoint_plan::render::{Basis, Review, json};
use setpoint_schema::id::SandboxId;
use setpoint_schema::name::AppKey;
use setpoint_schema::wire;
use setpoint_state::{EventId, EventRecord, RevisionOutcome, RevisionRecord};
use setpoint_vmm::driver::{Duplex, Guest, VmmError};
use tokio::sync::watch;

use crate::api::{Backend, BackendError, Follow, LogStream, Snapshot};
use crate::config::Config;
use crate::converge::Pass;
use crate::converge::step::Hands;
use crate::ingress::{ConnectError, Connector};
use crate::metrics::World;
use crate::power::{Answer, PowerSwitch, Wanted};
use crate::preview;
use crate::report::chain;
use crate::source::{Repository, SourceError};
use crate::task::reading;
use setpoint_schema::observed::PowerCause;

pub(super) struct Answers {
    hands: Hands,
    passes: watch::Receiver<Option<Arc<Pass>>>,
    snapshots: watch::Receiver<Option<Arc<Snapshot>>>,
    config: watch::Receiver<Arc<Config>>,
}

impl Answers {
    pub fn new(
        hands: &Hands,
        passes: watch::Receiver<Option<Arc<Pass>>>,
        snapshots: watch::Receiver<Option<Arc<Snapshot>>>,
        config: watch::Receiver<Arc<Config>>,
    ) -> Self {
        Self { hands: hands.clone(), passes, snapshots, config }
    }

    fn pass(&self) -> Result<Arc<Pass>, BackendError> {
        let none = || BackendError::Unavailable("the daemon has not looked around yet".to_owned());
        self.passes.borrow().clone().ok_or_else(none)
    }

    /// The agent of an app's sandbox.
    fn agent(&self, app: &AppKey) -> Result<Arc<dyn Guest>, BackendError> {
        let pass = self.pass()?;
        let sandbox = pass.observed.sandboxes.values().find(|sandbox| sandbox.record.app == *app);
        let sandbox = sandbox.ok_or_else(|| BackendError::NotFound(format!("app {app} has no microVM")))?;
        let silent = || BackendError::Unavailable(format!("the guest of {app} does not answer"));
        self.hands.observer.view(&sandbox.record.id).agent.ok_or_else(silent)
    }
}

#[async_trait]
impl Backend for Answers {
    fn events(&self, after: Option<&str>, limit: usize) -> Result<Vec<wire::Event>, BackendError> {
        let bad = |_| BackendError::BadParameter { parameter: "cursor", detail: "not the id of an event".to_owned() };
        let after = after.map(str::parse::<EventId>).transpose().map_err(bad)?;
        let events = self.hands.ledger.blocking(|store| store.events_after(after.as_ref(), limit));
        Ok(events.map_err(|error| failed("read events", error))?.into_iter().map(event).collect())
    }

    fn revisions(&self, after: Option<&str>, limit: usize) -> Result<Vec<wire::Revision>, BackendError> {
        let revisions = self.hands.ledger.blocking(|store| store.revisions(None, usize::MAX));
        let revisions = revisions.map_err(|error| failed("read revisions", error))?;
        let mut seen = BTreeSet::new();
        let newest =
            revisions.into_iter().map(|(_, record)| record).filter(|record| seen.insert(record.commit.clone()));
        let older = newest.skip_while(|record| after.is_some_and(|after| record.commit.as_str() != after));
        Ok(older.skip(usize::from(after.is_some())).take(limit).map(revision).collect())
    }

    fn history(&self) -> watch::Receiver<u64> {
        self.hands.ledger.history()
    }

    async fn plan(&self, rev: Option<&str>) -> Result<serde_json::Value, BackendError> {
        let pass = self.pass()?;
        let Some(rev) = rev else {
            let plan = preview::plan_of(&pass.followed.plannable(), &pass.observed);
            return Ok(json(Review { plan: &plan, basis: Basis::World, mistakes: &pass.followed.diagnostics }));
        };
        let rev = rev.to_owned();
        let remembered = pass.observed.apps.clone();
        let load = move |source: &Repository| {
            let commit = source.resolve(&rev)?;
            preview::loader().load(source, &commit, &remembered)
        };
        let loaded = reading(&self.hands.source, load).await;
        let loaded = loaded.map_err(|error| match error {
            SourceError::UnknownRevision { .. } => BackendError::NotFound(error.to_string()),
            other => failed("read the revision", other),
        })?;
        let plan = preview::plan_of(&loaded.desired, &pass.observed);
        Ok(json(Review { plan: &plan, basis: Basis::World, mistakes: &loaded.diagnostics }))
    }

    fn observed(&self) -> Result<serde_json::Value, BackendError> {
        serde_json::to_value(&self.pass()?.observed).map_err(|error| failed("write out what is observed", error))
    }

    fn settings(&self) -> Result<wire::Settings, BackendError> {
        Ok(self.config.borrow().settings(self.pass()?.observed.limits))
    }

    fn metrics(&self) -> String {
        let pass = self.passes.borrow().clone();
        let apps = self.snapshots.borrow().as_ref().map(|snapshot| snapshot.status.value().apps).unwrap_or_default();
        let store = self.config.borrow().store_dir();
        let world = pass.as_ref().map(|pass| World { pass, apps, store: &store });
        self.hands.metrics.scrape(world.as_ref())
    }

    fn answered(&self, route: &'static str, status: u16) {
        self.hands.metrics.api_answer(route, status);
    }

    async fn logs(&self, app: &AppKey, process: &str, tail: u32, follow: Follow) -> Result<LogStream, BackendError> {
        let agent = self.agent(app)?;
        let follow = matches!(follow, Follow::Yes);
        let logs = agent.logs(process, tail, follow).await.map_err(|error| BackendError::NotFound(chain(&error)))?;
        // Whoever watches an app uses it.
        let using = if follow { self.hands.uses.begin(app) } else { None };
        let piece = move |piece: Result<Vec<u8>, VmmError>| {
            let _ = &using;
            piece.map(Bytes::from).map_err(|error| failed("read the log", error))
        };
        Ok(logs.map(piece).boxed())
    }
}

#[async_trait]
impl Connector for Answers {
    async fn open(&self, sandbox: &SandboxId, port: u16) -> Result<Pin<Box<dyn Duplex>>, ConnectError> {
        let agent = self.hands.observer.view(sandbox).agent;
        let agent = agent.ok_or_else(|| ConnectError("its agent does not answer".to_owned()))?;
        Ok(agent.open_port(port).await?)
    }

    async fn wake(&self, app: &AppKey) {
        let switch = PowerSwitch { ledger: self.hands.ledger.clone(), observer: self.hands.observer.clone() };
        match switch.ask(app, Wanted::Running, PowerCause::Request).await {
            Ok(Answer::Changed(_) | Answer::AlreadySo(_)) => {}
            Ok(refused @ (Answer::Refused(_) | Answer::Unknown)) => {
                tracing::warn!(%app, ?refused, "a request could not wake it");
            }
            Err(error) => tracing::error!(%app, error = %chain(&error), "a request could not wake it"),
        }
    }
}

fn failed(operation: &'static str, error: impl std::error::Error + Send + Sync + 'static) -> BackendError {
    BackendError::Failed { operation, source: Box::new(error) }
}

fn event(record: EventRecord) -> wire::Event {
    let EventRecord { id, at, app, sandbox, kind, reason, message } = record;
    // The kind is written as it is stored, so that both forms are one list of words.
    wire::Event { id: id.to_string(), at, kind: kind.word(), app, sandbox, reason, message }
}

fn revision(record: RevisionRecord) -> wire::Revision {
    let RevisionRecord { commit, attempted_at, applied_at, outcome, duration_ms, summary, done } = record;
    let duration_ms = (outcome != RevisionOutcome::Applying).then_some(duration_ms);
    let (state, message) = match outcome {
        RevisionOutcome::Applying => (wire::RevisionState::Attempted, summary),
        RevisionOutcome::Applied => (wire::RevisionState::Applied, summary),
        RevisionOutcome::Stalled(why) => (wire::RevisionState::Stalled, why),
        RevisionOutcome::Failed(why) | RevisionOutcome::Refused(why) => (wire::RevisionState::Failed, why),
        RevisionOutcome::Superseded(by) => (wire::RevisionState::Superseded, format!("{} took its place", by.short())),
    };
    wire::Revision { commit, state, message, attempted_at, applied_at, duration_ms, actions: done }
}
