//! One TCP connection and what it is joined to: a stream of a link, or another TCP connection of this router.
//!
//! The two directions run side by side and end each on its own (*half-close*): a client that has sent its request and
//! shut down its writing side still gets the whole answer.

use std::io;
use std::sync::Arc;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::net::tcp::{ReadHalf, WriteHalf};
use tokio::sync::watch;
use tracing::debug;

use crate::config::TcpConnector;
use crate::control::ResetReason;
use crate::metrics::{ConnectionMetrics, Metrics, Side};
use crate::name::Address;
use crate::service;
use crate::transport::LinkStream;

/// First and last size of the buffer for reading a socket: most connections never need more than the first; one that
/// fills it gets twice as much.
const READ_BYTES: (usize, usize) = (4 * 1024, 64 * 1024);

/// Tells a flow to end: set once, with the reason, when its `tcpListener` or `tcpConnector` is taken away or the
/// router stops.
#[derive(Clone, Debug)]
pub(crate) struct Cut(watch::Receiver<Option<ResetReason>>);

impl Cut {
    /// The flow's side, and the one that cuts. When the latter is dropped without a word, the flow lives on.
    pub(crate) fn new() -> (watch::Sender<Option<ResetReason>>, Cut) {
        let (sender, receiver) = watch::channel(None);
        (sender, Cut(receiver))
    }

    async fn wait(&mut self) -> ResetReason {
        let reason = self.0.wait_for(Option::is_some).await.ok().and_then(|reason| *reason);
        match reason {
            Some(reason) => reason,
            None => std::future::pending().await,
        }
    }
}

/// Joins a client's connection to a stream that was opened for it.
pub(crate) async fn serve_client(
    mut client: TcpStream,
    stream: LinkStream,
    address: Address,
    cut: Cut,
    metrics: Arc<Metrics>,
) {
    let counters = metrics.connection(&address, Side::Listener);
    if let Err(reason) = join(&mut client, stream, cut, &counters).await {
        debug!(%address, %reason, "connection of a client cut");
        metrics.was_reset(reason);
        show_end(&client, reason);
    }
}

/// Connects to the service of `connector` for a stream that came over a link, and joins the two.
pub(crate) async fn serve_stream(mut stream: LinkStream, connector: TcpConnector, mut cut: Cut, metrics: Arc<Metrics>) {
    let address = connector.address.clone();
    let connected = tokio::select! {
        connected = service::connect(&connector) => connected,
        // The client has gone before the service was there.
        reason = stream.wait_reset() => return metrics.was_reset(reason),
        reason = cut.wait() => {
            stream.set_drop_reason(reason);
            return metrics.was_reset(reason);
        }
    };
    let Ok(mut service) = connected else {
        metrics.was_reset(ResetReason::ConnectFailed);
        stream.set_drop_reason(ResetReason::ConnectFailed);
        return;
    };
    stream.opened();
    let counters = metrics.connection(&address, Side::Connector);
    if let Err(reason) = join(&mut service, stream, cut, &counters).await {
        debug!(%address, %reason, "connection to a service cut");
        metrics.was_reset(reason);
        show_end(&service, reason);
    }
}

/// Joins a client's connection to a service of this same router.
pub(crate) async fn serve_locally(mut client: TcpStream, connector: TcpConnector, mut cut: Cut, metrics: Arc<Metrics>) {
    let address = connector.address.clone();
    let client_counters = metrics.connection(&address, Side::Listener);
    let Ok(mut service) = service::connect(&connector).await else {
        metrics.was_reset(ResetReason::ConnectFailed);
        return;
    };
    let service_counters = metrics.connection(&address, Side::Connector);
    let (mut client_reader, mut client_writer) = client.split();
    let (mut service_reader, mut service_writer) = service.split();
    let both = async {
        tokio::try_join!(
            copy(&mut client_reader, &mut service_writer, &client_counters, &service_counters),
            copy(&mut service_reader, &mut client_writer, &service_counters, &client_counters),
        )
    };
    let reason = tokio::select! {
        result = both => match result {
            Ok(((), ())) => return,
            Err(_) => ResetReason::ConnectionReset,
        },
        reason = cut.wait() => reason,
    };
    debug!(%address, %reason, "local connection cut");
    metrics.was_reset(reason);
    show_end(&client, reason);
    show_end(&service, reason);
}

/// Carries bytes both ways until both directions have ended.
async fn join(
    socket: &mut TcpStream,
    mut stream: LinkStream,
    mut cut: Cut,
    counters: &ConnectionMetrics,
) -> Result<(), ResetReason> {
    let (reader, writer) = socket.split();
    let both = async { tokio::try_join!(upload(reader, &stream, counters), download(writer, &stream, counters)) };
    let result = tokio::select! {
        result = both => result.map(|((), ())| ()),
        reason = stream.wait_reset() => Err(reason),
        reason = cut.wait() => Err(reason),
    };
    match result {
        Ok(()) => stream.complete(),
        Err(reason) => stream.set_drop_reason(reason),
    }
    result
}

async fn upload(
    mut reader: ReadHalf<'_>,
    stream: &LinkStream,
    counters: &ConnectionMetrics,
) -> Result<(), ResetReason> {
    let mut buffer = vec![0; READ_BYTES.0];
    loop {
        let length = reader.read(&mut buffer).await.map_err(|_| ResetReason::ConnectionReset)?;
        if length == 0 {
            stream.finish();
            return Ok(());
        }
        counters.received.inc_by(length as u64);
        stream.send(&buffer[..length]).await?;
        if length == buffer.len() && length < READ_BYTES.1 {
            buffer.resize(2 * length, 0);
        }
    }
}

async fn download(
    mut writer: WriteHalf<'_>,
    stream: &LinkStream,
    counters: &ConnectionMetrics,
) -> Result<(), ResetReason> {
    while let Some(data) = stream.receive().await? {
        writer.write_all(&data).await.map_err(|_| ResetReason::ConnectionReset)?;
        counters.sent.inc_by(data.len() as u64);
        stream.written(data.len());
    }
    // A peer that has closed its whole socket already makes this fail; there is nothing more to tell it.
    writer
        .shutdown()
        .await
        .or_else(|error| if error.kind() == io::ErrorKind::NotConnected { Ok(()) } else { Err(error) })
        .map_err(|_| ResetReason::ConnectionReset)
}

async fn copy(
    reader: &mut ReadHalf<'_>,
    writer: &mut WriteHalf<'_>,
    from: &ConnectionMetrics,
    to: &ConnectionMetrics,
) -> io::Result<()> {
    let mut buffer = vec![0; READ_BYTES.0];
    loop {
        let length = reader.read(&mut buffer).await?;
        if length == 0 {
            return writer.shutdown().await;
        }
        from.received.inc_by(length as u64);
        writer.write_all(&buffer[..length]).await?;
        to.sent.inc_by(length as u64);
        if length == buffer.len() && length < READ_BYTES.1 {
            buffer.resize(2 * length, 0);
        }
    }
}

/// Makes the end of the connection show what happened: an orderly EOF if it never reached a service, a reset if it
/// was cut.
fn show_end(socket: &TcpStream, reason: ResetReason) {
    if !reason.never_connected() {
        // Fails only for a socket that is gone already.
        let _gone = socket.set_zero_linger();
    }
}
