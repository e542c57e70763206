//! What each kind of object looks like in a table, and where the API has it.

use jiff::Timestamp;
use serde::de::DeserializeOwned;
use setpoint_schema::app::Power;
use setpoint_schema::name::{AppKey, Team};
use setpoint_schema::wire::{self, ConditionKind, Phase, RevisionState};

use crate::cli::age::{self, age};
use crate::cli::follow::Query;
use crate::cli::get::Wanted;
use crate::cli::select::Traits;
use crate::cli::style::Tone;
use crate::cli::table::{Cell, Column};

/// A kind of object that the API lists.
pub trait Resource: DeserializeOwned + Clone + Send + 'static {
    /// Where the list is.
    const PATH: &'static str;
    /// One of them, in words.
    const ONE: &'static str;
    /// The columns of its table; the name stands first.
    const COLUMNS: &'static [Column];
    /// The index of the column that says how it is.
    const STATE: usize = 1;

    /// What it is called in lists.
    fn name(&self) -> String;

    /// Whether `name`, as somebody typed it, means this object.
    fn answers_to(&self, name: &str) -> bool {
        self.name() == name
    }

    /// The path of one object, where the API has one for a name.
    fn path_of(_name: &str) -> Option<String> {
        None
    }

    /// What the API is asked for, as far as it can choose.
    fn query(_wanted: &Wanted) -> Query {
        Query::default()
    }

    /// What it can be chosen by.
    fn traits(&self) -> Traits<'_> {
        Traits::default()
    }

    /// What objects of this kind can be chosen by: the parts that are there are those that count.
    fn kind_traits() -> Traits<'static> {
        Traits::default()
    }

    /// A cell for every column.
    fn cells(&self, now: Timestamp) -> Vec<Cell>;
}

impl Resource for wire::App {
    const PATH: &'static str = "/v1/apps";
    const ONE: &'static str = "app";
    const COLUMNS: &'static [Column] = &[
        Column::new("NAME"),
        Column::new("PHASE").at_least("reconciling".len()),
        Column::new("READY"),
        Column::new("SINCE").at_least(age::WIDTH),
        Column::new("PREVIEW").at_least("starting".len()),
        Column::new("URL"),
        Column::wide("TEMPLATE"),
        Column::wide("VCPUS"),
        Column::wide("MEMORY"),
        Column::wide("DISK"),
        Column::wide("SANDBOX"),
        Column::wide("REVISION"),
        Column::wide("RESTARTS"),
        Column::wide("POWER"),
        Column::wide("IDLE"),
        Column::wide("NEXT"),
        Column::new("MESSAGE"),
    ];

    fn name(&self) -> String {
        self.key().to_string()
    }

    fn answers_to(&self, name: &str) -> bool {
        name.parse().is_ok_and(|key: AppKey| key == self.key())
    }

    fn path_of(name: &str) -> Option<String> {
        Some(path_of_app(&name.parse().ok()?))
    }

    fn query(wanted: &Wanted) -> Query {
        wanted.selection.query()
    }

    fn traits(&self) -> Traits<'_> {
        Traits { team: Some(&self.team), labels: Some(&self.labels), phase: Some(self.phase) }
    }

    fn kind_traits() -> Traits<'static> {
        Traits { team: Some(any_team()), labels: Some(no_labels()), phase: Some(Phase::Ready) }
    }

    fn cells(&self, now: Timestamp) -> Vec<Cell> {
        let wire::Resources { vcpus, memory, disk } = self.resources;
        let (since, message) =
            telling(self).map_or((None, ""), |condition| (Some(age(condition.since, now)), &*condition.message));
        vec![
            Cell::new(self.name()),
            Cell::new(self.phase.as_str()).tone(phase_tone(self.phase)),
            Cell::new(if self.ready { "yes" } else { "no" }),
            Cell::or_dash(since),
            Cell::new(preview(self.preview)),
            Cell::or_dash(self.urls.first()),
            Cell::new(self.template.as_str()),
            Cell::new(vcpus.to_string()),
            Cell::new(memory.to_string()),
            Cell::new(disk.to_string()),
            Cell::or_dash(self.sandbox.as_ref().map(ToString::to_string)),
            Cell::or_dash(self.last_applied_revision.as_ref().map(|commit| commit.short())),
            Cell::new(self.restarts.to_string()),
            Cell::new(power_state(self)),
            Cell::or_dash(self.idle.as_ref().and_then(|idle| idle.since).map(|since| age(since, now))),
            Cell::or_dash(next_rest(self, now)),
            Cell::new(match &self.overridden {
                Some(here) => suspended_here(here, now),
                None if has_news(self.phase) => message.to_owned(),
                None => String::new(),
            }),
        ]
    }
}

/// Where the API has one app.
#[must_use]
pub fn path_of_app(AppKey { team, name }: &AppKey) -> String {
    format!("{}/{team}/{name}", wire::App::PATH)
}

/// The condition that says most about an app.
#[must_use]
pub fn telling(app: &wire::App) -> Option<&wire::Condition> {
    let kind = match app.phase {
        Phase::Stalled => ConditionKind::Stalled,
        Phase::Ready | Phase::Paused | Phase::Stopped | Phase::Suspended | Phase::Unready => ConditionKind::Ready,
        Phase::Pending | Phase::Blocked | Phase::Reconciling | Phase::Deleting => ConditionKind::Reconciling,
    };
    app.conditions.iter().find(|condition| condition.kind == kind)
}

/// The power state that an app is to be in.
fn power_state(app: &wire::App) -> &'static str {
    match app.power_here.as_ref().map_or(app.power, |here| here.state) {
        Power::Running => "running",
        Power::Paused => "paused",
        Power::Stopped => "stopped",
    }
}

/// What becomes of an app if nobody uses it, and when.
#[must_use]
pub fn next_rest(app: &wire::App, now: Timestamp) -> Option<String> {
    let idle = app.idle.as_deref()?;
    Some(format!("{} in {}", idle.action.as_str(), age(now, idle.due?)))
}

/// What somebody has set on the host, against the declaration.
#[must_use]
pub fn suspended_here(here: &wire::Override, now: Timestamp) -> String {
    format!("suspended here by {}, {} ago", here.by, age(here.suspended_since, now))
}

/// Whether there is more to say than the phase.
const fn has_news(phase: Phase) -> bool {
    match phase {
        Phase::Ready | Phase::Paused | Phase::Stopped | Phase::Suspended => false,
        Phase::Pending | Phase::Blocked | Phase::Reconciling | Phase::Deleting | Phase::Unready | Phase::Stalled => {
            true
        }
    }
}

/// How a phase is coloured.
#[must_use]
pub const fn phase_tone(phase: Phase) -> Tone {
    match phase {
        Phase::Ready => Tone::Good,
        Phase::Pending | Phase::Blocked | Phase::Reconciling | Phase::Deleting => Tone::Busy,
        Phase::Unready | Phase::Stalled => Tone::Bad,
        Phase::Paused | Phase::Stopped | Phase::Suspended => Tone::Quiet,
    }
}

/// The word for a preview.
#[must_use]
pub const fn preview(preview: wire::Preview) -> &'static str {
    match preview {
        wire::Preview::None => "none",
        wire::Preview::Starting => "starting",
        wire::Preview::Up => "up",
        wire::Preview::Asleep => "asleep",
        wire::Preview::Off => "off",
        wire::Preview::Down => "down",
    }
}

impl Resource for wire::Sandbox {
    const PATH: &'static str = "/v1/sandboxes";
    const ONE: &'static str = "sandbox";
    const STATE: usize = 2;
    const COLUMNS: &'static [Column] = &[
        Column::new("ID"),
        Column::new("APP"),
        Column::new("VM").at_least("running".len()),
        Column::new("VCPUS"),
        Column::new("MEMORY"),
        Column::new("DISK"),
        Column::new("AGE").at_least(age::WIDTH),
        Column::new("BOOT").at_least(8),
        Column::wide("HOST"),
        Column::wide("DISK-ID"),
        Column::wide("MESSAGE"),
    ];

    fn name(&self) -> String {
        self.id.to_string()
    }

    fn answers_to(&self, name: &str) -> bool {
        self.name() == name || name.parse().is_ok_and(|key: AppKey| key == self.app)
    }

    fn traits(&self) -> Traits<'_> {
        Traits { team: Some(&self.app.team), ..Traits::default() }
    }

    fn kind_traits() -> Traits<'static> {
        Traits { team: Some(any_team()), ..Traits::default() }
    }

    fn cells(&self, now: Timestamp) -> Vec<Cell> {
        let (tone, boot, message) = match &self.vm {
            wire::Vm::Running { nonce, since } => {
                let boot: String = nonce.as_str().chars().take(8).collect();
                (Tone::Good, Some(boot), format!("up {}", age(*since, now)))
            }
            wire::Vm::Absent => (Tone::Quiet, None, String::new()),
            wire::Vm::Paused { since, .. } => (Tone::Quiet, None, format!("paused {}", age(*since, now))),
            wire::Vm::Exited { reason } => (Tone::Bad, None, reason.clone()),
        };
        vec![
            Cell::new(self.name()),
            Cell::new(self.app.to_string()),
            Cell::new(self.vm.as_str()).tone(tone),
            Cell::new(self.vcpus.to_string()),
            Cell::new(self.memory.to_string()),
            Cell::or_dash(self.disk.as_ref().map(|disk| disk.size.to_string())),
            Cell::new(age(self.created_at, now)),
            Cell::or_dash(boot),
            Cell::new(self.host.to_string()),
            Cell::or_dash(self.disk.as_ref().map(|disk| disk.id.to_string())),
            Cell::new(message),
        ]
    }
}

impl Resource for wire::Template {
    const PATH: &'static str = "/v1/templates";
    const ONE: &'static str = "template";
    const COLUMNS: &'static [Column] =
        &[Column::new("NAME"), Column::new("ROOT"), Column::new("APPS"), Column::new("DIGEST"), Column::wide("PATH")];

    fn name(&self) -> String {
        self.name.to_string()
    }

    fn cells(&self, _now: Timestamp) -> Vec<Cell> {
        let (root, path) = match &self.root {
            None => (None, None),
            Some(wire::TemplateRoot::Minimal) => (Some("minimal"), None),
            Some(wire::TemplateRoot::RepoRootfs { path }) => (Some("repository"), Some(path)),
            Some(wire::TemplateRoot::HostRootfs { path }) => (Some("host"), Some(path)),
        };
        let digest: String = self.digest.to_string().chars().take(12).collect();
        vec![
            Cell::new(self.name.as_str()),
            Cell::or_dash(root),
            Cell::new(self.apps.to_string()),
            Cell::new(digest),
            Cell::or_dash(path),
        ]
    }
}

impl Resource for wire::Revision {
    const PATH: &'static str = "/v1/revisions";
    const ONE: &'static str = "revision";
    const COLUMNS: &'static [Column] = &[
        Column::new("REVISION"),
        Column::new("STATE").at_least("superseded".len()),
        Column::new("AGE").at_least(age::WIDTH),
        Column::new("TOOK").at_least(age::WIDTH),
        Column::wide("DONE"),
        Column::wide("COMMIT"),
        Column::wide("ATTEMPTED"),
        Column::wide("APPLIED"),
        Column::new("MESSAGE"),
    ];

    fn name(&self) -> String {
        self.commit.to_string()
    }

    /// As git does: a beginning of the commit is enough.
    fn answers_to(&self, name: &str) -> bool {
        name.len() >= 4 && self.commit.as_str().starts_with(name)
    }

    fn cells(&self, now: Timestamp) -> Vec<Cell> {
        let (word, tone) = revision_state(self.state);
        let actions: Vec<_> = self.actions.iter().map(|(word, number)| format!("{word} {number}")).collect();
        vec![
            Cell::new(self.commit.short()),
            Cell::new(word).tone(tone),
            Cell::new(age(self.attempted_at, now)),
            Cell::or_dash(self.duration_ms.map(age::milliseconds)),
            Cell::or_dash((!actions.is_empty()).then(|| actions.join(", "))),
            Cell::new(self.commit.as_str()),
            Cell::new(time(self.attempted_at)),
            Cell::or_dash(self.applied_at.map(time)),
            Cell::new(&self.message),
        ]
    }
}

/// How far a revision came, in a word and its colour.
#[must_use]
pub const fn revision_state(state: RevisionState) -> (&'static str, Tone) {
    match state {
        RevisionState::Attempted => ("attempted", Tone::Busy),
        RevisionState::Applied => ("applied", Tone::Good),
        RevisionState::Failed => ("failed", Tone::Bad),
        RevisionState::Stalled => ("stalled", Tone::Bad),
        RevisionState::Superseded => ("superseded", Tone::Quiet),
    }
}

impl Resource for wire::Event {
    const PATH: &'static str = "/v1/events";
    const ONE: &'static str = "event";
    const COLUMNS: &'static [Column] = &[
        Column::new("TIME"),
        Column::new("KIND").at_least("sourceRecovered".len()),
        Column::new("APP"),
        Column::new("REASON"),
        Column::wide("SANDBOX"),
        Column::wide("ID"),
        Column::new("MESSAGE"),
    ];

    fn name(&self) -> String {
        self.id.clone()
    }

    /// An event's id, or the app that it is about.
    fn answers_to(&self, name: &str) -> bool {
        self.id == name || name.parse().is_ok_and(|key: AppKey| self.app.as_ref() == Some(&key))
    }

    fn query(wanted: &Wanted) -> Query {
        match &wanted.names[..] {
            [name] => name.parse().map_or_else(|_| Query::default(), |app| Query::of_app(&app)),
            [] | [_, _, ..] => Query::default(),
        }
    }

    fn traits(&self) -> Traits<'_> {
        Traits { team: self.app.as_ref().map(|app| &app.team), ..Traits::default() }
    }

    fn kind_traits() -> Traits<'static> {
        Traits { team: Some(any_team()), ..Traits::default() }
    }

    fn cells(&self, _now: Timestamp) -> Vec<Cell> {
        vec![
            Cell::new(time(self.at)),
            Cell::new(&self.kind).tone(event_tone(&self.kind)),
            Cell::or_dash(self.app.as_ref().map(ToString::to_string)),
            Cell::new(&self.reason),
            Cell::or_dash(self.sandbox.as_ref().map(ToString::to_string)),
            Cell::new(&self.id),
            Cell::new(&self.message),
        ]
    }
}

/// How an event's kind is coloured. Kinds are text on the wire, so that a newer daemon may have more of them.
#[must_use]
pub fn event_tone(kind: &str) -> Tone {
    match kind {
        "failed" | "exited" | "unready" | "stalled" | "sourceError" => Tone::Bad,
        "ready" | "revisionApplied" | "sourceRecovered" | "resumed" => Tone::Good,
        "blocked" => Tone::Busy,
        _ => Tone::Plain,
    }
}

/// A time in UTC, to the second.
#[must_use]
pub fn time(at: Timestamp) -> String {
    at.strftime("%Y-%m-%dT%H:%M:%SZ").to_string()
}

pub(super) fn any_team() -> &'static Team {
    static TEAM: std::sync::LazyLock<Team> = std::sync::LazyLock::new(Team::default_team);
    &TEAM
}

fn no_labels() -> &'static setpoint_schema::notes::Notes {
    static LABELS: setpoint_schema::notes::Notes = setpoint_schema::notes::Notes::new();
    &LABELS
}
