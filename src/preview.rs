//! The dry run: the same loader and the same planner as the daemon's, with nothing written anywhere.
//!
//! What exists is asked of the daemon that runs on the state directory, through its API; without one, of a copy of the store
//! and of the microVMs themselves.

use std::path::{Path, PathBuf};

use jiff::Timestamp;
use setpoint_plan::desired::Desired;
use setpoint_plan::model::Plan;
use setpoint_plan::planner::{Entropy, Inputs, plan};
use setpoint_schema::diagnostic::Diagnostic;
use setpoint_schema::id::CommitId;
use setpoint_schema::name::RepoPath;
use setpoint_schema::observed::Observed;
use setpoint_state::StateError;

use crate::config::Config;
use crate::desired::{Loaded, Loader, Remembered, WORKTREE};
use crate::ledger::Inventory;
use crate::observe::Observer;
use crate::render::Renderer;
use crate::source::{Repository, SourceConfig, SourceError, SourceLimits, Worktree};
use crate::task::blocking;
use crate::{daemon, drivers, host, world};

/// Which declarations to preview.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Declarations {
    /// A revision of a repository.
    Revision {
        /// The repository's path or URL.
        repo: String,
        /// The branch that `HEAD` stands for, where another than the repository's own.
        branch: Option<String>,
        /// What people call the revision.
        rev: String,
    },
    /// The files of a directory as they are, uncommitted edits included.
    Worktree(PathBuf),
}

/// What would be done, and what is wrong with the declarations.
#[derive(Debug)]
pub struct Preview {
    /// The plan.
    pub plan: Plan,
    /// The mistakes.
    pub diagnostics: Vec<Diagnostic>,
}

/// Why there is no preview; the cause is the source.
#[derive(Debug, thiserror::Error)]
pub enum PreviewError {
    /// The declarations.
    #[error(transparent)]
    Source(#[from] SourceError),
    /// The store.
    #[error(transparent)]
    State(#[from] StateError),
    /// The driver.
    #[error(transparent)]
    Vmm(#[from] setpoint_vmm::driver::VmmError),
    /// There is no room for a mirror of the repository.
    #[error("could not make a temporary directory")]
    Mirror(#[source] std::io::Error),
    /// The daemon that has the state directory.
    #[error(transparent)]
    Daemon(#[from] crate::cli::client::ClientError),
}

impl PreviewError {
    /// What to do about it.
    #[must_use]
    pub fn hint(&self) -> Option<String> {
        match self {
            Self::Source(error) => error.hint(),
            Self::State(error) => Some(error.hint()),
            Self::Vmm(_) | Self::Mirror(_) => None,
            Self::Daemon(error) => error.hint(),
        }
    }
}

/// Plans `declarations` against what exists, and changes nothing.
///
/// # Errors
/// When the declarations or what exists cannot be read. Mistakes in declarations are no error: they are in the preview.
pub async fn preview(config: &Config, declarations: &Declarations) -> Result<Preview, PreviewError> {
    let observed = observe(config).await?;
    let remembered = observed.apps.clone();
    let declarations = declarations.clone();
    let path = config.source.path.clone();
    // A remote is mirrored into a directory that is gone afterwards: a preview leaves no trace.
    let mirror = tempfile::tempdir().map_err(PreviewError::Mirror)?;
    let load = move || load(&declarations, path, mirror.path(), &remembered);
    let Loaded { desired, diagnostics, project: _ } = blocking(load).await?;
    Ok(Preview { plan: plan_of(&desired, &observed), diagnostics })
}

/// The plan for `desired` with ids that depend on nothing but what is planned, so that two previews of the same show the same.
pub fn plan_of(desired: &Desired, observed: &Observed) -> Plan {
    plan(&Inputs { desired, observed, parent: None, now: Timestamp::now(), entropy: Entropy([0; 16]) })
}

/// A loader with empty caches, which renders in a child of this binary.
#[must_use]
pub fn loader() -> Loader {
    Loader::new(Renderer::new(drivers::render_child()))
}

fn load(
    declarations: &Declarations,
    path: Option<RepoPath>,
    mirror: &Path,
    remembered: &dyn Remembered,
) -> Result<Loaded, SourceError> {
    let mut loader = loader();
    match declarations {
        Declarations::Worktree(dir) => {
            let dir = path.map_or_else(|| dir.clone(), |path| dir.join(path.as_str()));
            let worktree = Worktree::read(&dir, SourceLimits::default())?;
            loader.load_files(&worktree, &CommitId(WORKTREE.to_owned()), remembered)
        }
        Declarations::Revision { repo, branch, rev } => {
            let (url, branch, state_dir) = (repo.clone(), branch.clone(), mirror.to_owned());
            let config = SourceConfig { url, branch, path, state_dir, limits: SourceLimits::default() };
            let repository = Repository::open(&config)?;
            let commit = match rev.as_str() {
                "HEAD" => repository.poll()?,
                rev => repository.resolve(rev)?,
            };
            loader.load(&repository, &commit, remembered)
        }
    }
}

/// What exists, without a trace.
async fn observe(config: &Config) -> Result<Observed, PreviewError> {
    if let Some(running) = daemon::running(&config.state.dir) {
        return Ok(crate::cli::client::Client::of(&running).get("/v1/observed").await?);
    }
    let limits = host::limits(&config.limits, &config.state.dir);
    if !config.store_dir().exists() {
        return Ok(world::nothing(limits));
    }
    let inventory = Inventory::of_copy(&config.store_dir())?;
    let driver = drivers::driver(config)?;
    let recorded = |id| inventory.sandboxes.iter().any(|record| record.id == id);
    let machines = driver.list().await?;
    let unrecorded: Vec<_> = machines.into_iter().filter(|machine| !recorded(machine.sandbox.clone())).collect();
    let observer = Observer::new(driver);
    world::let_guests_answer(&observer, &inventory).await;
    Ok(world::assemble(&observer, inventory, &unrecorded, limits).await)
}
