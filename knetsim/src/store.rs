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
use etcd_client::{Client, ConnectOptions, GetOptions};
use linux_net::NetNs;

use crate::lab::{Cluster, ETCD_CLIENT_PORT};

/// How long one request may take before it counts as failed.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(5);

/// A key and its value.
pub type KeyValue = (String, Vec<u8>);

type Reply<T> = mpsc::Sender<anyhow::Result<T>>;

enum Request {
    Put(Vec<KeyValue>, Reply<()>),
    List(String, Reply<Vec<KeyValue>>),
    Delete(String, Reply<bool>),
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
        self.ask(|reply| Request::Put(values, reply))
    }

    /// Reads all values below a prefix, in the order of their keys.
    ///
    /// # Errors
    ///
    /// When etcd does not answer in time.
    pub fn list(&self, prefix: &str) -> anyhow::Result<Vec<KeyValue>> {
        self.ask(|reply| Request::List(prefix.to_owned(), reply))
    }

    /// Removes a key; returns whether it was there.
    ///
    /// # Errors
    ///
    /// When etcd does not answer in time.
    pub fn delete(&self, key: &str) -> anyhow::Result<bool> {
        self.ask(|reply| Request::Delete(key.to_owned(), reply))
    }

    fn ask<T>(&self, request: impl FnOnce(Reply<T>) -> Request) -> anyhow::Result<T> {
        let (reply, answer) = mpsc::channel();
        self.requests.send(request(reply)).map_err(|_| anyhow!("the thread that talks to etcd has ended"))?;
        answer.recv().map_err(|_| anyhow!("the thread that talks to etcd has ended"))?
    }
}

fn endpoint(address: Ipv4Addr) -> String {
    format!("http://{address}:{ETCD_CLIENT_PORT}")
}

fn serve(queue: &mpsc::Receiver<Request>, endpoints: &Vec<String>) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let Ok(runtime) = runtime else { return }; // each request then fails: the thread has ended
    let mut client = None;
    for request in queue {
        runtime.block_on(async {
            match request {
                Request::Put(values, reply) => {
                    let result = retry(&mut client, endpoints, async |client| {
                        for (key, value) in &values {
                            client.put(key.as_str(), value.clone(), None).await?;
                        }
                        Ok(())
                    });
                    let _ = reply.send(result.await);
                }
                Request::List(prefix, reply) => {
                    let result = retry(&mut client, endpoints, async |client| {
                        let options = GetOptions::new().with_prefix();
                        let response = client.get(prefix.as_str(), Some(options)).await?;
                        let values = response.kvs().iter();
                        Ok(values
                            .map(|kv| (String::from_utf8_lossy(kv.key()).into_owned(), kv.value().to_vec()))
                            .collect())
                    });
                    let _ = reply.send(result.await);
                }
                Request::Delete(key, reply) => {
                    let result = retry(&mut client, endpoints, async |client| {
                        Ok(client.delete(key.as_str(), None).await?.deleted() > 0)
                    });
                    let _ = reply.send(result.await);
                }
            }
        });
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
