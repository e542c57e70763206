//! A machine that is nobody's yet: what a template is saved as, and every machine that is restored from it begins as.
//!
//! It has no data disk but an empty one of its own, which it has let go of. A host tells it whose machine it is from now on; only then does it become one. A template is
//! saved while its host's end of the port is held and this waits for the next request, so that a restored machine begins by reading it.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt as _;
use std::sync::Arc;
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite};
use tokio::time::{Instant, sleep};

use crate::PROTOCOL;
use crate::blank::{self, FrameError};
use crate::handshake::{self, ConnectionNonce, HandshakeError};
use crate::proto::blank_reply::Answer;
use crate::proto::blank_request::Ask;
use crate::proto::{BlankReply, BlankRequest, HelloReply, RenewReply, RenewRequest};

use super::renew::{Identity, renew};
use super::service::checked;

/// How long the kernel may take to notice that its data disk is another one. It says so nowhere that can be waited for.
const NOTICE: Duration = Duration::from_secs(5);

/// Waits to be told whose machine this is.
#[derive(Debug)]
pub struct Blank {
    nonce: String,
    /// Where the kernel shows the length of the data disk, in units of 512 bytes. It is open, so that nobody has to look for it.
    length: File,
    identity: Arc<dyn Identity>,
}

/// Why a host left without having made the machine its own.
#[derive(Debug, thiserror::Error)]
pub enum BlankError {
    /// It did not begin.
    #[error(transparent)]
    Handshake(#[from] HandshakeError),
    /// It left, or said what is no request.
    #[error(transparent)]
    Frame(#[from] FrameError),
}

impl Blank {
    /// A machine of this nonce.
    #[must_use]
    pub fn new(nonce: String, length: File, identity: Arc<dyn Identity>) -> Self {
        Self { nonce, length, identity }
    }

    /// Serves one host over `stream` until that has made it its own; the nonce that it has from then on. What follows on the stream is
    /// for the agent.
    ///
    /// # Errors
    /// The host leaves, or says what is no request.
    pub async fn serve<S>(&self, stream: &mut S) -> Result<String, BlankError>
    where
        S: AsyncRead + AsyncWrite + Unpin,
    {
        let known = ConnectionNonce::parse(&self.nonce);
        loop {
            handshake::agent_known(stream, known).await?;
            let request = blank::read(stream).await?;
            let (answer, nonce) = match self.answer(request).await {
                Ok(answer) => answer,
                Err(why) => (Answer::Refused(why), None),
            };
            blank::write(stream, &BlankReply { answer: Some(answer) }).await.map_err(FrameError::Io)?;
            if let Some(nonce) = nonce {
                return Ok(nonce);
            }
        }
    }

    /// The answer, and the nonce that it has now if it is somebody's.
    async fn answer(&self, request: BlankRequest) -> Result<(Answer, Option<String>), String> {
        if request.protocol != PROTOCOL {
            return Err(format!("the host speaks protocol {}, this agent {PROTOCOL}", request.protocol));
        }
        match request.ask.ok_or("nothing is asked")? {
            Ask::Hello(_) => {
                let (nonce, agent_version) = (self.nonce.clone(), env!("CARGO_PKG_VERSION").to_owned());
                Ok((Answer::Hello(HelloReply { protocol: PROTOCOL, nonce, agent_version, frozen: true }), None))
            }
            Ask::Become(request) => {
                let nonce = request.nonce.clone();
                self.r#become(request).await?;
                Ok((Answer::Became(RenewReply {}), Some(nonce)))
            }
        }
    }

    async fn r#become(&self, request: RenewRequest) -> Result<(), String> {
        if request.old_nonce != self.nonce {
            return Err("the renewal is for another machine".to_owned());
        }
        let disk_bytes = request.disk_bytes;
        let renewal = checked(request)?;
        let failed = |step, error: io::Error| format!("could not {step}: {error}");
        renew(&*self.identity, &renewal).map_err(|(step, error)| failed(step, error))?;
        self.disk_is(disk_bytes).await.map_err(|error| failed("find the data disk", error))
    }

    /// Resolves when the kernel knows the data disk as `bytes` long.
    async fn disk_is(&self, bytes: u64) -> io::Result<()> {
        let deadline = Instant::now() + NOTICE;
        loop {
            let sectors = self.sectors()?;
            if sectors == bytes / 512 {
                return Ok(());
            }
            if Instant::now() >= deadline {
                return Err(io::Error::new(io::ErrorKind::TimedOut, format!("it has {sectors} sectors")));
            }
            sleep(Duration::from_millis(2)).await;
        }
    }

    fn sectors(&self) -> io::Result<u64> {
        let mut text = [0; 32];
        let count = self.length.read_at(&mut text, 0)?;
        let text = std::str::from_utf8(&text[..count]).map_err(io::Error::other)?;
        text.trim().parse().map_err(io::Error::other)
    }
}
