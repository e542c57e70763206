//! One request, taken apart and checked before its handler sees it.

use std::str::FromStr;

use axum::extract::RawPathParams;
use hyper::Uri;
use hyper::header::{ACCEPT, HeaderMap, HeaderName};
use setpoint_schema::name::{AppKey, AppName, SnapshotKey, SnapshotName, Team, WorkerName};

use super::entity::Known;
use super::params::{Page, Parameter, Params};
use super::refusal::Refusal;
use super::routes::Route;
use crate::http::Connection;

/// The header with which a client takes a broken stream up again.
const LAST_EVENT_ID: HeaderName = HeaderName::from_static("last-event-id");

/// One request to a route.
pub(super) struct Ask {
    /// The template of the route's path.
    pub(super) route: &'static str,
    /// What stands behind its `?`.
    pub(super) params: Params,
    /// Its target, by which answers are kept.
    pub(super) uri: Uri,
    /// Which states the client has.
    pub(super) known: Known,
    /// Which form of the answer it wants.
    pub(super) form: Form,
    /// The connection it came over.
    pub(super) connection: Connection,
    names: Vec<(String, String)>,
}

/// The forms of an answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Form {
    /// One document.
    Document,
    /// A stream of server-sent events, after the one with this id where the client has seen some.
    Stream {
        /// The id of the last one that the client has.
        after: Option<String>,
    },
}

impl Ask {
    /// Takes a request to `route` apart.
    pub(super) fn of(
        route: &Route,
        names: &RawPathParams,
        uri: Uri,
        headers: &HeaderMap,
        connection: Connection,
    ) -> Result<Self, Refusal> {
        Ok(Self {
            route: route.path,
            params: Params::of(&uri, route.parameters)?,
            uri,
            known: Known::of(headers),
            form: form(route, headers)?,
            connection,
            names: names.iter().map(|(name, value)| (name.to_owned(), value.to_owned())).collect(),
        })
    }

    /// What it asks for: path and query.
    pub(super) fn target(&self) -> &str {
        self.uri.path_and_query().map_or("/", |target| target.as_str())
    }

    /// The app that the path names. One that cannot be is not there.
    pub(super) fn app(&self) -> Result<AppKey, Refusal> {
        let team: Team = self.name("team", "a team's name")?;
        let name: AppName = self.name("name", "an app's name")?;
        Ok(AppKey::new(team, name))
    }

    /// The snapshot that the path names. One that cannot be is not there.
    pub(super) fn snapshot(&self) -> Result<SnapshotKey, Refusal> {
        let team: Team = self.name("team", "a team's name")?;
        let name: SnapshotName = self.name("name", "a snapshot's name")?;
        Ok(SnapshotKey::new(team, name))
    }

    /// The process that the path names. The spelling of a worker's name is that of `web` and `build` too.
    pub(super) fn process(&self) -> Result<WorkerName, Refusal> {
        self.name("process", "a process name")
    }

    /// Which page of a list, whose cursors are keys.
    pub(super) fn page<K: FromStr>(&self) -> Result<(Option<K>, usize), Refusal> {
        let Page { cursor, limit } = self.params.page()?;
        let parse = |cursor: String| {
            let bad = |_| Refusal::parameter("cursor", "`cursor` must be the `next` of an earlier page");
            cursor.parse().map_err(bad)
        };
        Ok((cursor.map(parse).transpose()?, limit))
    }

    fn name<T: FromStr<Err: std::fmt::Display>>(&self, segment: &str, what: &str) -> Result<T, Refusal> {
        let text = self.names.iter().find(|(name, _)| name == segment).map_or("", |(_, value)| value);
        text.parse().map_err(|error| Refusal::not_found(format!("{what} {error}")))
    }
}

/// A stream has no pages and no end to wait for.
fn form(route: &Route, headers: &HeaderMap) -> Result<Form, Refusal> {
    let wanted = headers.get_all(ACCEPT).iter().filter_map(|value| value.to_str().ok());
    let mut media = wanted.flat_map(|value| value.split(',')).filter_map(|range| range.split(';').next());
    if !route.streams() || !media.any(|media| media.trim().eq_ignore_ascii_case("text/event-stream")) {
        return Ok(Form::Document);
    }
    let after = headers.get(LAST_EVENT_ID).map(|id| id.to_str());
    let after = after.transpose().map_err(|_| Refusal::bad_request("`Last-Event-ID` must be the id of an event"))?;
    Ok(Form::Stream { after: after.filter(|id| !id.is_empty()).map(str::to_owned) })
}

impl Params {
    /// Refuses parameters that mean nothing for a stream.
    pub(super) fn refuse_for_stream(&self, parameters: &[Parameter]) -> Result<(), Refusal> {
        match parameters.iter().find(|parameter| self.text(**parameter).is_some()) {
            None => Ok(()),
            Some(parameter) => {
                let name = parameter.name();
                Err(Refusal::parameter(name, format!("`{name}` does not go with a stream")))
            }
        }
    }
}
