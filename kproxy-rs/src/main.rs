//! kproxy-rs

fn main() {}
