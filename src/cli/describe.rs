//! `setpoint describe KIND NAME`: everything that is known of one object, and what belongs to it.

use std::process::ExitCode;

use jiff::Timestamp;
use serde_json::Value;
use setpoint_schema::name::AppKey;
use setpoint_schema::wire;

use super::age::{self, age};
use super::client::Client;
use super::get::kinds::{Resource as _, event_tone, phase_tone, telling};
use super::get::no_such;
use super::output::{self, Form, Object, Output};
use super::style::Tone;
use super::table::{Cell, Column, Page, table};
use super::{Failure, Server, print};
use crate::config::Config;

mod app;
mod revision;
mod sandbox;
mod snapshot;
mod template;

use app::WholeApp;
use revision::WholeRevision;
use sandbox::WholeSandbox;
use snapshot::WholeSnapshot;
use template::WholeTemplate;

#[derive(Debug, clap::Args)]
pub struct Args {
    /// What kind of object
    kind: Kind,
    /// Which one: an app as NAME or TEAM/NAME, a sandbox by id or app, a snapshot by name or id, a template by name, a revision by its commit
    name: String,
    /// Show this many of the newest events of an app or a sandbox
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
    /// A microVM, with its app and its events
    #[value(alias = "sandboxes")]
    Sandbox,
    /// A kept moment of an app, with the others of its name and what began from it
    #[value(alias = "snapshots")]
    Snapshot,
    /// A template, with the apps that start from it
    #[value(alias = "templates")]
    Template,
    /// A revision, with the apps that it changed
    #[value(alias = "revisions")]
    Revision,
}

pub async fn run(config: Config, args: Args) -> Result<ExitCode, Failure> {
    let client = args.server.client(&config);
    let Args { kind, name, events, server: _, output } = args;
    match kind {
        Kind::App => show(&app(&client, &name, events).await?, output),
        Kind::Sandbox => show(&WholeSandbox::ask(&client, name, events).await?, output),
        Kind::Snapshot => show(&WholeSnapshot::ask(&client, name).await?, output),
        Kind::Template => show(&WholeTemplate::ask(&client, name).await?, output),
        Kind::Revision => show(&WholeRevision::ask(&client, name).await?, output),
    }
    Ok(ExitCode::SUCCESS)
}

async fn app(client: &Client, name: &str, events: usize) -> Result<WholeApp, Failure> {
    let key: AppKey = name.parse().map_err(|rule| {
        let hint = "write it as NAME, or as TEAM/NAME outside the team `default`".to_owned();
        Failure::new(format!("`{name}` names no app: a name {rule}"), Some(hint))
    })?;
    WholeApp::ask(client, &key, events).await?.ok_or_else(|| no_such::<wire::App>(name))
}

/// An object and what belongs to it.
trait Whole {
    /// What lists call it.
    fn name(&self) -> String;

    /// The API's documents of all parts.
    fn document(&self) -> Value;

    /// A page for people.
    fn text(&self, page: Page, now: Timestamp) -> String;
}

fn show(whole: &impl Whole, output: Output) {
    match output.form {
        Form::Table | Form::Wide => print(&whole.text(output.page(), Timestamp::now())),
        Form::Name => print(&format!("{}\n", whole.name())),
        Form::Json | Form::Yaml => output::print_document(output.form, &whole.document()),
    }
}

/// A heading with lines below it.
fn section(name: &str, body: &str, page: Page) -> String {
    let body: String = body.lines().map(|line| format!("  {line}\n")).collect();
    format!("\n{}\n{body}", page.paint.paint(Tone::Heading, name))
}

/// What lines of a section are written on.
fn within_section(page: Page) -> Page {
    Page { width: page.width.map(|width| width.saturating_sub(2)), ..page }
}

/// The last so many events.
fn newest(mut events: Vec<Object<wire::Event>>, count: usize) -> Vec<Object<wire::Event>> {
    let surplus = events.len().saturating_sub(count);
    events.drain(..surplus);
    events
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

/// An app's phase, and since when.
fn phase(app: &wire::App, page: Page, now: Timestamp) -> String {
    let since = telling(app).map(|condition| format!(", {}", age(condition.since, now)));
    format!("{}{}", page.paint.paint(phase_tone(app.phase), app.phase.as_str()), since.unwrap_or_default())
}

fn event_rows(events: &[Object<wire::Event>], page: Page, now: Timestamp) -> String {
    const COLUMNS: [Column; 4] =
        [Column::new("AGE").at_least(age::WIDTH), Column::new("KIND"), Column::new("REASON"), Column::new("MESSAGE")];
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

/// Apps by name and state.
fn app_rows<'a>(apps: impl IntoIterator<Item = &'a wire::App>, page: Page, now: Timestamp) -> String {
    const COLUMNS: [Column; 4] =
        [Column::new("NAME"), Column::new("PHASE"), Column::new("SINCE").at_least(age::WIDTH), Column::new("MESSAGE")];
    let row = |app: &wire::App| {
        let telling = telling(app);
        vec![
            Cell::new(app.name()),
            Cell::new(app.phase.as_str()).tone(phase_tone(app.phase)),
            Cell::or_dash(telling.map(|condition| age(condition.since, now))),
            Cell::new(telling.filter(|_| !app.ready).map_or("", |condition| &*condition.message)),
        ]
    };
    table(&COLUMNS, &apps.into_iter().map(row).collect::<Vec<_>>(), page)
}
