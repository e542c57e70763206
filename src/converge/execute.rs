//! Carries out one action of a plan, step by step, each journalled before it acts.
//!
//! That a step is done and that the next one begins is one write: a crash before it finds the former open, and looks at it again as
//! at any step that was cut short.

use std::time::Instant;

use setpoint_plan::model::{Action, PlanId, Step};
use setpoint_state::{JournalEntry, Outcome as JournalOutcome, PlanRef, StateError};
use tokio_util::sync::CancellationToken;

use crate::converge::places::Placement;
use crate::converge::quiet::Stillness;
use crate::converge::step::{Hands, StepError};
use crate::report::chain;

/// How an action ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    /// Every step is carried out.
    Done,
    /// A step failed: which, and why with its causes.
    Failed {
        /// The step's name.
        step: &'static str,
        /// Error and causes in one line.
        reason: String,
    },
    /// A newer declaration made the rest pointless; the next plan goes on from what is.
    Superseded,
}

impl Hands {
    /// Carries out an action. Killing the process at any point and planning again leads to the same end.
    pub async fn execute(
        &self,
        plan: &PlanId,
        action: &Action,
        placement: Placement,
        superseded: &CancellationToken,
    ) -> Outcome {
        let mut work = Work { hands: self, plan, action, superseded, placement, done: None };
        let outcome = work.run().await;
        match (work.write_done().await, outcome) {
            (Err(error), Outcome::Done | Outcome::Superseded) => {
                Outcome::Failed { step: "journal", reason: chain(&error) }
            }
            (Ok(()) | Err(_), outcome) => outcome,
        }
    }
}

/// An action on its way.
struct Work<'a> {
    hands: &'a Hands,
    plan: &'a PlanId,
    action: &'a Action,
    superseded: &'a CancellationToken,
    placement: Placement,
    /// The step that is done, and is written down as such together with the beginning of the next one.
    done: Option<(&'static str, JournalEntry)>,
}

impl Work<'_> {
    async fn run(&mut self) -> Outcome {
        for (index, step) in self.action.steps.iter().enumerate() {
            if self.superseded.is_cancelled() {
                return Outcome::Superseded;
            }
            match self.journalled(index, step).await {
                Ok(Some(())) => self.placement.pass(step),
                Ok(None) => return Outcome::Superseded,
                Err(error) => {
                    // It may have acted all the same, and the next plan has to know.
                    step.sandbox().into_iter().for_each(|sandbox| self.hands.observer.nudge(sandbox));
                    return Outcome::Failed { step: step.name(), reason: chain(&error) };
                }
            }
        }
        Outcome::Done
    }

    /// One step between its two journal entries; `None` when it was superseded while it waited.
    async fn journalled(&mut self, index: usize, step: &Step) -> Result<Option<()>, StepError> {
        let name = step.name();
        crash_point(name, "before");
        let entry = self.begin(index, name).await?;
        crash_point(name, "begun");
        let result = match self.superseded.run_until_cancelled(self.placement.find(step)).await {
            Some(()) => self.timed(step).await,
            None => Ok(None),
        };
        crash_point(name, "acted");
        let outcome = match &result {
            Ok(Some(())) => {
                self.done = Some((name, entry));
                return result;
            }
            Ok(None) => JournalOutcome::Interrupted,
            Err(error) => JournalOutcome::Failed(chain(error)),
        };
        self.end(name, entry, outcome).await?;
        result
    }

    async fn timed(&self, step: &Step) -> Result<Option<()>, StepError> {
        let (hands, superseded) = (self.hands, self.superseded);
        let hush = match hands.hush(self.action, step, superseded).await? {
            Stillness::Still(hush) => Some(hush),
            Stillness::Untouched => None,
            Stillness::Used | Stillness::Cancelled => return Ok(None),
        };
        let began = Instant::now();
        let result = match step {
            // Takes its time, and whoever wants the app meanwhile is not to wait for its end and its undoing.
            Step::Pause { .. } => hands.carry_out_unless(step, superseded).await,
            // The only step that waits for somebody else: a newer declaration must not wait with it.
            Step::AwaitAgent { .. } => superseded.run_until_cancelled(hands.carry_out(step)).await.transpose(),
            _ => hands.carry_out(step).await.map(Some),
        };
        self.hands.metrics.step(step.name(), began.elapsed());
        if let (Some(hush), Ok(Some(()))) = (hush, &result) {
            hush.keep();
        }
        result
    }

    /// Writes down that a step is about to act, and with it that the one before is done.
    async fn begin(&mut self, index: usize, name: &'static str) -> Result<JournalEntry, StateError> {
        let Some((before, done)) = self.done.take() else {
            let index = u32::try_from(index).unwrap_or(u32::MAX);
            return self.hands.ledger.journal_begin(&self.action.app, &PlanRef(self.plan.0.clone()), index, name).await;
        };
        let entry = self.hands.ledger.journal_turn(done, name).await?;
        crash_point(before, "ended");
        Ok(entry)
    }

    /// Writes down that the step before is done, if that is not written.
    async fn write_done(&mut self) -> Result<(), StateError> {
        match self.done.take() {
            Some((name, entry)) => self.end(name, entry, JournalOutcome::Done).await,
            None => Ok(()),
        }
    }

    async fn end(&self, name: &'static str, entry: JournalEntry, outcome: JournalOutcome) -> Result<(), StateError> {
        self.hands.ledger.journal_end(entry, outcome).await?;
        crash_point(name, "ended");
        Ok(())
    }
}

/// Where a crash test can end the process: `FAILPOINTS="launch/acted=return"` with the `failpoints` feature.
///
/// The fifth crossing of a point is reached with `FAILPOINTS="launch/acted=4*off->return"`.
pub(super) fn crash_point(step: &str, moment: &str) {
    #[cfg(feature = "failpoints")]
    fail::fail_point!(&format!("{step}/{moment}"), |_| std::process::abort());
    #[cfg(not(feature = "failpoints"))]
    let _ = (step, moment);
}
