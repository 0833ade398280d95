//! flannel-rs

fn main() {}
