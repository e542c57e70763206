//! Connections to what listens on this machine's localhost.

use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};

use tokio::net::TcpStream;

/// Connects to `port`, over IPv4 first because most servers listen there; the error is the one from IPv4.
///
/// # Errors
/// Nothing listens on either address.
pub async fn connect(port: u16) -> io::Result<TcpStream> {
    let stream = match TcpStream::connect(SocketAddr::from((Ipv4Addr::LOCALHOST, port))).await {
        Ok(stream) => stream,
        Err(error) => TcpStream::connect(SocketAddr::from((Ipv6Addr::LOCALHOST, port))).await.map_err(|_| error)?,
    };
    stream.set_nodelay(true)?;
    Ok(stream)
}
