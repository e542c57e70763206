//! Identities and their spelling rules. Every name that crosses a room is one of these, never a bare string, so that a
//! team cannot be passed for an app and a bad name cannot travel past the declaration that holds it.

use std::cmp::Ordering;
use std::fmt;
use std::str::FromStr;
use std::sync::{Arc, LazyLock};

/// Why a name was refused. The message says the rule, not only that it was broken.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{rule}")]
pub struct NameError {
    /// The rule that the text breaks, as one clause.
    pub rule: &'static str,
}

/// Defines a string newtype that can only hold text its `check` accepts, in serde as in `FromStr`.
macro_rules! name {
    ($(#[$doc:meta])* $name:ident, $check:path) => {
        $(#[$doc])*
        #[derive(Debug, Clone, PartialEq, Eq, Hash, schemars::JsonSchema)]
        #[schemars(with = "String")]
        pub struct $name(Arc<str>);

        impl $name {
            /// Checks and wraps `text`.
            ///
            /// # Errors
            /// The rule that `text` breaks.
            pub fn new(text: impl AsRef<str>) -> Result<Self, NameError> {
                match $check(text.as_ref()) {
                    Ok(()) => Ok(Self(text.as_ref().into())),
                    Err(rule) => Err(NameError { rule }),
                }
            }

            /// The name as text.
            #[must_use]
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        /// By the text. Copies of one name are seen to be equal without a look at it, as equality sees it for any `Arc`.
        impl Ord for $name {
            fn cmp(&self, other: &Self) -> Ordering {
                if Arc::ptr_eq(&self.0, &other.0) { Ordering::Equal } else { self.0.cmp(&other.0) }
            }
        }

        impl PartialOrd for $name {
            fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
                Some(self.cmp(other))
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.pad(&self.0)
            }
        }

        impl FromStr for $name {
            type Err = NameError;
            fn from_str(text: &str) -> Result<Self, NameError> {
                Self::new(text)
            }
        }

        impl TryFrom<String> for $name {
            type Error = NameError;
            fn try_from(text: String) -> Result<Self, NameError> {
                Self::new(text)
            }
        }

        impl From<$name> for String {
            fn from(name: $name) -> String {
                name.0.to_string()
            }
        }

        crate::text::as_text!($name);
    };
}

name!(
    /// An app's name: a DNS label of at most 40 characters, because it becomes part of host names.
    AppName, dns_label
);
name!(
    /// The team that owns an object; `default` where a declaration names none.
    Team, dns_label
);
name!(
    /// A template's name.
    TemplateName, dns_label
);
name!(
    /// A snapshot's name: a DNS label of at most 60 characters, because some are made of an app's.
    SnapshotName, snapshot_label
);
name!(
    /// A directory's name, without its path: 1 to 128 characters, no `/`, and neither `.` nor `..`.
    DirName, dir_name
);
name!(
    /// A worker's name, `[A-Za-z0-9_-]{1,64}`.
    WorkerName, worker_name
);
name!(
    /// An environment variable's name, `[A-Za-z_][A-Za-z0-9_]*`.
    EnvName, env_name
);
name!(
    /// An object's lasting identity, which survives a rename: 1 to 64 of `[A-Za-z0-9._-]`.
    Uid, uid
);
name!(
    /// A host name that the ingress answers for, in lower case.
    HostName, host_name
);
name!(
    /// A path inside the declarations repository: relative, `/`-separated, no `.` or `..` component.
    RepoPath, repo_path
);

impl Team {
    /// The team of everything that names none. All share the one text.
    #[must_use]
    pub fn default_team() -> Self {
        Self::the_default().clone()
    }

    fn the_default() -> &'static Self {
        static DEFAULT: LazyLock<Team> = LazyLock::new(|| Team("default".into()));
        &DEFAULT
    }
}

impl TemplateName {
    /// The template that is built in: the agent and a busybox. All share the one text.
    #[must_use]
    pub fn minimal() -> Self {
        static MINIMAL: LazyLock<TemplateName> = LazyLock::new(|| TemplateName("minimal".into()));
        MINIMAL.clone()
    }
}

impl RepoPath {
    /// Whether this is `top`, or lies in the folder that `top` is.
    #[must_use]
    pub fn is_at_or_below(&self, top: &Self) -> bool {
        self.as_str().strip_prefix(top.as_str()).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
    }
}

/// Defines which object something is: its team and its name. Written `team/name`, or `name` alone in the default team.
macro_rules! key {
    ($(#[$doc:meta])* $key:ident, $name:ident) => {
        $(#[$doc])*
        #[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, schemars::JsonSchema)]
        #[schemars(with = "String")]
        pub struct $key {
            /// The owning team.
            pub team: Team,
            /// The object's name, unique within its team.
            pub name: $name,
        }

        impl $key {
            /// Joins the two parts.
            #[must_use]
            pub fn new(team: Team, name: $name) -> Self {
                Self { team, name }
            }

            /// Reads `team/name`, or `name` in a team that is known from elsewhere.
            ///
            /// # Errors
            /// The rule that one of the names breaks.
            pub fn within(text: &str, team: &Team) -> Result<Self, NameError> {
                match text.split_once('/') {
                    Some((team, name)) => Ok(Self::new(Team::new(team)?, $name::new(name)?)),
                    None => Ok(Self::new(team.clone(), $name::new(text)?)),
                }
            }
        }

        impl fmt::Display for $key {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                if self.team == *Team::the_default() {
                    f.pad(self.name.as_str())
                } else {
                    f.pad(&format!("{}/{}", self.team, self.name))
                }
            }
        }

        impl FromStr for $key {
            type Err = NameError;
            fn from_str(text: &str) -> Result<Self, NameError> {
                Self::within(text, Team::the_default())
            }
        }

        crate::text::as_text!($key);

        impl TryFrom<String> for $key {
            type Error = NameError;
            fn try_from(text: String) -> Result<Self, NameError> {
                text.parse()
            }
        }

        impl From<$key> for String {
            fn from(key: $key) -> String {
                key.to_string()
            }
        }
    };
}

key!(
    /// Which app: its team and its name. Written `team/name`, or `name` alone in the default team.
    AppKey, AppName
);
key!(
    /// Which snapshot, as [`AppKey`] says which app. Several generations of one share it.
    SnapshotKey, SnapshotName
);

fn dns_label(text: &str) -> Result<(), &'static str> {
    const RULE: &str =
        "must be 1 to 40 lower-case letters, digits or hyphens, starting with a letter and not ending with a hyphen";
    if is_label(text, 40) { Ok(()) } else { Err(RULE) }
}

fn snapshot_label(text: &str) -> Result<(), &'static str> {
    const RULE: &str =
        "must be 1 to 60 lower-case letters, digits or hyphens, starting with a letter and not ending with a hyphen";
    if is_label(text, 60) { Ok(()) } else { Err(RULE) }
}

fn is_label(text: &str, longest: usize) -> bool {
    let starts = text.bytes().next().is_some_and(|b| b.is_ascii_lowercase());
    let all = text.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-');
    starts && all && text.len() <= longest && !text.ends_with('-')
}

fn dir_name(text: &str) -> Result<(), &'static str> {
    let plain = !text.contains(['/', '\0']) && text != "." && text != "..";
    if plain && (1..=128).contains(&text.len()) {
        Ok(())
    } else {
        Err("must be the name of a directory, without `/`, and neither `.` nor `..`")
    }
}

fn worker_name(text: &str) -> Result<(), &'static str> {
    let all = text.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_' || b == b'-');
    if all && (1..=64).contains(&text.len()) { Ok(()) } else { Err("must be 1 to 64 letters, digits, `_` or `-`") }
}

fn env_name(text: &str) -> Result<(), &'static str> {
    let starts = text.bytes().next().is_some_and(|b| b.is_ascii_alphabetic() || b == b'_');
    let all = text.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_');
    if starts && all && text.len() <= 256 {
        Ok(())
    } else {
        Err("must be letters, digits or `_`, not starting with a digit")
    }
}

fn uid(text: &str) -> Result<(), &'static str> {
    let all = text.bytes().all(|b| b.is_ascii_alphanumeric() || b"._-".contains(&b));
    if all && (1..=64).contains(&text.len()) { Ok(()) } else { Err("must be 1 to 64 letters, digits, `.`, `_` or `-`") }
}

fn host_name(text: &str) -> Result<(), &'static str> {
    let label = |l: &str| {
        (1..=63).contains(&l.len())
            && l.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-')
            && !l.starts_with('-')
            && !l.ends_with('-')
    };
    if text.len() <= 253 && text.split('.').all(label) {
        Ok(())
    } else {
        Err("must be a lower-case DNS name without port, such as `blog.example.org`")
    }
}

fn repo_path(text: &str) -> Result<(), &'static str> {
    let component = |c: &str| !c.is_empty() && c != "." && c != ".." && !c.contains('\0') && !c.contains('\\');
    if !text.is_empty() && text.len() <= 4096 && text.split('/').all(component) {
        Ok(())
    } else {
        Err("must be a relative path with `/` between its parts and no `.` or `..`")
    }
}

#[cfg(test)]
mod tests;
