//! Servers in pods, and clients that ask them.

use std::collections::BTreeMap;
use std::io::{ErrorKind, Read, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use linux_net::NetNs;

use super::program::{self, Program};
use super::{AT_ONCE, PATIENCE};

/// Answers each connection to `port` of a pod, of either family, with the pod's name and the client's address, then with what the client sends.
pub(crate) fn serve_tcp(pod: &NetNs, port: u16) {
    serve_tcp_as(pod.name().to_owned(), pod, port);
}

/// As [`serve_tcp`], with another name.
pub(crate) fn serve_tcp_as(name: String, pod: &NetNs, port: u16) {
    let listener = pod.run(|| TcpListener::bind((Ipv6Addr::UNSPECIFIED, port)).unwrap()).unwrap();
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let (mut stream, name) = (stream.unwrap(), name.clone());
            std::thread::spawn(move || {
                let client = stream.peer_addr()?.ip().to_canonical();
                stream.write_all(format!("{name} {client}\n").as_bytes())?;
                std::io::copy(&mut stream.try_clone()?, &mut stream)
            });
        }
    });
}

/// Answers each datagram to `port` of a pod, of either family, with the pod's name and the client's address.
pub(crate) fn serve_udp(pod: &NetNs, port: u16) {
    let name = pod.name().to_owned();
    // A socket for each family: the answer of one for both would leave with the wrong address.
    for address in [IpAddr::from(Ipv4Addr::UNSPECIFIED), IpAddr::from(pod_address6(pod))] {
        let socket = pod.run(|| UdpSocket::bind((address, port)).unwrap()).unwrap();
        let name = name.clone();
        std::thread::spawn(move || {
            let mut buffer = [0; 64];
            while let Ok((_, client)) = socket.recv_from(&mut buffer) {
                let _ = socket.send_to(format!("{name} {}", client.ip()).as_bytes(), client);
            }
        });
    }
}

/// Answers HTTP requests to `port` of a pod, one to a connection.
pub(crate) fn serve_http(pod: &NetNs, port: u16) {
    let listener = pod.run(|| TcpListener::bind((Ipv6Addr::UNSPECIFIED, port)).unwrap()).unwrap();
    std::thread::spawn(move || {
        for mut stream in listener.incoming().flatten() {
            let mut buffer = [0; 1024];
            // One that connects and says nothing is not waited for any longer.
            let _ = stream.set_read_timeout(Some(AT_ONCE));
            if stream.read(&mut buffer).is_ok_and(|length| length > 0) {
                let _ = stream.write_all(b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 2\r\n\r\nok");
            }
        }
    });
}

/// The IPv6 address of a pod, whose name is `p` and its number.
fn pod_address6(pod: &NetNs) -> Ipv6Addr {
    let number: u16 = pod.name().trim_start_matches('p').parse().unwrap();
    Ipv6Addr::new(0xfd00, 0x11, 0, 0, 0, 0, 0, number)
}

/// Connects from a namespace, and waits for an answer no longer than [`PATIENCE`].
///
/// The connection itself must not take long: a packet that is sent before its Service is served makes conntrack remember the connection as
/// not translated, and its repetitions go nowhere. The next attempt, from another port, is a new connection.
pub(crate) fn connect(from: &NetNs, to: &str) -> std::io::Result<TcpStream> {
    let to: SocketAddr = to.parse().unwrap();
    let stream = from.run(|| TcpStream::connect_timeout(&to, 2 * AT_ONCE)).unwrap()?;
    stream.set_read_timeout(Some(PATIENCE))?;
    Ok(stream)
}

/// The greeting of [`serve_tcp`]: the pod and the address it sees.
pub(crate) fn greeting(mut stream: &TcpStream) -> std::io::Result<(String, String)> {
    let mut line = Vec::new();
    let mut byte = [0];
    while stream.read(&mut byte)? == 1 && byte != *b"\n" {
        line.push(byte[0]);
    }
    split(&line)
}

/// Sends some bytes over a connection to [`serve_tcp`] and says whether they come back.
pub(crate) fn echoes(mut stream: &TcpStream) -> bool {
    let mut echo = [0; 5];
    stream.write_all(b"still").is_ok() && stream.read_exact(&mut echo).is_ok() && &echo == b"still"
}

/// Connects and returns which pod answers, and whom it sees.
pub(crate) fn ask(from: &NetNs, to: &str) -> std::io::Result<(String, String)> {
    greeting(&connect(from, to)?)
}

/// Connects so many times, and counts the answers by pod.
pub(crate) fn count(from: &NetNs, to: &str, times: u32) -> BTreeMap<String, u32> {
    let mut answers = BTreeMap::new();
    for _ in 0..times {
        *answers.entry(ask(from, to).unwrap().0).or_default() += 1;
    }
    answers
}

/// Says whether it is these pods that answer, all of them and no others.
///
/// Of three endpoints, twenty-five connections miss one in 1 of 8,000 runs; `eventually` asks again then.
pub(crate) fn answer(from: &NetNs, to: &str, pods: &[u8]) -> bool {
    let mut found: Vec<String> = (0..25).map_while(|_| Some(ask(from, to).ok()?.0)).collect();
    found.sort();
    found.dedup();
    let mut expected: Vec<String> = pods.iter().map(|n| format!("p{n}")).collect();
    expected.sort();
    found == expected
}

/// A UDP socket that keeps its port, as a resolver does.
pub(crate) struct UdpClient(UdpSocket);

impl UdpClient {
    /// Opens one in a namespace; everything it sends goes to `to`.
    pub(crate) fn new(from: &NetNs, to: &str, patience: Duration) -> Self {
        let to: SocketAddr = to.parse().unwrap();
        let any = if to.is_ipv4() { IpAddr::from(Ipv4Addr::UNSPECIFIED) } else { Ipv6Addr::UNSPECIFIED.into() };
        let socket = from.run(|| UdpSocket::bind((any, 0)).unwrap()).unwrap();
        socket.set_read_timeout(Some(patience)).unwrap();
        socket.connect(to).unwrap();
        Self(socket)
    }

    /// Sends a datagram and returns which pod answers, and whom it sees.
    pub(crate) fn ask(&self) -> std::io::Result<(String, String)> {
        self.0.send(b"who?")?;
        let mut buffer = [0; 64];
        let length = self.0.recv(&mut buffer)?;
        split(&buffer[..length])
    }

    /// Which pod answers, if any does.
    pub(crate) fn pod(&self) -> Option<String> {
        Some(self.ask().ok()?.0)
    }
}

/// Sends a datagram from a new socket and returns which pod answers, and whom it sees.
pub(crate) fn ask_udp(from: &NetNs, to: &str) -> std::io::Result<(String, String)> {
    UdpClient::new(from, to, 2 * AT_ONCE).ask()
}

/// Says whether a connection is refused, and at once.
///
/// kube-proxy refuses by ICMP, of which the kernel sends a client one a second at most (`net.ipv4.icmp_ratelimit`): one that has been
/// refused something shortly before waits until its SYN is repeated.
pub(crate) fn is_refused(from: &NetNs, to: &str) -> bool {
    let start = Instant::now();
    let result = ask(from, to);
    let is_in_time = start.elapsed() < AT_ONCE || program::tested() == Program::KubeProxy;
    result.is_err_and(|error| error.kind() == ErrorKind::ConnectionRefused) && is_in_time
}

/// Says whether a datagram is refused.
pub(crate) fn is_refused_udp(from: &NetNs, to: &str) -> bool {
    ask_udp(from, to).is_err_and(|error| error.kind() == ErrorKind::ConnectionRefused)
}

/// Says whether a connection gets no answer at all.
pub(crate) fn is_dropped(from: &NetNs, to: &str) -> bool {
    ask(from, to).is_err_and(|error| error.kind() == ErrorKind::TimedOut)
}

/// Says whether one ping is answered.
pub(crate) fn pings(from: &NetNs, to: &str) -> bool {
    from.run(|| Command::new("ping").args(["-n", "-c1", "-W1", to]).stdout(Stdio::null()).status().unwrap().success())
        .unwrap()
}

fn split(line: &[u8]) -> std::io::Result<(String, String)> {
    let line = String::from_utf8_lossy(line);
    let (pod, client) = line.split_once(' ').ok_or(ErrorKind::UnexpectedEof)?;
    Ok((pod.to_owned(), client.to_owned()))
}
