//! `power` and `wake` of an App: whether its microVM runs, when it rests by itself, and who wakes it.

use std::fmt;
use std::ops::Deref;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::app::Power;
use crate::check;
use crate::declared;
use crate::decode::{Decode, Decoder};
use crate::disruption::{Declared, Disruption, FieldChange};
use crate::node::Node;
use crate::quantity::{QuantityError, Span};
use crate::short::Shorthand;

declared! {
    /// Whether the microVM runs, and when it rests by itself.
    pub struct PowerSpec {
        /// Whether it runs.
        by_value state: Power = Power::Running,
        /// When an app that runs rests because nobody uses it; `none` is never.
        nested idle: IdleRule = IdleRule(None),
        /// What becomes of a microVM that rests and cannot go on from its saved memory.
        live on_resume_failure as "onResumeFailure": OnResumeFailure = OnResumeFailure::Boot,
    }
}

impl Shorthand for PowerSpec {
    type Word = Power;
    const WORD: &'static str = "state";
    const ABOUT: &'static str = "Whether the microVM runs: a word; or with when it rests by itself.";

    fn word(&self) -> &Power {
        &self.state
    }

    fn word_mut(&mut self) -> &mut Power {
        &mut self.state
    }
}

declared! {
    /// When nobody uses an app, and what is done then.
    pub struct IdleSpec {
        /// How long nobody has used it.
        live after: Span = Span::secs(15 * 60) => check::idle_after,
        /// What is done then.
        live action: IdleAction = IdleAction::Pause,
        /// It counts as used while its microVM takes this much of a processor, or more; without it, processors are not looked at.
        live cpu_below as "cpuBelow": Option<CpuShare> = None,
    }
}

/// The rule by which an app rests, if it has one.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(transparent)]
pub struct IdleRule(pub Option<IdleSpec>);

impl Deref for IdleRule {
    type Target = Option<IdleSpec>;

    fn deref(&self) -> &Option<IdleSpec> {
        &self.0
    }
}

impl Decode for IdleRule {
    fn decode(node: &Node<'_>, cx: &mut Decoder<'_>) -> Option<Self> {
        let mut rule = Self(None);
        rule.overlay(node, cx);
        Some(rule)
    }

    /// `none` takes back what a default says.
    fn overlay(&mut self, node: &Node<'_>, cx: &mut Decoder<'_>) {
        if node.text() == Some("none") {
            self.0 = None;
        } else {
            self.0.get_or_insert_default().overlay(node, cx);
        }
    }
}

impl Declared for IdleRule {
    const WORST: Disruption = IdleSpec::WORST;

    fn diff(&self, newer: &Self, path: &str, out: &mut Vec<FieldChange>) {
        self.0.diff(&newer.0, path, out);
    }
}

impl schemars::JsonSchema for IdleRule {
    fn inline_schema() -> bool {
        true
    }

    fn schema_name() -> std::borrow::Cow<'static, str> {
        "IdleRule".into()
    }

    fn json_schema(generator: &mut schemars::SchemaGenerator) -> schemars::Schema {
        let rule = generator.subschema_for::<IdleSpec>();
        schemars::json_schema!({
            "description": "When an app that runs rests because nobody uses it; `none` is never.",
            "anyOf": [{ "const": "none" }, rule]
        })
    }
}

/// What is done with an app that nobody uses.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum IdleAction {
    /// Its memory is kept, and it goes on where it was.
    Pause,
    /// It is shut down, and boots from its disk.
    Stop,
}

impl IdleAction {
    /// The power state that it leads to.
    #[must_use]
    pub const fn state(self) -> Power {
        match self {
            Self::Pause => Power::Paused,
            Self::Stop => Power::Stopped,
        }
    }

    /// The word.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Pause => "pause",
            Self::Stop => "stop",
        }
    }
}

/// What becomes of a microVM that cannot go on from its saved memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum OnResumeFailure {
    /// It boots from its disk.
    Boot,
    /// It stays at rest, with its files, until somebody has looked at it.
    Alert,
}

/// A share of one processor's time, in whole percent, as `5%`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, schemars::JsonSchema)]
#[schemars(with = "String", extend("pattern" = "^[1-9][0-9]{0,3}%$"))]
pub struct CpuShare(u16);

impl CpuShare {
    /// In percent of one processor.
    #[must_use]
    pub const fn percent(self) -> u16 {
        self.0
    }
}

impl fmt::Display for CpuShare {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&format!("{}%", self.0))
    }
}

impl FromStr for CpuShare {
    type Err = QuantityError;
    fn from_str(text: &str) -> Result<Self, QuantityError> {
        const RULE: QuantityError =
            QuantityError("must be a whole number of percent from `1%` to `6400%`, such as `5%`");
        let digits = text.strip_suffix('%').filter(|digits| digits.bytes().all(|digit| digit.is_ascii_digit()));
        let percent = digits.and_then(|digits| digits.parse().ok()).filter(|percent| (1..=6400).contains(percent));
        percent.map(Self).ok_or(RULE)
    }
}

crate::text::as_text!(CpuShare);

declared! {
    /// Who wakes an app that is at rest.
    pub struct WakeSpec {
        /// Whether a request does.
        live on: WakeOn = WakeOn::Request,
        /// How long a request waits for the app before the answer is that it is on its way up.
        live hold: Span = Span::secs(10) => check::wake_hold,
    }
}

impl Shorthand for WakeSpec {
    type Word = WakeOn;
    const WORD: &'static str = "on";
    const ABOUT: &'static str = "Who wakes an app that is at rest: a word; or with how long a request waits for it.";

    fn word(&self) -> &WakeOn {
        &self.on
    }

    fn word_mut(&mut self) -> &mut WakeOn {
        &mut self.on
    }
}

/// What wakes an app that is at rest.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum WakeOn {
    /// A request through the ingress, and whoever may say so.
    Request,
    /// `setpoint wake` and git alone.
    Manual,
}

#[cfg(test)]
mod tests;
