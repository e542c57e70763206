//! The agent: the first process of every microVM. The binary `setpoint-agent` runs it; nothing on the host does.
//!
//! [`boot`] makes a machine out of a kernel and its disks, and ends in a [`Config`]; [`Agent`] serves hosts from there on, one
//! connection after another. Only `boot`, [`link`] and [`power`] need a real microVM: the rest runs anywhere, which is how it
//! is tested.

use std::io;
use std::path::PathBuf;
use std::sync::Arc;

use hyper::server::conn::http2;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::Notify;

use crate::handshake::{self, HandshakeError};
use crate::limits;
use crate::proto::StatusReply;
use crate::proto::agent_server::AgentServer;

use disk::DataDisk;
use freeze::{Freezer, Gate};
use job::Launcher;
use logs::Logs;
use reaper::{Collects, Reaper};
use renew::Identity;
use service::Service;
use status::Board;
use supervise::{Context, Supervisor};
use workspace::Workspace;

pub mod blank;
pub mod boot;
pub mod disk;
pub mod freeze;
pub mod health;
pub mod job;
pub mod link;
pub mod local;
pub mod logs;
pub mod network;
pub mod power;
pub mod process;
pub mod reaper;
pub mod renew;
pub mod service;
pub mod status;
pub mod supervise;
pub mod sys;
pub mod workspace;

/// What an agent needs to know of its machine.
#[derive(Debug, Clone)]
pub struct Config {
    /// This boot's nonce, by which the host knows that it talks to the boot it started.
    pub nonce: String,
    /// The workspace, as the agent sees it.
    pub workspace: PathBuf,
    /// The agent's own files, on the same mount as the workspace and closed to the user.
    pub state: PathBuf,
    /// Where commands run.
    pub user: UserSide,
    /// The disk that holds both.
    pub disk: DataDisk,
    /// Whose ends to collect.
    pub collects: Collects,
    /// What makes the machine one of its own again after it was restored.
    pub identity: Arc<dyn Identity>,
}

/// The side of the machine that the app sees.
#[derive(Debug, Clone)]
pub struct UserSide {
    /// Its root directory; `None` is the agent's own.
    pub root: Option<PathBuf>,
    /// The workspace, as the app sees it.
    pub workspace: PathBuf,
    /// Whom it runs as; `None` is the agent's own user.
    pub owner: Option<Owner>,
    /// The control group (version 2) below which each command gets its own, where there is one.
    pub cgroups: Option<PathBuf>,
}

/// A user and a group.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Owner {
    /// The user's number.
    pub uid: u32,
    /// The group's number.
    pub gid: u32,
}

/// A running agent.
#[derive(Debug)]
pub struct Agent {
    service: AgentServer<Service>,
    supervisor: Supervisor,
    shutdown: Arc<Notify>,
}

impl Agent {
    /// Starts an agent; it has nothing to run until a host applies a process set.
    ///
    /// # Errors
    /// The workspace or the state directory cannot be opened.
    pub fn start(config: Config) -> io::Result<Self> {
        let workspace = Workspace::open(&config.workspace, &config.state, config.user.owner)?;
        let board = Arc::new(Board::new(StatusReply {
            tree: workspace.manifest().tree.clone(),
            disk_bytes: config.disk.size()?,
            ..StatusReply::default()
        }));
        let gate = Gate::default();
        let freezer = Freezer::new(config.user.cgroups.clone(), config.disk.clone(), gate.clone());
        let context = Arc::new(Context {
            launcher: Launcher::new(Reaper::start(config.collects)?, config.user),
            gate,
            logs: Logs::new(config.state.join("logs"))?,
            board,
        });
        let supervisor = Supervisor::start(context.clone());
        let shutdown = Arc::new(Notify::new());
        let service = Service::new(service::Parts {
            nonce: config.nonce,
            context,
            supervisor: supervisor.clone(),
            workspace,
            disk: config.disk,
            freezer,
            identity: config.identity,
            shutdown: shutdown.clone(),
        });
        let service = AgentServer::new(service)
            .max_decoding_message_size(limits::MESSAGE)
            .max_encoding_message_size(limits::MESSAGE);
        Ok(Self { service, supervisor, shutdown })
    }

    /// Serves one host over `stream`, from its handshake to its leaving.
    ///
    /// # Errors
    /// The stream ends before a host began a connection. What ends it later is no error: hosts come and go.
    pub async fn serve<S>(&self, mut stream: S) -> Result<(), HandshakeError>
    where
        S: AsyncRead + AsyncWrite + Send + Unpin + 'static,
    {
        handshake::agent(&mut stream).await?;
        self.serve_begun(stream).await;
        Ok(())
    }

    /// Serves one host over `stream`, which is past its beginning.
    pub async fn serve_begun<S>(&self, stream: S)
    where
        S: AsyncRead + AsyncWrite + Send + Unpin + 'static,
    {
        // The keep-alive ends the connection of a host that was replaced by another without the port showing it.
        let connection = http2::Builder::new(TokioExecutor::new())
            .timer(TokioTimer::new())
            .keep_alive_interval(limits::KEEP_ALIVE_INTERVAL)
            .keep_alive_timeout(limits::KEEP_ALIVE_TIMEOUT)
            .initial_stream_window_size(limits::STREAM_WINDOW)
            .initial_connection_window_size(limits::CONNECTION_WINDOW)
            .max_concurrent_streams(limits::STREAMS)
            .serve_connection(TokioIo::new(stream), TowerToHyperService::new(self.service.clone()));
        let _ = connection.await;
    }

    /// Resolves when a host has asked for a shutdown.
    pub async fn shutdown_requested(&self) {
        self.shutdown.notified().await;
    }

    /// Stops everything that it runs.
    pub async fn stop(&self) {
        self.supervisor.stop().await;
    }
}
