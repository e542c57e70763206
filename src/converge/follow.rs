//! Follows the branch: from a hint or a poll to a loaded revision, keeping the last good one through every error.
//!
//! ```text
//!   start ──▶ last accepted revision, or the last good specs ──▶ following
//!   following ──tip moved, descendant, loads──▶ following the new revision
//!             ──anything else──▶ following the old one, in error, nothing may be removed
//! ```

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use setpoint_plan::desired::{Completeness, Desired, DesiredTemplateRoot};
use setpoint_schema::diagnostic::Diagnostic;
use setpoint_schema::id::{CommitId, TemplateDigest};
use setpoint_schema::name::AppKey;
use setpoint_schema::observed::LastGood;
use setpoint_schema::project::Project;
use setpoint_state::{SourceMarker, StateError};
use tokio::sync::watch;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::desired::{Loaded, Loader};
use crate::ledger::Ledger;
use crate::metrics::{Metrics, Stage};
use crate::report::chain;
use crate::source::watch::Watcher;
use crate::source::{Repository, SourceError};
use crate::task::{blocking, reading};

/// What can wait after a look at the branch waits this long: what a commit wants is then on its way, and has the processors.
const SETTLE: Duration = Duration::from_secs(1);

/// What is desired, and how fresh that is.
#[derive(Debug, Clone)]
pub struct Followed {
    /// The desired state of the newest revision that could be read.
    pub desired: Desired,
    /// The mistakes in its declarations.
    pub diagnostics: Vec<Diagnostic>,
    /// The settings that it was read with.
    pub project: Project,
    /// The templates that are to be warm before anything begins from them.
    pub prewarmed: BTreeMap<TemplateDigest, DesiredTemplateRoot>,
    /// The newest revision that was tried, whether or not it could be read.
    pub attempted: Option<CommitId>,
    /// Why the branch cannot be followed at present.
    pub trouble: Option<Trouble>,
}

/// Why the branch cannot be followed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Trouble {
    /// What went wrong, with causes.
    pub message: String,
    /// What to do about it.
    pub hint: Option<String>,
    /// Since when.
    pub since: Timestamp,
}

/// Why a tip is not followed.
#[derive(Debug, thiserror::Error)]
enum Refusal {
    #[error(transparent)]
    Source(#[from] SourceError),
    #[error(transparent)]
    State(#[from] StateError),
    #[error("branch moved from {} to {}, which does not descend from it", from.short(), to.short())]
    Rewound { from: CommitId, to: CommitId },
}

impl Refusal {
    fn hint(&self) -> Option<String> {
        match self {
            Self::Source(error) => error.hint(),
            Self::State(error) => Some(error.hint()),
            Self::Rewound { .. } => Some(
                "history was rewritten: push a descendant, or accept it once with `setpoint reconcile --allow-rewind` or \
                 `allow_rewind = true` under [source]"
                    .to_owned(),
            ),
        }
    }
}

/// Whether a branch may move to a revision that does not descend from the last accepted one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Rewind {
    /// It may.
    Allowed,
    /// It may not.
    Refused,
}

/// Follows one branch; owns the loader and its caches.
pub struct Follower {
    source: Arc<Repository>,
    loader: Option<Loader>,
    ledger: Ledger,
    rewind: Rewind,
    accepted: Option<CommitId>,
    followed: watch::Sender<Arc<Followed>>,
    metrics: Metrics,
}

impl Follower {
    /// Reads the tip, or else the last accepted revision, or else what the store remembers of each app.
    ///
    /// # Errors
    /// Only when the store cannot be read.
    pub async fn start(
        source: Arc<Repository>,
        loader: Loader,
        ledger: Ledger,
        rewind: Rewind,
        metrics: Metrics,
    ) -> Result<Self, StateError> {
        let accepted = accepted(&source, &ledger).await?;
        let remembered = Followed::remembered(last_good(&ledger), accepted.clone());
        let followed = watch::Sender::new(Arc::new(remembered));
        let mut follower = Self { source, loader: Some(loader), ledger, rewind, accepted: None, followed, metrics };
        if let Some(commit) = &accepted
            && let Err(refusal) = follower.load(commit).await
        {
            tracing::warn!(%commit, error = %chain(&refusal), "last accepted revision cannot be read");
        }
        follower.accepted = accepted;
        follower.look().await;
        Ok(follower)
    }

    /// What is followed, as it changes.
    #[must_use]
    pub fn followed(&self) -> watch::Receiver<Arc<Followed>> {
        self.followed.subscribe()
    }

    /// Looks at the branch after every hint, until `shutdown`.
    pub async fn run(mut self, mut watcher: Watcher, shutdown: CancellationToken) {
        // Nobody watched between the first look and the making of the watcher.
        self.look().await;
        let mut settle_at = Some(Instant::now() + SETTLE);
        loop {
            // No arm awaits anything in its handler: what an arm yields is handled below.
            let due = tokio::select! {
                () = shutdown.cancelled() => break,
                _ = watcher.hint() => Due::Look,
                () = sleep_until(settle_at) => Due::Settle,
            };
            match due {
                Due::Look => {
                    self.look().await;
                    settle_at.get_or_insert_with(|| Instant::now() + SETTLE);
                }
                Due::Settle => {
                    self.settle().await;
                    settle_at = None;
                }
            }
        }
        if settle_at.is_some() {
            self.settle().await;
        }
    }

    /// Looks at the branch once.
    pub async fn look(&mut self) {
        match self.advance().await {
            Ok(()) => self.clear_trouble(),
            Err(refusal) => self.note_trouble(&refusal),
        }
    }

    async fn advance(&mut self) -> Result<(), Refusal> {
        let tip = self.metrics.timed(Stage::Fetch, reading(&self.source, Repository::poll)).await?;
        self.metrics.tip(&tip);
        if self.accepted.as_ref() == Some(&tip) && self.followed.borrow().attempted.as_ref() == Some(&tip) {
            return Ok(());
        }
        self.check_descent(&tip).await?;
        self.load(&tip).await?;
        let marker = SourceMarker {
            url: self.source.place(),
            branch: self.source.config().branch.clone().unwrap_or_else(|| "HEAD".to_owned()),
            commit: tip.clone(),
            at: Timestamp::now(),
        };
        self.ledger.with(move |store| store.update_meta(|meta| meta.source = Some(marker))).await?;
        self.accepted = Some(tip);
        Ok(())
    }

    async fn check_descent(&self, tip: &CommitId) -> Result<(), Refusal> {
        let (Rewind::Refused, Some(from)) = (self.rewind(), &self.accepted) else { return Ok(()) };
        let (old, new) = (from.clone(), tip.clone());
        if old == new || reading(&self.source, move |source| source.is_descendant(&old, &new)).await? {
            return Ok(());
        }
        Err(Refusal::Rewound { from: from.clone(), to: tip.clone() })
    }

    /// Whether this host, or the revision that is followed, allows the branch to be rewritten. What the new tip says about that
    /// does not count.
    fn rewind(&self) -> Rewind {
        if self.followed.borrow().project.policies.allow_rewind { Rewind::Allowed } else { self.rewind }
    }

    async fn load(&mut self, commit: &CommitId) -> Result<(), Refusal> {
        let mut loader = self.loader.take().expect("the loader is put back after every load");
        let (source, wanted, ledger) = (Arc::clone(&self.source), commit.clone(), self.ledger.clone());
        let load = move || {
            let loaded = loader.load(&source, &wanted, &ledger);
            (loader, loaded)
        };
        let (loader, loaded) = self.metrics.timed(Stage::Load, blocking(load)).await;
        self.loader = Some(loader);
        let Loaded { desired, diagnostics, project, prewarmed } = loaded?;
        for diagnostic in &diagnostics {
            tracing::warn!(%commit, mistake = %diagnostic.headline(), "declarations have a mistake");
        }
        let trouble = self.followed.borrow().trouble.clone();
        let attempted = Some(commit.clone());
        self.followed.send_replace(Arc::new(Followed { desired, diagnostics, project, prewarmed, attempted, trouble }));
        Ok(())
    }

    /// Lets the loader do what can wait, now that nobody waits for a load.
    async fn settle(&mut self) {
        let mut loader = self.loader.take().expect("the loader is put back after every load");
        let (source, ledger) = (Arc::clone(&self.source), self.ledger.clone());
        let settle = move || {
            loader.settle(&source, &ledger);
            loader
        };
        self.loader = Some(blocking(settle).await);
    }

    fn clear_trouble(&self) {
        self.followed.send_if_modified(|followed| {
            let had = followed.trouble.is_some();
            if had {
                tracing::info!("source can be followed again");
                let recovered = Followed { trouble: None, ..Followed::clone(followed) };
                *followed = Arc::new(recovered);
            }
            had
        });
    }

    fn note_trouble(&self, refusal: &Refusal) {
        let (message, hint) = (chain(refusal), refusal.hint());
        self.followed.send_if_modified(|followed| {
            if followed.trouble.as_ref().is_some_and(|trouble| trouble.message == message) {
                return false;
            }
            self.metrics.error("source");
            tracing::error!(error = %message, "source cannot be followed");
            let trouble = Some(Trouble { message, hint, since: Timestamp::now() });
            *followed = Arc::new(Followed { trouble, ..Followed::clone(followed) });
            true
        });
    }
}

impl Followed {
    /// What is desired while no revision can be read: each app as it was last declared without a mistake.
    fn remembered(last_good: BTreeMap<AppKey, LastGood>, accepted: Option<CommitId>) -> Self {
        let reason = "no revision of the declarations could be read yet".to_owned();
        let kept = last_good.iter().map(|(key, known)| (key.clone(), known.revision.clone())).collect();
        let desired = Desired {
            revision: accepted.unwrap_or_else(|| CommitId("0".repeat(40).into())),
            apps: last_good.into_iter().map(|(key, known)| (key, known.app)).collect(),
            kept,
            stalled: BTreeMap::new(),
            templates: BTreeMap::new(),
            snapshots: Default::default(),
            stalled_snapshots: BTreeMap::new(),
            moved: BTreeMap::new(),
            completeness: Completeness::Partial(reason),
        };
        Self {
            desired,
            diagnostics: Vec::new(),
            project: Project::default(),
            prewarmed: BTreeMap::new(),
            attempted: None,
            trouble: None,
        }
    }

    /// What to plan with: while the branch cannot be followed, nothing may be removed.
    #[must_use]
    pub fn plannable(&self) -> Cow<'_, Desired> {
        match &self.trouble {
            None => Cow::Borrowed(&self.desired),
            Some(trouble) => {
                let completeness = Completeness::Partial(trouble.message.clone());
                Cow::Owned(Desired { completeness, ..self.desired.clone() })
            }
        }
    }
}

/// What a follower does next.
enum Due {
    Look,
    Settle,
}

async fn sleep_until(at: Option<Instant>) {
    match at {
        Some(at) => tokio::time::sleep_until(at).await,
        None => std::future::pending().await,
    }
}

/// The revision that was accepted last from this very repository: another one has another history.
async fn accepted(source: &Repository, ledger: &Ledger) -> Result<Option<CommitId>, StateError> {
    let marker = ledger.with(|store| store.meta()).await?.source;
    Ok(marker.filter(|marker| marker.url == source.place()).map(|marker| marker.commit))
}

fn last_good(ledger: &Ledger) -> BTreeMap<AppKey, LastGood> {
    ledger.apps().into_iter().map(|(key, record)| (key, record.last_good.clone())).collect()
}
