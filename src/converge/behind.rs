//! What is done behind everything else, by a task of the daemon: templates are made warm ahead, those that nothing begins from are let go
//! of, and what is kept of paused microVMs is tidied up.
//!
//! It looks around after each burst of passes and when something has been unused for long enough, and does nothing otherwise.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use setpoint_plan::desired::DesiredTemplateRoot;
use setpoint_schema::app::AppSpec;
use setpoint_schema::id::{BootNonce, DiskId, SandboxId, TemplateDigest};
use setpoint_schema::name::{AppKey, AppName, Team};
use setpoint_schema::observed::Machine;
use tokio::sync::watch;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::converge::Pass;
use crate::converge::step::Hands;
use crate::report::chain;

/// So long without a pass, and a burst is over: nobody waits for anything.
const CALM: Duration = Duration::from_secs(2);
/// Where passes never end, something has to be done between them.
const PATIENCE: Duration = Duration::from_secs(60);
/// So long a warm template is kept though nothing could begin from it: what was removed may come back, and making it takes a boot.
const UNUSED: Duration = Duration::from_secs(600);

type Passes = watch::Receiver<Option<Arc<Pass>>>;

/// Does all that until `shutdown`.
pub async fn run(hands: Hands, mut passes: Passes, shutdown: CancellationToken) {
    let mut behind = Behind { hands, used: Used::since(Instant::now()), asked: BTreeSet::new() };
    while shutdown.run_until_cancelled(burst(&mut passes, behind.due())).await == Some(Burst::Over) {
        let Some(pass) = passes.borrow_and_update().clone() else { continue };
        if behind.hands.warmer.is_on() {
            behind.warm(&pass).await;
        }
        behind.tidy(&shutdown).await;
    }
}

/// What came of waiting.
#[derive(Debug, PartialEq, Eq)]
enum Burst {
    /// There were passes, or it is time.
    Over,
    /// There will be none any more.
    Last,
}

/// Waits until passes have come and gone, or until `due`.
async fn burst(passes: &mut Passes, due: Option<Instant>) -> Burst {
    let first = match due {
        Some(due) => tokio::time::timeout_at(due, passes.changed()).await,
        None => Ok(passes.changed().await),
    };
    match first {
        Err(_) => return Burst::Over,
        Ok(Err(_)) => return Burst::Last,
        Ok(Ok(())) => {}
    }
    let until = Instant::now() + PATIENCE;
    loop {
        match tokio::time::timeout_at(until.min(Instant::now() + CALM), passes.changed()).await {
            Ok(Ok(())) if Instant::now() < until => {}
            Ok(Err(_)) => return Burst::Last,
            Ok(Ok(())) | Err(_) => return Burst::Over,
        }
    }
}

struct Behind {
    hands: Hands,
    used: Used,
    /// The kinds that were asked for ahead.
    asked: BTreeSet<Kind>,
}

impl Behind {
    fn due(&self) -> Option<Instant> {
        self.hands.warmer.is_on().then(|| self.used.due()).flatten()
    }

    /// Has templates made warm that are to be so ahead, and removes what nothing has used for long.
    async fn warm(&mut self, pass: &Pass) {
        let ahead = ahead(pass);
        for (kind, root) in &ahead {
            if self.asked.contains(kind) {
                continue;
            }
            let asked = match self.ensure_template(&kind.template, root).await {
                Ok(()) => self.hands.warmer.want(&kind.machine()),
                // Another content is another kind, which is tried again.
                Err(()) => true,
            };
            if asked {
                self.asked.insert(kind.clone());
            }
        }
        let running = pass.observed.sandboxes.values().map(|sandbox| Kind::of(&sandbox.record.machine));
        let kinds = running.chain(ahead.into_keys());
        if let Some(kept) = self.used.take_in(kinds, Instant::now()) {
            self.asked.retain(|kind| kept.contains(kind));
            let machines: Vec<_> = kept.iter().map(Kind::machine).collect();
            if let Err(error) = self.hands.driver.keep_warm(&machines).await {
                tracing::warn!(error = %chain(&error), "unused warm templates could not be removed");
            }
        }
    }

    async fn ensure_template(&self, digest: &TemplateDigest, root: &DesiredTemplateRoot) -> Result<(), ()> {
        let made = match self.hands.driver.has_template(digest).await {
            Ok(true) => Ok(()),
            Ok(false) => self.hands.make_template(digest, root).await,
            Err(error) => Err(error.into()),
        };
        made.map_err(|error| tracing::warn!(template = %digest, error = %chain(&error), "a template is not made ahead"))
    }

    async fn tidy(&self, shutdown: &CancellationToken) {
        match self.hands.driver.tidy(shutdown).await {
            Ok(merged) => merged.iter().for_each(|sandbox| self.hands.observer.nudge(sandbox)),
            Err(error) => tracing::warn!(error = %chain(&error), "saved memory could not be tidied up"),
        }
    }
}

/// All that tells one warm template from another on one host.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
struct Kind {
    template: TemplateDigest,
    vcpus: u32,
    memory_mib: u64,
}

impl Kind {
    fn of(machine: &Machine) -> Self {
        Self { template: machine.template.clone(), vcpus: machine.vcpus, memory_mib: machine.memory_mib }
    }

    /// A machine of this kind, which is nobody's.
    fn machine(&self) -> Machine {
        let Self { template, vcpus, memory_mib } = self.clone();
        let name = AppName::new("warm").expect("four letters are a name");
        Machine {
            sandbox: SandboxId("warm".into()),
            app: AppKey::new(Team::default_team(), name),
            uid: None,
            nonce: BootNonce("".into()),
            vcpus,
            memory_mib,
            template,
            disk: DiskId("warm".into()),
        }
    }
}

/// The kinds that are to be warm before anything begins from them: those of the apps that are declared, or what an app is where nothing
/// is said.
fn ahead(pass: &Pass) -> BTreeMap<Kind, DesiredTemplateRoot> {
    let mut ahead = BTreeMap::new();
    for (digest, root) in &pass.followed.prewarmed {
        let apps = pass.followed.desired.apps.values().filter(|app| app.spec.template == *digest);
        let mut kinds: BTreeSet<_> = apps.map(|app| kind(digest, &app.spec.app)).collect();
        if kinds.is_empty() {
            kinds.insert(kind(digest, &AppSpec::default()));
        }
        ahead.extend(kinds.into_iter().map(|kind| (kind, root.clone())));
    }
    ahead
}

fn kind(template: &TemplateDigest, app: &AppSpec) -> Kind {
    let resources = &app.resources;
    Kind { template: template.clone(), vcpus: resources.vcpus, memory_mib: resources.memory.as_mib() }
}

/// When each kind was used last.
#[derive(Debug)]
struct Used {
    kinds: BTreeMap<Kind, Instant>,
    latest: Instant,
    /// When to let go of what an earlier daemon made and nothing uses, which nobody knows of here.
    first: Option<Instant>,
}

impl Used {
    fn since(began: Instant) -> Self {
        Self { kinds: BTreeMap::new(), latest: began, first: Some(began + UNUSED) }
    }

    /// Takes in which kinds are used now; which of all are to be kept, if one is not any more.
    fn take_in(&mut self, used: impl Iterator<Item = Kind>, now: Instant) -> Option<BTreeSet<Kind>> {
        self.latest = now;
        self.kinds.extend(used.map(|kind| (kind, now)));
        let before = self.kinds.len();
        self.kinds.retain(|_, at| *at + UNUSED > now);
        let first = self.first.take_if(|first| *first <= now);
        (first.is_some() || self.kinds.len() < before).then(|| self.kinds.keys().cloned().collect())
    }

    /// When the next one has been unused for long enough.
    fn due(&self) -> Option<Instant> {
        let unused = self.kinds.values().filter(|at| **at < self.latest).map(|at| *at + UNUSED);
        unused.chain(self.first).min()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn named(name: &str) -> Kind {
        Kind { template: TemplateDigest(name.into()), vcpus: 1, memory_mib: 128 }
    }

    fn names(kept: Option<BTreeSet<Kind>>) -> Option<Vec<String>> {
        kept.map(|kept| kept.into_iter().map(|kind| kind.template.to_string()).collect())
    }

    #[test]
    fn a_kind_is_let_go_of_ten_minutes_after_its_last_use_and_not_before() {
        let began = Instant::now();
        let at = |seconds| began + Duration::from_secs(seconds);
        let mut used = Used::since(began);
        assert_eq!(used.take_in([named("a"), named("b")].into_iter(), at(0)), None);
        assert_eq!(used.due(), Some(at(600)), "what an earlier daemon left is let go of");
        assert_eq!(used.take_in([named("a")].into_iter(), at(100)), None);
        assert_eq!(used.due(), Some(at(600)));
        assert_eq!(names(used.take_in([named("a")].into_iter(), at(600))), Some(vec!["a".to_owned()]));
        assert_eq!(used.due(), None, "all that is left is used");
        assert_eq!(used.take_in([].into_iter(), at(700)), None);
        assert_eq!(used.due(), Some(at(1200)));
        assert_eq!(used.take_in([named("a")].into_iter(), at(1199)), None, "it came back in time");
        assert_eq!(used.take_in([].into_iter(), at(1300)), None);
        assert_eq!(names(used.take_in([].into_iter(), at(1800))), Some(Vec::new()));
    }
}
