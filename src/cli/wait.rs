//! `setpoint wait --for=… APP...`: returns once each app is so, or fails when the time is up.

use std::fmt;
use std::process::ExitCode;
use std::str::FromStr;
use std::time::{Duration, Instant};

use serde::de::DeserializeOwned;
use setpoint_schema::id::CommitId;
use setpoint_schema::name::AppKey;
use setpoint_schema::quantity::Span;
use setpoint_schema::wire::{self, ConditionKind, ConditionStatus, Phase};

use super::client::{Client, ClientError};
use super::follow::{PAUSE, Poll, Polled};
use super::get::kinds::{Resource as _, path_of_app, telling};
use super::select::Selection;
use super::{Failure, Server, print};
use crate::config::Config;

#[derive(Debug, clap::Args)]
pub struct Args {
    /// Which apps, as NAME or TEAM/NAME
    #[arg(value_name = "APP", required_unless_present = "all")]
    apps: Vec<AppKey>,
    /// Every app that is there, or every one that is chosen
    #[arg(long, conflicts_with = "apps")]
    all: bool,
    /// For what: `ready`, `deleted`, or `condition=NAME[=VALUE]`, as `condition=Stalled=False`
    #[arg(long = "for", default_value = "ready", value_name = "STATE")]
    until: Until,
    /// First until the daemon has read this revision, so that readiness of an older one does not count
    #[arg(long, value_name = "COMMIT", value_parser = commit)]
    rev: Option<CommitId>,
    /// How long at most
    #[arg(long, default_value = "5m", value_name = "DURATION")]
    timeout: Span,
    #[command(flatten)]
    selection: Selection,
    #[command(flatten)]
    server: Server,
}

pub async fn run(config: Config, args: Args) -> Result<ExitCode, Failure> {
    let client = args.server.client(&config);
    let deadline = Instant::now() + args.timeout.as_duration();
    if let Some(rev) = &args.rev
        && let Ended::Late(how) = wait_for_revision(&client, rev, deadline).await?
    {
        return Err(late(format!("the daemon has not read revision {}", rev.short()), args.timeout, how));
    }
    let apps = if args.all { everything(&client, &args.selection).await? } else { args.apps.clone() };
    for app in &apps {
        match wait_for(&client, app, &args.until, deadline).await? {
            Ended::Reached(how) => print(&format!("{app}: {how}\n")),
            Ended::Late(how) => {
                return Err(late(format!("{app} has not come to be {}", args.until), args.timeout, how));
            }
        }
    }
    Ok(ExitCode::SUCCESS)
}

/// A commit, or as much of its beginning as git takes for one.
fn commit(text: &str) -> Result<CommitId, &'static str> {
    let hex = text.bytes().all(|byte| byte.is_ascii_hexdigit() && !byte.is_ascii_uppercase());
    if hex && (4..=64).contains(&text.len()) {
        Ok(CommitId(text.into()))
    } else {
        Err("a commit is written as 4 to 64 hexadecimal digits, as `git rev-parse HEAD` prints them")
    }
}

/// What to wait for.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Until {
    Ready,
    Deleted,
    Condition { kind: ConditionKind, status: ConditionStatus },
}

impl FromStr for Until {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        let unknown = || {
            let known = "`ready`, `deleted`, or `condition=NAME` with Ready, Reconciling or Stalled";
            Err(format!("it is one of {known}"))
        };
        let Some(condition) = text.strip_prefix("condition=") else {
            return match text {
                "ready" => Ok(Self::Ready),
                "deleted" | "delete" => Ok(Self::Deleted),
                _ => unknown(),
            };
        };
        let (kind, status) = condition.split_once('=').unwrap_or((condition, "True"));
        let same = |name: &str, word: &str| name.eq_ignore_ascii_case(word);
        let kinds = [ConditionKind::Ready, ConditionKind::Reconciling, ConditionKind::Stalled];
        let kind = kinds.into_iter().find(|known| same(kind, &format!("{known:?}")));
        let statuses = [ConditionStatus::True, ConditionStatus::False, ConditionStatus::Unknown];
        let status = statuses.into_iter().find(|known| same(status, &format!("{known:?}")));
        match (kind, status) {
            (Some(kind), Some(status)) => Ok(Self::Condition { kind, status }),
            (None, _) | (_, None) => unknown(),
        }
    }
}

impl fmt::Display for Until {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Ready => f.write_str("ready"),
            Self::Deleted => f.write_str("deleted"),
            Self::Condition { kind, status } => write!(f, "{kind:?}={status:?}"),
        }
    }
}

impl Until {
    /// What an app is that is as it should be.
    fn reached(&self, app: &wire::App) -> Option<String> {
        match self {
            Self::Ready if app.ready => Some(self.to_string()),
            // It rests on purpose, and nothing is left to do: however long somebody waits, it comes no further by itself.
            Self::Ready => matches!(app.phase, Phase::Paused | Phase::Stopped).then(|| app.phase.to_string()),
            Self::Deleted => None,
            Self::Condition { kind, status } => {
                let mut conditions = app.conditions.iter();
                conditions.any(|of| of.kind == *kind && of.status == *status).then(|| self.to_string())
            }
        }
    }
}

/// How a wait ended.
enum Ended {
    /// What it is, in a word.
    Reached(String),
    /// The time is up; how things were last.
    Late(String),
}

async fn everything(client: &Client, selection: &Selection) -> Result<Vec<AppKey>, ClientError> {
    let apps: Vec<wire::App> = client.list(wire::App::PATH).await?;
    Ok(apps.into_iter().filter(|app| selection.admits(app.traits())).map(|app| app.key()).collect())
}

/// A status and the apps beside it are of one pass: once it names the revision, apps are what that revision makes of them. One that
/// a newer took the place of is read, too.
async fn wait_for_revision(client: &Client, rev: &CommitId, deadline: Instant) -> Result<Ended, ClientError> {
    let is_it = |commit: &CommitId| commit.as_str().starts_with(rev.as_str());
    let mut watch = Watch::new(client, "/v1/status", deadline);
    while let Some(status) = watch.next::<wire::Status>().await? {
        let Seen::There(status) = status else { continue };
        if status.source.last_attempted.as_ref().is_some_and(is_it) {
            return Ok(Ended::Reached("read".to_owned()));
        }
        let tried: wire::List<wire::Revision> = client.get("/v1/revisions?limit=100").await?;
        if tried.items.iter().any(|tried| is_it(&tried.commit)) {
            return Ok(Ended::Reached("read".to_owned()));
        }
        let at = status.source.last_attempted.map_or("none yet".to_owned(), |commit| commit.short().to_owned());
        let error = status.source.error.map(|error| format!(": {error}")).unwrap_or_default();
        watch.how = format!("the newest that it has read is {at}{error}");
    }
    Ok(Ended::Late(watch.how))
}

/// An app that is not there yet may be on its way, as just after a push.
async fn wait_for(client: &Client, key: &AppKey, until: &Until, deadline: Instant) -> Result<Ended, ClientError> {
    let mut watch = Watch::new(client, &path_of_app(key), deadline);
    while let Some(app) = watch.next::<wire::App>().await? {
        match app {
            Seen::There(app) => match until.reached(&app) {
                Some(how) => return Ok(Ended::Reached(how)),
                None => watch.how = in_words(&app),
            },
            Seen::Missing if *until == Until::Deleted => return Ok(Ended::Reached(until.to_string())),
            Seen::Missing => {}
        }
    }
    Ok(Ended::Late(watch.how))
}

/// Looks at a document each time that it changes, until a deadline. A daemon that goes away meanwhile may come back.
struct Watch {
    poll: Poll,
    deadline: Instant,
    /// Whether a daemon has answered: one that never did is a wrong address rather than a restart.
    met: bool,
    over: bool,
    how: String,
}

enum Seen<T> {
    There(T),
    Missing,
}

impl Watch {
    fn new(client: &Client, path: &str, deadline: Instant) -> Self {
        Self { poll: Poll::new(client, path), deadline, met: false, over: false, how: "it was never seen".to_owned() }
    }

    /// What has changed; none when the time is up.
    async fn next<T: DeserializeOwned>(&mut self) -> Result<Option<Seen<T>>, ClientError> {
        while !self.over {
            let left = self.deadline.saturating_duration_since(Instant::now());
            self.over = left == Duration::ZERO;
            match self.poll.next::<T>(left).await {
                Ok(Polled::Changed(value)) => {
                    self.met = true;
                    return Ok(Some(Seen::There(value)));
                }
                Ok(Polled::Missing(why)) => {
                    (self.met, self.how) = (true, why);
                    return Ok(Some(Seen::Missing));
                }
                Ok(Polled::NotYet(why)) => (self.met, self.how) = (true, why),
                Ok(Polled::Same) => {}
                Err(error @ (ClientError::Unreachable { .. } | ClientError::Broken { .. })) if self.met => {
                    self.how = error.to_string();
                    tokio::time::sleep(PAUSE.min(left)).await;
                }
                Err(error) => return Err(error),
            }
        }
        Ok(None)
    }
}

fn in_words(app: &wire::App) -> String {
    let message = telling(app).map(|condition| format!(": {}", condition.message)).unwrap_or_default();
    format!("it is {}{message}", app.phase)
}

fn late(what: String, timeout: Span, how: String) -> Failure {
    let hint = "`setpoint get apps` and `setpoint describe app NAME` say more; --timeout waits longer".to_owned();
    Failure::new(Late { what, timeout, source: Reason(how) }, Some(hint))
}

#[derive(Debug, thiserror::Error)]
#[error("{what} within {timeout}")]
struct Late {
    what: String,
    timeout: Span,
    #[source]
    source: Reason,
}

#[derive(Debug, thiserror::Error)]
#[error("{0}")]
struct Reason(String);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_state_is_spelt_as_kubectl_spells_it() {
        let stalled = Until::Condition { kind: ConditionKind::Stalled, status: ConditionStatus::True };
        let settled = Until::Condition { kind: ConditionKind::Reconciling, status: ConditionStatus::False };
        assert_eq!("condition=stalled".parse(), Ok(stalled));
        assert_eq!("condition=Reconciling=false".parse(), Ok(settled));
        assert_eq!("delete".parse(), Ok(Until::Deleted));
        assert!("condition=Happy".parse::<Until>().is_err() && "soon".parse::<Until>().is_err());
    }
}
