//! One change: from the beginning of a put to etcd to the moment at which the kernel tells of a commit that contains it.
//!
//! Each put replaces an endpoint of one Service by an address that was nowhere before. A socket in the worker's namespace listens to what
//! the kernel tells of nftables (`nft monitor` hears the same), and a thread waits for a message that holds those four bytes, whatever the layout of
//! the table: kproxy-rs writes them into a map, kube-proxy into a rule. The kernel tells after the commit, so a packet would meet
//! the new table by then.

use std::{
    net::Ipv4Addr,
    os::fd::{AsRawFd as _, OwnedFd},
    time::{Duration, Instant},
};

use anyhow::{Context, bail};
use etcd_client::Client;
use linux_net::NetNs;
use nix::{
    errno::Errno,
    sys::{
        socket::{
            AddressFamily, MsgFlags, NetlinkAddr, SockFlag, SockProtocol, SockType, bind, recv, setsockopt, socket,
            sockopt::ReceiveTimeout,
        },
        time::{TimeVal, TimeValLike as _},
    },
};

use super::{proxy::Proxy, services};

/// `NFNLGRP_NFTABLES` of `linux/netfilter/nfnetlink.h`, as a bit.
const NFTABLES_GROUP: u32 = 1 << (7 - 1);
/// As long as the kernel makes its messages at most.
const MESSAGE_BYTES: usize = 64 << 10;
/// How long a change may take.
const PATIENCE: Duration = Duration::from_mins(1);

/// Changes endpoints of one Service after the other, with a pause after each. Returns how long each change took, in milliseconds.
pub(super) async fn measure(
    client: &mut Client,
    proxy: &mut Proxy,
    changes: u32,
    services: u32,
    pause: Duration,
) -> anyhow::Result<Vec<f64>> {
    let mut times = Vec::new();
    for number in 0..changes {
        // Pods connect to the first one, so that it keeps its endpoints, if there are others.
        let service = if services > 1 { 1 + number % (services - 1) } else { 0 };
        let [_, kept] = services::endpoints(service);
        let endpoint = services::changed_endpoint(number);
        let (key, value) = services::slice(service, &[endpoint, kept]);
        let listener = Listener::open(proxy.netns())?;
        let heard = tokio::task::spawn_blocking(move || listener.hear_of(endpoint));
        let began = Instant::now();
        client.put(format!("{}{key}", services::PREFIX), value.to_string(), None).await?;
        let heard = heard.await?.with_context(|| format!("wait for change {number}"))?;
        times.push(super::milliseconds(heard - began));
        proxy.check("a change")?;
        tokio::time::sleep(pause).await;
    }
    Ok(times)
}

/// A socket that hears of every change of nftables in a namespace.
struct Listener(OwnedFd);

impl Listener {
    fn open(netns: &NetNs) -> anyhow::Result<Self> {
        let open = || -> nix::Result<OwnedFd> {
            let protocol = SockProtocol::NetlinkNetFilter;
            let socket = socket(AddressFamily::Netlink, SockType::Raw, SockFlag::SOCK_CLOEXEC, protocol)?;
            bind(socket.as_raw_fd(), &NetlinkAddr::new(0, NFTABLES_GROUP))?;
            setsockopt(&socket, ReceiveTimeout, &TimeVal::seconds(1))?;
            Ok(socket)
        };
        Ok(Self(netns.run(open)?.context("listen to nftables")?))
    }

    /// Waits for a message that holds an address; returns when it came.
    fn hear_of(&self, address: Ipv4Addr) -> anyhow::Result<Instant> {
        let deadline = Instant::now() + PATIENCE;
        let mut message = vec![0; MESSAGE_BYTES];
        while Instant::now() < deadline {
            match recv(self.0.as_raw_fd(), &mut message, MsgFlags::empty()) {
                Ok(length) => {
                    let now = Instant::now();
                    if message[..length].windows(4).any(|bytes| bytes == address.octets()) {
                        return Ok(now);
                    }
                }
                Err(Errno::EAGAIN | Errno::EINTR) => {}
                Err(error) => return Err(error).context("hear of changes of nftables"),
            }
        }
        bail!("the kernel has not told of {address} after {PATIENCE:?}")
    }
}
