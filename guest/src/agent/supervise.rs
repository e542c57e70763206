//! Carries out process sets: builds, then replaces what runs by what should, as a unit.
//!
//! One task owns the processes and takes one order after another. An order that arrives during a build takes its place, and
//! inherits the build that is still owed.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::join_all;
use tokio::sync::{mpsc, oneshot};
use tokio::time::timeout;
use tokio_util::task::AbortOnDropHandle;

use crate::limits::bounded_text;
use crate::proto::apply_request::Restart;
use crate::proto::build_status::State as BuildState;
use crate::proto::{ApplyRequest, Build, BuildStatus, ProcessStatus, StatusReply, WebStatus, WorkerStatus};

use super::freeze::Gate;
use super::health::{self, Probe};
use super::job::{Env, Launcher};
use super::logs::Logs;
use super::process::{Process, ProcessName, ProcessSpec, describe, start};
use super::status::Board;

/// What running processes takes.
#[derive(Debug)]
pub struct Context {
    /// Starts them.
    pub launcher: Launcher,
    /// Holds them back while the machine is frozen.
    pub gate: Gate,
    /// Takes their output.
    pub logs: Logs,
    /// Shows how they are.
    pub board: Arc<Board>,
}

/// Takes orders for the one supervising task.
#[derive(Debug, Clone)]
pub struct Supervisor {
    orders: mpsc::Sender<Order>,
}

enum Order {
    Apply(Box<ApplyRequest>, oneshot::Sender<()>),
    Stop(oneshot::Sender<()>),
}

impl Supervisor {
    /// A supervisor with nothing to run yet.
    #[must_use]
    pub fn start(context: Arc<Context>) -> Self {
        let (orders, receiver) = mpsc::channel(8);
        let director = Director { context, running: BTreeMap::new(), health: None, build_owed: false };
        tokio::spawn(director.direct(receiver));
        Self { orders }
    }

    /// Accepts a process set. When this returns the status speaks of the new set; the work goes on.
    pub async fn apply(&self, request: ApplyRequest) {
        self.order(|accepted| Order::Apply(Box::new(request), accepted)).await;
    }

    /// Stops all processes, and a build.
    pub async fn stop(&self) {
        self.order(Order::Stop).await;
    }

    async fn order(&self, order: impl FnOnce(oneshot::Sender<()>) -> Order) {
        let (done, receiver) = oneshot::channel();
        self.orders.send(order(done)).await.expect("the director takes orders while there is a supervisor");
        receiver.await.expect("the director answers every order");
    }
}

struct Director {
    context: Arc<Context>,
    running: BTreeMap<ProcessName, Process>,
    health: Option<(Probe, AbortOnDropHandle<()>)>,
    /// Whether a build was cut short by a newer order.
    build_owed: bool,
}

/// How a build came to its end.
enum Built {
    Passed,
    Failed(String),
}

impl Director {
    async fn direct(mut self, mut orders: mpsc::Receiver<Order>) {
        let mut next = None;
        loop {
            let order = match next.take() {
                Some(order) => order,
                None => match orders.recv().await {
                    Some(order) => order,
                    None => return,
                },
            };
            match order {
                Order::Apply(request, accepted) => next = self.apply(*request, accepted, &mut orders).await,
                Order::Stop(stopped) => {
                    self.health = None;
                    join_all(std::mem::take(&mut self.running).into_values().map(Process::stop)).await;
                    let _ = stopped.send(());
                }
            }
        }
    }

    /// Carries a set out, or returns the order that cut its build short.
    async fn apply(
        &mut self,
        request: ApplyRequest,
        accepted: oneshot::Sender<()>,
        orders: &mut mpsc::Receiver<Order>,
    ) -> Option<Order> {
        self.build_owed |= request.run_build;
        let build = request.build.as_ref().filter(|build| self.build_owed && !build.command.is_empty());
        // A host that no longer waits for its answer finds it in the status.
        let outdated = if let Some(build) = build {
            self.context.board.update(|status| accept(status, &request, true));
            let _ = accepted.send(());
            let built = tokio::select! {
                built = run_build(&self.context, build, &request.env) => built,
                Some(order) = orders.recv() => return Some(order),
            };
            self.build_owed = false;
            if let Built::Failed(_) = built {
                self.context.board.update(|status| finish_build(status, &built));
                return None;
            }
            self.replace_set(&request, |status| finish_build(status, &built))
        } else {
            self.build_owed = false;
            let outdated = self.replace_set(&request, |status| accept(status, &request, false));
            let _ = accepted.send(());
            outdated
        };
        self.replace_processes(&request, outdated).await;
        None
    }

    /// Takes out what must stop, and shows the rest of the new set as stopped until it starts. The status changes with `change` in
    /// one go: nobody may see the new set with the old processes' health.
    fn replace_set(&mut self, request: &ApplyRequest, change: impl FnOnce(&mut StatusReply)) -> Vec<Process> {
        let specs: BTreeMap<_, _> =
            specs(request).map(|(spec, after_task)| (spec.name.clone(), (spec, after_task))).collect();
        let (kept, outdated): (BTreeMap<_, _>, BTreeMap<_, _>) =
            std::mem::take(&mut self.running).into_iter().partition(|(name, process)| {
                specs.get(name).is_some_and(|(spec, after_task)| {
                    process.spec == *spec && !restarts(request.restart(), *after_task)
                })
            });
        self.running = kept;
        let keeps = |name: &ProcessName| self.running.contains_key(name);
        self.context.board.update(|status| {
            change(status);
            reset_rows(status, keeps);
        });
        if !keeps(&ProcessName::Web) {
            self.health = None;
        }
        outdated.into_values().collect()
    }

    async fn replace_processes(&mut self, request: &ApplyRequest, outdated: Vec<Process>) {
        join_all(outdated.into_iter().map(Process::stop)).await;
        for (spec, _) in specs(request) {
            self.running.entry(spec.name.clone()).or_insert_with(|| Process::start(self.context.clone(), spec));
        }
        let probe = request.web.as_ref().map(|web| Probe { port: port(web.port), path: web.health_path.clone() });
        if self.health.as_ref().map(|(probe, _)| probe) != probe.as_ref() {
            self.health = probe.map(|probe| {
                let task = tokio::spawn(health::watch(self.context.board.clone(), probe.clone()));
                (probe, AbortOnDropHandle::new(task))
            });
        }
    }
}

/// Shows a set as accepted. While a build runs the old processes go on, and their rows stay.
fn accept(status: &mut StatusReply, request: &ApplyRequest, builds: bool) {
    let state = match &request.build {
        None => BuildState::None,
        Some(build) if build.command.is_empty() => BuildState::Skipped,
        Some(_) if builds => BuildState::Running,
        // The last build still stands, unless what stands there is no build of this kind.
        Some(_) => match status.build.as_ref().map(BuildStatus::state) {
            Some(state @ (BuildState::Passed | BuildState::Failed)) => state,
            None | Some(BuildState::None | BuildState::Skipped | BuildState::Running) => BuildState::None,
        },
    };
    if !matches!(state, BuildState::Passed | BuildState::Failed) {
        status.build = Some(BuildStatus { state: state.into(), tree: status.tree.clone(), reason: String::new() });
    }
    status.processes.clone_from(&request.digest);
    let old_web = status.web.take();
    status.web = request.web.as_ref().map(|_| old_web.unwrap_or_else(fresh_web));
    let old_workers = std::mem::take(&mut status.workers);
    status.workers = (request.workers.iter())
        .map(|worker| {
            let old = old_workers.iter().find(|old| old.name == worker.name);
            old.cloned().unwrap_or_else(|| fresh_worker(worker.name.clone()))
        })
        .collect();
}

fn finish_build(status: &mut StatusReply, built: &Built) {
    let build = status.build.get_or_insert_default();
    match built {
        Built::Passed => build.set_state(BuildState::Passed),
        Built::Failed(reason) => {
            build.set_state(BuildState::Failed);
            build.reason = bounded_text(reason);
        }
    }
}

/// Shows what is about to (re)start as stopped, so that nobody takes the old process's health for the new one's.
fn reset_rows(status: &mut StatusReply, keeps: impl Fn(&ProcessName) -> bool) {
    if let Some(web) = &mut status.web {
        if keeps(&ProcessName::Web) {
            web.process.get_or_insert_default().restarts = 0;
        } else {
            *web = fresh_web();
        }
    }
    for worker in &mut status.workers {
        if keeps(&ProcessName::Worker(worker.name.clone())) {
            worker.process.get_or_insert_default().restarts = 0;
        } else {
            *worker = fresh_worker(std::mem::take(&mut worker.name));
        }
    }
}

fn fresh_web() -> WebStatus {
    WebStatus { process: Some(ProcessStatus::default()), ..WebStatus::default() }
}

fn fresh_worker(name: String) -> WorkerStatus {
    WorkerStatus { name, process: Some(ProcessStatus::default()) }
}

fn restarts(scope: Restart, after_task: bool) -> bool {
    match scope {
        Restart::None => false,
        Restart::AfterTask => after_task,
        Restart::All => true,
    }
}

/// The processes of a set, each with whether it restarts after a task.
fn specs(request: &ApplyRequest) -> impl Iterator<Item = (ProcessSpec, bool)> {
    let web = request.web.iter().map(|web| {
        let mut env: Env = request.env.clone().into_iter().collect();
        env.insert("PORT".to_owned(), web.port.to_string());
        (ProcessSpec { name: ProcessName::Web, command: web.command.clone(), env }, web.restart_after_task)
    });
    let workers = request.workers.iter().map(|worker| {
        let name = ProcessName::Worker(worker.name.clone());
        let env = request.env.clone().into_iter().collect();
        (ProcessSpec { name, command: worker.command.clone(), env }, worker.restart_after_task)
    });
    web.chain(workers)
}

/// The service refuses ports beyond 16 bits before an order is made.
fn port(port: u32) -> u16 {
    u16::try_from(port).unwrap_or_default()
}

/// Runs a build to its end. Dropping the future ends the build.
async fn run_build(context: &Context, build: &Build, env: &std::collections::HashMap<String, String>) -> Built {
    let env = env.clone().into_iter().collect();
    context.gate.passed().await;
    let (mut job, recorder) = match start(context, "build", &build.command, &env) {
        Ok(running) => running,
        Err(error) => return Built::Failed(format!("could not start: {error}")),
    };
    let allowed = Duration::from_secs(u64::from(build.timeout_seconds));
    let ended = timeout(allowed, job.ended()).await;
    let last_line = recorder.finish(job).await;
    match ended {
        Ok(exit) if exit.shell_code() == 0 => Built::Passed,
        Ok(exit) => Built::Failed(describe(&exit.to_string(), &last_line)),
        Err(_) => Built::Failed(describe(&format!("took longer than {} s", build.timeout_seconds), &last_line)),
    }
}
