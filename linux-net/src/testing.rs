//! For tests that need the kernel: each one in fresh namespaces of its own, as any user, in parallel.

/// Re-runs this one test as a child process in fresh user, network and mount namespaces.
///
/// Call it first in a `#[test]`:
///
/// ```no_run
/// // #[test]
/// fn a_bridge_appears() {
///     if !linux_net::testing::enter_sandbox() { return; }
///     // here: root in an empty network namespace, with an empty /run
/// }
/// ```
///
/// Returns `false` in the test process, after the child has passed, and `true` in the child.
///
/// # Panics
///
/// When the child fails or does not end in two minutes; its output is in the message.
#[must_use]
pub fn enter_sandbox() -> bool {
    todo!()
}
