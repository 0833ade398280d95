//! One client's socket, with clocks on it.
//!
//! hyper reads and writes this socket and knows what a message is; it has one clock for "head or idle". A server facing
//! strangers wants three, and a careful end, so they are here, below hyper:
//!
//! ```text
//!            first byte of a head            head complete             response handed over
//!   Idle ────────────────────────▶ Head ───────────────────▶ Busy ───────────────────────▶ Idle
//!   keep_alive: quiet end          client_head: cut          bodies have their own clocks (body.rs)
//! ```
//!
//! - `client_head` runs from the first byte of a head and is not prolonged by further bytes: a client that sends one byte every
//!   few seconds (slowloris) is cut off all the same.
//! - A client that does not read its response is cut off after `body_idle`: the write has stalled.
//! - When a request body was left unread, closing at once would make the kernel answer the unread bytes with a reset, which can
//!   destroy the response on its way. So the socket first says that it is done writing, and reads on for a moment
//!   (RFC 9112 §9.6, "lingering close").

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU8, Ordering};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::{Instant, Sleep};

/// How long a lingering close goes on reading. Long enough for what was in flight, short enough not to be a burden.
const LINGER: Duration = Duration::from_secs(2);

const IDLE: u8 = 0;
const HEAD: u8 = 1;
const BUSY: u8 = 2;
const TUNNEL: u8 = 3;

/// Where the conversation with one client is; shared between its socket and its requests.
#[derive(Clone, Debug)]
pub struct Conversation(Arc<State>);

// Only the tasks of one worker thread touch this, so the order of the atomic operations is the order of the program.
#[derive(Debug)]
struct State {
    phase: AtomicU8,
    unread: AtomicBool,
}

impl Default for Conversation {
    /// A new connection has to send a head soon.
    fn default() -> Self {
        Conversation(Arc::new(State { phase: AtomicU8::new(HEAD), unread: AtomicBool::new(false) }))
    }
}

impl Conversation {
    /// A head is complete: it is the ingress's turn until the returned value is dropped.
    #[must_use]
    pub fn begin_turn(&self) -> Turn {
        self.0.phase.store(BUSY, Ordering::Relaxed);
        Turn(self.clone())
    }

    /// The connection becomes a tunnel, which has its own clock; the end of the turn does not make it idle.
    pub fn become_tunnel(&self) {
        self.0.phase.store(TUNNEL, Ordering::Relaxed);
    }

    /// Part of a request body was not read: the connection ends, with a lingering close.
    pub fn left_unread(&self) {
        self.0.unread.store(true, Ordering::Relaxed);
    }

    fn phase(&self) -> u8 {
        self.0.phase.load(Ordering::Relaxed)
    }
}

/// The ingress's turn to speak; ends when dropped.
#[derive(Debug)]
pub struct Turn(Conversation);

impl Drop for Turn {
    fn drop(&mut self) {
        let _ = self.0.0.phase.compare_exchange(BUSY, IDLE, Ordering::Relaxed, Ordering::Relaxed);
    }
}

/// The clocks of a client's socket.
#[derive(Clone, Copy, Debug)]
pub struct Clocks {
    /// From the first byte of a head to its end.
    pub client_head: Duration,
    /// Between two requests.
    pub keep_alive: Duration,
    /// A client that does not take what is written.
    pub write_stall: Duration,
}

/// A client's socket `T`, with clocks; `G` is whatever shall live exactly as long as the socket.
#[derive(Debug)]
pub struct ClientIo<T, G> {
    inner: T,
    conversation: Conversation,
    clocks: Clocks,
    head_deadline: Option<Instant>,
    idle_deadline: Option<Instant>,
    write_deadline: Option<Instant>,
    linger_deadline: Option<Instant>,
    read_timer: Timer,
    write_timer: Timer,
    _guard: G,
}

impl<T, G> ClientIo<T, G> {
    /// Wraps a freshly accepted socket.
    pub fn new(inner: T, conversation: Conversation, clocks: Clocks, guard: G) -> Self {
        ClientIo {
            inner,
            conversation,
            clocks,
            head_deadline: None,
            idle_deadline: None,
            write_deadline: None,
            linger_deadline: None,
            read_timer: Timer::default(),
            write_timer: Timer::default(),
            _guard: guard,
        }
    }

    /// The client has sent something.
    fn heard(&mut self) {
        self.idle_deadline = None;
        if self.conversation.phase() == IDLE {
            self.conversation.0.phase.store(HEAD, Ordering::Relaxed);
            self.head_deadline = Some(Instant::now() + self.clocks.client_head);
        }
    }

    /// The client is silent: whether that has lasted too long.
    fn poll_silence(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.conversation.phase() {
            IDLE => {
                self.head_deadline = None;
                let deadline = *self.idle_deadline.get_or_insert_with(|| Instant::now() + self.clocks.keep_alive);
                ready!(self.read_timer.poll(cx, deadline));
                // Nothing is under way, so this is an ordinary end, as if the client had closed.
                Poll::Ready(Ok(()))
            }
            HEAD => {
                let deadline = *self.head_deadline.get_or_insert_with(|| Instant::now() + self.clocks.client_head);
                ready!(self.read_timer.poll(cx, deadline));
                Poll::Ready(Err(io::Error::new(io::ErrorKind::TimedOut, "the client did not complete a request head")))
            }
            _ => {
                self.head_deadline = None;
                self.idle_deadline = None;
                Poll::Pending
            }
        }
    }

    fn poll_written(&mut self, cx: &mut Context<'_>, written: Poll<io::Result<usize>>) -> Poll<io::Result<usize>> {
        if written.is_ready() {
            self.write_deadline = None;
            return written;
        }
        let deadline = *self.write_deadline.get_or_insert_with(|| Instant::now() + self.clocks.write_stall);
        ready!(self.write_timer.poll(cx, deadline));
        Poll::Ready(Err(io::Error::new(io::ErrorKind::TimedOut, "the client does not read its response")))
    }
}

impl<T: AsyncRead + Unpin, G: Unpin> AsyncRead for ClientIo<T, G> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        match Pin::new(&mut self.inner).poll_read(cx, buf) {
            Poll::Ready(result) => {
                self.heard();
                Poll::Ready(result)
            }
            Poll::Pending => self.poll_silence(cx),
        }
    }
}

impl<T: AsyncRead + AsyncWrite + Unpin, G: Unpin> AsyncWrite for ClientIo<T, G> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.inner).poll_write(cx, buf);
        self.poll_written(cx, written)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.inner).poll_write_vectored(cx, bufs);
        self.poll_written(cx, written)
    }

    fn is_write_vectored(&self) -> bool {
        self.inner.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = &mut *self;
        if this.linger_deadline.is_none() {
            ready!(Pin::new(&mut this.inner).poll_shutdown(cx))?;
            if !this.conversation.0.unread.load(Ordering::Relaxed) {
                return Poll::Ready(Ok(()));
            }
        }
        let deadline = *this.linger_deadline.get_or_insert_with(|| Instant::now() + LINGER);
        let mut scratch = [0; 8192];
        loop {
            let mut buf = ReadBuf::new(&mut scratch);
            match Pin::new(&mut this.inner).poll_read(cx, &mut buf) {
                Poll::Ready(Ok(())) if !buf.filled().is_empty() && Instant::now() < deadline => {}
                // The end of the client's stream, its reset, or enough: all are the end of this connection.
                Poll::Ready(_) => return Poll::Ready(Ok(())),
                Poll::Pending => return this.read_timer.poll(cx, deadline).map(Ok),
            }
        }
    }
}

/// A timer that is moved rarely: an early awakening is cheaper than moving it with every request.
#[derive(Debug, Default)]
struct Timer(Option<Pin<Box<Sleep>>>);

impl Timer {
    /// Ready once `deadline` has passed; otherwise wakes the task then, or sooner.
    fn poll(&mut self, cx: &mut Context<'_>, deadline: Instant) -> Poll<()> {
        let sleep = self.0.get_or_insert_with(|| Box::pin(tokio::time::sleep_until(deadline)));
        if sleep.deadline() > deadline {
            sleep.as_mut().reset(deadline);
        }
        loop {
            ready!(sleep.as_mut().poll(cx));
            if sleep.deadline() >= deadline {
                return Poll::Ready(());
            }
            sleep.as_mut().reset(deadline);
        }
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream, duplex};

    use super::*;

    fn pair() -> (DuplexStream, ClientIo<DuplexStream, ()>, Conversation) {
        let (client, server) = duplex(16);
        let conversation = Conversation::default();
        let second = Duration::from_secs(1);
        let clocks = Clocks { client_head: 15 * second, keep_alive: 75 * second, write_stall: 60 * second };
        (client, ClientIo::new(server, conversation.clone(), clocks, ()), conversation)
    }

    #[tokio::test(start_paused = true)]
    async fn a_head_in_drops_does_not_prolong_its_time() {
        let (mut client, mut io, _conversation) = pair();
        let start = Instant::now();
        let dripping = tokio::spawn(async move {
            while client.write_all(b"G").await.is_ok() {
                tokio::time::sleep(Duration::from_secs(4)).await;
            }
        });
        let mut buf = [0; 8];
        let error = loop {
            if let Err(error) = io.read(&mut buf).await {
                break error;
            }
        };
        assert_eq!(error.kind(), io::ErrorKind::TimedOut);
        assert_eq!(start.elapsed().as_secs(), 15);
        dripping.abort();
    }

    #[tokio::test(start_paused = true)]
    async fn an_idle_connection_ends_quietly_and_a_busy_one_does_not() {
        let (mut client, mut io, conversation) = pair();
        let mut buf = [0; 8];
        client.write_all(b"GET").await.unwrap();
        assert_eq!(io.read(&mut buf).await.unwrap(), 3);
        let turn = conversation.begin_turn();
        let busy = tokio::time::timeout(Duration::from_secs(1000), io.read(&mut buf)).await;
        assert!(busy.is_err(), "no clock runs below hyper while the ingress has its turn");
        drop(turn);
        let start = Instant::now();
        assert_eq!(io.read(&mut buf).await.unwrap(), 0);
        assert_eq!(start.elapsed().as_secs(), 75);
    }

    #[tokio::test(start_paused = true)]
    async fn a_client_that_does_not_read_is_cut_off() {
        let (_client, mut io, _conversation) = pair();
        let start = Instant::now();
        let error = io.write_all(&[0; 64]).await.unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::TimedOut);
        assert_eq!(start.elapsed().as_secs(), 60);
    }

    #[tokio::test(start_paused = true)]
    async fn a_socket_with_an_unread_body_lingers_before_it_closes() {
        let (mut client, mut io, conversation) = pair();
        conversation.left_unread();
        client.write_all(b"unread").await.unwrap();
        let start = Instant::now();
        io.shutdown().await.unwrap();
        assert_eq!(start.elapsed(), LINGER);
        let (_client, mut io, _conversation) = pair();
        let start = Instant::now();
        io.shutdown().await.unwrap();
        assert_eq!(start.elapsed(), Duration::ZERO);
    }
}
