//! What stands in etcd: the network configuration, and one key per subnet that is taken.
//!
//! ```text
//! /coreos.com/network/config                      the network, written by the operator
//! /coreos.com/network/subnets/11.10.0.0-20        a worker's lease; ends with the etcd lease it hangs on
//! /coreos.com/network/subnets/11.10.16.0-20       another
//! ```
//!
//! Two workers that start at once see the same free subnet. etcd decides between them: the key is created in a *transaction*
//! that holds only if nothing was created under `subnets/` since we looked. The loser gets the present keys in the same answer
//! and chooses anew. So neither the same key nor an overlapping one of another length can be handed out twice.
//!
//! | flanneld | here |
//! |---|---|
//! | a lost transaction ends the daemon | chooses again from the fresh listing |
//! | only the exact key is protected | the transaction covers every key of the prefix |
//! | asks for each key's remaining life at start (N + 1 requests) | one list call |
//! | a reservation (a key without lease) gets a 24 h lease when its worker restarts, and is lost a day later | it keeps lease 0 |
//! | renews by a new etcd lease and a new write an hour before the end; the former lease is left behind | `LeaseKeepAlive` on the same etcd lease: no write, so no other worker is woken |
//! | an expired key ends the daemon | the same key is created again |
//!
//! Source: flannel `pkg/subnet/etcd/registry.go` and `local_manager.go`; etcd API v3, `Txn`, `LeaseGrant`, `LeaseKeepAlive`.

mod connect;
mod request;

use std::time::Duration;

use etcd_client::{
    Client, Compare, CompareOp, GetOptions, KeyValue, PutOptions, Txn, TxnOp, TxnOpResponse, WatchOptions, WatchStream,
};
use tracing::{debug, info, warn};

use crate::allocate::{self, Choice};
use crate::config::EtcdConfig;
use crate::error::RegistryError;
use crate::lease::{Attributes, Entry, OwnLease, Subnet, Term};
use crate::network::NetworkConfig;
use crate::subnet_env::FormerSubnets;

use request::call;

/// How long a lease lasts unless it is renewed, as in flanneld.
pub const LEASE_TTL: Duration = Duration::from_hours(24);
/// Each lost race means that another worker won it, so this many are lost only by a worker among hundreds.
const MAX_ATTEMPTS: u32 = 200;

/// The part of etcd that belongs to the overlay.
#[derive(Clone)]
pub struct Registry {
    client: Client,
    prefix: String,
    /// What to add when a connection breaks; etcd's own reason may not reach us.
    hint: Option<&'static str>,
}

/// The keys of all workers at one revision of etcd.
#[derive(Debug, Clone, Default)]
pub struct Listing {
    /// The keys that could be read, in the order of their names.
    pub entries: Vec<Entry>,
    /// The revision of etcd that they show.
    pub revision: i64,
}

/// How a transaction ended.
#[expect(clippy::large_enum_variant, reason = "one exists at a time, on the stack")]
enum Outcome {
    Won(OwnLease),
    /// Something was written in between; here is what stands now.
    Lost(Listing),
}

impl Registry {
    /// Prepares connections to the members of etcd; they are opened by the first request, so etcd need not be there yet.
    ///
    /// # Errors
    ///
    /// [`RegistryError::TlsFile`] when a file cannot be read; [`RegistryError::Etcd`] when the credentials are refused.
    pub async fn connect(config: &EtcdConfig) -> Result<Self, RegistryError> {
        let options = connect::options(config)?;
        let client = call("connect to etcd", || Client::connect(&config.endpoints, Some(options.clone()))).await?;
        Ok(Self { client, prefix: config.prefix.clone(), hint: connect::hint(config) })
    }

    /// What to try when etcd cannot be reached, as far as the settings tell.
    #[must_use]
    pub fn hint(&self) -> Option<&'static str> {
        self.hint
    }

    /// The key of the network configuration.
    #[must_use]
    pub fn config_key(&self) -> String {
        format!("{}/config", self.prefix)
    }

    /// The prefix of all subnet keys, with the slash at its end.
    #[must_use]
    pub fn subnets_prefix(&self) -> String {
        format!("{}/subnets/", self.prefix)
    }

    /// Reads the network configuration; `None` when nobody has written one yet.
    ///
    /// # Errors
    ///
    /// [`RegistryError`] when etcd is away.
    pub async fn network_config(&self) -> Result<Option<Vec<u8>>, RegistryError> {
        let key = self.config_key();
        let mut answer = call("read the network configuration", || {
            let (mut kv, key) = (self.client.kv_client(), key.clone());
            async move { kv.get(key, None).await }
        })
        .await?;
        Ok(answer.take_kvs().pop().map(|pair| pair.into_key_value().1))
    }

    /// Reads all subnet keys.
    ///
    /// # Errors
    ///
    /// [`RegistryError`] when etcd is away.
    pub async fn list(&self) -> Result<Listing, RegistryError> {
        let prefix = self.subnets_prefix();
        let answer = call("list the subnets", || {
            let (mut kv, prefix) = (self.client.kv_client(), prefix.clone());
            async move { kv.get(prefix, Some(GetOptions::new().with_prefix())).await }
        })
        .await?;
        let revision = answer.header().map_or(0, etcd_client::ResponseHeader::revision);
        Ok(Listing { entries: self.read_entries(answer.kvs()), revision })
    }

    /// Follows the subnet keys from `revision` on, itself included.
    ///
    /// # Errors
    ///
    /// [`RegistryError`] when etcd is away.
    pub async fn watch(&self, revision: i64) -> Result<WatchStream, RegistryError> {
        let prefix = self.subnets_prefix();
        call("watch the subnets", || {
            let (mut watch, prefix) = (self.client.watch_client(), prefix.clone());
            let options = WatchOptions::new().with_prefix().with_start_revision(revision);
            async move { watch.watch(prefix, Some(options)).await }
        })
        .await
    }

    /// Gets a subnet for the worker that `attributes` describe, see [`allocate`]; `former` is what it had in a former run.
    ///
    /// `listing` is what the caller saw; afterwards it is what the decision was made on.
    ///
    /// # Errors
    ///
    /// [`RegistryError::Allocate`] when none is free; others when etcd is away. No etcd lease of ours is left behind then.
    pub async fn acquire(
        &self,
        network: &NetworkConfig,
        attributes: &Attributes,
        mut former: FormerSubnets,
        listing: &mut Listing,
    ) -> Result<OwnLease, RegistryError> {
        let public_ip = attributes.public_ip;
        let outgrown: Vec<Entry> = allocate::outgrown(network, &listing.entries, public_ip).cloned().collect();
        for entry in outgrown {
            warn!(subnet = %entry.subnet, "our former lease does not fit the network configuration; deleting it");
            former.or_halves_of(entry.subnet);
            if self.delete_unchanged(&entry).await? {
                listing.entries.retain(|other| *other != entry);
            }
        }
        let mut granted = None;
        for _ in 0..MAX_ATTEMPTS {
            let outcome = match allocate::choose(network, &listing.entries, public_ip, former) {
                Ok(Choice::TakeUp(entry)) => self.take_up(entry, attributes).await,
                Ok(Choice::Create(subnet)) => self.create(subnet, attributes, &mut granted, listing.revision).await,
                Err(error) => Err(error.into()),
            };
            match outcome {
                Ok(Outcome::Won(own)) => {
                    if granted != own.term {
                        self.give_back(granted).await; // A race ended with our own key after all, as after a lost answer.
                    }
                    return Ok(own);
                }
                Ok(Outcome::Lost(fresh)) => {
                    debug!(revision = fresh.revision, "another worker was faster; choosing again");
                    *listing = fresh;
                }
                Err(error) => {
                    self.give_back(granted).await;
                    return Err(error);
                }
            }
        }
        self.give_back(granted).await;
        Err(RegistryError::Contended { attempts: MAX_ATTEMPTS })
    }

    /// Puts our key back after it was deleted or ran out: the same subnet, because pods live on it.
    ///
    /// # Errors
    ///
    /// [`RegistryError::Taken`] when another worker has it by now; others when etcd is away.
    pub async fn reclaim(&self, own: &OwnLease) -> Result<OwnLease, RegistryError> {
        let mut listing = self.list().await?;
        let mut granted = match own.term {
            Some(term) => self.keep_alive(term.lease_id).await?.map(|ttl| Term { ttl, ..term }),
            None => None,
        };
        for _ in 0..MAX_ATTEMPTS {
            let outcome = match listing.entries.iter().find(|entry| entry.subnet.overlaps(&own.subnet)) {
                // Nobody can claim anything by a value that cannot be read.
                Some(entry)
                    if entry.subnet == own.subnet
                        && (entry.is_held_by(own.attributes.public_ip) || entry.attributes.is_none()) =>
                {
                    self.take_up(entry, &own.attributes).await?
                }
                Some(entry) => {
                    let holder =
                        entry.attributes.as_ref().map_or("an unreadable value".to_owned(), |a| a.public_ip.to_string());
                    return Err(RegistryError::Taken { subnet: own.subnet, key: entry.subnet, holder });
                }
                None => self.create(own.subnet, &own.attributes, &mut granted, listing.revision).await?,
            };
            match outcome {
                Outcome::Won(own) => return Ok(own),
                Outcome::Lost(fresh) => listing = fresh,
            }
        }
        Err(RegistryError::Contended { attempts: MAX_ATTEMPTS })
    }

    /// Renews an etcd lease; returns its new time to live, or `None` when it has ended, and our key with it.
    ///
    /// # Errors
    ///
    /// [`RegistryError`] when etcd is away.
    pub async fn keep_alive(&self, lease_id: i64) -> Result<Option<Duration>, RegistryError> {
        let life = call("ask how long our lease lasts", || {
            let mut lease = self.client.lease_client();
            async move { lease.time_to_live(lease_id, None).await }
        })
        .await?;
        // etcd answers -1 for a lease that it does not know.
        let Some(ttl) = u64::try_from(life.granted_ttl()).ok().filter(|_| life.ttl() > 0) else { return Ok(None) };
        call("renew our lease", || {
            let mut lease = self.client.lease_client();
            async move {
                match lease.keep_alive(lease_id).await {
                    Ok(_) => Ok(Some(Duration::from_secs(ttl))),
                    // The client says so when the lease ended between the two requests.
                    Err(etcd_client::Error::LeaseKeepAliveError(_)) => Ok(None),
                    Err(error) => Err(error),
                }
            }
        })
        .await
    }

    /// Deletes our key by ending its etcd lease. A reservation stays.
    ///
    /// # Errors
    ///
    /// [`RegistryError`] when etcd is away.
    pub async fn release(&self, own: &OwnLease) -> Result<(), RegistryError> {
        match own.term {
            Some(term) => self.revoke(term.lease_id).await,
            None => Ok(()),
        }
    }

    /// Creates `subnet`'s key, unless any key was created under the prefix after `revision`.
    ///
    /// `granted` is the etcd lease of an earlier attempt, used again; `None` makes this grant one and leave it there.
    async fn create(
        &self,
        subnet: Subnet,
        attributes: &Attributes,
        granted: &mut Option<Term>,
        revision: i64,
    ) -> Result<Outcome, RegistryError> {
        let term = match *granted {
            Some(term) => term,
            None => *granted.insert(self.grant().await?),
        };
        let key = self.key(subnet);
        let conditions = vec![
            Compare::version(key.clone(), CompareOp::Equal, 0),
            // Holds if it holds for every key of the prefix, and for none at all.
            Compare::create_revision(self.subnets_prefix(), CompareOp::Less, revision + 1).with_prefix(),
        ];
        let own = OwnLease { subnet, attributes: attributes.clone(), term: Some(term), mod_revision: 0 };
        self.put_if(conditions, own).await
    }

    /// Goes on with a key that bears our address: renews its etcd lease and writes it again, even when nothing in it is new. That tells
    /// another agent with our address, if one is running, that it has company; see [`crate::keeper`].
    async fn take_up(&self, entry: &Entry, attributes: &Attributes) -> Result<Outcome, RegistryError> {
        let term = if entry.is_reservation() {
            None
        } else {
            match self.keep_alive(entry.lease_id).await? {
                Some(ttl) => Some(Term { lease_id: entry.lease_id, ttl }),
                None => Some(self.grant().await?),
            }
        };
        let own = OwnLease { subnet: entry.subnet, attributes: attributes.clone(), term, mod_revision: 0 };
        let unchanged = Compare::mod_revision(self.key(entry.subnet), CompareOp::Equal, entry.mod_revision);
        self.put_if(vec![unchanged], own).await
    }

    /// Writes `own` if the conditions hold, else reads what stands now, in one request.
    async fn put_if(&self, conditions: Vec<Compare>, own: OwnLease) -> Result<Outcome, RegistryError> {
        let key = self.key(own.subnet);
        let options = PutOptions::new().with_lease(own.lease_id());
        let txn = Txn::new()
            .when(conditions)
            .and_then([TxnOp::put(key, own.attributes.to_json(), Some(options))])
            .or_else([TxnOp::get(self.subnets_prefix(), Some(GetOptions::new().with_prefix()))]);
        let answer = call("write our subnet", || {
            let (mut kv, txn) = (self.client.kv_client(), txn.clone());
            async move { kv.txn(txn).await }
        })
        .await?;
        let revision = answer.header().map_or(0, etcd_client::ResponseHeader::revision);
        if answer.succeeded() {
            info!(subnet = %own.subnet, "lease written");
            return Ok(Outcome::Won(OwnLease { mod_revision: revision, ..own }));
        }
        let entries = answer.op_responses().into_iter().next().map_or_else(Vec::new, |response| match response {
            TxnOpResponse::Get(get) => self.read_entries(get.kvs()),
            TxnOpResponse::Put(_) | TxnOpResponse::Delete(_) | TxnOpResponse::Txn(_) => Vec::new(),
        });
        Ok(Outcome::Lost(Listing { entries, revision }))
    }

    /// Deletes a key unless somebody wrote it after we read it; says whether it did.
    async fn delete_unchanged(&self, entry: &Entry) -> Result<bool, RegistryError> {
        let key = self.key(entry.subnet);
        let txn = Txn::new()
            .when([Compare::mod_revision(key.clone(), CompareOp::Equal, entry.mod_revision)])
            .and_then([TxnOp::delete(key, None)]);
        let answer = call("delete our former subnet", || {
            let (mut kv, txn) = (self.client.kv_client(), txn.clone());
            async move { kv.txn(txn).await }
        })
        .await?;
        Ok(answer.succeeded())
    }

    async fn grant(&self) -> Result<Term, RegistryError> {
        let seconds = i64::try_from(LEASE_TTL.as_secs()).unwrap_or(i64::MAX);
        let answer = call("get a lease", || {
            let mut lease = self.client.lease_client();
            async move { lease.grant(seconds, None).await }
        })
        .await?;
        Ok(Term { lease_id: answer.id(), ttl: LEASE_TTL })
    }

    async fn revoke(&self, lease_id: i64) -> Result<(), RegistryError> {
        call("end our lease", || {
            let mut lease = self.client.lease_client();
            async move { lease.revoke(lease_id).await }
        })
        .await?;
        Ok(())
    }

    /// Ends an etcd lease that no key came to hang on. If that fails it ends by itself, so it is only worth a line in the log.
    async fn give_back(&self, granted: Option<Term>) {
        if let Some(term) = granted
            && let Err(error) = self.revoke(term.lease_id).await
        {
            debug!(lease_id = term.lease_id, %error, "an unused lease is left to run out");
        }
    }

    fn key(&self, subnet: Subnet) -> String {
        format!("{}{subnet}", self.subnets_prefix())
    }

    fn read_entries(&self, pairs: &[KeyValue]) -> Vec<Entry> {
        pairs.iter().filter_map(|pair| self.read_entry(pair)).collect()
    }

    /// Reads a key and its value; `None`, with a line in the log, for a key that names no subnet.
    #[must_use]
    pub fn read_entry(&self, pair: &KeyValue) -> Option<Entry> {
        let subnet = self.read_key(pair.key())?;
        let attributes = match serde_json::from_slice::<Attributes>(pair.value()) {
            Ok(attributes) => Some(attributes),
            Err(error) => {
                warn!(%subnet, %error, "the value of this lease cannot be read; its subnet counts as taken, its worker cannot be reached");
                None
            }
        };
        Some(Entry { subnet, attributes, lease_id: pair.lease(), mod_revision: pair.mod_revision() })
    }

    /// Reads a key alone, as a deletion shows it.
    #[must_use]
    pub fn read_key(&self, key: &[u8]) -> Option<Subnet> {
        let text = String::from_utf8_lossy(key);
        let name = text.strip_prefix(&self.subnets_prefix()).unwrap_or(&text);
        name.parse().inspect_err(|error| warn!(%error, "skipped a key under {}", self.subnets_prefix())).ok()
    }
}
