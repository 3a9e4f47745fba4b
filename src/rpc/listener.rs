//! The listening socket: the supervisor holds a duplicate of it.
//!
//! Connections that come while one server is gone and the next is not there yet wait in its queue.

#![expect(
    unsafe_code,
    reason = "accept4(2) returns a bare number, and AsyncFd's constructor trusts its caller"
)]

use std::io;
use std::os::fd::{AsFd as _, AsRawFd, FromRawFd, OwnedFd};

use nix::errno::Errno;
use nix::sys::socket::{
    AddressFamily, Backlog, SockFlag, SockType, UnixAddr, VsockAddr, accept4, bind as bind_socket,
    listen as listen_on, socket,
};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

use crate::config::ServerAddress;
use crate::vsock;

/// How many connections wait to be accepted.
const BACKLOG: i32 = 128;

/// A socket that listens on `address`, non-blocking and close-on-exec.
pub(super) fn bind(address: &ServerAddress) -> nix::Result<OwnedFd> {
    let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
    let open = |family| socket(family, SockType::Stream, flags, None);
    let fd = match address {
        ServerAddress::Unix(path) => {
            let fd = open(AddressFamily::Unix)?;
            bind_socket(fd.as_raw_fd(), &UnixAddr::new(path)?)?;
            fd
        }
        ServerAddress::UnixAbstract(name) => {
            let fd = open(AddressFamily::Unix)?;
            bind_socket(fd.as_raw_fd(), &UnixAddr::new_abstract(name.as_bytes())?)?;
            fd
        }
        ServerAddress::Vsock { cid, port } => {
            let fd = open(AddressFamily::Vsock)?;
            bind_socket(fd.as_raw_fd(), &VsockAddr::new(*cid, *port))?;
            fd
        }
    };
    listen_on(&fd, Backlog::new(BACKLOG)?)?;
    Ok(fd)
}

/// Takes a connection from `listener`, non-blocking and close-on-exec. ECONNREFUSED if it is one that is not served: of
/// anybody but the host, where only the host is heard.
pub(super) fn accept(listener: &OwnedFd, is_for_all: bool) -> nix::Result<OwnedFd> {
    let fd = accept4(listener.as_raw_fd(), SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK)?;
    // SAFETY: the number is of a descriptor that was just made for us.
    let connection = unsafe { OwnedFd::from_raw_fd(fd) };
    if !is_for_all && !vsock::is_from_the_host(connection.as_fd()) {
        return Err(Errno::ECONNREFUSED);
    }
    Ok(connection)
}

/// Puts a socket of [`bind`]'s into the event loop.
pub(super) fn register(listener: OwnedFd) -> io::Result<AsyncFd<OwnedFd>> {
    // SAFETY: the descriptor is owned by the registration, and nobody else closes it.
    Ok(unsafe { AsyncFd::register_with_interest(listener, Interest::READABLE) }?)
}
