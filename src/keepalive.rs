//! Times for which somebody keeps an app from resting by itself: asked for through the admin socket, kept in the app's record.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

use jiff::{SignedDuration, Timestamp};
use setpoint_schema::name::AppKey;
use setpoint_schema::observed::{AppRecord, Keepalive};
use setpoint_schema::power::IdleAction;
use setpoint_schema::quantity::Span;
use setpoint_state::{EventKind, NewEvent, StateError};

use crate::ledger::Ledger;

/// Longer than this nobody keeps an app awake without asking again: what is to run for ever is declared without `power.idle`.
pub const LONGEST: Span = Span::secs(24 * 3600);

/// What came of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Answer {
    /// So it is now.
    Done {
        /// Whether it was otherwise before.
        changed: bool,
        /// What is in force.
        now: Option<Keepalive>,
        /// What would be done with the app if nobody used it; nothing, if it does not rest by itself.
        action: Option<IdleAction>,
    },
    /// It was asked for too long: the most that there is.
    TooLong(Span),
    /// Nobody knows such an app.
    Unknown,
}

/// Keeps an app from resting for so long from `now` on, or no longer where that is no time at all; recorded as an event.
///
/// # Errors
/// When the store cannot be written.
pub async fn keep(ledger: &Ledger, app: &AppKey, span: Span, by: String, now: Timestamp) -> Result<Answer, StateError> {
    if span > LONGEST {
        return Ok(Answer::TooLong(LONGEST));
    }
    let Some(known) = ledger.app(app) else { return Ok(Answer::Unknown) };
    let until = i64::try_from(span.as_millis()).ok().and_then(|millis| {
        now.checked_add(SignedDuration::from_millis(millis)).ok().filter(|_| span > Span::default())
    });
    let event = match until {
        Some(until) => format!("does not rest by itself until {until:.0}: asked for here by {by}"),
        None => format!("rests by itself again: asked for here by {by}"),
    };
    let action = known.last_good.spec.app.power.idle.as_ref().map(|idle| idle.action);
    let wanted = until.map(|until| Keepalive { until, by });
    if wanted.is_none() && in_force(&known, now).is_none() {
        return Ok(Answer::Done { changed: false, now: None, action });
    }
    let event = NewEvent::new(EventKind::KeptAlive, "Override", event).app(app);
    let (key, done) = (app.clone(), Arc::new(Mutex::new(Answer::Unknown)));
    let answer = Arc::clone(&done);
    let change = move |records: &BTreeMap<AppKey, Arc<AppRecord>>| {
        let Some(record) = records.get(&key) else { return Vec::new() };
        *answer.lock().unwrap_or_else(PoisonError::into_inner) =
            Answer::Done { changed: true, now: wanted.clone(), action };
        vec![record.with_usage(|usage| usage.keepalive = wanted)]
    };
    ledger.note(vec![event], change).await?;
    let answer = done.lock().unwrap_or_else(PoisonError::into_inner).clone();
    Ok(answer)
}

/// What keeps an app from resting at `now`.
fn in_force(record: &AppRecord, now: Timestamp) -> Option<&Keepalive> {
    record.usage().keepalive.as_ref().filter(|keepalive| keepalive.until > now)
}
