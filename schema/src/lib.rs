//! The declaration language of Setpoint and the types that every other room shares.
//!
//! This crate turns text into typed, validated declarations and says where each mistake is. It knows nothing of git, sled,
//! processes, async or the clock.

pub mod app;
pub mod check;
pub mod decode;
pub mod diagnostic;
pub mod disruption;
pub mod document;
pub mod env;
pub mod id;
pub mod json_schema;
pub mod name;
pub mod names;
pub mod node;
pub mod notes;
pub mod observed;
pub mod power;
pub mod project;
pub mod quantity;
pub mod runtime;
pub mod sandbox;
pub mod set;
pub mod shared;
pub mod short;
pub mod snapshot;
pub mod template;
mod text;
pub mod toml;
pub mod window;
pub mod wire;
pub mod yaml;

/// For the expansion of [`declared!`] in other crates' tests.
pub use serde;
