//! `setpoint completions SHELL` and `setpoint man DIR`: what is made from the command line's own definition.

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::CommandFactory as _;
use clap_complete::Shell;

use super::{Cli, Failure, print};

#[derive(Debug, clap::Args)]
#[command(
    after_help = "bash:  source <(setpoint completions bash)\nzsh:   setpoint completions zsh >\"${fpath[1]}/_setpoint\"\n\
                        fish:  setpoint completions fish >~/.config/fish/completions/setpoint.fish"
)]
pub struct CompletionsArgs {
    /// For which shell
    shell: Shell,
}

#[derive(Debug, clap::Args)]
pub struct ManArgs {
    /// The directory to write them to; it is made if need be
    dir: PathBuf,
}

/// Prints the completions of a shell.
pub fn completions(args: &CompletionsArgs) -> ExitCode {
    let mut script = Vec::new();
    clap_complete::generate(args.shell, &mut Cli::command(), "setpoint", &mut script);
    print(&String::from_utf8_lossy(&script));
    ExitCode::SUCCESS
}

/// Writes a page for the program and one for each verb.
pub fn man(args: &ManArgs) -> Result<ExitCode, Failure> {
    let hint = Some("name a directory that can be written".to_owned());
    let failed = |source| Failure::new(Unwritable { dir: args.dir.clone(), source }, hint);
    write_pages(&args.dir).map_err(failed)?;
    Ok(ExitCode::SUCCESS)
}

fn write_pages(dir: &Path) -> std::io::Result<()> {
    std::fs::create_dir_all(dir)?;
    clap_mangen::generate_to(Cli::command(), dir)
}

#[derive(Debug, thiserror::Error)]
#[error("could not write manual pages to {dir}")]
struct Unwritable {
    dir: PathBuf,
    #[source]
    source: std::io::Error,
}
