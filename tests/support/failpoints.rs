//! Where crash tests end the daemon while its driver is at work on real microVMs. Each list is gone through by a test of `cut_power`, and
//! `tests/crash/armed.rs` finds the points that are in none.

/// While a real microVM is paused.
pub const PAUSE: [&str; 6] =
    ["pause/freeze", "pause/stop", "pause/devices", "pause/memory", "pause/record", "pause/end"];

/// While one goes on.
pub const RESUME: [&str; 7] =
    ["resume/start", "resume/memory", "resume/devices", "resume/run", "resume/renew", "resume/commit", "resume/thaw"];

/// While layers are merged.
pub const MERGE: [&str; 2] = ["merge/switch", "merge/forget"];

/// While a warm template is made.
pub const WARM: &str = "warm/save";

/// While something begins from one.
pub const FROM_WARM: [&str; 3] = ["warm/load", "resume/devices", "warm/become"];

/// While a moment of one that runs is kept, up to the row.
pub const SNAPSHOT: [&str; 5] =
    ["snapshot/freeze", "snapshot/stop", "snapshot/memory", "snapshot/record", "take-snapshot/halfway"];

/// While its disk alone is kept.
pub const DISK_SNAPSHOT: [&str; 3] = ["snapshot/freeze", "snapshot/disk", "snapshot/record"];

/// While a moment of a paused one is kept.
pub const PAUSED_SNAPSHOT: [&str; 3] = ["snapshot/disk", "snapshot/memory", "snapshot/record"];

/// While one begins from a moment.
pub const FORK: [&str; 7] =
    ["fork/start", "resume/memory", "resume/devices", "resume/run", "fork/renew", "fork/commit", "fork/thaw"];

/// While one begins with a copy of a disk.
pub const DISK_FORK: [&str; 2] = ["fork/disk", "copy-disk/halfway"];
