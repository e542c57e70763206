//! Who is at the other end of a connection, and with whom that one shares.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};

/// The other end of a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Peer {
    /// An address.
    Inet(SocketAddr),
    /// A process of this machine, by the user that it runs as; absent where the kernel does not say.
    Unix(Option<u32>),
}

/// What is counted as one peer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) enum Share {
    V4(Ipv4Addr),
    /// The first half of an IPv6 address: one machine has all of the other half to choose from.
    V6([u16; 4]),
    User(Option<u32>),
}

impl Peer {
    /// The address; that of this machine for its own processes.
    #[must_use]
    pub fn ip(&self) -> IpAddr {
        match self {
            Self::Inet(address) => address.ip(),
            Self::Unix(_) => Ipv4Addr::LOCALHOST.into(),
        }
    }

    pub(super) fn share(&self) -> Share {
        match self {
            Self::Inet(address) => match address.ip().to_canonical() {
                IpAddr::V4(address) => Share::V4(address),
                IpAddr::V6(address) => {
                    let [a, b, c, d, ..] = address.segments();
                    Share::V6([a, b, c, d])
                }
            },
            Self::Unix(user) => Share::User(*user),
        }
    }
}

impl fmt::Display for Peer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Inet(address) => address.fmt(f),
            Self::Unix(Some(user)) => write!(f, "user {user}"),
            Self::Unix(None) => f.write_str("a local user"),
        }
    }
}
