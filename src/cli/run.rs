//! `setpoint run`: the daemon in the foreground. SIGTERM and SIGINT drain it; its microVMs go on.

use std::io::IsTerminal as _;
use std::process::ExitCode;

use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;
use tracing_subscriber::EnvFilter;

use super::Failure;
use crate::config::Config;
use crate::daemon;

pub async fn run(config: Config) -> Result<ExitCode, Failure> {
    log_to_stderr();
    daemon::run(config, shutdown_on_signal()?).await?;
    tracing::info!("daemon ends; its microVMs go on");
    Ok(ExitCode::SUCCESS)
}

/// `RUST_LOG` chooses what is logged; without it, everything from `info` up.
pub fn log_to_stderr() {
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new("info"));
    let ansi = std::io::stderr().is_terminal() && std::env::var_os("NO_COLOR").is_none();
    tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).with_ansi(ansi).init();
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
