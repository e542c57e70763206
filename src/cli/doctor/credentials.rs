//! Checks what this machine has to show to the server of the declarations: keys and known hosts for ssh, a token for https.

use std::fs;
use std::io::{Read as _, Write as _};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use setpoint_vmm::qemu::Probe;

use super::{fail, ok, warn};
use crate::config::Config;
use crate::source::Location;

const NAME: &str = "credentials";
/// Names the file with the token for https; `source` reads it.
const TOKEN_FILE: &str = "SETPOINT_SOURCE_TOKEN_FILE";

pub fn check(config: &Config) -> Probe {
    let Some(url) = config.source.url.as_deref() else { return ok(NAME, "none needed: no repository is set") };
    match Location::parse(url) {
        Ok(Location::Local(_)) => ok(NAME, "none needed: the repository is on this machine"),
        Ok(Location::Remote(url)) => match Server::of(&url) {
            Server::Ssh { host, port } => ssh(&host, port),
            Server::Https => https(),
            Server::Http => warn(
                NAME,
                "the repository is read over http: anybody on the way can change it",
                "use https or ssh under `url`",
            ),
        },
        Err(error) => fail(NAME, error.to_string(), error.hint().unwrap_or_default()),
    }
}

/// How a remote is reached.
#[derive(Debug, PartialEq, Eq)]
enum Server {
    Ssh { host: String, port: Option<u16> },
    Https,
    Http,
}

impl Server {
    fn of(url: &str) -> Self {
        match url.split_once("://") {
            Some(("https", _)) => Self::Https,
            Some(("http", _)) => Self::Http,
            Some((_, rest)) => {
                let authority = rest.split('/').next().unwrap_or_default();
                let place = authority.rsplit_once('@').map_or(authority, |(_, place)| place);
                match place.rsplit_once(':').map(|(host, port)| (host, port.parse())) {
                    Some((host, Ok(port))) => Self::Ssh { host: host.to_owned(), port: Some(port) },
                    Some((_, Err(_))) | None => Self::Ssh { host: place.to_owned(), port: None },
                }
            }
            // `user@host:path`
            None => {
                let place = url.split(':').next().unwrap_or_default();
                let host = place.rsplit_once('@').map_or(place, |(_, host)| host);
                Self::Ssh { host: host.to_owned(), port: None }
            }
        }
    }
}

fn ssh(host: &str, port: Option<u16>) -> Probe {
    let home = std::env::var_os("HOME").map(PathBuf::from).unwrap_or_default();
    let known = home.join(".ssh/known_hosts");
    let entry = match port {
        Some(port) if port != 22 => format!("[{host}]:{port}"),
        Some(_) | None => host.to_owned(),
    };
    if !is_known(&known, &entry) {
        let port = port.map(|port| format!("-p {port} ")).unwrap_or_default();
        let hint = format!(
            "`ssh-keyscan {port}{host} >>{}`, and compare the key with what its owner publishes",
            known.display()
        );
        return fail(NAME, format!("{entry} is not in {}", known.display()), hint);
    }
    let agent = std::env::var_os("SSH_AUTH_SOCK").map(|path| agent_keys(Path::new(&path)));
    let files = usable_keys(&home);
    match (agent, &files[..]) {
        (Some(Some(keys)), _) if keys > 0 => {
            ok(NAME, format!("ssh-agent has {keys} keys, and {entry} is a known host"))
        }
        (_, [file, ..]) => {
            ok(NAME, format!("{} opens without a passphrase, and {entry} is a known host", file.display()))
        }
        (agent, []) => {
            let agent = match agent {
                None => "there is no ssh-agent",
                Some(None) => "the ssh-agent of SSH_AUTH_SOCK does not answer",
                Some(Some(_)) => "the ssh-agent has no key",
            };
            let hint = format!(
                "`ssh-keygen -t ed25519 -N '' -f {}/.ssh/id_ed25519` makes one; give its public half read access",
                home.display()
            );
            fail(NAME, format!("{agent}, and no id_ed25519, id_ecdsa or id_rsa opens without a passphrase"), hint)
        }
    }
}

/// Whether ssh would know the host. `ssh-keygen` looks into hashed lines too; without it, plain ones are read.
fn is_known(file: &Path, entry: &str) -> bool {
    let mut search = Command::new("ssh-keygen");
    search.arg("-F").arg(entry).arg("-f").arg(file);
    search.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    match search.status() {
        Ok(status) => status.success(),
        Err(_) => fs::read_to_string(file).unwrap_or_default().lines().any(|line| {
            let names = line.split_ascii_whitespace().next().unwrap_or_default();
            names.split(',').any(|name| name == entry)
        }),
    }
}

/// How many keys an agent has, if it answers: request 11 of its protocol, answer 12.
fn agent_keys(socket: &Path) -> Option<u32> {
    let mut agent = UnixStream::connect(socket).ok()?;
    agent.set_read_timeout(Some(Duration::from_secs(2))).ok()?;
    agent.write_all(&[0, 0, 0, 1, 11]).ok()?;
    let mut head = [0; 9];
    agent.read_exact(&mut head).ok()?;
    let [_, _, _, _, 12, count @ ..] = head else { return None };
    Some(u32::from_be_bytes(count))
}

/// The key files that are offered and need no passphrase.
fn usable_keys(home: &Path) -> Vec<PathBuf> {
    let files = ["id_ed25519", "id_ecdsa", "id_rsa"].map(|name| home.join(".ssh").join(name));
    files.into_iter().filter(|file| fs::read_to_string(file).is_ok_and(|text| needs_no_passphrase(&text))).collect()
}

/// OpenSSH's own format begins with the cipher's name, which is `none` without a passphrase; the older one says `ENCRYPTED`.
fn needs_no_passphrase(key: &str) -> bool {
    // `openssh-key-v1`, a zero byte, and the length and text of `none`, in base64.
    const OPEN: &str = "b3BlbnNzaC1rZXktdjEAAAAABG5vbmU";
    let mut lines = key.lines();
    match lines.next() {
        Some("-----BEGIN OPENSSH PRIVATE KEY-----") => lines.next().is_some_and(|line| line.starts_with(OPEN)),
        Some(first) => first.starts_with("-----BEGIN ") && !key.contains("ENCRYPTED"),
        None => false,
    }
}

fn https() -> Probe {
    let Some(path) = std::env::var_os(TOKEN_FILE).map(PathBuf::from) else {
        let netrc = std::env::var_os("HOME").is_some_and(|home| Path::new(&home).join(".netrc").exists());
        let more = if netrc { "; ~/.netrc is not read" } else { "" };
        return ok(NAME, format!("{TOKEN_FILE} is not set, which is right for a public repository{more}"));
    };
    let place = path.display();
    let hint = "it holds the token alone on its first line, readable by the daemon and nobody else";
    match fs::read_to_string(&path) {
        Err(error) => fail(NAME, format!("{TOKEN_FILE} names {place}: {error}"), hint),
        Ok(text) if text.lines().next().is_none_or(|line| line.trim().is_empty()) => {
            fail(NAME, format!("{TOKEN_FILE} names {place}, which is empty"), hint)
        }
        Ok(_) if is_open_to_others(&path) => warn(NAME, format!("others may read the token in {place}"), hint),
        Ok(_) => ok(NAME, format!("a token from {place}")),
    }
}

fn is_open_to_others(path: &Path) -> bool {
    use std::os::unix::fs::PermissionsExt as _;
    fs::metadata(path).is_ok_and(|file| file.permissions().mode() & 0o077 != 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_spelling_of_a_remote_is_understood() {
        let ssh = |host: &str, port| Server::Ssh { host: host.to_owned(), port };
        assert_eq!(Server::of("git@git.example.org:team/apps.git"), ssh("git.example.org", None));
        assert_eq!(Server::of("ssh://git@git.example.org:2222/apps"), ssh("git.example.org", Some(2222)));
        assert_eq!(Server::of("ssh://git.example.org/apps"), ssh("git.example.org", None));
        assert_eq!(Server::of("https://git.example.org/apps"), Server::Https);
    }

    #[test]
    fn a_key_with_a_passphrase_is_of_no_use_to_a_daemon() {
        let key =
            |body: &str| format!("-----BEGIN OPENSSH PRIVATE KEY-----\n{body}\n-----END OPENSSH PRIVATE KEY-----\n");
        assert!(needs_no_passphrase(&key("b3BlbnNzaC1rZXktdjEAAAAABG5vbmUAAAAEbm9uZQ")));
        assert!(!needs_no_passphrase(&key("b3BlbnNzaC1rZXktdjEAAAAACmFlczI1Ni1jdHIAAAAGYmNyeXB0")));
        assert!(!needs_no_passphrase("-----BEGIN RSA PRIVATE KEY-----\nProc-Type: 4,ENCRYPTED\n"));
        assert!(!needs_no_passphrase(""));
    }
}
