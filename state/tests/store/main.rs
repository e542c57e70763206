//! The store from outside, on real files: what it promises while it runs, across restarts, and on disks that fail it.

#![expect(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

mod basics;
mod damage;
mod fixture;
mod full;
mod logs;
mod model;
mod rebuild;
mod snapshot;
