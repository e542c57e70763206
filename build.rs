//! Builds the guest agent as a small static binary and hands its path to the crate, which carries it inside.
//!
//! The agent needs other flags than the daemon (static, optimised for size), so it is built by a cargo of its own in
//! `target/agent`. `SETPOINT_AGENT` names a ready-made one instead, for packagers.

use std::env;
use std::path::{Path, PathBuf};
use std::process::Command;

/// The agent is linked statically, because a template may hold no libc at all.
const TARGET: &str = "x86_64-unknown-linux-gnu";

fn main() {
    for path in ["guest/src", "guest/proto", "guest/build.rs", "guest/Cargo.toml", "Cargo.lock"] {
        println!("cargo::rerun-if-changed={path}");
    }
    println!("cargo::rerun-if-env-changed=SETPOINT_AGENT");
    let agent = env::var_os("SETPOINT_AGENT").map_or_else(build_agent, PathBuf::from);
    println!("cargo::rustc-env=SETPOINT_AGENT={}", agent.display());
}

fn build_agent() -> PathBuf {
    let target_dir = target_dir().join("agent");
    let status = Command::new(env::var_os("CARGO").expect("cargo sets CARGO for build scripts"))
        .args(["build", "--locked", "--package", "setpoint-guest", "--bin", "setpoint-agent"])
        .args(["--profile", "agent", "--target", TARGET])
        .env("CARGO_TARGET_DIR", &target_dir)
        .env("RUSTFLAGS", "-C target-feature=+crt-static")
        // The outer build's flags would win over RUSTFLAGS, and make every change of them rebuild the agent.
        .env_remove("CARGO_ENCODED_RUSTFLAGS")
        .env_remove("RUSTC_WORKSPACE_WRAPPER")
        .status()
        .expect("cargo can be run again by a build script");
    assert!(status.success(), "the guest agent does not build: see the errors above");
    target_dir.join(TARGET).join("agent").join("setpoint-agent")
}

/// The directory that cargo marks as its own, above this script's output directory.
fn target_dir() -> PathBuf {
    let out = PathBuf::from(env::var_os("OUT_DIR").expect("cargo sets OUT_DIR for build scripts"));
    let marked = |dir: &&Path| dir.join("CACHEDIR.TAG").exists();
    out.ancestors().find(marked).expect("cargo marks its target directory with CACHEDIR.TAG").to_owned()
}
