//! `setpoint tree`: apps above what they depend on, so that one sees what an app waits for.

use std::collections::{BTreeMap, BTreeSet};
use std::process::ExitCode;

use jiff::Timestamp;
use serde_json::{Value, json};
use setpoint_schema::name::AppKey;
use setpoint_schema::wire;

use super::age::age;
use super::get::kinds::{Resource as _, phase_tone, telling};
use super::get::no_such;
use super::output::{self, Form};
use super::select::OfTeam;
use super::style::{Paint, Tone};
use super::table::harmless;
use super::{Failure, Server, print, style};
use crate::config::Config;

#[derive(Debug, clap::Args)]
pub struct Args {
    /// Only what this app depends on, as NAME or TEAM/NAME
    #[arg(conflicts_with = "team")]
    app: Option<AppKey>,
    /// Turn it over: apps above those that depend on them
    #[arg(long)]
    invert: bool,
    #[command(flatten)]
    of: OfTeam,
    /// Output format
    #[arg(short, long, value_enum, default_value = "text")]
    output: Drawn,
    #[command(flatten)]
    server: Server,
}

/// How a tree is drawn.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum Drawn {
    /// With branches, for people
    #[value(alias = "table")]
    Text,
    /// An object for each app, with those below it, as JSON
    Json,
    /// The same as YAML
    Yaml,
}

pub async fn run(config: Config, args: Args) -> Result<ExitCode, Failure> {
    let apps: Vec<wire::App> = args.server.client(&config).list(wire::App::PATH).await?;
    let forest = Forest::of(apps, if args.invert { Direction::Dependents } else { Direction::Dependencies });
    let tops = match args.app {
        Some(app) if !forest.apps.contains_key(&app) => return Err(no_such::<wire::App>(&app.to_string())),
        Some(app) => vec![app],
        None => forest.tops(&args.of),
    };
    let form = match args.output {
        Drawn::Json => Form::Json,
        Drawn::Yaml => Form::Yaml,
        Drawn::Text => {
            let drawing = Drawing { forest: &forest, paint: style::stdout(), now: Timestamp::now() };
            print(&drawing.draw(&tops));
            return Ok(ExitCode::SUCCESS);
        }
    };
    output::print_document(form, &forest.document(&tops));
    Ok(ExitCode::SUCCESS)
}

/// What stands below an app.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Direction {
    Dependencies,
    Dependents,
}

/// Apps, and what stands below each.
struct Forest {
    apps: BTreeMap<AppKey, wire::App>,
    below: BTreeMap<AppKey, BTreeSet<AppKey>>,
}

impl Forest {
    fn of(apps: Vec<wire::App>, direction: Direction) -> Self {
        let apps: BTreeMap<_, _> = apps.into_iter().map(|app| (app.key(), app)).collect();
        let mut below: BTreeMap<AppKey, BTreeSet<AppKey>> = BTreeMap::new();
        for (key, app) in &apps {
            for on in &app.depends_on {
                let (above, under) = match direction {
                    Direction::Dependencies => (key, on),
                    Direction::Dependents => (on, key),
                };
                below.entry(above.clone()).or_default().insert(under.clone());
            }
        }
        Self { apps, below }
    }

    /// The apps that stand below no other.
    fn tops(&self, of: &OfTeam) -> Vec<AppKey> {
        let under: BTreeSet<_> = self.below.values().flatten().collect();
        let tops = self.apps.keys().filter(|key| !under.contains(key));
        tops.filter(|key| of.admits(Some(&key.team))).cloned().collect()
    }

    /// What stands below an app, in order.
    fn below(&self, key: &AppKey) -> impl ExactSizeIterator<Item = &AppKey> {
        self.below.get(key).map_or_else(Default::default, BTreeSet::iter)
    }

    /// The same drawing for programs.
    fn document(&self, tops: &[AppKey]) -> Value {
        let mut drawn = BTreeSet::new();
        output::list(tops.iter().map(|top| self.node(top, &mut drawn)).collect())
    }

    /// One app and all below it. As in the drawing, what came before is not written out again: `repeated` says so.
    fn node(&self, key: &AppKey, drawn: &mut BTreeSet<AppKey>) -> Value {
        let app = self.apps.get(key);
        let telling = app.and_then(telling);
        let repeated = self.below(key).len() > 0 && !drawn.insert(key.clone());
        let below: Vec<Value> =
            if repeated { Vec::new() } else { self.below(key).map(|under| self.node(under, drawn)).collect() };
        json!({
            "app": key,
            "phase": app.map(|app| app.phase),
            "since": telling.map(|condition| condition.since),
            "message": telling.map(|condition| &condition.message),
            "repeated": repeated,
            "below": below,
        })
    }
}

struct Drawing<'a> {
    forest: &'a Forest,
    paint: Paint,
    now: Timestamp,
}

impl Drawing<'_> {
    fn draw(&self, tops: &[AppKey]) -> String {
        let mut text = String::new();
        let mut drawn = BTreeSet::new();
        for top in tops {
            self.branch(top, Place::top(), &mut drawn, &mut text);
        }
        text
    }

    /// One app and all below it. What was drawn before is not drawn out again, so that the text stays as long as the list.
    fn branch(&self, key: &AppKey, place: Place, drawn: &mut BTreeSet<AppKey>, text: &mut String) {
        let again = self.forest.below(key).len() > 0 && !drawn.insert(key.clone());
        let more = if again { " (see above)" } else { "" };
        text.push_str(&format!("{}{}{more}\n", place.sign, self.app(key)));
        if again {
            return;
        }
        let count = self.forest.below(key).len();
        for (index, under) in self.forest.below(key).enumerate() {
            self.branch(under, place.below(index + 1 == count), drawn, text);
        }
    }

    fn app(&self, key: &AppKey) -> String {
        let Some(app) = self.forest.apps.get(key) else {
            return format!("{key}  {}", self.paint.paint(Tone::Bad, "not there"));
        };
        let phase = self.paint.paint(phase_tone(app.phase), app.phase.as_str());
        match telling(app) {
            Some(telling) if app.phase != wire::Phase::Ready => {
                let message = self.paint.paint(Tone::Quiet, &harmless(&telling.message));
                format!("{key}  {phase} {}  {message}", age(telling.since, self.now))
            }
            Some(telling) => format!("{key}  {phase} {}", age(telling.since, self.now)),
            None => format!("{key}  {phase}"),
        }
    }
}

/// Where a line stands: what is drawn before it, and before those below it.
#[derive(Clone)]
struct Place {
    sign: String,
    trunk: String,
}

impl Place {
    fn top() -> Self {
        Self { sign: String::new(), trunk: String::new() }
    }

    fn below(&self, is_last: bool) -> Self {
        let (sign, trunk) = if is_last { ("└─ ", "   ") } else { ("├─ ", "│  ") };
        Self { sign: format!("{}{sign}", self.trunk), trunk: format!("{}{trunk}", self.trunk) }
    }
}
