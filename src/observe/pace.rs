//! How often a guest in which nothing happens is asked whether it still answers: as seldom as its declared patience allows, and
//! many guests at a time.
//!
//! To wake a processor for one question costs several times what the question does. So the questions of all sandboxes end on
//! common ticks. On which tick each of them ends is left to chance, so that those which began together do not go on together and no
//! tick has all of them.

use std::hash::{DefaultHasher, Hash, Hasher as _};
use std::time::Duration;

use setpoint_schema::id::SandboxId;
use setpoint_schema::quantity::Span;
use tokio::time::Instant;

/// A status is asked for this often after news, so that a silent guest is told from an unchanged one. Each time that nothing is new
/// the wait doubles, as far as the guest's own limit lets silence be noticed in time.
const HEARTBEAT: Span = Span::secs(3);
/// A guest whose limit is hours is asked this often all the same: its connection should not be forgotten on the way.
const LONGEST: Span = Span::secs(60);
/// Questions end on multiples of this. Long enough that ten thousand guests share four wake-ups a second, short enough that what a
/// tick has to do holds nobody up.
const TICK: Duration = Duration::from_millis(250);
/// A wait is shortened by up to this part of it, by chance.
const SPREAD_PERCENT: u64 = 20;

/// How long one sandbox's next question waits for news.
pub(super) struct Pace {
    /// The ticks are counted from here.
    origin: Instant,
    wait: Span,
    chance: u64,
}

impl Pace {
    /// Of a sandbox that has just answered. All sandboxes that are to share ticks have one origin.
    pub fn new(origin: Instant, sandbox: &SandboxId) -> Self {
        Self { origin, wait: HEARTBEAT, chance: hash(sandbox) }
    }

    /// Something was new.
    pub fn quicken(&mut self) {
        self.wait = HEARTBEAT;
    }

    /// Nothing was new, and the guest may be silent for as long as `limit`.
    pub fn slow_down(&mut self, limit: Span) {
        let longest = limit.as_millis().min(LONGEST.as_millis()).max(HEARTBEAT.as_millis());
        self.wait = Span::millis((self.wait.as_millis() * 2).min(longest));
    }

    /// How long the next question waits, from now.
    pub fn next_wait(&mut self) -> Span {
        self.chance = hash(&self.chance);
        let whole = self.wait.as_millis();
        let shortest = whole - whole * SPREAD_PERCENT / 100;
        let wait = Duration::from_millis(shortest + self.chance % (whole - shortest + 1));
        let now = self.origin.elapsed();
        let ticks = (now + wait).as_millis() / TICK.as_millis();
        let end = TICK * u32::try_from(ticks).unwrap_or(u32::MAX);
        Span::millis(u64::try_from(end.saturating_sub(now).as_millis()).unwrap_or(u64::MAX))
    }
}

fn hash(value: &impl Hash) -> u64 {
    let mut hasher = DefaultHasher::new();
    value.hash(&mut hasher);
    hasher.finish()
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    fn sandbox(number: usize) -> SandboxId {
        SandboxId(format!("app-{number}-00000000").into())
    }

    #[tokio::test(start_paused = true)]
    async fn a_quiet_guest_is_asked_less_and_less_often_as_far_as_its_limit_allows() {
        let limit = Span::secs(15);
        let mut pace = Pace::new(Instant::now(), &sandbox(0));
        let mut waits = Vec::new();
        for _ in 0..6 {
            waits.push(pace.next_wait().as_millis());
            tokio::time::advance(Duration::from_millis(*waits.last().unwrap_or(&0))).await;
            pace.slow_down(limit);
        }
        let within = |wait: u64, whole: u64| (whole * 4 / 5 - 250..=whole).contains(&wait);
        assert!(within(waits[0], 3000) && within(waits[1], 6000) && within(waits[2], 12_000), "{waits:?}");
        assert!(waits[3..].iter().all(|wait| within(*wait, 15_000)), "{waits:?}");
        pace.quicken();
        assert!(within(pace.next_wait().as_millis(), 3000));
    }

    #[tokio::test(start_paused = true)]
    async fn questions_of_many_guests_end_on_few_ticks_and_not_all_on_one() {
        let origin = Instant::now();
        let mut ends = BTreeSet::new();
        for number in 0..1000 {
            // Each began at another moment.
            tokio::time::advance(Duration::from_millis(1)).await;
            let mut pace = Pace::new(origin, &sandbox(number));
            (0..3).for_each(|_| pace.slow_down(Span::secs(15)));
            ends.insert(origin.elapsed().as_millis() + u128::from(pace.next_wait().as_millis()));
        }
        assert!(ends.iter().all(|end| end % TICK.as_millis() == 0), "{ends:?}");
        assert!((8..20).contains(&ends.len()), "{ends:?}");
    }

    #[tokio::test(start_paused = true)]
    async fn a_limit_shorter_than_the_first_wait_does_not_make_questions_come_faster() {
        let mut pace = Pace::new(Instant::now(), &sandbox(1));
        pace.slow_down(Span::secs(1));
        assert!(pace.next_wait().as_millis() >= 2150);
    }
}
