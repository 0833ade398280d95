//! The service proxy: Services and EndpointSlices from etcd into nftables
