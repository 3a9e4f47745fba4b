//! The few calls of a worker that neither nix nor rustix has.

#![expect(unsafe_code, reason = "raw system calls and one glibc function without a safe wrapper")]

use std::ffi::CStr;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};

use nix::errno::Errno;

use crate::supervisor::own;

#[cfg(target_env = "gnu")]
unsafe extern "C" {
    /// glibc: overrides nsswitch.conf for one database (declared in `<nss.h>`).
    fn __nss_configure_lookup(dbname: *const libc::c_char, service: *const libc::c_char) -> libc::c_int;
}

/// Keeps name service look-ups to files.
///
/// Otherwise glibc, even a static one, obeys the container image's nsswitch.conf when libcontainer looks up
/// a home directory, and loads the image's `libnss_*.so` into the agent's own process.
pub(super) fn restrict_name_service_to_files() {
    #[cfg(target_env = "gnu")]
    for database in [c"passwd", c"group", c"shadow", c"initgroups"] {
        // SAFETY: both are NUL-terminated strings that live for ever; the process has one thread.
        unsafe { __nss_configure_lookup(database.as_ptr(), c"files".as_ptr()) };
    }
}

/// Every signal's action becomes the default, also those that glibc reserves for itself (32 and 33).
pub(super) fn default_signal_actions() {
    // The kernel's struct sigaction, zeroed: SIG_DFL, no flags, no mask (sigaction(2), "C library/kernel differences").
    let default = [0_u64; 4];
    for signal in 1..=64_i64 {
        // SAFETY: `default` is as large as the kernel's structure on every 64-bit architecture; the mask is 8 bytes.
        unsafe {
            libc::syscall(libc::SYS_rt_sigaction, signal, default.as_ptr(), std::ptr::null::<u64>(), 8_usize)
        };
    }
}

/// Sets what `signal` does.
pub(super) fn set_signal(signal: nix::sys::signal::Signal, action: nix::sys::signal::SigHandler) {
    // SAFETY: only ever called with SIG_DFL and SIG_IGN, which have no handler that could do harm.
    let _ = unsafe { nix::sys::signal::signal(signal, action) };
}

/// Gives the process a session keyring of its own, so that it can't see its parent's (keyctl(2)).
pub(super) fn join_session_keyring(name: &CStr) -> Result<(), Errno> {
    const KEYCTL_JOIN_SESSION_KEYRING: libc::c_int = 1;
    // SAFETY: `name` is a NUL-terminated string that outlives the call.
    let result = unsafe { libc::syscall(libc::SYS_keyctl, KEYCTL_JOIN_SESSION_KEYRING, name.as_ptr()) };
    Errno::result(result).map(drop)
}

/// Opens the other side of a pty master without a path (ioctl_tty(2), `TIOCGPTPEER`).
pub(super) fn open_pty_peer(master: &OwnedFd) -> Result<OwnedFd, Errno> {
    let flags = libc::O_RDWR | libc::O_NOCTTY | libc::O_CLOEXEC;
    // SAFETY: the argument of this ioctl is an int, not a pointer.
    let result = unsafe { libc::ioctl(master.as_fd().as_raw_fd(), libc::TIOCGPTPEER, flags) };
    Errno::result(result).map(own)
}

/// Opens a handle for `pid` that can't come to mean another process (pidfd_open(2)).
pub(super) fn pidfd_open(pid: nix::unistd::Pid) -> Result<OwnedFd, Errno> {
    // SAFETY: plain integers.
    let result = unsafe { libc::syscall(libc::SYS_pidfd_open, pid.as_raw(), 0) };
    Errno::result(result).map(|fd| own(i32::try_from(fd).unwrap_or(-1)))
}

/// Ends the process at once, without running what the supervisor registered for its own exit.
pub(super) fn exit_now(code: i32) -> ! {
    // SAFETY: _exit(2) is always safe to call.
    unsafe { libc::_exit(code) }
}
