//! One template: where its root file system comes from, and which apps start from it.

use jiff::Timestamp;
use serde_json::{Value, json};
use setpoint_schema::wire;

use super::{Lines, Whole, app_rows, section, within_section};
use crate::cli::Failure;
use crate::cli::client::Client;
use crate::cli::get::kinds::Resource as _;
use crate::cli::get::the_one;
use crate::cli::output::Object;
use crate::cli::table::{Page, harmless};

/// A template and its apps.
pub(super) struct WholeTemplate {
    template: Object<wire::Template>,
    apps: Vec<wire::App>,
}

impl WholeTemplate {
    pub(super) async fn ask(client: &Client, name: String) -> Result<Self, Failure> {
        let template: Object<wire::Template> = the_one(client, name).await?;
        let mut apps: Vec<wire::App> = client.list(wire::App::PATH).await?;
        apps.retain(|app| app.template == template.typed.name);
        Ok(Self { template, apps })
    }
}

impl Whole for WholeTemplate {
    fn name(&self) -> String {
        self.template.typed.name()
    }

    fn document(&self) -> Value {
        let apps: Vec<_> = self.apps.iter().map(wire::App::name).collect();
        json!({ "template": self.template.document, "apps": apps })
    }

    fn text(&self, page: Page, now: Timestamp) -> String {
        let wire::Template { name, digest, root, apps } = &self.template.typed;
        let mut lines = Lines::default();
        lines.add("Name", name.as_str());
        lines.add(
            "Root",
            &match root {
                None => "it cannot be told at the moment".to_owned(),
                Some(wire::TemplateRoot::Minimal) => "built in".to_owned(),
                Some(wire::TemplateRoot::RepoRootfs { path }) => format!("{} in the repository", harmless(path)),
                Some(wire::TemplateRoot::HostRootfs { path }) => format!("{} on the host", harmless(path)),
            },
        );
        lines.add("Digest", &digest.to_string());
        lines.add("Apps", &apps.to_string());
        let mut text = lines.text;
        if !self.apps.is_empty() {
            text.push_str(&section("Apps", &app_rows(&self.apps, within_section(page), now), page));
        }
        text
    }
}
