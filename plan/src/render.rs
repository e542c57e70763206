//! Shows plans: as text to people, as Markdown to reviewers, as JSON to programs. Each looks at nothing but a [`Review`].

mod causes;
mod json;
mod markdown;
mod summary;
mod text;

use std::fmt;

use serde_json::Value;
use setpoint_schema::diagnostic::Diagnostic;
use setpoint_schema::disruption::FieldChange;
use setpoint_schema::id::CommitId;

use crate::model::{Action, Block, Plan};

pub use causes::Origin;
pub use json::{json, reason_code};
pub use markdown::{MARKDOWN_BYTES, markdown};
pub use summary::Summary;
pub use text::{Color, text};

/// A plan, and what its reader has to know beside it.
#[derive(Debug, Clone, Copy)]
pub struct Review<'a> {
    /// The plan.
    pub plan: &'a Plan,
    /// What the declarations are compared with.
    pub basis: Basis<'a>,
    /// The mistakes in the declarations.
    pub mistakes: &'a [Diagnostic],
}

/// What declarations are compared with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Basis<'a> {
    /// What exists.
    World,
    /// What would exist, had this revision been carried out: ids and times are made up, so they are not shown.
    Revision(&'a CommitId),
}

/// Why an action does not begin at once.
enum Wait {
    /// Something is in its way.
    Blocked(String),
    /// Others come first.
    Later(String),
}

impl Review<'_> {
    /// What an action waits for.
    fn waits(&self, action: &Action) -> Vec<Wait> {
        let wait = |block: &Block| match self.basis {
            Basis::World => Some(Wait::Blocked(block.to_string())),
            Basis::Revision(_) => between_revisions(block),
        };
        action.blocked.iter().filter_map(wait).collect()
    }

    /// Whether something is in an action's way that does not pass by itself.
    fn is_blocked(&self, action: &Action) -> bool {
        self.waits(action).iter().any(|wait| matches!(wait, Wait::Blocked(_)))
    }
}

/// Between two revisions everything is taken as well, and at no time in particular: who waits for another app waits for its
/// turn, and nobody for a maintenance window.
fn between_revisions(block: &Block) -> Option<Wait> {
    match block {
        Block::Dependency { app, reason: _ } => Some(Wait::Later(format!("after {app}"))),
        Block::Dependent(app) => Some(Wait::Later(format!("after {app}, which depends on it"))),
        Block::Unhealthy(_) => Some(Wait::Later("after everything else, once that is healthy".to_owned())),
        Block::Snapshot { snapshot, reason: _ } => Some(Wait::Later(format!("after {snapshot} is there"))),
        Block::Window { opens: _ } => None,
        Block::Capacity(_)
        | Block::Backoff { .. }
        | Block::Flapping(_)
        | Block::Repeating { .. }
        | Block::DiskShrink { .. }
        | Block::Unplanned => Some(Wait::Blocked(block.to_string())),
    }
}

impl fmt::Display for Wait {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Blocked(why) => write!(f, "blocked: {why}"),
            Self::Later(when) => write!(f, "later: {when}"),
        }
    }
}

/// A plan made from what exists, of declarations without mistakes.
impl<'a> From<&'a Plan> for Review<'a> {
    fn from(plan: &'a Plan) -> Self {
        Self { plan, basis: Basis::World, mistakes: &[] }
    }
}

/// The values of a change; those that are sensitive are masked already.
fn shown(change: &FieldChange) -> (&Value, &Value) {
    let FieldChange { path: _, before, after, disruption: _, sensitive: _ } = change;
    (before, after)
}

/// What is said instead of both values where they are sensitive and there.
const SENSITIVE_CHANGED: &str = "(sensitive value changed)";

/// Whether all that can be said is that a value is another one.
fn is_masked(change: &FieldChange) -> bool {
    change.sensitive && !change.before.is_null() && !change.after.is_null()
}

/// Without control characters, and without those that turn the direction of text: values come from repositories and guests,
/// and must not speak to the terminal.
fn plain(text: &str) -> String {
    setpoint_schema::diagnostic::escape(&text.replace(['\n', '\t', '\r'], " "))
}
