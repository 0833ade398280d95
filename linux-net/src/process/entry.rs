//! The start of a program that lives for two milliseconds.
//!
//! Before `main`, Rust prepares every program for a long life: it looks up where the stack ends (in `/proc/self/maps`, which the kernel
//! has to write first) and installs handlers that tell a stack overflow from other faults. That is a tenth of a millisecond. A CNI
//! plugin, which every start of a container waits for, needs only the other half of it, which [`run`] does.
//!
//! Source: Rust's `library/std/src/rt.rs` and `library/std/src/sys/pal/unix/mod.rs`.

use std::{
    ffi::c_int,
    io::Write as _,
    os::fd::{BorrowedFd, IntoRawFd as _},
    process::exit,
};

use nix::{
    fcntl::{OFlag, open},
    poll::{PollFd, PollFlags, PollTimeout, poll},
    sys::{
        signal::{SigHandler, Signal, signal},
        stat::Mode,
    },
};

/// Makes `$main`, a function that returns the exit code, the whole program: `#![no_main]` and `linux_net::short_main!(main);`.
#[macro_export]
macro_rules! short_main {
    ($main:path) => {
        #[unsafe(no_mangle)]
        extern "C" fn main(_: ::core::ffi::c_int, _: *const *const ::core::ffi::c_char) -> ::core::ffi::c_int {
            $crate::process::run_short($main)
        }
    };
}

/// Runs `main`, and ends the process with its exit code. It is what [`short_main!`](crate::short_main) calls.
pub fn run(main: fn() -> u8) -> c_int {
    open_standard_streams();
    // Instead, a write into a pipe that nobody reads fails. It is a signal that can be ignored, so this does not fail.
    // SAFETY: to ignore a signal runs no code of ours in a handler.
    let _ = unsafe { signal(Signal::SIGPIPE, SigHandler::SigIgn) };
    let code = main();
    // Nobody is left to tell when standard output is closed.
    drop(std::io::stdout().flush());
    exit(code.into())
}

/// A file that is opened while a standard stream is closed would take that one's number, and get what is printed.
fn open_standard_streams() {
    // SAFETY: the numbers are only asked about; that nobody has one of them is an answer.
    let streams = [0, 1, 2].map(|number| unsafe { BorrowedFd::borrow_raw(number) });
    let mut polled = streams.map(|stream| PollFd::new(stream, PollFlags::empty()));
    if poll(&mut polled, PollTimeout::ZERO).is_err() {
        exit(1);
    }
    let is_closed = |stream: &PollFd<'_>| stream.revents().is_some_and(|events| events.contains(PollFlags::POLLNVAL));
    for _ in polled.iter().filter(|stream| is_closed(stream)) {
        // It gets the smallest number that is free, which is that of the stream.
        match open(c"/dev/null", OFlag::O_RDWR, Mode::empty()) {
            Ok(null) => drop(null.into_raw_fd()),
            Err(_) => exit(1),
        }
    }
}
