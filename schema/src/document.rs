//! `app.yaml` and `templates/*.yaml` as text: documents under `apiVersion`, `kind`, `metadata` and `spec`.
//!
//! Called by the loader, once for each file that a commit changed; what comes out can be kept for as long as the file and
//! `setpoint.toml` stay what they are. What only all files together can show is for [`crate::set`].

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::app::{AppMetadata, AppSpec};
use crate::check;
use crate::decode::{Decode, Decoder};
use crate::diagnostic::{Diagnostic, Lines, Place, SourceText};
use crate::name::{AppKey, AppName, HostName, RepoPath, SnapshotKey, SnapshotName, Team, TemplateName};
use crate::node::{Document, Ending, Mistake, Node};
use crate::project::Project;
use crate::runtime::Runtime;
use crate::snapshot::{DesiredSnapshot, SnapshotMetadata, SnapshotSpec};
use crate::template::{Template, TemplateRoot};
use crate::{sandbox, yaml};

/// What one file declares.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Parsed {
    /// The apps without a mistake.
    pub apps: Vec<Arc<AppDocument>>,
    /// The templates without a mistake.
    pub templates: Vec<TemplateDocument>,
    /// Templates that are declared, but with mistakes.
    pub broken_templates: BTreeSet<TemplateName>,
    /// The snapshots without a mistake.
    pub snapshots: Vec<Arc<SnapshotDocument>>,
    /// Snapshots that are declared, but with mistakes: what is wrong, of each.
    pub broken_snapshots: BTreeMap<SnapshotKey, String>,
    /// All mistakes; those of an app that could be made out name it.
    pub diagnostics: Vec<Diagnostic>,
    /// Whether every app in the file could be made out.
    pub coverage: Coverage,
}

/// Whether every app in a file could be made out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Coverage {
    /// Each app in it is among the apps, or named by a mistake.
    Whole,
    /// There may be further apps in it, so that an app which is missing elsewhere must not count as removed.
    Partial,
}

/// One `kind: App`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct AppDocument {
    /// Who it is.
    pub metadata: AppMetadata,
    /// What it declares, over the project's defaults.
    pub spec: AppSpec,
    /// The file.
    pub path: RepoPath,
    /// Where it says things that may turn out wrong later.
    pub places: AppPlaces,
}

/// Where an app says things that may turn out wrong later. Most apps say few of them.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct AppPlaces {
    /// `metadata.name`.
    pub name: Place,
    /// `metadata.uid`.
    pub uid: Option<Box<Place>>,
    /// `spec.template`.
    pub template: Option<Box<Place>>,
    /// `spec.source.path`.
    pub source_path: Option<Box<Place>>,
    /// `spec.runtime`.
    pub runtime: Option<Box<Place>>,
    /// The items of `spec.dependsOn`.
    pub depends_on: Vec<(AppKey, Place)>,
    /// What `spec.from` names.
    pub from: Option<Place>,
    /// `spec.restore.snapshot`.
    pub restore: Option<Place>,
    /// The items of `spec.expose.hosts`.
    pub hosts: Vec<(HostName, Place)>,
}

/// One `kind: Snapshot`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SnapshotDocument {
    /// What it declares.
    pub snapshot: Arc<DesiredSnapshot>,
    /// `metadata.name`.
    pub name_place: Place,
    /// `spec.of`.
    pub of_place: Place,
}

/// One `kind: Template`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TemplateDocument {
    /// What it declares.
    pub template: Template,
    /// The file.
    pub path: RepoPath,
    /// `metadata.name`.
    pub name_place: Place,
    /// `spec.rootfs.path`.
    pub root_place: Place,
}

/// Reads one file of declarations.
#[must_use]
pub fn parse(path: &RepoPath, text: &str, project: &Project) -> Parsed {
    let mut parsed = Parsed::nothing();
    let lines = Lines::new(SourceText { path, text });
    let documents = yaml::read(text);
    // `---` at the end of a file makes a document of nothing.
    let documents: Vec<_> = documents.iter().filter(|doc| !doc.root.is_null() || !doc.mistakes.is_empty()).collect();
    if documents.is_empty() {
        let hint = "to remove what it declared, remove the file";
        parsed.diagnostics.push(Diagnostic::new(path.clone(), "declares nothing").hint(hint));
        parsed.coverage = Coverage::Partial;
    }
    for document in documents {
        parsed.read(document, &lines, project);
    }
    parsed
}

/// What a document is about, as far as it can be made out despite mistakes.
enum Subject {
    App(Option<AppKey>),
    Template(Option<TemplateName>),
    Snapshot(Option<SnapshotKey>),
}

impl Subject {
    /// A document of unknown kind may be an app, and apps are what must not get lost.
    fn of(root: &Node<'_>) -> Self {
        let metadata = root.get("metadata");
        let name = metadata.and_then(|metadata| metadata.get("name")).and_then(Node::text);
        if root.get("kind").and_then(Node::text) == Some(Kind::TEMPLATE) {
            return Self::Template(name.and_then(|name| TemplateName::new(name).ok()));
        }
        let is_snapshot = root.get("kind").and_then(Node::text) == Some(Kind::SNAPSHOT);
        let team = match metadata.and_then(|metadata| metadata.get("team")) {
            Some(team) => team.text().and_then(|team| Team::new(team).ok()),
            None => Some(Team::default_team()),
        };
        if is_snapshot {
            let name = name.and_then(|name| SnapshotName::new(name).ok());
            return Self::Snapshot(team.zip(name).map(|(team, name)| SnapshotKey::new(team, name)));
        }
        let name = name.and_then(|name| AppName::new(name).ok());
        Self::App(team.zip(name).map(|(team, name)| AppKey::new(team, name)))
    }

    /// Whether the document can declare no other app than it seems to, and hides none. A slip in `team` must not make another
    /// app of it, or the one that runs would count as removed.
    fn is_certain(&self, document: &Document<'_>) -> bool {
        match (self, document.ending) {
            (_, Ending::CutBeforeOthers) | (Self::App(None) | Self::Snapshot(None), _) => return false,
            (Self::Template(_), Ending::Whole | Ending::Cut) => return true,
            (Self::App(Some(_)) | Self::Snapshot(Some(_)), Ending::Whole | Ending::Cut) => {}
        }
        let entries = document.root.entries();
        let Some(index) = entries.iter().position(|entry| entry.key == "metadata") else { return false };
        let (metadata, next) = (&entries[index], entries.get(index + 1));
        let known = metadata.value.entries().iter().all(|entry| APP_METADATA_FIELDS.contains(&entry.key.as_ref()));
        // Of a document that was cut, the last mistake is the cut.
        let (read_through, mistakes) = match (document.ending, document.mistakes.as_slice()) {
            (Ending::Cut | Ending::CutBeforeOthers, [before @ .., _cut]) => (next.is_some(), before),
            (Ending::Whole | Ending::Cut | Ending::CutBeforeOthers, mistakes) => (true, mistakes),
        };
        let first = metadata.key_at.line;
        let lines = first..next.map_or(u32::MAX, |next| next.key_at.line.max(first + 1));
        let in_doubt = |mistake: &Mistake| {
            let doubles_metadata = mistake.at.column == metadata.key_at.column;
            lines.contains(&mistake.at.line) || doubles_metadata
        };
        known && read_through && !mistakes.iter().any(in_doubt)
    }
}

impl Parsed {
    /// What a file without declarations and mistakes comes to.
    #[must_use]
    pub fn nothing() -> Self {
        Self {
            apps: Vec::new(),
            templates: Vec::new(),
            broken_templates: BTreeSet::new(),
            snapshots: Vec::new(),
            broken_snapshots: BTreeMap::new(),
            diagnostics: Vec::new(),
            coverage: Coverage::Whole,
        }
    }

    /// Every app that a mistake names, once.
    #[must_use]
    pub fn broken_apps(&self) -> BTreeSet<&AppKey> {
        self.diagnostics.iter().filter_map(|mistake| mistake.object.as_ref()).collect()
    }

    fn read(&mut self, document: &Document<'_>, lines: &Lines<'_>, project: &Project) {
        let mut cx = Decoder::new(lines);
        let subject = Subject::of(&document.root);
        if let Subject::App(Some(key)) = &subject {
            cx.belongs_to(key.clone());
        }
        cx.mistakes_of(document);
        // Half a document would only give mistakes that are not there.
        let root = (document.ending == Ending::Whole).then_some(&document.root);
        match &subject {
            Subject::App(_) => {
                let app = root.and_then(|root| app(root, project, &mut cx)).filter(|_| cx.is_clean());
                self.apps.extend(app.map(Arc::new));
            }
            Subject::Template(name) => {
                let template = root.and_then(|root| template(root, &mut cx)).filter(|_| cx.is_clean());
                if template.is_none() {
                    self.broken_templates.extend(name.clone());
                }
                self.templates.extend(template);
            }
            Subject::Snapshot(key) => {
                if let Some(key) = key {
                    cx.within_team(&key.team);
                }
                let snapshot = root.and_then(|root| snapshot(root, &mut cx)).filter(|_| cx.is_clean());
                if let (None, Some(key)) = (&snapshot, key) {
                    self.broken_snapshots.insert(key.clone(), cx.summary());
                }
                self.snapshots.extend(snapshot.map(Arc::new));
            }
        }
        if !subject.is_certain(document) {
            self.coverage = Coverage::Partial;
        }
        self.diagnostics.extend(cx.finish());
    }
}

#[derive(Clone, Copy)]
enum Kind {
    App,
    Template,
    Snapshot,
}

impl Kind {
    const TEMPLATE: &'static str = "Template";
    const SNAPSHOT: &'static str = "Snapshot";
}

impl Decode for Kind {
    fn decode(node: &Node<'_>, cx: &mut Decoder<'_>) -> Option<Self> {
        cx.choice(node, &[("App", Self::App), (Self::TEMPLATE, Self::Template), (Self::SNAPSHOT, Self::Snapshot)])
    }
}

#[derive(Clone, Copy)]
struct ApiVersion;

impl Decode for ApiVersion {
    fn decode(node: &Node<'_>, cx: &mut Decoder<'_>) -> Option<Self> {
        cx.choice(node, &[("setpoint/v1", Self)])
    }
}

/// The fields of every document.
pub const DOCUMENT_FIELDS: &[&str] = &["apiVersion", "kind", "metadata", "spec"];
/// The fields of an app's metadata.
pub const APP_METADATA_FIELDS: &[&str] = &["name", "team", "uid", "labels", "annotations"];

fn header(root: &Node<'_>, cx: &mut Decoder<'_>) -> Option<Kind> {
    cx.fields(root, "Document", DOCUMENT_FIELDS);
    let version: Option<ApiVersion> = cx.required(root, "apiVersion", check::anything);
    let kind = cx.required(root, "kind", check::anything);
    cx.require(root, "metadata", None);
    version.and(kind)
}

/// The most that an app may take as JSON, an inline runtime included. See [`sandbox`] for the rest of its record.
const MAX_APP_BYTES: usize = 32 << 10;

fn app(root: &Node<'_>, project: &Project, cx: &mut Decoder<'_>) -> Option<AppDocument> {
    header(root, cx);
    let metadata = root.get("metadata").and_then(|node| cx.within("metadata", |cx| app_metadata(node, cx)));
    let mut spec = project.defaults.clone();
    if let Some(entry) = root.entry("spec") {
        cx.field(entry, &mut spec, check::anything);
    }
    let written = root.get("spec");
    if let (Some(node), Some(runtime)) = (written.and_then(|spec| spec.get("runtime")), &spec.runtime) {
        cx.within("spec", |cx| cx.within("runtime", |cx| sandbox::check_written(node, runtime, cx)));
    }
    if check::json_is_longer(&(&metadata, &spec), MAX_APP_BYTES) {
        cx.error(root.at, &format!("this app takes more than {MAX_APP_BYTES} bytes in all"), None);
    }
    let metadata = metadata?;
    let places = AppPlaces::of(root, &metadata.key.team, cx.lines())?;
    Some(AppDocument { metadata, spec, path: cx.lines().path().clone(), places })
}

fn app_metadata(node: &Node<'_>, cx: &mut Decoder<'_>) -> Option<AppMetadata> {
    cx.fields(node, "Metadata", APP_METADATA_FIELDS);
    let name = cx.required(node, "name", check::anything);
    let team = cx.optional(node, "team", check::anything).unwrap_or_else(Team::default_team);
    Some(AppMetadata {
        uid: cx.optional(node, "uid", check::anything),
        labels: cx.optional(node, "labels", check::notes).unwrap_or_default(),
        annotations: cx.optional(node, "annotations", check::notes).unwrap_or_default(),
        key: AppKey::new(team, name?),
    })
}

impl AppPlaces {
    /// `None` only where there is no name.
    fn of(root: &Node<'_>, team: &Team, lines: &Lines<'_>) -> Option<Self> {
        let place = |node: &Node<'_>| lines.place(node.at);
        let metadata = root.get("metadata")?;
        let boxed = |node: &Node<'_>| Box::new(place(node));
        let spec = |field| root.get("spec").and_then(|spec| spec.get(field));
        let items = |list: Option<&Node<'_>>| -> Vec<(String, Place)> {
            let texts = list.map_or(&[][..], Node::items).iter();
            texts.filter_map(|item| Some((item.text()?.to_owned(), place(item)))).collect()
        };
        let named = |field, within: &[&str]| within.iter().find_map(|name| spec(field)?.get(name)).map(place);
        let depends_on = items(spec("dependsOn")).into_iter();
        let hosts = items(spec("expose").and_then(|expose| expose.get("hosts"))).into_iter();
        Some(Self {
            name: metadata.get("name").map(place)?,
            uid: metadata.get("uid").map(boxed),
            template: spec("template").map(boxed),
            source_path: spec("source").and_then(|source| source.get("path")).map(boxed),
            runtime: spec("runtime").map(boxed),
            depends_on: depends_on.filter_map(|(text, at)| Some((AppKey::within(&text, team).ok()?, at))).collect(),
            from: named("from", &["snapshot", "app"]),
            restore: named("restore", &["snapshot"]),
            hosts: hosts.filter_map(|(text, at)| Some((HostName::new(text).ok()?, at))).collect(),
        })
    }
}

impl AppDocument {
    /// A mistake of this app, at a place in its declaration or else at its name.
    #[must_use]
    pub fn mistake(&self, place: Option<&Place>, message: impl AsRef<str>) -> Diagnostic {
        let place = place.unwrap_or(&self.places.name).clone();
        Diagnostic::new(self.path.clone(), message).at(place).of(self.metadata.key.clone())
    }

    /// The mistake of an app that runs nothing, given the runtime that it has in the end.
    #[must_use]
    pub fn check_runs_something(&self, runtime: &Runtime) -> Option<Diagnostic> {
        (runtime.web.is_none() && runtime.workers.is_empty()).then(|| {
            let message =
                format!("app `{}` has neither `web` nor `workers`, so there is nothing to run", self.metadata.key);
            self.mistake(self.places.runtime.as_deref(), message)
        })
    }
}

/// The fields of a snapshot's metadata.
pub const SNAPSHOT_METADATA_FIELDS: &[&str] = &["name", "team", "labels", "annotations"];

fn snapshot(root: &Node<'_>, cx: &mut Decoder<'_>) -> Option<SnapshotDocument> {
    header(root, cx);
    let metadata = root.get("metadata")?;
    let described = cx.within("metadata", |cx| {
        cx.fields(metadata, "SnapshotMetadata", SNAPSHOT_METADATA_FIELDS);
        let name = cx.required(metadata, "name", check::anything);
        let team = cx.optional(metadata, "team", check::anything).unwrap_or_else(Team::default_team);
        Some(SnapshotMetadata {
            labels: cx.optional(metadata, "labels", check::notes).unwrap_or_default(),
            annotations: cx.optional(metadata, "annotations", check::notes).unwrap_or_default(),
            key: SnapshotKey::new(team, name?),
        })
    });
    let written = &cx.require(root, "spec", Some("write `spec:` with `of:` and the name of an app"))?.value;
    let spec = cx.within("spec", |cx| snapshot_spec(written, cx));
    let lines = cx.lines();
    let place = |node: Option<&Node<'_>>| node.map(|node| lines.place(node.at));
    Some(SnapshotDocument {
        snapshot: Arc::new(DesiredSnapshot::new(described?, spec?, lines.path().clone())),
        name_place: place(metadata.get("name"))?,
        of_place: place(written.get("of"))?,
    })
}

fn snapshot_spec(node: &Node<'_>, cx: &mut Decoder<'_>) -> Option<SnapshotSpec> {
    cx.fields(node, "SnapshotSpec", SnapshotSpec::FIELDS);
    let of = cx.required(node, "of", check::anything);
    let (content, exclude) =
        (cx.optional(node, "content", check::anything), cx.optional(node, "exclude", check::exclude));
    let (keep, retain) = (cx.optional(node, "keep", check::keep), cx.optional(node, "retain", check::retain));
    let token = cx.optional(node, "token", check::token);
    let spec = SnapshotSpec::of(of?);
    Some(SnapshotSpec {
        content: content.unwrap_or(spec.content),
        exclude: exclude.unwrap_or(spec.exclude),
        keep: keep.unwrap_or(spec.keep),
        retain: retain.unwrap_or(spec.retain),
        token: token.unwrap_or(spec.token),
        of: spec.of,
    })
}

impl SnapshotDocument {
    /// Which snapshot it declares.
    #[must_use]
    pub fn key(&self) -> &SnapshotKey {
        &self.snapshot.metadata.key
    }

    /// A mistake at a place in its declaration.
    #[must_use]
    pub fn mistake(&self, place: &Place, message: impl AsRef<str>) -> Diagnostic {
        Diagnostic::new(self.snapshot.path.clone(), message).at(place.clone())
    }
}

fn template(root: &Node<'_>, cx: &mut Decoder<'_>) -> Option<TemplateDocument> {
    header(root, cx);
    let metadata = root.get("metadata")?;
    let name = cx.within("metadata", |cx| {
        cx.fields(metadata, "TemplateMetadata", &["name"]);
        cx.required(metadata, "name", check::template_name)
    });
    let spec = &cx.require(root, "spec", Some("write `spec:` with `rootfs:` and its `path:`"))?.value;
    let rootfs = cx.within("spec", |cx| {
        cx.fields(spec, "TemplateSpec", &["rootfs", "prewarm"]);
        Some(&cx.require(spec, "rootfs", None)?.value)
    })?;
    let root = cx.within("spec", |cx| cx.within("rootfs", |cx| template_root(rootfs, cx)))?;
    let prewarm = cx.within("spec", |cx| cx.optional(spec, "prewarm", check::anything)).unwrap_or_default();
    let lines = cx.lines();
    let place = |node: Option<&Node<'_>>| node.map(|node| lines.place(node.at));
    Some(TemplateDocument {
        template: Template { name: name?, root, prewarm },
        path: lines.path().clone(),
        name_place: place(metadata.get("name"))?,
        root_place: place(rootfs.get("path"))?,
    })
}

fn template_root(rootfs: &Node<'_>, cx: &mut Decoder<'_>) -> Option<TemplateRoot> {
    cx.fields(rootfs, "Rootfs", &["path"]);
    let path: String = cx.required(rootfs, "path", check::anything)?;
    let Some(relative) = path.strip_prefix('/') else {
        let path = cx.optional(rootfs, "path", check::anything)?;
        return Some(TemplateRoot::RepoRootfs { path });
    };
    // The rule for the rest of an absolute path is the same as for a relative one.
    match RepoPath::new(relative) {
        Ok(_) => Some(TemplateRoot::HostRootfs { path }),
        Err(_) => {
            let node = rootfs.get("path").unwrap_or(rootfs);
            cx.within("path", |cx| cx.expected(node, "an absolute path without `.` or `..`"));
            None
        }
    }
}

#[cfg(test)]
mod tests;
