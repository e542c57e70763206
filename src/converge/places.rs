//! The places for microVMs that are being disturbed: as many as `[converge] concurrency` says. Whoever wants one waits in line.
//!
//! An action has a place from its first step that touches a microVM until the guest answers, or to its end where none is waited
//! for. What comes before, such as making a disk, and what comes after, such as sending files, needs none: so the place is taken by
//! the next one meanwhile, and a boot begins as soon as another has ended. `turns` bounds how many actions there are in all.
//!
//! As many as there are places may be preparing for one at a time: those that find places free are not to share the processors and
//! the disk with others that would have to wait for one anyway.

use std::sync::Arc;

use setpoint_plan::model::Step;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// All places. Clones share them.
#[derive(Clone)]
pub struct Places {
    free: Arc<Semaphore>,
    /// For those that prepare for one.
    line: Arc<Semaphore>,
}

/// One place, given back when dropped.
pub struct Place {
    _permit: OwnedSemaphorePermit,
}

/// The place of one action, over its time.
pub struct Placement {
    places: Places,
    state: State,
}

enum State {
    /// It has not needed one so far.
    None,
    /// It may not even prepare for one yet.
    Ahead,
    /// It has not needed one so far, and prepares for one.
    Preparing(#[expect(dead_code, reason = "it is held until it is dropped")] OwnedSemaphorePermit),
    /// It has this one.
    Held(#[expect(dead_code, reason = "it is held until it is dropped")] Place),
    /// It needs none any more.
    Over,
}

/// What a step does to the place of its action.
enum Effect {
    /// It touches no microVM, so it neither takes nor gives back.
    None,
    /// It touches a microVM.
    Takes,
    /// It touches a microVM, which is up afterwards.
    TakesAndGivesBack,
}

impl Placement {
    /// Of an action that has this place from its beginning, or none.
    #[must_use]
    pub fn new(place: Option<Place>, places: Places) -> Self {
        Self { places, state: place.map_or(State::None, State::Held) }
    }

    /// Of an action that begins before there is a place for it.
    pub(super) fn ahead(places: Places) -> Self {
        let state = places.try_line_up().map_or(State::Ahead, State::Preparing);
        Self { places, state }
    }

    /// Returns once the action may begin.
    pub(super) async fn begin(&mut self) {
        match self.state {
            State::Ahead => self.state = State::Preparing(self.places.line_up().await),
            State::None | State::Preparing(_) | State::Held(_) | State::Over => {}
        }
    }

    /// Returns once the action has what this step needs of it.
    pub(super) async fn find(&mut self, step: &Step) {
        match (&self.state, Effect::of(step)) {
            (State::Held(_) | State::Over, _) | (State::None | State::Ahead | State::Preparing(_), Effect::None) => {}
            (State::None | State::Ahead | State::Preparing(_), Effect::Takes | Effect::TakesAndGivesBack) => {
                self.state = State::Held(self.places.take().await);
            }
        }
    }

    /// The step is done.
    pub(super) fn pass(&mut self, step: &Step) {
        match Effect::of(step) {
            Effect::None | Effect::Takes => {}
            Effect::TakesAndGivesBack => self.state = State::Over,
        }
    }
}

impl Places {
    /// There are never more than this.
    pub(super) const MOST: usize = Semaphore::MAX_PERMITS;

    /// So many of them.
    #[must_use]
    pub fn new(count: usize) -> Self {
        let all = || Arc::new(Semaphore::new(count.min(Self::MOST)));
        Self { free: all(), line: all() }
    }

    /// More of them.
    pub(super) fn add(&self, count: usize) {
        self.free.add_permits(count);
        self.line.add_permits(count);
    }

    /// Fewer of them: those that are taken go as soon as they are given back.
    pub(super) fn take_away(&self, count: usize) {
        for permits in [&self.free, &self.line] {
            let taken = count - permits.forget_permits(count);
            for _ in 0..taken {
                let permits = Arc::clone(permits);
                tokio::spawn(async move {
                    if let Ok(permit) = permits.acquire_owned().await {
                        permit.forget();
                    }
                });
            }
        }
    }

    /// The right to prepare for a place, if nobody waits for it.
    fn try_line_up(&self) -> Option<OwnedSemaphorePermit> {
        Arc::clone(&self.line).try_acquire_owned().ok()
    }

    /// The right to prepare for a place, after whoever came before has it.
    async fn line_up(&self) -> OwnedSemaphorePermit {
        Arc::clone(&self.line).acquire_owned().await.expect("the line is never closed")
    }

    /// A place, if one is free and nobody waits for it.
    pub(super) fn try_take(&self) -> Option<Place> {
        Arc::clone(&self.free).try_acquire_owned().ok().map(|permit| Place { _permit: permit })
    }

    /// A place, as soon as there is one and whoever came before has one.
    async fn take(&self) -> Place {
        let permit = Arc::clone(&self.free).acquire_owned().await.expect("places are never closed");
        Place { _permit: permit }
    }
}

impl Effect {
    fn of(step: &Step) -> Self {
        match step {
            Step::Record(_)
            | Step::EnsureTemplate { .. }
            | Step::EnsureDisk { .. }
            | Step::ReleaseDisk { .. }
            | Step::RecordApplied { .. }
            | Step::Forget(_)
            | Step::RecordSnapshot(_)
            | Step::CopyDisk { .. }
            | Step::RemoveSnapshot(_)
            | Step::ForgetSnapshot(_)
            | Step::RecordRestored { .. } => Self::None,
            Step::GrowDisk { .. }
            | Step::Launch(_)
            | Step::LaunchFrom { .. }
            | Step::TakeSnapshot { .. }
            | Step::LeaveOut { .. }
            | Step::Pause { .. }
            | Step::Resume(_)
            | Step::SyncFiles { .. }
            | Step::ApplyProcesses { .. }
            | Step::Stop { .. }
            | Step::RemoveVm(_) => Self::Takes,
            Step::AwaitAgent { .. } => Self::TakesAndGivesBack,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use setpoint_schema::id::SandboxId;

    use super::*;

    #[tokio::test]
    async fn as_many_as_there_are_places_prepare_for_one_at_a_time() {
        let places = Places::new(1);
        let (mut first, mut second) = (Placement::ahead(places.clone()), Placement::ahead(places.clone()));
        first.begin().await;
        let early = Duration::from_millis(20);
        assert!(tokio::time::timeout(early, second.begin()).await.is_err(), "the first one is being prepared");
        let disturbs = Step::RemoveVm(SandboxId("any".into()));
        first.find(&disturbs).await;
        second.begin().await;
        let find = second.find(&disturbs);
        assert!(tokio::time::timeout(early, find).await.is_err(), "the first one has the place");
        drop(first);
        second.find(&disturbs).await;
    }

    #[tokio::test]
    async fn places_that_are_taken_away_while_in_use_do_not_come_back() {
        let places = Places::new(3);
        let (first, second) = (places.take().await, places.take().await);
        places.take_away(2);
        tokio::task::yield_now().await;
        assert!(places.try_take().is_none(), "one was free and one is owed");
        drop(first);
        tokio::task::yield_now().await;
        assert!(places.try_take().is_none(), "what was owed is given back");
        drop(second);
        assert!(places.try_take().is_some());
        places.add(1);
        let both = (places.take().await, places.take().await);
        assert!(places.try_take().is_none());
        drop(both);
    }
}
