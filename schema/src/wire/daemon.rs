//! The JSON form of the daemon itself: its source, its counts and its limits.

use std::fmt;

use jiff::Timestamp;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::app::{App, Phase};
use crate::id::{CommitId, HostId};
use crate::quantity::ByteSize;

/// The whole daemon.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Status {
    /// The daemon's version.
    pub version: String,
    /// The machine that it runs on.
    pub host: HostId,
    /// When it started.
    pub started_at: Timestamp,
    /// Where the declarations come from.
    pub source: Source,
    /// How the apps are.
    pub apps: AppCounts,
    /// The VMM and what it leans on, as `qemu 7.2.22, accel tcg`.
    pub driver: String,
    /// What may run on this host, and how much of it is taken.
    pub limits: Limits,
}

/// Where the declarations come from and how far they have been read.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Source {
    /// The repository, without credentials.
    pub url: RedactedUrl,
    /// The branch.
    pub branch: String,
    /// The newest revision that was tried.
    pub last_attempted: Option<CommitId>,
    /// The newest revision that was carried out in full.
    pub last_applied: Option<CommitId>,
    /// Why the source cannot be read now; null when it can.
    pub error: Option<String>,
    /// Since when the source has been as it is: readable, or failing with this error.
    pub since: Option<Timestamp>,
}

/// A repository's URL without credentials: `https://user:token@host/repo` is kept as `https://host/repo`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(from = "String", into = "String")]
pub struct RedactedUrl(String);

impl RedactedUrl {
    /// Takes user, password and query away from a URL. Paths and `user@host:path` hold no secret and stay as they are.
    #[must_use]
    pub fn new(url: &str) -> Self {
        let Some((scheme, rest)) = url.split_once("://") else { return Self(url.to_owned()) };
        let (authority, path) = rest.find('/').map_or((rest, ""), |slash| rest.split_at(slash));
        let host = authority.rsplit_once('@').map_or(authority, |(_, host)| host);
        let path = path.split(['?', '#']).next().unwrap_or_default();
        Self(format!("{scheme}://{host}{path}"))
    }

    /// The URL as text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl From<String> for RedactedUrl {
    fn from(url: String) -> Self {
        Self::new(&url)
    }
}

impl From<RedactedUrl> for String {
    fn from(url: RedactedUrl) -> Self {
        url.0
    }
}

impl fmt::Display for RedactedUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.0)
    }
}

/// How many apps there are in each phase. An app is counted once.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct AppCounts {
    /// All of them.
    pub total: u32,
    /// As declared and healthy.
    pub ready: u32,
    /// Pending, or being changed, or being removed.
    pub reconciling: u32,
    /// As declared and not healthy.
    pub unready: u32,
    /// Something stands in their way.
    pub blocked: u32,
    /// With mistakes in their declaration.
    pub stalled: u32,
    /// Stopped or suspended, by declaration.
    pub resting: u32,
}

impl AppCounts {
    /// Counts `apps` by phase.
    #[must_use]
    pub fn of<'a>(apps: impl IntoIterator<Item = &'a App>) -> Self {
        let mut counts = Self::default();
        apps.into_iter().for_each(|app| counts.move_app(None, Some(app.phase)));
        counts
    }

    /// Counts one app in another phase than before. One that comes has no phase before, one that goes none after.
    pub fn move_app(&mut self, before: Option<Phase>, after: Option<Phase>) {
        if let Some(before) = before {
            self.total -= 1;
            *self.of_phase(before) -= 1;
        }
        if let Some(after) = after {
            self.total += 1;
            *self.of_phase(after) += 1;
        }
    }

    fn of_phase(&mut self, phase: Phase) -> &mut u32 {
        match phase {
            Phase::Ready => &mut self.ready,
            Phase::Pending | Phase::Reconciling | Phase::Deleting => &mut self.reconciling,
            Phase::Unready => &mut self.unready,
            Phase::Blocked => &mut self.blocked,
            Phase::Stalled => &mut self.stalled,
            Phase::Paused | Phase::Stopped | Phase::Suspended => &mut self.resting,
        }
    }
}

/// What may run on this host, and how much of it is taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Limits {
    /// Memory of running microVMs.
    pub memory: Usage<ByteSize>,
    /// Their virtual processors.
    pub vcpus: Usage<u32>,
    /// Lengths of data disks, retained ones included.
    pub disk: Usage<ByteSize>,
    /// Number of sandboxes.
    pub sandboxes: Usage<u32>,
}

/// How much of an amount is taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Usage<T> {
    /// What is taken.
    pub used: T,
    /// What there is.
    pub total: T,
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a test that cannot go on has failed")]
mod tests {
    use super::*;

    #[test]
    fn credentials_never_reach_the_wire() {
        let shown = |url: &str| RedactedUrl::new(url).to_string();
        assert_eq!(shown("https://bot:s3cret@git.example.org/a/b.git"), "https://git.example.org/a/b.git");
        assert_eq!(shown("https://tok@en@git.example.org/a"), "https://git.example.org/a");
        assert_eq!(shown("https://git.example.org/a?private_token=x#y"), "https://git.example.org/a");
        assert_eq!(shown("ssh://git@git.example.org:22/a"), "ssh://git.example.org:22/a");
        assert_eq!(shown("git@git.example.org:a/b.git"), "git@git.example.org:a/b.git");
        assert_eq!(shown("/srv/declarations"), "/srv/declarations");
        assert_eq!(serde_json::from_str::<RedactedUrl>("\"https://u:p@h/r\"").unwrap().as_str(), "https://h/r");
    }
}
