//! The listeners from outside: who gets in, who gives way, and what each side says about it.
#![expect(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

#[path = "transport/crowds.rs"]
mod crowds;
#[path = "support/host.rs"]
mod host;
#[path = "transport/secure.rs"]
mod secure;
