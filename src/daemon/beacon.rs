//! Tells other commands on this machine that a daemon has this state directory, and where its API is.

use std::fs;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::daemon::DaemonError;

/// The file, in the state directory, while a daemon runs; goes out when dropped.
#[derive(Debug)]
pub struct Beacon {
    path: PathBuf,
}

/// What the file says.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Running {
    /// The daemon's process.
    pub pid: u32,
    /// The address of its API.
    pub api: SocketAddr,
    /// Whether that address speaks TLS alone.
    #[serde(default)]
    pub tls: bool,
    /// The API's Unix socket, where there is one.
    #[serde(default)]
    pub socket: Option<PathBuf>,
    /// The address of its ingress.
    pub ingress: SocketAddr,
}

impl Beacon {
    /// Writes the file; the store's lock makes sure that there is one daemon only.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn light(state_dir: &Path, running: &Running) -> Result<Self, DaemonError> {
        let path = file(state_dir);
        let text = serde_json::to_vec(running).expect("numbers, addresses and paths serialise");
        fs::write(&path, text).map_err(|source| DaemonError::Io { operation: "write", path: path.clone(), source })?;
        Ok(Self { path })
    }
}

impl Drop for Beacon {
    fn drop(&mut self) {
        if let Err(error) = fs::remove_file(&self.path) {
            tracing::warn!(path = %self.path.display(), %error, "beacon stays behind");
        }
    }
}

/// The daemon that has this state directory, if one is running.
#[must_use]
pub fn running(state_dir: &Path) -> Option<Running> {
    let running = last(state_dir)?;
    // A daemon that was killed leaves its file behind.
    Path::new("/proc").join(running.pid.to_string()).exists().then_some(running)
}

/// The daemon that the file names, whether it still runs or was killed.
#[must_use]
pub fn last(state_dir: &Path) -> Option<Running> {
    serde_json::from_slice(&fs::read(file(state_dir)).ok()?).ok()
}

fn file(state_dir: &Path) -> PathBuf {
    state_dir.join("daemon.json")
}
