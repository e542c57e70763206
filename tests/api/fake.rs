//! A daemon whose API is real and whose knowledge is made up.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::Mutex;

use async_trait::async_trait;
use axum::body::{Body, Bytes};
use futures_util::StreamExt as _;
use hyper::Request;
use hyper::header::{HOST, IF_NONE_MATCH};
use serde_json::json;
use setpoint::api::{Api, Backend, BackendError, Content, Follow, LogStream, Place, Rows, Snapshot};
use setpoint::http::Limits;
use setpoint_schema::id::SandboxId;
use setpoint_schema::name::{AppKey, HostName, TemplateName};
use setpoint_schema::observed::SnapshotRecord;
use setpoint_schema::wire;
use tokio::net::TcpListener;
use tokio::sync::{Notify, watch};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use crate::client::{Reply, get, send};

pub struct Fake {
    pub planning: Notify,
    pub planned: Notify,
    /// How many events there are.
    events: Mutex<u32>,
    history: watch::Sender<u64>,
}

impl Default for Fake {
    fn default() -> Self {
        let (planning, planned) = (Notify::new(), Notify::new());
        Self { planning, planned, events: Mutex::new(5), history: watch::Sender::new(0) }
    }
}

impl Fake {
    /// One more thing happens.
    pub fn happen(&self) {
        *self.events.lock().unwrap() += 1;
        self.history.send_modify(|version| *version += 1);
    }
}

#[async_trait]
impl Backend for Fake {
    fn events(&self, after: Option<&str>, limit: usize) -> Result<Vec<wire::Event>, BackendError> {
        let after = after.map(|id| id.parse::<u32>()).transpose();
        let first =
            after.map_err(|_| BackendError::BadParameter { parameter: "cursor", detail: "no such event".into() })?;
        let all = *self.events.lock().unwrap();
        Ok((first.map_or(0, |id| id + 1)..all).take(limit).map(event).collect())
    }

    fn history(&self) -> watch::Receiver<u64> {
        self.history.subscribe()
    }

    fn revisions(&self, after: Option<&str>, _: usize) -> Result<Vec<wire::Revision>, BackendError> {
        match after {
            None => Ok(vec![revision()]),
            Some(_) => Err(BackendError::Failed { operation: "read revisions", source: "checksum mismatch".into() }),
        }
    }

    async fn plan(&self, rev: Option<&str>) -> Result<serde_json::Value, BackendError> {
        if rev == Some("slow") {
            self.planning.notify_one();
            self.planned.notified().await;
        }
        Ok(json!({"format_version": "1.0", "rev": rev}))
    }

    fn observed(&self) -> Result<serde_json::Value, BackendError> {
        Ok(json!({"host": "box"}))
    }

    fn settings(&self) -> Result<wire::Settings, BackendError> {
        let setting = json!({"key": "converge.concurrency", "value": 4, "origin": "default", "reloads": true});
        let settings = json!({"file": null, "readAt": "2026-01-01T00:00:00Z", "settings": [setting]});
        Ok(serde_json::from_value(settings).unwrap())
    }

    fn metrics(&self) -> String {
        "# EOF\n".to_owned()
    }

    fn answered(&self, _: &'static str, _: u16) {}

    async fn logs(&self, app: &AppKey, process: &str, tail: u32, follow: Follow) -> Result<LogStream, BackendError> {
        match process {
            "web" => {}
            "sleeper" => return Err(BackendError::Unavailable("the app is stopped".into())),
            _ => return Err(BackendError::NotFound(format!("{app} has no process {process}"))),
        }
        let last = futures_util::stream::iter([Ok(Bytes::from(format!("last {tail} of {app}\n")))]);
        Ok(match follow {
            Follow::No => last.boxed(),
            Follow::Yes => last.chain(futures_util::stream::pending()).boxed(),
        })
    }
}

pub struct Daemon {
    pub address: SocketAddr,
    pub snapshot: watch::Sender<Option<Arc<Snapshot>>>,
    pub backend: Arc<Fake>,
    pub shutdown: CancellationToken,
    pub served: JoinHandle<()>,
}

impl Daemon {
    pub async fn start(limits: Limits) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (snapshot, seen) = watch::channel(Some(Arc::new(snapshot())));
        let backend = Arc::new(Fake::default());
        let hosts = BTreeSet::from([HostName::new("setpoint.example.org").unwrap()]);
        let api = Api { snapshot: seen, backend: Arc::<Fake>::clone(&backend), hosts };
        let shutdown = CancellationToken::new();
        let served = tokio::spawn(api.serve(listener, limits, shutdown.clone()));
        Self { address, snapshot, backend, shutdown, served }
    }

    pub async fn get(&self, path: &str) -> Reply {
        get(self.address, "127.0.0.1:7878", path).await
    }

    /// The same from somebody who has the state with this tag.
    pub async fn get_unless(&self, path: &str, tag: &str) -> Reply {
        let request = Request::get(path).header(HOST, "localhost").header(IF_NONE_MATCH, tag);
        send(self.address, request.body(Body::empty()).unwrap()).await
    }

    /// A pass ends that says all of this.
    pub fn publish(&self, content: Content) {
        let before = self.snapshot.borrow().clone();
        self.snapshot.send_replace(Some(Arc::new(Snapshot::after(before.as_deref(), content))));
    }

    /// A pass ends that has something new to say of an app.
    pub fn publish_app(&self, app: wire::App) {
        self.publish(Content { apps: Rows::Changed([(app.key(), Some(app))].into()), ..content() });
    }
}

pub fn snapshot() -> Snapshot {
    Snapshot::after(None, content())
}

pub fn content() -> Content {
    let apps = ["alpha", "blog", "ops/alpha", "zeta"].map(|key| key.parse::<AppKey>().unwrap());
    let ids = ["alpha-00000001", "blog-00000002", "zeta-00000003"].map(|id| SandboxId(id.into()));
    Content {
        at: "2026-01-01T00:00:05Z".parse().unwrap(),
        status: serde_json::from_value(status()).unwrap(),
        apps: Rows::All(apps.into_iter().map(|key| (key.clone(), app(&key))).collect()),
        sandboxes: Rows::All(ids.into_iter().map(|id| (id.clone(), sandbox(&id))).collect()),
        templates: Rows::All([("minimal", 3), ("web", 1)].into_iter().map(template).collect()),
        snapshots: Rows::All([("nightly", 1), ("nightly", 2), ("ops/before", 1)].into_iter().map(kept).collect()),
    }
}

pub fn status() -> serde_json::Value {
    json!({
        "version": "0.1.0", "host": "box", "startedAt": "2026-01-01T00:00:00Z",
        "source": {
            "url": "https://git.example.org/a.git", "branch": "main", "lastAttempted": "c0ffee", "lastApplied": null,
            "error": null, "since": null
        },
        "apps": {"total": 4, "ready": 4, "reconciling": 0, "unready": 0, "blocked": 0, "stalled": 0, "resting": 0},
        "driver": "sim",
        "limits": {
            "memory": {"used": "1Gi", "total": "4Gi"}, "vcpus": {"used": 4, "total": 8},
            "disk": {"used": "4Gi", "total": "100Gi"}, "sandboxes": {"used": 4, "total": 50}
        }
    })
}

pub fn app(key: &AppKey) -> wire::App {
    serde_json::from_value(json!({
        "team": key.team, "name": key.name, "phase": "ready", "ready": true, "conditions": [{
            "type": "Ready", "status": "True", "reason": "Healthy", "message": "web answers", "since": "2026-01-01T00:00:00Z"
        }],
        "generation": 2, "observedGeneration": 2, "lastAttemptedRevision": "c0ffee", "lastAppliedRevision": "c0ffee",
        "blocked": [], "held": null, "dependsOn": [], "sandbox": "blog-00000002", "preview": "up",
        "urls": ["http://blog.localhost:8080/"], "urlsMissing": [],
        "build": {"state": "skipped"},
        "web": {"process": {"state": "running", "restarts": 1}, "health": {"state": "healthy"}},
        "workers": [], "restarts": 1, "power": "running", "template": "minimal",
        "resources": {"vcpus": 1, "memory": "256Mi", "disk": "1Gi"}, "labels": {}
    }))
    .unwrap()
}

pub fn sandbox(id: &SandboxId) -> wire::Sandbox {
    serde_json::from_value(json!({
        "id": id, "app": "blog", "host": "box",
        "vm": {"state": "running", "nonce": "ab", "since": "2026-01-01T00:00:00Z"},
        "vcpus": 1, "memory": "256Mi", "disk": {"id": "blog-00000002", "size": "1Gi"}, "createdAt": "2026-01-01T00:00:00Z"
    }))
    .unwrap()
}

pub fn template((name, apps): (&str, u32)) -> (TemplateName, wire::Template) {
    let root = json!({"kind": "repoRootfs", "path": "templates/web"});
    let template = json!({"name": name, "digest": "d1", "root": root, "apps": apps});
    (TemplateName::new(name).unwrap(), serde_json::from_value(template).unwrap())
}

pub fn kept((key, generation): (&str, u64)) -> (Place, wire::Snapshot) {
    let record: SnapshotRecord = serde_json::from_value(json!({
        "id": format!("{generation:032x}"), "key": key, "app": "blog", "generation": generation,
        "cause": {"declared": {"digest": "d1"}}, "content": "disk", "exclude": ["node_modules"], "retain": "30d",
        "moment": {
            "sandbox": "blog-00000002", "machine": {
                "sandbox": "blog-00000002", "app": "blog", "uid": null, "nonce": "ab", "vcpus": 1, "memory_mib": 256,
                "template": "t1", "disk": "blog-00000002"
            },
            "disk": "1Gi", "revision": "c0ffee", "tree": "f1"
        },
        "state": {"kept": {"at": "2026-01-01T00:00:00Z", "bytes": "8Mi", "stopped_ms": 9}}
    }))
    .unwrap();
    (Place::of(&record), wire::Snapshot::of(&record, None))
}

pub fn event(id: u32) -> wire::Event {
    serde_json::from_value(json!({
        "id": id.to_string(), "at": "2026-01-01T00:00:00Z", "kind": "healed", "app": "blog", "sandbox": null,
        "reason": "Panic", "message": "the guest kernel panicked"
    }))
    .unwrap()
}

pub fn revision() -> wire::Revision {
    serde_json::from_value(json!({
        "commit": "c0ffee", "state": "applied", "message": "4 apps", "attemptedAt": "2026-01-01T00:00:00Z",
        "appliedAt": "2026-01-01T00:00:09Z", "durationMs": 9000, "actions": {"created": 4}
    }))
    .unwrap()
}
