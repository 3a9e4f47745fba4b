//! bpf(2): giving a device program to the kernel, and to a cgroup.
//!
//! The attributes are the members of `union bpf_attr` (linux/bpf.h) for the command, up to the last field
//! that is needed: the kernel takes the rest for zero.

#![expect(unsafe_code, reason = "bpf(2) has no wrapper in nix")]

use super::instruction::Instruction;
use nix::errno::Errno;
use std::ffi::CStr;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::sync::{Arc, Mutex, PoisonError};

// linux/bpf.h
const BPF_PROG_LOAD: libc::c_int = 5;
const BPF_PROG_ATTACH: libc::c_int = 8;
const BPF_PROG_TYPE_CGROUP_DEVICE: u32 = 15;
const BPF_CGROUP_DEVICE: u32 = 6;
const BPF_F_ALLOW_MULTI: u32 = 2;

/// A program of ours calls no function of the kernel, so any licence will do.
const LICENCE: &CStr = c"Apache-2.0";
/// What `bpftool prog` shows.
const NAME: &[u8; 16] = b"nakai_devices\0\0\0";
/// For what the verifier has to say. Its last words may be lost if it says more; that is ENOSPC.
const LOG_SIZE: u32 = 256 << 10;
/// How often a load is tried that a signal interrupts.
const TRIES: usize = 5;

/// Why a program is not in force.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum AttachError {
    /// The kernel does not take the program.
    #[error("loading the device program: {source} ({why})")]
    Load {
        /// What the kernel said.
        source: Errno,
        /// The verifier's last line, or what the error number stands for here.
        why: String,
    },
    /// The cgroup does not take the program.
    #[error("attaching the device program: {source}{why}")]
    Attach {
        /// What the kernel said.
        source: Errno,
        /// What the error number stands for here.
        why: &'static str,
    },
}

/// For BPF_PROG_LOAD.
#[repr(C)]
#[derive(Default)]
struct LoadAttributes {
    program_type: u32,
    instruction_count: u32,
    instructions: u64,
    licence: u64,
    log_level: u32,
    log_size: u32,
    log_buffer: u64,
    kernel_version: u32,
    flags: u32,
    name: [u8; 16],
}

/// For BPF_PROG_ATTACH.
#[repr(C)]
struct AttachAttributes {
    target: RawFd,
    program: RawFd,
    attach_type: u32,
    flags: u32,
}

/// Has the kernel verify the program and keep it, as long as the fd is open or a cgroup has it.
pub(super) fn load(program: &[Instruction]) -> Result<OwnedFd, AttachError> {
    load_logged(program, &mut []).map_err(|source| {
        let mut log = vec![0; LOG_SIZE as usize];
        // Again, for the reason. Should it work this time, the reason is gone.
        let why = match source {
            Errno::EINVAL | Errno::EACCES => {
                load_logged(program, &mut log).err().and_then(|_| last_words(&log))
            }
            _ => None,
        };
        AttachError::Load { source, why: why.unwrap_or_else(|| load_reason(source).to_owned()) }
    })
}

/// The program that was loaded last. Most containers have the same rules, and the kernel verifies a program each time
/// that it is loaded.
static LAST: Mutex<Option<(Vec<Instruction>, Arc<OwnedFd>)>> = Mutex::new(None);

/// As [`load`], unless the program is the one before it.
fn load_once(program: &[Instruction]) -> Result<Arc<OwnedFd>, AttachError> {
    let mut last = LAST.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some((_, loaded)) = last.as_ref().filter(|(known, _)| known == program) {
        return Ok(loaded.clone());
    }
    let loaded = Arc::new(load(program)?);
    *last = Some((program.to_vec(), loaded.clone()));
    Ok(loaded)
}

/// Puts a program into force in a cgroup and all below. The cgroup keeps it.
pub(super) fn enforce(program: &[Instruction], cgroup: BorrowedFd<'_>) -> Result<(), AttachError> {
    match attach(&*load_once(program)?, cgroup) {
        // Also said of a program that is in force there already: another of the same kind may be.
        Err(AttachError::Attach { source: Errno::EINVAL, .. }) => attach(&load(program)?, cgroup),
        other => other,
    }
}

fn load_logged(program: &[Instruction], log: &mut [u8]) -> nix::Result<OwnedFd> {
    let too_long = |_| Errno::E2BIG;
    let logged = !log.is_empty();
    let attributes = LoadAttributes {
        program_type: BPF_PROG_TYPE_CGROUP_DEVICE,
        instruction_count: u32::try_from(program.len()).map_err(too_long)?,
        instructions: program.as_ptr() as u64,
        licence: LICENCE.as_ptr() as u64,
        log_level: u32::from(logged),
        log_size: u32::try_from(log.len()).map_err(too_long)?,
        log_buffer: if logged { log.as_mut_ptr() as u64 } else { 0 },
        name: *NAME,
        ..LoadAttributes::default()
    };
    let mut result = Err(Errno::EAGAIN);
    for _ in 0..TRIES {
        let attributes = &raw const attributes;
        let size = size_of::<LoadAttributes>();
        // SAFETY: the attributes are those of BPF_PROG_LOAD, of that size, and what they point to outlives the
        // call: as many instructions as they say, a string with its end, and a buffer of the size they say.
        result = Errno::result(unsafe { libc::syscall(libc::SYS_bpf, BPF_PROG_LOAD, attributes, size) });
        if result != Err(Errno::EAGAIN) {
            break;
        }
    }
    let fd = RawFd::try_from(result?).map_err(|_| Errno::EBADF)?;
    // SAFETY: the kernel just gave us this fd (close-on-exec, as all of bpf(2)), and nobody else knows it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Puts the program into force in a cgroup and all below. The cgroup keeps it.
pub(super) fn attach(program: &OwnedFd, cgroup: BorrowedFd<'_>) -> Result<(), AttachError> {
    let attributes = AttachAttributes {
        target: cgroup.as_raw_fd(),
        program: program.as_raw_fd(),
        attach_type: BPF_CGROUP_DEVICE,
        flags: BPF_F_ALLOW_MULTI,
    };
    let size = size_of::<AttachAttributes>();
    // SAFETY: the attributes are those of BPF_PROG_ATTACH, of that size, and both fds are open.
    let result = unsafe { libc::syscall(libc::SYS_bpf, BPF_PROG_ATTACH, &raw const attributes, size) };
    Errno::result(result)
        .map(drop)
        .map_err(|source| AttachError::Attach { source, why: attach_reason(source) })
}

fn load_reason(errno: Errno) -> &'static str {
    match errno {
        Errno::ENOSYS => "the kernel has no CONFIG_BPF_SYSCALL",
        Errno::EINVAL => "the kernel may have no CONFIG_CGROUP_BPF",
        Errno::EPERM => {
            "this needs CAP_SYS_ADMIN, or CAP_BPF and CAP_NET_ADMIN; before Linux 5.11 also a higher RLIMIT_MEMLOCK"
        }
        _ => "the kernel says no more",
    }
}

fn attach_reason(errno: Errno) -> &'static str {
    match errno {
        Errno::EPERM => " (a cgroup above may have a program that allows no other)",
        Errno::EINVAL => " (the kernel may have no CONFIG_CGROUP_BPF)",
        Errno::E2BIG => " (the cgroup has 64 programs already)",
        _ => "",
    }
}

/// The line of the verifier's log that says why: the last one, but for its statistics.
pub(super) fn last_words(log: &[u8]) -> Option<String> {
    let text = String::from_utf8_lossy(log);
    let lines = text.trim_end_matches('\0').lines().map(str::trim);
    let line = lines.rev().find(|line| !line.is_empty() && !line.starts_with("processed "))?;
    Some(format!("the verifier: {line}"))
}
