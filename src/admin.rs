//! The admin socket: what somebody on this host may change beside git. HTTP over a Unix socket in the state directory.
//!
//! The daemon serves it and `setpoint suspend` and `resume` ask it. It is a way of its own because the status API only reads: who
//! comes here is known by the kernel, has to be the daemon's own user or root, and stands in the event that each change leaves.
//!
//! ```text
//!   POST /v1/apps/{team}/{name}/suspend   freezes an app, whatever its declaration says
//!   POST /v1/apps/{team}/{name}/resume    ends that
//!   POST /v1/apps/{team}/{name}/pause     lets an app rest with its memory kept, until another power is declared
//!   POST /v1/apps/{team}/{name}/wake      lets it run
//!   POST /v1/apps/{team}/{name}/keepalive?for=2h   keeps it from resting by itself for so long; `for=0s` ends that
//!   POST /v1/apps/{team}/{name}/snapshot  keeps a moment of it (see `snapshot`)
//! ```
//!
//! A suspension is a field of the app's record in the store, so it outlives the daemon, and the loop wakes because a record changed.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use axum::body::Body;
use hyper::body::Incoming;
use hyper::header::{ALLOW, CONTENT_TYPE, HeaderValue};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use serde::{Deserialize, Serialize};
use setpoint_plan::model::Hold;
use setpoint_schema::name::{AppKey, AppName, Team};
use setpoint_schema::observed::{AppRecord, PowerCause, PowerOverride, Suspension};
use setpoint_schema::quantity::Span;
use setpoint_schema::wire::{KeepaliveChange, Override, OverrideChange, PowerChange, Problem};
use setpoint_state::{EventKind, NewEvent, StateError};
use tokio::net::UnixStream;
use tokio::sync::{Semaphore, watch};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::converge::Pass;
use crate::http::problem;
use crate::keepalive;
use crate::ledger::Ledger;
use crate::observe::Observer;
use crate::power::{Answer, PowerSwitch, Wanted};
use crate::report::chain;

pub use socket::AdminSocket;

pub mod client;
mod snapshot;
mod socket;

/// Far more than people who type commands need.
const CONNECTIONS: usize = 16;
/// From connecting to the end of the answer.
const PATIENCE: Duration = Duration::from_secs(10);

/// Carries out what is asked for.
#[derive(Clone)]
pub struct Admin {
    /// Keeps what is changed.
    pub ledger: Ledger,
    /// Knows the time.
    pub observer: Observer,
    /// What the loop makes of the records.
    pub passes: watch::Receiver<Option<Arc<Pass>>>,
}

/// What is remembered of each app.
type Records = BTreeMap<AppKey, Arc<AppRecord>>;

/// Who asks, as the kernel says.
#[derive(Debug, Clone, Copy)]
struct Caller {
    user: u32,
    process: Option<i32>,
}

/// Why something is not done.
#[derive(Debug, Serialize, Deserialize)]
struct Refusal {
    #[serde(flatten)]
    problem: Problem,
    /// What to do about it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    hint: Option<String>,
}

/// What is asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verb {
    /// Freeze the app.
    Suspend,
    /// End that.
    Resume,
    /// Let the app rest.
    Pause,
    /// Let it run.
    Wake,
    /// Keep it from resting by itself.
    Keepalive,
    /// Keep a moment of it.
    Snapshot,
}

impl Verb {
    /// The last part of its path.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Suspend => "suspend",
            Self::Resume => "resume",
            Self::Pause => "pause",
            Self::Wake => "wake",
            Self::Keepalive => "keepalive",
            Self::Snapshot => "snapshot",
        }
    }

    const ALL: [Self; 6] = [Self::Suspend, Self::Resume, Self::Pause, Self::Wake, Self::Keepalive, Self::Snapshot];
}

/// A suspension's beginning or end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Freeze {
    Begin,
    End,
}

impl Freeze {
    fn done(self) -> &'static str {
        match self {
            Self::Begin => "suspended",
            Self::End => "resumed",
        }
    }
}

impl Admin {
    /// Serves until `shutdown`, then lets answers that have begun come to their end.
    pub async fn serve(self, socket: AdminSocket, shutdown: CancellationToken) {
        let tasks = TaskTracker::new();
        let places = Arc::new(Semaphore::new(CONNECTIONS));
        while let Some(stream) = shutdown.run_until_cancelled(socket.accept()).await {
            let Ok(place) = Arc::clone(&places).try_acquire_owned() else { continue };
            let admin = self.clone();
            tasks.spawn(async move {
                // Whoever does not come to an end in time is somebody who types, or a mistake.
                drop(tokio::time::timeout(PATIENCE, admin.answer_on(stream)).await);
                drop(place);
            });
        }
        drop(socket);
        tasks.close();
        tasks.wait().await;
    }

    async fn answer_on(&self, stream: UnixStream) {
        let caller = Caller::of(&stream);
        let service = service_fn(move |request: Request<Incoming>| async move {
            Ok::<_, std::convert::Infallible>(self.answer(caller, &request).await)
        });
        let served = http1::Builder::new()
            .timer(TokioTimer::new())
            .header_read_timeout(PATIENCE)
            .keep_alive(false)
            .serve_connection(TokioIo::new(stream), service);
        // What goes wrong here is the client's doing, and hyper has answered it where it could.
        drop(served.await);
    }

    async fn answer(&self, caller: Option<Caller>, request: &Request<Incoming>) -> Response<Body> {
        let Some(caller) = caller.filter(Caller::is_trusted) else {
            let detail = "only the daemon's own user and root may ask this";
            return advise(StatusCode::FORBIDDEN, detail, "run this as the daemon's user, or as root");
        };
        let Some((app, verb)) = target(request.uri().path()) else {
            return refuse(StatusCode::NOT_FOUND, "there is nothing under this path");
        };
        if request.method() != Method::POST {
            let mut response = refuse(StatusCode::METHOD_NOT_ALLOWED, "this is asked by POST");
            response.headers_mut().insert(ALLOW, HeaderValue::from_static("POST"));
            return response;
        }
        let answered = match verb {
            Verb::Suspend => self.freeze(&app, Freeze::Begin, caller).await,
            Verb::Resume => self.freeze(&app, Freeze::End, caller).await,
            Verb::Pause => self.switch(&app, Wanted::Paused, caller).await,
            Verb::Wake => self.switch(&app, Wanted::Running, caller).await,
            Verb::Keepalive => self.keepalive(&app, request.uri().query(), caller).await,
            Verb::Snapshot => self.keep(&app, request.uri(), caller).await,
        };
        answered.unwrap_or_else(|error| refuse(StatusCode::INTERNAL_SERVER_ERROR, chain(&error)))
    }

    async fn freeze(&self, app: &AppKey, freeze: Freeze, caller: Caller) -> Result<Response<Body>, StateError> {
        Ok(self.change(app, freeze, caller).await?.map_or_else(|| unknown(app), |change| accept(&change)))
    }

    async fn switch(&self, app: &AppKey, wanted: Wanted, caller: Caller) -> Result<Response<Body>, StateError> {
        let switch = PowerSwitch { ledger: self.ledger.clone(), observer: self.observer.clone() };
        let accepted = |changed, held: Option<PowerOverride>| {
            accept(&PowerChange { app: app.clone(), changed, now: held.as_ref().map(Into::into) })
        };
        Ok(match switch.ask(app, wanted, PowerCause::Asked { by: caller.user() }).await? {
            Answer::Changed(held) => accepted(true, held),
            Answer::AlreadySo(held) => accepted(false, held),
            Answer::Refused(why) => {
                advise(StatusCode::CONFLICT, format!("{app}: {why}"), "declare it `running` or `paused` first")
            }
            Answer::Unknown => unknown(app),
        })
    }

    async fn keepalive(&self, app: &AppKey, query: Option<&str>, caller: Caller) -> Result<Response<Body>, StateError> {
        let span = query.and_then(|query| query.strip_prefix("for=")).and_then(|text| text.parse::<Span>().ok());
        let Some(span) = span else {
            return Ok(refuse(StatusCode::BAD_REQUEST, "`for` has to say for how long, as `for=2h`"));
        };
        let (by, now) = (caller.user(), self.observer.now());
        Ok(match keepalive::keep(&self.ledger, app, span, by, now).await? {
            keepalive::Answer::Done { changed, now, action } => {
                tracing::info!(%app, %span, by = caller.in_full(), "keepalive changed");
                accept(&KeepaliveChange { app: app.clone(), changed, now: now.as_ref().map(Into::into), action })
            }
            keepalive::Answer::TooLong(most) => advise(
                StatusCode::BAD_REQUEST,
                format!("{span} is longer than the {most} for which an app is kept from resting at most"),
                "ask again by then, or declare it without `power.idle`",
            ),
            keepalive::Answer::Unknown => unknown(app),
        })
    }

    /// Carries out what is asked, unless things are so already; `None` for an app that nobody knows.
    async fn change(&self, app: &AppKey, freeze: Freeze, caller: Caller) -> Result<Option<OverrideChange>, StateError> {
        let records = self.ledger.apps();
        if !records.contains_key(app) {
            return Ok(None);
        }
        let holder = self.holder(app, &records);
        let (holder, kind, wanted) = match (freeze, holder) {
            (Freeze::Begin, None) => {
                let suspension = Suspension { since: self.observer.now(), by: caller.user() };
                (app.clone(), EventKind::SuspendedHere, Some(suspension))
            }
            (Freeze::End, Some(holder)) => (holder, EventKind::ResumedHere, None),
            (Freeze::Begin | Freeze::End, holder) => {
                let now = holder.and_then(|holder| Some(records.get(&holder)?.suspended.as_ref()?.into()));
                return Ok(Some(OverrideChange { app: app.clone(), changed: false, now }));
            }
        };
        let now = wanted.as_ref().map(Override::from);
        let event = NewEvent::new(kind, "Override", format!("{} here by {}", freeze.done(), caller.in_full()));
        let change = move |apps: &Records| {
            let record = apps.get(&holder).map(|record| AppRecord { suspended: wanted, ..AppRecord::clone(record) });
            record.into_iter().collect()
        };
        self.ledger.note(vec![event.app(app)], change).await?;
        tracing::info!(%app, by = caller.in_full(), now = freeze.done(), "override changed");
        Ok(Some(OverrideChange { app: app.clone(), changed: true, now }))
    }

    /// Whose record says that an app is suspended: its own, or that of the name which its sandbox had before a rename.
    fn holder(&self, app: &AppKey, records: &Records) -> Option<AppKey> {
        if records.get(app)?.suspended.is_some() {
            return Some(app.clone());
        }
        let pass = self.passes.borrow().clone()?;
        let held = pass.plan.held.iter().find(|held| held.app == *app)?;
        let Hold::SuspendedHere(suspension) = &held.reason else { return None };
        records.values().find(|record| record.suspended.as_ref() == Some(suspension)).map(|record| record.key.clone())
    }
}

impl Caller {
    /// Absent where the kernel does not say.
    fn of(stream: &UnixStream) -> Option<Self> {
        let credentials = stream.peer_cred().ok()?;
        Some(Self { user: credentials.uid(), process: credentials.pid() })
    }

    fn is_trusted(&self) -> bool {
        self.user == 0 || self.user == rustix::process::geteuid().as_raw()
    }

    fn user(self) -> String {
        format!("uid {}", self.user)
    }

    fn in_full(self) -> String {
        match self.process {
            Some(process) => format!("{} (process {process})", self.user()),
            None => self.user(),
        }
    }
}

/// The app and what is asked for it, in a path.
fn target(path: &str) -> Option<(AppKey, Verb)> {
    let mut parts = path.strip_prefix("/v1/apps/")?.split('/');
    let (team, name, verb) = (parts.next()?, parts.next()?, parts.next()?);
    let verb = Verb::ALL.into_iter().find(|known| known.as_str() == verb)?;
    if parts.next().is_some() {
        return None;
    }
    Some((AppKey::new(Team::new(team).ok()?, AppName::new(name).ok()?), verb))
}

fn unknown(app: &AppKey) -> Response<Body> {
    advise(StatusCode::NOT_FOUND, format!("there is no app {app}"), "`setpoint get apps` lists what there is")
}

fn accept(change: &impl Serialize) -> Response<Body> {
    let body = serde_json::to_vec(change).expect("names and times serialise");
    let mut response = Response::new(Body::from(body));
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    response
}

fn refuse(status: StatusCode, detail: impl Into<String>) -> Response<Body> {
    problem::response(&problem::problem(status, detail))
}

/// A refusal that says what to do about it.
fn advise(status: StatusCode, detail: impl Into<String>, hint: &str) -> Response<Body> {
    let problem = problem::problem(status, detail);
    let mut response = problem::response(&problem);
    let refusal = Refusal { problem, hint: Some(hint.to_owned()) };
    *response.body_mut() = Body::from(serde_json::to_vec(&refusal).expect("a refusal holds only text and a number"));
    response
}
