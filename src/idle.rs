//! Which apps are being used, and the rest of those that nobody uses.
//!
//! Whoever uses an app holds a [`Use`] for as long as that lasts: the ingress one for each request and each stream that came out of
//! one. The publisher says which apps rest by themselves and how they are ([`Situation`]); the `Keeper` sleeps until the first of
//! them is due, and asks for its rest like anybody else. Of all other apps nothing is kept but what is held open just now.
//!
//! ```text
//!   ingress ──Use──▶ ┌──────┐ ◀──Situation── publisher (each pass, what changed)
//!                    │ Uses │ ──due──▶ Keeper ──▶ PowerSwitch, and now and then when an app was used
//!   pause, stop ─────└──────┘ ◀──hush── nobody begins to use an app that is being put to rest
//! ```
//!
//! Between the wish that an app rests and its rest, requests may come. An action that puts an app to rest first hushes it: from then
//! on nobody begins to use it, and who wants to waits. What is open by then is let come to its end for a short while; where nobody
//! but idleness wants the rest, one use is enough to call it off.

mod due;
mod keeper;

use std::collections::{BTreeSet, HashMap};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use jiff::Timestamp;
use setpoint_schema::id::SandboxId;
use setpoint_schema::name::AppKey;
use setpoint_vmm::sim::{Clock, WallClock};
use tokio::sync::{Notify, watch};
use tokio_util::sync::CancellationToken;

pub(crate) use due::remembered;
pub use due::{Rule, advice, patience, wakes_often};
pub(crate) use keeper::Keeper;

use due::Book;

/// What is open when an app is put to rest has this long to come to its end.
pub const DRAIN: Duration = Duration::from_secs(5);

/// Who uses which app. Clones share it.
#[derive(Clone)]
pub struct Uses {
    shared: Arc<Shared>,
}

struct Shared {
    clock: Arc<dyn Clock>,
    book: Mutex<Book>,
    open: Mutex<Open>,
    /// The keeper has something to look at.
    news: Notify,
    /// Moves when an app is no longer hushed, and when a hushed one is not used any more.
    turns: watch::Sender<u64>,
}

/// What is open just now.
#[derive(Default)]
struct Open {
    uses: HashMap<AppKey, usize>,
    hushed: BTreeSet<AppKey>,
}

/// That somebody uses an app, until it is dropped.
pub struct Use {
    uses: Uses,
    app: AppKey,
}

/// That nobody begins to use an app, until it is dropped or [kept](Self::keep).
pub struct Hush {
    uses: Uses,
    app: AppKey,
    ends: Ends,
}

/// What ends a hush.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Ends {
    WithGuard,
    WhenSeen,
}

/// How an app is, as far as its resting by itself goes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Situation {
    /// The microVM.
    pub sandbox: SandboxId,
    /// The rule by which it rests.
    pub rule: Rule,
    /// Since when it runs.
    pub since: Timestamp,
    /// When it was used last, as it is recorded.
    pub used: Option<Timestamp>,
    /// Until when somebody keeps it from resting.
    pub keepalive: Option<Timestamp>,
    /// Whether it is at work for itself.
    pub work: Work,
}

/// Whether an app is being changed or built: that counts as use.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Work {
    /// It is.
    Goes,
    /// It is not.
    Rests,
}

/// Whether an app that is to rest may be put to rest.
pub enum Stillness {
    /// It may: nobody uses it, or had time enough to finish.
    Still(Hush),
    /// Somebody uses it, and nobody insists on its rest.
    Used,
    /// It is not to rest any more.
    Cancelled,
}

/// What becomes of those who use an app that is to rest.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Manners {
    /// They are let finish, for a while.
    Drain,
    /// Each of them is a reason not to rest.
    Yield,
}

impl Default for Uses {
    fn default() -> Self {
        Self::with_clock(Arc::new(WallClock))
    }
}

impl Uses {
    /// Nobody uses anything yet.
    #[must_use]
    pub fn with_clock(clock: Arc<dyn Clock>) -> Self {
        let shared = Shared {
            clock,
            book: Mutex::default(),
            open: Mutex::default(),
            news: Notify::new(),
            turns: watch::Sender::new(0),
        };
        Self { shared: Arc::new(shared) }
    }

    /// Begins to use an app, unless it is being put to rest.
    #[must_use]
    pub fn begin(&self, app: &AppKey) -> Option<Use> {
        let mut open = held(&self.shared.open);
        if open.hushed.contains(app) {
            return None;
        }
        *open.uses.entry(app.clone()).or_default() += 1;
        drop(open);
        self.touch(app);
        Some(Use { uses: self.clone(), app: app.clone() })
    }

    /// Moves when it may be worth while to [begin](Self::begin) again.
    #[must_use]
    pub fn turns(&self) -> watch::Receiver<u64> {
        self.shared.turns.subscribe()
    }

    /// Lets nobody begin to use an app, and sees to those who do.
    pub async fn hush(&self, app: &AppKey, manners: Manners, cancel: &CancellationToken) -> Stillness {
        let mut turns = self.turns();
        turns.mark_unchanged();
        let hush = {
            let mut open = held(&self.shared.open);
            if manners == Manners::Yield && open.uses.contains_key(app) {
                return Stillness::Used;
            }
            open.hushed.insert(app.clone());
            Hush { uses: self.clone(), app: app.clone(), ends: Ends::WithGuard }
        };
        if manners == Manners::Yield && self.was_used_meanwhile(app) {
            return Stillness::Used;
        }
        let drained = async {
            while self.is_used(app) {
                // Its sender lives as long as this.
                let _ = turns.changed().await;
            }
        };
        match cancel.run_until_cancelled(tokio::time::timeout(DRAIN, drained)).await {
            Some(Ok(()) | Err(_)) => Stillness::Still(hush),
            None => Stillness::Cancelled,
        }
    }

    /// How an app is by now; nothing, if it does not rest by itself or does not run.
    pub fn note(&self, app: &AppKey, situation: Option<Situation>) {
        let now = self.now();
        let is_news = self.book().note(app, situation, now);
        if is_news {
            self.shared.news.notify_one();
        }
    }

    /// Lets an app be used again: that it was put to rest shows by now wherever its uses begin, or it runs again.
    pub fn unhush(&self, app: &AppKey) {
        if held(&self.shared.open).hushed.remove(app) {
            self.turn();
        }
    }

    fn is_used(&self, app: &AppKey) -> bool {
        held(&self.shared.open).uses.contains_key(app)
    }

    /// Whether an app was used after its rest was asked for.
    fn was_used_meanwhile(&self, app: &AppKey) -> bool {
        self.book().was_used_since_asked(app)
    }

    fn end(&self, app: &AppKey) {
        let mut open = held(&self.shared.open);
        let hushed = open.hushed.contains(app);
        let Some(uses) = open.uses.get_mut(app) else { return };
        *uses -= 1;
        if *uses > 0 {
            return;
        }
        open.uses.remove(app);
        drop(open);
        self.touch(app);
        if hushed {
            self.turn();
        }
    }

    fn touch(&self, app: &AppKey) {
        let now = self.now();
        if self.book().touch(app, now) {
            self.shared.news.notify_one();
        }
    }

    fn turn(&self) {
        self.shared.turns.send_modify(|turns| *turns += 1);
    }

    fn now(&self) -> Timestamp {
        self.shared.clock.now()
    }

    fn book(&self) -> MutexGuard<'_, Book> {
        held(&self.shared.book)
    }
}

impl Drop for Use {
    fn drop(&mut self) {
        self.uses.end(&self.app);
    }
}

impl Hush {
    /// Goes on after this is gone, until everybody can see that the app rests, or it runs again.
    pub fn keep(mut self) {
        self.ends = Ends::WhenSeen;
    }
}

impl Drop for Hush {
    fn drop(&mut self) {
        if self.ends == Ends::WithGuard {
            self.uses.unhush(&self.app);
        }
    }
}

/// What these locks guard is never left half changed, so a panic elsewhere does not poison it.
fn held<T>(lock: &Mutex<T>) -> MutexGuard<'_, T> {
    lock.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests;
