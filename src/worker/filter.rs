//! seccomp filters: a profile becomes a program for the kernel once, and each process of it loads that program.
//!
//! Compiling a profile of a few hundred names costs more than all else of a process's creation, so it is a job of its
//! own ([`compile`]) whose result the server keeps. The executor then only loads it ([`Filter::load`]). libcontainer
//! does both at once, for a container's first process only, and in 0.7 takes the mask of `SCMP_CMP_MASKED_EQ` for the
//! value, which turns docker's rule against new namespaces into one that always matches. What runs before the profile is
//! in [`newer_calls`], and what makes the program short, in [`bpf`].

use std::fs::File;
use std::io::Write as _;
use std::os::fd::OwnedFd;
use std::os::unix::fs::FileExt;
use std::rc::Rc;

use libseccomp::error::SeccompError;
use libseccomp::{ScmpAction, ScmpArch, ScmpArgCompare, ScmpCompareOp, ScmpFilterContext, ScmpSyscall};
use nix::errno::Errno;
use nix::sys::memfd::{MFdFlags, memfd_create};
use oci_spec::runtime::{
    Arch, LinuxSeccomp, LinuxSeccompAction as Action, LinuxSeccompArg, LinuxSeccompFilterFlag as Flag,
    LinuxSeccompOperator as Operator, LinuxSyscall,
};

use super::job::{Failure, FailureKind};
use super::{bpf, newer_calls, sys};

/// `BPF_MAXINSNS` instructions of 8 bytes, as the kernel takes at most.
const MAX_BYTES: usize = 4096 * 8;

/// A compiled filter, ready to be loaded.
#[derive(Debug, Clone)]
pub(super) struct Filter {
    /// `struct sock_filter`s.
    program: Rc<[u64]>,
    flags: u32,
}

impl Filter {
    /// Reads the program that [`compile`] has left in `file`.
    pub(super) fn read(file: OwnedFd, flags: u32) -> Result<Self, Failure> {
        Ok(Self { program: words(&File::from(file))?.into(), flags })
    }

    /// Loads it for this process, for good.
    ///
    /// # Errors
    /// EACCES without no_new_privs or CAP_SYS_ADMIN; EINVAL for flags that the kernel does not know.
    pub(super) fn load(&self) -> Result<(), Errno> {
        sys::load_seccomp_filter(&self.program, self.flags)
    }
}

/// The flags of seccomp(2) that `profile` asks for.
pub(super) fn flags(profile: &LinuxSeccomp) -> u32 {
    let flag = |flag: &Flag| match flag {
        Flag::SeccompFilterFlagTsync => libc::SECCOMP_FILTER_FLAG_TSYNC,
        Flag::SeccompFilterFlagLog => libc::SECCOMP_FILTER_FLAG_LOG,
        Flag::SeccompFilterFlagSpecAllow => libc::SECCOMP_FILTER_FLAG_SPEC_ALLOW,
        Flag::SeccompFilterFlagWaitKillableRecv => libc::SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV,
    };
    let flags = profile.flags().iter().flatten().map(flag).fold(0, |all, flag| all | flag);
    u32::try_from(flags).unwrap_or_default()
}

/// Compiles `profile` into a memory file.
///
/// # Errors
/// The profile names what can't be: an architecture or action that this libseccomp does not know, rules that
/// contradict each other.
pub(super) fn compile(profile: &LinuxSeccomp) -> Result<OwnedFd, Failure> {
    let program = program(profile)?;
    let program = bpf::condense(&program).unwrap_or(program);
    let bytes: Vec<u8> = program.into_iter().flat_map(u64::to_ne_bytes).collect();
    let mut file = memory_file()?;
    file.write_all(&bytes)
        .map_err(|error| Failure::internal(format!("write the seccomp filter: {error}")))?;
    Ok(file.into())
}

/// The program of `profile` as libseccomp makes it, behind what runs before it.
pub(super) fn program(profile: &LinuxSeccomp) -> Result<Vec<u64>, Failure> {
    let file = memory_file()?;
    context(profile)?.export_bpf(&file).map_err(|error| invalid("compile the profile", &error))?;
    let mut program = newer_calls::preface(profile);
    program.extend(words(&file)?);
    Ok(program)
}

fn memory_file() -> Result<File, Failure> {
    let file = memfd_create("nakai-seccomp", MFdFlags::MFD_CLOEXEC);
    file.map(File::from)
        .map_err(|errno| Failure::internal(format!("make a file for the seccomp filter: {errno}")))
}

/// The instructions in a file.
fn words(file: &File) -> Result<Vec<u64>, Failure> {
    let mut bytes = Vec::new();
    file.metadata()
        .and_then(|metadata| {
            bytes.resize(usize::try_from(metadata.len()).map_or(MAX_BYTES, |len| len.min(MAX_BYTES)), 0);
            file.read_exact_at(&mut bytes, 0)
        })
        .map_err(|error| Failure::internal(format!("read the seccomp filter: {error}")))?;
    let (words, rest) = bytes.as_chunks::<8>();
    if words.is_empty() || !rest.is_empty() {
        return Err(Failure::internal(format!("a seccomp filter of {} bytes", bytes.len())));
    }
    Ok(words.iter().map(|word| u64::from_ne_bytes(*word)).collect())
}

fn context(profile: &LinuxSeccomp) -> Result<ScmpFilterContext, Failure> {
    let default = action(profile.default_action(), profile.default_errno_ret())?;
    let mut context = ScmpFilterContext::new(default).map_err(|e| invalid("defaultAction", &e))?;
    for arch in profile.architectures().iter().flatten() {
        context.add_arch(architecture(*arch)).map_err(|e| invalid(&format!("architecture {arch:?}"), &e))?;
    }
    // A search tree instead of a list: a system call meets some ten comparisons, not hundreds.
    let _ = context.set_ctl_optimize(2);
    for rule in profile.syscalls().iter().flatten() {
        let action = action(rule.action(), rule.errno_ret())?;
        // What the default does anyway needs no rule, and libseccomp refuses one.
        if action != default {
            add_rule(&mut context, rule, action)?;
        }
    }
    Ok(context)
}

fn add_rule(context: &mut ScmpFilterContext, rule: &LinuxSyscall, action: ScmpAction) -> Result<(), Failure> {
    let comparisons: Vec<ScmpArgCompare> = rule.args().iter().flatten().map(comparison).collect();
    // libseccomp takes one comparison an argument in a rule. Several are alternatives then, as with runc.
    let mut indices: Vec<usize> = rule.args().iter().flatten().map(LinuxSeccompArg::index).collect();
    indices.sort_unstable();
    let alternatives = indices.windows(2).any(|pair| matches!(pair, [a, b] if a == b));
    for name in rule.names() {
        // A name that this architecture does not have can't be called either.
        let Ok(call) = ScmpSyscall::from_name(name) else { continue };
        let failed = |error: SeccompError| invalid(&format!("the rule for {name}"), &error);
        if alternatives {
            for comparison in &comparisons {
                context
                    .add_rule_conditional(action, call, std::slice::from_ref(comparison))
                    .map_err(failed)?;
            }
        } else {
            context.add_rule_conditional(action, call, &comparisons).map_err(failed)?;
        }
    }
    Ok(())
}

fn comparison(arg: &LinuxSeccompArg) -> ScmpArgCompare {
    let (value, op) = match arg.op() {
        Operator::ScmpCmpNe => (arg.value(), ScmpCompareOp::NotEqual),
        Operator::ScmpCmpLt => (arg.value(), ScmpCompareOp::Less),
        Operator::ScmpCmpLe => (arg.value(), ScmpCompareOp::LessOrEqual),
        Operator::ScmpCmpEq => (arg.value(), ScmpCompareOp::Equal),
        Operator::ScmpCmpGe => (arg.value(), ScmpCompareOp::GreaterEqual),
        Operator::ScmpCmpGt => (arg.value(), ScmpCompareOp::Greater),
        // `value` is the mask and `valueTwo` what must be under it (runtime specification, config-linux).
        Operator::ScmpCmpMaskedEq => {
            (arg.value_two().unwrap_or_default(), ScmpCompareOp::MaskedEqual(arg.value()))
        }
    };
    ScmpArgCompare::new(u32::try_from(arg.index()).unwrap_or(u32::MAX), op, value)
}

fn action(action: Action, errno: Option<u32>) -> Result<ScmpAction, Failure> {
    let errno = errno.and_then(|errno| i32::try_from(errno).ok()).unwrap_or(libc::EPERM);
    Ok(match action {
        Action::ScmpActKill | Action::ScmpActKillThread => ScmpAction::KillThread,
        Action::ScmpActKillProcess => ScmpAction::KillProcess,
        Action::ScmpActTrap => ScmpAction::Trap,
        Action::ScmpActErrno => ScmpAction::Errno(errno),
        Action::ScmpActTrace => ScmpAction::Trace(u16::try_from(errno).unwrap_or(u16::MAX)),
        Action::ScmpActAllow => ScmpAction::Allow,
        Action::ScmpActLog => ScmpAction::Log,
        Action::ScmpActNotify => {
            let message = "linux.seccomp: SCMP_ACT_NOTIFY is not supported".to_owned();
            return Err(Failure { kind: FailureKind::InvalidSpec, message });
        }
    })
}

fn architecture(arch: Arch) -> ScmpArch {
    match arch {
        Arch::ScmpArchNative => ScmpArch::Native,
        Arch::ScmpArchX86 => ScmpArch::X86,
        Arch::ScmpArchX86_64 => ScmpArch::X8664,
        Arch::ScmpArchX32 => ScmpArch::X32,
        Arch::ScmpArchArm => ScmpArch::Arm,
        Arch::ScmpArchAarch64 => ScmpArch::Aarch64,
        Arch::ScmpArchMips => ScmpArch::Mips,
        Arch::ScmpArchMips64 => ScmpArch::Mips64,
        Arch::ScmpArchMips64n32 => ScmpArch::Mips64N32,
        Arch::ScmpArchMipsel => ScmpArch::Mipsel,
        Arch::ScmpArchMipsel64 => ScmpArch::Mipsel64,
        Arch::ScmpArchMipsel64n32 => ScmpArch::Mipsel64N32,
        Arch::ScmpArchPpc => ScmpArch::Ppc,
        Arch::ScmpArchPpc64 => ScmpArch::Ppc64,
        Arch::ScmpArchPpc64le => ScmpArch::Ppc64Le,
        Arch::ScmpArchS390 => ScmpArch::S390,
        Arch::ScmpArchS390x => ScmpArch::S390X,
        Arch::ScmpArchRiscv64 => ScmpArch::Riscv64,
        Arch::ScmpArchParisc => ScmpArch::Parisc,
        Arch::ScmpArchParisc64 => ScmpArch::Parisc64,
        Arch::ScmpArchLoongarch64 => ScmpArch::Loongarch64,
        Arch::ScmpArchM68k => ScmpArch::M68k,
        Arch::ScmpArchSh => ScmpArch::Sh,
        Arch::ScmpArchSheb => ScmpArch::Sheb,
    }
}

fn invalid(what: &str, error: &SeccompError) -> Failure {
    Failure { kind: FailureKind::InvalidSpec, message: format!("linux.seccomp: {what}: {error}") }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn profile(json: Value) -> LinuxSeccomp {
        serde_json::from_value(json).unwrap()
    }

    #[test]
    fn a_profile_becomes_a_program_that_can_be_read_again_and_again() {
        let profile =
            profile(json!({"defaultAction": "SCMP_ACT_ERRNO", "architectures": ["SCMP_ARCH_X86_64"],
            "syscalls": [{"names": ["read", "no_such_call"], "action": "SCMP_ACT_ALLOW"}]}));
        let file = compile(&profile).unwrap();
        let first = Filter::read(file.try_clone().unwrap(), 0).unwrap();
        let second = Filter::read(file, 0).unwrap();
        assert!(first.program.len() > 3);
        assert_eq!(first.program, second.program);
    }

    #[test]
    fn what_is_no_program_is_refused() {
        for bytes in [&b""[..], b"1234567"] {
            let file = memfd_create("test", MFdFlags::MFD_CLOEXEC).unwrap();
            nix::unistd::write(&file, bytes).unwrap();
            assert!(Filter::read(file, 0).is_err());
        }
    }

    #[test]
    fn the_mask_comes_first_and_the_value_second() {
        let arg: LinuxSeccompArg = serde_json::from_value(
            json!({"index": 0, "value": 0x7e02_0000, "valueTwo": 0, "op": "SCMP_CMP_MASKED_EQ"}),
        )
        .unwrap();
        let expected = ScmpArgCompare::new(0, ScmpCompareOp::MaskedEqual(0x7e02_0000), 0);
        assert_eq!(comparison(&arg), expected);
    }

    #[test]
    fn comparisons_of_one_argument_are_alternatives() {
        let arg = |value: u64| json!({"index": 0, "value": value, "op": "SCMP_CMP_EQ"});
        let rule = |args: Vec<Value>| {
            let rule = json!({"names": ["personality"], "action": "SCMP_ACT_ALLOW", "args": args});
            compile(&profile(json!({"defaultAction": "SCMP_ACT_ERRNO", "syscalls": [rule]}))).map(drop)
        };
        rule(vec![arg(0), arg(8)]).unwrap();
        let far = json!({"index": 9, "value": 0, "op": "SCMP_CMP_EQ"});
        assert_eq!(rule(vec![far]).unwrap_err().kind, FailureKind::InvalidSpec);
    }

    #[test]
    fn flags_are_those_of_the_system_call() {
        let with = |flags: Value| flags_of(json!({"defaultAction": "SCMP_ACT_ALLOW", "flags": flags}));
        fn flags_of(json: Value) -> u32 {
            flags(&profile(json))
        }
        assert_eq!(with(json!([])), 0);
        assert_eq!(with(json!(["SECCOMP_FILTER_FLAG_LOG", "SECCOMP_FILTER_FLAG_SPEC_ALLOW"])), 6);
    }
}
