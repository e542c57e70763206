//! The state that the API shows: built by the reconciler on every pass, published by `watch`, never changed in between.

use std::collections::BTreeMap;

use setpoint_schema::id::SandboxId;
use setpoint_schema::name::AppKey;
use setpoint_schema::wire;

/// Everything that was known at the end of one pass, so that one answer never mixes two.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Snapshot {
    /// The daemon.
    pub status: wire::Status,
    /// Every app that is declared or still has a sandbox.
    pub apps: BTreeMap<AppKey, wire::App>,
    /// Every sandbox in the inventory.
    pub sandboxes: BTreeMap<SandboxId, wire::Sandbox>,
}
