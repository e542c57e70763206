//! The declaration language of Setpoint and the types that every other room shares.
//!
//! This crate turns text into typed, validated declarations and says where each mistake is. It knows nothing of git, sled,
//! processes, async or the clock.

pub mod app;
pub mod disruption;
pub mod id;
pub mod name;
pub mod observed;
pub mod quantity;
pub mod runtime;
pub mod template;

/// For the expansion of [`declared!`] in other crates' tests.
pub use serde;
