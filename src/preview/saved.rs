//! A plan in a file: made by a dry run, and carried out later as it was shown, or not at all.
//!
//! The file holds what the plan was made from (revision, observation, time and entropy) rather than its steps: carrying it
//! out plans again with the same, and goes on only where that gives the same plan. So a file that somebody has changed can
//! make nothing happen that the declarations do not say.

use std::collections::BTreeMap;
use std::fs;
use std::io::{Read as _, Write as _};
use std::path::{Path, PathBuf};

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use setpoint_plan::model::{Action, Plan};
use setpoint_plan::planner::{Bounds, Entropy};
use setpoint_plan::render::json;
use setpoint_schema::id::{CommitId, HostId, SpecDigest};
use setpoint_schema::name::AppKey;
use setpoint_schema::observed::Observed;

use super::{Preview, PreviewBasis, PreviewError, observe, plan_at};
use crate::config::{Config, ConfigError};
use crate::converge::Mandate;
use crate::converge::follow::Followed;
use crate::daemon::DaemonError;
use crate::drivers;
use crate::source::{Location, Repository, SourceError, redacted};
use crate::task::blocking;

mod seen;

use seen::Seen;

/// The version of the file; the minor part grows with additions.
const FORMAT_VERSION: &str = "1.0";
/// What the file says that it is.
const KIND: &str = "setpoint-plan";
/// A plan over a hundred thousand apps fits.
const MOST_BYTES: u64 = 256 << 20;
/// How many things that moved are named.
const NAMED: usize = 10;

/// A plan to be carried out later.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct SavedPlan {
    format_version: String,
    kind: String,
    /// The version of Setpoint that made it.
    made_by: String,
    /// The time that was planned for.
    made_at: Timestamp,
    /// Where the declarations come from.
    repository: String,
    revision: CommitId,
    host: HostId,
    /// Where the plan's ids come from, in hex.
    entropy: String,
    observed: Seen,
    /// What is done to each app, as a digest.
    actions: BTreeMap<AppKey, SpecDigest>,
    /// The plan, for people and programs that look at the file. Carrying it out does not.
    plan: Value,
}

/// Why a saved plan could not be written, read or carried out.
#[derive(Debug, thiserror::Error)]
pub enum CarryOutError {
    /// The file.
    #[error("could not {operation} the plan {path}")]
    File {
        /// What was tried.
        operation: &'static str,
        /// The file.
        path: PathBuf,
        /// The cause.
        #[source]
        source: std::io::Error,
    },
    /// The file is no plan.
    #[error("{path} is not a saved plan")]
    NoPlan {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// What it was made from has moved.
    #[error("the saved plan is stale: {}", listed(.0))]
    Stale(Vec<String>),
    /// The branch cannot be followed.
    #[error("the branch cannot be followed: {message}")]
    Unfollowed {
        /// Why.
        message: String,
        /// What to do about it.
        hint: Option<String>,
    },
    /// It is for somewhere else.
    #[error("the saved plan is for {what} {planned}, and this is {here}")]
    Elsewhere {
        /// The kind of place.
        what: &'static str,
        /// What it was made for.
        planned: String,
        /// What is here.
        here: String,
    },
    /// The configuration.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// The repository.
    #[error(transparent)]
    Source(#[from] SourceError),
    /// What exists.
    #[error(transparent)]
    Preview(#[from] PreviewError),
    /// The convergence.
    #[error(transparent)]
    Daemon(#[from] DaemonError),
}

impl CarryOutError {
    /// What to do about it.
    #[must_use]
    pub fn hint(&self) -> Option<String> {
        let again = "make a new one with `setpoint reconcile --dry-run --save-plan FILE`, and look at it".to_owned();
        match self {
            Self::File { .. } => Some(
                "name a file that `setpoint reconcile --dry-run --save-plan FILE` can write, and has written before it is \
                 carried out"
                    .to_owned(),
            ),
            Self::NoPlan { .. } | Self::Stale(_) | Self::Elsewhere { .. } => Some(again),
            Self::Unfollowed { hint, .. } => hint.clone(),
            Self::Config(error) => error.hint(),
            Self::Source(error) => error.hint(),
            Self::Preview(error) => error.hint(),
            Self::Daemon(error) => error.hint(),
        }
    }
}

/// The first things of many, one a line where there are several.
fn listed(moved: &[String]) -> String {
    let mut lines: Vec<_> = moved.iter().take(NAMED).cloned().collect();
    if moved.len() > NAMED {
        lines.push(format!("and {} more", moved.len() - NAMED));
    }
    if lines.len() == 1 { lines.concat() } else { lines.iter().map(|line| format!("\n  {line}")).collect() }
}

impl SavedPlan {
    /// What `preview` shows, to be carried out later; `None` for one that compares two revisions, which nobody can carry out.
    ///
    /// # Errors
    /// When `repo` is of no kind that can be read.
    pub fn of(preview: &Preview, repo: &str) -> Result<Option<Self>, SourceError> {
        let PreviewBasis::World { observed, now, entropy } = &preview.basis else { return Ok(None) };
        Ok(Some(Self {
            format_version: FORMAT_VERSION.to_owned(),
            kind: KIND.to_owned(),
            made_by: env!("CARGO_PKG_VERSION").to_owned(),
            made_at: *now,
            repository: place(repo)?,
            revision: preview.plan.revision.clone(),
            host: observed.host.clone(),
            entropy: entropy.0.iter().map(|byte| format!("{byte:02x}")).collect(),
            observed: Seen::of(observed),
            actions: digests(&preview.plan),
            plan: json(preview.review()),
        }))
    }

    /// Writes the file, whole or not at all, for its owner's eyes alone.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn write(&self, path: &Path) -> Result<(), CarryOutError> {
        let failed = |source| CarryOutError::File { operation: "write", path: path.to_owned(), source };
        let dir = path.parent().filter(|dir| !dir.as_os_str().is_empty()).unwrap_or(Path::new("."));
        // Made with mode 0600.
        let mut file = tempfile::NamedTempFile::new_in(dir).map_err(failed)?;
        let text = serde_json::to_vec_pretty(self).expect("plans hold only maps with text keys");
        file.write_all(&text).and_then(|()| file.as_file().sync_all()).map_err(failed)?;
        file.persist(path).map_err(|error| failed(error.error))?;
        Ok(())
    }

    /// Reads the file.
    ///
    /// # Errors
    /// When it cannot be read, or is none that this version made.
    pub fn read(path: &Path) -> Result<Self, CarryOutError> {
        let failed = |source| CarryOutError::File { operation: "read", path: path.to_owned(), source };
        let no_plan =
            |source: Box<dyn std::error::Error + Send + Sync>| CarryOutError::NoPlan { path: path.to_owned(), source };
        let mut text = Vec::new();
        let file = fs::File::open(path).map_err(failed)?;
        file.take(MOST_BYTES + 1).read_to_end(&mut text).map_err(failed)?;
        if text.len() as u64 > MOST_BYTES {
            return Err(no_plan(format!("it is larger than {MOST_BYTES} bytes").into()));
        }
        // The head is read first: what another version wrote may not parse as a whole.
        let head: Head = serde_json::from_slice(&text).map_err(|error| no_plan(error.into()))?;
        let major = |version: &str| version.split('.').next().unwrap_or_default().to_owned();
        if head.kind != KIND || major(&head.format_version) != major(FORMAT_VERSION) {
            return Err(no_plan(format!("it is a {} of version {}", head.kind, head.format_version).into()));
        }
        serde_json::from_slice(&text).map_err(|error| no_plan(error.into()))
    }

    /// Refuses, before anything is opened, a plan for another repository or another revision than the branch's tip.
    ///
    /// # Errors
    /// When it is refused, or when the repository cannot be read.
    pub async fn check_tip(&self, config: &Config) -> Result<(), CarryOutError> {
        let here = place(config.source_url()?)?;
        if here != self.repository {
            let planned = self.repository.clone();
            return Err(CarryOutError::Elsewhere { what: "the repository", planned, here });
        }
        let source = drivers::source_config(config)?;
        let tip = blocking(move || Repository::open(&source)?.poll()).await?;
        self.check_revision(&tip)
    }

    /// What to carry out, if planning again gives the same.
    ///
    /// # Errors
    /// When anything that it was made from has moved: which revision, which apps.
    pub async fn mandate(&self, config: &Config, followed: &Followed) -> Result<Mandate, CarryOutError> {
        if let Some(trouble) = &followed.trouble {
            let (message, hint) = (trouble.message.clone(), trouble.hint.clone());
            return Err(CarryOutError::Unfollowed { message, hint });
        }
        self.check_revision(&followed.desired.revision)?;
        let observed = observe(config).await?;
        self.check_observed(&observed)?;
        let entropy = self.entropy()?;
        let plan = plan_at(&followed.desired, &observed, self.made_at, entropy);
        let moved = differences(&self.actions, &digests(&plan));
        if !moved.is_empty() {
            return Err(CarryOutError::Stale(moved));
        }
        Ok(Mandate { bounds: Bounds::of(&plan), entropy })
    }

    fn check_revision(&self, tip: &CommitId) -> Result<(), CarryOutError> {
        if *tip == self.revision {
            return Ok(());
        }
        let moved = format!("it is for revision {}, and the branch is at {}", self.revision.short(), tip.short());
        Err(CarryOutError::Stale(vec![moved]))
    }

    fn check_observed(&self, observed: &Observed) -> Result<(), CarryOutError> {
        if observed.host != self.host {
            let (planned, here) = (self.host.to_string(), observed.host.to_string());
            return Err(CarryOutError::Elsewhere { what: "the host", planned, here });
        }
        let moved = self.observed.moved(&Seen::of(observed));
        if moved.is_empty() { Ok(()) } else { Err(CarryOutError::Stale(moved)) }
    }

    fn entropy(&self) -> Result<Entropy, CarryOutError> {
        let byte = |at: usize| u8::from_str_radix(self.entropy.get(at * 2..at * 2 + 2)?, 16).ok();
        let mut bytes = [0; 16];
        for (at, place) in bytes.iter_mut().enumerate() {
            *place = byte(at).ok_or_else(|| CarryOutError::NoPlan {
                path: PathBuf::from("the file"),
                source: "its entropy is not 32 hex digits".into(),
            })?;
        }
        Ok(Entropy(bytes))
    }
}

/// What every version of the file begins with.
#[derive(Deserialize)]
struct Head {
    format_version: String,
    kind: String,
}

/// A repository's one name: the path without links for a local one, the URL without credentials for others.
fn place(repo: &str) -> Result<String, SourceError> {
    Ok(match Location::parse(repo)? {
        Location::Local(path) => fs::canonicalize(&path).unwrap_or(path).display().to_string(),
        Location::Remote(url) => redacted(&url),
    })
}

fn digests(plan: &Plan) -> BTreeMap<AppKey, SpecDigest> {
    plan.actions.iter().map(|action| (action.app.clone(), digest(action))).collect()
}

/// What is done and to what. Not what it waits for: that may go by while the plan lies in its file.
fn digest(action: &Action) -> SpecDigest {
    let Action { app, sandbox, kind, reasons: _, changes, steps, blocked: _ } = action;
    SpecDigest::of(&(app, sandbox, kind, changes, steps))
}

/// The apps for which something else would be done.
fn differences(planned: &BTreeMap<AppKey, SpecDigest>, now: &BTreeMap<AppKey, SpecDigest>) -> Vec<String> {
    let other = planned.iter().filter_map(|(app, digest)| match now.get(app) {
        None => Some(format!("nothing is left to do for {app}")),
        Some(found) if found != digest => Some(format!("something else would be done for {app}")),
        Some(_) => None,
    });
    let new = now.keys().filter(|app| !planned.contains_key(*app));
    other.chain(new.map(|app| format!("there is something to do for {app} by now"))).collect()
}
