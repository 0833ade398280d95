//! Pods on a worker, for traffic: one that connects, and some that answer.

use std::{
    io::Read as _,
    net::{Ipv4Addr, SocketAddrV4, TcpListener, TcpStream},
    time::{Duration, Instant},
};

use anyhow::Context;
use ipnet::{IpNet, Ipv4Net};
use linux_net::{
    IfName, NetNs, Netlink, Op,
    netlink::{Route, Veth},
};
use nix::{
    libc::linger,
    sys::socket::{setsockopt, sockopt::Linger},
};

use super::services::TARGET_PORT;
use crate::lab::Node;

/// The pod that connects. Each worker that is measured has pods of the same addresses, since no two workers ever talk.
const CLIENT: Ipv4Addr = Ipv4Addr::new(11, 0, 0, 1);
/// The pods that may answer.
pub(super) const SERVERS: [Ipv4Addr; 4] =
    [Ipv4Addr::new(11, 0, 0, 2), Ipv4Addr::new(11, 0, 0, 3), Ipv4Addr::new(11, 0, 0, 4), Ipv4Addr::new(11, 0, 0, 5)];
/// The worker's own address among them.
const GATEWAY: Ipv4Addr = Ipv4Addr::new(11, 0, 0, 254);
/// A packet that is lost is sent again after a second: no connection may need that.
const PATIENCE: Duration = Duration::from_millis(900);

/// The pods of one worker.
#[derive(Debug, Clone)]
pub(super) struct Pods {
    client: NetNs,
}

impl Pods {
    /// Attaches a client and all [`SERVERS`] to a bridge of the worker, as the CNI plugins do. Each server accepts connections, and
    /// ends them at once, in a thread that goes on as long as this process.
    pub(super) fn attach(worker: &Node) -> anyhow::Result<Self> {
        let mut netlink = Netlink::open_in(&NetNs::open(&worker.name)?)?;
        let bridge = IfName::new("cni0")?;
        netlink.apply(&Op::AddBridge { name: bridge.clone() })?;
        netlink.apply(&Op::AddAddress { dev: bridge.clone(), address: in_subnet(GATEWAY) })?;
        netlink.apply(&Op::SetUp { dev: bridge.clone() })?;
        let client = attach(&mut netlink, &bridge, worker, CLIENT)?;
        for server in SERVERS {
            serve(&attach(&mut netlink, &bridge, worker, server)?)?;
        }
        Ok(Self { client })
    }

    /// Lets the client do something.
    pub(super) fn as_client<T>(&self, work: impl FnOnce() -> anyhow::Result<T>) -> anyhow::Result<T> {
        self.client.run(work)?
    }
}

/// Connects, waits until the other side has ended the connection, and resets it. Returns how long it took until the connection was there.
///
/// An orderly end would leave the server with a port that is taken for a minute (RFC 9293, section 3.6.1, TIME-WAIT). When the client has
/// used all its ports and begins anew, with another ClusterIP of the same endpoint, its timestamps may look older there, and its SYN is
/// not answered.
pub(super) fn connect(to: SocketAddrV4) -> std::io::Result<Duration> {
    let began = Instant::now();
    let mut stream = TcpStream::connect_timeout(&to.into(), PATIENCE)?;
    let time = began.elapsed();
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.read_to_end(&mut Vec::new())?;
    setsockopt(&stream, Linger, &linger { l_onoff: 1, l_linger: 0 })?;
    Ok(time)
}

/// Makes a pod and a cable to the bridge.
fn attach(netlink: &mut Netlink, bridge: &IfName, worker: &Node, address: Ipv4Addr) -> anyhow::Result<NetNs> {
    let [.., number] = address.octets();
    let pod = NetNs::create(&format!("{}-p{number}", worker.name))?;
    let (port, eth0) = (IfName::new(format!("veth{number}"))?, IfName::new("eth0")?);
    for op in [
        Op::AddVeth(Veth::new(port.clone(), eth0.clone(), Some(&pod))),
        Op::SetMaster { dev: port.clone(), master: Some(bridge.clone()) },
        Op::SetHairpin { dev: port.clone(), on: true },
        Op::SetUp { dev: port },
    ] {
        netlink.apply(&op)?;
    }
    let mut netlink = Netlink::open_in(&pod)?;
    let everywhere = IpNet::V4(Ipv4Net::new_assert(Ipv4Addr::UNSPECIFIED, 0));
    for op in [
        Op::SetUp { dev: IfName::loopback() },
        Op::AddAddress { dev: eth0.clone(), address: in_subnet(address) },
        Op::SetUp { dev: eth0 },
        Op::AddRoute(Route::to(everywhere).via(GATEWAY.into())),
    ] {
        netlink.apply(&op)?;
    }
    Ok(pod)
}

fn serve(pod: &NetNs) -> anyhow::Result<()> {
    let listener = pod.run(|| TcpListener::bind((Ipv4Addr::UNSPECIFIED, TARGET_PORT)))?.context("listen in a pod")?;
    std::thread::Builder::new().name("pod".to_owned()).spawn(move || {
        for stream in listener.incoming() {
            // Whoever has gone meanwhile counts that as its own error.
            drop(stream);
        }
    })?;
    Ok(())
}

fn in_subnet(address: Ipv4Addr) -> IpNet {
    IpNet::V4(Ipv4Net::new_assert(address, 24))
}
