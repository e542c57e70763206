//! The dry run: the same loader and the same planner as the daemon's, with nothing written anywhere.
//!
//! What exists is asked of the daemon that runs on the state directory, through its API; without one, of a copy of the store
//! and of the microVMs themselves. Between two revisions nothing is asked at all: the older one is taken as carried out.

mod load;
pub mod saved;

use std::borrow::Cow;
use std::path::PathBuf;
use std::sync::Arc;

use jiff::Timestamp;
use setpoint_plan::assumed;
use setpoint_plan::desired::Desired;
use setpoint_plan::model::Plan;
use setpoint_plan::planner::{Entropy, Inputs, plan_with};
use setpoint_plan::render::{Basis, Review};
use setpoint_schema::diagnostic::Diagnostic;
use setpoint_schema::id::CommitId;
use setpoint_schema::name::AppKey;
use setpoint_schema::observed::{Observed, Retry};
use setpoint_state::StateError;

use crate::config::Config;
use crate::crew::AllProcessors;
use crate::desired::{Loaded, Loader};
use crate::ledger::Inventory;
use crate::observe::Observer;
use crate::render::Renderer;
use crate::source::SourceError;
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
    /// What it is compared with.
    pub basis: PreviewBasis,
}

/// What a preview compares declarations with.
#[derive(Debug)]
pub enum PreviewBasis {
    /// What exists, and when and with what that was planned.
    World {
        /// What exists.
        observed: Box<Observed>,
        /// The time that was planned for.
        now: Timestamp,
        /// Where the plan's ids come from.
        entropy: Entropy,
    },
    /// A revision, taken as carried out.
    Revision {
        /// Which.
        revision: CommitId,
        /// Its apps that have mistakes in it: how they would be there nobody can tell, so they count as not there.
        unknown: Vec<AppKey>,
    },
}

/// Whether a preview's ids are made up for showing, or kept for carrying it out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ids {
    /// The same in two previews of the same.
    Shown,
    /// New ones.
    Kept,
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

impl Preview {
    /// The preview as it is shown.
    #[must_use]
    pub fn review(&self) -> Review<'_> {
        let basis = match &self.basis {
            PreviewBasis::World { .. } => Basis::World,
            PreviewBasis::Revision { revision, unknown: _ } => Basis::Revision(revision),
        };
        Review { plan: &self.plan, basis, mistakes: &self.diagnostics }
    }
}

/// Plans `declarations` against what exists, and changes nothing.
///
/// # Errors
/// When the declarations or what exists cannot be read. Mistakes in declarations are no error: they are in the preview.
pub async fn preview(config: &Config, declarations: &Declarations, ids: Ids) -> Result<Preview, PreviewError> {
    let observed = observe(config).await?;
    let remembered = observed.apps.clone();
    let declarations = declarations.clone();
    let place = load::Place::of(config).map_err(PreviewError::Mirror)?;
    let load = move || load::one(&declarations, &place, &remembered);
    let Loaded { desired, diagnostics, project: _, prewarmed: _ } = blocking(load).await?;
    let (now, entropy) = (Timestamp::now(), ids.entropy());
    let plan = plan_at(&desired, &observed, now, entropy);
    let basis = PreviewBasis::World { observed: Box::new(observed), now, entropy };
    Ok(Preview { plan, diagnostics, basis })
}

/// Plans `declarations` against a world in which `against` is carried out. Looks at nothing but the repository.
///
/// # Errors
/// When one of the two cannot be read. Mistakes in declarations are no error: they are in the preview.
pub async fn compare(config: &Config, declarations: &Declarations, against: &str) -> Result<Preview, PreviewError> {
    let (declarations, against) = (declarations.clone(), against.to_owned());
    let place = load::Place::of(config).map_err(PreviewError::Mirror)?;
    let load = move || load::two(&declarations, &against, &place);
    let (before, after) = blocking(load).await?;
    let observed = assumed::carried_out(&before.desired);
    let plan = plan_at(&after.desired, &observed, assumed::NOW, Entropy(SHOWN));
    let unknown = before.desired.stalled.keys().filter(|key| !before.desired.apps.contains_key(*key));
    let basis = PreviewBasis::Revision { unknown: unknown.cloned().collect(), revision: before.desired.revision };
    Ok(Preview { plan, diagnostics: after.diagnostics, basis })
}

/// The plan for `desired` with ids that depend on nothing but what is planned, so that two previews of the same show the same.
pub fn plan_of(desired: &Desired, observed: &Observed) -> Plan {
    plan_at(desired, observed, Timestamp::now(), Entropy(SHOWN))
}

/// Ids for looking at.
const SHOWN: [u8; 16] = [0; 16];

impl Ids {
    fn entropy(self) -> Entropy {
        match self {
            Self::Shown => Entropy(SHOWN),
            Self::Kept => Entropy(ulid::Ulid::generate().to_bytes()),
        }
    }
}

fn plan_at(desired: &Desired, observed: &Observed, now: Timestamp, entropy: Entropy) -> Plan {
    let observed = with_fresh_chances(desired, observed);
    plan_with(&Inputs { desired, observed: &observed, parent: None, now, entropy }, &AllProcessors)
}

/// What the daemon would plan with: failures of an app are forgotten as soon as it is declared anew.
fn with_fresh_chances<'o>(desired: &Desired, observed: &'o Observed) -> Cow<'o, Observed> {
    let had_trouble = observed.apps.iter().filter(|(_, record)| {
        record.retry != Retry::default() || !record.heals.is_empty() || !record.repeats.is_empty()
    });
    let renewed = had_trouble.filter(|(key, record)| {
        let declared = desired.apps.get(*key).filter(|_| !desired.stalled.contains_key(*key));
        declared.is_some_and(|app| *app.spec.digest() != record.digest)
    });
    let renewed: Vec<_> = renewed.map(|(key, _)| key).collect();
    if renewed.is_empty() {
        return Cow::Borrowed(observed);
    }
    let mut fresh = observed.clone();
    for key in renewed {
        if let Some(record) = fresh.apps.get_mut(key) {
            let record = Arc::make_mut(record);
            record.retry = Retry::default();
            record.heals.clear();
            record.repeats.clear();
        }
    }
    Cow::Owned(fresh)
}

/// A loader with empty caches, which renders in a child of this binary.
#[must_use]
pub fn loader() -> Loader {
    Loader::new(Renderer::new(drivers::render_child()))
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
