//! The daemon's configuration: flags over environment over file over defaults, unknown keys refused.
//!
//! The file is `--config FILE`, else `/etc/setpoint/daemon.toml` where it exists. Flags and environment are one set of clap
//! arguments ([`Overrides`]), so each has one name and one help text.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use setpoint_schema::name::{HostName, RepoPath};
use setpoint_schema::quantity::{ByteSize, Span};
use setpoint_vmm::qemu::Network;

use crate::source::SourceLimits;

use crate::http::TokenName;

pub use api::{Api, TlsFiles};
pub use settings::Origins;

mod api;
mod settings;

/// Where the configuration is looked for when no `--config` is given.
pub const DEFAULT_CONFIG_FILE: &str = "/etc/setpoint/daemon.toml";

/// The whole configuration.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// Where the declarations come from.
    pub source: Source,
    /// Where the daemon keeps what it knows.
    pub state: State,
    /// What runs microVMs.
    pub vmm: Vmm,
    /// The status API.
    pub api: Api,
    /// The way to the apps.
    pub ingress: Ingress,
    /// What may run here at most; absent parts come from the host.
    pub limits: Limits,
    /// How convergence is paced.
    pub converge: Converge,
    /// What is logged.
    pub log: Log,
    /// Where all of this comes from.
    #[serde(skip)]
    pub origins: Origins,
}

/// `[source]`
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Source {
    /// A git URL or a local path; required to run.
    pub url: Option<String>,
    /// The branch whose tip is desired; absent for whatever the repository's HEAD names.
    pub branch: Option<String>,
    /// The folder of the repository that holds `apps/`; absent for its root.
    pub path: Option<RepoPath>,
    /// How often a remote is asked, give or take a tenth.
    pub poll_interval: Span,
    /// Whether the branch may move to a revision that does not descend from the last accepted one.
    pub allow_rewind: bool,
    /// The most files below the declarations' root.
    pub max_files: u64,
}

impl Default for Source {
    fn default() -> Self {
        Self {
            url: None,
            branch: None,
            path: None,
            poll_interval: Span::secs(60),
            allow_rewind: false,
            max_files: SourceLimits::default().files,
        }
    }
}

/// `[state]`
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct State {
    /// The directory of the store, the microVMs and their disks.
    pub dir: PathBuf,
}

impl Default for State {
    fn default() -> Self {
        Self { dir: default_state_dir() }
    }
}

/// `[vmm]`
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Vmm {
    /// Which driver.
    pub driver: DriverKind,
    /// How guests' instructions are run.
    pub accel: Accel,
    /// A kernel image; absent means the distribution's.
    pub kernel: Option<PathBuf>,
    /// The modules that belong to it, as `/lib/modules/<release>`.
    pub modules: Option<PathBuf>,
    /// What guests reach: `user` (the outside, and the host's loopback as 10.0.2.2) or `none`.
    pub network: Network,
    /// The QEMU to run; absent means `qemu-system-x86_64` from the path.
    pub qemu: Option<PathBuf>,
    /// The static busybox of the built-in template; absent means the distribution's.
    pub busybox: Option<PathBuf>,
    /// Whether one machine of each kind is booted once and saved, so that further ones begin as copies of it.
    pub warm_templates: bool,
}

/// Which driver runs microVMs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum DriverKind {
    /// Real guests.
    #[default]
    Qemu,
    /// Scripted guests in a directory, for trying things out at scale.
    Sim,
}

/// How guests' instructions are run.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum Accel {
    /// KVM where it works, else emulation.
    #[default]
    Auto,
    /// KVM, or an error.
    Kvm,
    /// Software emulation.
    Tcg,
}

/// `[ingress]`
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Ingress {
    /// The address that serves the apps.
    pub listen: SocketAddr,
    /// The domain below which each app has a name.
    pub domain: HostName,
}

impl Default for Ingress {
    fn default() -> Self {
        let domain = HostName::new("localhost").expect("`localhost` is a host name");
        Self { listen: SocketAddr::from(([127, 0, 0, 1], 8080)), domain }
    }
}

/// `[limits]`
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Limits {
    /// Memory of all running microVMs together.
    pub memory: Option<ByteSize>,
    /// Virtual processors of all running microVMs together.
    pub vcpus: Option<u32>,
    /// Length of all data disks together.
    pub disk: Option<ByteSize>,
    /// Number of sandboxes.
    pub sandboxes: Option<u32>,
}

/// `[converge]`
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Converge {
    /// How many microVMs are started, changed or ended at once. Beside more than one, as many new apps again may be
    /// prepared and finished.
    pub concurrency: usize,
    /// How often everything is looked at again though nothing seems to have happened.
    pub interval: Span,
}

impl Default for Converge {
    fn default() -> Self {
        // Two processors emulate about this many boots before each gets slower than its timeout.
        Self { concurrency: 4, interval: Span::secs(60) }
    }
}

/// `[log]`
#[derive(Debug, Clone, PartialEq, Eq, Default, Deserialize, Serialize)]
#[serde(default, deny_unknown_fields)]
pub struct Log {
    /// What is logged, as `info,setpoint::converge=debug`. The variable `RUST_LOG` wins over it; without either, everything from
    /// `info` up is.
    pub filter: Option<String>,
}

/// What flags and environment set over the file.
#[derive(Debug, Clone, Default, clap::Args)]
#[command(next_help_heading = "Configuration")]
pub struct Overrides {
    /// Configuration file [default: /etc/setpoint/daemon.toml, where it exists]
    #[arg(long, env = "SETPOINT_CONFIG", value_name = "FILE", global = true)]
    pub config: Option<PathBuf>,
    /// Git repository of the declarations: a path or a URL
    #[arg(long, env = "SETPOINT_REPO", value_name = "PATH_OR_URL", global = true)]
    pub repo: Option<String>,
    /// Branch whose tip is desired
    #[arg(long, env = "SETPOINT_BRANCH", global = true)]
    pub branch: Option<String>,
    /// Directory of the store, the microVMs and their disks
    #[arg(long, env = "SETPOINT_STATE_DIR", value_name = "DIR", global = true)]
    pub state_dir: Option<PathBuf>,
    /// What runs microVMs
    #[arg(long, env = "SETPOINT_DRIVER", global = true)]
    pub driver: Option<DriverKind>,
    /// How guests' instructions are run
    #[arg(long, env = "SETPOINT_ACCEL", global = true)]
    pub accel: Option<Accel>,
    /// Guest kernel image
    #[arg(long, env = "SETPOINT_KERNEL", value_name = "FILE", global = true)]
    pub kernel: Option<PathBuf>,
    /// Address of the status API
    #[arg(long, env = "SETPOINT_API_LISTEN", value_name = "ADDR", global = true)]
    pub api_listen: Option<SocketAddr>,
    /// Address that serves the apps
    #[arg(long, env = "SETPOINT_INGRESS_LISTEN", value_name = "ADDR", global = true)]
    pub ingress_listen: Option<SocketAddr>,
}

/// Why there is no configuration.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file cannot be read.
    #[error("could not read configuration {path}")]
    Read {
        /// The file.
        path: PathBuf,
        /// The cause.
        #[source]
        source: std::io::Error,
    },
    /// The file is not valid: the parser's message shows where.
    #[error("invalid configuration {path}\n{message}")]
    Parse {
        /// The file.
        path: PathBuf,
        /// Line, column and the offending text.
        message: String,
    },
    /// A value makes no sense.
    #[error("{key} {rule}")]
    Unusable {
        /// Which one.
        key: &'static str,
        /// The rule that it breaks.
        rule: &'static str,
    },
    /// No source is set.
    #[error("no declarations repository is set")]
    NoSource,
    /// The status API would be open to a network.
    #[error("the status API would listen on {address} without {lacks}")]
    Exposed {
        /// The address.
        address: SocketAddr,
        /// What there is none of.
        lacks: &'static str,
    },
    /// Two tokens have one name.
    #[error("two tokens of the status API are called {0}")]
    SameTokenName(TokenName),
}

impl ConfigError {
    /// What to do about it.
    #[must_use]
    pub fn hint(&self) -> Option<String> {
        match self {
            Self::Read { .. } => Some("name a file that can be read with --config or SETPOINT_CONFIG".to_owned()),
            Self::Parse { .. } | Self::Unusable { .. } => Some("docs/operator-guide.md lists every key".to_owned()),
            Self::Exposed { .. } => Some(
                "set `tls = { cert, key }` and `tokens` (`setpoint token new NAME`) under [api], listen on 127.0.0.1, or accept \
                 that whoever reaches that address reads it all: `insecure = true`"
                    .to_owned(),
            ),
            Self::SameTokenName(_) => Some("give each a name of its own under [api], so that one can be withdrawn".to_owned()),
            Self::NoSource => {
                Some("pass --repo PATH_OR_URL, or set `url` under `[source]` in the configuration".to_owned())
            }
        }
    }
}

impl Config {
    /// Reads the file and lays the overrides over it.
    ///
    /// # Errors
    /// When the file cannot be read, or holds an unknown key or a bad value.
    pub fn load(overrides: &Overrides) -> Result<Self, ConfigError> {
        let default = Path::new(DEFAULT_CONFIG_FILE);
        let path = overrides.config.as_deref().or_else(|| default.exists().then_some(default));
        let (mut config, file) = match path {
            Some(path) => {
                let (config, text) = Self::read(path)?;
                (config, Some((path.to_owned(), text)))
            }
            None => (Self::default(), None),
        };
        config.origins = Origins::of(file.as_ref().map(|(path, text)| (path.clone(), text.as_str())), overrides);
        config.apply(overrides);
        config.check()?;
        Ok(config)
    }

    /// The source URL.
    ///
    /// # Errors
    /// When none is set.
    pub fn source_url(&self) -> Result<&str, ConfigError> {
        self.source.url.as_deref().ok_or(ConfigError::NoSource)
    }

    /// The directory of the store.
    #[must_use]
    pub fn store_dir(&self) -> PathBuf {
        self.state.dir.join("store")
    }

    /// The directory of microVMs, disks and templates.
    #[must_use]
    pub fn vmm_dir(&self) -> PathBuf {
        self.state.dir.join("vmm")
    }

    fn read(path: &Path) -> Result<(Self, String), ConfigError> {
        let text =
            std::fs::read_to_string(path).map_err(|source| ConfigError::Read { path: path.to_owned(), source })?;
        let parsed = toml::from_str(&text);
        let config =
            parsed.map_err(|error| ConfigError::Parse { path: path.to_owned(), message: error.to_string() })?;
        Ok((config, text))
    }

    fn check(&self) -> Result<(), ConfigError> {
        let Converge { concurrency, interval } = self.converge;
        if concurrency == 0 {
            return Err(ConfigError::Unusable { key: "[converge] concurrency", rule: "must be at least 1" });
        }
        if interval == Span::default() {
            return Err(ConfigError::Unusable { key: "[converge] interval", rule: "must be longer than nothing" });
        }
        Ok(())
    }

    fn apply(&mut self, overrides: &Overrides) {
        // Destructured whole, so that a new flag cannot be forgotten here.
        let Overrides { config: _, repo, branch, state_dir, driver, accel, kernel, api_listen, ingress_listen } =
            overrides.clone();
        self.source.url = repo.or(self.source.url.take());
        self.source.branch = branch.or(self.source.branch.take());
        set(&mut self.state.dir, state_dir);
        set(&mut self.vmm.driver, driver);
        set(&mut self.vmm.accel, accel);
        self.vmm.kernel = kernel.or(self.vmm.kernel.take());
        set(&mut self.api.listen, api_listen);
        set(&mut self.ingress.listen, ingress_listen);
    }
}

fn set<T>(place: &mut T, value: Option<T>) {
    if let Some(value) = value {
        *place = value;
    }
}

/// `/var/lib/setpoint` for root, else the user's own state directory.
fn default_state_dir() -> PathBuf {
    if rustix::process::geteuid().is_root() {
        return PathBuf::from("/var/lib/setpoint");
    }
    let home = || std::env::var_os("HOME").map(|home| PathBuf::from(home).join(".local/state"));
    let base = std::env::var_os("XDG_STATE_HOME").map(PathBuf::from).or_else(home);
    base.unwrap_or_else(|| PathBuf::from("/var/lib")).join("setpoint")
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "a test fails by panicking")]
    use super::*;

    fn file(text: &str) -> (tempfile::TempDir, Overrides) {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("daemon.toml");
        std::fs::write(&path, text).unwrap();
        (dir, Overrides { config: Some(path), ..Overrides::default() })
    }

    #[test]
    fn flags_win_over_the_file_and_the_file_over_defaults() {
        let (_dir, mut overrides) = file("[source]\nurl = '/a'\nbranch = 'x'\n[limits]\nmemory = '2Gi'\n");
        overrides.branch = Some("y".to_owned());
        let config = Config::load(&overrides).unwrap();
        assert_eq!(config.source_url().unwrap(), "/a");
        assert_eq!(config.source.branch.as_deref(), Some("y"));
        assert_eq!(config.limits.memory, Some(ByteSize::gib(2)));
        assert_eq!(config.api.listen.port(), 7878);
    }

    #[test]
    fn an_unknown_key_is_an_error_that_shows_its_line() {
        let (_dir, overrides) = file("[source]\nurl = '/a'\nbrunch = 'x'\n");
        let message = Config::load(&overrides).unwrap_err().to_string();
        assert!(message.contains("brunch") && message.contains('3'), "{message}");
    }
}
