//! The first process of a microVM. It boots the machine, then serves the host until that asks for a shutdown.

use std::io;
use std::path::Path;
use std::sync::Arc;

use setpoint_guest::agent::link::Link;
use setpoint_guest::agent::{Agent, Config, boot, power};

fn main() {
    if std::process::id() != 1 {
        eprintln!("setpoint-agent runs as the first process of a microVM, and nowhere else");
        std::process::exit(2);
    }
    let result = boot::boot().map_err(io::Error::other).and_then(run);
    if let Err(error) = result {
        // The host finds this in the console and heals the microVM, or says why it cannot.
        eprintln!("setpoint-agent: fatal: {error}");
    }
    let workspace = Path::new(boot::USER_ROOT).join("workspace");
    power::off(&[&workspace, Path::new(boot::DATA)]);
}

/// One thread does everything: the agent waits most of its life, and a small one starts fast under emulation.
fn run(config: Config) -> io::Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let agent = Agent::start(config)?;
        let link = Link::open()?;
        tokio::select! {
            result = serve(&agent, &link) => result?,
            () = agent.shutdown_requested() => {}
        }
        agent.stop().await;
        Ok(())
    })
}

/// Serves one host after another.
async fn serve(agent: &Agent, link: &Arc<Link>) -> io::Result<()> {
    loop {
        let connection = link.host().await?;
        // A host that leaves before it has begun is no news.
        let _ = agent.serve(connection).await;
    }
}
