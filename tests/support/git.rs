//! Throw-away git repositories, made by the `git` command so that tests see what users have.
#![allow(dead_code, reason = "each test file uses its own part of this")]

use std::fs;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use setpoint::source::{Repository, SourceConfig, SourceLimits};
use tempfile::TempDir;

/// A repository with a work tree. Removed when dropped.
pub struct Git {
    dir: TempDir,
}

impl Git {
    /// An empty repository on branch `main`.
    pub fn init() -> Self {
        Self::init_with(&[])
    }

    /// An empty repository on branch `main`, with further arguments to `git init`.
    pub fn init_with(arguments: &[&str]) -> Self {
        let git = Self { dir: tempfile::tempdir().unwrap() };
        git.run(&[&["init", "--quiet", "--initial-branch=main"], arguments].concat());
        git
    }

    /// A repository with one commit of these files.
    pub fn with(files: &[(&str, &str)]) -> Self {
        let git = Self::init();
        git.commit(files);
        git
    }

    pub fn path(&self) -> &Path {
        self.dir.path()
    }

    /// Runs git in the work tree, and answers what it printed.
    pub fn run(&self, arguments: &[&str]) -> String {
        run_in(self.path(), arguments, b"")
    }

    /// Runs git with this input.
    pub fn feed(&self, arguments: &[&str], input: &[u8]) -> String {
        run_in(self.path(), arguments, input)
    }

    /// Writes these files without committing them.
    pub fn write(&self, files: &[(&str, &str)]) {
        for (path, text) in files {
            let place = self.path().join(path);
            fs::create_dir_all(place.parent().unwrap()).unwrap();
            fs::write(place, text).unwrap();
        }
    }

    /// Writes these files and commits all there is.
    pub fn commit(&self, files: &[(&str, &str)]) -> String {
        self.write(files);
        self.commit_all()
    }

    /// Commits the work tree as it is.
    pub fn commit_all(&self) -> String {
        self.run(&["add", "--all"]);
        self.run(&["commit", "--quiet", "--allow-empty", "--message=change"]);
        self.head()
    }

    pub fn head(&self) -> String {
        self.run(&["rev-parse", "HEAD"])
    }

    /// Puts a tree that no work tree could hold on the branch: lines as for `git mktree`.
    pub fn commit_tree(&self, tree: &str) -> String {
        let commit = self.run(&["commit-tree", tree, "-m", "crafted"]);
        self.run(&["update-ref", "refs/heads/main", &commit]);
        commit
    }

    /// Makes a tree object.
    pub fn mktree(&self, lines: &[u8]) -> String {
        self.feed(&["mktree"], lines)
    }

    /// Makes a blob object.
    pub fn blob(&self, content: &[u8]) -> String {
        self.feed(&["hash-object", "-w", "--stdin"], content)
    }

    pub fn config(&self) -> SourceConfig {
        self.config_with(SourceLimits::default())
    }

    pub fn config_with(&self, limits: SourceLimits) -> SourceConfig {
        config(&self.path().display().to_string(), limits)
    }

    pub fn open(&self) -> Repository {
        Repository::open(&self.config()).unwrap()
    }
}

/// A source of this URL, branch `main`.
pub fn config(url: &str, limits: SourceLimits) -> SourceConfig {
    SourceConfig {
        url: url.to_owned(),
        branch: Some("main".to_owned()),
        path: None,
        state_dir: PathBuf::from("/nonexistent"),
        limits,
    }
}

/// Runs git in `dir`, apart from the user's own configuration.
pub fn run_in(dir: &Path, arguments: &[&str], input: &[u8]) -> String {
    let mut child = Command::new("git")
        .arg("-C")
        .arg(dir)
        .args(["-c", "gc.auto=0", "-c", "core.fsync=none"])
        .args(arguments)
        .env("GIT_CONFIG_GLOBAL", "/dev/null")
        .env("GIT_CONFIG_NOSYSTEM", "1")
        .envs([("GIT_AUTHOR_NAME", "Ada"), ("GIT_AUTHOR_EMAIL", "ada@example.org")])
        .envs([("GIT_COMMITTER_NAME", "Ada"), ("GIT_COMMITTER_EMAIL", "ada@example.org")])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    child.stdin.take().unwrap().write_all(input).unwrap();
    let output = child.wait_with_output().unwrap();
    assert!(output.status.success(), "git {arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap().trim().to_owned()
}
