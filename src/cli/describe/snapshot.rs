//! One snapshot: what it is of, what it keeps, what began from it, and the others of its name.

use jiff::Timestamp;
use serde_json::{Value, json};
use setpoint_schema::wire;

use super::{Lines, Whole, section, within_section};
use crate::cli::Failure;
use crate::cli::age::{self, age};
use crate::cli::client::Client;
use crate::cli::follow::{self, Query};
use crate::cli::get::kinds::{Resource as _, time};
use crate::cli::get::no_such;
use crate::cli::get::snapshots::{cause, content, size as shown_size, tone};
use crate::cli::output::Object;
use crate::cli::table::{Cell, Column, Page, harmless, table};

/// A snapshot and what belongs to it.
pub(super) struct WholeSnapshot {
    snapshot: Object<wire::Snapshot>,
    /// The other generations of its name, the newest first.
    others: Vec<wire::Snapshot>,
    /// What began from it, and is there still.
    began: Vec<wire::Sandbox>,
}

impl WholeSnapshot {
    pub(super) async fn ask(client: &Client, name: String) -> Result<Self, Failure> {
        let mut all: Vec<Object<wire::Snapshot>> =
            follow::list(client, wire::Snapshot::PATH, &Query::default(), None).await?;
        // One of that name comes before any of an app of that name.
        let of_name = |object: &Object<wire::Snapshot>| name.parse().is_ok_and(|key| object.typed.key() == key);
        let place = all.iter().position(of_name);
        let place = place.or_else(|| all.iter().position(|object| object.typed.answers_to(&name)));
        let snapshot = all.remove(place.ok_or_else(|| no_such::<wire::Snapshot>(&name))?);
        let others = all.into_iter().map(|object| object.typed).filter(|other| other.key() == snapshot.typed.key());
        let mut began: Vec<wire::Sandbox> = client.list(wire::Sandbox::PATH).await?;
        began.retain(|sandbox| sandbox.from.as_ref() == Some(&snapshot.typed.id));
        Ok(Self { others: others.collect(), began, snapshot })
    }
}

impl Whole for WholeSnapshot {
    fn name(&self) -> String {
        self.snapshot.typed.name()
    }

    fn document(&self) -> Value {
        let others: Vec<_> = self.others.iter().map(wire::Snapshot::name).collect();
        let began: Vec<_> = self.began.iter().map(wire::Sandbox::name).collect();
        json!({ "snapshot": self.snapshot.document, "generations": others, "sandboxes": began })
    }

    fn text(&self, page: Page, now: Timestamp) -> String {
        let mut text = lines(&self.snapshot.typed, page, now);
        if !self.began.is_empty() {
            let began: String =
                self.began.iter().map(|sandbox| format!("{} of {}\n", sandbox.id, sandbox.app)).collect();
            text.push_str(&section("Began from it", &began, page));
        }
        if !self.others.is_empty() {
            text.push_str(&section("Other generations", &rows(&self.others, within_section(page), now), page));
        }
        text
    }
}

fn lines(snapshot: &wire::Snapshot, page: Page, now: Timestamp) -> String {
    let mut lines = Lines::default();
    lines.add("Name", &snapshot.key().to_string());
    lines.add("Generation", &snapshot.generation.to_string());
    lines.add("Of", &snapshot.app.to_string());
    let state = page.paint.paint(tone(snapshot.state), snapshot.state.as_str());
    let since = snapshot.since.map(|since| format!(", {}", age(since, now)));
    lines.add("State", &format!("{state}{}", since.unwrap_or_default()));
    if !snapshot.message.is_empty() {
        lines.add("", &harmless(&snapshot.message));
    }
    lines.add("Wanted by", &harmless(&cause(&snapshot.cause)));
    let excluded: Vec<_> = snapshot.exclude.iter().map(|name| harmless(name.as_str())).collect();
    lines.add(
        "Content",
        &match (content(snapshot.content), excluded.is_empty()) {
            (content, true) => content.to_owned(),
            (content, false) => format!("{content}, without {}", excluded.join(", ")),
        },
    );
    if let (Some(at), Some(size)) = (snapshot.taken_at, snapshot.size) {
        lines.add("Taken", &format!("{}, {} ago", time(at), age(at, now)));
        lines.add("Size", &format!("{} on the disk", shown_size(size)));
        lines
            .add("Stopped", &format!("the app for {}", snapshot.stopped_ms.map(age::milliseconds).unwrap_or_default()));
    }
    if let Some(wire::Resources { vcpus, memory, disk }) = &snapshot.resources {
        lines.add("Machine", &format!("{vcpus} vcpu, {memory} memory, {disk} disk"));
    }
    if let Some(sandbox) = &snapshot.sandbox {
        lines.add("Sandbox", sandbox.as_str());
    }
    lines.add("Commit", snapshot.revision.as_ref().map_or("none was applied in full", |commit| commit.as_str()));
    if let Some(tree) = &snapshot.tree {
        lines.add("Source", tree.as_str());
    }
    lines.add(
        "Kept",
        &match snapshot.until {
            Some(until) => format!("until {}", time(until)),
            None => format!("for {} once nothing wants it", snapshot.retain),
        },
    );
    lines.add("ID", snapshot.id.as_str());
    lines.text
}

/// Generations by name and size.
fn rows(snapshots: &[wire::Snapshot], page: Page, now: Timestamp) -> String {
    const COLUMNS: [Column; 5] = [
        Column::new("NAME"),
        Column::new("STATE"),
        Column::new("AGE").at_least(age::WIDTH),
        Column::new("SIZE"),
        Column::new("COMMIT"),
    ];
    let row = |snapshot: &wire::Snapshot| {
        vec![
            Cell::new(snapshot.name()),
            Cell::new(snapshot.state.as_str()).tone(tone(snapshot.state)),
            Cell::or_dash(snapshot.taken_at.or(snapshot.since).map(|since| age(since, now))),
            Cell::or_dash(snapshot.size.map(shown_size)),
            Cell::or_dash(snapshot.revision.as_ref().map(|commit| commit.short())),
        ]
    };
    table(&COLUMNS, &snapshots.iter().map(row).collect::<Vec<_>>(), page)
}
