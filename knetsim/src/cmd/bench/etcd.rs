//! A real etcd of one member, with its data in memory.

use std::{
    net::SocketAddr,
    path::Path,
    process::Command,
    time::{Duration, Instant},
};

use anyhow::{Context, bail};
use etcd_client::Client;
use linux_net::NetNs;

use super::process::Process;
use crate::{
    component::{etcd, real_program},
    lab::Node,
};

/// How long etcd may take to elect itself.
const START_TIMEOUT: Duration = Duration::from_secs(30);

/// An etcd that runs; gone with all it knew when this is dropped.
pub(super) struct Etcd {
    _process: Process,
    /// Speaks to it.
    pub(super) client: Client,
}

impl Etcd {
    /// Starts etcd on a node and waits until it answers. The calling thread must be in the node's namespace.
    pub(super) async fn start(member: &Node, directory: &Path) -> anyhow::Result<Self> {
        let netns = NetNs::open(&member.name)?;
        let endpoint = endpoint(member);
        let mut command = Command::new(real_program("etcd")?);
        command
            .arg("--data-dir")
            .arg(directory.join("etcd"))
            .args(["--listen-client-urls", &endpoint, "--advertise-client-urls", &endpoint])
            .args(["--listen-peer-urls", "http://127.0.0.1:2380", "--logger", "zap", "--log-level", "warn"]);
        let process = Process::start(command, &netns, &directory.join("etcd.log"))?;
        let deadline = Instant::now() + START_TIMEOUT;
        while !etcd::is_healthy(&netns, member) {
            if Instant::now() > deadline {
                bail!("etcd is not healthy after {START_TIMEOUT:?}; {}", process.last_words());
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        let client = Client::connect([endpoint], None).await.context("connect to etcd")?;
        Ok(Self { _process: process, client })
    }
}

/// Where a member serves clients.
pub(super) fn endpoint(member: &Node) -> String {
    format!("http://{}", SocketAddr::from((member.address, crate::lab::ETCD_CLIENT_PORT)))
}
