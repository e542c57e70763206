//! `kind: App`: what a team declares to run, and the spec that is left once defaults and `sandbox.yaml` are filled in.

use std::collections::BTreeSet;
use std::fmt;
use std::ops::Deref;
use std::str::FromStr;
use std::sync::{Arc, OnceLock};

use serde::{Deserialize, Serialize};

use crate::check;
use crate::declared;
use crate::disruption::{ClassByValue, Disruption};
use crate::env::EnvValue;
use crate::id::{SpecDigest, TemplateDigest, TreeDigest};
use crate::name::{AppKey, EnvName, HostName, RepoPath, TemplateName, Uid};
use crate::notes::Notes;
use crate::power::{PowerSpec, WakeSpec};
use crate::quantity::{ByteSize, Span};
use crate::runtime::{ProcessSet, Runtime};
use crate::shared::SmallMap;
use crate::short::Short;
pub use crate::snapshot::{Beginning, Restore, SnapshotRef};
use crate::window::Windows;

declared! {
    /// The `spec` of an App.
    pub struct AppSpec {
        /// The template that the microVM starts from. Changing it makes the microVM anew; the data disk stays.
        replace template: TemplateName = TemplateName::minimal(),
        /// Where the workspace files come from.
        nested source: Source = Source::default(),
        /// What runs, as in `sandbox.yaml`; absent means `sandbox.yaml` beside the app or in its source.
        nested runtime: Option<Arc<Runtime>> = None,
        /// The microVM's size.
        nested resources: Resources = Resources::default(),
        /// Environment variables of every process: `NAME: text`, or `NAME: {value: text, sensitive: true}`.
        process env: SmallMap<EnvName, EnvValue> = SmallMap::new() => check::env,
        /// What is reachable through the ingress.
        nested expose: Expose = Expose::default(),
        /// Whether the microVM runs, and when it rests by itself.
        nested power: Short<PowerSpec> = Short::default(),
        /// Who wakes it when it is at rest.
        nested wake: Short<WakeSpec> = Short::default(),
        /// Apps that must be ready before this one starts or changes.
        live depends_on as "dependsOn": BTreeSet<AppKey> = BTreeSet::new(),
        /// Whether removing the declaration removes the app.
        live prune: Prune = Prune::Enabled,
        /// Freezes the app as it is: nothing is changed, healed or removed.
        live suspend: bool = false,
        /// How long the data disk of a removed app is kept.
        live retain: Retain = Retain::For(Span::secs(7 * 24 * 3600)) => check::retain,
        /// How long each wait may last.
        nested timeouts: Timeouts = Timeouts::default(),
        /// What the sandbox is when it is made: as a snapshot, or as another app at that moment. Changes nothing later.
        live from: Option<Beginning> = None,
        /// A snapshot whose state takes the place of the app's own, once for each token.
        by_value restore: Option<Restore> = None,
        /// When changes may restart processes, boot, replace, stop or remove the app; without any, always.
        live windows: Windows = Windows::default() => check::windows,
    }
}

declared! {
    /// Where the workspace files come from.
    pub struct Source {
        /// A folder of the declarations repository; absent means the app's own folder.
        files path: Option<RepoPath> = None,
    }
}

declared! {
    /// The microVM's size.
    pub struct Resources {
        /// Virtual processors, 1 to 64.
        #[schemars(range(min = 1, max = 64))]
        reboot vcpus: u32 = 1 => check::vcpus,
        /// Memory, at least 96Mi.
        reboot memory: ByteSize = ByteSize::mib(256) => check::memory,
        /// The data disk that holds the workspace. Grows in place.
        by_value disk: DiskSize = DiskSize(ByteSize::gib(1)) => check::disk,
        /// What a smaller `disk` means: `refuse`, or `replace` the disk (the old one is kept for `retain`).
        live shrink: Shrink = Shrink::Refuse,
    }
}

/// The size of a data disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(transparent)]
pub struct DiskSize(pub ByteSize);

impl ClassByValue for DiskSize {
    const WORST: Disruption = Disruption::Replace;

    fn class_of_change(&self, newer: &Self) -> Disruption {
        if newer >= self { Disruption::Live } else { Disruption::Replace }
    }
}

/// What a declared disk smaller than the existing one means.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Shrink {
    /// The app is blocked, with the reason, until the size is put back.
    Refuse,
    /// A new, empty disk takes the place of the old one.
    Replace,
}

declared! {
    /// What is reachable through the ingress.
    pub struct Expose {
        /// Further guest ports, each as `{port}-{app}.{domain}`; the web port is always reachable as `{app}.{domain}`.
        live ports: BTreeSet<u16> = BTreeSet::new() => check::ports,
        /// Further host names for the web port.
        live hosts: BTreeSet<HostName> = BTreeSet::new() => check::hosts,
    }
}

/// Whether the microVM runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Power {
    /// It runs.
    Running,
    /// It rests, with its memory kept in files: it goes on where it was.
    Paused,
    /// It is shut down; its disk stays.
    Stopped,
}

impl ClassByValue for Power {
    const WORST: Disruption = Disruption::Reboot;

    /// Nothing restarts in a guest that pauses, nor in one that goes on.
    fn class_of_change(&self, newer: &Self) -> Disruption {
        match (self, newer) {
            (Self::Running | Self::Paused, Self::Running | Self::Paused) | (Self::Stopped, Self::Stopped) => {
                Disruption::Live
            }
            (Self::Stopped, Self::Running | Self::Paused) | (Self::Running | Self::Paused, Self::Stopped) => {
                Disruption::Reboot
            }
        }
    }
}

/// Whether removing the declaration removes the app.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Prune {
    /// It does.
    Enabled,
    /// The app runs on until somebody removes it by hand.
    Disabled,
}

/// How long the data disk of a removed app is kept: `none`, or a time such as `7d`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, schemars::JsonSchema)]
#[schemars(with = "String")]
pub enum Retain {
    /// Deleted with the app.
    None,
    /// Kept this long.
    For(Span),
}

impl FromStr for Retain {
    type Err = crate::quantity::QuantityError;
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        if text == "none" { Ok(Self::None) } else { text.parse().map(Self::For) }
    }
}

impl fmt::Display for Retain {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::None => f.pad("none"),
            Self::For(span) => span.fmt(f),
        }
    }
}

crate::text::as_text!(Retain);

declared! {
    /// How long each wait may last. Every wait has an end.
    pub struct Timeouts {
        // Boot allows for software emulation on a loaded host, some twenty times slower than KVM.
        /// From starting the microVM to its agent's answer.
        live boot: Span = Span::secs(180) => check::wait,
        /// From starting the processes to healthy.
        live ready: Span = Span::secs(120) => check::wait,
        /// For a clean shutdown, before the microVM is ended.
        live stop: Span = Span::secs(10) => check::wait,
        /// Of silence from the agent, before the guest counts as hung.
        live unresponsive: Span = Span::secs(20) => check::wait,
    }
}

/// Who an App is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct AppMetadata {
    /// Team and name.
    pub key: AppKey,
    /// The identity that survives a rename, where one is declared.
    pub uid: Option<Uid>,
    /// Free labels.
    pub labels: Notes,
    /// Free annotations.
    pub annotations: Notes,
}

/// All that one sandbox is made from: the app's spec with nothing left to look up.
///
/// `app.runtime` is always present here. Two equal values need no action between them.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SandboxSpec {
    /// The declaration, defaults filled in.
    pub app: AppSpec,
    /// The content of the template.
    pub template: TemplateDigest,
    /// The content of the workspace.
    pub files: TreeDigest,
}

impl SandboxSpec {
    /// The fields in which `newer` differs, in declaration order.
    #[must_use]
    pub fn diff(&self, newer: &Self) -> Vec<crate::disruption::FieldChange> {
        use crate::disruption::{Declared as _, diff_leaf};
        let Self { app, template, files } = self;
        let mut out = Vec::new();
        app.diff(&newer.app, "", &mut out);
        diff_leaf(template, &newer.template, "template.content", Disruption::Replace, &mut out);
        diff_leaf(files, &newer.files, "source.content", Disruption::Files, &mut out);
        out
    }

    /// What runs.
    #[must_use]
    pub fn runtime(&self) -> &Runtime {
        static NOTHING: Runtime = Runtime::nothing();
        self.app.runtime.as_deref().unwrap_or(&NOTHING)
    }

    /// What the agent is to run.
    #[must_use]
    pub fn processes(&self) -> ProcessSet {
        ProcessSet { runtime: self.runtime().clone(), env: self.app.env.clone(), tree: self.files.clone() }
    }
}

/// A spec that nobody changes any more: copies share it, and its hashes are made once.
#[derive(Clone)]
pub struct PinnedSpec(Arc<Pinned>);

struct Pinned {
    spec: SandboxSpec,
    digest: OnceLock<SpecDigest>,
    processes: OnceLock<SpecDigest>,
}

impl PinnedSpec {
    /// Pins a spec.
    #[must_use]
    pub fn new(spec: SandboxSpec) -> Self {
        Self(Arc::new(Pinned { spec, digest: OnceLock::new(), processes: OnceLock::new() }))
    }

    /// Pins a spec whose hashes are known from before, from [`Self::digest`] and [`Self::processes_digest`] of an equal one.
    #[must_use]
    pub fn with_hashes(spec: SandboxSpec, digest: SpecDigest, processes: SpecDigest) -> Self {
        Self(Arc::new(Pinned { spec, digest: digest.into(), processes: processes.into() }))
    }

    /// The content hash that a generation counts changes of.
    #[must_use]
    pub fn digest(&self) -> &SpecDigest {
        self.0.digest.get_or_init(|| SpecDigest::of(&self.0.spec))
    }

    /// The hash of what the agent is to run, as [`SandboxSpec::processes`] has it.
    #[must_use]
    pub fn processes_digest(&self) -> &SpecDigest {
        let SandboxSpec { app, template: _, files } = &self.0.spec;
        self.0.processes.get_or_init(|| ProcessSet::digest_of(self.0.spec.runtime(), &app.env, files))
    }

    /// A spec that differs in what `change` does.
    #[must_use]
    pub fn with(&self, change: impl FnOnce(&mut SandboxSpec)) -> Self {
        let mut spec = self.0.spec.clone();
        change(&mut spec);
        Self::new(spec)
    }
}

impl Deref for PinnedSpec {
    type Target = SandboxSpec;

    fn deref(&self) -> &SandboxSpec {
        &self.0.spec
    }
}

impl From<SandboxSpec> for PinnedSpec {
    fn from(spec: SandboxSpec) -> Self {
        Self::new(spec)
    }
}

impl PartialEq for PinnedSpec {
    fn eq(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.0, &other.0)
            || match (self.0.digest.get(), other.0.digest.get()) {
                (Some(digest), Some(other)) => digest == other,
                (Some(_) | None, None) | (None, Some(_)) => self.0.spec == other.0.spec,
            }
    }
}

impl Eq for PinnedSpec {}

impl fmt::Debug for PinnedSpec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.spec.fmt(f)
    }
}

impl Serialize for PinnedSpec {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        self.0.spec.serialize(serializer)
    }
}

impl<'de> Deserialize<'de> for PinnedSpec {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        SandboxSpec::deserialize(deserializer).map(Self::new)
    }
}

/// One App as a revision declares it, ready to plan with. It does not name the revision: most commits leave most apps as they
/// are, and an app that is as it was is the same value.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DesiredApp {
    /// Who it is.
    pub metadata: AppMetadata,
    /// What its sandbox is made from.
    pub spec: PinnedSpec,
    /// The file that declares it.
    pub path: RepoPath,
}

#[cfg(test)]
mod tests;
