//! The number of a link by its name, and its name by its number.
//!
//! rtnetlink answers such a question with all that it knows of the link, some 1,500 bytes. Two older requests know the answer alone, in a
//! twentieth of the time. They work on a socket of any kind, and are about the namespace that this was opened in.
//!
//! Source: man 7 `netdevice`, `SIOCGIFINDEX` and `SIOCGIFNAME`.

#![expect(unsafe_code, reason = "two requests of ioctl")]

use std::{
    ffi::{CStr, c_int, c_ulong},
    os::fd::{AsRawFd as _, BorrowedFd},
};

use nix::errno::Errno;

use crate::name::IfName;

/// The number of the link of this name; `None` when there is none.
pub(super) fn of_name(socket: BorrowedFd<'_>, name: &IfName) -> Result<Option<u32>, Errno> {
    let mut request = empty();
    for (to, from) in request.ifr_name.iter_mut().zip(name.as_str().bytes()) {
        *to = from.cast_signed();
    }
    if !ask(socket, libc::SIOCGIFINDEX, &mut request)? {
        return Ok(None);
    }
    // SAFETY: the kernel has just written this member of the union.
    Ok(Some(unsafe { request.ifr_ifru.ifru_ifindex }.cast_unsigned()))
}

/// The name of the link of this number; `None` when there is none.
pub(super) fn name_of(socket: BorrowedFd<'_>, index: u32) -> Result<Option<IfName>, Errno> {
    let mut request = empty();
    request.ifr_ifru.ifru_ifindex = index.cast_signed();
    if !ask(socket, libc::SIOCGIFNAME, &mut request)? {
        return Ok(None);
    }
    let name = request.ifr_name.map(c_char_as_byte);
    let name = CStr::from_bytes_until_nul(&name).ok().and_then(|name| name.to_str().ok());
    Ok(name.and_then(|name| IfName::new(name).ok()))
}

fn c_char_as_byte(char: libc::c_char) -> u8 {
    char.cast_unsigned()
}

fn empty() -> libc::ifreq {
    libc::ifreq { ifr_name: [0; libc::IFNAMSIZ], ifr_ifru: libc::__c_anonymous_ifr_ifru { ifru_ifindex: 0 } }
}

/// Returns whether there is such a link.
fn ask(socket: BorrowedFd<'_>, what: c_ulong, request: &mut libc::ifreq) -> Result<bool, Errno> {
    // SAFETY: both requests read and write one `ifreq`, which is alive and initialised as far as they read it.
    let code: c_int = unsafe { libc::ioctl(socket.as_raw_fd(), what, request) };
    match Errno::result(code) {
        Ok(_) => Ok(true),
        Err(Errno::ENODEV) => Ok(false),
        Err(errno) => Err(errno),
    }
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsFd as _;

    use super::*;
    use crate::{NetNs, Netlink, Op, netlink::socket::Socket};

    #[test]
    fn name_and_number_are_those_of_the_socket_s_namespace() {
        if !crate::testing::enter_sandbox() {
            return;
        }
        let other = NetNs::create("other").unwrap();
        let bridge: IfName = "br-of-15-bytes_".parse().unwrap();
        Netlink::open_in(&other).unwrap().apply(&Op::AddBridge { name: bridge.clone() }).unwrap();
        let inside = other.run(|| Socket::open(&[]).unwrap()).unwrap();
        let index = of_name(inside.as_fd(), &bridge).unwrap().unwrap();
        let link = Netlink::open_in(&other).unwrap().link(&bridge).unwrap().unwrap();
        assert_eq!(index, link.index);
        assert_eq!(name_of(inside.as_fd(), index).unwrap(), Some(bridge.clone()));
        let outside = Socket::open(&[]).unwrap();
        assert_eq!(of_name(outside.as_fd(), &bridge).unwrap(), None);
        assert_eq!(name_of(outside.as_fd(), index + 1000).unwrap(), None);
        assert_eq!(of_name(outside.as_fd(), &IfName::loopback()).unwrap(), Some(1));
    }
}
