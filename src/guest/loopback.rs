//! The loopback interface: up, with what netdevice(7) offers; netlink is more than one flag needs.

#![expect(unsafe_code, reason = "ioctl(2) takes a pointer")]

use std::io;
use std::os::fd::AsRawFd as _;

use nix::libc::{self, ifreq};
use nix::sys::socket::{AddressFamily, SockFlag, SockType, socket};

const NAME: &[u8] = b"lo";

/// The step in which the interface was not brought up.
#[derive(Debug, thiserror::Error)]
#[error("{step}: {source}")]
pub struct LoopbackError {
    /// What was done.
    pub step: &'static str,
    /// Why it failed.
    pub source: io::Error,
}

mod ioctls {
    use super::{ifreq, libc};
    nix::ioctl_readwrite_bad!(get_flags, libc::SIOCGIFFLAGS, ifreq);
    nix::ioctl_write_ptr_bad!(set_flags, libc::SIOCSIFFLAGS, ifreq);
}

/// Brings up the loopback interface of this network namespace.
///
/// # Errors
///
/// [`LoopbackError`].
pub fn up() -> Result<(), LoopbackError> {
    let failed = |step| move |errno: nix::Error| LoopbackError { step, source: errno.into() };
    let socket = socket(AddressFamily::Inet, SockType::Datagram, SockFlag::SOCK_CLOEXEC, None)
        .map_err(failed("open a socket"))?;
    let mut request = request();
    // SAFETY: the request lives on, and is the structure that this ioctl reads and fills.
    unsafe { ioctls::get_flags(socket.as_raw_fd(), &raw mut request) }
        .map_err(failed("read the flags of lo"))?;
    // SAFETY: the kernel has just filled in the flags.
    let flags = unsafe { request.ifr_ifru.ifru_flags };
    // Both are bits of a C short, and 0x41 fits.
    let up = i16::try_from(libc::IFF_UP | libc::IFF_RUNNING).unwrap_or_default();
    request.ifr_ifru.ifru_flags = flags | up;
    // SAFETY: the request lives on, and is the structure that this ioctl reads.
    unsafe { ioctls::set_flags(socket.as_raw_fd(), &raw const request) }.map_err(failed("bring up lo"))?;
    Ok(())
}

/// A request about `lo`, zero otherwise.
fn request() -> ifreq {
    // SAFETY: all zeros is a valid value of each of its fields, which are integers and arrays of them.
    let mut request: ifreq = unsafe { std::mem::zeroed() };
    for (place, byte) in request.ifr_name.iter_mut().zip(NAME) {
        // c_char is signed here and unsigned there; ASCII is the same in both.
        *place = libc::c_char::from_ne_bytes([*byte]);
    }
    request
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_request_names_the_interface() {
        let name: Vec<u8> = request().ifr_name.iter().map(|c| c.to_ne_bytes()[0]).collect();
        assert!(name.starts_with(b"lo\0"));
    }
}
