//! One app: its conditions, what blocks it, its microVM, its processes and its newest events.

use jiff::Timestamp;
use setpoint_schema::name::AppKey;
use setpoint_schema::wire::{self, ConditionKind, ConditionStatus};

use super::{Lines, Whole, event_rows, newest, phase, sandbox, section, within_section};
use crate::cli::age::{self, age};
use crate::cli::client::{Client, ClientError};
use crate::cli::events;
use crate::cli::follow::{self, Query};
use crate::cli::get::kinds::{Resource as _, next_rest, path_of_app, preview, suspended_here, time};
use crate::cli::output::Object;
use crate::cli::style::Tone;
use crate::cli::table::{Cell, Column, Page, harmless, table};

/// An app and what belongs to it.
pub(super) struct WholeApp {
    app: Object<wire::App>,
    sandbox: Option<Object<wire::Sandbox>>,
    dependencies: Vec<(AppKey, Option<wire::App>)>,
    events: Vec<Object<wire::Event>>,
}

impl WholeApp {
    pub(super) async fn ask(client: &Client, key: &AppKey, count: usize) -> Result<Option<Self>, ClientError> {
        let Some(app) = app_of(client, key).await? else { return Ok(None) };
        let mut sandboxes: Vec<Object<wire::Sandbox>> =
            follow::list(client, wire::Sandbox::PATH, &Query::of_app(key), None).await?;
        let mut dependencies = Vec::new();
        for on in &app.typed.depends_on {
            let found = app_of(client, on).await?;
            dependencies.push((on.clone(), found.map(|app| app.typed)));
        }
        let events = newest(events::of_app(client, key).await?, count);
        Ok(Some(Self { app, sandbox: sandboxes.pop(), dependencies, events }))
    }

    fn summary(&self, page: Page, now: Timestamp) -> String {
        let app = &self.app.typed;
        let wire::Resources { vcpus, memory, disk } = app.resources;
        let labels: Vec<_> = app.labels.iter().map(|(name, value)| format!("{name}={value}")).collect();
        let short = |commit: &Option<setpoint_schema::id::CommitId>| {
            commit.as_ref().map_or_else(|| "none".to_owned(), |commit| commit.short().to_owned())
        };
        let observed = app.observed_generation.map_or_else(|| "none".to_owned(), |generation| generation.to_string());
        let mut lines = Lines::default();
        lines.add("Name", app.name.as_str());
        lines.add("Team", app.team.as_str());
        lines.add_all("Labels", &labels);
        lines.add("Phase", &phase(app, page, now));
        lines.add_all("Blocked", &app.blocked.iter().map(|blocker| in_the_way(blocker, now)).collect::<Vec<_>>());
        lines.add_all("Held", &app.held.iter().map(|blocker| in_the_way(blocker, now)).collect::<Vec<_>>());
        if let Some(here) = &app.overridden {
            lines.add("Override", &suspended_here(here, now));
        }
        lines.add_all("Depends on", &self.dependency_lines(page, now));
        lines.add_all("Began from", &app.from.iter().map(|from| origin(from, now)).collect::<Vec<_>>());
        lines.add_all(
            "Restored",
            &app.restored.iter().map(|restored| self::restored(restored, now)).collect::<Vec<_>>(),
        );
        lines.add("Template", app.template.as_str());
        lines.add("Resources", &format!("{vcpus} vcpu, {memory} memory, {disk} disk"));
        lines.add("Power", &power(app, now));
        lines.add_all("Idle", &idle(app, now).into_iter().collect::<Vec<_>>());
        lines.add_all("Keepalive", &keepalive(app, now).into_iter().collect::<Vec<_>>());
        let (applied, attempted) = (short(&app.last_applied_revision), short(&app.last_attempted_revision));
        lines.add("Revision", &format!("{applied} applied, {attempted} attempted"));
        lines.add("Generation", &format!("{} declared, {observed} observed", app.generation));
        lines.add("Preview", preview(app.preview));
        lines.add_all("URLs", &app.urls);
        let missing = app.urls_missing.iter().map(|missing| format!("{}: {}", missing.host, harmless(&missing.reason)));
        lines.add_all("Not served", &missing.collect::<Vec<_>>());
        lines.text
    }

    fn dependency_lines(&self, page: Page, now: Timestamp) -> Vec<String> {
        let line = |(key, app): &(AppKey, Option<wire::App>)| match app {
            None => format!("{key} ({})", page.paint.paint(Tone::Bad, "not there")),
            Some(app) => format!("{key} ({})", phase(app, page, now)),
        };
        self.dependencies.iter().map(line).collect()
    }
}

impl Whole for WholeApp {
    fn name(&self) -> String {
        self.app.typed.name()
    }

    fn document(&self) -> serde_json::Value {
        let events: Vec<_> = self.events.iter().map(|event| &event.document).collect();
        let sandbox = self.sandbox.as_ref().map(|sandbox| &sandbox.document);
        serde_json::json!({ "app": self.app.document, "sandbox": sandbox, "events": events })
    }

    fn text(&self, page: Page, now: Timestamp) -> String {
        let mut text = self.summary(page, now);
        let inner = within_section(page);
        text.push_str(&section("Conditions", &conditions(&self.app.typed, inner, now), page));
        if let Some(sandbox) = &self.sandbox {
            text.push_str(&section("MicroVM", &sandbox::lines(&sandbox.typed, now), page));
        }
        text.push_str(&section("Processes", &processes(&self.app.typed, inner), page));
        if !self.events.is_empty() {
            text.push_str(&section("Events", &event_rows(&self.events, inner, now), page));
        }
        text
    }
}

/// The moment that its state began as.
fn origin(origin: &wire::Origin, now: Timestamp) -> String {
    let wire::Origin { app, snapshot: _, generation: _, id: _, taken_at, at } = origin;
    format!("{} of {app}, taken at {taken_at:.0}; {} ago", origin.name(), age(*at, now))
}

/// The restore that its state is from.
fn restored(restored: &wire::Restored, now: Timestamp) -> String {
    let wire::Restored { token, from, safety } = restored;
    let safety = safety.as_ref().map(|safety| format!(", what was there before is snapshot {safety}"));
    format!("{}, token {}{}", origin(from, now), harmless(token), safety.unwrap_or_default())
}

/// What an app waits for, since when, and until when where that is known.
fn in_the_way(blocker: &wire::Blocker, now: Timestamp) -> String {
    let wire::Blocker { reason, on: _, since, until, message } = blocker;
    let until = until.map(|until| format!(", until {}", time(until))).unwrap_or_default();
    format!("{}: {} ({}{until})", reason.as_str(), harmless(message), age(*since, now))
}

/// One app, or none.
async fn app_of(client: &Client, key: &AppKey) -> Result<Option<Object<wire::App>>, ClientError> {
    follow::find(client, &path_of_app(key)).await
}

fn conditions(app: &wire::App, page: Page, now: Timestamp) -> String {
    const COLUMNS: [Column; 5] = [
        Column::new("TYPE"),
        Column::new("STATUS"),
        Column::new("SINCE").at_least(age::WIDTH),
        Column::new("REASON"),
        Column::new("MESSAGE"),
    ];
    let row = |condition: &wire::Condition| {
        let (kind, good) = match condition.kind {
            ConditionKind::Ready => ("Ready", ConditionStatus::True),
            ConditionKind::Reconciling => ("Reconciling", ConditionStatus::False),
            ConditionKind::Stalled => ("Stalled", ConditionStatus::False),
        };
        let status = match condition.status {
            ConditionStatus::True => "True",
            ConditionStatus::False => "False",
            ConditionStatus::Unknown => "Unknown",
        };
        let tone = if condition.status == good { Tone::Good } else { Tone::Busy };
        vec![
            Cell::new(kind),
            Cell::new(status).tone(tone),
            Cell::new(age(condition.since, now)),
            Cell::new(&condition.reason),
            Cell::new(&condition.message),
        ]
    };
    // Messages are the point of this verb: they are whole.
    table(&COLUMNS, &app.conditions.iter().map(row).collect::<Vec<_>>(), page.endless())
}

fn processes(app: &wire::App, page: Page) -> String {
    const COLUMNS: [Column; 4] =
        [Column::new("NAME"), Column::new("STATE"), Column::new("RESTARTS"), Column::new("MESSAGE")];
    let mut rows = Vec::new();
    let (state, tone, message) = match &app.build {
        wire::Build::None => ("none", Tone::Quiet, ""),
        wire::Build::Skipped => ("skipped", Tone::Quiet, ""),
        wire::Build::Running => ("running", Tone::Busy, ""),
        wire::Build::Passed => ("passed", Tone::Good, ""),
        wire::Build::Failed { reason } => ("failed", Tone::Bad, reason.as_str()),
    };
    rows.push(vec![Cell::new("build"), Cell::new(state).tone(tone), Cell::new("-"), Cell::new(message)]);
    if let Some(web) = &app.web {
        let health = match &web.health {
            wire::WebHealth::Unknown => "not asked for its health yet".to_owned(),
            wire::WebHealth::Healthy => "healthy".to_owned(),
            wire::WebHealth::Unhealthy { reason } => format!("health: {reason}"),
        };
        rows.push(process("web", &web.process, &health));
    }
    rows.extend(app.workers.iter().map(|worker| process(worker.name.as_str(), &worker.process, "")));
    table(&COLUMNS, &rows, page.endless())
}

fn process(name: &str, process: &wire::Process, more: &str) -> Vec<Cell> {
    let (state, tone, message) = match process {
        wire::Process::Stopped => ("stopped", Tone::Quiet, more),
        wire::Process::Running { .. } => ("running", Tone::Good, more),
        wire::Process::Backoff { reason, .. } => ("backoff", Tone::Busy, reason.as_str()),
        wire::Process::GaveUp { reason } => ("gave up", Tone::Bad, reason.as_str()),
    };
    let restarts = process.restarts().to_string();
    vec![Cell::new(name), Cell::new(state).tone(tone), Cell::new(restarts), Cell::new(message)]
}

/// The word that a value has on the wire.
fn word(value: &impl serde::Serialize) -> String {
    serde_json::to_value(value).ok().and_then(|value| value.as_str().map(str::to_owned)).unwrap_or_default()
}

/// When it rests for want of use.
fn idle(app: &wire::App, now: Timestamp) -> Option<String> {
    let wire::Idle { after, waits, action, since, due: _ } = app.idle.as_deref()?;
    let rule = if waits == after {
        format!("{} after {after}", action.as_str())
    } else {
        format!("{} after {waits} for now, declared {after}", action.as_str())
    };
    let unused = since.map(|since| format!("; not used for {}", age(since, now))).unwrap_or_default();
    let next = next_rest(app, now).map(|next| format!(", {next} unless it is")).unwrap_or_default();
    Some(format!("{rule}{unused}{next}"))
}

/// What keeps it from that.
fn keepalive(app: &wire::App, now: Timestamp) -> Option<String> {
    let wire::Keepalive { until, by } = app.keepalive.as_deref().filter(|keepalive| keepalive.until > now)?;
    Some(format!("for {} more, until {until:.0}: asked for by {by}", age(now, *until)))
}

/// The declared power, and what holds here in its place.
fn power(app: &wire::App, now: Timestamp) -> String {
    let declared = word(&app.power);
    let Some(here) = &app.power_here else { return declared };
    let why = match (&here.cause, &here.by) {
        (_, Some(by)) => format!("asked for by {by}"),
        (wire::PowerCause::Idle, None) => "nobody used it".to_owned(),
        (wire::PowerCause::Request | wire::PowerCause::Asked, None) => "a request came for it".to_owned(),
    };
    format!("declared {declared}, {} here for {}: {why}", word(&here.state), age(here.since, now))
}
