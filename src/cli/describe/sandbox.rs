//! One microVM: what it is made of, whose it is, and what happened to it.

use jiff::Timestamp;
use serde_json::{Value, json};
use setpoint_schema::wire;

use super::{Lines, Whole, event_rows, newest, phase, section, within_section};
use crate::cli::age::age;
use crate::cli::client::Client;
use crate::cli::get::kinds::{Resource as _, path_of_app};
use crate::cli::get::the_one;
use crate::cli::output::Object;
use crate::cli::table::{Page, harmless};
use crate::cli::{Failure, events, follow};

/// A sandbox and what belongs to it.
pub(super) struct WholeSandbox {
    sandbox: Object<wire::Sandbox>,
    /// Absent for what is left of an app that is gone.
    app: Option<Object<wire::App>>,
    events: Vec<Object<wire::Event>>,
}

impl WholeSandbox {
    pub(super) async fn ask(client: &Client, name: String, count: usize) -> Result<Self, Failure> {
        let sandbox: Object<wire::Sandbox> = the_one(client, name).await?;
        let wire::Sandbox { id, app: key, .. } = &sandbox.typed;
        let app = follow::find(client, &path_of_app(key)).await?;
        let mut events = events::of_app(client, key).await?;
        events.retain(|event| event.typed.sandbox.as_ref() == Some(id));
        Ok(Self { app, events: newest(events, count), sandbox })
    }
}

impl Whole for WholeSandbox {
    fn name(&self) -> String {
        self.sandbox.typed.name()
    }

    fn document(&self) -> Value {
        let events: Vec<_> = self.events.iter().map(|event| &event.document).collect();
        let app = self.app.as_ref().map(|app| &app.document);
        json!({ "sandbox": self.sandbox.document, "app": app, "events": events })
    }

    fn text(&self, page: Page, now: Timestamp) -> String {
        let mut summary = Lines::default();
        let key = &self.sandbox.typed.app;
        summary.add(
            "App",
            &match &self.app {
                None => format!("{key}, which is gone"),
                Some(app) => format!("{key} ({})", phase(&app.typed, page, now)),
            },
        );
        let mut text = lines(&self.sandbox.typed, now);
        text.push_str(&summary.text);
        if !self.events.is_empty() {
            text.push_str(&section("Events", &event_rows(&self.events, within_section(page), now), page));
        }
        text
    }
}

/// What a sandbox is made of.
pub(super) fn lines(sandbox: &wire::Sandbox, now: Timestamp) -> String {
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
        wire::Vm::Paused { since, .. } => lines.add("State", &format!("paused, {}", age(*since, now))),
    }
    lines.add("Machine", &format!("{} vcpu, {} memory", sandbox.vcpus, sandbox.memory));
    let disk = sandbox.disk.as_ref();
    lines.add("Disk", &disk.map_or_else(|| "none".to_owned(), |disk| format!("{}, {}", disk.id, disk.size)));
    if let Some(from) = &sandbox.from {
        lines.add("Began from", &format!("snapshot {from}"));
    }
    lines.add("Created", &format!("{} ago", age(sandbox.created_at, now)));
    lines.text
}
