//! Remote repositories: a bare mirror that holds one branch, asked by one ls-remote and fetched only when it moved.

use std::path::{Path, PathBuf};

use git2::{
    AutotagOption, CertificateCheckStatus, Cred, CredentialType, Direction, ErrorClass, ErrorCode, FetchOptions, Oid,
    RemoteCallbacks, RemoteRedirect,
};
use setpoint_schema::id::sha256_hex;

use super::error::{Cause, RemoteFault, SourceError};

/// Names the file that holds the token for https, alone on its first line.
const TOKEN_FILE_VARIABLE: &str = "SETPOINT_SOURCE_TOKEN_FILE";
/// The most that one fetch may bring. A first fetch brings the whole history.
const MAX_FETCH_BYTES: usize = 4 << 30;
/// What forges accept as the user name beside a token.
const TOKEN_USER: &str = "x-access-token";

/// The mirror's directory.
pub(super) fn mirror_dir(state_dir: &Path) -> PathBuf {
    state_dir.join("source.git")
}

/// Opens the mirror, or makes it.
pub(super) fn open_mirror(dir: &Path, url: &str) -> Result<git2::Repository, SourceError> {
    let opened = if dir.join("HEAD").exists() {
        git2::Repository::open_bare(dir)
    } else {
        std::fs::create_dir_all(dir).map_err(|error| SourceError::Io {
            operation: "create",
            path: dir.display().to_string(),
            cause: Cause::of(&error),
        })?;
        git2::Repository::init_bare(dir)
    };
    opened.map_err(|error| SourceError::Git {
        operation: "open the mirror of",
        place: url.to_owned(),
        cause: Cause::of(&error.message()),
    })
}

/// Asks the remote for its branch and fetches it if it moved, even to a commit that does not descend from the last.
pub(super) fn poll(git: &git2::Repository, url: &str, branch: Option<&str>) -> Result<Oid, SourceError> {
    let failed = |error: &git2::Error| remote_error(url, error);
    let mut remote = git.remote_anonymous(url).map_err(|error| failed(&error))?;
    let (name, tip) = {
        let connection =
            remote.connect_auth(Direction::Fetch, Some(callbacks()), None).map_err(|error| failed(&error))?;
        let heads = connection.list().map_err(|error| failed(&error))?;
        find_branch(heads, url, branch)?
    };
    let kept = reference_name(url, branch);
    if git.refname_to_id(&kept).ok() != Some(tip) || git.find_commit(tip).is_err() {
        fetch(&mut remote, &format!("+{name}:{kept}")).map_err(|error| failed(&error))?;
    }
    mirrored_tip(git, url, branch)
}

/// Asks the remote for its branch and fetches nothing.
pub(super) fn ask(url: &str, branch: Option<&str>) -> Result<Oid, SourceError> {
    let failed = |error: &git2::Error| remote_error(url, error);
    let mut remote = git2::Remote::create_detached(url).map_err(|error| failed(&error))?;
    let connection = remote.connect_auth(Direction::Fetch, Some(callbacks()), None).map_err(|error| failed(&error))?;
    let heads = connection.list().map_err(|error| failed(&error))?;
    Ok(find_branch(heads, url, branch)?.1)
}

/// The tip as of the last fetch.
pub(super) fn mirrored_tip(git: &git2::Repository, url: &str, branch: Option<&str>) -> Result<Oid, SourceError> {
    let reference = git.find_reference(&reference_name(url, branch)).map_err(|_| SourceError::BranchMissing {
        branch: branch.unwrap_or("HEAD").to_owned(),
        place: url.to_owned(),
        known: Vec::new(),
    })?;
    match reference.peel_to_commit() {
        Ok(commit) => Ok(commit.id()),
        Err(error) => Err(SourceError::Object { id: "of the branch".to_owned(), cause: Cause::of(&error.message()) }),
    }
}

fn find_branch(heads: &[git2::RemoteHead<'_>], url: &str, branch: Option<&str>) -> Result<(String, Oid), SourceError> {
    let wanted = branch.map_or_else(|| "HEAD".to_owned(), |branch| format!("refs/heads/{branch}"));
    if let Some(head) = heads.iter().find(|head| head.name() == wanted) {
        return Ok((wanted, head.oid()));
    }
    let branches = heads.iter().filter_map(|head| head.name().strip_prefix("refs/heads/"));
    let known: Vec<String> = branches.take(5).map(str::to_owned).collect();
    let place = url.to_owned();
    Err(if known.is_empty() {
        SourceError::Empty { place }
    } else {
        SourceError::BranchMissing { branch: branch.unwrap_or("HEAD").to_owned(), place, known }
    })
}

/// Where the mirror keeps the tip: apart for each URL and branch, so that a changed configuration never reads the old one's.
fn reference_name(url: &str, branch: Option<&str>) -> String {
    let key = sha256_hex(&[url.as_bytes(), branch.unwrap_or_default().as_bytes()]);
    format!("refs/setpoint/{}", &key[..16])
}

fn fetch(remote: &mut git2::Remote<'_>, refspec: &str) -> Result<(), git2::Error> {
    let mut options = FetchOptions::new();
    options
        .remote_callbacks(callbacks())
        .download_tags(AutotagOption::None)
        .update_fetchhead(false)
        .follow_redirects(RemoteRedirect::None);
    remote.fetch(&[refspec], Some(&mut options), None)
}

fn callbacks() -> RemoteCallbacks<'static> {
    let mut callbacks = RemoteCallbacks::new();
    let mut offers = Offers::default();
    callbacks.credentials(move |url, user, allowed| offers.next(url, user, allowed));
    // Passing through keeps libgit2's own verdict: certificate authorities for https, ~/.ssh/known_hosts for ssh.
    callbacks.certificate_check(|_, _| Ok(CertificateCheckStatus::CertificatePassthrough));
    callbacks.transfer_progress(|progress| progress.received_bytes() < MAX_FETCH_BYTES);
    callbacks
}

/// Which credentials were offered already: libgit2 asks again after each refusal, for ever if it is always given the same.
#[derive(Default)]
struct Offers {
    agent: bool,
    key_files: usize,
    token: bool,
}

impl Offers {
    fn next(&mut self, url: &str, user: Option<&str>, allowed: CredentialType) -> Result<Cred, git2::Error> {
        let user = user.unwrap_or("git");
        if allowed.contains(CredentialType::USERNAME) {
            return Cred::username(user);
        }
        if allowed.contains(CredentialType::SSH_KEY) {
            if !std::mem::replace(&mut self.agent, true)
                && std::env::var_os("SSH_AUTH_SOCK").is_some()
                && let Ok(cred) = Cred::ssh_key_from_agent(user)
            {
                return Ok(cred);
            }
            let files = key_files();
            while let Some(file) = files.get(self.key_files) {
                self.key_files += 1;
                if file.is_file() {
                    return Cred::ssh_key(user, None, file, None);
                }
            }
        }
        if allowed.contains(CredentialType::USER_PASS_PLAINTEXT)
            && url.starts_with("https://")
            && !std::mem::replace(&mut self.token, true)
            && let Some(token) = token()?
        {
            return Cred::userpass_plaintext(TOKEN_USER, &token);
        }
        Err(git2::Error::new(ErrorCode::Auth, ErrorClass::Callback, "no further credentials to offer"))
    }
}

fn key_files() -> Vec<PathBuf> {
    let home = std::env::var_os("HOME").map(PathBuf::from).unwrap_or_default();
    ["id_ed25519", "id_ecdsa", "id_rsa"].iter().map(|name| home.join(".ssh").join(name)).collect()
}

fn token() -> Result<Option<String>, git2::Error> {
    let Some(path) = std::env::var_os(TOKEN_FILE_VARIABLE) else { return Ok(None) };
    let text = std::fs::read_to_string(&path).map_err(|error| {
        let message = format!("could not read the token file {}: {error}", Path::new(&path).display());
        git2::Error::new(ErrorCode::Auth, ErrorClass::Callback, message)
    })?;
    Ok(text.lines().next().map(|line| line.trim().to_owned()))
}

fn remote_error(url: &str, error: &git2::Error) -> SourceError {
    let message = error.message();
    let fault = match (error.code(), error.class()) {
        (ErrorCode::Auth, _) => RemoteFault::Credentials,
        (ErrorCode::Certificate, _) | (_, ErrorClass::Ssl) => RemoteFault::Untrusted,
        (ErrorCode::Timeout, _) => RemoteFault::Timeout,
        (ErrorCode::User, _) => RemoteFault::TooLarge,
        (ErrorCode::NotFound, _) => RemoteFault::NotFound,
        (_, ErrorClass::Http) if message.contains("404") => RemoteFault::NotFound,
        (_, ErrorClass::Http) if message.contains("401") || message.contains("403") => RemoteFault::Credentials,
        (_, ErrorClass::Net | ErrorClass::Os) => RemoteFault::Unreachable,
        (_, ErrorClass::Ssh) if message.contains("authenticat") => RemoteFault::Credentials,
        (_, _) => RemoteFault::Other,
    };
    SourceError::Remote { url: url.to_owned(), fault, cause: Cause::of(&message) }
}
