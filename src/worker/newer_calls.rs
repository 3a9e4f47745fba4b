//! System calls that are newer than a seccomp profile: for the program that makes one they do not exist.
//!
//! A profile that refuses what it does not name answers EPERM to a call that nobody had heard of when it was written. A
//! C library tries the new call first and goes on with the old one after ENOSYS only, so that its programs fail on a
//! new kernel. As with runc, such calls get ENOSYS: those with a number above the highest that the profile names, for
//! each architecture by itself. That says [`preface`], a few instructions that run before the profile's own.

use libseccomp::{ScmpArch, ScmpSyscall};
use oci_spec::runtime::{LinuxSeccomp, LinuxSeccompAction as Action};

use super::bpf::{ARCH, IF_ABOVE, IF_EQUAL, IF_SET, JUMP, LOAD, NUMBER, Op, RETURN};

/// What linux/audit.h calls the architectures that a kernel for x86-64 has. x32 has the number of x86-64.
const AUDIT_X86_64: u32 = 0xc000_003e;
const AUDIT_I386: u32 = 0x4000_0003;

/// In the number of a call of x32 (asm/unistd.h), and in -1, by which a tracer leaves a call out.
const X32_BIT: u32 = 0x4000_0000;

/// `SECCOMP_RET_ERRNO` with ENOSYS.
const NO_SUCH_CALL: u32 = 0x0005_0000 | libc::ENOSYS.unsigned_abs();

/// One instruction.
#[derive(Debug, Clone, Copy)]
enum Step {
    Do(u16, u8, u8, u32),
    /// Jump behind the last one.
    Leave,
}

/// What runs before the program of `profile`, in words as the kernel has them; nothing if it lets unknown calls through.
pub(super) fn preface(profile: &LinuxSeccomp) -> Vec<u64> {
    if matches!(
        profile.default_action(),
        Action::ScmpActAllow | Action::ScmpActLog | Action::ScmpActTrace | Action::ScmpActNotify
    ) {
        return Vec::new();
    }
    let has = |names: &[&str]| {
        profile.architectures().iter().flatten().any(|arch| names.contains(&arch.to_string().as_str()))
    };
    let newest = |wanted: bool, arch| wanted.then(|| newest(profile, arch)).flatten();
    let i386 = newest(has(&["SCMP_ARCH_X86"]), ScmpArch::X86);
    // libseccomp adds the guest's own in any case.
    let (x86_64, x32) = (newest(true, ScmpArch::X8664), newest(has(&["SCMP_ARCH_X32"]), ScmpArch::X32));
    let mut steps = Vec::new();
    if let Some(newest) = i386 {
        section(&mut steps, AUDIT_I386, above(newest));
    }
    if let Some(newest) = x86_64 {
        let mut of_x32 = x32.map(above).unwrap_or_default();
        of_x32.push(Step::Leave);
        let mut both = vec![Step::Do(IF_SET, 0, len(&of_x32), X32_BIT)];
        both.extend(of_x32);
        both.extend(above(newest));
        section(&mut steps, AUDIT_X86_64, both);
    }
    if steps.is_empty() {
        return Vec::new();
    }
    let mut all = vec![Step::Do(LOAD, 0, 0, ARCH)];
    all.extend(steps);
    let count = all.len();
    let word = |(at, step): (usize, Step)| match step {
        Step::Do(code, yes, no, value) => Op { code, yes, no, value }.word(),
        Step::Leave => {
            let rest = count.saturating_sub(at).saturating_sub(1);
            Op::plain(JUMP, u32::try_from(rest).unwrap_or_default()).word()
        }
    };
    all.into_iter().enumerate().map(word).collect()
}

/// The highest number that the profile has a name for, whatever it says of it.
fn newest(profile: &LinuxSeccomp, arch: ScmpArch) -> Option<u32> {
    let names = profile.syscalls().iter().flatten().flat_map(|rule| rule.names());
    let numbers = names.filter_map(|name| ScmpSyscall::from_name_by_arch(name, arch).ok());
    // Those that this architecture does not have are negative.
    numbers.filter_map(|call| u32::try_from(call.as_raw_syscall()).ok()).max()
}

/// For a number that is loaded.
fn above(newest: u32) -> Vec<Step> {
    vec![Step::Do(IF_ABOVE, 0, 1, newest), Step::Do(RETURN, 0, 0, NO_SUCH_CALL)]
}

/// Adds `steps` with the number loaded for them, for calls of that architecture; they are of no other.
fn section(all: &mut Vec<Step>, arch: u32, steps: Vec<Step>) {
    all.push(Step::Do(IF_EQUAL, 0, len(&steps).saturating_add(2), arch));
    all.push(Step::Do(LOAD, 0, 0, NUMBER));
    all.extend(steps);
    all.push(Step::Leave);
}

fn len(steps: &[Step]) -> u8 {
    u8::try_from(steps.len()).unwrap_or(u8::MAX)
}

#[cfg(test)]
mod tests {
    use std::os::fd::OwnedFd;

    use serde_json::{Value, json};

    use super::super::filter::compile;
    use super::*;

    const ALLOWED: u32 = 0x7fff_0000;
    const REFUSED: u32 = 0x0005_0001;

    /// What the kernel would answer.
    fn run(program: &[u64], arch: u32, number: u32) -> u32 {
        let mut data = [0; 16];
        (data[0], data[1]) = (number, arch);
        super::super::bpf::run(program, &data)
    }

    fn program(profile: Value) -> Vec<u64> {
        let file: OwnedFd = compile(&serde_json::from_value(profile).unwrap()).unwrap();
        let mut bytes = vec![0; 1 << 16];
        let len = nix::sys::uio::pread(&file, &mut bytes, 0).unwrap();
        bytes[..len].as_chunks().0.iter().map(|word| u64::from_ne_bytes(*word)).collect()
    }

    fn profile(default: &str, arches: &[&str]) -> Value {
        // 0, 60 and 436; for i386 3, 1 and 436.
        json!({"defaultAction": default, "architectures": arches, "syscalls": [
            {"names": ["read", "exit", "no_such_call"], "action": "SCMP_ACT_ALLOW"},
            {"names": ["close_range"], "action": "SCMP_ACT_ERRNO"},
        ]})
    }

    #[test]
    fn what_is_newer_than_the_profile_does_not_exist() {
        let program =
            program(profile("SCMP_ACT_ERRNO", &["SCMP_ARCH_X86_64", "SCMP_ARCH_X86", "SCMP_ARCH_X32"]));
        for (arch, number, expected) in [
            (AUDIT_X86_64, 0, ALLOWED),
            (AUDIT_X86_64, 1, REFUSED),
            (AUDIT_X86_64, 436, REFUSED),
            (AUDIT_X86_64, 437, NO_SUCH_CALL),
            (AUDIT_X86_64, X32_BIT, ALLOWED),
            (AUDIT_X86_64, X32_BIT | 436, REFUSED),
            (AUDIT_X86_64, X32_BIT | 437, NO_SUCH_CALL),
            (AUDIT_I386, 3, ALLOWED),
            (AUDIT_I386, 4, REFUSED),
            (AUDIT_I386, 437, NO_SUCH_CALL),
        ] {
            assert_eq!(run(&program, arch, number), expected, "{arch:#x} {number}");
        }
    }

    #[test]
    fn architectures_that_the_profile_does_not_have_are_its_own_affair() {
        let program = program(profile("SCMP_ACT_KILL_PROCESS", &[]));
        let killed = |arch, number| matches!(run(&program, arch, number), 0 | 0x8000_0000);
        assert!(killed(AUDIT_X86_64, 1) && killed(AUDIT_I386, 437) && killed(AUDIT_X86_64, X32_BIT | 437));
        assert_eq!(run(&program, AUDIT_X86_64, 437), NO_SUCH_CALL);
    }

    #[test]
    fn a_profile_that_lets_unknown_calls_through_or_knows_none_has_no_preface() {
        let preface = |profile: Value| preface(&serde_json::from_value(profile).unwrap());
        for default in ["SCMP_ACT_ALLOW", "SCMP_ACT_LOG", "SCMP_ACT_TRACE"] {
            assert_eq!(preface(profile(default, &[])), [0; 0]);
        }
        assert_eq!(preface(json!({"defaultAction": "SCMP_ACT_ERRNO"})), [0; 0]);
        assert_ne!(preface(profile("SCMP_ACT_ERRNO", &[])), [0; 0]);
    }
}
