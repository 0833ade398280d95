//! The HTTP ingress: path prefixes to backends, bodies streamed both ways
