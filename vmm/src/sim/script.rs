//! `script.toml`: what operations of the scripted driver take, how they fail, and what becomes of its guests.
//!
//! The file is read again whenever it has changed; without one, everything succeeds at once. Chance and jitter come out of
//! hashes over the seed and the subject, so that a run can be repeated. An example with every key:
//!
//! ```toml
//! seed = 7
//!
//! [latency]                  # all `0ms` unless given
//! boot = "40ms"              # from launch to the agent's first answer
//! ready = "10ms"             # from starting the processes to healthy
//! build = "20ms"
//! shutdown = "5ms"           # from asking for a clean shutdown to the end
//! launch = "2ms"             # of the operations themselves
//! sync = "5ms"
//! apply = "1ms"
//! template = "30ms"
//! pause = "20ms"
//! resume = "60ms"
//! jitter_percent = 50        # each is stretched by up to this much
//!
//! [[fault]]                  # of operations
//! app = "blog-*"             # by the app's name without its team; `*` stands for any text; absent: all
//! operation = "launch"
//! nth = 1                    # the nth call of each subject since the driver was made; absent: every call
//! probability = 0.5          # and then only this often
//! effect = "fail"            # `fail` does nothing, `lost` does it and fails, `hang` never returns
//!
//! [[fate]]                   # of guests, decided when they start; the first that matches counts
//! app = "shop"
//! boot = 1                   # only the nth boot of each sandbox; absent: all
//! dies_after = "2s"
//! dies_of = { panic = "Kernel panic - not syncing: scripted" }   # or "shutdown", "reset", { killed = 9 }, { failed = 1 }
//! silent_after = "1s"        # shorter than the boot: the agent never answers
//! unhealthy = "503"
//! unhealthy_for = "500ms"    # absent: for ever
//! build_fails = "exit code 2: no such file"
//! cpu_percent = 50           # of one processor, from its boot on
//! forgetful = true           # what its agent tells by itself lacks the workspace; asked, it has it
//! ```

use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use serde::Deserialize;
use setpoint_schema::id::sha256_hex;
use setpoint_schema::observed::ExitReason;
use setpoint_schema::quantity::Span;

use super::files::{Stamp, absent_is_none, failed};
use super::sim_error;
use crate::driver::Result;

/// Its name in the driver's directory.
pub const FILE_NAME: &str = "script.toml";

/// A whole script.
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Script {
    seed: u64,
    latency: Latency,
    #[serde(rename = "fault")]
    faults: Vec<Fault>,
    #[serde(rename = "fate")]
    fates: Vec<Fate>,
}

#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct Latency {
    boot: Span,
    ready: Span,
    build: Span,
    shutdown: Span,
    launch: Span,
    sync: Span,
    apply: Span,
    template: Span,
    pause: Span,
    resume: Span,
    jitter_percent: u32,
}

#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
struct Fault {
    #[serde(default)]
    app: Glob,
    operation: Operation,
    nth: Option<u64>,
    probability: Option<f64>,
    #[serde(default)]
    effect: Effect,
}

/// What becomes of the guests of some apps.
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(super) struct Fate {
    app: Glob,
    boot: Option<u64>,
    pub(super) dies_after: Option<Span>,
    pub(super) dies_of: Option<ExitReason>,
    pub(super) silent_after: Option<Span>,
    pub(super) unhealthy: Option<String>,
    pub(super) unhealthy_for: Option<Span>,
    pub(super) build_fails: Option<String>,
    pub(super) forgetful: bool,
    pub(super) cpu_percent: u32,
}

/// What a fault does to the operation that it hits.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Effect {
    /// Nothing is done, and an error returned.
    #[default]
    Fail,
    /// It is done, and an error returned.
    Lost,
    /// It never returns.
    Hang,
}

/// The operations of driver and guest that a fault can hit; in the script in kebab case, as `make-template`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Deserialize)]
#[serde(rename_all = "kebab-case")]
#[expect(missing_docs, reason = "each is named as the method it stands for")]
pub enum Operation {
    List,
    Observe,
    Launch,
    Kill,
    Remove,
    EnsureDisk,
    ListDisks,
    DeleteDisk,
    MakeTemplate,
    Connect,
    Status,
    Manifest,
    Sync,
    Apply,
    GrowDisk,
    Logs,
    Exec,
    OpenPort,
    Shutdown,
    Pause,
    Resume,
    Snapshot,
    LaunchFrom,
    LeaveOut,
    Freeze,
    Renew,
    Thaw,
}

/// A time that passes inside a microVM, rather than in a call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Phase {
    Boot,
    Ready,
    Build,
    Shutdown,
}

impl Script {
    /// Reads a script.
    ///
    /// # Errors
    /// What is wrong with it, and where.
    pub fn parse(text: &str) -> Result<Self> {
        toml::from_str(text).map_err(|e| sim_error(format!("cannot understand {FILE_NAME}: {e}")))
    }

    /// How long a call takes.
    pub(super) fn latency(&self, operation: Operation, subject: &str) -> Duration {
        let base = match operation {
            Operation::Launch => self.latency.launch,
            Operation::Sync => self.latency.sync,
            Operation::Apply => self.latency.apply,
            Operation::MakeTemplate => self.latency.template,
            Operation::Pause => self.latency.pause,
            Operation::Resume => self.latency.resume,
            Operation::List
            | Operation::Observe
            | Operation::Kill
            | Operation::Remove
            | Operation::EnsureDisk
            | Operation::ListDisks
            | Operation::DeleteDisk
            | Operation::Connect
            | Operation::Status
            | Operation::Manifest
            | Operation::GrowDisk
            | Operation::Logs
            | Operation::Exec
            | Operation::OpenPort
            | Operation::Shutdown
            | Operation::Snapshot
            | Operation::LaunchFrom
            | Operation::LeaveOut
            | Operation::Freeze
            | Operation::Renew
            | Operation::Thaw => Span::default(),
        };
        self.stretched(base, operation, subject)
    }

    /// How long something inside a microVM takes.
    pub(super) fn duration(&self, phase: Phase, subject: &str) -> Duration {
        let base = match phase {
            Phase::Boot => self.latency.boot,
            Phase::Ready => self.latency.ready,
            Phase::Build => self.latency.build,
            Phase::Shutdown => self.latency.shutdown,
        };
        self.stretched(base, phase, subject)
    }

    /// Whether any fault speaks of such calls.
    pub(super) fn may_fail(&self, operation: Operation, subject: &str) -> bool {
        self.faults.iter().any(|fault| fault.operation == operation && fault.app.matches(app_name(subject)))
    }

    /// What happens to the `count`th call, counted from 1.
    pub(super) fn fault(&self, operation: Operation, subject: &str, count: u64) -> Option<Effect> {
        let hits = |(index, fault): &(usize, &Fault)| {
            let draw = || self.chance(&format!("fault {index} {count} {operation:?}"), subject);
            fault.operation == operation
                && fault.app.matches(app_name(subject))
                && fault.nth.is_none_or(|nth| nth == count)
                && fault.probability.is_none_or(|probability| draw() < probability)
        };
        self.faults.iter().enumerate().find(hits).map(|(_, fault)| fault.effect)
    }

    /// What becomes of the `boot`th boot of a sandbox, counted from 1.
    pub(super) fn fate(&self, subject: &str, boot: u64) -> Fate {
        let matches = |fate: &&Fate| fate.app.matches(app_name(subject)) && fate.boot.is_none_or(|nth| nth == boot);
        self.fates.iter().find(matches).cloned().unwrap_or_default()
    }

    fn stretched(&self, base: Span, what: impl std::fmt::Debug, subject: &str) -> Duration {
        // Most take no time, and thousands of guests are asked all day: chance is a hash.
        if base == Span::default() {
            return Duration::ZERO;
        }
        let jitter = f64::from(self.latency.jitter_percent) / 100.0;
        base.as_duration().mul_f64(1.0 + jitter * self.chance(&format!("{what:?}"), subject))
    }

    /// A number from 0 up to 1 that only the seed and the arguments decide.
    fn chance(&self, what: &str, subject: &str) -> f64 {
        /// 13 hex digits are 52 bits, which a double holds exactly.
        const DIGITS: usize = 13;
        let hex = sha256_hex(&[&self.seed.to_le_bytes(), what.as_bytes(), subject.as_bytes()]);
        let number = u64::from_str_radix(&hex[..DIGITS], 16).expect("a hash in hex");
        number as f64 / (1_u64 << (4 * DIGITS)) as f64
    }
}

/// The app's name in a sandbox's or disk's id, `<app>-<8 hex digits>`.
fn app_name(id: &str) -> &str {
    id.rsplit_once('-').map_or(id, |(name, _)| name)
}

/// A pattern in which `*` stands for any text.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(transparent)]
struct Glob(String);

impl Default for Glob {
    fn default() -> Self {
        Self("*".to_owned())
    }
}

impl Glob {
    fn matches(&self, text: &str) -> bool {
        let Some((head, rest)) = self.0.split_once('*') else { return self.0 == text };
        let (middle, tail) = rest.rsplit_once('*').map_or(("", rest), |(middle, tail)| (middle, tail));
        let Some(inner) = text.strip_prefix(head).and_then(|text| text.strip_suffix(tail)) else { return false };
        // The earliest place of each part leaves the most room for the next.
        let place =
            |inner: &mut &str, part: &str| inner.find(part).map(|at| *inner = &inner[at + part.len()..]).is_some();
        let mut inner = inner;
        middle.split('*').all(|part| place(&mut inner, part))
    }
}

/// The script as it stands in its file, read again when the file has changed.
pub(super) struct ScriptFile {
    path: PathBuf,
    cached: Mutex<(Option<Stamp>, Arc<Script>)>,
    /// When the file was last looked at.
    looked: Mutex<Option<Instant>>,
}

/// Questions to many quiet guests come together; they need not each look whether the script is another by now.
const LATELY: Duration = Duration::from_millis(10);

impl ScriptFile {
    pub(super) fn new(path: PathBuf) -> Self {
        Self { path, cached: Mutex::default(), looked: Mutex::default() }
    }

    /// The script as it was a moment ago, or is now.
    pub(super) fn lately(&self) -> Result<Arc<Script>> {
        let looked = *self.looked.lock().unwrap_or_else(PoisonError::into_inner);
        if looked.is_some_and(|looked| looked.elapsed() < LATELY) {
            return Ok(Arc::clone(&self.cached.lock().unwrap_or_else(PoisonError::into_inner).1));
        }
        let now = Instant::now();
        let script = self.current()?;
        *self.looked.lock().unwrap_or_else(PoisonError::into_inner) = Some(now);
        Ok(script)
    }

    /// The script now; the empty one if there is no file.
    pub(super) fn current(&self) -> Result<Arc<Script>> {
        let stamp = Stamp::of(&self.path)?;
        let mut cached = self.cached.lock().unwrap_or_else(PoisonError::into_inner);
        let is_settled = stamp.as_ref().is_none_or(Stamp::is_settled);
        if cached.0 != stamp || !is_settled {
            let text = absent_is_none(std::fs::read_to_string(&self.path)).map_err(failed("read", &self.path))?;
            *cached = (stamp, Arc::new(Script::parse(&text.unwrap_or_default())?));
        }
        Ok(Arc::clone(&cached.1))
    }
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

    use super::*;

    #[test]
    fn the_documented_example_is_a_script() {
        let source = include_str!("script.rs");
        let example = source.lines().skip_while(|line| *line != "//! ```toml").skip(1);
        let example = example.take_while(|line| *line != "//! ```").map(|line| line.trim_start_matches("//!"));
        let script = Script::parse(&example.collect::<Vec<_>>().join("\n")).unwrap();
        assert_eq!((script.faults.len(), script.fates.len()), (1, 1));
    }

    #[test]
    fn a_star_stands_for_any_text() {
        let matching = [("*", ""), ("a*", "a"), ("*-b", "a-b"), ("a*c*e", "abcde"), ("a*b*b", "abb"), ("x", "x")];
        let other = [("a*", "ba"), ("*-b", "a-bc"), ("a*c*e", "ace-"), ("a*b*b", "ab"), ("ab*b", "ab"), ("x", "xx")];
        assert!(matching.iter().all(|(glob, text)| Glob((*glob).to_owned()).matches(text)));
        assert!(!other.iter().any(|(glob, text)| Glob((*glob).to_owned()).matches(text)));
    }

    #[test]
    fn jitter_is_the_same_in_every_run_and_differs_between_sandboxes() {
        let script = Script::parse("latency = { boot = \"100ms\", jitter_percent = 50 }").unwrap();
        let boot = |subject| script.duration(Phase::Boot, subject);
        assert_eq!(boot("a-00000001"), boot("a-00000001"));
        assert_ne!(boot("a-00000001"), boot("a-00000002"));
        assert!((100..150).contains(&boot("a-00000001").as_millis()));
    }

    #[test]
    fn a_fault_hits_the_nth_call_of_the_apps_it_names() {
        let script =
            Script::parse("[[fault]]\napp = \"blog\"\noperation = \"launch\"\nnth = 2\neffect = \"lost\"").unwrap();
        let launch = |subject, count| script.fault(Operation::Launch, subject, count);
        assert_eq!([launch("blog-0000000a", 1), launch("blog-0000000a", 2)], [None, Some(Effect::Lost)]);
        assert_eq!(launch("blog-2-0000000a", 2), None);
    }

    #[test]
    fn a_probability_hits_about_that_often() {
        let script = Script::parse("[[fault]]\noperation = \"sync\"\nprobability = 0.25").unwrap();
        let hits = (1..=4000).filter(|count| script.fault(Operation::Sync, "a-00000000", *count).is_some()).count();
        assert!((900..1100).contains(&hits), "{hits} of 4000");
    }

    #[test]
    fn an_unknown_key_is_refused_with_its_place() {
        let error = Script::parse("seed = 1\nfaults = []").unwrap_err().to_string();
        assert!(error.contains("line 2") && error.contains("faults"), "{error}");
    }
}
