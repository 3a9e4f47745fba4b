//! Who is at the other end of a vsock connection.
//!
//! vsock knows no network namespaces: where the kernel has a transport for connections of a machine with itself
//! (`vsock_loopback`, or VMCI's own), any process of any container can connect to the agent's ports, by the address
//! [`VMADDR_CID_LOCAL`] or the guest's own. Whoever is heard there is the host, and may do everything. So each listener
//! asks here first, and closes what comes from the guest itself before anything is read.
//!
//! Own sockets that are bound to [`VMADDR_CID_LOCAL`] on purpose are for their own machine alone: see
//! [`ServerAddress::is_for_this_machine`].

#![expect(unsafe_code, reason = "the ioctl that asks for the machine's own address")]

use std::fs::File;
use std::os::fd::{AsRawFd, BorrowedFd};

use libc::{VMADDR_CID_HOST, VMADDR_CID_LOCAL};
use nix::sys::socket::{VsockAddr, getpeername};

#[cfg(doc)]
use crate::config::ServerAddress;

/// `IOCTL_VM_SOCKETS_GET_LOCAL_CID` of linux/vm_sockets.h.
const GET_LOCAL_CID: libc::Ioctl = 0x07b9;

/// Whether a connection that has just been accepted is of this machine. One whose peer can't be told counts as such.
pub fn is_from_this_machine(connection: BorrowedFd<'_>) -> bool {
    getpeername::<VsockAddr>(connection.as_raw_fd()).map_or(true, |peer| is_this_machine(peer.cid()))
}

/// Whether `cid` is this machine.
pub fn is_this_machine(cid: u32) -> bool {
    is_one_of(cid, own_cid)
}

/// The address of a machine may change while it runs, when it is a copy of another: it is asked for each time.
fn is_one_of(cid: u32, own: impl FnOnce() -> Option<u32>) -> bool {
    // A machine that has guests and is none itself is told that the host's address is its own.
    cid != VMADDR_CID_HOST && (cid == VMADDR_CID_LOCAL || own() == Some(cid))
}

/// `None` where there is no vsock.
fn own_cid() -> Option<u32> {
    let device = File::open("/dev/vsock").ok()?;
    let mut cid = 0_u32;
    // SAFETY: the request writes one number of 32 bits to where the pointer points, which outlives the call.
    let asked = unsafe { libc::ioctl(device.as_raw_fd(), GET_LOCAL_CID, &raw mut cid) };
    (asked == 0).then_some(cid)
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsFd as _;

    use super::*;

    #[test]
    fn a_guest_knows_itself_by_both_its_addresses_and_its_host_is_another() {
        let own = || Some(7);
        assert_eq!([1, 2, 3, 7].map(|cid| is_one_of(cid, own)), [true, false, false, true]);
        assert!(is_one_of(1, || None) && !is_one_of(3, || None), "without a device");
        assert!(!is_one_of(2, || Some(2)), "of a machine that is a host");
    }

    #[test]
    fn who_cannot_be_told_is_taken_for_this_machine() {
        let (one, _other) = std::os::unix::net::UnixStream::pair().unwrap();
        assert!(is_from_this_machine(one.as_fd()));
    }
}
