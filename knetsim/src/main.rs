//! knetsim

fn main() {}
