//! What can go wrong with a source, each with what to do about it.
//!
//! None of these ever means "nothing is declared": whoever reads a source keeps its last good revision through all of them.

use setpoint_schema::id::CommitId;
use setpoint_schema::name::RepoPath;

/// Why a source could not be read.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SourceError {
    /// The URL is of no kind that can be read.
    #[error("{url} is not a usable repository address: {problem}")]
    BadUrl {
        /// The URL without any credentials.
        url: String,
        /// What is wrong with it.
        problem: &'static str,
    },
    /// Nothing is there, or not any more.
    #[error("there is no repository at {place}")]
    Missing {
        /// The path.
        place: String,
    },
    /// There is no such working directory.
    #[error("there is no directory {place}")]
    NoDirectory {
        /// The path.
        place: String,
    },
    /// Something else is there.
    #[error("{place} is not a git repository")]
    NotARepository {
        /// The path.
        place: String,
    },
    /// Git's owner check refused it.
    #[error("the repository at {place} belongs to another user")]
    UnsafeOwner {
        /// The path.
        place: String,
    },
    /// It is stored in a way that cannot be read here.
    #[error("the repository at {place} uses {feature}, which cannot be read")]
    Unsupported {
        /// The path.
        place: String,
        /// The feature, as `the reftable format`.
        feature: &'static str,
    },
    /// It has no commit at all.
    #[error("the repository at {place} has no commit yet")]
    Empty {
        /// The path or URL.
        place: String,
    },
    /// The branch is not there, or not any more.
    #[error("branch {branch} does not exist in {place}")]
    BranchMissing {
        /// The branch.
        branch: String,
        /// The path or URL.
        place: String,
        /// Some branches that do exist.
        known: Vec<String>,
    },
    /// No commit goes by this name.
    #[error("there is no revision `{rev}` in {place}")]
    UnknownRevision {
        /// What was asked for.
        rev: String,
        /// The path or URL.
        place: String,
    },
    /// A folder is not in this revision.
    #[error("folder {path} does not exist in revision {}", commit.short())]
    FolderMissing {
        /// The folder.
        path: RepoPath,
        /// The revision.
        commit: CommitId,
    },
    /// History ends before the question could be answered.
    #[error("the repository at {place} is a shallow clone, so the history between two revisions is not known")]
    Shallow {
        /// The path.
        place: String,
    },
    /// Something is larger, longer, deeper or more than is read.
    #[error("{path}: {excess}")]
    Limit {
        /// What it is about.
        path: String,
        /// Which limit, and by how much.
        excess: Excess,
    },
    /// Something in a tree is of a kind that cannot stand where it stands.
    #[error("{path} {problem}")]
    Refused {
        /// What it is about, unprintable bytes replaced.
        path: String,
        /// What it is, as `is a submodule`.
        problem: String,
    },
    /// An object is damaged, or not there although something refers to it.
    #[error("object {id} is damaged or missing")]
    Object {
        /// The object.
        id: String,
        /// What git says.
        #[source]
        cause: Cause,
    },
    /// The remote could not be read.
    #[error("could not read {url}: {fault}")]
    Remote {
        /// The URL without any credentials.
        url: String,
        /// What kind of failure it is.
        fault: RemoteFault,
        /// What git says.
        #[source]
        cause: Cause,
    },
    /// The declarations were read but not rendered, for a reason that is not in them.
    #[error("could not render the declarations: {reason}")]
    Unrendered {
        /// Why.
        reason: String,
    },
    /// A file operation failed.
    #[error("could not {operation} {path}")]
    Io {
        /// What was tried.
        operation: &'static str,
        /// On what.
        path: String,
        /// The cause.
        #[source]
        cause: Cause,
    },
    /// Anything else that git refuses.
    #[error("could not {operation} the repository at {place}")]
    Git {
        /// What was tried.
        operation: &'static str,
        /// The path or URL.
        place: String,
        /// What git says.
        #[source]
        cause: Cause,
    },
}

/// The words of whatever failed underneath, bounded in length.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct Cause(String);

impl Cause {
    /// The first 500 characters of what `error` says.
    pub(super) fn of(error: &impl ToString) -> Self {
        Self(error.to_string().chars().take(500).collect())
    }
}

/// A limit and how it was exceeded. Limits keep a hostile or careless commit from exhausting the host.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Excess {
    /// One file.
    #[error("{size} bytes are more than the {limit} that are read of one file")]
    FileSize {
        /// Its size.
        size: u64,
        /// The most.
        limit: u64,
    },
    /// All files of one workspace together.
    #[error("the files add up to more than the {limit} bytes that a workspace may have")]
    TotalSize {
        /// The most.
        limit: u64,
    },
    /// The number of files below the declarations' root.
    #[error("more than {limit} files, counted from the top")]
    Files {
        /// The most.
        limit: u64,
    },
    /// Folders within folders.
    #[error("folders are nested more than {limit} deep")]
    Depth {
        /// The most.
        limit: u32,
    },
    /// The length of one path.
    #[error("the path is longer than {limit} bytes")]
    PathLength {
        /// The most.
        limit: u32,
    },
    /// The entries of one folder, as git stores them.
    #[error("the folder's listing is larger than {limit} bytes")]
    Listing {
        /// The most.
        limit: u64,
    },
}

/// What kind of failure reading a remote was.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum RemoteFault {
    /// It wants credentials that it did not get.
    #[error("it refuses our credentials")]
    Credentials,
    /// Its certificate or host key is not trusted.
    #[error("its certificate or host key is not trusted")]
    Untrusted,
    /// It did not answer in time.
    #[error("it did not answer in time")]
    Timeout,
    /// It answers that there is no such repository.
    #[error("there is no such repository")]
    NotFound,
    /// It cannot be reached.
    #[error("it cannot be reached")]
    Unreachable,
    /// It sends more than is taken.
    #[error("it sends more than is taken in one fetch")]
    TooLarge,
    /// Anything else.
    #[error("it failed")]
    Other,
}

impl SourceError {
    /// What to do about it.
    #[must_use]
    pub fn hint(&self) -> Option<String> {
        Some(match self {
            Self::BadUrl { .. } => {
                "give a local path, or a file://, ssh:// or https:// URL without credentials in it".into()
            }
            Self::Missing { .. } => "check the path; what runs is left as it is until the repository is back".into(),
            Self::NoDirectory { .. } => "name the directory that holds `apps/`".into(),
            Self::NotARepository { place } => {
                format!("run `git init {place}`, or give the path of the repository itself")
            }
            Self::UnsafeOwner { place } => {
                format!("run `git config --global --add safe.directory {place}` as the user that Setpoint runs as")
            }
            Self::Unsupported { .. } => {
                "clone it into a repository with `--ref-format=files` and SHA-1 objects, and use that".into()
            }
            Self::Empty { .. } => "make a first commit".into(),
            Self::BranchMissing { known, .. } if known.is_empty() => "push the branch, or name another".into(),
            Self::BranchMissing { known, .. } => format!("these exist: {}", known.join(", ")),
            Self::UnknownRevision { .. } => "name a commit, a branch or a tag of the repository".into(),
            Self::FolderMissing { .. } => "correct the path, or commit the folder".into(),
            Self::Shallow { .. } => "run `git fetch --unshallow` in it".into(),
            Self::Limit { excess: Excess::Files { .. }, .. } => {
                "keep generated files out of the declarations, or allow more with `max_files` under [source]".into()
            }
            Self::Limit { .. } => "keep large or generated files out of the declarations".into(),
            Self::Refused { .. } => return None,
            Self::Object { .. } => "run `git fsck` in the repository, and fetch what is missing".into(),
            Self::Remote { fault, .. } => return fault.hint().map(str::to_owned),
            Self::Unrendered { .. } | Self::Io { .. } | Self::Git { .. } => return None,
        })
    }
}

impl RemoteFault {
    fn hint(self) -> Option<&'static str> {
        match self {
            Self::Credentials => Some(
                "for ssh, load a key into the agent or put one without passphrase into ~/.ssh; for https, name a file with a \
                 token in SETPOINT_SOURCE_TOKEN_FILE",
            ),
            Self::Untrusted => {
                Some("for ssh, add the host to ~/.ssh/known_hosts; for https, install its certificate authority")
            }
            Self::Timeout | Self::Unreachable => Some("it is tried again; what runs is left as it is"),
            Self::NotFound => Some("check the URL; servers also answer so when credentials are missing"),
            Self::TooLarge => Some("keep large files out of the repository"),
            Self::Other => None,
        }
    }
}
