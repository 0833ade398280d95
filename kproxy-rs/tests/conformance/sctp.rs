//! SCTP. Kernels without SCTP sockets translate it all the same, so the packets are made by hand: an INIT from a client, an ABORT in answer.

use std::io::Read;
use std::net::{Ipv4Addr, SocketAddrV4};
use std::time::{Duration, Instant};

use linux_net::NetNs;
use serde_json::json;
use socket2::{Domain, Protocol, Socket, Type};

use crate::support::{AT_ONCE, Lab, eventually};
use crate::{VIP, is_done};

/// The port of the client.
const CLIENT: u16 = 40_000;

/// A raw socket: it sends and receives all SCTP packets of a namespace.
struct Sctp(Socket);

/// An SCTP packet as somebody receives it.
#[derive(Debug, PartialEq, Eq)]
struct Packet {
    source: SocketAddrV4,
    to_port: u16,
    chunk: u8,
}

const INIT: u8 = 1;
const ABORT: u8 = 6;

impl Sctp {
    fn open(host: &NetNs) -> Self {
        let socket = host.run(|| Socket::new(Domain::IPV4, Type::RAW, Some(Protocol::from(132))).unwrap()).unwrap();
        socket.set_read_timeout(Some(Duration::from_millis(100))).unwrap();
        Self(socket)
    }

    /// Sends a packet of one chunk.
    fn send(&self, from_port: u16, to: SocketAddrV4, chunk: u8) {
        // Source: RFC 9260, sections 3.1, 3.3.2 (INIT: tag, window, streams, first number) and 3.3.7 (ABORT: the tag is the one that the INIT gave).
        let mut packet = [from_port.to_be_bytes(), to.port().to_be_bytes()].concat();
        let tag = 7_u32;
        match chunk {
            INIT => {
                packet.extend([0; 8]);
                packet.extend([INIT, 0, 0, 20]);
                packet
                    .extend([tag.to_be_bytes(), 65_536_u32.to_be_bytes(), [0, 1, 0, 1], 1_u32.to_be_bytes()].concat());
            }
            _ => {
                packet.extend(tag.to_be_bytes());
                packet.extend([0; 4]);
                packet.extend([chunk, 0, 0, 4]);
            }
        }
        let sum = crc32c(&packet).to_le_bytes();
        packet[8..12].copy_from_slice(&sum);
        self.0.send_to(&packet, &SocketAddrV4::new(*to.ip(), 0).into()).unwrap();
    }

    /// The next packet, if one comes soon.
    fn receive(&self) -> Option<Packet> {
        let mut buffer = [0; 256];
        let length = (&self.0).read(&mut buffer).ok()?;
        let header = usize::from(buffer[0] & 0x0f) * 4;
        let (ip, sctp) = buffer[..length].split_at(header);
        let port = |at: usize| u16::from_be_bytes([sctp[at], sctp[at + 1]]);
        let source = SocketAddrV4::new(Ipv4Addr::new(ip[12], ip[13], ip[14], ip[15]), port(0));
        Some(Packet { source, to_port: port(2), chunk: sctp[12] })
    }
}

/// The checksum of SCTP. Source: RFC 9260, appendix A.
fn crc32c(bytes: &[u8]) -> u32 {
    let step = |sum: u32, _| if sum & 1 == 1 { sum >> 1 ^ 0x82f6_3b78 } else { sum >> 1 };
    !bytes.iter().fold(!0, |sum, byte| (0..8).fold(sum ^ u32::from(*byte), step))
}

#[test]
fn sctp_is_translated_there_and_back_and_refused_where_nobody_is() {
    if is_done() {
        return;
    }
    assert_eq!(crc32c(b"123456789"), 0xe306_9283, "the check value of RFC 3720, appendix B.4");
    let lab = Lab::new(2);
    let port = |number: u16| json!({"name": "diameter", "port": number, "protocol": "SCTP"});
    lab.put_service("aaa", &json!({"clusterIP": VIP, "ports": [port(3868)]}));
    lab.put_slice("aaa", &[port(13868)], &[1]);
    eventually("the Service is in the table", || lab.tables().contains("11.0.0.1"));
    let (client, server) = (Sctp::open(lab.pod(2)), Sctp::open(lab.pod(1)));
    let vip = SocketAddrV4::new(VIP.parse().unwrap(), 3868);
    client.send(CLIENT, vip, INIT);
    let arrived = server.receive().expect("the INIT reaches the endpoint");
    let seen = SocketAddrV4::new(Ipv4Addr::new(11, 0, 0, 2), CLIENT);
    assert_eq!(
        arrived,
        Packet { source: seen, to_port: 13868, chunk: INIT },
        "the pod's own address, the endpoint's port"
    );
    server.send(13868, seen, ABORT);
    let answered = client.receive().expect("the answer reaches the client");
    assert_eq!(answered, Packet { source: vip, to_port: CLIENT, chunk: ABORT }, "the answer comes from the ClusterIP");
    // Without endpoints the worker answers itself, with ICMP.
    let icmp = lab.pod(2).run(|| Socket::new(Domain::IPV4, Type::RAW, Some(Protocol::ICMPV4)).unwrap()).unwrap();
    icmp.set_read_timeout(Some(AT_ONCE)).unwrap();
    lab.put_slice("aaa", &[port(13868)], &[]);
    eventually("the endpoint is gone", || !lab.tables().contains("11.0.0.1"));
    client.send(CLIENT + 1, vip, INIT);
    let (mut buffer, deadline) = ([0; 256], Instant::now() + AT_ONCE);
    let unreachable = std::iter::from_fn(|| (&icmp).read(&mut buffer).ok().map(|_| (buffer[20], buffer[21])));
    let refused = unreachable.take_while(|_| Instant::now() < deadline).any(|found| found == (3, 3));
    assert!(refused, "port unreachable");
    assert_eq!(server.receive(), None);
}
