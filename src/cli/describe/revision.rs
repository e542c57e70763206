//! One revision: how far it came, what was done for it, and the apps that it declared otherwise than before.

use jiff::Timestamp;
use serde_json::{Value, json};
use setpoint_schema::wire;

use super::{Lines, Whole, app_rows, section, within_section};
use crate::cli::Failure;
use crate::cli::age::{age, milliseconds};
use crate::cli::client::Client;
use crate::cli::get::kinds::{Resource as _, revision_state, time};
use crate::cli::get::the_one;
use crate::cli::output::Object;
use crate::cli::table::{Page, harmless};

/// A revision and the apps that it is the newest change of.
pub(super) struct WholeRevision {
    revision: Object<wire::Revision>,
    apps: Vec<wire::App>,
}

impl WholeRevision {
    pub(super) async fn ask(client: &Client, name: String) -> Result<Self, Failure> {
        let revision: Object<wire::Revision> = the_one(client, name).await?;
        let mut apps: Vec<wire::App> = client.list(wire::App::PATH).await?;
        apps.retain(|app| app.last_attempted_revision.as_ref() == Some(&revision.typed.commit));
        Ok(Self { revision, apps })
    }
}

impl Whole for WholeRevision {
    fn name(&self) -> String {
        self.revision.typed.name()
    }

    fn document(&self) -> Value {
        let apps: Vec<_> = self.apps.iter().map(wire::App::name).collect();
        json!({ "revision": self.revision.document, "apps": apps })
    }

    fn text(&self, page: Page, now: Timestamp) -> String {
        let revision = &self.revision.typed;
        let (word, tone) = revision_state(revision.state);
        let ago = |at: Timestamp| format!("{} ({} ago)", time(at), age(at, now));
        let actions: Vec<_> = revision.actions.iter().map(|(word, number)| format!("{word} {number}")).collect();
        let mut lines = Lines::default();
        lines.add("Commit", revision.commit.as_str());
        lines.add("State", &page.paint.paint(tone, word));
        lines.add("Attempted", &ago(revision.attempted_at));
        lines.add("Applied", &revision.applied_at.map_or_else(|| "not yet".to_owned(), ago));
        lines.add("Took", &revision.duration_ms.map_or_else(|| "-".to_owned(), milliseconds));
        lines.add("Done", &if actions.is_empty() { "nothing".to_owned() } else { actions.join(", ") });
        if !revision.message.is_empty() {
            lines.add("Message", &harmless(&revision.message));
        }
        let mut text = lines.text;
        if !self.apps.is_empty() {
            text.push_str(&section("Apps that it changed", &app_rows(&self.apps, within_section(page), now), page));
        }
        text
    }
}
