//! What an app was remembered as before it was renamed, for the records of the loop: what holds for it on this host goes with it.

use std::cell::OnceCell;
use std::collections::BTreeMap;
use std::sync::Arc;

use setpoint_plan::desired::Desired;
use setpoint_schema::app::DesiredApp;
use setpoint_schema::name::{AppKey, Uid};
use setpoint_schema::observed::AppRecord;

/// What is remembered of apps by names that nothing is declared under any more.
pub(super) struct Formers<'a> {
    desired: &'a Desired,
    known: &'a BTreeMap<AppKey, Arc<AppRecord>>,
    by_uid: OnceCell<BTreeMap<&'a Uid, &'a AppRecord>>,
}

impl<'a> Formers<'a> {
    pub fn new(desired: &'a Desired, known: &'a BTreeMap<AppKey, Arc<AppRecord>>) -> Self {
        Self { desired, known, by_uid: OnceCell::new() }
    }

    /// What an app that is new under its name was remembered as: by its lasting identity first, then by declared moves, as in plans.
    pub fn of(&self, app: &DesiredApp) -> Option<&'a AppRecord> {
        let by_uid = || self.by_uid().get(app.metadata.uid.as_ref()?).copied();
        let moves = || self.desired.moved.iter().filter(|(_, to)| **to == app.metadata.key);
        let moved =
            || moves().find_map(|(from, _)| self.known.get(from)).map(Arc::as_ref).filter(|old| self.is_gone(old));
        by_uid().or_else(moved)
    }

    fn by_uid(&self) -> &BTreeMap<&'a Uid, &'a AppRecord> {
        let gone = || self.known.values().map(Arc::as_ref).filter(|old| self.is_gone(old));
        self.by_uid.get_or_init(|| gone().filter_map(|old| Some((old.last_good.metadata.uid.as_ref()?, old))).collect())
    }

    fn is_gone(&self, old: &AppRecord) -> bool {
        !self.desired.apps.contains_key(&old.key) && !self.desired.stalled.contains_key(&old.key)
    }
}
