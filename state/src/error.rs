//! What can go wrong with the state, each with the directory it is about and what to do. Callers print the message, its source
//! chain and [`StateError::hint`].

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// The result of everything here.
pub type Result<T> = std::result::Result<T, StateError>;

/// What is wrong with the state. It is `Clone` because one failed commit fails every writer that shared it.
#[derive(Debug, Clone, thiserror::Error)]
pub enum StateError {
    /// Another process has the state open.
    #[error("state {dir} is in use by {}", holder(*pid))]
    Locked {
        /// The state directory.
        dir: PathBuf,
        /// Who holds it, where its lock file says so.
        pid: Option<u32>,
    },
    /// What is on disk is not what was written. Nothing has been changed.
    #[error("state {dir} is damaged: {what}")]
    Damaged {
        /// The state directory.
        dir: PathBuf,
        /// What does not hold.
        what: String,
    },
    /// The file system has no room for another write. Nothing of the refused write is recorded.
    #[error("no room to write state {dir}: {what}")]
    Full {
        /// The state directory.
        dir: PathBuf,
        /// How much there is.
        what: String,
    },
    /// The directory or its file system does not allow writing.
    #[error("state {dir} cannot be written")]
    ReadOnly {
        /// The state directory.
        dir: PathBuf,
        /// The cause.
        #[source]
        source: Arc<io::Error>,
    },
    /// A newer Setpoint wrote this state.
    #[error("state {dir} has format {found}, this program knows {known}")]
    TooNew {
        /// The state directory.
        dir: PathBuf,
        /// The version on disk, and of what.
        found: String,
        /// The newest version that this program reads.
        known: u32,
    },
    /// One value is larger than the store takes.
    #[error("{what} takes {size} bytes, at most {limit} can be recorded")]
    TooLarge {
        /// Which record, as `apps/default/blog`.
        what: String,
        /// Its size.
        size: usize,
        /// The cap.
        limit: usize,
    },
    /// A value would not be read back from its own JSON. Nothing was written.
    #[error("{what} cannot be recorded: it {why}")]
    Unreadable {
        /// Which record, as `disks/blog-0000000a`.
        what: String,
        /// What reading it back met.
        why: String,
    },
    /// A snapshot could not be taken because the daemon never stopped writing.
    #[error("state {dir} changed during every one of {attempts} attempts to copy it")]
    Busy {
        /// The state directory.
        dir: PathBuf,
        /// How often it was tried.
        attempts: u32,
    },
    /// A rebuild was asked for over a store that holds an inventory.
    #[error("state {dir} already holds {sandboxes} sandboxes and {disks} disks")]
    NotEmpty {
        /// The state directory.
        dir: PathBuf,
        /// Sandboxes in it.
        sandboxes: usize,
        /// Disks in it.
        disks: usize,
    },
    /// The system refused an operation for another reason.
    #[error("could not {operation} {path}")]
    Io {
        /// What was tried, as `write`.
        operation: &'static str,
        /// On what.
        path: PathBuf,
        /// The cause.
        #[source]
        source: Arc<io::Error>,
    },
}

impl StateError {
    /// What a person can do about it.
    #[must_use]
    pub fn hint(&self) -> String {
        match self {
            Self::Locked { .. } => "one daemon uses a state directory at a time; stop the other one, or set another \
                                    `[state] dir`; `reconcile --dry-run` works beside a running daemon"
                .to_owned(),
            Self::Damaged { dir, .. } => format!(
                "`setpoint state rebuild` moves {} aside and records the running microVMs anew; they run on meanwhile",
                dir.display()
            ),
            Self::Full { dir, .. } => {
                format!(
                    "free space on the file system of {}; writing goes on, after a restart where asked",
                    dir.display()
                )
            }
            Self::ReadOnly { dir, .. } => {
                format!("let this user write to {}, or set another `[state] dir`", dir.display())
            }
            Self::TooNew { .. } => {
                "run the newer setpoint that wrote it; going back needs `setpoint state rebuild`".to_owned()
            }
            Self::TooLarge { .. } => {
                "make the declaration smaller: large content belongs in workspace files".to_owned()
            }
            Self::Unreadable { .. } => "this is a mistake in setpoint; please report it with the message".to_owned(),
            Self::Busy { .. } => "try again when the daemon is less busy".to_owned(),
            Self::NotEmpty { .. } => "a rebuild starts from an empty state; move the old one aside first".to_owned(),
            Self::Io { path, .. } => format!("look at the file system of {}", path.display()),
        }
    }

    /// Names the condition behind an I/O error: full, read-only, or neither.
    pub(crate) fn io(dir: &Path, operation: &'static str, path: &Path, source: io::Error) -> Self {
        use io::ErrorKind as K;
        let source = Arc::new(source);
        match source.kind() {
            K::StorageFull | K::QuotaExceeded | K::FileTooLarge => {
                Self::Full { dir: dir.to_owned(), what: source.to_string() }
            }
            K::PermissionDenied | K::ReadOnlyFilesystem => Self::ReadOnly { dir: dir.to_owned(), source },
            _ => Self::Io { operation, path: path.to_owned(), source },
        }
    }

    pub(crate) fn damaged(dir: &Path, what: impl Into<String>) -> Self {
        Self::Damaged { dir: dir.to_owned(), what: what.into() }
    }
}

fn holder(pid: Option<u32>) -> String {
    pid.map_or_else(|| "another process".to_owned(), |pid| format!("process {pid}"))
}
