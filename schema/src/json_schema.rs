//! JSON Schemas of the declaration files, for editors. Draft 07, because that is what editors know.
//!
//! The specs come from the types that declarations are decoded into; what stands around a spec has its shape here. The files
//! under `schema/json` are this module's output, and a test keeps them so.

use std::collections::BTreeMap;

use schemars::generate::SchemaSettings;
use schemars::{JsonSchema, Schema};
use serde_json::{Map, Value, json};

use crate::app::AppSpec;
use crate::name::{AppKey, AppName, SnapshotName, Team, TemplateName, Uid};
use crate::project::{Hosts, Policies};
use crate::runtime::Runtime;
use crate::snapshot::SnapshotSpec;

/// Which file a schema describes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SchemaKind {
    /// `app.yaml`.
    App,
    /// `templates/*.yaml`.
    Template,
    /// `sandbox.yaml`.
    Sandbox,
    /// `setpoint.toml`.
    Project,
    /// `snapshots/*.yaml`.
    Snapshot,
}

impl SchemaKind {
    /// All of them.
    pub const ALL: [Self; 5] = [Self::App, Self::Template, Self::Sandbox, Self::Project, Self::Snapshot];

    /// The name of the schema's file.
    #[must_use]
    pub const fn file_name(self) -> &'static str {
        match self {
            Self::App => "app.json",
            Self::Template => "template.json",
            Self::Sandbox => "sandbox.json",
            Self::Project => "setpoint.json",
            Self::Snapshot => "snapshot.json",
        }
    }
}

/// The schema of a kind of file.
#[must_use]
pub fn json_schema(kind: SchemaKind) -> Value {
    let generator = SchemaSettings::draft07().into_generator();
    let schema = match kind {
        SchemaKind::App => generator.into_root_schema_for::<AppFile>(),
        SchemaKind::Template => generator.into_root_schema_for::<TemplateFile>(),
        SchemaKind::Sandbox => generator.into_root_schema_for::<Runtime>(),
        SchemaKind::Project => generator.into_root_schema_for::<ProjectFile>(),
        SchemaKind::Snapshot => generator.into_root_schema_for::<SnapshotFile>(),
    };
    let mut schema = schema.to_value();
    forbid_null(&mut schema);
    match kind {
        SchemaKind::App | SchemaKind::Template | SchemaKind::Snapshot => {}
        SchemaKind::Sandbox => {
            schema["required"] = json!(["version"]);
            schema["title"] = json!("Setpoint sandbox.yaml");
        }
        SchemaKind::Project => {
            for field in crate::project::WITHOUT_DEFAULT {
                remove(&mut schema, &format!("/definitions/AppSpec/properties/{field}"));
            }
        }
    }
    schema
}

/// `version` is checked and not kept, so the type does not have it.
pub(crate) fn allow_version(schema: &mut Schema) {
    let version = json!({ "description": "The version of this format.", "const": 1 });
    if let Some(properties) = schema.get_mut("properties").and_then(Value::as_object_mut) {
        properties.insert("version".to_owned(), version);
    }
}

/// The decoder refuses a key without a value, also where the field may be absent.
fn forbid_null(schema: &mut Value) {
    match schema {
        Value::Object(fields) => {
            fields.retain(|name, value| !(name == "default" && value.is_null()));
            if let Some(Value::Array(types)) = fields.get_mut("type") {
                types.retain(|name| name != "null");
                if let [one] = types.as_slice() {
                    fields["type"] = one.clone();
                }
            }
            if let Some(Value::Array(any)) = fields.remove("anyOf") {
                let any: Vec<Value> = any.into_iter().filter(|schema| *schema != json!({ "type": "null" })).collect();
                fields.insert(if any.len() == 1 { "allOf" } else { "anyOf" }.to_owned(), Value::Array(any));
            }
            fields.values_mut().for_each(forbid_null);
        }
        Value::Array(items) => items.iter_mut().for_each(forbid_null),
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => {}
    }
}

fn remove(schema: &mut Value, pointer: &str) {
    let (parent, field) = pointer.rsplit_once('/').unwrap_or(("", pointer));
    if let Some(fields) = schema.pointer_mut(parent).and_then(Value::as_object_mut) {
        fields.remove(field);
    }
}

/// What stands around the specs. Never built: the decoder reads these fields one by one, to report each mistake.
#[derive(JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[schemars(title = "Setpoint app")]
#[expect(dead_code, reason = "only its schema is used")]
struct AppFile {
    /// The version of this format.
    api_version: ApiVersion,
    /// What is declared.
    kind: AppKind,
    /// Who it is.
    metadata: AppMetadata,
    /// What it is to be; each field that is left out has the default of `setpoint.toml`, or else its own.
    #[serde(default)]
    spec: AppSpec,
}

#[derive(JsonSchema)]
#[serde(deny_unknown_fields)]
#[expect(dead_code, reason = "only its schema is used")]
struct AppMetadata {
    /// The app's name: 1 to 40 lower-case letters, digits and hyphens.
    name: AppName,
    /// The team that owns the app; `default` without one.
    #[serde(default = "Team::default_team")]
    team: Team,
    /// An identity that survives a rename.
    uid: Option<Uid>,
    /// Free labels.
    #[serde(default)]
    labels: BTreeMap<String, String>,
    /// Free annotations.
    #[serde(default)]
    annotations: BTreeMap<String, String>,
}

#[derive(JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[schemars(title = "Setpoint template")]
#[expect(dead_code, reason = "only its schema is used")]
struct TemplateFile {
    /// The version of this format.
    api_version: ApiVersion,
    /// What is declared.
    kind: TemplateKind,
    /// Which template it is.
    metadata: TemplateMetadata,
    /// How it comes to be.
    spec: TemplateSpec,
}

#[derive(JsonSchema)]
#[serde(deny_unknown_fields)]
#[expect(dead_code, reason = "only its schema is used")]
struct TemplateMetadata {
    /// The name by which apps call for it; `minimal` is built in.
    name: TemplateName,
}

#[derive(JsonSchema)]
#[serde(deny_unknown_fields)]
#[expect(dead_code, reason = "only its schema is used")]
struct TemplateSpec {
    /// A root file system that exists already.
    rootfs: Rootfs,
    /// Whether a warm template is made of it ahead, rather than with the first microVM that starts from it.
    #[serde(default)]
    prewarm: bool,
}

#[derive(JsonSchema)]
#[serde(deny_unknown_fields)]
#[expect(dead_code, reason = "only its schema is used")]
struct Rootfs {
    /// A directory or tar archive: in the repository, or on the host where the path is absolute.
    path: String,
}

#[derive(JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[schemars(title = "Setpoint snapshot")]
#[expect(dead_code, reason = "only its schema is used")]
struct SnapshotFile {
    /// The version of this format.
    api_version: ApiVersion,
    /// What is declared.
    kind: SnapshotKind,
    /// Which snapshot it is.
    metadata: SnapshotMetadata,
    /// What is kept, and for how long.
    spec: SnapshotSpec,
}

#[derive(JsonSchema)]
#[serde(deny_unknown_fields)]
#[expect(dead_code, reason = "only its schema is used")]
struct SnapshotMetadata {
    /// The snapshot's name: 1 to 60 lower-case letters, digits and hyphens.
    name: SnapshotName,
    /// The team that owns the snapshot; `default` without one.
    #[serde(default = "Team::default_team")]
    team: Team,
    /// Free labels.
    #[serde(default)]
    labels: BTreeMap<String, String>,
    /// Free annotations.
    #[serde(default)]
    annotations: BTreeMap<String, String>,
}

#[derive(JsonSchema)]
#[serde(deny_unknown_fields)]
#[schemars(title = "Setpoint setpoint.toml")]
#[expect(dead_code, reason = "only its schema is used")]
struct ProjectFile {
    /// What an app has where its `spec` says nothing.
    #[serde(default)]
    defaults: AppSpec,
    /// Variables for templates in declarations.
    #[serde(default)]
    vars: Map<String, Value>,
    /// How apps are named to browsers.
    #[serde(default)]
    hosts: Hosts,
    /// What is refused unless it is allowed here.
    #[serde(default)]
    policies: Policies,
    /// Renames: the app that was `from` is `to` now.
    #[serde(default)]
    moved: Vec<Move>,
}

#[derive(JsonSchema)]
#[serde(deny_unknown_fields)]
#[expect(dead_code, reason = "only its schema is used")]
struct Move {
    /// The old name.
    from: AppKey,
    /// The new name.
    to: AppKey,
}

#[derive(JsonSchema)]
#[expect(dead_code, reason = "only its schema is used")]
enum ApiVersion {
    #[serde(rename = "setpoint/v1")]
    V1,
}

#[derive(JsonSchema)]
#[expect(dead_code, reason = "only its schema is used")]
enum AppKind {
    App,
}

#[derive(JsonSchema)]
#[expect(dead_code, reason = "only its schema is used")]
enum TemplateKind {
    Template,
}

#[derive(JsonSchema)]
#[expect(dead_code, reason = "only its schema is used")]
enum SnapshotKind {
    Snapshot,
}

#[cfg(test)]
mod tests;
