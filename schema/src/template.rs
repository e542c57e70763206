//! `kind: Template`: what a microVM starts from.

use serde::{Deserialize, Serialize};

use crate::id::{CommitId, TemplateDigest};
use crate::name::{RepoPath, TemplateName};

/// A template as declared.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Template {
    /// Its name.
    pub name: TemplateName,
    /// How its root file system comes to be.
    pub root: TemplateRoot,
    /// Whether machines that start from it are to find a warm one made, rather than make it with the first of them.
    pub prewarm: bool,
}

/// How a template's root file system comes to be. Recipes, Debian and OCI bases will be further variants.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum TemplateRoot {
    /// Built in: the agent and a busybox.
    Minimal,
    /// A directory or tar archive in the declarations repository.
    RepoRootfs {
        /// The directory or archive.
        path: RepoPath,
    },
    /// A directory or tar archive on the host, by absolute path.
    HostRootfs {
        /// The directory or archive.
        path: String,
    },
}

/// A template with its content pinned.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DesiredTemplate {
    /// The declaration.
    pub template: Template,
    /// What the content hashes to.
    pub digest: TemplateDigest,
    /// The revision that it was read in.
    pub revision: CommitId,
}
