//! `setpoint run`: the daemon in the foreground. SIGTERM and SIGINT drain it; its microVMs go on. SIGHUP makes it read its
//! configuration again.

use std::process::ExitCode;

use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;
use tracing_subscriber::EnvFilter;

use super::{Failure, style};
use crate::config::{Config, Log, Overrides};
use crate::daemon::{self, Reloads, SetLog};

pub async fn run(config: Config, overrides: Overrides) -> Result<ExitCode, Failure> {
    let set_log = log_to_stderr(&config.log)?;
    let reloads = Reloads::on_hangup(overrides, set_log).map_err(|error| Failure::new(error, None))?;
    daemon::run(config, reloads, shutdown_on_signal()?).await?;
    tracing::info!("daemon ends; its microVMs go on");
    Ok(ExitCode::SUCCESS)
}

/// Logs from now on; what is returned changes what of it.
fn log_to_stderr(log: &Log) -> Result<SetLog, Failure> {
    let first =
        filter(log).map_err(|error| Failure::new(error, Some("see `[log]` in the configuration".to_owned())))?;
    let ansi = style::stderr() == style::Paint::Colour;
    let logs = tracing_subscriber::fmt().with_env_filter(first).with_writer(std::io::stderr).with_ansi(ansi);
    let logs = logs.with_filter_reloading();
    let handle = logs.reload_handle();
    logs.init();
    Ok(Box::new(move |log| handle.reload(filter(log)?).map_err(|error| error.to_string())))
}

fn filter(log: &Log) -> Result<EnvFilter, String> {
    if let Ok(filter) = EnvFilter::try_from_default_env() {
        return Ok(filter);
    }
    let text = log.filter.as_deref().unwrap_or("info");
    text.parse().map_err(|error| format!("`filter` under [log] is no filter: {error}"))
}

/// Cancelled by the first SIGTERM or SIGINT.
pub fn shutdown_on_signal() -> Result<CancellationToken, Failure> {
    let listen = |kind| signal(kind).map_err(|error| Failure::new(error, None));
    let (mut terminate, mut interrupt) = (listen(SignalKind::terminate())?, listen(SignalKind::interrupt())?);
    let shutdown = CancellationToken::new();
    let token = shutdown.clone();
    tokio::spawn(async move {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
        token.cancel();
    });
    Ok(shutdown)
}
