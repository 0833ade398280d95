//! The running program, between clients and backends of sockets and threads.

mod beside_nginx;
mod common;
mod operating;
mod proxying;
mod refusing;
