//! The JSON form of a template: what microVMs start from.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::id::TemplateDigest;
use crate::name::TemplateName;
use crate::template;

/// One template that apps can start from.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Template {
    /// The name by which apps call for it.
    pub name: TemplateName,
    /// What its content hashes to in the newest revision.
    pub digest: TemplateDigest,
    /// How its root file system comes to be; null while that cannot be told.
    pub root: Option<TemplateRoot>,
    /// How many apps are declared to start from it.
    pub apps: u32,
}

/// How a template's root file system comes to be.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", tag = "kind")]
pub enum TemplateRoot {
    /// Built in: the agent and a busybox.
    Minimal,
    /// A directory or tar archive in the declarations repository.
    RepoRootfs {
        /// The directory or archive.
        path: String,
    },
    /// A directory or tar archive on the host.
    HostRootfs {
        /// The directory or archive, by absolute path.
        path: String,
    },
}

impl From<&template::TemplateRoot> for TemplateRoot {
    fn from(root: &template::TemplateRoot) -> Self {
        match root {
            template::TemplateRoot::Minimal => Self::Minimal,
            template::TemplateRoot::RepoRootfs { path } => Self::RepoRootfs { path: path.as_str().to_owned() },
            template::TemplateRoot::HostRootfs { path } => Self::HostRootfs { path: path.clone() },
        }
    }
}
