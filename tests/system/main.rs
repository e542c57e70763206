//! The whole system from outside: the real binary, real git repositories, and microVMs, real ones and scripted ones.
#![expect(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

mod cli;
mod crash;
mod input;
mod real;
mod support;
