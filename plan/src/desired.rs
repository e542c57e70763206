//! What one revision of the declarations wants, as the planner reads it.

use std::collections::BTreeMap;
use std::sync::Arc;

use setpoint_schema::app::DesiredApp;
use setpoint_schema::id::{CommitId, TemplateDigest};
use setpoint_schema::name::{AppKey, SnapshotKey};
use setpoint_schema::shared::SharedMap;
use setpoint_schema::snapshot::DesiredSnapshot;
use setpoint_schema::template::TemplateRoot;

/// The desired state: what to converge on, and what of it could not be read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Desired {
    /// The revision that was read.
    pub revision: CommitId,
    /// The apps; a broken one stands here with its last good spec, if it has one. One that a commit did not change is best the
    /// same `Arc` as before it: so the planner knows that there is nothing new to see.
    pub apps: SharedMap<AppKey, Arc<DesiredApp>>,
    /// Of these, the ones that are kept as an earlier revision declares them, and which revision that is.
    pub kept: BTreeMap<AppKey, CommitId>,
    /// Apps whose newest declaration has mistakes, with the mistakes in a sentence.
    pub stalled: BTreeMap<AppKey, String>,
    /// How each template in use comes to be.
    pub templates: BTreeMap<TemplateDigest, DesiredTemplateRoot>,
    /// Renames, old key to new.
    pub moved: BTreeMap<AppKey, AppKey>,
    /// The snapshots without a mistake.
    pub snapshots: SharedMap<SnapshotKey, Arc<DesiredSnapshot>>,
    /// Snapshots whose newest declaration has mistakes, with the mistakes in a sentence: they stay as they are.
    pub stalled_snapshots: BTreeMap<SnapshotKey, String>,
    /// Whether the set of apps is the whole truth.
    pub completeness: Completeness,
}

impl Desired {
    /// The revision that has an app as it stands here.
    #[must_use]
    pub fn revision_of(&self, app: &AppKey) -> &CommitId {
        self.kept.get(app).unwrap_or(&self.revision)
    }
}

/// How a template's root comes to be, and the revision to read it from.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct DesiredTemplateRoot {
    /// The declaration.
    pub root: TemplateRoot,
    /// The revision that it was read in.
    pub revision: CommitId,
}

/// Whether the set of apps is the whole truth, so that an app missing from it may be removed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Completeness {
    /// It is.
    Complete,
    /// Something could not be read, so that nothing may be removed: the reason, in a sentence.
    Partial(String),
    /// It is whole and empty, and `allow_empty` is not set, so that nothing may be removed.
    EmptyRefused,
}
