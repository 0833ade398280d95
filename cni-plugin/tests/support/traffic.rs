//! Small servers and clients in namespaces: who is reached by whom, and whose address do they see?

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::time::{Duration, Instant};

use linux_net::NetNs;

use super::{netns, sh};

const TIMEOUT: Duration = Duration::from_millis(800);

/// Runs in a named namespace, or in the node's for `""`.
pub(crate) fn within<T>(netns: &str, f: impl FnOnce() -> T) -> T {
    if netns.is_empty() { f() } else { NetNs::open(netns).unwrap().run(f).unwrap() }
}

/// Serves TCP in a namespace until the test ends: tells each client its name and the address it sees the client by.
pub(crate) fn serve(netns: &str, name: &'static str, address: &str) {
    let listener = within(netns, || TcpListener::bind(address).unwrap());
    std::thread::spawn(move || {
        while let Ok((mut stream, peer)) = listener.accept() {
            let _ = write!(stream, "{name} {}", peer.ip());
        }
    });
}

/// Serves UDP the same way.
pub(crate) fn serve_udp(netns: &str, name: &'static str, address: &str) {
    let socket = within(netns, || UdpSocket::bind(address).unwrap());
    std::thread::spawn(move || {
        let mut buffer = [0; 64];
        while let Ok((_, peer)) = socket.recv_from(&mut buffer) {
            let _ = socket.send_to(name.as_bytes(), peer);
        }
    });
}

/// What a server tells a client of that namespace; empty when it is not reached.
pub(crate) fn ask(netns: &str, server: &str) -> String {
    let server: SocketAddr = server.parse().unwrap();
    let mut answer = String::new();
    if let Ok(mut stream) = within(netns, || TcpStream::connect_timeout(&server, TIMEOUT)) {
        stream.set_read_timeout(Some(TIMEOUT)).unwrap();
        let _ = stream.read_to_string(&mut answer);
    }
    answer
}

pub(crate) fn ask_udp(socket: &UdpSocket, server: &str) -> String {
    socket.set_read_timeout(Some(Duration::from_millis(500))).unwrap();
    let mut buffer = [0; 64];
    socket.send_to(b"?", server).unwrap();
    socket.recv(&mut buffer).map(|length| String::from_utf8_lossy(&buffer[..length]).into_owned()).unwrap_or_default()
}

/// IPv6 addresses work after duplicate address detection only, on this node and outside.
pub(crate) fn wait_for_dad() {
    let deadline = Instant::now() + Duration::from_secs(10);
    while !sh("ip -6 addr show tentative; ip -n outside -6 addr show tentative").is_empty() {
        assert!(Instant::now() < deadline, "addresses stay tentative");
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// Makes the namespace `outside`, `192.0.2.2` and `2001:db8::2`, on a cable to this one, `192.0.2.1` and `2001:db8::1`; it has no route to anything else.
pub(crate) fn outside() {
    netns("outside");
    sh("ip link set lo up; ip link add up0 type veth peer name up1 netns outside");
    sh("ip addr add 192.0.2.1/24 dev up0; ip addr add 2001:db8::1/64 dev up0 nodad; ip link set up0 up");
    sh("ip -n outside addr add 192.0.2.2/24 dev up1; ip -n outside addr add 2001:db8::2/64 dev up1 nodad");
    sh("ip -n outside link set up1 up; ip -n outside link set lo up");
}
