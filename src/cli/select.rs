//! Which objects a verb is about: by team, by label, by phase.

use std::convert::Infallible;
use std::str::FromStr;

use setpoint_schema::name::Team;
use setpoint_schema::notes::Notes;
use setpoint_schema::wire::Phase;

use super::follow::Query;

/// The flags that choose among many.
#[derive(Debug, Clone, Default, clap::Args)]
pub struct Selection {
    /// Only apps with these labels: `name=value`, `name!=value`, or `name` for any value
    #[arg(short = 'l', long = "selector", value_name = "LABELS", value_delimiter = ',')]
    labels: Vec<Requirement>,
    #[command(flatten)]
    of: OfTeam,
    /// Only apps in these phases, as `ready` or `blocked,stalled`
    #[arg(long, value_name = "PHASE", value_delimiter = ',', value_parser = phase)]
    phase: Vec<Phase>,
}

/// The flag that chooses by team, of every verb that shows more than one app.
#[derive(Debug, Clone, Default, clap::Args)]
pub struct OfTeam {
    /// Only this team's
    #[arg(long, value_name = "TEAM")]
    team: Option<Team>,
}

impl OfTeam {
    /// Whether what this team owns is meant; `None` is what no team owns.
    #[must_use]
    pub fn admits(&self, team: Option<&Team>) -> bool {
        self.team.as_ref().is_none_or(|wanted| team == Some(wanted))
    }

    /// Whether a team is named.
    #[must_use]
    pub fn is_named(&self) -> bool {
        self.team.is_some()
    }
}

impl From<OfTeam> for Selection {
    fn from(of: OfTeam) -> Self {
        Self { of, ..Self::default() }
    }
}

/// What is known of an object when it is chosen or not; absent parts are those that its kind has not.
#[derive(Debug, Clone, Copy, Default)]
pub struct Traits<'a> {
    /// The owning team.
    pub team: Option<&'a Team>,
    /// The labels of an app.
    pub labels: Option<&'a Notes>,
    /// The phase of an app.
    pub phase: Option<Phase>,
}

/// What is asked of one label.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Requirement {
    Is(String, String),
    IsNot(String, String),
    Exists(String),
}

impl FromStr for Requirement {
    type Err = Infallible;
    fn from_str(text: &str) -> Result<Self, Infallible> {
        let text = text.trim();
        Ok(match (text.split_once("!="), text.split_once('=')) {
            (Some((name, value)), _) => Self::IsNot(name.to_owned(), value.to_owned()),
            (None, Some((name, value))) => Self::Is(name.to_owned(), value.trim_start_matches('=').to_owned()),
            (None, None) => Self::Exists(text.to_owned()),
        })
    }
}

impl Requirement {
    fn holds(&self, labels: &Notes) -> bool {
        match self {
            Self::Is(name, value) => labels.get(name) == Some(value),
            Self::IsNot(name, value) => labels.get(name) != Some(value),
            Self::Exists(name) => labels.contains_key(name),
        }
    }
}

/// Every phase, for messages and checks.
const PHASES: [Phase; 10] = [
    Phase::Pending,
    Phase::Blocked,
    Phase::Reconciling,
    Phase::Ready,
    Phase::Unready,
    Phase::Paused,
    Phase::Stopped,
    Phase::Suspended,
    Phase::Stalled,
    Phase::Deleting,
];

fn phase(text: &str) -> Result<Phase, String> {
    PHASES.into_iter().find(|phase| phase.as_str() == text).ok_or_else(|| {
        let known: Vec<_> = PHASES.iter().map(|phase| phase.as_str()).collect();
        format!("a phase is one of {}", known.join(", "))
    })
}

impl Selection {
    /// Whether it chooses everything.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.labels.is_empty() && !self.of.is_named() && self.phase.is_empty()
    }

    /// As much of it as the API can choose by, so that a list of ten thousand is not read for a few. The rest is chosen here.
    #[must_use]
    pub fn query(&self) -> Query {
        let phase = match &self.phase[..] {
            [phase] => Some(phase.as_str()),
            [] | [_, _, ..] => None,
        };
        let query =
            Query::default().with_some("team", self.of.team.as_ref().map(Team::as_str)).with_some("phase", phase);
        self.labels.iter().fold(query, |query, label| match label {
            Requirement::Is(name, value) => query.with("label", &format!("{name}={value}")),
            Requirement::IsNot(..) | Requirement::Exists(_) => query,
        })
    }

    /// Whether an object is meant.
    #[must_use]
    pub fn admits(&self, object: Traits<'_>) -> bool {
        let team = self.of.admits(object.team);
        let phase = self.phase.is_empty() || object.phase.is_some_and(|phase| self.phase.contains(&phase));
        let labels = self.labels.iter().all(|label| object.labels.is_some_and(|labels| label.holds(labels)));
        team && phase && labels
    }

    /// The first flag that objects with these traits cannot be chosen by.
    #[must_use]
    pub fn beyond(&self, kind: Traits<'_>) -> Option<&'static str> {
        [
            ("--team", self.of.is_named() && kind.team.is_none()),
            ("--phase", !self.phase.is_empty() && kind.phase.is_none()),
            ("--selector", !self.labels.is_empty() && kind.labels.is_none()),
        ]
        .into_iter()
        .find_map(|(flag, beyond)| beyond.then_some(flag))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_requirement_has_to_hold() {
        let labels = Notes::from([("tier".to_owned(), "web".to_owned())]);
        let admits = |texts: &[&str]| {
            let labels_wanted = texts.iter().map(|text| text.parse().unwrap()).collect();
            let selection = Selection { labels: labels_wanted, ..Selection::default() };
            selection.admits(Traits { labels: Some(&labels), ..Traits::default() })
        };
        assert!(admits(&["tier=web"]) && admits(&["tier==web"]) && admits(&["tier"]) && admits(&["tier!=db", "no!=x"]));
        assert!(!admits(&["tier=db"]) && !admits(&["tier!=web"]) && !admits(&["other"]) && !admits(&["tier", "other"]));
    }
}
