//! Helps the planner with all processors. Called by the converge loop and by previews.

use setpoint_plan::planner::Crew;

use crate::parallel;

/// As many threads as there are processors, for as long as the work takes. What comes in one batch is done at once, without any.
#[derive(Debug, Clone, Copy, Default)]
pub struct AllProcessors;

impl Crew for AllProcessors {
    fn map<T: Sync, R: Send>(&self, things: &[T], work: impl Fn(&T) -> R + Sync) -> Vec<R> {
        parallel::each(things, work)
    }
}
