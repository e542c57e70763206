//! Where a daemon is, and how to get a connection to it.

use std::io;
use std::os::unix::net::UnixStream as BlockingStream;
use std::path::PathBuf;
use std::pin::Pin;
use std::time::Duration;

use hyper::http::uri::Authority;
use setpoint_vmm::driver::Duplex;
use tokio::net::{TcpStream, UnixStream};
use tokio_rustls::rustls::pki_types::ServerName;

use super::credentials::Credentials;
use super::error::ClientError;
use crate::daemon::Running;

/// The daemon answers at once or not at all.
const CONNECT: Duration = Duration::from_secs(5);

/// Where a daemon is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Place {
    /// As it is shown: `HOST:PORT`, `https://HOST`, `unix:/PATH`.
    shown: String,
    way: Way,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Way {
    /// `HOST:PORT`.
    Plain(String),
    /// `HOST:PORT`.
    Tls(String),
    Unix(PathBuf),
}

impl Place {
    /// The place that a user names.
    pub(super) fn named(server: &str) -> Self {
        let server = server.trim_end_matches('/');
        let with_port = |address: &str, port: u16| {
            let given = address.parse::<Authority>().is_ok_and(|authority| authority.port().is_some());
            if given { address.to_owned() } else { format!("{address}:{port}") }
        };
        if let Some(path) = server.strip_prefix("unix:") {
            let path = path.strip_prefix("//").unwrap_or(path);
            return Self { shown: format!("unix:{path}"), way: Way::Unix(PathBuf::from(path)) };
        }
        if let Some(address) = server.strip_prefix("https://") {
            return Self { shown: server.to_owned(), way: Way::Tls(with_port(address, 443)) };
        }
        match server.strip_prefix("http://") {
            Some(address) => Self { shown: address.to_owned(), way: Way::Plain(with_port(address, 80)) },
            None => Self { shown: server.to_owned(), way: Way::Plain(server.to_owned()) },
        }
    }

    /// The daemon that runs on this machine.
    pub(super) fn of(running: &Running) -> Self {
        if let Some(socket) = running.socket.as_ref().filter(|socket| BlockingStream::connect(socket).is_ok()) {
            return Self { shown: format!("unix:{}", socket.display()), way: Way::Unix(socket.clone()) };
        }
        let mut address = running.api;
        if address.ip().is_unspecified() {
            address.set_ip(std::net::Ipv4Addr::LOCALHOST.into());
        }
        let scheme = if running.tls { "https://" } else { "http://" };
        Self::named(&format!("{scheme}{address}"))
    }

    pub(super) fn as_str(&self) -> &str {
        &self.shown
    }

    /// What to write into `Host`.
    pub(super) fn host(&self) -> &str {
        match &self.way {
            Way::Plain(address) | Way::Tls(address) => address,
            Way::Unix(_) => "localhost",
        }
    }

    pub(super) async fn connect(&self, credentials: &Credentials) -> Result<Pin<Box<dyn Duplex>>, ClientError> {
        let unreachable = |source| ClientError::Unreachable { address: self.shown.clone(), source };
        Ok(match &self.way {
            Way::Plain(address) => Box::pin(in_time(TcpStream::connect(address)).await.map_err(unreachable)?),
            Way::Unix(path) => Box::pin(in_time(UnixStream::connect(path)).await.map_err(unreachable)?),
            Way::Tls(address) => {
                let failed = |source| ClientError::Tls { address: self.shown.clone(), source };
                let connector = credentials.connector()?;
                let name = server_name(address).map_err(unreachable)?;
                let stream = in_time(TcpStream::connect(address)).await.map_err(unreachable)?;
                Box::pin(in_time(connector.connect(name, stream)).await.map_err(failed)?)
            }
        })
    }
}

fn server_name(address: &str) -> io::Result<ServerName<'static>> {
    let invalid = |_| io::Error::from(io::ErrorKind::InvalidInput);
    let authority: Authority = address.parse().map_err(|_| io::Error::from(io::ErrorKind::InvalidInput))?;
    let host = authority.host().trim_start_matches('[').trim_end_matches(']').to_owned();
    ServerName::try_from(host).map_err(invalid)
}

async fn in_time<T>(work: impl Future<Output = io::Result<T>>) -> io::Result<T> {
    tokio::time::timeout(CONNECT, work).await.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_server_is_named_by_address_url_or_path() {
        let way = |server: &str| Place::named(server).way;
        assert_eq!(way("127.0.0.1:7878"), Way::Plain("127.0.0.1:7878".to_owned()));
        assert_eq!(way("http://box:7878/"), Way::Plain("box:7878".to_owned()));
        assert_eq!(way("http://box"), Way::Plain("box:80".to_owned()));
        assert_eq!(way("https://box"), Way::Tls("box:443".to_owned()));
        assert_eq!(way("https://[::1]:8443"), Way::Tls("[::1]:8443".to_owned()));
        assert_eq!(way("unix:/run/setpoint/api.sock"), Way::Unix("/run/setpoint/api.sock".into()));
        assert_eq!(way("unix:///run/setpoint/api.sock"), Way::Unix("/run/setpoint/api.sock".into()));
        assert_eq!(Place::named("unix:/a").host(), "localhost");
    }

    #[test]
    fn a_daemon_on_every_address_is_asked_on_this_one() {
        let running = Running {
            pid: 1,
            api: ([0, 0, 0, 0], 7878).into(),
            tls: true,
            socket: Some("/nonexistent/api.sock".into()),
            ingress: ([127, 0, 0, 1], 1).into(),
        };
        assert_eq!(Place::of(&running).as_str(), "https://127.0.0.1:7878");
    }
}
