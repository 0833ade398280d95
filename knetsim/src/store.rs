//! A cluster's etcd, as the lab itself uses it: the network configuration and the Kubernetes objects go in here.
//!
//! The connection must come from inside a namespace of the lab, and a namespace belongs to a thread: so each cluster has one
//! thread that lives in the namespace of its first etcd member and carries out what the others ask of it.

use std::{
    net::Ipv4Addr,
    sync::mpsc,
    time::{Duration, Instant},
};

use anyhow::{Context, anyhow};
use etcd_client::{Client, Compare, CompareOp, ConnectOptions, Txn, TxnOp};
use linux_net::NetNs;

use crate::lab::{Cluster, ETCD_CLIENT_PORT};

/// How long one request may take before it counts as failed.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(5);

/// A key and its value.
pub type KeyValue = (String, Vec<u8>);

/// What to write, and where the result goes.
struct Request {
    write: Write,
    reply: mpsc::Sender<anyhow::Result<Option<Vec<u8>>>>,
}

enum Write {
    /// These values.
    Put(Vec<KeyValue>),
    /// These values, if the first key is not there or has this value already; else what it has is the result.
    Claim(KeyValue, Vec<KeyValue>),
    /// These keys are removed.
    Delete(Vec<String>),
}

/// A handle on one cluster's etcd.
#[derive(Debug, Clone)]
pub struct Store {
    requests: mpsc::Sender<Request>,
}

impl Store {
    /// Starts the thread. Nothing is connected until the first request.
    ///
    /// # Errors
    ///
    /// When the namespace of the first etcd member cannot be opened or the thread cannot be made.
    pub fn start(cluster: &Cluster) -> anyhow::Result<Self> {
        let member = cluster.etcd.first().ok_or_else(|| anyhow!("cluster {} has no etcd member", cluster.name))?;
        let netns = NetNs::open(&member.name)?;
        let endpoints = cluster.etcd.iter().map(|node| endpoint(node.address)).collect();
        let (requests, queue) = mpsc::channel();
        std::thread::Builder::new()
            .name(format!("{} store", cluster.name))
            .spawn(move || netns.run(move || serve(&queue, &endpoints)))?;
        Ok(Self { requests })
    }

    /// Writes values.
    ///
    /// # Errors
    ///
    /// When etcd does not take them in time.
    pub fn put(&self, values: Vec<KeyValue>) -> anyhow::Result<()> {
        self.ask(Write::Put(values)).map(drop)
    }

    /// Writes values in one transaction with a claim, if nobody else has it. Returns what stands there in another's name.
    ///
    /// # Errors
    ///
    /// When etcd does not take them in time.
    pub fn claim(&self, claim: KeyValue, values: Vec<KeyValue>) -> anyhow::Result<Option<Vec<u8>>> {
        self.ask(Write::Claim(claim, values))
    }

    /// Removes keys; those that are not there are no error.
    ///
    /// # Errors
    ///
    /// When etcd does not take it in time.
    pub fn delete(&self, keys: Vec<String>) -> anyhow::Result<()> {
        self.ask(Write::Delete(keys)).map(drop)
    }

    fn ask(&self, write: Write) -> anyhow::Result<Option<Vec<u8>>> {
        let (reply, answer) = mpsc::channel();
        let ended = || anyhow!("the thread that talks to etcd has ended");
        self.requests.send(Request { write, reply }).map_err(|_| ended())?;
        answer.recv().map_err(|_| ended())?
    }
}

fn endpoint(address: Ipv4Addr) -> String {
    format!("http://{address}:{ETCD_CLIENT_PORT}")
}

fn serve(queue: &mpsc::Receiver<Request>, endpoints: &Vec<String>) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let Ok(runtime) = runtime else { return }; // each request then fails: the thread has ended
    let mut client = None;
    for Request { write, reply } in queue {
        let result = runtime.block_on(retry(&mut client, endpoints, async |client| carry_out(client, &write).await));
        let _ = reply.send(result); // whoever asked may have gone
    }
}

async fn carry_out(client: &mut Client, write: &Write) -> Result<Option<Vec<u8>>, etcd_client::Error> {
    let put = |(key, value): &KeyValue| TxnOp::put(key.as_str(), value.clone(), None);
    match write {
        Write::Put(values) => {
            for (key, value) in values {
                client.put(key.as_str(), value.clone(), None).await?;
            }
            Ok(None)
        }
        Write::Claim(claim, values) => {
            let (key, value) = claim;
            let free = Compare::create_revision(key.as_str(), CompareOp::Equal, 0);
            let ours = Compare::value(key.as_str(), CompareOp::Equal, value.clone());
            for condition in [free, ours] {
                let writes: Vec<TxnOp> = values.iter().chain([claim]).map(put).collect();
                if client.txn(Txn::new().when([condition]).and_then(writes)).await?.succeeded() {
                    return Ok(None);
                }
            }
            let found = client.get(key.as_str(), None).await?;
            Ok(Some(found.kvs().first().map_or_else(Vec::new, |pair| pair.value().to_vec())))
        }
        Write::Delete(keys) => {
            for key in keys {
                client.delete(key.as_str(), None).await?;
            }
            Ok(None)
        }
    }
}

/// Carries out a request, again on a fresh connection when it fails, until [`REQUEST_TIMEOUT`] has passed.
async fn retry<T>(
    client: &mut Option<Client>,
    endpoints: &Vec<String>,
    work: impl AsyncFn(&mut Client) -> Result<T, etcd_client::Error>,
) -> anyhow::Result<T> {
    /// A member that was just restarted needs about this long to be back.
    const PAUSE: Duration = Duration::from_millis(20);
    let deadline = Instant::now() + REQUEST_TIMEOUT;
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        let attempt = async {
            let connection = match client {
                Some(client) => client,
                None => {
                    let options = ConnectOptions::new().with_connect_timeout(left.min(Duration::from_secs(1)));
                    client.insert(Client::connect(endpoints, Some(options)).await?)
                }
            };
            work(connection).await
        };
        let result = tokio::time::timeout(left, attempt).await;
        match result {
            Ok(Ok(value)) => return Ok(value),
            Ok(Err(error)) if Instant::now() + PAUSE >= deadline => {
                return Err(error).with_context(|| format!("ask etcd at {}", endpoints.join(", ")));
            }
            Ok(Err(_)) => {
                *client = None;
                tokio::time::sleep(PAUSE).await;
            }
            Err(_) => {
                *client = None;
                return Err(anyhow!("etcd at {} did not answer within {REQUEST_TIMEOUT:?}", endpoints.join(", ")));
            }
        }
    }
}
