//! Puts to rest what nobody uses, and writes down now and then what is used.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use setpoint_schema::id::SandboxId;
use setpoint_schema::name::AppKey;
use setpoint_schema::observed::{AppRecord, PowerCause};
use setpoint_vmm::driver::Driver;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::due::{Due, Measured, What};
use super::{Rule, Uses};
use crate::power::{PowerSwitch, Wanted};
use crate::report::chain;

/// What was used is written down at most this often, for all apps together.
const WRITES: Duration = Duration::from_secs(1);
/// An app is due just after its time.
const JUST_AFTER: Duration = Duration::from_millis(1);

/// Looks after the apps that rest by themselves.
pub(crate) struct Keeper {
    /// Who uses what.
    pub uses: Uses,
    /// Where a rest is asked for.
    pub switch: PowerSwitch,
    /// Knows what microVMs take of processors.
    pub driver: Arc<dyn Driver>,
}

impl Keeper {
    /// Runs until `shutdown`, and leaves written down what was used until then.
    pub async fn run(self, shutdown: CancellationToken) {
        let mut written = Instant::now();
        loop {
            let (look, writes) = {
                let book = self.uses.book();
                (book.next_look(), book.has_unwritten())
            };
            tokio::select! {
                () = shutdown.cancelled() => break,
                () = self.uses.shared.news.notified() => {}
                () = self.sleep_until(look) => {}
                () = tokio::time::sleep_until(written + WRITES), if writes => {
                    written = Instant::now();
                    let uses = self.uses.book().take_unwritten();
                    self.write(uses).await;
                }
            }
            let now = self.uses.now();
            let due = self.uses.book().take_due(now, |app| self.uses.is_used(app));
            for due in due {
                self.see_to(due).await;
            }
        }
        let now = self.uses.now();
        let uses = self.uses.book().take_all_unwritten(|app| self.uses.is_used(app), now);
        self.write(uses).await;
    }

    async fn sleep_until(&self, look: Option<Timestamp>) {
        match look {
            Some(at) => {
                let left = at.duration_since(self.uses.now()).max(SignedDuration::ZERO);
                tokio::time::sleep(left.unsigned_abs() + JUST_AFTER).await;
            }
            None => std::future::pending().await,
        }
    }

    async fn see_to(&self, Due { app, sandbox, rule, what }: Due) {
        match (what, rule.spec.cpu_below) {
            (What::Measure, _) => {
                let measured = self.measure(&app, &sandbox).await;
                self.uses.book().measured(&app, measured);
            }
            (What::Rest { since, measured: Some(first) }, Some(limit)) => {
                let second = self.measure(&app, &sandbox).await;
                // What cannot be told counts as use.
                if share(first, second).is_some_and(|percent| percent < f64::from(limit.percent())) {
                    self.put_to_rest(app, &rule, since).await;
                } else {
                    self.uses.touch(&app);
                }
            }
            (What::Rest { since, measured: _ }, _) => self.put_to_rest(app, &rule, since).await,
        }
    }

    async fn measure(&self, app: &AppKey, sandbox: &SandboxId) -> Measured {
        let taken = self.driver.cpu_time(sandbox).await.unwrap_or_else(|error| {
            tracing::warn!(%app, error = %chain(&error), "the processor time of its microVM could not be told");
            None
        });
        Measured { at: self.uses.now(), taken }
    }

    async fn put_to_rest(&self, app: AppKey, rule: &Rule, since: Timestamp) {
        let wanted = Wanted::resting(rule.spec.action);
        if let Err(error) = self.switch.ask(&app, wanted, PowerCause::Idle { since }).await {
            tracing::error!(%app, error = %chain(&error), "an idle app could not be put to rest");
        }
    }

    async fn write(&self, uses: Vec<(AppKey, Timestamp)>) {
        if uses.is_empty() {
            return;
        }
        let change = move |records: &BTreeMap<AppKey, Arc<AppRecord>>| {
            let used = uses.into_iter().filter_map(|(app, at)| Some((records.get(&app)?, at)));
            used.map(|(record, at)| record.with_usage(|usage| usage.used = Some(at))).collect()
        };
        if let Err(error) = self.switch.ledger.note(Vec::new(), change).await {
            tracing::error!(error = %chain(&error), "when apps were used could not be written down");
        }
    }
}

/// What was taken of one processor between two looks, in percent.
fn share(first: Measured, second: Measured) -> Option<f64> {
    let taken = second.taken?.checked_sub(first.taken?)?;
    let passed = second.at.duration_since(first.at).as_secs_f64();
    (passed > 0.0).then(|| 100.0 * taken.as_secs_f64() / passed)
}
