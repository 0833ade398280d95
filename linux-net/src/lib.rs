//! Namespaces, netlink, nftables and sysctl of Linux, as data that is applied and can be printed
