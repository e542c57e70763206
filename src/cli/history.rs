//! `setpoint history [APP]`: the revisions that were tried and what became of them; of one app, what was done to it.

use std::process::ExitCode;

use jiff::Timestamp;
use serde_json::Value;
use setpoint_schema::name::AppKey;
use setpoint_schema::wire;
use setpoint_state::EventKind;

use super::age::{self, age};
use super::events;
use super::get::kinds::{Resource as _, event_tone, path_of_app, time};
use super::get::no_such;
use super::output::{self, Form, Object, Output};
use super::table::{Cell, Column};
use super::{Failure, Server, follow, print};
use crate::config::Config;

#[derive(Debug, clap::Args)]
pub struct Args {
    /// What was done to this app, as NAME or TEAM/NAME
    app: Option<AppKey>,
    /// At most so many, the newest first
    #[arg(short = 'n', long, default_value_t = 20, value_name = "COUNT")]
    limit: usize,
    #[command(flatten)]
    server: Server,
    #[command(flatten)]
    output: Output,
}

pub async fn run(config: Config, args: Args) -> Result<ExitCode, Failure> {
    let client = args.server.client(&config);
    let Args { app, limit, server: _, output } = args;
    let Some(app) = app else {
        let mut revisions: Vec<Object<wire::Revision>> = client.list(wire::Revision::PATH).await?;
        revisions.truncate(limit);
        let now = Timestamp::now();
        let rows = revisions.iter().map(|revision| revision.typed.cells(now)).collect();
        let names = revisions.iter().map(|revision| revision.typed.name()).collect();
        show(output, wire::Revision::COLUMNS, rows, names, documents(revisions));
        return Ok(ExitCode::SUCCESS);
    };
    let mut done = events::of_app(&client, &app).await?;
    done.retain(|event| is_done(&event.typed.kind));
    done.reverse();
    done.truncate(limit);
    // An app that is gone has a history; one that never was has none, which is more likely a wrong name.
    if done.is_empty() && follow::find::<Value>(&client, &path_of_app(&app)).await?.is_none() {
        return Err(no_such::<wire::App>(&app.to_string()));
    }
    let now = Timestamp::now();
    let rows = done.iter().map(|event| cells(&event.typed, now)).collect();
    let names = done.iter().map(|event| event.typed.name()).collect();
    show(output, COLUMNS, rows, names, documents(done));
    Ok(ExitCode::SUCCESS)
}

const COLUMNS: &[Column] = &[
    Column::new("AGE").at_least(age::WIDTH),
    Column::new("DONE").at_least("rebooted".len()),
    Column::new("REASON"),
    Column::wide("TIME"),
    Column::wide("SANDBOX"),
    Column::new("MESSAGE"),
];

/// Whether an event of this kind is something that was done to an app, not only seen of it. A newer daemon's may be unknown here.
fn is_done(kind: &str) -> bool {
    let Some(kind) = EventKind::of_word(kind) else { return false };
    match kind {
        EventKind::Created
        | EventKind::Updated
        | EventKind::Rebooted
        | EventKind::Replaced
        | EventKind::Stopped
        | EventKind::Paused
        | EventKind::Woken
        | EventKind::Deleted
        | EventKind::Healed
        | EventKind::Adopted
        | EventKind::Failed
        | EventKind::SuspendedHere
        | EventKind::ResumedHere
        | EventKind::KeptAlive
        | EventKind::SnapshotTaken
        | EventKind::Restored => true,
        EventKind::Exited
        | EventKind::Blocked
        | EventKind::Unblocked
        | EventKind::Ready
        | EventKind::Unready
        | EventKind::Stalled
        | EventKind::Resumed
        | EventKind::PausedHere
        | EventKind::StoppedHere
        | EventKind::WokenHere
        | EventKind::WakesOften
        | EventKind::SnapshotAsked
        | EventKind::SourceError
        | EventKind::SourceRecovered
        | EventKind::RevisionAttempted
        | EventKind::RevisionApplied
        | EventKind::RevisionStalled
        | EventKind::RevisionFailed
        | EventKind::DiskRetained
        | EventKind::DiskExpired
        | EventKind::SnapshotRetained
        | EventKind::SnapshotExpired
        | EventKind::StateRebuilt => false,
    }
}

fn cells(event: &wire::Event, now: Timestamp) -> Vec<Cell> {
    vec![
        Cell::new(age(event.at, now)),
        Cell::new(&event.kind).tone(event_tone(&event.kind)),
        Cell::new(&event.reason),
        Cell::new(time(event.at)),
        Cell::or_dash(event.sandbox.as_ref().map(ToString::to_string)),
        Cell::new(&event.message),
    ]
}

fn documents<T>(objects: Vec<Object<T>>) -> Vec<Value> {
    objects.into_iter().map(|object| object.document).collect()
}

fn show(output: Output, columns: &[Column], rows: Vec<Vec<Cell>>, names: Vec<String>, documents: Vec<Value>) {
    match output.form {
        Form::Table | Form::Wide => output.print_table(columns, rows),
        Form::Name => names.iter().for_each(|name| print(&format!("{name}\n"))),
        Form::Json | Form::Yaml => output::print_document(output.form, &output::list(documents)),
    }
}
