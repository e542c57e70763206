//! The guest side of Setpoint: the protocol between the daemon and a microVM, and the agent that speaks it inside.
//!
//! One byte stream joins the two (virtio-serial under QEMU, vsock under Firecracker). It begins with [`handshake`], goes on
//! as HTTP/2 and carries the gRPC service of `proto/agent.proto`. The host uses [`client::Client`]; the microVM runs
//! [`agent`] as its first process. Whatever a guest says is bounded by [`limits`].

pub mod agent;
pub mod blank;
pub mod client;
pub mod handshake;
pub mod limits;

/// The messages and services of `proto/agent.proto`, as tonic generates them.
#[expect(missing_docs, clippy::all, reason = "generated; proto/agent.proto is the documentation")]
pub mod proto {
    tonic::include_proto!("setpoint.agent.v1");
}

/// The protocol's version. Host and agent come out of one binary, so that they differ only while a host that was upgraded
/// meets a microVM booted before; such a guest is booted anew.
pub const PROTOCOL: u32 = 2;
