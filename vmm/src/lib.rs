//! How one microVM is made, run and adopted after a restart.
//!
//! [`driver::Driver`] is the narrow seam: `qemu` runs real guests, `sim` scripted ones whose world is a directory. This crate
//! knows nothing of apps' declarations, git or plans.

pub mod driver;
mod failpoint;
pub mod memory;
pub mod qemu;
pub mod shim;
pub mod sim;
mod sys;
