//! The admin socket's file: where it is, who may open it, and how to reach it whatever the length of its path.

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd as _;
use std::os::unix::net::UnixListener as BlockingListener;
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::fs::{Mode, fchmod};
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType, bind, listen, socket_with};
use tokio::net::{UnixListener, UnixStream};

/// The longest path that a socket's address holds, with its final zero.
const LONGEST_PATH: usize = 107;

/// The socket, listening. Its file goes when it is dropped.
#[derive(Debug)]
pub struct AdminSocket {
    listener: UnixListener,
    path: PathBuf,
}

impl AdminSocket {
    /// Listens in a state directory whose lock the caller holds: so a socket that is there was left behind.
    ///
    /// # Errors
    /// Those of the file system.
    pub fn bind(state_dir: &Path) -> io::Result<Self> {
        let path = path(state_dir);
        match std::fs::remove_file(&path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            Ok(()) | Err(_) => {}
        }
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let socket = socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)?;
        // Before it has a name: so there is no moment at which others could open it.
        fchmod(&socket, Mode::RUSR | Mode::WUSR)?;
        let (_directory, reachable) = reachable(state_dir)?;
        bind(&socket, &SocketAddrUnix::new(reachable)?)?;
        listen(&socket, 16)?;
        Ok(Self { listener: UnixListener::from_std(BlockingListener::from(socket))?, path })
    }

    /// The next client.
    pub(super) async fn accept(&self) -> UnixStream {
        loop {
            match self.listener.accept().await {
                Ok((stream, _)) => return stream,
                Err(error) => {
                    // Out of descriptors, as a rule. The client stays queued, so trying again at once would spin.
                    tracing::warn!(%error, "could not accept a connection on the admin socket");
                    tokio::time::sleep(Duration::from_millis(100)).await;
                }
            }
        }
    }
}

impl Drop for AdminSocket {
    fn drop(&mut self) {
        if let Err(error) = std::fs::remove_file(&self.path) {
            tracing::warn!(path = %self.path.display(), %error, "admin socket stays behind");
        }
    }
}

/// Where the socket of a state directory is.
pub(super) fn path(state_dir: &Path) -> PathBuf {
    state_dir.join("admin.sock")
}

/// Connects to the daemon that has a state directory.
pub(super) async fn connect(state_dir: &Path) -> io::Result<UnixStream> {
    let (_directory, reachable) = reachable(state_dir)?;
    UnixStream::connect(reachable).await
}

/// A path to the socket that its address can hold: through the directory's descriptor, for as long as that is open, where the
/// socket's own is too long.
fn reachable(state_dir: &Path) -> io::Result<(Option<File>, PathBuf)> {
    let path = path(state_dir);
    if path.as_os_str().len() < LONGEST_PATH {
        return Ok((None, path));
    }
    let directory = File::open(state_dir)?;
    let path = PathBuf::from(format!("/proc/self/fd/{}/admin.sock", directory.as_raw_fd()));
    Ok((Some(directory), path))
}
