//! Where a repository is: on this machine, opened in place, or elsewhere, fetched into a mirror.

use std::path::{Path, PathBuf};

use super::error::SourceError;

/// Where a repository is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Location {
    /// On this machine.
    Local(PathBuf),
    /// Behind this URL, which holds no credentials.
    Remote(String),
}

impl Location {
    /// Reads a path or URL as people give them to git.
    ///
    /// # Errors
    /// When the scheme is unknown, or when credentials stand in an http(s) URL, from where they would spread.
    pub fn parse(url: &str) -> Result<Self, SourceError> {
        let bad = |problem| Err(SourceError::BadUrl { url: redacted(url), problem });
        match url.split_once("://") {
            Some(("file", path)) if path.starts_with('/') => Ok(Self::Local(PathBuf::from(path))),
            Some(("file", _)) => bad("a file URL has the form file:///absolute/path"),
            Some(("http" | "https", rest)) if userinfo(rest).is_some() => bad("credentials do not belong into a URL"),
            Some(("ssh", rest)) if userinfo(rest).is_some_and(|user| user.contains(':')) => {
                bad("credentials do not belong into a URL")
            }
            Some(("http" | "https" | "ssh", _)) => Ok(Self::Remote(url.to_owned())),
            Some(_) => bad("the scheme is not file, ssh or https"),
            None if url.is_empty() => bad("it is empty"),
            None if is_scp_like(url) => Ok(Self::Remote(url.to_owned())),
            None => Ok(Self::Local(PathBuf::from(url))),
        }
    }
}

/// `url` with whatever stands before an `@` in its authority replaced, fit for errors and status.
#[must_use]
pub fn redacted(url: &str) -> String {
    match url.split_once("://") {
        Some((scheme, rest)) => match userinfo(rest) {
            Some(user) if scheme == "ssh" && !user.contains(':') => url.to_owned(),
            Some(user) => format!("{scheme}://***{}", &rest[user.len()..]),
            None => url.to_owned(),
        },
        None => url.to_owned(),
    }
}

fn userinfo(after_scheme: &str) -> Option<&str> {
    let authority = after_scheme.split(['/', '?', '#']).next().unwrap_or_default();
    authority.rsplit_once('@').map(|(user, _)| user)
}

/// `user@host:path`, git's short form of ssh; a local path of that spelling wins, as in git.
fn is_scp_like(text: &str) -> bool {
    match text.split_once(':') {
        Some((host, _)) => !host.is_empty() && !host.contains('/') && !Path::new(text).exists(),
        None => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_spelling_that_git_knows_is_placed() {
        let local = |path: &str| Ok(Location::Local(PathBuf::from(path)));
        let remote = |url: &str| Ok(Location::Remote(url.to_owned()));
        assert_eq!(Location::parse("/srv/apps"), local("/srv/apps"));
        assert_eq!(Location::parse("../apps"), local("../apps"));
        assert_eq!(Location::parse("file:///srv/apps.git"), local("/srv/apps.git"));
        assert_eq!(Location::parse("git@example.org:team/apps.git"), remote("git@example.org:team/apps.git"));
        assert_eq!(Location::parse("ssh://git@example.org/apps"), remote("ssh://git@example.org/apps"));
        assert_eq!(Location::parse("https://example.org/apps"), remote("https://example.org/apps"));
    }

    #[test]
    fn credentials_in_a_url_are_refused_and_not_repeated() {
        for url in ["https://token@example.org/a", "https://u:hunter2@example.org/a", "ssh://u:hunter2@example.org/a"] {
            let error = Location::parse(url).expect_err("a URL with credentials");
            let text = format!("{error} {error:?}");
            assert!(!text.contains("hunter2") && !text.contains("token@"), "{text}");
            assert!(text.contains("***@example.org/a"), "{text}");
        }
    }

    #[test]
    fn other_schemes_are_refused() {
        for url in ["git://example.org/a", "ext::sh -c x", "ftp://example.org/a", "file://host/a", ""] {
            let parsed = Location::parse(url);
            assert!(!matches!(parsed, Ok(Location::Local(_))) || url.starts_with("ext"), "{url}: {parsed:?}");
        }
    }
}
