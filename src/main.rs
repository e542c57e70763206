//! The `setpoint` binary: the daemon, the command line, and by hidden subcommands its own helpers.

use std::process::ExitCode;

fn main() -> ExitCode {
    #[cfg(feature = "failpoints")]
    let _failpoints = fail::FailScenario::setup();
    setpoint::cli::main()
}
