//! Tells apart why an action is in a plan: because something was declared, or because something drifted by itself.

use setpoint_schema::name::AppKey;

use crate::model::{Action, Reason};

/// Who began it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Origin {
    /// Whoever changed the declarations, or an earlier pass that did not finish.
    Declared,
    /// Nobody: what runs is not what was carried out.
    Drift,
}

impl Reason {
    /// Whether this is a difference that nobody declared.
    #[must_use]
    pub fn is_drift(&self) -> bool {
        matches!(self, Self::Drift(_)) || self.is_heal()
    }

    /// Whether this is a microVM or a guest that has to be brought back.
    #[must_use]
    pub fn is_heal(&self) -> bool {
        match self {
            Self::VmDown(_) | Self::GuestHung(_) | Self::Unresumable(_) => true,
            Self::Drift(_)
            | Self::NotCreated
            | Self::Unfinished
            | Self::SpecChanged
            | Self::NotDeclared
            | Self::Renamed(_)
            | Self::PowerChanged(_)
            | Self::PowerHere(_)
            | Self::RetentionOver
            | Self::Unrecorded
            | Self::DiskReturns(_)
            | Self::BeginsAs(_)
            | Self::Restore(_)
            | Self::SnapshotWanted { .. }
            | Self::SnapshotOver { .. } => false,
        }
    }
}

impl Action {
    /// Who began it. An action that answers a declaration as well counts as declared.
    #[must_use]
    pub fn origin(&self) -> Origin {
        let only_drift = self.changes.is_empty() && self.reasons.iter().all(Reason::is_drift);
        if only_drift && !self.reasons.is_empty() { Origin::Drift } else { Origin::Declared }
    }

    /// The name that the app had before.
    #[must_use]
    pub fn renamed_from(&self) -> Option<&AppKey> {
        self.reasons.iter().find_map(|reason| match reason {
            Reason::Renamed(from) => Some(from),
            Reason::NotCreated
            | Reason::Unfinished
            | Reason::SpecChanged
            | Reason::Drift(_)
            | Reason::VmDown(_)
            | Reason::GuestHung(_)
            | Reason::NotDeclared
            | Reason::PowerChanged(_)
            | Reason::PowerHere(_)
            | Reason::Unresumable(_)
            | Reason::RetentionOver
            | Reason::Unrecorded
            | Reason::DiskReturns(_)
            | Reason::BeginsAs(_)
            | Reason::Restore(_)
            | Reason::SnapshotWanted { .. }
            | Reason::SnapshotOver { .. } => None,
        })
    }
}
