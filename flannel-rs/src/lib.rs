//! The overlay agent: subnet leases in etcd, a VXLAN device, and an FDB entry, a neighbour and a route per peer
