//! The planner: desired and observed state in, plan out.
//!
//! Everything here is a pure, total, synchronous function of its arguments. There is no I/O, no clock and no randomness: the
//! time and the entropy for new ids are arguments, so the same inputs give a byte-identical plan.
//!
//! [`planner::plan`] makes plans, [`check::check`] looks for broken invariants in any plan, [`render`] shows them to people and
//! programs.

pub mod assumed;
pub mod check;
pub mod desired;
pub mod model;
pub mod planner;
pub mod render;
pub mod repeats;
mod words;
