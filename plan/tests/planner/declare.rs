//! Declarations in a few words.

use std::collections::BTreeMap;
use std::sync::Arc;

use setpoint_plan::desired::{Completeness, Desired, DesiredTemplateRoot};
use setpoint_schema::app::{
    AppMetadata, AppSpec, Beginning, DesiredApp, DiskSize, Power, Restore, Retain, SandboxSpec,
};
use setpoint_schema::id::{CommitId, TemplateDigest, TreeDigest};
use setpoint_schema::name::AppKey;
use setpoint_schema::quantity::{ByteSize, Span};
use setpoint_schema::runtime::{Build, Runtime, Web};
use setpoint_schema::shared::SharedMap;
use setpoint_schema::snapshot::{DesiredSnapshot, SnapshotMetadata, SnapshotSpec};
use setpoint_schema::template::TemplateRoot;

pub fn key(name: &str) -> AppKey {
    name.parse().unwrap()
}

/// A small web app.
pub fn app(name: &str) -> DesiredApp {
    let web = Web { command: "serve".to_owned(), ..Web::default() };
    let runtime = Runtime { web: Some(web), ..Runtime::default() };
    let spec = AppSpec { runtime: Some(runtime.into()), ..AppSpec::default() };
    DesiredApp {
        metadata: AppMetadata { key: key(name), uid: None, labels: [].into(), annotations: [].into() },
        spec: SandboxSpec { app: spec, template: TemplateDigest("t1".into()), files: TreeDigest("f1".into()) }.into(),
        path: format!("apps/{name}/app.yaml").parse().unwrap(),
    }
}

/// Changes a declaration in place, one thing at a time.
pub trait Declare: Sized {
    fn spec(self, change: impl FnOnce(&mut AppSpec)) -> Self;
    fn files(self, tree: &str) -> Self;
    fn template(self, digest: &str) -> Self;
    fn uid(self, uid: &str) -> Self;

    fn command(self, command: &str) -> Self {
        self.spec(|spec| runtime(spec).web.as_mut().unwrap().command = command.to_owned())
    }
    fn health_path(self, path: &str) -> Self {
        self.spec(|spec| runtime(spec).web.as_mut().unwrap().health_path = path.to_owned())
    }
    fn build(self, command: &str) -> Self {
        let build = Build { command: Some(command.to_owned()), ..Build::default() };
        self.spec(|spec| runtime(spec).build = Some(build))
    }
    fn memory(self, mib: u64) -> Self {
        self.spec(|spec| spec.resources.memory = ByteSize::mib(mib))
    }
    fn disk(self, gib: u64) -> Self {
        self.spec(|spec| spec.resources.disk = DiskSize(ByteSize::gib(gib)))
    }
    fn power(self, power: Power) -> Self {
        self.spec(|spec| spec.power.state = power)
    }
    fn begun_as(self, app: &str) -> Self {
        self.spec(|spec| spec.from = Some(Beginning::App(key(app))))
    }
    fn begun_from(self, snapshot: &str) -> Self {
        self.spec(|spec| spec.from = Some(Beginning::Snapshot(snapshot.parse().unwrap())))
    }
    fn restore(self, snapshot: &str, token: &str) -> Self {
        let restore = Restore { snapshot: snapshot.parse().unwrap(), token: token.to_owned() };
        self.spec(|spec| spec.restore = Some(restore))
    }
    fn depends_on(self, apps: &[&str]) -> Self {
        self.spec(|spec| spec.depends_on = apps.iter().map(|app| key(app)).collect())
    }
    /// Windows as declarations write them, in JSON.
    fn windows(self, windows: &str) -> Self {
        self.spec(|spec| spec.windows = serde_json::from_str(windows).unwrap())
    }
    fn retain(self, retain: Retain) -> Self {
        self.spec(|spec| spec.retain = retain)
    }
}

impl Declare for DesiredApp {
    fn spec(mut self, change: impl FnOnce(&mut AppSpec)) -> Self {
        self.spec = self.spec.with(|spec| change(&mut spec.app));
        self
    }
    fn files(mut self, tree: &str) -> Self {
        self.spec = self.spec.with(|spec| spec.files = TreeDigest(tree.into()));
        self
    }
    fn template(mut self, digest: &str) -> Self {
        self.spec = self.spec.with(|spec| spec.template = TemplateDigest(digest.into()));
        self
    }
    fn uid(mut self, uid: &str) -> Self {
        self.metadata.uid = Some(uid.parse().unwrap());
        self
    }
}

/// The desired state that declares these apps and nothing else.
pub fn desired(apps: impl IntoIterator<Item = DesiredApp>) -> Desired {
    let revision = CommitId("1".repeat(40).into());
    let apps: SharedMap<_, _> = apps.into_iter().map(|app| (app.metadata.key.clone(), Arc::new(app))).collect();
    let root = DesiredTemplateRoot { root: TemplateRoot::Minimal, revision: revision.clone() };
    let templates = apps.values().map(|app| (app.spec.template.clone(), root.clone())).collect();
    Desired {
        revision,
        apps,
        kept: BTreeMap::new(),
        stalled: BTreeMap::new(),
        snapshots: SharedMap::new(),
        stalled_snapshots: BTreeMap::new(),
        templates,
        moved: BTreeMap::new(),
        completeness: Completeness::Complete,
    }
}

/// A snapshot of an app.
pub fn snapshot(name: &str, of: &str) -> DesiredSnapshot {
    snapshot_with(name, of, |_| ())
}

/// The same, with a change of its spec.
pub fn snapshot_with(name: &str, of: &str, change: impl FnOnce(&mut SnapshotSpec)) -> DesiredSnapshot {
    let metadata = SnapshotMetadata { key: name.parse().unwrap(), labels: [].into(), annotations: [].into() };
    let mut spec = SnapshotSpec::of(key(of));
    change(&mut spec);
    DesiredSnapshot::new(metadata, spec, format!("snapshots/{name}.yaml").parse().unwrap())
}

pub fn days(days: u64) -> Retain {
    Retain::For(Span::secs(days * 24 * 3600))
}

/// What an app runs, to change it.
fn runtime(spec: &mut AppSpec) -> &mut Runtime {
    Arc::make_mut(spec.runtime.as_mut().unwrap())
}
