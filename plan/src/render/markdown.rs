//! A plan for reviewers: Markdown to paste into a pull request, with a line for each app and what changes folded below.
//!
//! It stays within a number of bytes, because forges refuse longer comments. What is cut is cut fairly: each app keeps its line
//! before any keeps its details, small details are kept whole, large ones lose their ends, and the page says what is missing.

mod details;
mod escape;
mod room;

use std::fmt::Write as _;

use crate::model::{Action, ActionKind, Held, HeldSnapshot, Hold};
use details::Details;
use escape::code;

use super::text::{disturbance, symbol};
use super::{Basis, Origin, Review, Summary};

/// The longest comment that is made: GitHub takes 65,536 characters, and the rest is for what people write around it.
pub const MARKDOWN_BYTES: usize = 60_000;

/// How many changed fields an app's line names.
const FIELDS_IN_LINE: usize = 3;

/// The plan as Markdown of at most [`MARKDOWN_BYTES`].
#[must_use]
pub fn markdown<'a>(review: impl Into<Review<'a>>) -> String {
    let review = review.into();
    let page = Page::of(&review, Lines::Full);
    let narrow = || Page::of(&review, Lines::Short).with_cut_details();
    page.whole().or_else(|| page.with_cut_details()).or_else(narrow).unwrap_or_else(|| page.names_alone())
}

/// What an app's line says.
#[derive(Clone, Copy)]
enum Lines {
    /// What happens to it, what that disturbs, which fields or why.
    Full,
    /// What happens to it.
    Short,
}

/// The parts of a page before they are fitted into it.
struct Page<'a> {
    head: String,
    mistakes: Vec<Details>,
    /// What was declared, then what drifted: a table, and the details of each line.
    groups: Vec<Group<'a>>,
    held: String,
    held_apps: Vec<&'a Held>,
}

struct Group<'a> {
    heading: &'static str,
    table: String,
    actions: Vec<&'a Action>,
    details: Vec<Details>,
}

impl<'a> Page<'a> {
    fn of(review: &Review<'a>, lines: Lines) -> Self {
        let plan = review.plan;
        let groups = [(Origin::Declared, ""), (Origin::Drift, "### Drift, which nobody declared\n\n")];
        let groups = groups.into_iter().filter_map(|(origin, heading)| {
            let mut actions: Vec<_> =
                plan.actions.iter().map(|action| &**action).filter(|action| action.origin() == origin).collect();
            // The worst first: it is what must not be overlooked, or cut.
            actions.sort_by_key(|action| severity(action.kind));
            (!actions.is_empty()).then(|| Group::of(heading, actions, review, lines))
        });
        Self {
            head: head(review),
            mistakes: review.mistakes.iter().map(Details::of_mistake).collect(),
            groups: groups.collect(),
            held: held(&plan.held, lines) + &snapshots(&plan.snapshots, lines),
            held_apps: plan.held.iter().collect(),
        }
    }

    /// Everything, if there is room for it.
    fn whole(&self) -> Option<String> {
        let details: Vec<Vec<String>> =
            self.all_details().map(|group| group.iter().map(Details::whole).collect()).collect();
        fitting(self.put_together(&details, ""))
    }

    /// Every line, and of the details as much as there is room for.
    fn with_cut_details(&self) -> Option<String> {
        let none: Vec<Vec<String>> = self.all_details().map(|_| Vec::new()).collect();
        let note = |cut: usize, left_out: usize| {
            format!(
                "> This page is cut to {MARKDOWN_BYTES} bytes: the details of {cut} apps or mistakes are shortened, those of \
                 {left_out} are left out. `setpoint reconcile --dry-run` shows all of them.\n\n"
            )
        };
        let wanted: Vec<usize> = self.all_details().flatten().map(Details::len).collect();
        // The longest that the note can be.
        let fixed = self.put_together(&none, &note(wanted.len(), wanted.len())).len();
        let mut shares = room::shares(MARKDOWN_BYTES.checked_sub(fixed)?, &wanted).into_iter();
        let (mut cut, mut left_out) = (0, 0);
        let mut fit = |details: &Details| match details.within(shares.next().unwrap_or_default()) {
            Some(text) => {
                cut += usize::from(text.len() < details.len());
                text
            }
            None => {
                left_out += 1;
                String::new()
            }
        };
        let details: Vec<Vec<String>> = self.all_details().map(|group| group.iter().map(&mut fit).collect()).collect();
        fitting(self.put_together(&details, &note(cut, left_out)))
    }

    /// The names of the apps, by what happens to them; as many as there is room for.
    fn names_alone(&self) -> String {
        let mut page = self.head.clone();
        page.push_str(
            "> There is no room for a line for each app. `setpoint reconcile --dry-run` shows everything.\n\n",
        );
        let actions = || self.groups.iter().flat_map(|group| group.actions.iter().copied());
        let mut lists: Vec<(String, Vec<String>)> = Vec::new();
        let mut note = |what: String, app: String| match lists.iter_mut().find(|(known, _)| *known == what) {
            Some((_, apps)) => apps.push(app),
            None => lists.push((what, vec![app])),
        };
        actions().for_each(|action| note(action.kind.to_string(), action.app.to_string()));
        self.held_apps.iter().for_each(|held| note(hold_word(&held.reason).to_owned(), held.app.to_string()));
        let wanted: Vec<usize> = lists.iter().map(|(what, apps)| room::list(what, apps, usize::MAX).len()).collect();
        let shares = room::shares(MARKDOWN_BYTES.saturating_sub(page.len()), &wanted);
        for ((what, apps), share) in lists.iter().zip(shares) {
            page.push_str(&room::list(what, apps, share));
        }
        page
    }

    fn all_details(&self) -> impl Iterator<Item = &[Details]> {
        std::iter::once(self.mistakes.as_slice()).chain(self.groups.iter().map(|group| group.details.as_slice()))
    }

    fn put_together(&self, details: &[Vec<String>], note: &str) -> String {
        let mut page = format!("{}{note}", self.head);
        let mut details = details.iter().map(|group| group.concat());
        let mistakes = details.next().unwrap_or_default();
        if !mistakes.is_empty() {
            page.push_str(&format!("### Mistakes in the declarations\n\n{mistakes}"));
        }
        for group in &self.groups {
            page.push_str(&format!("{}{}\n", group.heading, group.table));
            page.push_str(&details.next().unwrap_or_default());
        }
        page.push_str(&self.held);
        page
    }
}

impl<'a> Group<'a> {
    fn of(heading: &'static str, actions: Vec<&'a Action>, review: &Review<'_>, lines: Lines) -> Self {
        let mut table = match lines {
            Lines::Full => "| | App | Action | Disrupts | What changes |\n|---|---|---|---|---|\n".to_owned(),
            Lines::Short => "| | App | Action |\n|---|---|---|\n".to_owned(),
        };
        actions.iter().for_each(|action| table.push_str(&row(action, review, lines)));
        let details = actions.iter().map(|action| Details::of_action(action, review)).collect();
        Self { heading, table, actions, details }
    }
}

fn fitting(page: String) -> Option<String> {
    (page.len() <= MARKDOWN_BYTES).then_some(page)
}

fn head(review: &Review<'_>) -> String {
    let summary = Summary::of_review(review);
    let work = match summary.work() {
        nothing if nothing.is_empty() => "no changes".to_owned(),
        work => work,
    };
    let against = match review.basis {
        Basis::World => "what exists".to_owned(),
        Basis::Revision(revision) => format!("revision `{}`", revision.short()),
    };
    let rest = match summary.rest() {
        nothing if nothing.is_empty() => nothing,
        rest => format!(" Besides: {rest}."),
    };
    let mistakes = match review.mistakes.len() {
        0 => String::new(),
        1 => " **1 mistake.**".to_owned(),
        mistakes => format!(" **{mistakes} mistakes.**"),
    };
    let revision = review.plan.revision.short();
    format!("## Setpoint: {work}\n\nRevision `{revision}`, compared with {against}.{rest}{mistakes}\n\n")
}

fn row(action: &Action, review: &Review<'_>, lines: Lines) -> String {
    let app = match action.renamed_from() {
        Some(from) => format!("`{}` (was `{from}`)", action.app),
        None => format!("`{}`", action.app),
    };
    let blocked = match review.waits(action).as_slice() {
        [] => "",
        _ if review.is_blocked(action) => ", **blocked**",
        [_, ..] => ", later",
    };
    let line = format!("| {} | {app} | {}{blocked} |", symbol(action.kind), action.kind);
    match lines {
        Lines::Full => {
            format!("{line} {} | {} |\n", disturbance(action).unwrap_or("–"), what_changes(action))
        }
        Lines::Short => line + "\n",
    }
}

/// The changed fields by name, or else the reason.
fn what_changes(action: &Action) -> String {
    if action.changes.is_empty() {
        return action.reasons.first().map(|reason| code(&reason.to_string())).unwrap_or_default();
    }
    let fields = action.changes.iter().take(FIELDS_IN_LINE).map(|change| code(&change.path));
    let mut line = fields.collect::<Vec<_>>().join(", ");
    if action.changes.len() > FIELDS_IN_LINE {
        // Writing to a string cannot fail.
        let _ = write!(line, " and {} more", action.changes.len() - FIELDS_IN_LINE);
    }
    line
}

/// What destroys most comes first.
fn severity(kind: ActionKind) -> u8 {
    use setpoint_schema::disruption::Disruption;
    match kind {
        ActionKind::Delete => 0,
        ActionKind::ExpireDisk | ActionKind::ExpireSnapshot => 1,
        ActionKind::Replace | ActionKind::Update(Disruption::Replace) => 2,
        ActionKind::Stop | ActionKind::Pause => 3,
        ActionKind::Reboot | ActionKind::Update(Disruption::Reboot) => 4,
        ActionKind::Update(Disruption::Process) => 5,
        ActionKind::Update(Disruption::Files) => 6,
        ActionKind::Update(Disruption::Live) => 7,
        ActionKind::Adopt | ActionKind::Resume | ActionKind::Snapshot => 8,
        ActionKind::Create => 9,
    }
}

fn held(all: &[Held], lines: Lines) -> String {
    if all.is_empty() {
        return String::new();
    }
    let mut table = "### Held as they are\n\n| App | | Why |\n|---|---|---|\n".to_owned();
    for held in all {
        let why = match lines {
            Lines::Full => code(&held.reason.to_string()),
            Lines::Short => String::new(),
        };
        table.push_str(&format!("| `{}` | {} | {why} |\n", held.app, hold_word(&held.reason)));
    }
    table.push('\n');
    table
}

fn snapshots(all: &[HeldSnapshot], lines: Lines) -> String {
    if all.is_empty() {
        return String::new();
    }
    let mut table = "### Snapshots that wait\n\n| Snapshot | Of | Why |\n|---|---|---|\n".to_owned();
    for held in all {
        let why = match lines {
            Lines::Full => code(&held.reason.to_string()),
            Lines::Short => String::new(),
        };
        table.push_str(&format!("| `{}` | `{}` | {why} |\n", held.snapshot, held.app));
    }
    table.push('\n');
    table
}

fn hold_word(hold: &Hold) -> &'static str {
    match hold {
        Hold::Suspended | Hold::SuspendedHere(_) => "suspended",
        Hold::PruneDisabled | Hold::PruneUnsafe(_) => "kept",
        Hold::Stalled(_) | Hold::Unresumable(_) => "stalled",
        Hold::Unready(_) => "unready",
    }
}

#[cfg(test)]
mod tests;
