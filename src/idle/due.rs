//! When each app that rests by itself is due, and when it was used: without a timer for each, and without a write for each use.

use std::collections::{BTreeSet, HashMap};
use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use setpoint_schema::id::SandboxId;
use setpoint_schema::name::AppKey;
use setpoint_schema::power::IdleSpec;
use setpoint_schema::quantity::Span;

use super::{Situation, Work};

/// More wakes than this within [`LOOP_WINDOW`] are a loop of sleeping and waking.
const LOOP_WAKES: usize = 6;
/// See [`LOOP_WAKES`].
const LOOP_WINDOW: SignedDuration = SignedDuration::from_hours(1);
/// However long the loop, an app that nobody uses for a day rests.
const LONGEST: SignedDuration = SignedDuration::from_hours(24);
/// A rest that was asked for and has not begun is asked for again after this long.
const AGAIN: SignedDuration = SignedDuration::from_secs(10);
/// A use is written down once one part in so many of the wait has passed since the last that was, within bounds.
const GRAINS: i64 = 10;

/// The rule by which an app rests, with what it has learnt from its wakes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rule {
    /// As it is declared.
    pub spec: IdleSpec,
    /// How long the app is not to be used.
    pub patience: SignedDuration,
}

impl Rule {
    /// A rule for an app that was woken at these times after it had rested by itself.
    #[must_use]
    pub fn new(spec: &IdleSpec, wakes: &[Timestamp]) -> Self {
        Self { spec: spec.clone(), patience: patience(spec.after, wakes) }
    }

    /// How far what is recorded may lag behind: a crash loses that much.
    fn grain(&self) -> SignedDuration {
        let tenth = SignedDuration::from_millis(self.patience.as_millis().try_into().unwrap_or(i64::MAX) / GRAINS);
        tenth.clamp(SignedDuration::from_secs(1), SignedDuration::from_mins(5))
    }
}

/// How long an app is not to be used before it rests. With each wake too many that doubles, for as long as the loop goes on.
#[must_use]
pub fn patience(after: Span, wakes: &[Timestamp]) -> SignedDuration {
    let declared = SignedDuration::from_millis(i64::try_from(after.as_millis()).unwrap_or(i64::MAX));
    let excess = recent(wakes).saturating_sub(LOOP_WAKES);
    let doubled = declared.saturating_mul(1 << excess.min(16));
    doubled.min(LONGEST.max(declared))
}

/// Whether an app that was woken at these times sleeps and wakes in a loop.
#[must_use]
pub fn wakes_often(wakes: &[Timestamp]) -> bool {
    recent(wakes) > LOOP_WAKES
}

/// What to do about a loop of so many wakes.
#[must_use]
pub fn advice(times: usize) -> String {
    format!(
        "woken {times} times within {} m after having rested for want of use, so it rests later each time: \
         declare a longer `power.idle.after`, or `wake: manual`",
        LOOP_WINDOW.as_mins()
    )
}

/// Of these times, as many as are worth remembering at `now`.
pub fn remembered(wakes: &mut Vec<Timestamp>, now: Timestamp) {
    wakes.retain(|wake| now.duration_since(*wake) <= LOOP_WINDOW);
    // Beyond this the patience grows no more.
    let excess = wakes.len().saturating_sub(2 * LOOP_WAKES);
    wakes.drain(..excess);
}

/// How many there are in the window that ends with the last one.
fn recent(wakes: &[Timestamp]) -> usize {
    let Some(last) = wakes.last() else { return 0 };
    wakes.iter().filter(|wake| last.duration_since(**wake) <= LOOP_WINDOW).count()
}

/// The apps that rest by themselves.
#[derive(Default)]
pub(super) struct Book {
    watched: HashMap<AppKey, Watched>,
    /// When each is to be looked at: no later than it is due.
    looks: BTreeSet<(Timestamp, AppKey)>,
    /// Those whose last use is to be written down.
    unwritten: BTreeSet<AppKey>,
    /// Of those whose rest was asked for and shows by now, and who are not at rest yet: when it was asked for, and their last use.
    leaving: HashMap<AppKey, (Timestamp, Timestamp)>,
}

struct Watched {
    situation: Situation,
    /// When it was used last.
    used: Timestamp,
    /// When it was used last, as it is written down.
    written: Option<Timestamp>,
    /// When its rest was asked for last.
    asked: Option<Timestamp>,
    /// The first of the two looks at its processor time.
    measured: Option<Measured>,
    look: Timestamp,
}

/// A look at the processor time of an app's microVM: when, and what it had taken by then.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Measured {
    pub at: Timestamp,
    pub taken: Option<Duration>,
}

/// What is to be done about an app.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Due {
    pub app: AppKey,
    pub sandbox: SandboxId,
    pub rule: Rule,
    pub what: What,
}

/// See [`Due`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum What {
    /// Look at its processor time, for the first time.
    Measure,
    /// Put it to rest, unless it took too much processor time since the first look.
    Rest {
        /// Since when nobody has used it.
        since: Timestamp,
        /// The first look, where its rule speaks of processor time.
        measured: Option<Measured>,
    },
}

impl Watched {
    fn idle_since(&self) -> Timestamp {
        self.used.max(self.situation.since)
    }

    /// When it rests if nobody uses it until then.
    fn due(&self) -> Timestamp {
        let idle = later(self.idle_since(), self.situation.rule.patience);
        let asked = self.asked.map(|asked| later(asked, AGAIN));
        let measured = self.measured.filter(|_| self.is_measured()).map(|measured| later(measured.at, self.half()));
        [self.situation.keepalive, asked, measured].into_iter().flatten().fold(idle, Timestamp::max)
    }

    /// When there is something to do about it if nobody uses it until then.
    fn next(&self) -> Timestamp {
        if self.is_measured() { self.due() } else { later(self.idle_since(), self.half()).min(self.due()) }
    }

    /// Processor time is measured over the second half of the wait.
    fn half(&self) -> SignedDuration {
        self.situation.rule.patience / 2
    }

    /// Whether its processor time has been looked at since it was used last, or need not be.
    fn is_measured(&self) -> bool {
        let since_idle = |measured: Measured| measured.at >= self.idle_since();
        self.situation.rule.spec.cpu_below.is_none() || self.measured.is_some_and(since_idle)
    }

    fn is_unwritten(&self) -> bool {
        let grain = self.situation.rule.grain();
        self.written.is_none_or(|written| self.used.duration_since(written) >= grain)
    }
}

impl Book {
    /// Returns whether something is to be looked at earlier than before.
    pub fn note(&mut self, app: &AppKey, situation: Option<Situation>, now: Timestamp) -> bool {
        let Some(situation) = situation else {
            if let Some(watched) = self.watched.remove(app) {
                self.looks.remove(&(watched.look, app.clone()));
                self.unwritten.remove(app);
                self.leaving.extend(watched.asked.map(|asked| (app.clone(), (asked, watched.used))));
            }
            return false;
        };
        self.leaving.remove(app);
        let first = self.looks.first().map(|(look, _)| *look);
        let watched = match self.watched.remove(app) {
            Some(mut known) => {
                self.looks.remove(&(known.look, app.clone()));
                // Work that goes on is use, and so was work that has just ended.
                let worked = [known.situation.work, situation.work].contains(&Work::Goes);
                known.used = if worked { now } else { known.used.max(situation.used.unwrap_or(Timestamp::MIN)) };
                known.written = situation.used.or(known.written);
                Watched { situation, ..known }
            }
            None => {
                let used = match situation.work {
                    Work::Goes => now,
                    Work::Rests => situation.used.unwrap_or(Timestamp::MIN),
                };
                let written = situation.used;
                Watched { situation, used, written, asked: None, measured: None, look: Timestamp::MAX }
            }
        };
        self.put(app, watched);
        self.looks.first().map(|(look, _)| *look) != first
    }

    /// An app is used at `now`. Returns whether there is something to write down.
    pub fn touch(&mut self, app: &AppKey, now: Timestamp) -> bool {
        if let Some((_, used)) = self.leaving.get_mut(app) {
            *used = now.max(*used);
        }
        let Some(watched) = self.watched.get_mut(app) else { return false };
        // When it is due is found out once somebody looks.
        watched.used = watched.used.max(now);
        watched.is_unwritten() && self.unwritten.insert(app.clone())
    }

    /// What the first look at an app's processor time found.
    pub fn measured(&mut self, app: &AppKey, measured: Measured) {
        if let Some(watched) = self.watched.get_mut(app) {
            watched.measured = Some(measured);
        }
    }

    /// Whether an app that is about to rest was used after that was asked for.
    pub fn was_used_since_asked(&mut self, app: &AppKey) -> bool {
        let watched = self.watched.get(app).and_then(|watched| Some((watched.asked?, watched.used)));
        watched.or(self.leaving.remove(app)).is_some_and(|(asked, used)| used > asked)
    }

    /// When somebody should look.
    pub fn next_look(&self) -> Option<Timestamp> {
        self.looks.first().map(|(look, _)| *look)
    }

    /// The apps that are due by `now`, whose rest is taken to be asked for with this. `is_used` knows what is open.
    pub fn take_due(&mut self, now: Timestamp, is_used: impl Fn(&AppKey) -> bool) -> Vec<Due> {
        let mut due = Vec::new();
        while let Some((look, app)) = self.looks.first().cloned()
            && look <= now
        {
            self.looks.pop_first();
            let Some(mut watched) = self.watched.remove(&app) else { continue };
            if is_used(&app) || watched.situation.work == Work::Goes {
                watched.used = now;
                if watched.is_unwritten() {
                    self.unwritten.insert(app.clone());
                }
            } else if watched.next() <= now {
                let Situation { rule, sandbox, .. } = watched.situation.clone();
                let what = if watched.is_measured() {
                    watched.asked = Some(now);
                    let measured = watched.measured.filter(|_| rule.spec.cpu_below.is_some());
                    What::Rest { since: watched.idle_since(), measured }
                } else {
                    // Until somebody has looked, so that nobody else does.
                    watched.measured = Some(Measured { at: now, taken: None });
                    What::Measure
                };
                due.push(Due { app: app.clone(), sandbox, rule, what });
            }
            self.put(&app, watched);
        }
        due
    }

    /// Whether there is anything to write down.
    pub fn has_unwritten(&self) -> bool {
        !self.unwritten.is_empty()
    }

    /// When apps were used whose last use is to be written down, which is taken to be done with this.
    pub fn take_unwritten(&mut self) -> Vec<(AppKey, Timestamp)> {
        let mut uses = Vec::new();
        for app in std::mem::take(&mut self.unwritten) {
            if let Some(watched) = self.watched.get_mut(&app) {
                watched.written = Some(watched.used);
                uses.push((app, watched.used));
            }
        }
        uses
    }

    /// When every app was used of which less than that is written down, as before an end.
    pub fn take_all_unwritten(
        &mut self,
        is_used: impl Fn(&AppKey) -> bool,
        now: Timestamp,
    ) -> Vec<(AppKey, Timestamp)> {
        for (app, watched) in &mut self.watched {
            if is_used(app) {
                watched.used = now;
            }
            if watched.written.is_none_or(|written| watched.used > written) {
                self.unwritten.insert(app.clone());
            }
        }
        self.take_unwritten()
    }

    fn put(&mut self, app: &AppKey, mut watched: Watched) {
        watched.look = watched.next();
        self.looks.insert((watched.look, app.clone()));
        self.watched.insert(app.clone(), watched);
    }
}

pub(super) fn later(at: Timestamp, by: SignedDuration) -> Timestamp {
    at.checked_add(by).unwrap_or(Timestamp::MAX)
}

#[cfg(test)]
mod tests;
