//! Bodies on their way through: one that says when it moves, one that keeps its connection.

use std::pin::Pin;
use std::task::{Context, Poll};

use axum::body::Bytes;
use hyper::body::{Body, Frame, Incoming, SizeHint};
use tokio::sync::watch;
use tokio::time::Instant;
use tokio_util::task::AbortOnDropHandle;

/// A request body that tells when its last frame passed, so that waiting for an answer begins after the upload.
pub(super) struct Upload {
    inner: Incoming,
    moved_at: watch::Sender<Instant>,
}

impl Upload {
    pub(super) fn new(inner: Incoming) -> (Self, watch::Receiver<Instant>) {
        let (moved_at, moves) = watch::channel(Instant::now());
        (Self { inner, moved_at }, moves)
    }
}

impl Body for Upload {
    type Data = Bytes;
    type Error = hyper::Error;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, hyper::Error>>> {
        let polled = Pin::new(&mut self.inner).poll_frame(cx);
        if polled.is_ready() {
            self.moved_at.send_replace(Instant::now());
        }
        polled
    }

    fn is_end_stream(&self) -> bool {
        self.inner.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.inner.size_hint()
    }
}

/// A response body that ends its guest connection when it is dropped: at its end, or as soon as the client leaves.
pub(super) struct Download {
    inner: Incoming,
    _guest: AbortOnDropHandle<()>,
}

impl Download {
    pub(super) fn new(inner: Incoming, guest: AbortOnDropHandle<()>) -> Self {
        Self { inner, _guest: guest }
    }
}

impl Body for Download {
    type Data = Bytes;
    type Error = hyper::Error;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, hyper::Error>>> {
        Pin::new(&mut self.inner).poll_frame(cx)
    }

    fn is_end_stream(&self) -> bool {
        self.inner.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.inner.size_hint()
    }
}
