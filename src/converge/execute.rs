//! Carries out one action of a plan, step by step, each journalled before it acts.
//!
//! What happens between two steps that act is one write: that the former is done, the steps between them that are nothing but
//! writing (a row of the inventory, a template that is there already), and that the next one begins. A crash before it finds the former
//! open, and looks at it again as at any step that was cut short. A wait for somebody else is no act, and is written down with what
//! comes after it.

use std::time::Instant;

use setpoint_plan::model::{Action, PlanId, Step};
use setpoint_state::{JournalEntry, Outcome as JournalOutcome, PlanRef, StateError};
use tokio_util::sync::CancellationToken;

use crate::converge::places::Placement;
use crate::converge::quiet::Stillness;
use crate::converge::step::{Hands, Part, StepError};
use crate::ledger::{Row, Turn};
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
        let plan = PlanRef(plan.0.clone());
        let mut work = Work { hands: self, plan, action, superseded, placement, done: None, waited: None };
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
    plan: PlanRef,
    action: &'a Action,
    superseded: &'a CancellationToken,
    placement: Placement,
    /// The step that is done, and is written down as such together with the beginning of the next one.
    done: Option<(&'static str, JournalEntry)>,
    /// The wait after it that is over, and is written down with it.
    waited: Option<(u32, &'static str)>,
}

/// Whether the app's microVM runs once the step is done.
fn starts(step: &Step) -> bool {
    matches!(step, Step::Launch(_) | Step::Resume(_) | Step::LaunchFrom { .. })
}

/// Whether all that the step does is to wait for somebody else.
fn waits(step: &Step) -> bool {
    matches!(step, Step::AwaitAgent { .. })
}

/// Steps that are written down together: any number that are nothing but that, and the one after them that acts.
struct Stretch<'a> {
    /// Where among the action's steps it begins.
    from: usize,
    written: &'a [Step],
    acts: Option<&'a Step>,
    rows: Vec<Row>,
}

impl<'a> Stretch<'a> {
    /// Where the next one begins.
    fn end(&self) -> usize {
        self.from + self.written.len() + usize::from(self.acts.is_some())
    }

    fn steps(&self) -> impl Iterator<Item = &'a Step> {
        self.written.iter().chain(self.acts)
    }
}

impl<'a> Work<'a> {
    async fn run(&mut self) -> Outcome {
        if self.superseded.run_until_cancelled(self.placement.begin()).await.is_none() {
            return Outcome::Superseded;
        }
        let mut next = 0;
        while let Some(step) = self.action.steps.get(next) {
            if self.superseded.is_cancelled() {
                return Outcome::Superseded;
            }
            let went = if waits(step) {
                let place = u32::try_from(next).unwrap_or(u32::MAX);
                next += 1;
                self.wait(place, step).await.map_err(|error| (step, error))
            } else {
                let stretch = self.stretch(next).await;
                next = stretch.end();
                self.journalled(&stretch).await
            };
            match went {
                Ok(Some(())) => {}
                Ok(None) => return Outcome::Superseded,
                Err((step, error)) => {
                    // It may have acted all the same, and the next plan has to know.
                    step.sandbox().into_iter().for_each(|sandbox| self.hands.observer.nudge(sandbox));
                    return Outcome::Failed { step: step.name(), reason: chain(&error) };
                }
            }
        }
        Outcome::Done
    }

    /// The steps from this one on that are written down together.
    async fn stretch(&self, from: usize) -> Stretch<'a> {
        let steps = &self.action.steps[from..];
        let mut rows = Vec::new();
        for (count, step) in steps.iter().enumerate() {
            let (written, acts) = (&steps[..count], Some(step));
            // It is made from the row as it is, so one that is still to be written has to come first.
            if waits(step) || (!rows.is_empty() && matches!(step, Step::RecordApplied { .. })) {
                return Stretch { from, written, acts: None, rows };
            }
            match self.hands.part(step).await {
                Part::Written(row) => rows.extend(row),
                Part::Acts(row) => {
                    rows.extend(row);
                    return Stretch { from, written, acts, rows };
                }
            }
        }
        Stretch { from, written: steps, acts: None, rows }
    }

    /// Steps that go together, between their journal entries; `None` when they were superseded while the one that acts waited.
    async fn journalled(&mut self, stretch: &Stretch<'a>) -> Result<Option<()>, (&'a Step, StepError)> {
        stretch.steps().for_each(|step| crash_point(step.name(), "before"));
        let began = Instant::now();
        let first = &self.action.steps[stretch.from];
        let entry = self.begin(stretch).await.map_err(|error| (first, error.into()))?;
        for name in stretch.written.iter().map(Step::name) {
            self.hands.metrics.step(name, began.elapsed());
            ["begun", "acted", "ended"].into_iter().for_each(|moment| crash_point(name, moment));
        }
        match (stretch.acts, entry) {
            (Some(step), Some(entry)) => self.act(step, entry).await.map_err(|error| (step, error)),
            (Some(_) | None, _) => Ok(Some(())),
        }
    }

    /// Waits for somebody else; `None` when that was superseded.
    async fn wait(&mut self, place: u32, step: &Step) -> Result<Option<()>, StepError> {
        let name = step.name();
        ["before", "begun"].into_iter().for_each(|moment| crash_point(name, moment));
        let (result, cut) = self.carry_out(step).await;
        match cut {
            None => self.waited = Some((place, name)),
            Some(outcome) => {
                if let Some(entry) = self.turn(Vec::new(), Some((place, name)), Vec::new()).await? {
                    self.end(name, entry, outcome).await?;
                }
            }
        }
        result
    }

    /// The step that this entry of the journal says has begun, and how it ended.
    async fn act(&mut self, step: &Step, entry: JournalEntry) -> Result<Option<()>, StepError> {
        let name = step.name();
        crash_point(name, "begun");
        let (result, cut) = self.carry_out(step).await;
        match cut {
            None => self.done = Some((name, entry)),
            Some(outcome) => self.end(name, entry, outcome).await?,
        }
        result
    }

    /// Carries a step out once there is a place for it; beside its result what the journal is to say of it if it was not done.
    async fn carry_out(&mut self, step: &Step) -> (Result<Option<()>, StepError>, Option<JournalOutcome>) {
        let result = match self.superseded.run_until_cancelled(self.placement.find(step)).await {
            Some(()) => self.timed(step).await,
            None => Ok(None),
        };
        crash_point(step.name(), "acted");
        let cut = match &result {
            Ok(Some(())) => {
                self.placement.pass(step);
                if starts(step) {
                    // Its rest may have been too short for the publisher to see.
                    self.hands.uses.unhush(&self.action.app);
                }
                None
            }
            Ok(None) => Some(JournalOutcome::Interrupted),
            Err(error) => Some(JournalOutcome::Failed(chain(error))),
        };
        (result, cut)
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
            // A newer declaration must not wait with it.
            Step::AwaitAgent { .. } => superseded.run_until_cancelled(hands.carry_out(step)).await.transpose(),
            _ => hands.carry_out(step).await.map(Some),
        };
        self.hands.metrics.step(step.name(), began.elapsed());
        if let (Some(hush), Ok(Some(()))) = (hush, &result) {
            hush.keep();
        }
        result
    }

    /// Writes down what is done, what is done with that, and which step is about to act.
    async fn begin(&mut self, stretch: &Stretch<'a>) -> Result<Option<JournalEntry>, StateError> {
        let mut places = (stretch.from..).map(|place| u32::try_from(place).unwrap_or(u32::MAX));
        let with_it = stretch.written.iter().zip(places.by_ref()).map(|(step, place)| (place, step.name())).collect();
        let next = places.next().zip(stretch.acts.map(Step::name));
        self.turn(with_it, next, stretch.rows.clone()).await
    }

    /// Writes down that what was done before is done, if that is not written.
    async fn write_done(&mut self) -> Result<(), StateError> {
        if self.done.is_none() && self.waited.is_none() {
            return Ok(());
        }
        self.turn(Vec::new(), None, Vec::new()).await.map(drop)
    }

    /// Writes down what was done before, and with it what is done by that and which step is about to begin.
    async fn turn(
        &mut self,
        with_it: Vec<(u32, &'static str)>,
        next: Option<(u32, &'static str)>,
        rows: Vec<Row>,
    ) -> Result<Option<JournalEntry>, StateError> {
        let ((before, done), waited) = (self.done.take().unzip(), self.waited.take());
        let with_it = waited.into_iter().chain(with_it).collect();
        let turn = Turn { done, with_it, next, rows };
        let entry = self.hands.ledger.journal_turn(&self.action.app, &self.plan, turn).await?;
        let ended = before.into_iter().chain(waited.map(|(_, name)| name));
        ended.for_each(|name| crash_point(name, "ended"));
        Ok(entry)
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
