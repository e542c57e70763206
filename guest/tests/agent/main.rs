//! The agent from outside: the whole service over a pipe with the library's own client, with real processes, files and
//! sockets, and without a microVM.

#![expect(clippy::unwrap_used, reason = "a failing step is a failing test")]

mod blank;
mod connections;
mod files;
mod power;
mod processes;
mod rig;
mod streams;
