//! `setpoint wait --for=… APP...`: returns once each app is so, or fails when the time is up.

use std::fmt;
use std::process::ExitCode;
use std::str::FromStr;
use std::time::{Duration, Instant};

use setpoint_schema::id::CommitId;
use setpoint_schema::name::AppKey;
use setpoint_schema::quantity::Span;
use setpoint_schema::wire::{self, ConditionKind, ConditionStatus};

use super::client::{Client, ClientError};
use super::follow::{PAUSE, Poll, Polled};
use super::get::kinds::{Resource as _, telling};
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
    /// Only when this revision is the app's, so that the readiness of an older one does not count
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
    let apps = if args.all { everything(&client, &args.selection).await? } else { args.apps.clone() };
    for app in &apps {
        let goal = Goal { until: &args.until, rev: args.rev.as_ref() };
        match wait_for(&client, app, &goal, deadline).await? {
            Ended::Reached => print(&format!("{app}: {goal}\n")),
            Ended::Late(how) => return Err(late(app, &goal, args.timeout, &how)),
        }
    }
    Ok(ExitCode::SUCCESS)
}

/// A commit, or as much of its beginning as git takes for one.
fn commit(text: &str) -> Result<CommitId, &'static str> {
    let hex = text.bytes().all(|byte| byte.is_ascii_hexdigit() && !byte.is_ascii_uppercase());
    if hex && (4..=64).contains(&text.len()) {
        Ok(CommitId(text.to_owned()))
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
            Self::Condition { kind, status } => write!(f, "{kind:?} is {status:?}"),
        }
    }
}

/// What is to be so, and of which revision.
struct Goal<'a> {
    until: &'a Until,
    rev: Option<&'a CommitId>,
}

impl fmt::Display for Goal<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.rev {
            None => self.until.fmt(f),
            Some(rev) => write!(f, "{} at revision {}", self.until, rev.short()),
        }
    }
}

impl Goal<'_> {
    fn is_reached(&self, app: &wire::App) -> bool {
        let applied = app.last_applied_revision.as_ref();
        let of_rev = self.rev.is_none_or(|rev| applied.is_some_and(|at| at.as_str().starts_with(rev.as_str())));
        let holds = match self.until {
            Until::Ready => app.ready,
            Until::Deleted => false,
            Until::Condition { kind, status } => {
                app.conditions.iter().any(|condition| condition.kind == *kind && condition.status == *status)
            }
        };
        of_rev && holds
    }
}

/// How the wait for one app ended.
enum Ended {
    Reached,
    /// The time is up; how the app was last.
    Late(String),
}

async fn everything(client: &Client, selection: &Selection) -> Result<Vec<AppKey>, ClientError> {
    let apps: Vec<wire::App> = client.list(wire::App::PATH).await?;
    Ok(apps.into_iter().filter(|app| selection.admits(app.traits())).map(|app| app.key()).collect())
}

/// An app that is not there yet may be on its way, as just after a push. A daemon that goes away may come back.
async fn wait_for(client: &Client, key: &AppKey, goal: &Goal<'_>, deadline: Instant) -> Result<Ended, ClientError> {
    let mut poll = Poll::new(client, format!("{}/{}/{}", wire::App::PATH, key.team, key.name));
    let (mut how, mut met) = ("it was never seen".to_owned(), false);
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        match poll.next::<wire::App>(left).await {
            Ok(Polled::Changed(app)) if goal.is_reached(&app) => return Ok(Ended::Reached),
            Ok(Polled::Changed(app)) => how = in_words(&app),
            Ok(Polled::Missing(_)) if *goal.until == Until::Deleted => return Ok(Ended::Reached),
            Ok(Polled::Missing(why) | Polled::NotYet(why)) => how = why,
            Ok(Polled::Same) => {}
            // One that cannot be reached at all is a wrong address rather than a restart.
            Err(error @ (ClientError::Unreachable { .. } | ClientError::Broken { .. })) if met => {
                how = error.to_string();
                tokio::time::sleep(PAUSE.min(left)).await;
            }
            Err(error) => return Err(error),
        }
        met = true;
        if left == Duration::ZERO {
            return Ok(Ended::Late(how));
        }
    }
}

fn in_words(app: &wire::App) -> String {
    let message = telling(app).map(|condition| format!(": {}", condition.message)).unwrap_or_default();
    format!("it is {}{message}", app.phase)
}

fn late(app: &AppKey, goal: &Goal<'_>, timeout: Span, how: &str) -> Failure {
    let error = Late { app: app.to_string(), goal: goal.to_string(), timeout, source: Reason(how.to_owned()) };
    let hint = format!("`setpoint describe app {app}` says more; --timeout waits longer");
    Failure::new(error, Some(hint))
}

#[derive(Debug, thiserror::Error)]
#[error("{app} did not come to this within {timeout}: {goal}")]
struct Late {
    app: String,
    goal: String,
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
