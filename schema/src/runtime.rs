//! `sandbox.yaml`: what runs inside a microVM.

use serde::{Deserialize, Serialize};

use crate::declared;
use crate::id::SpecDigest;
use crate::name::{EnvName, WorkerName};

declared! {
    /// The content of `sandbox.yaml`, `version: 1`.
    pub struct Runtime {
        /// The web process; absent with workers present makes a worker-only app.
        nested web: Option<Web> = None,
        /// The command that runs after the workspace changed and before processes restart.
        nested build: Option<Build> = None,
        /// Background processes.
        process workers: Vec<Worker> = Vec::new(),
    }
}

declared! {
    /// The web process.
    pub struct Web {
        /// Run by a login shell in the workspace.
        process command: String = String::new(),
        /// The port it listens on.
        process port: u16 = 3000,
        /// Answers 200 when the app is healthy.
        live health_path: String = "/".to_owned(),
        /// Whether it restarts after the workspace changed.
        live restart_after_task: bool = true,
    }
}

declared! {
    /// The build command.
    pub struct Build {
        /// Absent: nothing to build. Explicitly empty: skipped, and reported so.
        process command: Option<String> = None,
        /// How long it may take.
        live timeout_seconds: u32 = 120,
    }
}

/// A background process.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Worker {
    /// Unique within the app.
    pub name: WorkerName,
    /// Run by a login shell in the workspace.
    pub command: String,
    /// Whether it restarts after the workspace changed.
    #[serde(default = "yes")]
    pub restart_after_task: bool,
}

fn yes() -> bool {
    true
}

impl Runtime {
    /// A runtime without any process.
    #[must_use]
    pub const fn nothing() -> Self {
        Self { web: None, build: None, workers: Vec::new() }
    }

    /// What there is to look at in a browser.
    #[must_use]
    pub fn preview(&self) -> Preview {
        if self.web.is_some() { Preview::Web } else { Preview::None }
    }
}

/// What there is to look at in a browser. A worker-only app has no preview, which is not the same as one that is down.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Preview {
    /// The web process.
    Web,
    /// Nothing, by declaration.
    None,
}

/// What the agent runs: the runtime and the environment, in one unit with one digest.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProcessSet {
    /// The processes and the build.
    pub runtime: Runtime,
    /// Their environment.
    pub env: std::collections::BTreeMap<EnvName, String>,
}

impl ProcessSet {
    /// The hash by which host and guest compare what runs with what should.
    #[must_use]
    pub fn digest(&self) -> SpecDigest {
        SpecDigest::of(self)
    }
}
