//! `kind: Snapshot`: a moment of an app that is to be kept, and what of it.
//!
//! Declared beside apps, in any `app.yaml`. What a snapshot becomes on a host is [`crate::observed::SnapshotRecord`].

use std::collections::BTreeSet;

use serde::{Deserialize, Serialize};

use crate::app::Retain;
use crate::id::SpecDigest;
use crate::name::{AppKey, DirName, RepoPath, SnapshotKey};
use crate::notes::Notes;
use crate::quantity::Span;

/// The `spec` of a Snapshot. Any change of it takes another one.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct SnapshotSpec {
    /// The app of which a moment is kept.
    pub of: AppKey,
    /// What is kept of it.
    #[serde(default)]
    pub content: Content,
    /// Names of directories that whatever begins from a disk-only snapshot does without.
    #[serde(default = "default_exclude")]
    pub exclude: BTreeSet<DirName>,
    /// How many generations are kept, 1 to 100.
    #[serde(default = "default_keep")]
    #[schemars(range(min = 1, max = 100))]
    pub keep: u32,
    /// How long it is kept once it is declared no more.
    #[serde(default = "default_retain")]
    pub retain: Retain,
    /// Free text; another one takes another snapshot.
    #[serde(default)]
    pub token: String,
}

impl SnapshotSpec {
    /// The names of its fields, as declarations write them.
    pub const FIELDS: &'static [&'static str] = &["of", "content", "exclude", "keep", "retain", "token"];

    /// All of an app, with the defaults.
    #[must_use]
    pub fn of(app: AppKey) -> Self {
        Self {
            of: app,
            content: Content::default(),
            exclude: default_exclude(),
            keep: default_keep(),
            retain: default_retain(),
            token: String::new(),
        }
    }
}

/// What is kept of an app.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Content {
    /// Memory and disk: what begins from it goes on in the middle of what was running.
    #[default]
    Memory,
    /// The disk alone: what begins from it boots.
    Disk,
}

/// What is made again in a moment, or downloaded: dependencies, build output, caches.
#[must_use]
pub fn default_exclude() -> BTreeSet<DirName> {
    let names = ["node_modules", ".next", "out", ".venv", "__pycache__", ".cache"];
    names.iter().map(|name| DirName::new(name).expect("each is a plain name")).collect()
}

fn default_keep() -> u32 {
    3
}

/// How long a snapshot is kept that nobody declares, unless something else is said.
#[must_use]
pub fn default_retain() -> Retain {
    Retain::For(Span::secs(30 * 86_400))
}

/// Who a Snapshot is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SnapshotMetadata {
    /// Team and name.
    pub key: SnapshotKey,
    /// Free labels.
    pub labels: Notes,
    /// Free annotations.
    pub annotations: Notes,
}

/// One Snapshot as a revision declares it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DesiredSnapshot {
    /// Who it is.
    pub metadata: SnapshotMetadata,
    /// What is kept, and for how long.
    pub spec: SnapshotSpec,
    /// The file that declares it.
    pub path: RepoPath,
}

impl DesiredSnapshot {
    /// The content hash that a generation counts changes of.
    #[must_use]
    pub fn digest(&self) -> SpecDigest {
        SpecDigest::of(&self.spec)
    }
}
