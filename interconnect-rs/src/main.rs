//! interconnect-rs

fn main() {}
