//! `setpoint events [APP] [-w]`: what happened, oldest first, and what happens from now on.

use std::process::ExitCode;

use jiff::{SignedDuration, Timestamp};
use serde_json::Value;
use setpoint_schema::name::AppKey;
use setpoint_schema::quantity::Span;
use setpoint_schema::wire;

use super::client::{Client, ClientError};
use super::follow::{self, PAUSE, Query, sse};
use super::get::kinds::{Resource as _, path_of_app};
use super::get::watch::await_return;
use super::get::{Wanted, no_such};
use super::output::{self, Form, Object, Output};
use super::select::OfTeam;
use super::table::Layout;
use super::{Failure, Server, print};
use crate::config::Config;

#[derive(Debug, clap::Args)]
pub struct Args {
    /// Only events of this app, as NAME or TEAM/NAME
    app: Option<AppKey>,
    /// Go on with new events as they happen
    #[arg(short, long)]
    watch: bool,
    /// Only events of the last while, as `10m`
    #[arg(long, value_name = "DURATION")]
    since: Option<Span>,
    /// Only the newest so many to begin with
    #[arg(long, value_name = "COUNT")]
    tail: Option<usize>,
    #[command(flatten)]
    of: OfTeam,
    #[command(flatten)]
    server: Server,
    #[command(flatten)]
    output: Output,
}

pub async fn run(config: Config, args: Args) -> Result<ExitCode, Failure> {
    let client = args.server.client(&config);
    let names = args.app.iter().map(ToString::to_string).collect();
    let begin = Begin {
        since: args.since.map(|since| Timestamp::now() - SignedDuration::from_millis(since.as_millis().cast_signed())),
        tail: args.tail,
    };
    let wanted = Wanted { names, selection: args.of.into() };
    show(&client, &wanted, &begin, args.watch, args.output).await
}

/// `setpoint get events`.
pub async fn get(client: Client, wanted: Wanted, watch: bool, output: Output) -> Result<ExitCode, Failure> {
    wanted.check::<wire::Event>()?;
    show(&client, &wanted, &Begin::default(), watch, output).await
}

/// The recorded events of an app, oldest first.
///
/// # Errors
/// When the daemon does not answer.
pub async fn of_app(client: &Client, app: &AppKey) -> Result<Vec<Object<wire::Event>>, ClientError> {
    follow::list(client, wire::Event::PATH, &Query::of_app(app), None).await
}

/// With which event to begin.
#[derive(Debug, Default)]
struct Begin {
    since: Option<Timestamp>,
    tail: Option<usize>,
}

impl Begin {
    fn cut(&self, events: &mut Vec<Object<wire::Event>>) {
        events.retain(|event| self.since.is_none_or(|since| event.typed.at >= since));
        let surplus = events.len().saturating_sub(self.tail.unwrap_or(usize::MAX));
        events.drain(..surplus);
    }
}

async fn show(
    client: &Client,
    wanted: &Wanted,
    begin: &Begin,
    watch: bool,
    output: Output,
) -> Result<ExitCode, Failure> {
    let query = wire::Event::query(wanted);
    let mut events: Vec<Object<wire::Event>> = follow::list(client, wire::Event::PATH, &query, None).await?;
    let last = events.last().map(|event| event.typed.id.clone());
    events.retain(|event| wanted.admits(&event.typed));
    if events.is_empty() && !watch {
        refuse_strangers(client, &wanted.names).await?;
    }
    begin.cut(&mut events);
    if watch {
        let mut screen = Screen::new(output);
        screen.begin(&events);
        return go_on(client, wanted, screen, last).await;
    }
    match output.form {
        Form::Json | Form::Yaml => {
            let documents = events.into_iter().map(|event| event.document).collect();
            output::print_document(output.form, &output::list(documents));
        }
        Form::Name => events.iter().for_each(|event| print(&format!("{}\n", event.typed.id))),
        Form::Table | Form::Wide => {
            let now = Timestamp::now();
            output.print_table(wire::Event::COLUMNS, events.iter().map(|event| event.typed.cells(now)).collect());
        }
    }
    Ok(ExitCode::SUCCESS)
}

/// An app that is gone has events. One that has none and is not there is more likely a wrong name.
async fn refuse_strangers(client: &Client, names: &[String]) -> Result<(), Failure> {
    for name in names {
        let Ok(app) = name.parse() else { return Err(no_such::<wire::App>(name)) };
        if follow::find::<Value>(client, &path_of_app(&app)).await?.is_none() {
            return Err(no_such::<wire::App>(name));
        }
    }
    Ok(())
}

/// Prints events as they happen, until the reader leaves. A daemon that goes is waited for, and nothing is left out meanwhile:
/// it goes on after the last event that was seen.
async fn go_on(
    client: &Client,
    wanted: &Wanted,
    mut screen: Screen,
    mut last: Option<String>,
) -> Result<ExitCode, Failure> {
    let query = wire::Event::query(wanted);
    loop {
        let from = last.clone();
        let each = |message: sse::Message| {
            let Ok(event) = serde_json::from_str::<Object<wire::Event>>(&message.data) else { return };
            take(event, wanted, &mut screen, &mut last);
        };
        match follow::stream(client, &query.whole(wire::Event::PATH), from.as_deref(), each).await {
            Ok(Some(())) => tokio::time::sleep(PAUSE).await,
            // Something in between that lets no streams through.
            Ok(None) => match follow::later(client, wire::Event::PATH, &query, from.as_deref()).await {
                Ok(events) => events
                    .into_iter()
                    .for_each(|event: Object<wire::Event>| take(event, wanted, &mut screen, &mut last)),
                Err(error) => await_return(client, error).await?,
            },
            Err(error) => await_return(client, error).await?,
        }
    }
}

/// Ids grow, so that one which does not was seen before.
fn take(event: Object<wire::Event>, wanted: &Wanted, screen: &mut Screen, last: &mut Option<String>) {
    if last.as_ref().is_some_and(|last| event.typed.id <= *last) {
        return;
    }
    *last = Some(event.typed.id.clone());
    if wanted.admits(&event.typed) {
        screen.line(&event);
    }
}

/// Prints one event after the other.
struct Screen {
    output: Output,
    layout: Layout,
}

impl Screen {
    fn new(output: Output) -> Self {
        Self { output, layout: Layout::new(&output.columns(wire::Event::COLUMNS), output.page()) }
    }

    fn begin(&mut self, events: &[Object<wire::Event>]) {
        if matches!(self.output.form, Form::Table | Form::Wide) {
            let rows: Vec<_> = events.iter().map(|event| self.cells(event)).collect();
            self.layout.widen(&rows);
            if !self.output.no_header {
                print(&self.layout.heading());
            }
        }
        events.iter().for_each(|event| self.line(event));
    }

    fn line(&mut self, event: &Object<wire::Event>) {
        match self.output.form {
            Form::Json => print(&format!("{}\n", event.document)),
            Form::Yaml => {
                print("---\n");
                output::print_document(Form::Yaml, &event.document);
            }
            Form::Name => print(&format!("{}\n", event.typed.id)),
            Form::Table | Form::Wide => {
                let row = self.cells(event);
                self.layout.widen(std::slice::from_ref(&row));
                print(&self.layout.line(&row));
            }
        }
    }

    fn cells(&self, event: &Object<wire::Event>) -> Vec<super::table::Cell> {
        self.output.cells(wire::Event::COLUMNS, event.typed.cells(Timestamp::now()))
    }
}
