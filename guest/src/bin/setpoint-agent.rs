//! The first process of a microVM. It boots the machine, then serves the host until that asks for a shutdown.

use std::io;
use std::path::Path;
use std::sync::Arc;

use setpoint_guest::agent::boot::Machine;
use setpoint_guest::agent::link::{Connection, Link};
use setpoint_guest::agent::{Agent, boot, power};

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
fn run(machine: Machine) -> io::Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let link = Link::open()?;
        let (nonce, owner) = if machine.is_blank() {
            let (nonce, owner) = become_somebodys(&machine, &link).await?;
            (Some(nonce), Some(owner))
        } else {
            (None, None)
        };
        let agent = Agent::start(machine.finish(nonce).map_err(io::Error::other)?)?;
        tokio::select! {
            result = serve(&agent, &link, owner) => result?,
            () = agent.shutdown_requested() => {}
        }
        agent.stop().await;
        Ok(())
    })
}

/// Waits until a host has said whose machine this is; the nonce that it has then, and that host, which stays.
async fn become_somebodys(machine: &Machine, link: &Arc<Link>) -> io::Result<(String, Connection)> {
    let blank = machine.blank()?;
    loop {
        let mut connection = link.host().await?;
        if let Ok(nonce) = blank.serve(&mut connection).await {
            return Ok((nonce, connection));
        }
    }
}

/// Serves one host after another, and first the one that is there already.
async fn serve(agent: &Agent, link: &Arc<Link>, owner: Option<Connection>) -> io::Result<()> {
    if let Some(owner) = owner {
        agent.serve_begun(owner).await;
    }
    loop {
        let connection = link.host().await?;
        // A host that leaves before it has begun is no news.
        let _ = agent.serve(connection).await;
    }
}
