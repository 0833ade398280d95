//! Routers that are linked on loopback, as clients, services and strangers see them.

#![expect(clippy::unwrap_used, reason = "a helper of a test fails the test")]

mod program;
mod security;
mod support;
mod traffic;
