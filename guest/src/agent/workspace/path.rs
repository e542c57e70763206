//! Paths and links as git has them, refused where they are anything but plain.

use std::ffi::CString;
use std::io;

use crate::limits;

use super::WorkspaceError;

/// The longest name that Linux file systems take.
const NAME: usize = 255;

/// A relative path without `.`, `..` or empty parts.
#[derive(Debug, Clone, Copy)]
pub struct WorkspacePath<'a>(&'a str);

impl<'a> WorkspacePath<'a> {
    /// # Errors
    /// `path` is empty, absolute, too long, or has a part that is no plain name.
    pub fn parse(path: &'a str) -> Result<Self, WorkspaceError> {
        let refuse = |rule| Err(WorkspaceError::Path { path: limits::bounded_text(path), rule });
        if path.is_empty() || path.len() > limits::PATH {
            return refuse("is empty or too long");
        }
        if path.contains('\0') {
            return refuse("contains a null byte");
        }
        if path.split('/').any(|name| matches!(name, "" | "." | "..") || name.len() > NAME) {
            return refuse("has a part that is empty, `.`, `..` or too long");
        }
        Ok(Self(path))
    }

    /// The whole path.
    #[must_use]
    pub fn as_str(&self) -> &'a str {
        self.0
    }

    /// The last part.
    #[must_use]
    pub fn name(&self) -> &'a str {
        self.0.rsplit('/').next().unwrap_or(self.0)
    }

    /// The names of the directories that lead to it, outermost first.
    pub fn parents(&self) -> impl Iterator<Item = &'a str> + use<'a> {
        let directory = self.0.rsplit_once('/').map(|(directory, _)| directory);
        directory.into_iter().flat_map(|directory| directory.split('/'))
    }

    /// The paths of the directories that lead to it.
    pub fn ancestors(&self) -> impl Iterator<Item = &'a str> + use<'a> {
        let path = self.0;
        path.match_indices('/').map(move |(at, _)| &path[..at])
    }

    pub(super) fn error(&self, operation: &'static str, error: impl Into<io::Error>) -> WorkspaceError {
        WorkspaceError::Io { operation, path: self.0.to_owned(), source: error.into() }
    }
}

/// A symbolic link that is to be made.
#[derive(Debug)]
pub struct Link<'a> {
    /// Where.
    pub path: &'a WorkspacePath<'a>,
    /// Its target.
    pub target: &'a [u8],
}

impl Link<'_> {
    /// The target, if it stays in the workspace: relative, going up only at its beginning and no further than the link lies
    /// deep. `..` after a name could follow another link out.
    ///
    /// # Errors
    /// It does not.
    pub fn check(&self) -> Result<CString, WorkspaceError> {
        let leaves = || WorkspaceError::LinkLeaves { path: self.path.as_str().to_owned() };
        let target = CString::new(self.target).map_err(|_| leaves())?;
        if self.target.is_empty() || self.target.starts_with(b"/") {
            return Err(leaves());
        }
        let mut parts = self.target.split(|byte| *byte == b'/').filter(|part| !matches!(*part, b"" | b".")).peekable();
        let mut depth = self.path.parents().count();
        while parts.next_if(|part| *part == b"..").is_some() {
            depth = depth.checked_sub(1).ok_or_else(leaves)?;
        }
        if parts.any(|part| part == b"..") { Err(leaves()) } else { Ok(target) }
    }
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "a failing step is a failing test")]

    use super::*;

    #[test]
    fn only_plain_relative_paths_are_taken() {
        for good in ["a", "a/b/c", ".env", "..a", "a/...", "with space", "ä"] {
            assert!(WorkspacePath::parse(good).is_ok(), "{good}");
        }
        let long = "x".repeat(256);
        for bad in ["", "/", "/etc/passwd", "a//b", "a/", "./a", "a/.", "..", "a/../b", "a\0b", &long] {
            assert!(WorkspacePath::parse(bad).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn a_path_knows_its_parents() {
        let path = WorkspacePath::parse("a/b/c").unwrap();
        assert_eq!(path.name(), "c");
        assert_eq!(path.parents().collect::<Vec<_>>(), ["a", "b"]);
        assert_eq!(path.ancestors().collect::<Vec<_>>(), ["a", "a/b"]);
    }

    #[test]
    fn links_stay_in_the_workspace() {
        let check = |path: &str, target: &str| {
            Link { path: &WorkspacePath::parse(path).unwrap(), target: target.as_bytes() }.check().is_ok()
        };
        assert!(check("a", "b") && check("d/a", "../b") && check("d/e/a", "../../b/c") && check("a", "./b"));
        assert!(!check("a", "/etc/passwd") && !check("a", "..") && !check("d/a", "../../b") && !check("a", ""));
        assert!(!check("d/a", "x/../../.."), "going up after a name");
    }
}
