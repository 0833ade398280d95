//! ingress-rs

fn main() {}
