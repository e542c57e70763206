//! What is folded below an app's line: its fields before and after, why, and what it waits for, as a fenced difference.

use serde_json::Value;
use setpoint_schema::diagnostic::{Diagnostic, escape};
use setpoint_schema::disruption::FieldChange;

use super::super::text::{consequences, start};
use super::super::{Review, SENSITIVE_CHANGED, is_masked, plain, shown};
use super::escape::{code, fence};
use crate::model::Action;
use crate::words;

/// A summary line, and the lines that it unfolds to.
pub(super) struct Details {
    summary: String,
    /// The language of the fence: `diff` colours what goes and what comes.
    language: &'static str,
    lines: Vec<String>,
}

/// The most characters of one line of a value.
const LINE: usize = 160;
/// The most lines of a value, before and after each.
const LINES: usize = 40;

impl Details {
    pub fn of_action(action: &Action, review: &Review<'_>) -> Self {
        let mut lines: Vec<String> = action.reasons.iter().map(|reason| format!("# {reason}")).collect();
        lines.extend(review.waits(action).iter().map(|wait| format!("! {wait}")));
        action.changes.iter().for_each(|change| push_change(&mut lines, change));
        lines.extend(consequences(action, review.basis).into_iter().map(|consequence| format!("  → {consequence}")));
        let lines = lines.iter().map(|line| plain(line)).collect();
        Self { summary: format!("<code>{}</code>: {}", action.app, action.kind), language: "diff", lines }
    }

    pub fn of_mistake(mistake: &Diagnostic) -> Self {
        let lines = mistake.to_string().lines().map(escape).collect();
        let place = match mistake.at {
            Some(at) => format!("{}:{}", mistake.path, at.line),
            None => mistake.path.to_string(),
        };
        Self { summary: code(&place), language: "text", lines }
    }

    pub fn whole(&self) -> String {
        self.of_lines(&self.lines, None)
    }

    /// How long the whole is.
    pub fn len(&self) -> usize {
        self.whole().len()
    }

    /// As many lines as fit into `room` bytes, or `None` where not even one does.
    pub fn within(&self, room: usize) -> Option<String> {
        let whole = self.whole();
        if whole.len() <= room {
            return Some(whole);
        }
        // Fences and counts only get longer with more lines, so the most that fits is found by halving.
        let cut = |shown: usize| self.of_lines(&self.lines[..shown], Some(self.lines.len() - shown));
        let most = (1..self.lines.len()).collect::<Vec<_>>().partition_point(|shown| cut(*shown).len() <= room);
        (most > 0).then(|| cut(most))
    }

    fn of_lines(&self, lines: &[String], missing: Option<usize>) -> String {
        let Self { summary, language, .. } = self;
        let fence = fence(lines.iter().map(String::as_str));
        let mut text = format!("<details><summary>{summary}</summary>\n\n{fence}{language}\n");
        lines.iter().for_each(|line| text.extend([line.as_str(), "\n"]));
        text.push_str(&fence);
        if let Some(missing) = missing {
            text.push_str(&format!("\n\n{missing} more lines are cut."));
        }
        text.push_str("\n</details>\n\n");
        text
    }
}

fn push_change(lines: &mut Vec<String>, change: &FieldChange) {
    let (before, after) = shown(change);
    lines.push(format!("@@ {} ({}) @@", change.path, words::class(change.disruption)));
    if is_masked(change) {
        lines.push(format!("! {SENSITIVE_CHANGED}"));
        return;
    }
    let (before, after) = match (value(before), value(after)) {
        // Only the end of the last line differs.
        (old, new) if old == new => (vec![before.to_string()], vec![after.to_string()]),
        values => values,
    };
    // Of scripts, the lines that stay at both ends tell nothing.
    let same_head = before.iter().zip(&after).take_while(|(old, new)| old == new).count();
    let tails = before[same_head..].iter().rev().zip(after[same_head..].iter().rev());
    let same_tail = tails.take_while(|(old, new)| old == new).count();
    push_lines(lines, '-', &before[same_head..before.len() - same_tail]);
    push_lines(lines, '+', &after[same_head..after.len() - same_tail]);
}

fn push_lines(lines: &mut Vec<String>, mark: char, value: &[String]) {
    for line in value.iter().take(LINES) {
        let cut = match line.char_indices().nth(LINE) {
            Some((end, _)) => format!("{mark} {}…", &line[..end]),
            None => format!("{mark} {line}"),
        };
        lines.push(cut);
    }
    if value.len() > LINES {
        lines.push(format!("{mark} … {} more lines", value.len() - LINES));
    }
}

/// A value in lines; none where the field is not set.
fn value(value: &Value) -> Vec<String> {
    match value {
        Value::Null => Vec::new(),
        Value::String(text) if text.trim_end_matches('\n').contains('\n') => text.lines().map(str::to_owned).collect(),
        // A digest in full helps nobody.
        Value::String(text) if start(text).len() < text.len() && text.len() == 64 => vec![start(text).into_owned()],
        Value::String(_) | Value::Bool(_) | Value::Number(_) | Value::Array(_) | Value::Object(_) => {
            vec![value.to_string()]
        }
    }
}
