//! The JSON form of what an app's state began as.

use jiff::Timestamp;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::id::{Generation, SnapshotId};
use crate::name::{AppKey, SnapshotKey};
use crate::observed;

/// The moment of an app that another one's state, or a later one of its own, began as. The snapshot may be gone since.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Origin {
    /// The app of which it was a moment.
    pub app: AppKey,
    /// The snapshot that kept it.
    pub snapshot: SnapshotKey,
    /// Which of that name.
    pub generation: Generation,
    /// The snapshot's id.
    pub id: SnapshotId,
    /// When it was taken.
    pub taken_at: Timestamp,
    /// When the state began as it.
    pub at: Timestamp,
}

/// A restore that was carried out.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Restored {
    /// Its token.
    pub token: String,
    /// What took the place of the state that was there, and when.
    pub from: Origin,
    /// The snapshot that was taken of that state before; null where there was nothing to keep. It is removed after a while.
    pub safety: Option<SnapshotId>,
}

impl Origin {
    /// The snapshot as people name it: `nightly@3`.
    #[must_use]
    pub fn name(&self) -> String {
        format!("{}@{}", self.snapshot, self.generation)
    }
}

impl From<&observed::Origin> for Origin {
    fn from(origin: &observed::Origin) -> Self {
        let observed::Origin { snapshot, key, generation, app, taken, at, restore: _ } = origin;
        Self {
            app: app.clone(),
            snapshot: key.clone(),
            generation: *generation,
            id: snapshot.clone(),
            taken_at: *taken,
            at: *at,
        }
    }
}
