//! The socket that the kernel tells its events through (netlink(7), `NETLINK_KOBJECT_UEVENT`).
//!
//! Anybody may send to such a socket. Only what has the sender port 0, which is the kernel's alone, counts.

#![expect(unsafe_code, reason = "to watch a descriptor, tokio wants the promise that it stays open")]

use std::io;
use std::os::fd::{AsRawFd, OwnedFd};

use nix::errno::Errno;
use nix::sys::socket::{
    AddressFamily, NetlinkAddr, SockFlag, SockProtocol, SockType, bind, recvfrom, socket,
};
use slog::{Logger, debug, trace, warn};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::task::AbortHandle;

use super::{Notice, Uevent, Uevents};
use crate::device::DeviceError;

/// The multicast group of the kernel's own events; udev's are another.
const KERNEL_EVENTS: u32 = 1;

/// More than the kernel puts into an event (2 KiB of pairs and the path).
const MESSAGE_LEN: usize = 8 * 1024;

/// Listens until it is dropped.
#[derive(Debug)]
pub struct Listener {
    task: AbortHandle,
}

impl Drop for Listener {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Uevents {
    /// Publishes the kernel's events from now on, in a task of the current runtime.
    ///
    /// # Errors
    ///
    /// The socket can't be had.
    pub fn listen(&self, log: Logger) -> Result<Listener, DeviceError> {
        let socket = open().and_then(watch)?;
        let task = tokio::spawn(run(socket, self.clone(), log)).abort_handle();
        Ok(Listener { task })
    }
}

fn watch(socket: OwnedFd) -> Result<AsyncFd<OwnedFd>, DeviceError> {
    // SAFETY: the descriptor is owned, and moved into the registration: it stays open and the same as long as
    // that.
    let registered = unsafe { AsyncFd::register_with_interest(socket, Interest::READABLE) };
    registered.map_err(|error| DeviceError::Socket { step: "watch", source: errno(&error.into()) })
}

fn errno(error: &io::Error) -> Errno {
    error.raw_os_error().map_or(Errno::UnknownErrno, Errno::from_raw)
}

fn open() -> Result<OwnedFd, DeviceError> {
    let at = |step| move |source| DeviceError::Socket { step, source };
    let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
    let protocol = SockProtocol::NetlinkKObjectUEvent;
    let socket = socket(AddressFamily::Netlink, SockType::Datagram, flags, protocol).map_err(at("open"))?;
    bind(socket.as_raw_fd(), &NetlinkAddr::new(0, KERNEL_EVENTS)).map_err(at("bind"))?;
    Ok(socket)
}

async fn run(socket: AsyncFd<OwnedFd>, uevents: Uevents, log: Logger) {
    let mut buffer = vec![0; MESSAGE_LEN];
    loop {
        let mut ready = match socket.readable().await {
            Ok(ready) => ready,
            Err(error) => {
                warn!(log, "events of devices end here"; "cause" => %error);
                return;
            }
        };
        let received = ready.try_io(|socket| Ok(recvfrom::<NetlinkAddr>(socket.as_raw_fd(), &mut buffer)?));
        let Ok(received) = received else { continue };
        match received {
            Ok((len, sender)) => {
                let message = buffer.get(..len).unwrap_or_default();
                receive(message, sender.map(|sender| sender.pid()), &uevents, &log);
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            // The kernel had more to tell than the socket holds.
            Err(error) if errno(&error) == Errno::ENOBUFS => uevents.publish(Notice::Look),
            Err(error) => {
                warn!(log, "events of devices end here"; "cause" => %error);
                return;
            }
        }
    }
}

/// Publishes a message if it is an event and the kernel's.
fn receive(message: &[u8], sender: Option<u32>, uevents: &Uevents, log: &Logger) {
    if sender != Some(0) {
        debug!(log, "event that the kernel did not send"; "port" => sender);
        return;
    }
    match Uevent::parse(message) {
        Ok(event) => {
            trace!(log, "event"; "action" => ?event.action, "devpath" => &event.devpath);
            uevents.publish(Notice::Event(event.into()));
        }
        Err(cause) => debug!(log, "event not understood"; "cause" => %cause),
    }
}

#[cfg(test)]
mod tests {
    use slog::{Discard, o};

    use super::*;

    const EVENT: &[u8] = b"add@/a\0ACTION=add\0DEVPATH=/a\0SUBSYSTEM=block\0";

    #[tokio::test]
    async fn only_the_kernel_is_believed() {
        let uevents = Uevents::new();
        let mut heard = uevents.subscribe();
        let log = Logger::root(Discard, o!());
        receive(EVENT, Some(4711), &uevents, &log);
        receive(EVENT, None, &uevents, &log);
        receive(b"junk", Some(0), &uevents, &log);
        receive(b"add@/b\0ACTION=add\0DEVPATH=/b\0", Some(0), &uevents, &log);
        let Notice::Event(event) = heard.next().await else { panic!("no event") };
        assert_eq!(event.devpath, "/b", "an event that the kernel did not send was believed");
    }
}
