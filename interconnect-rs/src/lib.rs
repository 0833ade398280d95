//! The cluster-to-cluster service router.

pub mod config;
pub mod control;
pub mod error;
mod flow;
pub mod frame;
pub mod link;
pub mod metrics;
pub mod name;
mod peering;
pub mod route;
pub mod run;
mod service;
pub mod signal;
mod status;
mod stream;
mod tls;
mod transport;
