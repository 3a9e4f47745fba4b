//! System call filters.
//!
//! `errnoRet` and `valueTwo` of 0 are absent on the wire. An argument's index is that of one of a
//! system call's six arguments and `errnoRet` has 16 bits (`seccomp(2)`): larger ones are refused,
//! since cutting them would make a different filter.

use std::str::FromStr;

use oci_spec::runtime;
use oci_spec::runtime::{Arch, LinuxSeccompAction, LinuxSeccompFilterFlag, LinuxSeccompOperator};

use super::SpecError;
use super::value::{each, items, list, name, narrow, not_carried, number};
use crate::oci;

/// What a filter returns for an action that carries an errno where none is given, by the
/// specification.
const EPERM: u32 = 1;

/// The arguments of a system call.
const ARGUMENTS: u64 = 6;

pub(super) fn from_wire(wire: &oci::LinuxSeccomp) -> Result<runtime::LinuxSeccomp, SpecError> {
    let mut seccomp = runtime::LinuxSeccomp::default();
    seccomp
        .set_default_action(name("linux.seccomp.defaultAction", &wire.DefaultAction)?)
        .set_architectures(names::<Arch>("linux.seccomp.architectures", &wire.Architectures)?)
        .set_flags(names::<LinuxSeccompFilterFlag>("linux.seccomp.flags", &wire.Flags)?)
        .set_syscalls(list(&wire.Syscalls, syscall_from_wire)?);
    Ok(seccomp)
}

pub(super) fn to_wire(seccomp: &runtime::LinuxSeccomp) -> Result<oci::LinuxSeccomp, SpecError> {
    let errno = seccomp.default_errno_ret().filter(|_| carries_errno(seccomp.default_action()));
    not_carried("linux.seccomp.defaultErrnoRet", errno.is_some_and(|errno| errno != EPERM))?;
    not_carried("linux.seccomp.listenerPath", seccomp.listener_path().is_some())?;
    not_carried("linux.seccomp.listenerMetadata", seccomp.listener_metadata().is_some())?;
    Ok(oci::LinuxSeccomp {
        DefaultAction: seccomp.default_action().to_string(),
        Architectures: items(seccomp.architectures()).iter().map(Arch::to_string).collect(),
        Flags: items(seccomp.flags()).iter().map(LinuxSeccompFilterFlag::to_string).collect(),
        Syscalls: each(items(seccomp.syscalls()), syscall_to_wire)?,
        ..Default::default()
    })
}

fn names<T: FromStr>(field: &'static str, values: &[String]) -> Result<Option<Vec<T>>, SpecError> {
    list(values, |value| name(field, value))
}

fn syscall_from_wire(wire: &oci::LinuxSyscall) -> Result<runtime::LinuxSyscall, SpecError> {
    let mut syscall = runtime::LinuxSyscall::default();
    syscall
        .set_names(wire.Names.clone())
        .set_action(name("linux.seccomp.syscalls.action", &wire.Action)?)
        .set_errno_ret(number(errno_ret(wire.errnoret)?))
        .set_args(list(&wire.Args, argument_from_wire)?);
    Ok(syscall)
}

fn syscall_to_wire(syscall: &runtime::LinuxSyscall) -> Result<oci::LinuxSyscall, SpecError> {
    let success = syscall.errno_ret() == Some(0) && carries_errno(syscall.action());
    not_carried("linux.seccomp.syscalls.errnoRet", success)?;
    Ok(oci::LinuxSyscall {
        Names: syscall.names().clone(),
        Action: syscall.action().to_string(),
        errnoret: errno_ret(syscall.errno_ret().unwrap_or_default())?,
        Args: each(items(syscall.args()), argument_to_wire)?,
        ..Default::default()
    })
}

/// Whether an action returns a number to the caller or its tracer.
fn carries_errno(action: LinuxSeccompAction) -> bool {
    matches!(action, LinuxSeccompAction::ScmpActErrno | LinuxSeccompAction::ScmpActTrace)
}

fn errno_ret(errno: u32) -> Result<u32, SpecError> {
    narrow::<_, u16>("linux.seccomp.syscalls.errnoRet", errno).map(u32::from)
}

fn argument_from_wire(wire: &oci::LinuxSeccompArg) -> Result<runtime::LinuxSeccompArg, SpecError> {
    let mut argument = runtime::LinuxSeccompArgBuilder::default()
        .index(narrow::<_, usize>(INDEX, argument_index(wire.Index)?)?)
        .value(wire.Value)
        .op(name::<LinuxSeccompOperator>("linux.seccomp.syscalls.args.op", &wire.Op)?);
    if let Some(value) = number(wire.ValueTwo) {
        argument = argument.value_two(value);
    }
    argument.build().map_err(SpecError::model("linux.seccomp.syscalls.args"))
}

fn argument_to_wire(argument: &runtime::LinuxSeccompArg) -> Result<oci::LinuxSeccompArg, SpecError> {
    let index = u64::try_from(argument.index()).unwrap_or(u64::MAX);
    Ok(oci::LinuxSeccompArg {
        Index: argument_index(index)?,
        Value: argument.value(),
        ValueTwo: argument.value_two().unwrap_or_default(),
        Op: argument.op().to_string(),
        ..Default::default()
    })
}

const INDEX: &str = "linux.seccomp.syscalls.args.index";

fn argument_index(index: u64) -> Result<u64, SpecError> {
    if index < ARGUMENTS { Ok(index) } else { Err(SpecError::out_of_range(INDEX, index)) }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The names of the runtime specification, config-linux, "Seccomp".
    const ACTIONS: [&str; 9] =
        ["KILL", "KILL_PROCESS", "KILL_THREAD", "TRAP", "ERRNO", "TRACE", "ALLOW", "LOG", "NOTIFY"];
    const ARCHITECTURES: [&str; 22] = [
        "X86",
        "X86_64",
        "X32",
        "ARM",
        "AARCH64",
        "LOONGARCH64",
        "M68K",
        "MIPS",
        "MIPS64",
        "MIPS64N32",
        "MIPSEL",
        "MIPSEL64",
        "MIPSEL64N32",
        "PPC",
        "PPC64",
        "PPC64LE",
        "S390",
        "S390X",
        "PARISC",
        "PARISC64",
        "RISCV64",
        "SHEB",
    ];
    const FLAGS: [&str; 4] = ["TSYNC", "LOG", "SPEC_ALLOW", "WAIT_KILLABLE_RECV"];
    const OPERATORS: [&str; 7] = ["NE", "LT", "LE", "EQ", "GE", "GT", "MASKED_EQ"];

    fn prefixed(prefix: &str, names: &[&str]) -> Vec<String> {
        names.iter().map(|name| format!("{prefix}{name}")).collect()
    }

    fn syscall(action: &str, op: &str) -> oci::LinuxSyscall {
        oci::LinuxSyscall {
            Names: vec!["clone".into(), "no_such_call".into()],
            Action: action.into(),
            errnoret: 38,
            Args: vec![oci::LinuxSeccompArg {
                Index: 5,
                Value: 0x7e02_0000,
                ValueTwo: 1,
                Op: op.into(),
                ..Default::default()
            }],
            ..Default::default()
        }
    }

    #[test]
    fn every_name_of_the_specification_survives_both_ways() {
        let actions = prefixed("SCMP_ACT_", &ACTIONS);
        let wire = oci::LinuxSeccomp {
            DefaultAction: "SCMP_ACT_ERRNO".into(),
            Architectures: prefixed("SCMP_ARCH_", &ARCHITECTURES),
            Flags: prefixed("SECCOMP_FILTER_FLAG_", &FLAGS),
            Syscalls: (prefixed("SCMP_CMP_", &OPERATORS).iter())
                .flat_map(|op| actions.iter().map(|action| syscall(action, op)))
                .collect(),
            ..Default::default()
        };
        let seccomp = from_wire(&wire).unwrap();
        assert_eq!(to_wire(&seccomp).unwrap(), wire);
        // libcontainer reads the specification as JSON: the same names there.
        let json = serde_json::to_value(&seccomp).unwrap();
        assert_eq!(json["architectures"], serde_json::json!(wire.Architectures));
        assert_eq!(json["flags"], serde_json::json!(wire.Flags));
        assert_eq!(json["syscalls"][0]["args"][0]["op"], "SCMP_CMP_NE");
    }

    #[test]
    fn an_errno_of_zero_is_absent() {
        let wire = oci::LinuxSyscall { errnoret: 0, ..syscall("SCMP_ACT_ERRNO", "SCMP_CMP_EQ") };
        assert_eq!(syscall_from_wire(&wire).unwrap().errno_ret(), None);
    }

    #[test]
    fn unknown_names_are_refused_with_their_field() {
        let good = || oci::LinuxSeccomp { DefaultAction: "SCMP_ACT_ALLOW".into(), ..Default::default() };
        let bad = "SCMP_NONE".to_owned();
        let with = |syscall| oci::LinuxSeccomp { Syscalls: vec![syscall], ..good() };
        for (wire, field) in [
            (oci::LinuxSeccomp { DefaultAction: bad.clone(), ..good() }, "defaultAction"),
            (oci::LinuxSeccomp { Architectures: vec![bad.clone()], ..good() }, "architectures"),
            (oci::LinuxSeccomp { Flags: vec![bad.clone()], ..good() }, "flags"),
            (with(syscall(&bad, "SCMP_CMP_EQ")), "syscalls.action"),
            (with(syscall("SCMP_ACT_LOG", &bad)), "syscalls.args.op"),
        ] {
            let message = from_wire(&wire).unwrap_err().to_string();
            assert_eq!(message, format!("linux.seccomp.{field}: unknown name \"SCMP_NONE\""));
        }
    }

    #[test]
    fn numbers_that_would_be_cut_are_refused() {
        let mut wire = syscall("SCMP_ACT_ERRNO", "SCMP_CMP_EQ");
        wire.errnoret = 0x1_0000;
        assert!(syscall_from_wire(&wire).is_err());
        for index in [6, 1 << 32, u64::MAX] {
            wire = syscall("SCMP_ACT_ERRNO", "SCMP_CMP_EQ");
            wire.Args[0].Index = index;
            assert!(syscall_from_wire(&wire).is_err(), "{index}");
        }
    }

    /// EPERM is what an absent one means; anything else would change what the caller sees.
    #[test]
    fn a_default_errno_is_sent_only_if_it_is_the_default() {
        let mut seccomp = runtime::LinuxSeccomp::default();
        seccomp.set_default_action(LinuxSeccompAction::ScmpActErrno);
        assert!(to_wire(seccomp.set_default_errno_ret(Some(EPERM))).is_ok());
        let refused = to_wire(seccomp.set_default_errno_ret(Some(38)));
        assert!(matches!(refused, Err(SpecError::NotCarried { field: "linux.seccomp.defaultErrnoRet" })));
        seccomp.set_default_action(LinuxSeccompAction::ScmpActAllow);
        assert!(to_wire(&seccomp).is_ok(), "it has no effect there");
    }
}
