//! `kind: Snapshot`: a moment of an app that is to be kept, and what of it.
//!
//! Declared beside apps, in any `app.yaml`. What a snapshot becomes on a host is [`crate::observed::SnapshotRecord`].

use std::collections::BTreeSet;
use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::app::Retain;
use crate::disruption::{ClassByValue, Disruption};
use crate::id::{SnapshotId, SpecDigest};
use crate::name::{AppKey, DirName, NameError, RepoPath, SnapshotKey, Team};
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

/// Which snapshot an app means: a declared one, as `name` or `team/name`, or any one by its id.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, schemars::JsonSchema)]
#[schemars(with = "String")]
pub enum SnapshotRef {
    /// The newest generation of a declared one.
    Name(SnapshotKey),
    /// This very one, by the 32 hex digits that Setpoint gave it. Nothing in git says whether it is there.
    Id(SnapshotId),
}

impl SnapshotRef {
    /// Reads an id, `team/name`, or `name` in a team that is known from elsewhere.
    ///
    /// # Errors
    /// The rule that a name breaks.
    pub fn within(text: &str, team: &Team) -> Result<Self, NameError> {
        let is_id = text.len() == 32 && text.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'));
        if is_id { Ok(Self::Id(SnapshotId(text.to_owned()))) } else { SnapshotKey::within(text, team).map(Self::Name) }
    }

    /// The name of a declared one.
    #[must_use]
    pub fn name(&self) -> Option<&SnapshotKey> {
        match self {
            Self::Name(key) => Some(key),
            Self::Id(_) => None,
        }
    }
}

impl fmt::Display for SnapshotRef {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Name(key) => key.fmt(f),
            Self::Id(id) => id.fmt(f),
        }
    }
}

impl FromStr for SnapshotRef {
    type Err = NameError;
    fn from_str(text: &str) -> Result<Self, NameError> {
        Self::within(text, &Team::default_team())
    }
}

crate::text::as_text!(SnapshotRef);

/// What a sandbox is when it is made.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(rename_all = "camelCase")]
pub enum Beginning {
    /// As this snapshot.
    Snapshot(SnapshotRef),
    /// As this app is at that moment. It goes on.
    App(AppKey),
}

impl fmt::Display for Beginning {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Snapshot(snapshot) => write!(f, "snapshot {snapshot}"),
            Self::App(app) => write!(f, "a fork of {app}"),
        }
    }
}

/// A snapshot whose state takes the place of an app's own.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Restore {
    /// Which snapshot.
    pub snapshot: SnapshotRef,
    /// Free text; each is carried out once.
    pub token: String,
}

impl ClassByValue for Option<Restore> {
    const WORST: Disruption = Disruption::Replace;

    fn class_of_change(&self, newer: &Self) -> Disruption {
        let token = |restore: &Option<Restore>| restore.as_ref().map(|restore| restore.token.clone());
        if newer.is_none() || token(self) == token(newer) { Disruption::Live } else { Disruption::Replace }
    }
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
    /// The content hash of the spec, that a generation counts changes of.
    pub digest: SpecDigest,
}

impl DesiredSnapshot {
    /// A snapshot as a file declares it.
    #[must_use]
    pub fn new(metadata: SnapshotMetadata, spec: SnapshotSpec, path: RepoPath) -> Self {
        Self { digest: SpecDigest::of(&spec), metadata, spec, path }
    }
}
