//! The objects in etcd: the API's one storage. Every read and every write goes through here.
//!
//! An object is a JSON document under the key of [`Kind::key`]. Its `resourceVersion` is not part of the document: it is the
//! revision at which etcd wrote the key last, put in when the object is read. Every write is a transaction on the condition
//! that the key is still at the revision that was read, so two writers cannot overwrite each other unseen.
//!
//! Nothing is cached: a `get` asks etcd, a `watch` is a watch of etcd. kube-apiserver holds all objects in memory (its *watch
//! cache*), because thousands of nodes watch the same; a lab has a handful of clients, and etcd is the clearer teacher.

use std::{future::Future, time::Duration};

use etcd_client::{
    Client, Compare, CompareOp, ConnectOptions, GetOptions, KeyValue, Txn, TxnOp, WatchOptions, WatchStream,
};
use serde_json::{Map, Value, json};
use tracing::warn;

use super::{
    claim::{self, Claim, Taken},
    failure::{Cause, Failure},
    kind::Kind,
    prepare,
    validate::Ranges,
};

/// No single request needs longer, even while etcd elects a leader.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(5);
/// etcd answers a listing in one message.
const MAX_MESSAGE_BYTES: usize = 256 << 20;
/// How often a write is tried when others write the same object.
const ATTEMPTS: u32 = 20;
/// Namespaces that are always there.
pub const NAMESPACES: [&str; 2] = ["default", "kube-system"];

/// A handle on a cluster's objects. Clones share the connection.
#[derive(Clone)]
pub struct Registry {
    client: Client,
    ranges: Ranges,
}

/// Objects at one revision.
#[derive(Debug)]
pub struct Listing {
    /// The objects, by key.
    pub objects: Vec<Value>,
    /// The revision of etcd that they show.
    pub revision: i64,
}

/// What is being written: who decides about the status?
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Part {
    /// Everything but the status: what clients write.
    Spec,
    /// The status: what those write who carry the object out.
    Status,
}

/// The conditions of a write.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Precondition {
    /// The object must have this `metadata.uid`.
    pub uid: Option<String>,
    /// The object must be at this `metadata.resourceVersion`.
    pub resource_version: Option<String>,
}

impl Registry {
    /// Prepares connections; they are opened by the first request, so etcd need not be there yet.
    ///
    /// # Errors
    ///
    /// [`Failure::Unavailable`] when an endpoint is not a URL.
    pub async fn connect(endpoints: &[String], ranges: Ranges) -> Result<Self, Failure> {
        let options = ConnectOptions::new()
            .with_connect_timeout(Duration::from_secs(2))
            // A watch is silent for hours; without pings it would not notice that its member is gone.
            .with_keep_alive(Duration::from_secs(5), Duration::from_secs(3))
            .with_keep_alive_while_idle(true)
            .with_require_leader(true);
        let client = call(Client::connect(endpoints, Some(options))).await?;
        Ok(Self { client, ranges })
    }

    /// Makes what every cluster has: its first namespaces, and the range of service addresses.
    ///
    /// # Errors
    ///
    /// When etcd does not answer.
    pub async fn bootstrap(&self) -> Result<(), Failure> {
        for name in NAMESPACES {
            let namespace = json!({ "metadata": { "name": name, "labels": { "kubernetes.io/metadata.name": name } } });
            self.create_unless_there(Kind::Namespace, namespace).await?;
        }
        let range = json!({
            "metadata": { "name": "kubernetes" },
            "spec": { "cidrs": [self.ranges.services] },
            "status": { "conditions": [{ "type": "Ready", "status": "True", "reason": "",
                "lastTransitionTime": prepare::now(), "message": "Kubernetes default Service CIDR is ready" }] },
        });
        self.create_unless_there(Kind::ServiceCidr, range).await
    }

    async fn create_unless_there(&self, kind: Kind, object: Value) -> Result<(), Failure> {
        match self.create(kind, "", object).await {
            Ok(_) | Err(Failure::AlreadyExists { .. }) => Ok(()),
            Err(failure) => Err(failure),
        }
    }

    /// One object.
    ///
    /// # Errors
    ///
    /// [`Failure::NotFound`].
    pub async fn get(&self, kind: Kind, namespace: &str, name: &str) -> Result<Value, Failure> {
        Ok(self.fetch(kind, namespace, name).await?.0)
    }

    /// One object with the revision at which its key was written.
    async fn fetch(&self, kind: Kind, namespace: &str, name: &str) -> Result<(Value, i64), Failure> {
        let mut kv = self.client.kv_client();
        let answer = call(kv.get(kind.key(namespace, name), None)).await?;
        match answer.kvs().first() {
            Some(pair) => read(kind, pair).map(|object| (object, pair.mod_revision())).ok_or_else(|| {
                Failure::Internal(format!("what stands in etcd under {} is no JSON object", kind.key(namespace, name)))
            }),
            None => Err(Failure::NotFound { kind, name: name.to_owned() }),
        }
    }

    /// All objects of a kind, or those of a namespace. What cannot be read is left out, and named in the log.
    ///
    /// # Errors
    ///
    /// When etcd does not answer.
    pub async fn list(&self, kind: Kind, namespace: Option<&str>) -> Result<Listing, Failure> {
        let mut kv = self.client.kv_client().max_decoding_message_size(MAX_MESSAGE_BYTES);
        let answer = call(kv.get(kind.prefix(namespace), Some(GetOptions::new().with_prefix()))).await?;
        let revision = answer.header().map_or(0, etcd_client::ResponseHeader::revision);
        Ok(Listing { objects: answer.kvs().iter().filter_map(|pair| read(kind, pair)).collect(), revision })
    }

    /// Follows keys that begin with `prefix` from `revision` on; each event bears the key's former value too.
    ///
    /// # Errors
    ///
    /// When etcd does not answer.
    pub async fn watch(&self, prefix: String, revision: i64) -> Result<WatchStream, Failure> {
        let options = WatchOptions::new().with_prefix().with_prev_key().with_start_revision(revision);
        let mut client = self.client.watch_client().max_decoding_message_size(MAX_MESSAGE_BYTES);
        call(client.watch(prefix, Some(options))).await
    }

    /// Makes an object: fills in its defaults, checks it, gives it its address.
    ///
    /// # Errors
    ///
    /// [`Failure::Invalid`], [`Failure::AlreadyExists`], [`Failure::NotFound`] of its namespace.
    pub async fn create(&self, kind: Kind, namespace: &str, object: Value) -> Result<Value, Failure> {
        let given = prepare::for_create(kind, namespace, object, self.ranges)?;
        let name = prepare::name(&given);
        if kind.describe().namespaced {
            let home = self.get(Kind::Namespace, "", namespace).await?;
            if !home["metadata"]["deletionTimestamp"].is_null() {
                return Err(Failure::Forbidden(format!(
                    "namespace {namespace} is being deleted: nothing new can be made in it"
                )));
            }
        }
        for _ in 0..ATTEMPTS {
            let mut object = given.clone();
            if kind == Kind::Service {
                self.allocate(&name, &mut object).await?;
            }
            let claims = claims(kind, &object);
            let key = kind.key(namespace, &name);
            let mut conditions = vec![Compare::create_revision(key.clone(), CompareOp::Equal, 0)];
            let mut writes = vec![TxnOp::put(key, object.to_string(), None)];
            for claim in &claims {
                conditions.push(Compare::create_revision(claim.key(), CompareOp::Equal, 0));
                writes.push(TxnOp::put(claim.key(), claim.value(namespace, &name).to_string(), None));
            }
            if let Some(revision) = self.commit(Txn::new().when(conditions).and_then(writes)).await? {
                return Ok(at_revision(object, revision));
            }
            if self.fetch(kind, namespace, &name).await.is_ok() {
                return Err(Failure::AlreadyExists { kind, name });
            }
            // An address that was asked for and is taken stays so; one that we chose is chosen again.
            let asked = claim::of(&given);
            self.refuse_taken(claims.iter().filter(|claim| asked.contains(claim)), &given, &name).await?;
        }
        Err(busy(kind, &name))
    }

    /// Changes an object: `change` gets it as it is and gives it as it shall be. Called again when somebody else was faster.
    ///
    /// # Errors
    ///
    /// [`Failure::NotFound`], [`Failure::Invalid`], [`Failure::Conflict`] when the object that `change` gives bears a
    /// `resourceVersion` that is not the last; whatever `change` refuses.
    pub async fn update(
        &self,
        kind: Kind,
        namespace: &str,
        name: &str,
        part: Part,
        change: impl Fn(Value) -> Result<Value, Failure>,
    ) -> Result<Value, Failure> {
        for _ in 0..ATTEMPTS {
            let (old, revision) = self.fetch(kind, namespace, name).await?;
            let wanted = change(old.clone())?;
            check_version(kind, name, &wanted["metadata"]["resourceVersion"], revision)?;
            let mut object = prepare::for_update(kind, &old, wanted, part, self.ranges)?;
            if kind == Kind::Service && part == Part::Spec {
                self.allocate(name, &mut object).await?;
            }
            let stored = without_version(old.clone());
            if object == stored {
                return Ok(old); // As in Kubernetes, what changes nothing writes nothing.
            }
            let key = kind.key(namespace, name);
            let (before, after) = (claims(kind, &stored), claims(kind, &object));
            let mut conditions = vec![Compare::mod_revision(key.clone(), CompareOp::Equal, revision)];
            let mut writes = vec![TxnOp::put(key, object.to_string(), None)];
            for claim in after.difference(&before) {
                conditions.push(Compare::create_revision(claim.key(), CompareOp::Equal, 0));
                writes.push(TxnOp::put(claim.key(), claim.value(namespace, name).to_string(), None));
            }
            writes.extend(before.difference(&after).map(|claim| TxnOp::delete(claim.key(), None)));
            if let Some(revision) = self.commit(Txn::new().when(conditions).and_then(writes)).await? {
                return Ok(at_revision(object, revision));
            }
            self.refuse_taken(after.difference(&before), &object, name).await?;
        }
        Err(busy(kind, name))
    }

    /// Removes an object from etcd, with what it claims.
    ///
    /// # Errors
    ///
    /// [`Failure::NotFound`], [`Failure::Conflict`] when the precondition does not hold.
    pub async fn remove(&self, kind: Kind, namespace: &str, name: &str, only: &Precondition) -> Result<Value, Failure> {
        for _ in 0..ATTEMPTS {
            let (object, revision) = self.fetch(kind, namespace, name).await?;
            check_precondition(kind, name, &object, revision, only)?;
            let key = kind.key(namespace, name);
            let mut writes = vec![TxnOp::delete(key.clone(), None)];
            writes.extend(claims(kind, &object).iter().map(|claim| TxnOp::delete(claim.key(), None)));
            let unchanged = Compare::mod_revision(key, CompareOp::Equal, revision);
            if self.commit(Txn::new().when([unchanged]).and_then(writes)).await?.is_some() {
                return Ok(object);
            }
        }
        Err(busy(kind, name))
    }

    /// Deletes an object as clients do. A pod that a worker runs, and a namespace, are only marked: the kubelet or the
    /// namespace controller ends what belongs to it and then removes it. Whatever else is removed at once.
    ///
    /// # Errors
    ///
    /// As [`Registry::remove`]; [`Failure::Forbidden`] for what must stay.
    pub async fn delete(
        &self,
        kind: Kind,
        namespace: &str,
        name: &str,
        grace_seconds: Option<i64>,
        only: &Precondition,
    ) -> Result<Value, Failure> {
        if kind == Kind::Namespace && NAMESPACES.contains(&name) {
            return Err(Failure::Forbidden(format!("namespace {name} may not be deleted")));
        }
        let (object, revision) = self.fetch(kind, namespace, name).await?;
        check_precondition(kind, name, &object, revision, only)?;
        let is_bound = object["spec"]["nodeName"].as_str().is_some_and(|node| !node.is_empty());
        let is_marked_first = match kind {
            Kind::Pod => is_bound,
            Kind::Namespace => true,
            Kind::Node
            | Kind::Deployment
            | Kind::Service
            | Kind::EndpointSlice
            | Kind::Endpoints
            | Kind::ServiceCidr
            | Kind::IpAddress => false,
        };
        if !is_marked_first {
            return self.remove(kind, namespace, name, only).await;
        }
        let own_grace = object["spec"]["terminationGracePeriodSeconds"].as_i64().unwrap_or(0);
        let grace = grace_seconds.unwrap_or(own_grace).max(0);
        self.update(kind, namespace, name, Part::Status, |mut object| {
            if object["metadata"]["deletionTimestamp"].is_null() {
                object["metadata"]["deletionTimestamp"] = json!(prepare::now());
                object["metadata"]["deletionGracePeriodSeconds"] = json!(grace);
            }
            if kind == Kind::Namespace {
                object["status"]["phase"] = json!("Terminating");
            }
            Ok(object)
        })
        .await
    }

    /// Gives a Service what it needs and has not: see [`claim::allocate`].
    async fn allocate(&self, name: &str, service: &mut Value) -> Result<(), Failure> {
        let mut taken = Taken::default();
        // The Services themselves count, not only the keys of what they claim: those that the lab makes have an address too.
        for other in self.list(Kind::Service, None).await?.objects {
            taken.add(&other);
        }
        claim::allocate(service, self.ranges.services, &mut taken).map_err(|cause| Failure::Invalid {
            kind: Kind::Service,
            name: name.to_owned(),
            causes: vec![cause],
        })
    }

    /// Fails when one of the claims stands in etcd in another's name.
    async fn refuse_taken(
        &self,
        claims: impl Iterator<Item = &Claim>,
        service: &Value,
        name: &str,
    ) -> Result<(), Failure> {
        for claim in claims {
            let answer = call(self.client.kv_client().get(claim.key(), None)).await?;
            if let Some(pair) = answer.kvs().first() {
                let holder = serde_json::from_slice(pair.value()).unwrap_or(Value::Null);
                let causes = vec![claim.taken(&holder, service)];
                return Err(Failure::Invalid { kind: Kind::Service, name: name.to_owned(), causes });
            }
        }
        Ok(())
    }

    /// Carries a transaction out; the revision it made, or none when a condition did not hold.
    async fn commit(&self, transaction: Txn) -> Result<Option<i64>, Failure> {
        let answer = call(self.client.kv_client().txn(transaction)).await?;
        let revision = answer.header().map_or(0, etcd_client::ResponseHeader::revision);
        Ok(answer.succeeded().then_some(revision))
    }
}

/// Waits for one request, but not for ever.
async fn call<T>(request: impl Future<Output = Result<T, etcd_client::Error>>) -> Result<T, Failure> {
    match tokio::time::timeout(REQUEST_TIMEOUT, request).await {
        Ok(Ok(answer)) => Ok(answer),
        Ok(Err(error)) => Err(Failure::Unavailable(error.to_string())),
        Err(_) => Err(Failure::Unavailable(format!("no answer within {REQUEST_TIMEOUT:?}"))),
    }
}

/// The object of a key as clients see it; none, with a word in the log, when it is no JSON object.
#[must_use]
pub fn read(kind: Kind, pair: &KeyValue) -> Option<Value> {
    read_value(kind, pair.key(), pair.value(), pair.create_revision(), pair.mod_revision())
}

/// As [`read`], of the value that a key had at `revision`.
#[must_use]
pub fn read_value(kind: Kind, key: &[u8], value: &[u8], created: i64, revision: i64) -> Option<Value> {
    let object: Value = match serde_json::from_slice(value) {
        Ok(object @ Value::Object(_)) => object,
        Ok(_) | Err(_) => {
            warn!(key = %String::from_utf8_lossy(key), "this is no JSON object and is left out");
            return None;
        }
    };
    // Clients expect kind and apiVersion first, and whatever the lab wrote by hand may lack what the API always gives.
    let mut whole = Map::new();
    whole.insert("apiVersion".to_owned(), json!(kind.api_version()));
    whole.insert("kind".to_owned(), json!(kind.describe().kind));
    if let Value::Object(fields) = object {
        whole.extend(fields.into_iter().filter(|(name, _)| name != "apiVersion" && name != "kind"));
    }
    let mut whole = Value::Object(whole);
    if !whole["metadata"].is_object() {
        whole["metadata"] = json!({});
    }
    if !whole["metadata"]["uid"].is_string() {
        whole["metadata"]["uid"] = json!(prepare::derived_uid(key, created));
    }
    Some(at_revision(whole, revision))
}

fn at_revision(mut object: Value, revision: i64) -> Value {
    object["metadata"]["resourceVersion"] = json!(revision.to_string());
    object
}

/// An object as it is stored.
fn without_version(mut object: Value) -> Value {
    if let Some(metadata) = object["metadata"].as_object_mut() {
        metadata.remove("resourceVersion");
    }
    object
}

fn claims(kind: Kind, object: &Value) -> std::collections::BTreeSet<Claim> {
    if kind == Kind::Service { claim::of(object) } else { std::collections::BTreeSet::new() }
}

fn check_version(kind: Kind, name: &str, version: &Value, revision: i64) -> Result<(), Failure> {
    match version.as_str() {
        None | Some("" | "0") => Ok(()),
        Some(version) if version == revision.to_string() => Ok(()),
        Some(_) => Err(Failure::Conflict {
            kind,
            name: name.to_owned(),
            why: "the object has been modified; please apply your changes to the latest version and try again"
                .to_owned(),
        }),
    }
}

fn check_precondition(
    kind: Kind,
    name: &str,
    object: &Value,
    revision: i64,
    only: &Precondition,
) -> Result<(), Failure> {
    if let Some(uid) = &only.uid
        && object["metadata"]["uid"] != **uid
    {
        let why = format!("its uid is {}, not {uid}: it is another object of the same name", object["metadata"]["uid"]);
        return Err(Failure::Conflict { kind, name: name.to_owned(), why });
    }
    check_version(kind, name, &only.resource_version.clone().map_or(Value::Null, Value::String), revision)
}

fn busy(kind: Kind, name: &str) -> Failure {
    Failure::Conflict { kind, name: name.to_owned(), why: "too many others change it at the same time".to_owned() }
}

impl From<(Kind, &str, Vec<Cause>)> for Failure {
    fn from((kind, name, causes): (Kind, &str, Vec<Cause>)) -> Self {
        Failure::Invalid { kind, name: name.to_owned(), causes }
    }
}
