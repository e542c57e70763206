//! The guest agent that this binary carries inside, so that copying one file is an installation.

/// The static agent, an ELF executable for this architecture.
pub const AGENT: &[u8] = include_bytes!(env!("SETPOINT_AGENT"));
