//! Reads the configuration again on SIGHUP, and puts into effect what can change while the daemon runs.
//!
//! A configuration with a mistake changes nothing: what was in effect stays so, and the log says what is wrong.

use std::sync::Arc;

use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::config::{Api, Config, Log, Overrides};
use crate::converge::Tuning;
use crate::host;
use crate::report::chain;
use crate::systemd::Manager;

/// Changes what is logged.
pub type SetLog = Box<dyn Fn(&Log) -> Result<(), String> + Send + Sync>;

/// What reading the configuration again takes.
pub struct Reloads {
    hangups: Signal,
    overrides: Overrides,
    set_log: SetLog,
}

impl Reloads {
    /// Waits for SIGHUP from now on. The flags and variables that the daemon was started with go on to count.
    ///
    /// # Errors
    /// When the process cannot be told of signals.
    pub fn on_hangup(overrides: Overrides, set_log: SetLog) -> std::io::Result<Self> {
        Ok(Self { hangups: signal(SignalKind::hangup())?, overrides, set_log })
    }

    /// Puts each new configuration into effect, until `shutdown`.
    pub(super) async fn run(mut self, mut live: Live, shutdown: CancellationToken) {
        while let Some(Some(())) = shutdown.run_until_cancelled(self.hangups.recv()).await {
            live.manager.reloading();
            match Config::load(&self.overrides) {
                Ok(config) => live.take(config, &self.set_log),
                Err(error) => {
                    tracing::error!(error = %chain(&error), "new configuration refused: the old one stays in effect");
                }
            }
            live.manager.ready();
        }
    }
}

/// What is in effect, and where changes of it go.
pub(super) struct Live {
    pub config: watch::Sender<Arc<Config>>,
    pub tuning: watch::Sender<Tuning>,
    pub manager: Manager,
}

impl Live {
    fn take(&mut self, new: Config, set_log: &SetLog) {
        let old = Arc::clone(&self.config.borrow());
        // An address that is open to a network already stays so until a restart, so it is checked as it is in effect.
        let api = Api { tokens: new.api.tokens.clone(), ..old.api.clone() };
        let refusal = match api.check() {
            Ok(()) if new.log == old.log => None,
            Ok(()) => set_log(&new.log).err(),
            Err(error) => Some(chain(&error)),
        };
        if let Some(error) = refusal {
            tracing::error!(error, "new configuration refused: the old one stays in effect");
            return;
        }
        let limits = host::limits(&new.limits, &old.state.dir);
        self.tuning.send_replace(Tuning { pace: new.converge.clone(), limits });
        let waiting = needs_restart(&old, &new);
        if waiting.is_empty() {
            tracing::info!("configuration read again");
        } else {
            tracing::warn!(sections = waiting.join(", "), "configuration read again; these sections need a restart");
        }
        // What needs a restart stays as it is in effect, so that the next reload says so again.
        let Config { limits, converge, log, origins, .. } = new;
        let origins = old.origins.reloaded(&origins);
        self.config.send_replace(Arc::new(Config { limits, converge, log, api, origins, ..Config::clone(&old) }));
    }
}

/// The sections that differ and are not read again. Destructured whole, so that a new one has to be thought of.
fn needs_restart(old: &Config, new: &Config) -> Vec<&'static str> {
    let Config { source, state, vmm, api, ingress, limits: _, converge: _, log: _, origins: _ } = old;
    let sections = [
        ("[source]", *source != new.source),
        ("[state]", *state != new.state),
        ("[vmm]", *vmm != new.vmm),
        ("[api]", *api != Api { tokens: api.tokens.clone(), ..new.api.clone() }),
        ("[ingress]", *ingress != new.ingress),
    ];
    sections.into_iter().filter(|(_, differs)| *differs).map(|(name, _)| name).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_cannot_change_live_needs_a_restart() {
        let old = Config::default();
        let mut new = Config::default();
        new.converge.concurrency = 9;
        new.limits.vcpus = Some(3);
        new.log.filter = Some("debug".to_owned());
        assert_eq!(needs_restart(&old, &new), Vec::<&str>::new());
        new.source.branch = Some("other".to_owned());
        new.ingress.listen.set_port(1);
        assert_eq!(needs_restart(&old, &new), ["[source]", "[ingress]"]);
    }
}
