//! Work that succeeds and is at once needed again: what counts as the same work, and how long it waits then.
//!
//! A step sees for itself that it has had its effect. Where a driver or a guest says otherwise right after that, the same action
//! would be planned and carried out without end, and succeed each time. So what was done is remembered with the app, by whoever
//! carries plans out, and the planner lets it wait. Healing has a breaker of its own; failures are waited out as such.
//!
//! ```text
//!   done ──needed again within AGAIN──▶ done, one time more ──FREE times──▶ waits, each time twice as long
//!     └────not needed for as long────▶ forgotten
//! ```

use jiff::{SignedDuration, Timestamp};
use setpoint_schema::disruption::FieldChange;
use setpoint_schema::id::{WorkDigest, sha256_hex};
use setpoint_schema::name::AppKey;
use setpoint_schema::observed::{AppRecord, Repeat};
use setpoint_schema::quantity::Span;

use crate::model::{Action, ActionKind, Block, Reason, Step};
use crate::render::reason_code;

/// As often as this the same work is done without a wait: a guest may well lose its processes twice.
pub const FREE: u32 = 5;
/// Work that begins within this time after it could have begun was needed again at once. It is twice the time after which
/// everything is looked at though nothing seems to have happened, so that what only that look finds counts too.
const AGAIN: SignedDuration = SignedDuration::from_mins(2);
/// The first wait; it doubles with each further time.
const WAIT_FIRST: SignedDuration = SignedDuration::from_secs(10);
/// The longest wait.
const WAIT_LONGEST: SignedDuration = SignedDuration::from_mins(5);
/// As many kinds of work are remembered of one app. Their number is small, since nothing that a guest says makes a kind of work.
const KINDS: usize = 8;
/// As many fields are named.
const NAMED: usize = 3;

/// What an action does, without when, to which boot, and in what words: the same for the same work done again. None for what
/// has another breaker, or cannot come again.
#[must_use]
pub fn work(action: &Action) -> Option<WorkDigest> {
    let Action { app: _, sandbox: _, kind, reasons, changes, steps, blocked: _ } = action;
    let may_repeat = match kind {
        ActionKind::Update(_) | ActionKind::Reboot | ActionKind::Replace | ActionKind::Stop => true,
        ActionKind::Create
        | ActionKind::Adopt
        // Whoever pauses and wakes an app may do so as often as they like.
        | ActionKind::Pause
        | ActionKind::Resume
        | ActionKind::Delete
        | ActionKind::ExpireDisk
        | ActionKind::Snapshot
        | ActionKind::ExpireSnapshot => false,
    };
    if !may_repeat || reasons.iter().any(Reason::is_heal) {
        return None;
    }
    let reasons: Vec<_> = reasons.iter().map(reason_code).collect();
    let steps: Vec<_> = steps.iter().map(Step::name).collect();
    Some(WorkDigest::of(&(kind, reasons, changes, steps)))
}

/// What is to be remembered of an app after this work, begun and ended at these times, has succeeded.
#[must_use]
pub fn noted(app: &AppRecord, work: WorkDigest, began: Timestamp, ended: Timestamp) -> Vec<Repeat> {
    let mut repeats: Vec<_> = app.repeats.iter().filter(|repeat| is_again(&app.key, repeat, began)).cloned().collect();
    let known = repeats.iter().position(|repeat| repeat.work == work).map(|place| repeats.remove(place));
    let (since, times) = known.map_or((ended, 0), |known| (known.since, known.times));
    repeats.push(Repeat { work, times: times.saturating_add(1), since, last: ended });
    repeats.drain(..repeats.len().saturating_sub(KINDS));
    repeats
}

/// Whether anything that is done for the app has to wait because it was done too often.
#[must_use]
pub fn is_repeating(app: &AppRecord) -> bool {
    app.repeats.iter().any(|repeat| repeat.times >= FREE)
}

/// What lets an action wait that was carried out too often.
pub(crate) fn block(app: &AppRecord, action: &Action, now: Timestamp) -> Option<Block> {
    if app.repeats.is_empty() {
        return None;
    }
    let work = work(action)?;
    let repeat = app.repeats.iter().find(|repeat| repeat.work == work)?;
    let until = free_at(&app.key, repeat).filter(|until| *until > now)?;
    let seconds = repeat.last.duration_since(repeat.since).as_secs().max(1);
    let within = Span::secs(u64::try_from(seconds).unwrap_or_default());
    Some(Block::Repeating { times: repeat.times, within, what: lacking(action), until })
}

fn is_again(app: &AppKey, repeat: &Repeat, began: Timestamp) -> bool {
    let could_begin = free_at(app, repeat).unwrap_or(repeat.last);
    began.duration_since(could_begin) <= AGAIN
}

/// When work may be done again that was done too often.
fn free_at(app: &AppKey, repeat: &Repeat) -> Option<Timestamp> {
    let doublings = repeat.times.checked_sub(FREE)?.min(16);
    let wait = WAIT_FIRST.saturating_mul(1 << doublings).min(WAIT_LONGEST);
    Some(repeat.last.checked_add(jittered(wait, app, repeat)).unwrap_or(Timestamp::MAX))
}

/// The wait, give or take a quarter, so that apps that a faulty driver holds up together do not try again together. Whose it is and
/// when it began decide: planning is a function.
fn jittered(wait: SignedDuration, app: &AppKey, repeat: &Repeat) -> SignedDuration {
    let subject = [app.to_string(), repeat.last.to_string()];
    let hash = sha256_hex(&subject.each_ref().map(|part| part.as_bytes()));
    let draw = hash.get(..8).and_then(|digits| i64::from_str_radix(digits, 16).ok()).unwrap_or_default();
    let quarter = i64::try_from(wait.as_millis() / 4).unwrap_or_default();
    wait + SignedDuration::from_millis(draw % (2 * quarter + 1) - quarter)
}

/// What is not as declared, though the action has been carried out.
fn lacking(action: &Action) -> String {
    if !action.changes.is_empty() {
        return in_short(&action.changes);
    }
    let drift = action.reasons.iter().find_map(|reason| match reason {
        Reason::Drift(what) => Some(what.clone()),
        Reason::NotCreated
        | Reason::Unfinished
        | Reason::SpecChanged
        | Reason::VmDown(_)
        | Reason::GuestHung(_)
        | Reason::NotDeclared
        | Reason::Renamed(_)
        | Reason::PowerChanged(_)
        | Reason::PowerHere(_)
        | Reason::Unresumable(_)
        | Reason::RetentionOver
        | Reason::Unrecorded
        | Reason::DiskReturns(_)
        | Reason::BeginsAs(_)
        | Reason::Restore(_)
        | Reason::SnapshotWanted { .. }
        | Reason::SnapshotOver { .. } => None,
    });
    drift.unwrap_or_else(|| match action.kind {
        ActionKind::Reboot => "the boot that runs is not the recorded one".to_owned(),
        ActionKind::Replace => "the microVM is not the declared one".to_owned(),
        ActionKind::Stop => "the microVM runs".to_owned(),
        ActionKind::Update(_)
        | ActionKind::Create
        | ActionKind::Adopt
        | ActionKind::Pause
        | ActionKind::Resume
        | ActionKind::Delete
        | ActionKind::ExpireDisk
        | ActionKind::Snapshot
        | ActionKind::ExpireSnapshot => action.steps.iter().map(Step::name).collect::<Vec<_>>().join(", "),
    })
}

fn in_short(changes: &[FieldChange]) -> String {
    let named: Vec<_> = changes.iter().take(NAMED).map(|change| change.path.as_str()).collect();
    match changes.len().saturating_sub(NAMED) {
        0 => named.join(", "),
        more => format!("{} and {more} more", named.join(", ")),
    }
}
