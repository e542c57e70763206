//! `setpoint describe app NAME`: everything that is known of one app, and why it is not as declared.

use std::process::ExitCode;

use jiff::Timestamp;
use setpoint_schema::name::AppKey;
use setpoint_schema::wire::{self, ConditionKind, ConditionStatus};

use super::age::age;
use super::client::{Client, ClientError};
use super::follow::{self, Query};
use super::get::kinds::{Resource as _, event_tone, phase_tone, preview, suspended_here, telling, time};
use super::get::no_such;
use super::output::{self, Form, Object, Output};
use super::style::Tone;
use super::table::{Cell, Column, Page, harmless, table};
use super::{Failure, Server, events, print};
use crate::config::Config;

#[derive(Debug, clap::Args)]
pub struct Args {
    /// What kind of object
    kind: Kind,
    /// Which one, as NAME or TEAM/NAME
    name: AppKey,
    /// Show this many of its newest events
    #[arg(long, default_value_t = 10, value_name = "COUNT")]
    events: usize,
    #[command(flatten)]
    server: Server,
    #[command(flatten)]
    output: Output,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum Kind {
    /// An app, with its microVM and its events
    #[value(alias = "apps")]
    App,
}

pub async fn run(config: Config, args: Args) -> Result<ExitCode, Failure> {
    let client = args.server.client(&config);
    let Kind::App = args.kind;
    let whole = Whole::ask(&client, &args.name, args.events).await?;
    let whole = whole.ok_or_else(|| no_such::<wire::App>(&args.name.to_string()))?;
    match args.output.form {
        Form::Table | Form::Wide => print(&whole.text(args.output.page(), Timestamp::now())),
        Form::Name => print(&format!("{}\n", whole.app.typed.name())),
        Form::Json | Form::Yaml => output::print_document(args.output.form, &whole.document()),
    }
    Ok(ExitCode::SUCCESS)
}

/// An app and what belongs to it.
struct Whole {
    app: Object<wire::App>,
    sandbox: Option<Object<wire::Sandbox>>,
    dependencies: Vec<(AppKey, Option<wire::App>)>,
    events: Vec<Object<wire::Event>>,
}

impl Whole {
    async fn ask(client: &Client, key: &AppKey, newest: usize) -> Result<Option<Self>, ClientError> {
        let Some(app) = app_of(client, key).await? else { return Ok(None) };
        let of_app = Query::default().with("app", &key.to_string());
        let mut sandboxes: Vec<Object<wire::Sandbox>> =
            follow::list(client, wire::Sandbox::PATH, &of_app, None).await?;
        let mut dependencies = Vec::new();
        for on in &app.typed.depends_on {
            let found = app_of(client, on).await?;
            dependencies.push((on.clone(), found.map(|app| app.typed)));
        }
        let mut events = events::of_app(client, key).await?;
        let surplus = events.len().saturating_sub(newest);
        events.drain(..surplus);
        Ok(Some(Self { app, sandbox: sandboxes.pop(), dependencies, events }))
    }

    /// The API's documents of all parts.
    fn document(&self) -> serde_json::Value {
        let events: Vec<_> = self.events.iter().map(|event| &event.document).collect();
        let sandbox = self.sandbox.as_ref().map(|sandbox| &sandbox.document);
        serde_json::json!({ "app": self.app.document, "sandbox": sandbox, "events": events })
    }

    fn text(&self, page: Page, now: Timestamp) -> String {
        let mut text = self.summary(page, now);
        let section = |name: &str, body: &str| {
            let body: String = body.lines().map(|line| format!("  {line}\n")).collect();
            format!("\n{}\n{body}", page.paint.paint(Tone::Heading, name))
        };
        let page = Page { width: page.width.map(|width| width.saturating_sub(2)), ..page };
        text.push_str(&section("Conditions", &conditions(&self.app.typed, page, now)));
        if let Some(sandbox) = &self.sandbox {
            text.push_str(&section("MicroVM", &sandbox_lines(&sandbox.typed, now)));
        }
        text.push_str(&section("Processes", &processes(&self.app.typed, page)));
        if !self.events.is_empty() {
            text.push_str(&section("Events", &event_rows(&self.events, page, now)));
        }
        text
    }

    fn summary(&self, page: Page, now: Timestamp) -> String {
        let app = &self.app.typed;
        let phase = page.paint.paint(phase_tone(app.phase), app.phase.as_str());
        let since = telling(app).map(|condition| format!(", {}", age(condition.since, now))).unwrap_or_default();
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
        lines.add("Phase", &format!("{phase}{since}"));
        lines.add_all("Blocked", &app.blocked.iter().map(|blocker| in_the_way(blocker, now)).collect::<Vec<_>>());
        lines.add_all("Held", &app.held.iter().map(|blocker| in_the_way(blocker, now)).collect::<Vec<_>>());
        if let Some(here) = &app.overridden {
            lines.add("Override", &suspended_here(here, now));
        }
        lines.add_all("Depends on", &self.dependency_lines(page, now));
        lines.add("Template", app.template.as_str());
        lines.add("Resources", &format!("{vcpus} vcpu, {memory} memory, {disk} disk"));
        lines.add("Power", &word(&app.power));
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
            Some(app) => {
                let phase = page.paint.paint(phase_tone(app.phase), app.phase.as_str());
                let since = telling(app).map(|condition| format!(", {}", age(condition.since, now)));
                format!("{key} ({phase}{})", since.unwrap_or_default())
            }
        };
        self.dependencies.iter().map(line).collect()
    }
}

/// What an app waits for, since when, and until when where that is known.
fn in_the_way(blocker: &wire::Blocker, now: Timestamp) -> String {
    let wire::Blocker { reason, on: _, since, until, message } = blocker;
    let until = until.map(|until| format!(", until {}", time(until))).unwrap_or_default();
    format!("{}: {} ({}{until})", reason.as_str(), harmless(message), age(*since, now))
}

/// One app, or none.
async fn app_of(client: &Client, key: &AppKey) -> Result<Option<Object<wire::App>>, ClientError> {
    follow::find(client, &format!("{}/{}/{}", wire::App::PATH, key.team, key.name)).await
}

/// `Name:   value`, values below each other.
#[derive(Default)]
struct Lines {
    text: String,
}

impl Lines {
    fn add(&mut self, name: &str, value: &str) {
        let name = if name.is_empty() { String::new() } else { format!("{name}:") };
        self.text.push_str(format!("{name:<13}{value}").trim_end());
        self.text.push('\n');
    }

    fn add_all(&mut self, name: &str, values: &[String]) {
        for (index, value) in values.iter().enumerate() {
            self.add(if index == 0 { name } else { "" }, value);
        }
    }
}

fn conditions(app: &wire::App, page: Page, now: Timestamp) -> String {
    const COLUMNS: [Column; 5] = [
        Column::new("TYPE"),
        Column::new("STATUS"),
        Column::new("SINCE").at_least(super::age::WIDTH),
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

fn sandbox_lines(sandbox: &wire::Sandbox, now: Timestamp) -> String {
    let mut lines = Lines::default();
    lines.add("ID", sandbox.id.as_str());
    lines.add("Host", &sandbox.host.to_string());
    match &sandbox.vm {
        wire::Vm::Running { nonce, since } => {
            lines.add("State", &format!("running, {}", age(*since, now)));
            lines.add("Boot", nonce.as_str());
        }
        wire::Vm::Exited { reason } => lines.add("State", &format!("exited: {}", harmless(reason))),
        wire::Vm::Absent => lines.add("State", "absent"),
    }
    lines.add("Machine", &format!("{} vcpu, {} memory", sandbox.vcpus, sandbox.memory));
    let disk = sandbox.disk.as_ref();
    lines.add("Disk", &disk.map_or_else(|| "none".to_owned(), |disk| format!("{}, {}", disk.id, disk.size)));
    lines.add("Created", &format!("{} ago", age(sandbox.created_at, now)));
    lines.text
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

fn event_rows(events: &[Object<wire::Event>], page: Page, now: Timestamp) -> String {
    const COLUMNS: [Column; 4] = [
        Column::new("AGE").at_least(super::age::WIDTH),
        Column::new("KIND"),
        Column::new("REASON"),
        Column::new("MESSAGE"),
    ];
    let row = |event: &Object<wire::Event>| {
        let event = &event.typed;
        vec![
            Cell::new(age(event.at, now)),
            Cell::new(&event.kind).tone(event_tone(&event.kind)),
            Cell::new(&event.reason),
            Cell::new(&event.message),
        ]
    };
    table(&COLUMNS, &events.iter().map(row).collect::<Vec<_>>(), page)
}

/// The word that a value has on the wire.
fn word(value: &impl serde::Serialize) -> String {
    serde_json::to_value(value).ok().and_then(|value| value.as_str().map(str::to_owned)).unwrap_or_default()
}
