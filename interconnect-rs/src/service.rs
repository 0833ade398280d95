//! The sockets towards clients and services: what a `tcpListener` and a `tcpConnector` are made of.

use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use tokio::net::{TcpListener as TcpSocketListener, TcpSocket, TcpStream, lookup_host};
use tokio::sync::mpsc;
use tokio::time;
use tracing::{info, warn};

use crate::config::{HostPort, TcpConnector, TcpListener};
use crate::router::Event;

/// How long a service may take to accept a connection.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// How long to wait before trying again to listen where it failed, or to accept when the process has no file
/// descriptor left.
const RETRY: Duration = Duration::from_secs(1);

/// Listens for clients for ever and reports each. Dropping the future closes the socket.
pub(crate) async fn accept_clients(listener: TcpListener, events: mpsc::Sender<Event>) {
    let socket = listen_at_last(&listener).await;
    info!(listener = listener.name, at = %listener.at, address = %listener.address, "listening for clients");
    loop {
        match socket.accept().await {
            Ok((client, from)) => {
                set_no_delay(&client);
                if events.send(Event::Client { listener: listener.clone(), client, from }).await.is_err() {
                    return;
                }
            }
            Err(error) => {
                warn!(listener = listener.name, %error, "cannot accept a connection");
                time::sleep(RETRY).await;
            }
        }
    }
}

/// Connects to the service of a connector.
pub(crate) async fn connect(connector: &TcpConnector) -> io::Result<TcpStream> {
    let result = match time::timeout(CONNECT_TIMEOUT, dial(&connector.to)).await {
        Ok(result) => result,
        Err(_) => Err(io::Error::new(io::ErrorKind::TimedOut, format!("no answer within {CONNECT_TIMEOUT:?}"))),
    };
    if let Err(error) = &result {
        let TcpConnector { name, to, address } = connector;
        warn!(connector = name, %address, %to, %error, "cannot connect to the service");
    }
    result
}

/// Dials a host: the first of its addresses that answers.
pub(crate) async fn dial(to: &HostPort) -> io::Result<TcpStream> {
    let stream = TcpStream::connect((to.host.as_str(), to.port)).await?;
    set_no_delay(&stream);
    Ok(stream)
}

/// Listens on the first address of `at`; an empty host is every address of the machine.
pub(crate) async fn listen(at: &HostPort, backlog: u32) -> io::Result<TcpSocketListener> {
    if at.host.is_empty() {
        // A dual-stack socket takes IPv4 too; a kernel without IPv6 cannot make one.
        return listen_on(SocketAddr::from(([0u16; 8], at.port)), backlog)
            .or_else(|_| listen_on(SocketAddr::from(([0u8; 4], at.port)), backlog));
    }
    let address = lookup_host((at.host.as_str(), at.port)).await?.next();
    listen_on(address.ok_or_else(|| io::Error::new(io::ErrorKind::NotFound, "the host has no address"))?, backlog)
}

async fn listen_at_last(listener: &TcpListener) -> TcpSocketListener {
    let mut told = false;
    loop {
        match listen(&listener.at, listener.backlog).await {
            Ok(socket) => return socket,
            Err(error) if !told => {
                warn!(listener = listener.name, at = %listener.at, %error, "cannot listen; trying again until it works");
                told = true;
            }
            Err(_) => {}
        }
        time::sleep(RETRY).await;
    }
}

fn listen_on(address: SocketAddr, backlog: u32) -> io::Result<TcpSocketListener> {
    let socket = if address.is_ipv4() { TcpSocket::new_v4() } else { TcpSocket::new_v6() }?;
    // A restarted router must not wait for its predecessor's connections to be forgotten.
    socket.set_reuseaddr(true)?;
    socket.bind(address)?;
    socket.listen(backlog)
}

/// A router adds no delay of its own: what the sender sent at once is passed on at once.
pub(crate) fn set_no_delay(stream: &TcpStream) {
    // Fails only for a socket that is gone already, which the next read tells.
    let _gone = stream.set_nodelay(true);
}
