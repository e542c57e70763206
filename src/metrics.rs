//! What the daemon counts about itself, written out for Prometheus at `/metrics` in the OpenMetrics format.
//!
//! The loop, the follower and the listeners hold a [`Metrics`] and count into it as they go, which costs an atomic or two. What is
//! a state rather than a count (phases, queues, sizes) is read off the newest [`World`] when somebody asks. No label has values
//! that grow with what is declared: apps are in the status API.

mod process;
mod world;

use std::sync::Arc;
use std::time::{Duration, Instant};

use prometheus_client::encoding::{EncodeLabelValue, LabelValueEncoder, text};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use prometheus_client::metrics::info::Info;
use prometheus_client::registry::{Registry, Unit};
use setpoint_plan::model::ActionKind;

use crate::converge::execute::Outcome;
use crate::http::Traffic;
use process::Process;
pub use world::World;
use world::WorldGauges;

/// The content type of what [`Metrics::scrape`] writes.
pub const CONTENT_TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// Counts; clones share them.
#[derive(Clone, Default)]
pub struct Metrics(Arc<Inner>);

type Label<const N: usize> = [(&'static str, String); N];
type Histograms = Family<Label<1>, Histogram, fn() -> Histogram>;

struct Inner {
    registry: Registry,
    passes: Histogram,
    stages: Histograms,
    steps: Histograms,
    actions: Family<Label<2>, Counter>,
    errors: Family<Label<1>, Counter>,
    api_answers: Family<[(&'static str, AnswerLabel); 2], Counter>,
    connections: Connections,
    world: WorldGauges,
    process: Process,
}

/// One for each kind of listener.
struct Connections {
    api: Traffic,
    ingress: Traffic,
}

/// A label of an answer of the status API: those are counted by the ten thousand, so that no text is made for it.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
enum AnswerLabel {
    Route(&'static str),
    Status(u16),
}

impl EncodeLabelValue for AnswerLabel {
    fn encode(&self, encoder: &mut LabelValueEncoder<'_>) -> std::fmt::Result {
        match self {
            Self::Route(route) => route.encode(encoder),
            Self::Status(status) => status.encode(encoder),
        }
    }
}

/// The stages from a tip to what is published.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stage {
    /// Asking the repository for the branch's tip, objects included.
    Fetch,
    /// Reading, parsing and rendering a revision.
    Load,
    /// Asking what the microVMs do.
    Observe,
    /// Making a plan.
    Plan,
    /// Starting what the plan says.
    Dispatch,
    /// Making status, routes and events of a pass.
    Publish,
}

impl Stage {
    const fn as_str(self) -> &'static str {
        match self {
            Self::Fetch => "fetch",
            Self::Load => "load",
            Self::Observe => "observe",
            Self::Plan => "plan",
            Self::Dispatch => "dispatch",
            Self::Publish => "publish",
        }
    }
}

impl Metrics {
    /// Everything as it is now. May block: sizes are asked of the file system.
    #[must_use]
    pub fn scrape(&self, world: Option<&World<'_>>) -> String {
        let Self(inner) = self;
        inner.process.look();
        if let Some(world) = world {
            inner.world.look(world);
        }
        let mut text = String::new();
        text::encode(&mut text, &inner.registry).expect("writing to a string does not fail");
        text
    }

    /// Counts what `work` takes as one run of `stage`.
    pub async fn timed<W: Future>(&self, stage: Stage, work: W) -> W::Output {
        let began = Instant::now();
        let done = work.await;
        self.stage(stage, began.elapsed());
        done
    }

    /// One run of a stage.
    pub fn stage(&self, stage: Stage, took: Duration) {
        self.0.stages.get_or_create(&[("stage", stage.as_str().to_owned())]).observe(took.as_secs_f64());
    }

    /// One pass of the loop.
    pub fn pass(&self, took: Duration) {
        self.0.passes.observe(took.as_secs_f64());
    }

    /// One step of an action, however it ended.
    pub fn step(&self, step: &'static str, took: Duration) {
        self.0.steps.get_or_create(&[("step", step.to_owned())]).observe(took.as_secs_f64());
    }

    /// An action came to its end.
    pub fn action(&self, kind: &ActionKind, outcome: &Outcome) {
        let outcome = match outcome {
            Outcome::Done => "done",
            Outcome::Superseded => "superseded",
            Outcome::Failed { step, reason: _ } => {
                self.error(step);
                "failed"
            }
        };
        self.0.actions.get_or_create(&[("kind", kind_word(kind).to_owned()), ("outcome", outcome.to_owned())]).inc();
    }

    /// Something failed, in a stage of following or in a step.
    pub fn error(&self, stage: &'static str) {
        self.0.errors.get_or_create(&[("stage", stage.to_owned())]).inc();
    }

    /// The branch's tip was seen.
    pub fn tip(&self, commit: &setpoint_schema::id::CommitId) {
        self.0.world.tip(commit);
    }

    /// The status API answered: by the route's template, never by the path that was asked for.
    pub fn api_answer(&self, route: &'static str, status: u16) {
        let labels = [("route", AnswerLabel::Route(route)), ("status", AnswerLabel::Status(status))];
        self.0.api_answers.get_or_create(&labels).inc();
    }

    /// The counts of the API's listeners.
    #[must_use]
    pub fn api_traffic(&self) -> Traffic {
        self.0.connections.api.clone()
    }

    /// The counts of the ingress.
    #[must_use]
    pub fn ingress_traffic(&self) -> Traffic {
        self.0.connections.ingress.clone()
    }
}

impl Default for Inner {
    fn default() -> Self {
        let mut root = Registry::default();
        let process = Process::register(&mut root);
        let registry = root.sub_registry_with_prefix("setpoint");
        registry.register(
            "build",
            "The daemon's version",
            Info::new(vec![("version", env!("CARGO_PKG_VERSION").to_owned())]),
        );
        let passes = Histogram::new(buckets());
        registry.register_with_unit("pass_duration", "Passes of the loop", Unit::Seconds, passes.clone());
        let stages = histograms(registry, "stage_duration", "Stages from a tip to what is published");
        let steps = histograms(registry, "step_duration", "Steps of actions, however they ended");
        let actions = Family::default();
        registry.register("actions", "Actions that came to an end, by kind and outcome", actions.clone());
        let errors = Family::default();
        registry.register("errors", "Failures, by the stage or step that failed", errors.clone());
        let api_answers = Family::default();
        registry.register("api_answers", "Answers of the status API, by route and status", api_answers.clone());
        let connections = Connections::register(registry);
        let world = WorldGauges::register(registry);
        Self { passes, stages, steps, actions, errors, api_answers, connections, world, process, registry: root }
    }
}

impl Connections {
    fn register(registry: &mut Registry) -> Self {
        let open = Family::<Label<1>, prometheus_client::metrics::gauge::Gauge>::default();
        let refused = Family::<Label<1>, Counter>::default();
        let answers = Family::<Label<2>, Counter>::default();
        registry.register("open_connections", "Open connections, tunnels included", open.clone());
        registry.register("refused_connections", "Connections of peers that had too many in use", refused.clone());
        registry.register("http_answers", "Answers, by the first digit of their status", answers.clone());
        let of = |listener: &str| Traffic {
            open: open.get_or_create_owned(&[("listener", listener.to_owned())]),
            refused: refused.get_or_create_owned(&[("listener", listener.to_owned())]),
            answers: Traffic::CLASSES.map(|class| {
                answers.get_or_create_owned(&[("listener", listener.to_owned()), ("status", class.to_owned())])
            }),
        };
        Self { api: of("api"), ingress: of("ingress") }
    }
}

fn histograms(registry: &mut Registry, name: &str, help: &str) -> Histograms {
    let family: Histograms = Family::new_with_constructor(|| Histogram::new(buckets()));
    registry.register_with_unit(name, help, Unit::Seconds, family.clone());
    family
}

/// From half a millisecond, which an idle pass takes, to two minutes, which a boot under emulation may.
fn buckets() -> impl Iterator<Item = f64> {
    exponential_buckets(0.0005, 4.0, 10)
}

fn kind_word(kind: &ActionKind) -> &'static str {
    match kind {
        ActionKind::Create => "create",
        ActionKind::Adopt => "adopt",
        ActionKind::Update(_) => "update",
        ActionKind::Reboot => "reboot",
        ActionKind::Replace => "replace",
        ActionKind::Stop => "stop",
        ActionKind::Pause => "pause",
        ActionKind::Resume => "resume",
        ActionKind::Delete => "delete",
        ActionKind::ExpireDisk => "expire_disk",
        ActionKind::Snapshot => "snapshot",
        ActionKind::ExpireSnapshot => "expire_snapshot",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_fresh_scrape_is_open_metrics_with_base_units() {
        let metrics = Metrics::default();
        metrics.stage(Stage::Plan, Duration::from_millis(2));
        metrics.action(&ActionKind::Create, &Outcome::Failed { step: "launch", reason: "no".to_owned() });
        metrics.api_answer("/v1/apps", 304);
        let text = metrics.scrape(None);
        for line in [
            "setpoint_build_info{version=\"",
            "setpoint_stage_duration_seconds_bucket{le=\"0.002\",stage=\"plan\"} 1",
            "setpoint_actions_total{kind=\"create\",outcome=\"failed\"} 1",
            "setpoint_errors_total{stage=\"launch\"} 1",
            "setpoint_api_answers_total{route=\"/v1/apps\",status=\"304\"} 1",
            "setpoint_open_connections{listener=\"ingress\"} 0",
            "process_resident_memory_bytes ",
        ] {
            assert!(text.contains(line), "{line} is not in\n{text}");
        }
        assert!(text.ends_with("# EOF\n"));
    }
}
