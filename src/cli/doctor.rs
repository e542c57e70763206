//! `setpoint doctor`: what is wrong with this machine, or with a daemon elsewhere, and what to do about it. Changes nothing.
//!
//! Each check says one thing in one sentence: `ok`, `warn` where it works with something to know, `fail` where it does not work.

mod credentials;
mod host;
mod ports;
mod process;
mod remote;
mod store;

use std::process::ExitCode;

use setpoint_vmm::qemu::{Probe, ProbeStatus, QemuDriver};

use super::style::Tone;
use super::table::harmless;
use super::{Failure, Output, Server, print, print_json, style};
use crate::config::{Config, DriverKind};
use crate::source::Repository;
use crate::{daemon, drivers, report};

#[derive(Debug, clap::Args)]
#[command(after_help = "Asks a daemon elsewhere with --server, and this machine without.")]
pub struct Args {
    /// Only these checks, as `source` or `kernel`
    #[arg(value_name = "CHECK")]
    checks: Vec<String>,
    #[command(flatten)]
    server: Server,
    /// Output format
    #[arg(short, long, value_enum, default_value = "text")]
    output: Output,
}

pub async fn run(config: Config, args: Args) -> Result<ExitCode, Failure> {
    let chosen = Chosen(&args.checks);
    let mut findings = if args.server.is_named() {
        remote::all(&args.server.client(&config)).await
    } else {
        local(&config, &chosen).await
    };
    findings.retain(|finding| chosen.includes(finding.name));
    if let Some(unknown) = args.checks.iter().find(|name| !findings.iter().any(|finding| finding.name == **name)) {
        let hint = "`setpoint doctor` without names makes every check".to_owned();
        return Err(Failure::new(format!("there is no check {unknown} here"), Some(hint)));
    }
    match args.output {
        Output::Json => print_json(&document(&findings)),
        Output::Text => print(&text(&findings)),
    }
    let failed = findings.iter().any(|finding| finding.status == ProbeStatus::Fail);
    Ok(if failed { ExitCode::FAILURE } else { ExitCode::SUCCESS })
}

/// The checks that were asked for; all where none was named.
struct Chosen<'a>(&'a [String]);

impl Chosen<'_> {
    fn includes(&self, name: &str) -> bool {
        self.0.is_empty() || self.0.iter().any(|chosen| chosen == name)
    }
}

/// A check of this machine.
type Check = fn(&Config) -> Probe;

/// The checks beside those of the driver and of the store.
const CHECKS: [(&str, Check); 8] = [
    ("source", source),
    ("credentials", credentials::check),
    ("api", ports::api),
    ("ingress", ports::ingress),
    ("files", host::open_files),
    ("inotify", host::inotify),
    ("clock", host::clock),
    ("space", host::space),
];

async fn local(config: &Config, chosen: &Chosen<'_>) -> Vec<Probe> {
    let own = |name: &str| CHECKS.iter().any(|(own, _)| *own == name) || store::NAMES.contains(&name);
    let mut findings = Vec::new();
    if chosen.0.is_empty() || chosen.0.iter().any(|name| !own(name)) {
        findings = match config.vmm.driver {
            DriverKind::Qemu => QemuDriver::probes(&drivers::qemu_config(config)),
            DriverKind::Sim => Vec::new(),
        };
        // The state's disk is the same one, and has a check of its own.
        findings.retain(|finding| finding.name != "space");
    }
    let wanted = CHECKS.iter().filter(|(name, _)| chosen.includes(name));
    findings.extend(wanted.map(|(_, check)| check(config)));
    if store::NAMES.iter().any(|name| chosen.includes(name)) {
        findings.extend(store::all(config).await);
    }
    findings
}

/// What was found, for people.
fn text(findings: &[Probe]) -> String {
    let paint = style::stdout();
    let line = |finding: &Probe| {
        let tone = match finding.status {
            ProbeStatus::Ok => Tone::Good,
            ProbeStatus::Warn => Tone::Busy,
            ProbeStatus::Fail => Tone::Bad,
        };
        let word = paint.paint(tone, &format!("{:<5}", word(finding.status)));
        let hint = finding.hint.as_ref().map(|hint| format!("      hint: {}\n", harmless(hint)));
        format!("{word} {}: {}\n{}", finding.name, harmless(&finding.detail), hint.unwrap_or_default())
    };
    findings.iter().map(line).collect()
}

/// What was found, for programs.
fn document(findings: &[Probe]) -> serde_json::Value {
    let worst = findings.iter().map(|finding| finding.status).max_by_key(|status| match status {
        ProbeStatus::Ok => 0,
        ProbeStatus::Warn => 1,
        ProbeStatus::Fail => 2,
    });
    serde_json::json!({ "status": worst.unwrap_or(ProbeStatus::Ok), "checks": findings })
}

fn word(status: ProbeStatus) -> &'static str {
    match status {
        ProbeStatus::Ok => "ok",
        ProbeStatus::Warn => "warn",
        ProbeStatus::Fail => "fail",
    }
}

fn ok(name: &'static str, detail: impl Into<String>) -> Probe {
    Probe { name, status: ProbeStatus::Ok, detail: detail.into(), hint: None }
}

fn warn(name: &'static str, detail: impl Into<String>, hint: impl Into<String>) -> Probe {
    Probe { name, status: ProbeStatus::Warn, detail: detail.into(), hint: Some(hint.into()) }
}

fn fail(name: &'static str, detail: impl Into<String>, hint: impl Into<String>) -> Probe {
    Probe { name, status: ProbeStatus::Fail, detail: detail.into(), hint: Some(hint.into()) }
}

/// Whether the declarations can be read. A remote is asked for its branch, and nothing is fetched.
fn source(config: &Config) -> Probe {
    let configured = match (drivers::source_config(config), daemon_process(config)) {
        (Ok(configured), _) => configured,
        (Err(_), Some(pid)) => {
            let shown = "`setpoint get settings source` shows it";
            return ok(
                "source",
                format!("none is set here, and the daemon (process {pid}) was started with one: {shown}"),
            );
        }
        (Err(error), None) => return warn("source", error.to_string(), error.hint().unwrap_or_default()),
    };
    match Repository::look(&configured) {
        Ok(commit) => ok("source", format!("branch is at {}", commit.short())),
        Err(error) => {
            Probe { name: "source", status: ProbeStatus::Fail, detail: report::chain(&error), hint: error.hint() }
        }
    }
}

/// The process whose limits and ports count: the daemon's while it runs.
fn daemon_process(config: &Config) -> Option<u32> {
    daemon::running(&config.state.dir).map(|running| running.pid)
}
