//! The JSON form of what an app waits for, or is held by.

use jiff::Timestamp;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::name::AppKey;

/// One thing that is in an app's way.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Blocker {
    /// What kind of thing it is.
    pub reason: BlockerReason,
    /// The app that is waited for; null where it is none.
    pub on: Option<AppKey>,
    /// Since when: how long the app waited for has not been ready, where there is one.
    pub since: Timestamp,
    /// When it is over by itself, as a failure's wait is; null where something has to happen.
    pub until: Option<Timestamp>,
    /// What is lacking, in a sentence. It says no running time, so that it stays the same while nothing changes.
    pub message: String,
}

/// What kind of thing is in an app's way.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, JsonSchema)]
pub enum BlockerReason {
    /// An app that it depends on is not ready.
    Dependency,
    /// It does not fit within the limits of the host.
    Capacity,
    /// A failed try is waited out.
    Backoff,
    /// It was healed too often in too short a time.
    Flapping,
    /// It was carried out again and again, and is still not as declared.
    Repeating,
    /// Its data disk would shrink, which its declaration does not allow.
    DiskShrink,
    /// Removals wait until every other app is well.
    Unhealthy,
    /// Its removal waits until another app's is done.
    Dependent,
    /// It would be disturbed outside its maintenance windows.
    Window,
    /// The saved plan that is being carried out does not have it.
    Unplanned,
    /// The snapshot that it begins from, or goes back to, is not there.
    Snapshot,
    /// Its declaration freezes it.
    Suspended,
    /// Somebody on the daemon's host has frozen it.
    SuspendedHere,
    /// Its last declaration forbids that it is removed.
    PruneDisabled,
    /// It is not removed, because the declarations could not be read in full.
    PruneUnsafe,
    /// Its declaration has mistakes.
    Stalled,
    /// All is carried out, and it is not ready yet.
    Unready,
    /// It could not go on from its saved memory, and is declared to stay at rest then.
    Unresumable,
}

impl BlockerReason {
    /// The word.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Dependency => "Dependency",
            Self::Capacity => "Capacity",
            Self::Backoff => "Backoff",
            Self::Flapping => "Flapping",
            Self::Repeating => "Repeating",
            Self::DiskShrink => "DiskShrink",
            Self::Unhealthy => "Unhealthy",
            Self::Dependent => "Dependent",
            Self::Window => "Window",
            Self::Unplanned => "Unplanned",
            Self::Snapshot => "Snapshot",
            Self::Suspended => "Suspended",
            Self::SuspendedHere => "SuspendedHere",
            Self::PruneDisabled => "PruneDisabled",
            Self::PruneUnsafe => "PruneUnsafe",
            Self::Stalled => "Stalled",
            Self::Unready => "Unready",
            Self::Unresumable => "Unresumable",
        }
    }
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a test that cannot go on has failed")]
mod tests {
    use super::*;

    #[test]
    fn a_reason_is_written_as_its_word() {
        for reason in [BlockerReason::Dependency, BlockerReason::DiskShrink, BlockerReason::PruneUnsafe] {
            assert_eq!(serde_json::to_value(reason).unwrap(), reason.as_str());
        }
    }
}
