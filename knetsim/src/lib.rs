//! The lab: boots clusters of network namespaces, supervises their daemons, gives the prompt.
//!
//! # What it is for
//!
//! Kubernetes networking is made of a few programs that each do one thing: an overlay agent, CNI plugins, a service proxy,
//! an ingress, a router between clusters. `knetsim` puts two clusters of three workers on one machine, starts these programs
//! where they belong, and lets a student look at them at work. It decides nothing about packets itself.
//!
//! # One boot
//!
//! ```text
//!  knetsim up ──▶ new namespaces ──▶ process 1: knetsim init            cmd/up.rs, cmd/init.rs
//!                                      │
//!     lab.toml ──▶ Lab (checked)       ├─ sandbox: /proc /run /tmp/knetsim           sandbox.rs
//!                   │                  ├─ topology: bridges, nodes, cables           topology.rs
//!                   └──────────────────┤
//!                                      ├─ etcd ×4, flannel ×6, kproxy ×6             component/*.rs, supervisor.rs
//!                                      ├─ Kubernetes API ×2, controllers, kubelets   api.rs, controller.rs, kubelet.rs
//!                                      ├─ containers, by CNI ADD                     world.rs, component/cni.rs
//!                                      ├─ services, as objects in etcd               object.rs, store.rs
//!                                      ├─ ingress, interconnect                      component/*.rs, certificate.rs
//!                                      ├─ checks: ping, curl                         boot.rs
//!                                      └─ the prompt                                 prompt/*.rs
//! ```
//!
//! Every arrow to a daemon is a command line and a file; every arrow back is a probe. The lab never asks which
//! implementation it started: a real flanneld and flannel-rs get the same arguments, and may stand side by side on the workers
//! of one cluster ([`impls::WorkerImpls`]).
//!
//! # One manifest
//!
//! ```text
//!  knetsim apply -f web.yaml ──▶ API server ──▶ etcd                    manifest.rs, objects.rs, api.rs
//!                                                 │ every change is seen by whoever watches
//!         Deployment ──▶ pods, each on a worker ◀─┤ controllers            controller.rs
//!         pod ──▶ namespace, CNI ADD, web server ◀┤ kubelets               kubelet.rs, world/pod.rs
//!         Service + pods ──▶ EndpointSlices     ◀─┤ controllers            controller/endpoints.rs
//!         Services, EndpointSlices ──▶ nftables ◀─┘ kproxy-rs, kube-proxy
//! ```
//!
//! Nobody in this picture calls anybody else. kubectl may stand in the place of `knetsim apply`.
//!
//! # Why nothing stays behind
//!
//! All of it happens in a mount, network, pid and host-name namespace of the lab's own, and, for an ordinary user, in a user
//! namespace around them. `knetsim init` is process 1 there. When it ends, in whatever way, the kernel ends every other
//! process of the pid namespace, and with the last of them go the namespaces, their devices, rules and mounts. There is
//! no clean-up code that could fail.
//!
//! # Why Ctrl-C ends a ping and not the lab
//!
//! Each daemon leads a session of its own and has no terminal. Each command that is typed gets a process group of its own,
//! which is the terminal's foreground while it runs; Ctrl-C goes to the foreground group alone. In the original all
//! of them shared the shell's group, and Ctrl-C on a ping ended flanneld and etcd too.
//!
//! # Reading order
//!
//! [`lab`], [`topology`], [`sandbox`], [`process`], [`supervisor`], [`component`], [`boot`], [`world`], [`prompt`]; then
//! [`api`], [`controller`], [`kubelet`], [`objects`].
//!
//! # What the original does that this leaves out
//!
//! Mininet's `xterm`, `dpctl` and arbitrary Python at the prompt. A container is one network namespace, as in the original:
//! it shares files and process ids with its node.

pub mod lab;
pub mod topology;

pub mod process;
pub mod sandbox;
pub mod supervisor;
pub mod terminal;

pub mod api;
pub mod certificate;
pub mod component;
pub mod controller;
pub mod impls;
pub mod kubelet;
pub mod object;
pub mod store;

pub mod client;
pub mod manifest;
pub mod objects;
pub mod yaml;

pub mod announce;
pub mod boot;
pub mod control;
pub mod labdir;
pub mod progress;
pub mod prompt;
pub mod status;
pub mod world;

pub mod cli;
pub mod cmd;
