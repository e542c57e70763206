//! `setpoint token new NAME`: a token for the status API, shown once.

use std::process::ExitCode;

use super::{Failure, print};
use crate::http::{Token, TokenName};

#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, clap::Subcommand)]
enum Command {
    /// Print a new random token, once, and the line of the configuration that makes the daemon accept it
    New {
        /// What to call it, so that it can be told from others and withdrawn
        name: TokenName,
    },
}

pub fn run(args: Args) -> Result<ExitCode, Failure> {
    let Command::New { name } = args.command;
    let (token, text) = Token::generate(name).map_err(|error| Failure::new(error, None))?;
    // The token alone is data, so that `setpoint token new ci >token` makes a token file.
    print(&format!("{text}\n"));
    let digest = String::from(token.sha256);
    eprintln!("add to [api] of the daemon's configuration, and let it reload or restart:");
    eprintln!("  tokens = [{{ name = \"{}\", sha256 = \"{digest}\" }}]", token.name);
    eprintln!("the token itself, on standard output, is kept nowhere: pass it on with --token-file or SETPOINT_TOKEN");
    Ok(ExitCode::SUCCESS)
}
