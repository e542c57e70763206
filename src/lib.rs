//! The daemon and the command line of Setpoint: source → desired → plan → converge → observed → status.

pub mod admin;
mod agent;
mod allocator;
pub mod api;
pub mod cli;
pub mod config;
pub mod converge;
pub mod crew;
pub mod daemon;
pub mod desired;
mod drivers;
mod host;
pub mod http;
pub mod ingress;
pub mod ledger;
pub mod metrics;
pub mod observe;
mod parallel;
mod power;
pub mod preview;
pub mod render;
mod report;
pub mod source;
mod status;
mod systemd;
mod task;
mod world;
