//! A client of a cluster's API: what `apply`, `get`, `delete` and `scale` speak with.

use std::net::SocketAddr;

use anyhow::{Context, anyhow};
use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper::{
    Method, Request,
    header::{ACCEPT, CONTENT_TYPE, HOST, WARNING},
};
use hyper_util::rt::TokioIo;
use linux_net::NetNs;
use serde_json::Value;

use crate::{
    component::{self, apiserver},
    lab::Cluster,
};

/// How a cluster's API is reached: its address, and a namespace from which it can be.
pub struct Client {
    netns: NetNs,
    address: SocketAddr,
    runtime: tokio::runtime::Runtime,
}

/// What the API said.
#[derive(Debug)]
pub struct Answer {
    /// The HTTP status.
    pub code: u16,
    /// The object, list, table, or `Status`.
    pub body: Value,
    /// What it warns of.
    pub warnings: Vec<String>,
}

impl Client {
    /// A client of a cluster, for a process inside the lab.
    ///
    /// # Errors
    ///
    /// When the node of the API has no namespace.
    pub fn new(cluster: &Cluster) -> anyhow::Result<Self> {
        let node = apiserver::node(cluster)?;
        let runtime =
            tokio::runtime::Builder::new_current_thread().enable_all().build().context("start the runtime")?;
        Ok(Self { netns: NetNs::open(&node.name)?, address: apiserver::address(node), runtime })
    }

    /// Asks; `accept` is the form in which the answer is wanted.
    ///
    /// # Errors
    ///
    /// When the API does not answer in HTTP and JSON. A refusal is an [`Answer`].
    pub fn ask(
        &self,
        method: Method,
        path: &str,
        accept: &str,
        body: Option<(&str, &Value)>,
    ) -> anyhow::Result<Answer> {
        let stream = component::connect(&self.netns, self.address).context("does the API server run? `status` says")?;
        stream.set_nonblocking(true)?;
        let what = format!("{method} {path}");
        let mut request =
            Request::builder().method(method).uri(path).header(HOST, self.address.to_string()).header(ACCEPT, accept);
        if let Some((content_type, _)) = body {
            request = request.header(CONTENT_TYPE, content_type);
        }
        let content = body.map(|(_, value)| Bytes::from(value.to_string())).unwrap_or_default();
        let request = request.body(Full::new(content))?;
        self.runtime.block_on(async {
            let stream = TokioIo::new(tokio::net::TcpStream::from_std(stream)?);
            let (mut sender, connection) = hyper::client::conn::http1::handshake(stream).await?;
            let connection = tokio::spawn(connection);
            let response = sender.send_request(request).await.with_context(|| what.clone())?;
            let code = response.status().as_u16();
            let warnings =
                response.headers().get_all(WARNING).iter().filter_map(|value| warning(value.to_str().ok()?)).collect();
            let body = response.into_body().collect().await.with_context(|| what.clone())?.to_bytes();
            connection.abort();
            let body =
                serde_json::from_slice(&body).map_err(|error| anyhow!("{what}: the answer is no JSON: {error}"))?;
            Ok(Answer { code, body, warnings })
        })
    }
}

impl Answer {
    /// Whether it is what was asked for.
    #[must_use]
    pub fn is_success(&self) -> bool {
        (200..300).contains(&self.code)
    }

    /// Fails with the message of a refusal.
    ///
    /// # Errors
    ///
    /// When the API refused.
    pub fn success(self) -> anyhow::Result<Value> {
        match self.is_success() {
            true => Ok(self.body),
            false => Err(anyhow!("{}", self.message())),
        }
    }

    /// What a refusal says.
    #[must_use]
    pub fn message(&self) -> String {
        self.body["message"].as_str().map_or_else(|| format!("the API answered {}", self.code), str::to_owned)
    }
}

/// The text of a `Warning` header: `299 - "unknown field \"spec.typ\""`.
fn warning(header: &str) -> Option<String> {
    let quoted = header.splitn(3, ' ').nth(2)?.trim();
    Some(quoted.strip_prefix('"')?.strip_suffix('"')?.replace("\\\"", "\""))
}
