//! Requests for apps that rest: the first wakes the app, and all of them wait for it together.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use setpoint_schema::name::AppKey;
use tokio::time::Instant;

/// Which apps are on their way up because a request came for them, and until when that is waited for.
#[derive(Clone, Default)]
pub(super) struct Waking {
    until: Arc<Mutex<BTreeMap<AppKey, Instant>>>,
}

/// Who has to wake an app.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Turn {
    /// The asker is the first.
    First,
    /// Somebody does already.
    Another,
}

impl Waking {
    /// Begins to wake an app, unless somebody has begun.
    pub(super) fn begin(&self, app: &AppKey, patience: Duration) -> Turn {
        let now = Instant::now();
        let mut until = self.until.lock().unwrap_or_else(PoisonError::into_inner);
        // Of those that did not come up in time, nobody else tells.
        until.retain(|_, until| *until > now);
        if until.contains_key(app) {
            return Turn::Another;
        }
        until.insert(app.clone(), now + patience);
        Turn::First
    }

    /// Whether somebody waits for an app to come up.
    pub(super) fn is_expected(&self, app: &AppKey) -> bool {
        let until = self.until.lock().unwrap_or_else(PoisonError::into_inner);
        until.get(app).is_some_and(|until| *until > Instant::now())
    }

    /// The app is up, or has been waited for long enough.
    pub(super) fn end(&self, app: &AppKey) {
        self.until.lock().unwrap_or_else(PoisonError::into_inner).remove(app);
    }
}
