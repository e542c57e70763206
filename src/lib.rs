//! The daemon and the command line of Setpoint: source → desired → plan → converge → observed → status.

pub mod api;
pub mod desired;
pub mod http;
pub mod ingress;
pub mod render;
pub mod source;
