//! Carries out one action of a plan, step by step, each journalled before it acts.

use std::time::Instant;

use setpoint_plan::model::{Action, PlanId, Step};
use setpoint_state::{Outcome as JournalOutcome, PlanRef};
use tokio_util::sync::CancellationToken;

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
    pub async fn execute(&self, plan: &PlanId, action: &Action, superseded: &CancellationToken) -> Outcome {
        for (index, step) in action.steps.iter().enumerate() {
            if superseded.is_cancelled() {
                return Outcome::Superseded;
            }
            match self.journalled(plan, action, index, step, superseded).await {
                Ok(Some(())) => {}
                Ok(None) => return Outcome::Superseded,
                Err(error) => {
                    // It may have acted all the same, and the next plan has to know.
                    step.sandbox().into_iter().for_each(|sandbox| self.observer.nudge(sandbox));
                    return Outcome::Failed { step: step.name(), reason: chain(&error) };
                }
            }
        }
        Outcome::Done
    }

    /// One step between its two journal entries; `None` when it was superseded while it waited.
    async fn journalled(
        &self,
        plan: &PlanId,
        action: &Action,
        index: usize,
        step: &Step,
        superseded: &CancellationToken,
    ) -> Result<Option<()>, StepError> {
        let name = step.name();
        crash_point(name, "before");
        let entry = {
            let (app, plan) = (action.app.clone(), PlanRef(plan.0.clone()));
            let index = u32::try_from(index).unwrap_or(u32::MAX);
            self.ledger.with(move |store| store.journal_begin(&app, &plan, index, name)).await?
        };
        crash_point(name, "begun");
        let began = Instant::now();
        let result = match step {
            // Takes its time, and whoever wants the app meanwhile is not to wait for its end and its undoing.
            Step::Pause { .. } => self.carry_out_unless(step, superseded).await,
            // The only step that waits for somebody else: a newer declaration must not wait with it.
            Step::AwaitAgent { .. } => superseded.run_until_cancelled(self.carry_out(step)).await.transpose(),
            _ => self.carry_out(step).await.map(Some),
        };
        self.metrics.step(name, began.elapsed());
        crash_point(name, "acted");
        let outcome = match &result {
            Ok(Some(())) => JournalOutcome::Done,
            Ok(None) => JournalOutcome::Interrupted,
            Err(error) => JournalOutcome::Failed(chain(error)),
        };
        self.ledger.with(move |store| store.journal_end(entry, outcome)).await?;
        crash_point(name, "ended");
        result
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
