//! The JSON form of the daemon's configuration as it is in force.

use jiff::Timestamp;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::Value;

/// The daemon's configuration, without secrets.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Settings {
    /// The configuration file; null where there is none.
    pub file: Option<String>,
    /// When the configuration was read.
    pub read_at: Timestamp,
    /// Every setting, by key.
    pub settings: Vec<Setting>,
}

/// One setting.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Setting {
    /// Section and key, as `converge.concurrency`.
    pub key: String,
    /// The value in force. A URL is without credentials, and of tokens there are only names.
    pub value: Value,
    /// Where the value comes from.
    pub origin: SettingOrigin,
    /// Whether a changed configuration file is taken up by a reload, without a restart.
    pub reloads: bool,
}

/// Where a setting comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub enum SettingOrigin {
    /// Nobody has set it.
    Default,
    /// The configuration file.
    File,
    /// An environment variable.
    Environment,
    /// A flag of the command line.
    Flag,
}
