//! Compiles the protocol with a pure-Rust protobuf compiler, so that no `protoc` is needed.

use std::error::Error;

fn main() -> Result<(), Box<dyn Error>> {
    println!("cargo::rerun-if-changed=proto/agent.proto");
    let descriptors = protox::compile(["agent.proto"], ["proto"])?;
    // `bytes` fields as reference-counted buffers: a chunk is not copied between HTTP/2 and its reader.
    tonic_prost_build::configure().bytes(".").compile_fds(descriptors)?;
    Ok(())
}
