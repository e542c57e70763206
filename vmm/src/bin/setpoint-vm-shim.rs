//! The shim as a program of its own, for this crate's tests. The `setpoint` binary has it as a hidden subcommand.

use std::process::ExitCode;

fn main() -> ExitCode {
    setpoint_vmm::shim::main(std::env::args_os().skip(1))
}
