//! A plan for people: what happens to each app, why, what changes, what that disturbs, and what it waits for.

use std::borrow::Cow;
use std::fmt::Write as _;

use jiff::Timestamp;
use serde_json::Value;
use setpoint_schema::disruption::{Disruption, FieldChange};
use setpoint_schema::env::MASK;
use setpoint_schema::id::{DiskId, SnapshotId};
use setpoint_schema::node::shorten;
use setpoint_schema::observed::{DiskState, Machine, SnapshotState};
use setpoint_schema::quantity::{ByteSize, Span};
use setpoint_schema::snapshot::Content;

use super::{Basis, Origin, Review, SENSITIVE_CHANGED, Summary, is_masked, plain, shown};
use crate::assumed;
use crate::model::{Action, ActionKind, Held, HeldSnapshot, Hold, Step};
use crate::words;

/// Whether the text carries terminal colours.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Color {
    /// It does not.
    Never,
    /// It does.
    Always,
}

/// The digits of a SHA-256 in hex.
const DIGEST_DIGITS: usize = 64;

/// The digits of a digest that are shown.
const SHOWN_DIGITS: usize = 12;

/// The plan as text, with a line feed at its end. What drifted by itself stands apart from what was declared.
#[must_use]
pub fn text<'a>(review: impl Into<Review<'a>>, color: Color) -> String {
    let review = review.into();
    let Review { plan, basis, mistakes: _ } = review;
    let mut out = String::new();
    let of = |origin: Origin| plan.actions.iter().filter(move |action| action.origin() == origin);
    for action in of(Origin::Declared) {
        render_action(&mut out, action, &review, color);
    }
    if of(Origin::Drift).next().is_some() {
        out.push_str("Drift, which nobody declared:\n");
    }
    for action in of(Origin::Drift) {
        render_action(&mut out, action, &review, color);
    }
    render_held(&mut out, &plan.held);
    render_snapshots(&mut out, &plan.snapshots);
    let compared = match basis {
        Basis::World => String::new(),
        Basis::Revision(revision) => format!(", compared with {}", revision.short()),
    };
    line(&mut out, 0, &format!("{} Revision {}{compared}.", Summary::of_review(&review), plan.revision.short()));
    out
}

/// Apps that have mistakes apart from those that are held by other things.
fn render_held(out: &mut String, all: &[Held]) {
    let (stalled, held): (Vec<_>, Vec<_>) = all.iter().partition(|held| matches!(held.reason, Hold::Stalled(_)));
    for (heading, group) in [("Stalled:", stalled), ("Held:", held)] {
        if group.is_empty() {
            continue;
        }
        line(out, 0, heading);
        for held in group {
            line(out, 1, &format!("{}: {}", held.app, plain(&held.reason.to_string())));
        }
        out.push('\n');
    }
}

fn render_snapshots(out: &mut String, held: &[HeldSnapshot]) {
    if held.is_empty() {
        return;
    }
    line(out, 0, "Snapshots:");
    for held in held {
        line(out, 1, &format!("{} of {}: {}", held.snapshot, held.app, plain(&held.reason.to_string())));
    }
    out.push('\n');
}

fn render_action(out: &mut String, action: &Action, review: &Review<'_>, color: Color) {
    let was = action.renamed_from().map(|from| format!(" (was {from})")).unwrap_or_default();
    let head = format!("{} {} {}{was}", symbol(action.kind), action.kind, action.app);
    line(out, 1, &paint(&head, hue(action.kind), color));
    for reason in &action.reasons {
        line(out, 3, &plain(&reason.to_string()));
    }
    for change in &action.changes {
        line(out, 3, &render_change(change));
    }
    for consequence in consequences(action, review.basis) {
        line(out, 3, &format!("→ {consequence}"));
    }
    for wait in review.waits(action) {
        line(out, 3, &paint(&plain(&wait.to_string()), Hue::Yellow, color));
    }
    out.push('\n');
}

fn line(out: &mut String, indent: usize, text: &str) {
    // Writing to a string cannot fail.
    let _ = writeln!(out, "{:indent$}{text}", "", indent = indent * 2);
}

/// An action's mark in front of its name.
pub(super) fn symbol(kind: ActionKind) -> char {
    match kind {
        ActionKind::Create => '+',
        ActionKind::Adopt => '>',
        ActionKind::Update(_) => '~',
        ActionKind::Reboot => '↻',
        ActionKind::Replace => '±',
        ActionKind::Stop => '■',
        ActionKind::Pause => '‖',
        ActionKind::Resume => '▶',
        ActionKind::Snapshot => '◉',
        ActionKind::Delete | ActionKind::ExpireDisk | ActionKind::ExpireSnapshot => '-',
    }
}

/// The colour of a line, as its ANSI number.
#[derive(Clone, Copy)]
enum Hue {
    Red = 31,
    Green = 32,
    Yellow = 33,
}

fn hue(kind: ActionKind) -> Hue {
    match kind {
        ActionKind::Create | ActionKind::Adopt | ActionKind::Resume | ActionKind::Snapshot => Hue::Green,
        ActionKind::Update(_) | ActionKind::Reboot | ActionKind::Stop | ActionKind::Pause => Hue::Yellow,
        ActionKind::Replace | ActionKind::Delete | ActionKind::ExpireDisk | ActionKind::ExpireSnapshot => Hue::Red,
    }
}

fn paint(text: &str, hue: Hue, color: Color) -> String {
    match color {
        Color::Never => text.to_owned(),
        Color::Always => format!("\x1b[{}m{text}\x1b[0m", hue as u8),
    }
}

fn render_change(change: &FieldChange) -> String {
    let (before, after) = shown(change);
    let class = words::class(change.disruption);
    if is_masked(change) {
        return format!("{}: {SENSITIVE_CHANGED} ({class})", plain(&change.path));
    }
    if change.sensitive {
        let word = |value: &Value| if value.is_null() { "unset" } else { MASK };
        return format!("{}: {} → {} ({class})", plain(&change.path), word(before), word(after));
    }
    format!("{}: {} → {} ({class})", plain(&change.path), value(before), value(after))
}

fn value(value: &Value) -> String {
    let text = match value {
        Value::Null => "unset".to_owned(),
        Value::String(text) => Value::from(start(text)).to_string(),
        Value::Bool(_) | Value::Number(_) | Value::Array(_) | Value::Object(_) => {
            shorten(&value.to_string()).into_owned()
        }
    };
    plain(&text)
}

/// As much of a text as is shown, cut before it is quoted: it may be a whole script. Of a digest, a few digits tell enough.
pub(super) fn start(text: &str) -> Cow<'_, str> {
    let is_digest = text.len() == DIGEST_DIGITS && text.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'));
    if is_digest { Cow::Owned(format!("{text:.SHOWN_DIGITS$}…")) } else { shorten(text) }
}

/// What the action makes or disturbs, beyond the fields that change.
pub(super) fn consequences(action: &Action, basis: Basis<'_>) -> Vec<String> {
    let mut out: Vec<_> = disturbance(action).into_iter().map(str::to_owned).collect();
    out.extend(action.steps.iter().filter_map(|step| consequence(action.kind, step, basis)));
    let begins = |change: &FieldChange| change.path == "from" || change.path.starts_with("from.");
    if action.changes.iter().any(begins) {
        out.push("`from` matters only when the sandbox is made: this one stays as it is".to_owned());
    }
    out
}

/// What an action disturbs.
pub(super) fn disturbance(action: &Action) -> Option<&'static str> {
    match action.kind {
        ActionKind::Create
        | ActionKind::Adopt
        | ActionKind::Delete
        | ActionKind::ExpireDisk
        | ActionKind::ExpireSnapshot => None,
        // What is kept of an app at rest disturbs nothing.
        ActionKind::Snapshot => {
            let is_of_boot = |step: &Step| matches!(step, Step::TakeSnapshot { nonce: Some(_), .. });
            action.steps.iter().any(is_of_boot).then_some("it stands still for a moment and goes on")
        }
        ActionKind::Update(Disruption::Live) => Some("nothing restarts"),
        ActionKind::Update(Disruption::Files) => Some("processes with `restart_after_task` restart"),
        ActionKind::Update(Disruption::Process | Disruption::Reboot | Disruption::Replace) => {
            Some("processes restart, the microVM runs on")
        }
        ActionKind::Reboot => Some("the microVM boots again, its disk stays"),
        ActionKind::Replace => Some("the microVM is made anew"),
        ActionKind::Stop => Some("the microVM is shut down, its disk stays"),
        ActionKind::Pause => Some("nothing restarts, memory and disk are kept"),
        ActionKind::Resume => Some("processes go on where they were"),
    }
}

fn consequence(kind: ActionKind, step: &Step, basis: Basis<'_>) -> Option<String> {
    let consequence = Consequence::of(kind, step)?;
    Some(match basis {
        Basis::World => consequence.here(),
        Basis::Revision(_) => consequence.anywhere(),
    })
}

/// What a step makes or takes away that outlives the action.
enum Consequence<'a> {
    Machine(&'a Machine),
    DiskKeptUntil { disk: &'a DiskId, until: Timestamp },
    DiskKept(&'a DiskId),
    DiskDeleted(&'a DiskId),
    DiskGrows(ByteSize),
    SnapshotTaken { snapshot: &'a SnapshotId, content: Content },
    SnapshotKeptUntil { snapshot: &'a SnapshotId, until: Timestamp },
    SnapshotDeleted(&'a SnapshotId),
}

impl<'a> Consequence<'a> {
    /// Absent for steps that are only the way to it.
    fn of(kind: ActionKind, step: &'a Step) -> Option<Self> {
        match (step, kind) {
            (Step::Launch(machine) | Step::LaunchFrom { machine, .. }, ActionKind::Create | ActionKind::Replace) => {
                Some(Self::Machine(machine))
            }
            (Step::TakeSnapshot { snapshot, content, .. }, _) => {
                Some(Self::SnapshotTaken { snapshot, content: *content })
            }
            (Step::RecordSnapshot(record), _) => match &record.state {
                SnapshotState::Retained { until, .. } => {
                    Some(Self::SnapshotKeptUntil { snapshot: &record.id, until: *until })
                }
                SnapshotState::Wanted { .. }
                | SnapshotState::Failed { .. }
                | SnapshotState::Kept(_)
                | SnapshotState::Leaving => None,
            },
            (Step::RemoveSnapshot(snapshot), _) => Some(Self::SnapshotDeleted(snapshot)),
            (Step::ReleaseDisk { disk, keep: Some(DiskState::Retained { until }) }, _) => {
                Some(Self::DiskKeptUntil { disk, until: *until })
            }
            (Step::ReleaseDisk { disk, keep: Some(DiskState::InUse) }, _) => Some(Self::DiskKept(disk)),
            (Step::ReleaseDisk { disk, keep: None }, _) => Some(Self::DiskDeleted(disk)),
            (Step::GrowDisk { size, .. }, _) => Some(Self::DiskGrows(*size)),
            (
                Step::Launch(_)
                | Step::LaunchFrom { .. }
                | Step::CopyDisk { .. }
                | Step::LeaveOut { .. }
                | Step::ForgetSnapshot(_)
                | Step::RecordRestored { .. }
                | Step::Pause { .. }
                | Step::Resume(_)
                | Step::Record(_)
                | Step::EnsureTemplate { .. }
                | Step::EnsureDisk { .. }
                | Step::AwaitAgent { .. }
                | Step::SyncFiles { .. }
                | Step::ApplyProcesses { .. }
                | Step::Stop { .. }
                | Step::RemoveVm(_)
                | Step::RecordApplied { .. }
                | Step::Forget(_),
                _,
            ) => None,
        }
    }

    /// With the names that things have, or will have.
    fn here(&self) -> String {
        match self {
            Self::Machine(machine) => {
                let memory = ByteSize::mib(machine.memory_mib);
                let (id, vcpus, disk) = (&machine.sandbox, machine.vcpus, &machine.disk);
                format!("microVM {id}: vcpus {vcpus}, memory {memory}, disk {disk}")
            }
            Self::DiskKeptUntil { disk, until } => format!("disk {disk} is kept until {until:.0}"),
            Self::DiskKept(disk) => format!("disk {disk} is kept"),
            Self::DiskDeleted(disk) => format!("disk {disk} is deleted"),
            Self::DiskGrows(size) => format!("its disk grows to {size}"),
            Self::SnapshotTaken { snapshot, content } => format!("snapshot {snapshot}: {}", kept(*content)),
            Self::SnapshotKeptUntil { snapshot, until } => format!("snapshot {snapshot} is kept until {until:.0}"),
            Self::SnapshotDeleted(snapshot) => format!("snapshot {snapshot} is deleted"),
        }
    }

    /// Without names, and with lengths of time instead of ends.
    fn anywhere(&self) -> String {
        match self {
            Self::Machine(machine) => {
                format!("microVM: vcpus {}, memory {}", machine.vcpus, ByteSize::mib(machine.memory_mib))
            }
            Self::DiskKeptUntil { disk: _, until } => {
                let millis = until.duration_since(assumed::NOW).as_millis();
                format!("its disk is kept for {}", Span::millis(u64::try_from(millis).unwrap_or_default()))
            }
            Self::DiskKept(_) => "its disk is kept".to_owned(),
            Self::DiskDeleted(_) => "its disk is deleted".to_owned(),
            Self::DiskGrows(size) => format!("its disk grows to {size}"),
            Self::SnapshotTaken { snapshot: _, content } => format!("a snapshot: {}", kept(*content)),
            Self::SnapshotKeptUntil { snapshot: _, until } => {
                let millis = until.duration_since(assumed::NOW).as_millis();
                format!("it is kept for {}", Span::millis(u64::try_from(millis).unwrap_or_default()))
            }
            Self::SnapshotDeleted(_) => "it is deleted".to_owned(),
        }
    }
}

fn kept(content: Content) -> &'static str {
    match content {
        Content::Memory => "memory and disk are kept",
        Content::Disk => "the disk is kept",
    }
}
