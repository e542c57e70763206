//! One supervised process: it runs, ends, waits a little longer each time, and runs again.
//!
//! ```text
//! running ──ended──▶ backoff ──waited──▶ running
//!    │                  └──ended at once too often──▶ gave up
//!    └──asked to stop──▶ stopped
//! ```

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::oneshot;
use tokio::task::JoinHandle;
use tokio::time::{Instant, timeout};

use crate::proto::process_status::State;

use super::job::{Env, Job, Output};
use super::logs::Log;
use super::supervise::Context;

/// The wait before the first restart.
const FIRST_DELAY: Duration = Duration::from_millis(500);
/// The longest wait before a restart.
const LONGEST_DELAY: Duration = Duration::from_secs(30);
/// A process that ran this long is a healthy one that ended, not one that cannot run.
const SETTLED: Duration = Duration::from_secs(30);
/// A process that ends sooner than this did not get as far as running.
const AT_ONCE: Duration = Duration::from_secs(1);
/// So many ends at once in a row, and the process is not started again.
const GIVE_UP_AFTER: u32 = 5;
/// How long the last output of a process that has ended may take to arrive.
const LAST_OUTPUT: Duration = Duration::from_secs(1);

/// Which of an app's processes.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum ProcessName {
    /// The web process.
    Web,
    /// The worker of this name.
    Worker(String),
}

impl ProcessName {
    /// The name of its log. A worker may be called `web`.
    #[must_use]
    pub fn log(&self) -> String {
        match self {
            Self::Web => "web".to_owned(),
            Self::Worker(name) => format!("worker-{name}"),
        }
    }
}

/// What to run. Two equal specs need no restart between them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ProcessSpec {
    /// Which process.
    pub name: ProcessName,
    /// What the login shell runs.
    pub command: String,
    /// Its whole environment beyond the usual.
    pub env: Env,
}

/// A process under supervision. Dropped without [`Self::stop`], it goes on.
#[derive(Debug)]
pub struct Process {
    /// What runs.
    pub spec: ProcessSpec,
    stop: oneshot::Sender<()>,
    task: JoinHandle<()>,
}

impl Process {
    /// Starts it.
    #[must_use]
    pub fn start(context: Arc<Context>, spec: ProcessSpec) -> Self {
        let (stop, stopped) = oneshot::channel();
        let task = tokio::spawn(supervise(context, spec.clone(), stopped));
        Self { spec, stop, task }
    }

    /// Ends it with all its descendants.
    pub async fn stop(self) {
        // The task outlives its receiver only by ending, and it ends only when asked.
        let _ = self.stop.send(());
        let _ = self.task.await;
    }
}

/// How one run came to its end.
enum Run {
    Stopped,
    Ended { end: String, last_line: String, uptime: Duration },
}

async fn supervise(context: Arc<Context>, spec: ProcessSpec, mut stop: oneshot::Receiver<()>) {
    let mut backoff = Backoff::default();
    loop {
        // In a frozen machine a new process would stop before it begins, and the agent with it.
        context.gate.passed().await;
        context.board.set_process(&spec.name, State::Running, "");
        let (end, last_line, uptime) = match run(&context, &spec, &mut stop).await {
            Run::Stopped => break,
            Run::Ended { end, last_line, uptime } => (end, last_line, uptime),
        };
        match backoff.after(uptime) {
            Next::Retry(delay) => {
                context.board.set_process(&spec.name, State::Backoff, &describe(&end, &last_line));
                if timeout(delay, &mut stop).await.is_ok() {
                    break;
                }
                context.board.count_restart(&spec.name);
            }
            Next::GiveUp => {
                let end = format!("{end}, {GIVE_UP_AFTER} times within {} s", AT_ONCE.as_secs());
                context.board.set_process(&spec.name, State::GaveUp, &describe(&end, &last_line));
                let _ = (&mut stop).await;
                break;
            }
        }
    }
    context.board.set_process(&spec.name, State::Stopped, "");
}

async fn run(context: &Context, spec: &ProcessSpec, stop: &mut oneshot::Receiver<()>) -> Run {
    let started = Instant::now();
    let (mut job, recorder) = match start(context, &spec.name.log(), &spec.command, &spec.env) {
        Ok(running) => running,
        Err(error) => {
            let end = format!("could not start: {error}");
            return Run::Ended { end, last_line: String::new(), uptime: Duration::ZERO };
        }
    };
    let exit = tokio::select! {
        exit = job.ended() => Some(exit),
        _ = stop => None,
    };
    let Some(exit) = exit else {
        job.stop().await;
        return Run::Stopped;
    };
    let uptime = started.elapsed();
    let last_line = recorder.finish(job).await;
    Run::Ended { end: exit.to_string(), last_line, uptime }
}

/// Starts a shell command whose output goes into the log `log`.
///
/// # Errors
/// The log cannot be opened, or the shell not started.
pub fn start(context: &Context, log: &str, command: &str, env: &Env) -> std::io::Result<(Job, Recorder)> {
    let log = context.logs.open(log)?;
    log.forget_last_line();
    let mut job = context.launcher.launch(&context.launcher.shell(command), env, Output::Merged)?;
    let pipe = job.stdout.take().expect("a new job has its output");
    let task = tokio::spawn(log.clone().record(pipe, context.gate.clone()));
    Ok((job, Recorder { log, task }))
}

/// Writes one run's output down.
#[derive(Debug)]
pub struct Recorder {
    log: Arc<Log>,
    task: JoinHandle<()>,
}

impl Recorder {
    /// Ends what is left of the job and returns the last line of its output.
    pub async fn finish(self, job: Job) -> String {
        job.end().await;
        // With all writers gone the pipe ends at once; a descendant that escaped must not hold the supervisor up.
        let _ = timeout(LAST_OUTPUT, self.task).await;
        self.log.last_line()
    }
}

/// An end in words: `exit code 1: no such file`.
#[must_use]
pub fn describe(end: &str, last_line: &str) -> String {
    if last_line.is_empty() { end.to_owned() } else { format!("{end}: {last_line}") }
}

/// What follows an end.
#[derive(Debug, PartialEq, Eq)]
enum Next {
    Retry(Duration),
    GiveUp,
}

/// How long to wait before the next start.
#[derive(Debug)]
struct Backoff {
    delay: Duration,
    at_once: u32,
}

impl Default for Backoff {
    fn default() -> Self {
        Self { delay: FIRST_DELAY, at_once: 0 }
    }
}

impl Backoff {
    fn after(&mut self, uptime: Duration) -> Next {
        if uptime >= SETTLED {
            self.delay = FIRST_DELAY;
        }
        self.at_once = if uptime < AT_ONCE { self.at_once + 1 } else { 0 };
        if self.at_once >= GIVE_UP_AFTER {
            return Next::GiveUp;
        }
        let delay = self.delay;
        self.delay = (delay * 2).min(LONGEST_DELAY);
        Next::Retry(delay)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const FAST: Duration = Duration::from_millis(20);

    #[test]
    fn delays_double_to_the_longest() {
        let mut backoff = Backoff::default();
        let delays: Vec<_> = (0..9).map(|_| backoff.after(Duration::from_secs(5))).collect();
        let expected = [500, 1000, 2000, 4000, 8000, 16000, 30000, 30000, 30000];
        assert_eq!(delays, expected.map(|ms| Next::Retry(Duration::from_millis(ms))));
    }

    #[test]
    fn a_settled_process_starts_over() {
        let mut backoff = Backoff::default();
        for _ in 0..4 {
            backoff.after(FAST);
        }
        assert_eq!(backoff.after(SETTLED), Next::Retry(FIRST_DELAY));
        assert_eq!(backoff.after(FAST), Next::Retry(FIRST_DELAY * 2));
    }

    #[test]
    fn ends_at_once_in_a_row_are_given_up() {
        let mut backoff = Backoff::default();
        for _ in 0..4 {
            assert!(matches!(backoff.after(FAST), Next::Retry(_)));
        }
        assert_eq!(backoff.after(FAST), Next::GiveUp);
    }

    #[test]
    fn one_longer_run_in_between_is_a_new_chance() {
        let mut backoff = Backoff::default();
        for uptime in [FAST, FAST, FAST, FAST, AT_ONCE, FAST, FAST, FAST, FAST] {
            assert!(matches!(backoff.after(uptime), Next::Retry(_)));
        }
    }
}
