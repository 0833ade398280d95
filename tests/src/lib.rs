//! The real binaries in real namespaces, end to end
