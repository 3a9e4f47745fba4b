//! The few calls of a worker that neither nix nor rustix has.

#![expect(unsafe_code, reason = "raw system calls and one glibc function without a safe wrapper")]

use std::ffi::CStr;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use nix::NixPath;
use nix::errno::Errno;

use crate::supervisor::{close_all_but, own};

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
    static DONE: AtomicBool = AtomicBool::new(false);
    if DONE.swap(true, Ordering::Relaxed) {
        return;
    }
    #[cfg(target_env = "gnu")]
    for database in [c"passwd", c"group", c"shadow", c"initgroups"] {
        // SAFETY: both are NUL-terminated strings that live for ever; the process has one thread.
        unsafe { __nss_configure_lookup(database.as_ptr(), c"files".as_ptr()) };
    }
}

/// The signals that whoever started the agent had ignored, a bit for each; all, until that is known.
static IGNORED: AtomicU64 = AtomicU64::new(u64::MAX);

/// Notes which signals this process ignores (proc_pid_status(5)), for [`default_signal_actions`] in those it forks.
pub(super) fn note_ignored_signals() {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let ignored =
        status.lines().find_map(|line| u64::from_str_radix(line.strip_prefix("SigIgn:")?.trim(), 16).ok());
    if let Some(ignored) = ignored {
        IGNORED.store(ignored, Ordering::Relaxed);
    }
}

/// No signal is ignored any more, also none that glibc reserves for itself (32 and 33); what has a handler gets its
/// default action back by execve(2).
pub(super) fn default_signal_actions() {
    // Ignored by all Rust programs, and by a worker.
    reset_signals(IGNORED.load(Ordering::Relaxed) | BROKEN_PIPE);
}

/// The same but for what a worker itself ignores: for an init that waits for its start, to which signals are sent
/// already.
pub(super) fn heed_signals() {
    reset_signals(IGNORED.load(Ordering::Relaxed) & !BROKEN_PIPE);
}

/// The bit of SIGPIPE.
const BROKEN_PIPE: u64 = 1 << (libc::SIGPIPE - 1);

fn reset_signals(ignored: u64) {
    // The kernel's struct sigaction, zeroed: SIG_DFL, no flags, no mask (sigaction(2), "C library/kernel differences").
    let default = [0_u64; 4];
    for signal in (1..=64_i64).filter(|signal| ignored & 1 << (signal - 1) != 0) {
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

/// Gives the process the session keyring of that name, so that it can't see its parent's (keyctl(2)). A new one is
/// made such that the container's further processes of the same user find it: for that they need the right to search
/// it, which it does not have by itself.
pub(super) fn join_session_keyring(name: &CStr) -> Result<(), Errno> {
    const KEYCTL_JOIN_SESSION_KEYRING: libc::c_int = 1;
    const KEYCTL_SETPERM: libc::c_int = 5;
    /// Everything for who possesses it; its user may view, read, search and link (keyctl_setperm(3)).
    const PERMISSIONS: libc::c_uint = 0x3f1b_0000;
    // SAFETY: `name` is a NUL-terminated string that outlives the call.
    let keyring = unsafe { libc::syscall(libc::SYS_keyctl, KEYCTL_JOIN_SESSION_KEYRING, name.as_ptr()) };
    let keyring = Errno::result(keyring)?;
    // SAFETY: its arguments are numbers.
    let result = unsafe { libc::syscall(libc::SYS_keyctl, KEYCTL_SETPERM, keyring, PERMISSIONS) };
    Errno::result(result).map(drop)
}

/// Lets the other side of a pty master be opened (ioctl_tty(2), `TIOCSPTLCK`).
pub(super) fn unlock_pty(master: &OwnedFd) -> Result<(), Errno> {
    let locked: libc::c_int = 0;
    // SAFETY: the argument of this ioctl is an int to be read, which outlives the call.
    let result = unsafe { libc::ioctl(master.as_fd().as_raw_fd(), libc::TIOCSPTLCK, &raw const locked) };
    Errno::result(result).map(drop)
}

/// Opens the other side of a pty master without a path (ioctl_tty(2), `TIOCGPTPEER`).
pub(super) fn open_pty_peer(master: &OwnedFd) -> Result<OwnedFd, Errno> {
    let flags = libc::O_RDWR | libc::O_NOCTTY | libc::O_CLOEXEC;
    // SAFETY: the argument of this ioctl is an int, not a pointer.
    let result = unsafe { libc::ioctl(master.as_fd().as_raw_fd(), libc::TIOCGPTPEER, flags) };
    Errno::result(result).map(own)
}

/// Makes a terminal the controlling one of this session, of which the process is the leader (ioctl_tty(2)).
pub(super) fn take_terminal(terminal: &OwnedFd) -> Result<(), Errno> {
    // SAFETY: the argument of this ioctl is an int, not a pointer.
    let result = unsafe { libc::ioctl(terminal.as_fd().as_raw_fd(), libc::TIOCSCTTY, 0) };
    Errno::result(result).map(drop)
}

/// Opens a handle for `pid` that can't come to mean another process (pidfd_open(2)).
pub(super) fn pidfd_open(pid: nix::unistd::Pid) -> Result<OwnedFd, Errno> {
    // SAFETY: plain integers.
    let result = unsafe { libc::syscall(libc::SYS_pidfd_open, pid.as_raw(), 0) };
    Errno::result(result).map(|fd| own(i32::try_from(fd).unwrap_or(-1)))
}

/// Loads a seccomp filter for this process (seccomp(2)); each instruction is a `struct sock_filter`.
pub(super) fn load_seccomp_filter(program: &[u64], flags: u32) -> Result<(), Errno> {
    let len = libc::c_ushort::try_from(program.len()).map_err(|_| Errno::E2BIG)?;
    let filter = libc::sock_fprog { len, filter: program.as_ptr().cast_mut().cast() };
    // SAFETY: `filter` names `len` instructions of 8 bytes each, which the kernel only reads, and outlives the call.
    let result =
        unsafe { libc::syscall(libc::SYS_seccomp, libc::SECCOMP_SET_MODE_FILTER, flags, &raw const filter) };
    Errno::result(result).map(drop)
}

/// A copy of the mount at `path`, with all beneath it, that is mounted nowhere yet (open_tree(2)).
pub(super) fn open_tree(path: &Path) -> Result<OwnedFd, Errno> {
    let recursive = u32::try_from(libc::AT_RECURSIVE).unwrap_or_default();
    let flags = libc::OPEN_TREE_CLONE | libc::OPEN_TREE_CLOEXEC | recursive;
    // SAFETY: `path` is a NUL-terminated string that outlives the call.
    let call =
        |path: &CStr| unsafe { libc::syscall(libc::SYS_open_tree, libc::AT_FDCWD, path.as_ptr(), flags) };
    let result = path.with_nix_path(call)?;
    Errno::result(result).map(|fd| own(i32::try_from(fd).unwrap_or(-1)))
}

/// Sets and clears attributes of a mount, and of all beneath it if asked (mount_setattr(2)).
pub(super) fn set_mount_attributes(
    mount: &impl AsFd,
    set: u64,
    clear: u64,
    recursive: bool,
) -> Result<(), Errno> {
    let attributes = libc::mount_attr { attr_set: set, attr_clr: clear, propagation: 0, userns_fd: 0 };
    change_mount(mount, attributes, recursive)
}

/// Has a mount take part in nothing that is mounted beneath others that it is a copy of, nor they in what is beneath it.
pub(super) fn make_mount_private(mount: &OwnedFd) -> Result<(), Errno> {
    let attributes =
        libc::mount_attr { attr_set: 0, attr_clr: 0, propagation: libc::MS_PRIVATE, userns_fd: 0 };
    change_mount(mount, attributes, false)
}

/// Has a mount and all beneath it follow what they are copies of, and be followed by nothing.
pub(super) fn make_mounts_follow(mount: &OwnedFd) -> Result<(), Errno> {
    let attributes = libc::mount_attr { attr_set: 0, attr_clr: 0, propagation: libc::MS_SLAVE, userns_fd: 0 };
    change_mount(mount, attributes, true)
}

fn change_mount(mount: &impl AsFd, attributes: libc::mount_attr, recursive: bool) -> Result<(), Errno> {
    let flags = libc::AT_EMPTY_PATH | if recursive { libc::AT_RECURSIVE } else { 0 };
    let (fd, empty) = (mount.as_fd().as_raw_fd(), c"".as_ptr());
    let size = size_of::<libc::mount_attr>();
    let pointer = &raw const attributes;
    // SAFETY: the path is a NUL-terminated string, and the structure of that size outlives the call.
    let result = unsafe { libc::syscall(libc::SYS_mount_setattr, fd, empty, flags, pointer, size) };
    Errno::result(result).map(drop)
}

/// Mounts such a copy on `target` (move_mount(2)).
pub(super) fn move_mount(tree: &OwnedFd, target: &Path) -> Result<(), Errno> {
    let (from, flags) = (tree.as_raw_fd(), libc::MOVE_MOUNT_F_EMPTY_PATH);
    let call = |target: &CStr| {
        let empty = c"".as_ptr();
        // SAFETY: both paths are NUL-terminated strings that outlive the call.
        unsafe { libc::syscall(libc::SYS_move_mount, from, empty, libc::AT_FDCWD, target.as_ptr(), flags) }
    };
    Errno::result(target.with_nix_path(call)?).map(drop)
}

/// Takes a capability from what execve(2) may ever give (prctl(2)); EINVAL for one that the kernel does not know.
pub(super) fn drop_from_bounding_set(capability: u32) -> Result<(), Errno> {
    // SAFETY: plain integers.
    Errno::result(unsafe { libc::prctl(libc::PR_CAPBSET_DROP, libc::c_ulong::from(capability), 0, 0, 0) })
        .map(drop)
}

/// Empties the ambient set (prctl(2)).
pub(super) fn clear_ambient_set() -> Result<(), Errno> {
    ambient(libc::PR_CAP_AMBIENT_CLEAR_ALL, 0)
}

/// Adds a capability to the ambient set, if it is permitted and inheritable (prctl(2)).
pub(super) fn raise_ambient(capability: u32) -> Result<(), Errno> {
    ambient(libc::PR_CAP_AMBIENT_RAISE, capability)
}

fn ambient(what: libc::c_int, capability: u32) -> Result<(), Errno> {
    // SAFETY: plain integers.
    let result = unsafe { libc::prctl(libc::PR_CAP_AMBIENT, what, libc::c_ulong::from(capability), 0, 0) };
    Errno::result(result).map(drop)
}

/// Has this process keep its capabilities when it becomes somebody else (capabilities(7), `SECBIT_NO_SETUID_FIXUP`).
pub(super) fn keep_capabilities_whoever_it_is() -> Result<(), Errno> {
    const SECBIT_NO_SETUID_FIXUP: libc::c_ulong = 1 << 2;
    // SAFETY: plain integers.
    Errno::result(unsafe { libc::prctl(libc::PR_SET_SECUREBITS, SECBIT_NO_SETUID_FIXUP, 0, 0, 0) }).map(drop)
}

/// Sets three of this thread's capability sets (capset(2)).
pub(super) fn set_capabilities(effective: u64, permitted: u64, inheritable: u64) -> Result<(), Errno> {
    /// `_LINUX_CAPABILITY_VERSION_3`: two words for each set.
    const VERSION: u32 = 0x2008_0522;
    let header: [u32; 2] = [VERSION, 0];
    let sets = [effective, permitted, inheritable];
    let half = |shift: u32| sets.map(|set| u32::try_from((set >> shift) & 0xffff_ffff).unwrap_or_default());
    let data = [half(0), half(32)];
    // SAFETY: header and data are laid out as the kernel's structures of that version, and outlive the call.
    let result = unsafe { libc::syscall(libc::SYS_capset, header.as_ptr(), data.as_ptr()) };
    Errno::result(result).map(drop)
}

/// Whether the working directory is below this process's root. Only the kernel itself says so (getcwd(2)): where it says
/// that there is no way, glibc's function of that name looks for one by `..`, and finds another mount of the root.
pub(super) fn is_inside_root() -> Result<bool, Errno> {
    let mut path = [0_u8; 4096];
    // SAFETY: the kernel writes at most as many bytes as the buffer has, which outlives the call.
    let result = unsafe { libc::syscall(libc::SYS_getcwd, path.as_mut_ptr(), path.len()) };
    Errno::result(result)?;
    Ok(path.first() == Some(&b'/'))
}

/// Closes every descriptor but the standard streams and `kept`. Only for a process that uses none of the others any more.
pub(super) fn keep_only<'a>(kept: impl Iterator<Item = BorrowedFd<'a>>) {
    let mut numbers: Vec<_> = kept.map(|fd| fd.as_raw_fd()).collect();
    close_all_but(&mut numbers);
}

/// Sets the domain name of this UTS namespace (setdomainname(2)).
pub(super) fn set_domain_name(name: &[u8]) -> Result<(), Errno> {
    // SAFETY: the pointer and the length are those of one slice, which outlives the call.
    Errno::result(unsafe { libc::setdomainname(name.as_ptr().cast(), name.len()) }).map(drop)
}

/// Closes every descriptor, whatever its number. Only for a process that uses none any more.
pub(super) fn close_all() {
    // SAFETY: plain integers; the caller answers for who owns the descriptors.
    let _ = unsafe { libc::syscall(libc::SYS_close_range, 0, u32::MAX, 0) };
}

/// Ends the process at once, without running what the supervisor registered for its own exit.
pub(super) fn exit_now(code: i32) -> ! {
    // SAFETY: _exit(2) is always safe to call.
    unsafe { libc::_exit(code) }
}
