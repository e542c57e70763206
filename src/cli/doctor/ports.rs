//! Checks of the addresses that the daemon listens on: whether they are free, and who has them if not.

use std::fs;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use setpoint_vmm::qemu::Probe;

use super::{fail, ok, process, warn};
use crate::config::Config;
use crate::daemon;

pub fn api(config: &Config) -> Probe {
    let served = daemon::running(&config.state.dir).map(|running| (running.pid, running.api));
    check("api", config.api.listen, served, "`listen` under [api], or --api-listen")
}

pub fn ingress(config: &Config) -> Probe {
    let served = daemon::running(&config.state.dir).map(|running| (running.pid, running.ingress));
    check("ingress", config.ingress.listen, served, "`listen` under [ingress], or --ingress-listen")
}

fn check(name: &'static str, address: SocketAddr, served: Option<(u32, SocketAddr)>, setting: &str) -> Probe {
    if let Some((pid, served)) = served {
        return ok(name, format!("served on {served} by the daemon (process {pid})"));
    }
    if let Some(listener) = listeners().into_iter().find(|listener| listener.takes(address)) {
        let who = process::holder(&format!("socket:[{}]", listener.inode)).map_or_else(
            || "a process of another user".to_owned(),
            |pid| format!("process {pid} ({})", process::name(pid)),
        );
        return fail(name, format!("{address} is taken by {who}"), format!("end that, or choose another by {setting}"));
    }
    let lowest = fs::read_to_string("/proc/sys/net/ipv4/ip_unprivileged_port_start").ok();
    let lowest = lowest.and_then(|port| port.trim().parse().ok()).unwrap_or(1024);
    if address.port() != 0 && address.port() < lowest && !rustix::process::geteuid().is_root() {
        let hint = "AmbientCapabilities=CAP_NET_BIND_SERVICE in its unit allows it; or choose a higher port";
        return warn(name, format!("{address} needs a privilege that this user has not"), hint);
    }
    ok(name, format!("{address} is free"))
}

/// A socket that listens.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Listener {
    address: SocketAddr,
    inode: u64,
}

impl Listener {
    /// Whether nobody else can listen on `address` while this one does.
    fn takes(&self, address: SocketAddr) -> bool {
        let everywhere = |ip: IpAddr| ip.is_unspecified();
        let same = self.address.ip() == address.ip();
        // One that listens everywhere in version 6 does so in version 4 too, unless told otherwise.
        let overlapping = everywhere(self.address.ip()) || everywhere(address.ip());
        let one_family = self.address.is_ipv4() == address.is_ipv4();
        let both = self.address.is_ipv6() && everywhere(self.address.ip());
        self.address.port() == address.port() && address.port() != 0 && (same || overlapping && (one_family || both))
    }
}

fn listeners() -> Vec<Listener> {
    let table = |name: &str| fs::read_to_string(format!("/proc/net/{name}")).unwrap_or_default();
    let (four, six) = (table("tcp"), table("tcp6"));
    four.lines().chain(six.lines()).filter_map(listener).collect()
}

/// The state of a socket that listens.
const LISTENING: &str = "0A";

/// Reads a line such as `0: 0100007F:1F90 00000000:0000 0A 00000000:00000000 00:00000000 00000000 1000 0 34567 …`.
fn listener(line: &str) -> Option<Listener> {
    let mut words = line.split_ascii_whitespace();
    let local = words.nth(1)?;
    let state = words.nth(1)?;
    let inode = words.nth(5)?.parse().ok()?;
    let (ip, port) = local.split_once(':')?;
    let port = u16::from_str_radix(port, 16).ok()?;
    let ip = match ip.len() {
        8 => IpAddr::V4(Ipv4Addr::from(word(ip)?)),
        32 => {
            let mut bytes = [0; 16];
            for (four, word_of) in bytes.chunks_mut(4).zip([0, 8, 16, 24]) {
                four.copy_from_slice(&word(ip.get(word_of..word_of + 8)?)?);
            }
            IpAddr::V6(Ipv6Addr::from(bytes)).to_canonical()
        }
        _ => return None,
    };
    (state == LISTENING).then(|| Listener { address: SocketAddr::new(ip, port), inode })
}

/// Four bytes of an address: the kernel prints them as a number of the machine's own order.
fn word(hex: &str) -> Option<[u8; 4]> {
    u32::from_str_radix(hex, 16).ok().map(u32::to_ne_bytes)
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a test that cannot go on has failed")]
mod tests {
    use super::*;

    #[test]
    fn who_listens_here_is_found_with_its_process() {
        let socket = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let address = socket.local_addr().unwrap();
        let found = listeners().into_iter().find(|listener| listener.takes(address)).unwrap();
        assert_eq!(found.address, address);
        assert_eq!(process::holder(&format!("socket:[{}]", found.inode)), Some(std::process::id()));
        let probe = check("api", address, None, "x");
        assert!(probe.detail.contains(&format!("is taken by process {}", std::process::id())), "{}", probe.detail);
    }

    #[test]
    fn listening_everywhere_takes_every_address_of_the_port() {
        let takes =
            |own: &str, other: &str| Listener { address: own.parse().unwrap(), inode: 1 }.takes(other.parse().unwrap());
        assert!(
            takes("0.0.0.0:80", "127.0.0.1:80")
                && takes("127.0.0.1:80", "0.0.0.0:80")
                && takes("[::]:80", "1.2.3.4:80")
        );
        assert!(!takes("127.0.0.1:80", "127.0.0.2:80") && !takes("127.0.0.1:80", "127.0.0.1:81"));
        assert!(!takes("0.0.0.0:0", "127.0.0.1:0"));
    }
}
