//! The listening socket: made by us and not by ttrpc, so that the supervisor can hold a duplicate of it.
//!
//! Connections that come while one server is gone and the next is not there yet wait in its queue.

#![expect(unsafe_code, reason = "ttrpc takes a socket as a bare number")]

use std::os::fd::{AsRawFd, IntoRawFd, OwnedFd};

use nix::sys::socket::{
    AddressFamily, Backlog, SockFlag, SockType, UnixAddr, VsockAddr, bind as bind_socket,
    listen as listen_on, socket,
};

use crate::config::ServerAddress;

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

/// Lets `server` accept on `socket`, which [`bind`] made for `address`.
pub(super) fn listen(
    server: ttrpc::r#async::Server,
    address: &ServerAddress,
    socket: OwnedFd,
) -> ttrpc::Result<ttrpc::r#async::Server> {
    let fd = socket.into_raw_fd();
    match address {
        // SAFETY: the number is of a socket of this family that listens, and is the server's alone from here on.
        ServerAddress::Vsock { .. } => unsafe { server.add_vsock_listener(fd) },
        // SAFETY: as above.
        ServerAddress::Unix(_) | ServerAddress::UnixAbstract(_) => unsafe { server.add_unix_listener(fd) },
    }
}
