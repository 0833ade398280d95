//! Opening the container's network namespace, and refusing the one we are in.

use linux_net::netlink::{Netlink, Op};
use linux_net::{Error as NetError, NetNs};

use crate::env::Environment;
use crate::error::{Code, Error, Result};

/// Opens `CNI_NETNS`.
///
/// # Errors
///
/// Code 3 when it is not there, code 8 when it is this process's own: a plugin that works there would take the node
/// off its network. `CNI_NETNS_OVERRIDE` allows it.
pub fn open(env: &Environment) -> Result<NetNs> {
    let path = env.netns()?;
    let netns = NetNs::open_path(path).map_err(|source| {
        let error = Error::from(source);
        Error::new(Code::UnknownContainer, format!("failed to open netns \"{}\": {}", path.display(), error.msg))
    })?;
    if !env.allow_own_netns && netns == NetNs::current()? {
        return Err(Error::new(Code::InvalidNetns, "plugin's netns and netns from CNI_NETNS should not be the same")
            .with_details("set CNI_NETNS_OVERRIDE=1 if you mean it"));
    }
    Ok(netns)
}

/// Opens `CNI_NETNS` for DEL; `None` when it is not given or gone, and every interface with it.
///
/// # Errors
///
/// Code 8 as [`open`], code 100 when it is there and cannot be opened.
pub fn open_if_there(env: &Environment) -> Result<Option<NetNs>> {
    let Some(path) = env.netns.as_deref() else { return Ok(None) };
    match NetNs::open_path(path) {
        // A file that is no namespace is what a lost bind mount leaves.
        Err(NetError::Invalid { .. }) => Ok(None),
        Err(error) if error.is_not_found() => Ok(None),
        Err(error) => Err(error.into()),
        Ok(_) => open(env).map(Some),
    }
}

/// Applies operations in one go and reports the first that failed.
///
/// # Errors
///
/// Code 100 with the operation as the `ip` command that does the same.
pub fn apply(netlink: &mut Netlink, ops: &[Op]) -> Result<()> {
    netlink.apply_all(ops).into_iter().collect::<Result<(), NetError>>().map_err(Error::from)
}
