//! Tells systemd that the agent is ready, if systemd asked.
//!
//! A unit of `Type=notify` gets the name of a datagram socket in `NOTIFY_SOCKET`; `READY=1` sent there starts what is ordered after
//! the unit, such as a kubelet that must not start pods before `subnet.env` exists.
//!
//! Source: `sd_notify(3)`; flannel sends the same at the same point.

use std::ffi::OsStr;
use std::io;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram};

/// Sends `READY=1` to the socket that `NOTIFY_SOCKET` names.
///
/// # Errors
///
/// That of the socket, when nobody listens there.
pub fn ready(notify_socket: &OsStr) -> io::Result<()> {
    // A leading @ stands for the zero byte of an abstract name, which has no file.
    let address = match notify_socket.as_bytes() {
        [b'@', name @ ..] => SocketAddr::from_abstract_name(name)?,
        _ => SocketAddr::from_pathname(notify_socket)?,
    };
    UnixDatagram::unbound()?.send_to_addr(b"READY=1", &address)?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_supervisor_is_told_through_its_socket() {
        let scratch = tempfile::tempdir().unwrap();
        let path = scratch.path().join("notify");
        let supervisor = UnixDatagram::bind(&path).unwrap();
        ready(path.as_os_str()).unwrap();
        let mut buffer = [0; 16];
        let length = supervisor.recv(&mut buffer).unwrap();
        assert_eq!(&buffer[..length], b"READY=1");
    }
}
