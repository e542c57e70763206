//! The web server of a scripted guest: it answers every request with the same text, and changes to any other protocol that it is
//! asked for, by which it sends back what it gets.

use std::future::Future;
use std::io;

use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader, DuplexStream};

/// How much may be under way in each direction, as in a socket's buffer.
const BUFFER: usize = 64 << 10;

/// The longest request head that is read.
const HEAD_LIMIT: u64 = 64 << 10;

/// A connection to the server, which goes away when the peer hangs up or `ended` resolves.
pub(super) fn connect(body: String, ended: impl Future<Output = ()> + Send + 'static) -> DuplexStream {
    let (ours, theirs) = tokio::io::duplex(BUFFER);
    tokio::spawn(async move {
        tokio::select! {
            // A peer that breaks off in the middle of a request is no news to anyone.
            _ = serve(ours, &body) => {}
            () = ended => {}
        }
    });
    theirs
}

async fn serve(stream: DuplexStream, body: &str) -> io::Result<()> {
    let mut stream = BufReader::new(stream);
    while let Some(request) = read_request(&mut stream).await? {
        if let Some(protocol) = request.protocol {
            let head =
                format!("HTTP/1.1 101 Switching Protocols\r\nupgrade: {protocol}\r\nconnection: upgrade\r\n\r\n");
            stream.write_all(head.as_bytes()).await?;
            return echo(stream).await;
        }
        let length = body.len();
        let connection = if request.keep_alive { "keep-alive" } else { "close" };
        let head = format!(
            "HTTP/1.1 200 OK\r\ncontent-type: text/plain\r\ncontent-length: {length}\r\nconnection: {connection}\r\n\r\n"
        );
        stream.write_all(head.as_bytes()).await?;
        if request.wants_body {
            stream.write_all(body.as_bytes()).await?;
        }
        stream.flush().await?;
        if !request.keep_alive {
            break;
        }
    }
    stream.shutdown().await
}

async fn echo(stream: BufReader<DuplexStream>) -> io::Result<()> {
    let (mut read, mut write) = tokio::io::split(stream);
    tokio::io::copy_buf(&mut BufReader::new(&mut read), &mut write).await?;
    write.shutdown().await
}

struct Request {
    /// The one to go on with, where another is asked for.
    protocol: Option<String>,
    wants_body: bool,
    keep_alive: bool,
}

/// Reads one request with its body; `None` when the peer has hung up between requests.
async fn read_request(stream: &mut BufReader<DuplexStream>) -> io::Result<Option<Request>> {
    let mut head = (&mut *stream).take(HEAD_LIMIT);
    let mut line = String::new();
    if head.read_line(&mut line).await? == 0 {
        return Ok(None);
    }
    let mut request = Request {
        protocol: None,
        wants_body: !line.starts_with("HEAD "),
        keep_alive: line.trim_end().ends_with("HTTP/1.1"),
    };
    let mut length: u64 = 0;
    loop {
        line.clear();
        if head.read_line(&mut line).await? == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        let Some((name, value)) = line.trim_end().split_once(':') else { break };
        match (name.to_ascii_lowercase().as_str(), value.trim()) {
            ("content-length", value) => length = value.parse().map_err(|_| io::ErrorKind::InvalidData)?,
            // Where a chunked body ends is not worth finding out: the connection ends with the answer.
            ("transfer-encoding", _) => request.keep_alive = false,
            ("upgrade", value) => request.protocol = Some(value.to_owned()),
            ("connection", value) if value.eq_ignore_ascii_case("close") => request.keep_alive = false,
            _ => {}
        }
    }
    tokio::io::copy(&mut (&mut *stream).take(length), &mut tokio::io::sink()).await?;
    Ok(Some(request))
}
