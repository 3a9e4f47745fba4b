//! Who is at the other end of a vsock connection.
//!
//! vsock knows no network namespaces: where the kernel has a transport for connections of a machine with itself
//! (`vsock_loopback`, or VMCI's own), any process of any container can connect to the agent's ports, by the address
//! `VMADDR_CID_LOCAL` or the guest's own. A container that starts machines itself can have them connect, too. Whoever is
//! heard there is the host, and may do everything. So each listener asks here first, and closes what does not come from
//! the host's addresses ([`VMADDR_CID_HOST`], [`VMADDR_CID_HYPERVISOR`]) before anything is read.
//!
//! Own sockets that are bound to `VMADDR_CID_LOCAL` on purpose are for their own machine: see
//! [`ServerAddress::is_for_this_machine`].

use std::os::fd::{AsRawFd, BorrowedFd};

use libc::{VMADDR_CID_HOST, VMADDR_CID_HYPERVISOR};
use nix::sys::socket::{VsockAddr, getpeername};

#[cfg(doc)]
use crate::config::ServerAddress;

/// Whether a connection that has just been accepted is the host's. One whose peer can't be told is not.
pub fn is_from_the_host(connection: BorrowedFd<'_>) -> bool {
    getpeername::<VsockAddr>(connection.as_raw_fd()).is_ok_and(|peer| is_the_host(peer.cid()))
}

/// Whether `cid` is the host.
pub fn is_the_host(cid: u32) -> bool {
    matches!(cid, VMADDR_CID_HOST | VMADDR_CID_HYPERVISOR)
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsFd as _;

    use super::*;

    #[test]
    fn neither_the_guest_itself_nor_another_machine_is_the_host() {
        assert_eq!([0, 1, 2, 3, 42, u32::MAX].map(is_the_host), [true, false, true, false, false, false]);
    }

    #[test]
    fn who_cannot_be_told_is_not_the_host() {
        let (one, _other) = std::os::unix::net::UnixStream::pair().unwrap();
        assert!(!is_from_the_host(one.as_fd()));
    }
}
