//! The cluster-to-cluster service router: TCP streams over one mutual-TLS link
