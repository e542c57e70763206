//! What a snapshot shows: the daemon, its apps, sandboxes and templates, each alone or in pages.

use std::ops::Bound;
use std::str::FromStr;
use std::sync::Arc;

use axum::body::Bytes;
use axum::response::Response;
use hyper::Uri;
use serde::Serialize;
use setpoint_schema::id::SandboxId;
use setpoint_schema::name::{AppKey, Team, TemplateName};
use setpoint_schema::wire::{self, Phase};

use super::ask::Ask;
use super::cache::{Cache, Made};
use super::entity::{Body, Entity, Tag};
use super::fields::Fields;
use super::params::Parameter;
use super::poll::{self, OfSnapshot};
use super::refusal::Refusal;
use super::routes::Sources;
use super::snapshot::{Row, Snapshot, Table, Versioned};

pub(super) async fn status(sources: Sources, ask: Ask) -> Result<Response, Refusal> {
    let (cache, uri, fields) = (Arc::clone(&sources.cache), ask.uri.clone(), ask.fields("Status")?);
    let look = move |snapshot: &Snapshot| Ok(object(&cache, &uri, fields.as_ref(), &snapshot.status));
    poll::answer(&sources, ask, OfSnapshot::new(&sources, look), "status").await
}

pub(super) async fn app(sources: Sources, ask: Ask) -> Result<Response, Refusal> {
    let (cache, uri, fields) = (Arc::clone(&sources.cache), ask.uri.clone(), ask.fields("App")?);
    let key = ask.app()?;
    let look = move |snapshot: &Snapshot| {
        let app = snapshot.apps.get(&key).ok_or_else(|| Refusal::no_app(&key))?;
        Ok(object(&cache, &uri, fields.as_ref(), app))
    };
    poll::answer(&sources, ask, OfSnapshot::new(&sources, look), "app").await
}

pub(super) async fn apps(sources: Sources, ask: Ask) -> Result<Response, Refusal> {
    let team: Option<Team> = ask.params.parsed(Parameter::Team)?;
    let phase = ask.phase()?;
    let labels = ask.params.labels()?;
    let wanted = move |app: &wire::App| {
        team.as_ref().is_none_or(|team| app.team == *team)
            && phase.is_none_or(|phase| app.phase == phase)
            && labels.iter().all(|(key, value)| app.labels.get(key) == Some(value))
    };
    let list: List<AppKey, _> = List::of(&sources, &ask, "App", Box::new(wanted))?;
    let look = move |snapshot: &Snapshot| Ok(list.page(&snapshot.apps));
    poll::answer(&sources, ask, OfSnapshot::new(&sources, look), "apps").await
}

pub(super) async fn sandboxes(sources: Sources, ask: Ask) -> Result<Response, Refusal> {
    let app: Option<AppKey> = ask.params.parsed(Parameter::App)?;
    let wanted = move |sandbox: &wire::Sandbox| app.as_ref().is_none_or(|app| sandbox.app == *app);
    let list: List<SandboxCursor, _> = List::of(&sources, &ask, "Sandbox", Box::new(wanted))?;
    let list = list.keyed(|SandboxCursor(id)| id);
    let look = move |snapshot: &Snapshot| Ok(list.page(&snapshot.sandboxes));
    poll::answer(&sources, ask, OfSnapshot::new(&sources, look), "sandboxes").await
}

pub(super) async fn templates(sources: Sources, ask: Ask) -> Result<Response, Refusal> {
    let list: List<TemplateName, _> = List::of(&sources, &ask, "Template", Box::new(|_: &wire::Template| true))?;
    let look = move |snapshot: &Snapshot| Ok(list.page(&snapshot.templates));
    poll::answer(&sources, ask, OfSnapshot::new(&sources, look), "templates").await
}

/// One object, or the part of it that was asked for.
pub(super) fn object<T: Serialize + Send + Sync + 'static, K: Send + Sync + 'static>(
    cache: &Cache,
    uri: &Uri,
    fields: Option<&Fields>,
    object: &Arc<Versioned<T, K>>,
) -> Entity {
    let Some(fields) = fields else {
        let (tag, object) = (object.version().into(), Arc::clone(object));
        return Entity { tag, body: Box::new(move || object.json().clone()) };
    };
    let basis = object.version().0;
    cache.get(uri, basis).unwrap_or_else(|| {
        // The part may be the same where the whole is not, so that its tag comes from what it says.
        let bytes = Bytes::from(part(fields, object.value()).to_string());
        cache.put(uri, basis, Made { entity: made_of(bytes), items: 1 })
    })
}

/// A list of which pages are asked for.
pub(super) struct List<K, V> {
    cache: Arc<Cache>,
    uri: Uri,
    after: Option<K>,
    limit: usize,
    fields: Option<Fields>,
    wanted: Box<dyn Fn(&V) -> bool + Send>,
}

impl<K: FromStr, V> List<K, V> {
    pub(super) fn of(
        sources: &Sources,
        ask: &Ask,
        item: &'static str,
        wanted: Box<dyn Fn(&V) -> bool + Send>,
    ) -> Result<Self, Refusal> {
        let (after, limit) = ask.page()?;
        let (cache, uri) = (Arc::clone(&sources.cache), ask.uri.clone());
        Ok(Self { cache, uri, after, limit, fields: ask.fields(item)?, wanted })
    }
}

impl<K, V> List<K, V> {
    fn keyed<L>(self, key: impl FnOnce(K) -> L) -> List<L, V> {
        let Self { cache, uri, after, limit, fields, wanted } = self;
        List { cache, uri, after: after.map(key), limit, fields, wanted }
    }
}

impl<K, V> List<K, V>
where
    K: Ord + ToString + Send + Sync + 'static,
    V: PartialEq + Serialize + Send + Sync + 'static,
{
    /// The page after the key `after`, which need not exist any more.
    pub(super) fn page(&self, table: &Table<K, V>) -> Entity {
        let basis = table.version().0;
        self.cache.get(&self.uri, basis).unwrap_or_else(|| self.cache.put(&self.uri, basis, self.make(table)))
    }

    fn make(&self, table: &Table<K, V>) -> Made {
        let start = self.after.as_ref().map_or(Bound::Unbounded, Bound::Excluded);
        let wanted = table.range(start).iter().filter(|row| (self.wanted)(row.value()));
        // One more than fits says that there is a next page.
        let mut rows: Vec<Row<K, V>> = wanted.take(self.limit + 1).cloned().collect();
        let more = rows.len().saturating_sub(self.limit);
        rows.truncate(self.limit);
        let next = rows.last().filter(|_| more > 0).map(|row| row.key().to_string());
        let items = rows.len();
        let entity = match &self.fields {
            None => {
                let tag = Tag::of_versions(rows.iter().map(|row| row.version()), more);
                let body: Body = Box::new(move || joined(rows.iter().map(|row| row.json()), next.as_deref()));
                Entity { tag, body }
            }
            Some(fields) => {
                let parts: Vec<_> = rows.iter().map(|row| Bytes::from(part(fields, row.value()).to_string())).collect();
                made_of(joined(parts.iter(), next.as_deref()))
            }
        };
        Made { entity, items }
    }
}

/// A page of items that are JSON already.
pub(super) fn joined<'a>(items: impl ExactSizeIterator<Item = &'a Bytes> + Clone, next: Option<&str>) -> Bytes {
    let length: usize = items.clone().map(|item| item.len() + 1).sum();
    let mut page = Vec::with_capacity(length + 256);
    page.extend_from_slice(b"{\"items\":[");
    for (place, item) in items.enumerate() {
        if place > 0 {
            page.push(b',');
        }
        page.extend_from_slice(item);
    }
    page.extend_from_slice(b"],\"next\":");
    page.extend_from_slice(serde_json::Value::from(next).to_string().as_bytes());
    page.push(b'}');
    page.into()
}

/// An entity that is known by its bytes alone.
pub(super) fn made_of(bytes: Bytes) -> Entity {
    Entity { tag: Tag::of_bytes(&bytes), body: Box::new(move || bytes) }
}

/// The part of an object that was asked for.
pub(super) fn part(fields: &Fields, object: &impl Serialize) -> serde_json::Value {
    fields.of(serde_json::to_value(object).expect("wire types hold only what JSON can say"))
}

/// Any text can stand where a sandbox's id does.
struct SandboxCursor(SandboxId);

impl FromStr for SandboxCursor {
    type Err = std::convert::Infallible;
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        Ok(Self(SandboxId(text.into())))
    }
}

impl Ask {
    /// Which fields of a type to show; all without `fields`.
    pub(super) fn fields(&self, type_name: &'static str) -> Result<Option<Fields>, Refusal> {
        self.params.text(Parameter::Fields).map(|text| Fields::parse(text, type_name)).transpose()
    }

    fn phase(&self) -> Result<Option<Phase>, Refusal> {
        let Some(text) = self.params.text(Parameter::Phase) else { return Ok(None) };
        let phase = serde_json::from_value(serde_json::Value::from(text));
        phase.map(Some).map_err(|_| Refusal::parameter("phase", format!("there is no phase `{text}`")))
    }
}
