//! `setpoint init`: a declarations repository with one app that works, to start from.

use std::path::PathBuf;
use std::process::ExitCode;

use super::{Failure, print, schema};

#[derive(Debug, clap::Args)]
pub struct Args {
    /// The directory to make it in
    #[arg(default_value = ".")]
    path: PathBuf,
}

/// What is written, by path. Kept as files of the source tree, so that tests boot what users get.
const FILES: [(&str, &str); 4] = [
    ("setpoint.toml", include_str!("init/setpoint.toml")),
    ("apps/hello/app.yaml", include_str!("init/app.yaml")),
    ("apps/hello/sandbox.yaml", include_str!("init/sandbox.yaml")),
    ("apps/hello/index.html", include_str!("init/index.html")),
];

pub fn run(args: &Args) -> Result<ExitCode, Failure> {
    // All or nothing: an existing file is found before the first one is written.
    if let Some(taken) = FILES.iter().map(|(name, _)| args.path.join(name)).find(|path| path.exists()) {
        let hint = "choose an empty directory; nothing was written".to_owned();
        return Err(Failure::new(format!("{} exists already", taken.display()), Some(hint)));
    }
    for (name, text) in FILES {
        schema::write(&args.path.join(name), text)?;
    }
    // The first line of each file names its schema there, by a path, so that editors need no network.
    for (name, text) in schema::files() {
        schema::write(&args.path.join(schema::DIRECTORY).join(name), &text)?;
    }
    print(&format!(
        "made {} with one app, hello\n\nnext:\n  cd {}\n  git init && git add . && git commit -m 'Say hello'\n  \
         setpoint reconcile --dry-run\n  setpoint run --repo .\n",
        args.path.display(),
        args.path.display(),
    ));
    Ok(ExitCode::SUCCESS)
}
