//! Tests of the planner: claims about single rules, properties over generated histories, and what plans look like.
#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod between;
mod claims;
mod declare;
mod helped;
mod looks;
mod memory;
mod power;
mod properties;
mod removal;
mod repeats;
mod snapshots;
mod waiting;
mod world;
