//! The CNI plugins in one multi-call binary, and the runtime side that calls them.
//!
//! # What CNI is
//!
//! When Kubernetes starts a pod, something must give the pod's network namespace an interface, an address and routes.
//! The *container network interface* is the contract between who wants that (a runtime: kubelet through containerd,
//! podman, our own `knetsim`) and who can do it (a plugin). It is as simple as can be: **a plugin is a program**. It
//! learns what to do from environment variables and a JSON document on standard input, and answers with a JSON document
//! on standard output. No daemon, no socket, no library.
//!
//! ```text
//!   runtime                 flannel                    bridge                       host-local
//!      │ conflist: "C0w1"      │ which subnet has         │ bridge, veth, routes        │ which address is free
//!      │                       │ this node? subnet.env    │                             │ in it? a directory
//!      ├── ADD, netconf ──────►│                          │                             │
//!      │                       ├── ADD, delegate conf ───►│                             │
//!      │                       │                          ├── ADD, the same conf ──────►│
//!      │                       │                          │◄── ips, routes ─────────────┤
//!      │◄── result ────────────┤◄── interfaces, ips ──────┤                             │
//! ```
//!
//! Each arrow to the right is a program that is started. Where the program found in `CNI_PATH` is this same binary under
//! another name, it is an ordinary call instead, so that the whole ADD costs one process ([`delegate`]).
//!
//! # One ADD, step by step
//!
//! **1. The runtime reads its list** from `/etc/cni/net.d` ([`runtime::conflist`]) and makes of it the netconf of the
//! first plugin, by adding the list's name and version:
//!
//! ```
//! use cni_plugin::runtime::conflist::Conflist;
//! use serde_json::{Map, Value, json};
//!
//! let list = json!({
//!   "cniVersion": "1.0.0", "name": "C0w1",
//!   "plugins": [{"type": "flannel", "delegate": {"isDefaultGateway": true, "hairpinMode": true}}]
//! });
//! let list = Conflist::parse(list.to_string().as_bytes())?;
//! let netconf = list.plugin_conf(0, &Map::new(), None)?;
//! assert_eq!(Value::Object(netconf), json!({
//!   "cniVersion": "1.0.0", "name": "C0w1",
//!   "type": "flannel", "delegate": {"isDefaultGateway": true, "hairpinMode": true}
//! }));
//! # Ok::<(), cni_plugin::error::Error>(())
//! ```
//!
//! It starts `flannel` with that on standard input and with
//! `CNI_COMMAND=ADD CNI_CONTAINERID=k0_c1 CNI_NETNS=/run/netns/k0_c1 CNI_IFNAME=eth0 CNI_PATH=/opt/cni/bin` ([`mod@env`]).
//!
//! **2. flannel reads the node's lease** from `subnet.env`, which flanneld or flannel-rs wrote, and turns it into a
//! configuration for bridge ([`flannel`]). It keeps that in a file, because DEL must get the same one:
//!
//! ```
//! use cni_plugin::{conf::Conf, flannel::{delegate_conf, subnet_env::SubnetEnv}};
//! use serde_json::{Value, json};
//!
//! let lease = "FLANNEL_NETWORK=11.0.0.0/8\nFLANNEL_SUBNET=11.14.64.1/20\nFLANNEL_MTU=1450\nFLANNEL_IPMASQ=true\n";
//! let netconf = json!({
//!   "cniVersion": "1.0.0", "name": "C0w1",
//!   "type": "flannel", "delegate": {"isDefaultGateway": true, "hairpinMode": true}
//! });
//! let netconf = Conf::parse(netconf.to_string().as_bytes())?;
//! let delegate = delegate_conf(&netconf, &netconf.read()?, &SubnetEnv::parse(lease, "subnet.env")?)?;
//! assert_eq!(Value::Object(delegate), json!({
//!   "cniVersion": "1.0.0", "name": "C0w1", "type": "bridge",
//!   "isDefaultGateway": true, "hairpinMode": true, "isGateway": true, "ipMasq": false, "mtu": 1450,
//!   "ipam": {"type": "host-local", "ranges": [[{"subnet": "11.14.64.0/20"}]], "routes": [{"dst": "11.0.0.0/8"}]}
//! }));
//! # Ok::<(), cni_plugin::error::Error>(())
//! ```
//!
//! **3. bridge lays the cable** ([`bridge`]): the bridge `cni0` unless it is there, and a veth whose pod end `eth0` is
//! born in the pod's namespace. Typed by hand:
//!
//! ```text
//! ip link add cni0 mtu 1450 type bridge && ip link set cni0 up
//! ip link add veth1f00a2b3 mtu 1450 type veth peer name eth0 netns k0_c1
//! ip link set veth1f00a2b3 master cni0 up && bridge link set dev veth1f00a2b3 hairpin on
//! ```
//!
//! **4. host-local reserves an address** ([`host_local`]): it makes the file `/var/lib/cni/networks/C0w1/11.14.64.2` with
//! the container's id in it, and answers with what is IPAM's part of a result. **bridge completes it**: the default
//! route that `isDefaultGateway` asks for, and which interface the address is on (number 2 of its list: bridge, host
//! end, pod end):
//!
//! ```
//! use cni_plugin::{bridge::{config::Config, plan}, conf::Conf, result::CniResult, version::SpecVersion};
//! # use cni_plugin::env::{ContainerId, Environment};
//! use serde_json::json;
//!
//! let allocated = json!({
//!   "cniVersion": "1.0.0",
//!   "ips": [{"address": "11.14.64.2/20", "gateway": "11.14.64.1"}],
//!   "routes": [{"dst": "11.0.0.0/8"}]
//! });
//! # let netconf = Conf::parse(br#"{"name": "C0w1", "isDefaultGateway": true}"#)?;
//! # let env = Environment {
//! #     container_id: ContainerId::new("c1")?, netns: None, ifname: None, args: String::new(), path: vec![],
//! #     allow_own_netns: false,
//! # };
//! # let config = Config::read(&env, &netconf)?;
//! let allocated = CniResult::from_value(&allocated, SpecVersion::V1_0_0)?;
//! assert_eq!(plan::complete(&config, allocated)?.to_value(SpecVersion::V1_0_0)?, json!({
//!   "cniVersion": "1.0.0",
//!   "ips": [{"interface": 2, "address": "11.14.64.2/20", "gateway": "11.14.64.1"}],
//!   "routes": [{"dst": "11.0.0.0/8"}, {"dst": "0.0.0.0/0", "gw": "11.14.64.1"}]
//! }));
//! # Ok::<(), cni_plugin::error::Error>(())
//! ```
//!
//! **5. bridge configures**: addresses and routes in the pod, the gateway's address on `cni0`, forwarding on. It prints
//! the result with the interfaces it made; flannel passes it on; the runtime keeps it in `/var/lib/cni/results`
//! ([`runtime::cache`]), because CHECK and DEL hand it back to the plugins as `prevResult`.
//!
//! # The plugins behind it in a list
//!
//! A list may name more plugins; each gets the result of the one before it as `prevResult`, changes what it is there
//! for, and passes the result on. DEL goes through the list backwards.
//!
//! | plugin | what it does for an attachment |
//! |---|---|
//! | [`portmap`] | a port of the node leads to a port of the pod: elements in a map of nftables |
//! | [`firewall`] | a node that forwards nothing forwards for this pod |
//! | [`tuning`] | parameters of the kernel, MAC, MTU, multicast of the pod's interface |
//! | [`bandwidth`] | token buckets for both directions |
//! | [`ptp`] | instead of bridge: a cable to the node, and a route for each pod |
//! | [`static_ipam`] | instead of host-local: the addresses that the configuration says |
//!
//! # What stays when somebody dies
//!
//! A plugin is a process, and may be killed between any two steps. So whatever an ADD leaves in the kernel bears the
//! *mark* of its attachment ([`attachment`]): network, container and interface, as the alias of a cable and as the
//! comment of a map's element. DEL and GC look for marks, not for what an ADD meant to do; they need neither the pod's
//! namespace nor a result. Files appear whole or not at all ([`mod@file`]). `tests/crash.rs` kills ADD and DEL at every
//! call that changes something, and lets DEL or GC clean up.
//!
//! # What differs from the Go plugins
//!
//! Ours can stand in the place of any of theirs, in mixed chains and on shared directories. Better: the pod's `lo` is
//! brought up by bridge (the simulator this laboratory descends from had it down); flannel's CHECK checks; a failed ADD
//! leaves nothing; masquerading, host ports and the firewall are nftables without a chain for every pod; host-local
//! looks an owner up in an index instead of reading every reservation ([`host_local::index`]). Different: the state file
//! of flannel is keyed by interface too, so that a container may have two; the Go flannel plugin does not find it on a
//! DEL, ours finds theirs. Two pods that want one host port: the second is refused, and told who has it. Refused by
//! name: firewalld, and the fields of portmap that are words of iptables for a chain of one container. Absent: the
//! plugins dhcp, host-device, ipvlan, macvlan, sbr, vlan, vrf.
//!
//! # Source
//!
//! [CNI specification 1.1.0](https://www.cni.dev/docs/spec/); containernetworking/cni and containernetworking/plugins;
//! flannel-io/cni-plugin.
//!
//! # Reading order
//!
//! The protocol ([`mod@env`], [`conf`], [`result`], [`error`], [`version`]), the frame of a plugin ([`plugin`],
//! [`delegate`]), the plugins from the inside out ([`host_local`], [`bridge`], [`flannel`], [`loopback`]), those behind
//! them ([`portmap`] first), and the other side ([`runtime`], [`cnitool`]).

pub mod conf;
pub mod env;
pub mod error;
pub mod result;
pub mod version;

pub mod delegate;
pub mod plugin;

pub mod host_local;
pub mod static_ipam;

pub mod bridge;
pub mod ptp;

pub mod flannel;

pub mod loopback;

pub mod bandwidth;
pub mod tuning;

pub mod firewall;
pub mod portmap;

pub mod attachment;
pub mod file;
pub mod namespace;
pub mod nftables;
pub mod pod;

pub mod runtime;

pub mod cnitool;
pub mod install;
