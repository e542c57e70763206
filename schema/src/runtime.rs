//! `sandbox.yaml`: what runs inside a microVM.

use serde::{Deserialize, Serialize};

use crate::check;
use crate::declared;
use crate::decode::{Decode, Decoder};
use crate::env::EnvValue;
use crate::id::{SpecDigest, TreeDigest};
use crate::name::{EnvName, WorkerName};
use crate::node::Node;
use crate::shared::SmallMap;

declared! {
    /// The content of `sandbox.yaml`, `version: 1`.
    #[schemars(transform = crate::json_schema::allow_version)]
    pub struct Runtime {
        /// The web process; absent with workers present makes a worker-only app.
        nested web: Option<Web> = None,
        /// The command that runs after the workspace changed and before processes restart.
        nested build: Option<Build> = None,
        /// Background processes.
        process workers: Vec<Worker> = Vec::new(),
    }
    marker "version": FormatVersion
}

declared! {
    /// The web process.
    #[schemars(extend("required" = ["command"]))]
    pub struct Web {
        /// Run by a login shell in the workspace.
        process command: String = String::new() => check::command,
        /// The port it listens on.
        #[schemars(range(min = 1))]
        process port: u16 = 3000 => check::port,
        /// Answers 200 when the app is healthy.
        live health_path: String = "/".to_owned() => check::health_path,
        /// Whether it restarts after the workspace changed.
        live restart_after_task: bool = true,
    }
}

declared! {
    /// The build command.
    pub struct Build {
        /// Absent: nothing to build. Explicitly empty: skipped, and reported so.
        process command: Option<String> = None => check::build_command,
        /// How long it may take.
        #[schemars(range(min = 1, max = 86400))]
        live timeout_seconds: u32 = 120 => check::timeout_seconds,
    }
}

/// A background process.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, schemars::JsonSchema)]
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

impl Worker {
    /// The names of its fields.
    pub const FIELDS: &'static [&'static str] = &["name", "command", "restart_after_task"];
}

impl Decode for Worker {
    fn decode(node: &Node<'_>, cx: &mut Decoder<'_>) -> Option<Self> {
        cx.fields(node, "Worker", Self::FIELDS);
        let name = cx.required(node, "name", check::worker_name);
        let command = cx.required(node, "command", check::command);
        let restart_after_task = cx.optional(node, "restart_after_task", check::anything).unwrap_or(true);
        Some(Self { name: name?, command: command?, restart_after_task })
    }
}

/// The version of `sandbox.yaml`'s format: 1 is all there is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct FormatVersion;

impl Decode for FormatVersion {
    fn decode(node: &Node<'_>, cx: &mut Decoder<'_>) -> Option<Self> {
        if cx.integer::<u32>(node, "the version 1")? == 1 {
            return Some(Self);
        }
        cx.expected(node, "the version 1");
        None
    }
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

/// What the agent runs: the runtime, the environment and the workspace they stand on, in one unit with one digest.
///
/// The workspace is part of it so that a crash between a sync and the restart that it asks for leaves a difference to see.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProcessSet {
    /// The processes and the build.
    pub runtime: Runtime,
    /// Their environment.
    pub env: SmallMap<EnvName, EnvValue>,
    /// The workspace content that they were built and started on, or offered a restart for.
    pub tree: TreeDigest,
}

impl ProcessSet {
    /// The hash by which host and guest compare what runs with what should.
    #[must_use]
    pub fn digest(&self) -> SpecDigest {
        let Self { runtime, env, tree } = self;
        Self::digest_of(runtime, env, tree)
    }

    /// The digest of the set that these make, which need not be put together for it.
    #[must_use]
    pub fn digest_of(runtime: &Runtime, env: &SmallMap<EnvName, EnvValue>, tree: &TreeDigest) -> SpecDigest {
        /// Is written as a [`ProcessSet`] is.
        #[derive(Serialize)]
        struct Parts<'a> {
            runtime: &'a Runtime,
            env: &'a SmallMap<EnvName, EnvValue>,
            tree: &'a TreeDigest,
        }
        SpecDigest::of(&Parts { runtime, env, tree })
    }
}
