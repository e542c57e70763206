//! The daemon is killed, and things go wrong, with scripted microVMs: what is left in the end is what a clean run leaves.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

#[path = "crash/armed.rs"]
#[cfg(feature = "failpoints")]
mod armed;
#[path = "crash/boundaries.rs"]
#[cfg(feature = "failpoints")]
mod boundaries;
#[path = "crash/declare.rs"]
mod declare;
#[path = "support/failpoints.rs"]
#[cfg(feature = "failpoints")]
mod failpoints;
#[path = "crash/failures.rs"]
mod failures;
#[path = "support/host.rs"]
mod host;
#[path = "crash/left.rs"]
mod left;
#[path = "crash/moments.rs"]
mod moments;
