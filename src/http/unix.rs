//! A Unix socket that takes the place of one left behind, and of nothing else.

use std::fs::{self, Permissions};
use std::io;
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _, PermissionsExt as _};
use std::os::unix::net::UnixStream as BlockingStream;
use std::path::{Path, PathBuf};

use tokio::net::{UnixListener, UnixStream};

/// Who may connect: the daemon's user and group. The folder can narrow that further.
const MODE: u32 = 0o660;

/// A bound Unix socket. Its file goes when it is dropped.
#[derive(Debug)]
pub struct UnixSocket {
    listener: UnixListener,
    path: PathBuf,
    /// Device and inode: a file that somebody else has put there since is not ours to remove.
    identity: Option<(u64, u64)>,
}

/// Why a socket could not be bound.
#[derive(Debug, thiserror::Error)]
pub enum UnixSocketError {
    /// Somebody answers there.
    #[error("another process listens on {0}")]
    InUse(PathBuf),
    /// Something else has the name.
    #[error("{0} exists and is not a socket")]
    NotASocket(PathBuf),
    /// The file system refused.
    #[error("could not {operation} {path}")]
    Io {
        /// What was tried.
        operation: &'static str,
        /// On what.
        path: PathBuf,
        /// The cause.
        #[source]
        source: io::Error,
    },
}

impl UnixSocketError {
    /// What to do about it.
    #[must_use]
    pub fn hint(&self) -> Option<String> {
        match self {
            Self::InUse(_) => Some("end the other daemon, or give this one another path".to_owned()),
            Self::NotASocket(_) => Some("give the socket another path, or move that file away".to_owned()),
            Self::Io { .. } => None,
        }
    }
}

impl UnixSocket {
    /// Listens on `path`. A socket on which nobody listens any more is replaced.
    ///
    /// It is made under another name and moved into place with its permissions set, so that there is no moment at which others
    /// could connect, or at which a client finds no socket where there was one.
    ///
    /// # Errors
    /// When something else has the name, somebody listens there, or the file system refuses.
    pub fn bind(path: &Path) -> Result<Self, UnixSocketError> {
        let failed = |operation| move |source| UnixSocketError::Io { operation, path: path.to_owned(), source };
        check_free(path)?;
        let draft = draft_of(path);
        // Left by a process with our id that ended between the two steps.
        drop(fs::remove_file(&draft));
        let listener = UnixListener::bind(&draft).map_err(failed("listen on"))?;
        fs::set_permissions(&draft, Permissions::from_mode(MODE)).map_err(failed("set the permissions of"))?;
        let identity = identity_of(&draft);
        fs::rename(&draft, path).map_err(failed("put in place"))?;
        Ok(Self { listener, path: path.to_owned(), identity })
    }

    /// Where it is.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    pub(super) async fn accept(&self) -> io::Result<UnixStream> {
        Ok(self.listener.accept().await?.0)
    }
}

impl Drop for UnixSocket {
    fn drop(&mut self) {
        if self.identity.is_some() && identity_of(&self.path) == self.identity {
            drop(fs::remove_file(&self.path));
        }
    }
}

fn check_free(path: &Path) -> Result<(), UnixSocketError> {
    let found = match fs::symlink_metadata(path) {
        Ok(found) => found,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(source) => return Err(UnixSocketError::Io { operation: "look at", path: path.to_owned(), source }),
    };
    if !found.file_type().is_socket() {
        return Err(UnixSocketError::NotASocket(path.to_owned()));
    }
    match BlockingStream::connect(path) {
        Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => Ok(()),
        Ok(_) => Err(UnixSocketError::InUse(path.to_owned())),
        Err(source) => Err(UnixSocketError::Io { operation: "ask who listens on", path: path.to_owned(), source }),
    }
}

fn draft_of(path: &Path) -> PathBuf {
    let mut name = path.file_name().unwrap_or_default().to_owned();
    name.push(format!(".{}", std::process::id()));
    path.with_file_name(name)
}

fn identity_of(path: &Path) -> Option<(u64, u64)> {
    fs::symlink_metadata(path).ok().map(|found| (found.dev(), found.ino()))
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a test that cannot go on has failed")]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_socket_left_behind_is_replaced_and_a_live_one_is_not() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("api.sock");
        drop(std::os::unix::net::UnixListener::bind(&path).unwrap());
        assert!(path.exists(), "closing a socket leaves its file");
        let bound = UnixSocket::bind(&path).unwrap();
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o660);
        assert!(matches!(UnixSocket::bind(&path).unwrap_err(), UnixSocketError::InUse(_)));
        drop(bound);
        assert!(!path.exists());
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
    }

    #[tokio::test]
    async fn a_file_that_is_no_socket_stays() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("api.sock");
        fs::write(&path, "precious").unwrap();
        assert!(matches!(UnixSocket::bind(&path).unwrap_err(), UnixSocketError::NotASocket(_)));
        let elsewhere = dir.path().join("other.sock");
        let bound = UnixSocket::bind(&elsewhere).unwrap();
        fs::remove_file(&elsewhere).unwrap();
        fs::write(&elsewhere, "somebody else's").unwrap();
        drop(bound);
        assert!(path.exists() && elsewhere.exists());
    }
}
