//! Before an app is put to rest: nobody is to use it, and nobody is to begin.

use setpoint_plan::model::{Action, ActionKind, Reason, Step};
use setpoint_schema::observed::{PowerCause, PowerOverride};
use tokio_util::sync::CancellationToken;

use crate::converge::step::{Hands, StepError};
use crate::idle::{self, Hush, Manners};
use crate::power::{PowerSwitch, Wanted};

/// Whether a step may put its app to rest.
pub(super) enum Stillness {
    /// The step does not put it to rest.
    Untouched,
    /// It may: nobody uses the app, and nobody begins to while this is there.
    Still(Hush),
    /// Somebody uses it, so it is not to rest any more.
    Used,
    /// The action was cancelled.
    Cancelled,
}

impl Hands {
    /// Sees to it that nobody uses an app that `step` is about to put to rest. A rest that only idleness wants is called off where
    /// somebody does.
    ///
    /// # Errors
    /// When the store cannot be written.
    pub(super) async fn hush(
        &self,
        action: &Action,
        step: &Step,
        cancel: &CancellationToken,
    ) -> Result<Stillness, StepError> {
        if !rests(action, step) {
            return Ok(Stillness::Untouched);
        }
        let manners = if is_idle(action) { Manners::Yield } else { Manners::Drain };
        Ok(match self.uses.hush(&action.app, manners, cancel).await {
            idle::Stillness::Still(hush) => Stillness::Still(hush),
            idle::Stillness::Cancelled => Stillness::Cancelled,
            idle::Stillness::Used => {
                let switch = PowerSwitch { ledger: self.ledger.clone(), observer: self.observer.clone() };
                switch.ask(&action.app, Wanted::Running, PowerCause::Request).await?;
                Stillness::Used
            }
        })
    }
}

/// Whether a step ends the use of its app, which is to rest after it.
fn rests(action: &Action, step: &Step) -> bool {
    match action.kind {
        ActionKind::Pause | ActionKind::Stop => matches!(step, Step::Pause { .. } | Step::Stop { .. }),
        ActionKind::Create
        | ActionKind::Adopt
        | ActionKind::Update(_)
        | ActionKind::Reboot
        | ActionKind::Replace
        | ActionKind::Resume
        | ActionKind::Delete
        | ActionKind::ExpireDisk
        | ActionKind::Snapshot
        | ActionKind::ExpireSnapshot => false,
    }
}

fn is_idle(action: &Action) -> bool {
    action.reasons.iter().any(|reason| matches!(reason, Reason::PowerHere(held) if PowerOverride::is_idle(held)))
}
