//! The service proxy of a worker: makes the addresses of Services lead to their endpoints.
//!
//! A Service has an address that no machine has. Pods send to it all the same, and the worker that a packet starts on
//! rewrites its destination to one of the Service's endpoints before it looks for a route. The kernel does the
//! rewriting, by one nftables table for each family of addresses; this daemon only keeps the tables right. When it ends,
//! they go on to serve.
//!
//! ```text
//!        etcd                                   this process                                     kernel
//!  services/specs/… ──┐              objects      plan        diff                        nft list table ip kproxy
//!  endpointslices/… ──┼─ watch ───►  what is ──► what must ──► what to ──► one batch ───►   maps, sets, chains
//!  minions/… ─────────┘              there       be there      change      (atomic)
//! ```
//!
//! # The table
//!
//! Every connection gets a *tag* in its conntrack mark ([`tag`]): whose it is, and over how many endpoints to spread.
//!
//! ```text
//! map  front      address . protocol . port : tag     100.64.11.1 . tcp . 8000 : 0x0020a1b2
//! map  nodeports  protocol . port : tag               the same on every address of this worker
//! map  any        address : tag                       VIPs that answer every protocol
//! map  anyview    tag : tag                           policy Local: what pods and this worker get instead
//! map  vacant     slots of the tag : verdict          nobody there: drop, or goto refuse
//! map  class      class bits of the tag : verdict     0x00200000 : jump lb-2
//! map  eps        id . protocol . slot : address . port
//! map  anyeps     id . slot : address
//! map  sticky     id : verdict                        jump learn-10800
//! map  aff        client . id . protocol : address . port    session affinity; filled by packets, each with its timeout
//! set  ranged     tag                                 load balancers that not everybody may use …
//! set  ranges     tag . address                       … and who may
//! set  pods       where pods live
//! set  nodeips    with --nodeport-addresses: where NodePorts are
//! set  vips       ClusterIPs that are served
//! set  hairpin    address . address                   pods of this worker that may be sent to themselves
//!
//! chain pre, out      (nat, prerouting and output)    jump services
//! chain services      tag := front[daddr, protocol, dport], goto dispatch
//!                     daddr is this worker's: tag := nodeports[protocol, dport], goto dispatch
//!                     tag := any[daddr], goto dispatch
//!                     daddr in vips: goto refuse
//! chain dispatch      tag in ranged, saddr not in ranges: drop
//!                     policy Local: jump local-policy
//!                     saddr not in pods, or tag says so: mark the packet for masquerading
//!                     slots of the tag vmap vacant
//!                     tag & class bits vmap class; drop
//! chain local-policy  from this worker or a pod: tag := anyview[tag]
//! chain lb-N          keep the id alone; dnat to eps[id, protocol, random below N]; dnat to eps[id, protocol, 0]
//! chain lb-N-sticky   … dnat to aff[saddr, id, protocol]; dnat to eps[…]; …
//! chain any-N         keep the id alone; dnat to anyeps[id, random below N]; dnat to anyeps[id, 0]
//! chain refuse        TCP: reset; else: ICMP port unreachable
//! chain forward       (filter, forward)               TCP that conntrack cannot place: drop
//! chain input         (filter, input)                 the same, from a pod
//! chain learn         (filter, postrouting) a new connection with the sticky bit: id vmap sticky
//! chain learn-S       aff[saddr, id, protocol] := where it goes, for S seconds
//! chain post          (nat, postrouting) marked, or hairpin: masquerade
//! ```
//!
//! # The life of a packet
//!
//! Pod 11.10.0.5 connects to 100.64.11.1:8000, a Service with the endpoints 11.10.0.7:80 (on this worker) and
//! 11.11.0.9:80.
//!
//! 1. The SYN leaves the pod for its gateway, the bridge `cni0`, and comes to `pre`. Were the destination another pod,
//!    the bridge would only forward the frame; that it shows even such frames to the IP hooks
//!    (`net.bridge.bridge-nf-call-iptables`) is what lets the reply of a neighbor pod be translated back. A packet of
//!    the worker's own processes comes to `out` instead, and from there on goes the same way. It has been routed
//!    before, so some route must cover the ClusterIPs: on a node, the default route does.
//! 2. Chains of type *nat* see the first packet of a connection only. `services` looks up address, protocol and port in
//!    `front` and writes the tag 0x002xxxxx into the conntrack mark: two slots, and the id. An address and port in no
//!    map fall through to `vips`: a wrong port of a live ClusterIP is refused. Whatever remains is none of our
//!    business.
//! 3. `dispatch` looks at the source: 11.10.0.5 is a pod, so it stays. A client from elsewhere is marked, because the
//!    endpoint would answer it by a way that does not lead through this worker, where the translation is known.
//! 4. `vacant` knows nothing of two slots; `class` leads to `lb-2`, which all Services with two endpoints share. That
//!    chain draws 0 or 1, asks `eps` for the endpoint in this slot, and translates the destination, say to
//!    11.11.0.9:80. The mark keeps the id alone: `conntrack -L -m ID` lists the connections of one Service.
//! 5. Now the kernel routes: to `flannel.100`, or back through the bridge to a neighbor pod.
//! 6. `post` masquerades nothing here, so the endpoint sees the pod's own address. There are two exceptions: the marked
//!    ones of step 3; and the pod that was sent to itself. Its packet would come back with its own address as the
//!    source, which it would take for forged. (The bridge must also send a frame out of the port it came in by:
//!    `hairpinMode` of the CNI plugin.)
//! 7. The reply comes back to this worker, since that is where the client lives. conntrack knows the connection and
//!    puts 100.64.11.1:8000 back as its source. No lookup of ours sees it, nor any later packet: whatever the
//!    number of Services, a connection costs a handful of lookups, and its packets none. `forward` has one rule for
//!    what conntrack cannot place in its connection's window. Nothing would put the VIP back into such a packet, and
//!    the client would answer it, from an address that it never spoke with, by a reset that ends the connection.
//!
//! A Service without endpoints has a tag too, of the class "refuse": the client hears so at once instead of waiting.
//! This happens in the nat hook, before the connection is confirmed, so conntrack keeps no trace that could swallow the
//! packets of a client that tries again.
//!
//! ICMP has no port, so no `front` key can match an echo request. A VIP for all protocols
//! ([`service::ALL_PROTOCOLS_ANNOTATION`]) stands in `any`, which has the address alone as its key, and which
//! `services` asks when `front` knows nothing. The endpoint is drawn for the first packet. So each `ping` process,
//! which is one flow, keeps its endpoint, and the next one draws anew: if one of two static endpoints is dead, every
//! second attempt fails.
//!
//! # From outside
//!
//! A NodePort, an external IP and a load balancer's address lead to the same slots by another tag. With
//! `externalTrafficPolicy: Local` that tag has the endpoints of this worker only and does not masquerade, so they see
//! the client's own address; without any, the packet is dropped, and [`health_check`] tells the load balancer not to
//! send more. Pods, and the worker itself, take a *short circuit* through `anyview`: for them the address means all
//! endpoints of the cluster.
//!
//! # How an endpoint is chosen
//!
//! At random, unless the Service says otherwise ([`service::BALANCE_ANNOTATION`]): in turn, by the client's
//! address, or by the hash that the Python original used. [`service::WEIGHTS_ANNOTATION`] gives an endpoint more than
//! one slot. With session affinity, `learn` remembers where a client was sent, and the next connection of that client
//! goes there. It remembers after the translation, where the packet says both; so a client is remembered by what chose
//! for it, and nothing has to be decided twice.
//!
//! # UDP
//!
//! conntrack takes the packets of one client port for one connection as long as they keep coming, and translates them
//! as it did the first. So when an endpoint goes, the connections to it are deleted, and when a Service comes to life,
//! those that went past it before ([`flow`]). TCP needs none of this: its endpoint answers, or it ends.
//!
//! # Why these maps
//!
//! - *Data, not rules.* kube-proxy has a chain per Service and per endpoint and, in each, an anonymous map. Their
//!   number is what a transaction costs: with 10,000 Services of two endpoints each, that shape took `nft` 34 s to load
//!   on two cores, and adding one Service some 200 ms. Here a Service is a handful of map elements; the same 10,000
//!   take a tenth of a second, one more some 40 µs (`knetsim bench kproxy`).
//! - *`class`, not a rule per Service.* A random number below N needs N as a literal in a rule, so there must be a
//!   chain for each N; there are as many as there are different numbers of endpoints, not as there are Services.
//! - *Two lookups, not one.* nftables can look up a key made of packet fields, or of a register, but its text has no
//!   lookup of a lookup. The conntrack mark between the two is what keeps the ruleset printable, and it labels the
//!   connection for free.
//! - *`jump lb-N`, and `drop` behind it.* A packet that is on its way through the rules while a commit takes place sees
//!   the elements of after it and the rules of before. If what it looks for has gone, it must not leave with the VIP on
//!   it: conntrack would remember it so. A slot that has gone is the first one instead; chains are made a commit before
//!   they are used, and deleted a commit after ([`diff::Change::steps`]). Only what misses all of that is dropped, and
//!   sent again by its client.
//! - *`size`.* The three sets that grow with the Services say how much they will hold, so that the kernel makes their hash
//!   tables at once; filling tables that grow would take twice as long. When one is full, both tables are written anew, in
//!   one step and with more room.
//! - *`aff` is one map.* The kernel checks timeouts per element, so Services with different ones share it.
//!
//! # Restart, and other hands
//!
//! At start the tables of the former run serve on until etcd has told everything. Then they are read back. If they are
//! of our shape, only the difference is written; if not, one batch deletes and creates them: a packet meets the old
//! one or the new one. Connections live in conntrack and notice nothing; sticky clients are carried over. Ids are hashes
//! of names, so they are the same as before ([`tag::Ids`]). If somebody else commits to nftables, the tables are read
//! back and, if they are not as we left them, written anew ([`apply`]).
//!
//! # What kube-proxy does that this leaves out
//!
//! The unallocated part of the Service range, where kube-proxy drops if it knows the range, and this lets pass. Beyond
//! fifteen different numbers of endpoints above 239, one is rounded up, at the cost of an even distribution, or cut
//! ([`slots::Widths`]). Sysctls are the business of whoever sets up the worker.
//!
//! What both do, but not alike, `docs/architecture.md` lists: `tests/conformance` runs under either.
//!
//! Source: Kubernetes `pkg/proxy/nftables` and KEP-3866 for what a Service promises; Linux
//! `net/netfilter/nf_tables_api.c` for what a batch is.

pub mod node;

pub mod service;

pub mod endpoint;

pub mod objects;

pub mod tag;

pub mod slots;

pub mod entry;

pub mod claims;

pub mod few;

pub mod flow;

pub mod plan;

pub mod table;

pub mod diff;

pub mod apply;

pub mod source;

pub mod watch;

pub mod run;

pub mod health;

pub mod health_check;

pub mod config;

pub mod error;
