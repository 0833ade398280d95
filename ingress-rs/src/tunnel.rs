//! A connection that has been upgraded: bytes both ways, no more HTTP.

use std::io;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use hyper::upgrade::OnUpgrade;
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::Instant;
use tracing::debug;

/// Carries bytes between the two upgraded connections until both sides have ended, one fails, or neither has sent anything for `idle`.
///
/// The end of one direction is passed on and the other goes on (half-close).
pub async fn run(client: OnUpgrade, backend: OnUpgrade, idle: Duration) {
    match carry(client, backend, idle).await {
        Ok((up, down)) => debug!(up, down, "tunnel ended"),
        Err(error) => debug!(%error, "tunnel broke off"),
    }
}

async fn carry(client: OnUpgrade, backend: OnUpgrade, idle: Duration) -> io::Result<(u64, u64)> {
    let (client, backend) = tokio::try_join!(client, backend).map_err(io::Error::other)?;
    let last_heard = LastHeard::default();
    let mut client = Heard { inner: TokioIo::new(client), last: last_heard.clone() };
    let mut backend = Heard { inner: TokioIo::new(backend), last: last_heard.clone() };
    tokio::select! {
        result = tokio::io::copy_bidirectional(&mut client, &mut backend) => result,
        () = last_heard.is_older_than(idle) => {
            Err(io::Error::new(io::ErrorKind::TimedOut, format!("no byte either way for {idle:?}")))
        }
    }
}

/// When a byte last came from either side.
#[derive(Clone, Debug)]
struct LastHeard(Arc<Mutex<Instant>>);

impl Default for LastHeard {
    fn default() -> Self {
        LastHeard(Arc::new(Mutex::new(Instant::now())))
    }
}

impl LastHeard {
    fn touch(&self) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Instant::now();
    }

    async fn is_older_than(&self, idle: Duration) {
        loop {
            let deadline = *self.0.lock().unwrap_or_else(PoisonError::into_inner) + idle;
            if deadline <= Instant::now() {
                return;
            }
            tokio::time::sleep_until(deadline).await;
        }
    }
}

/// A stream that notes when something was read from it.
struct Heard<T> {
    inner: T,
    last: LastHeard,
}

impl<T: AsyncRead + Unpin> AsyncRead for Heard<T> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let result = ready!(Pin::new(&mut self.inner).poll_read(cx, buf));
        self.last.touch();
        Poll::Ready(result)
    }
}

impl<T: AsyncWrite + Unpin> AsyncWrite for Heard<T> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.inner).poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_shutdown(cx)
    }
}
