//! The process: of a container (its init) and of an exec.
//!
//! The model's own default process is a shell with an environment, capabilities and limits; nothing
//! of it may show here. An empty argument list stays absent: what that means is the agent's to say.

use oci_spec::runtime;
use oci_spec::runtime::PosixRlimitType;

use super::value::{blank, each, flag, items, list, name, narrow, not_carried, path_to_wire, plain, text};
use super::{SpecError, capabilities};
use crate::oci;

pub(super) fn from_wire(wire: &oci::Process) -> Result<runtime::Process, SpecError> {
    let console_size = wire.ConsoleSize.as_ref().map(console_from_wire).transpose()?;
    let capabilities = wire.Capabilities.as_ref().map(capabilities::from_wire).transpose()?;
    let mut process: runtime::Process = blank("process", r#"{"user":{},"cwd":""}"#)?;
    process
        .set_terminal(flag(wire.Terminal))
        .set_console_size(console_size)
        .set_user(user_from_wire(&wire.User))
        .set_args(plain(&wire.Args))
        .set_env(plain(&wire.Env))
        .set_cwd(wire.Cwd.as_str().into())
        .set_capabilities(capabilities)
        .set_rlimits(list(&wire.Rlimits, rlimit_from_wire)?)
        .set_no_new_privileges(flag(wire.NoNewPrivileges))
        .set_apparmor_profile(text(&wire.ApparmorProfile))
        .set_oom_score_adj(Some(narrow("process.oomScoreAdj", wire.OOMScoreAdj)?))
        .set_selinux_label(text(&wire.SelinuxLabel));
    Ok(process)
}

pub(super) fn to_wire(process: &runtime::Process) -> Result<oci::Process, SpecError> {
    not_carried("process.commandLine", process.command_line().is_some())?;
    not_carried("process.ioPriority", process.io_priority().is_some())?;
    not_carried("process.scheduler", process.scheduler().is_some())?;
    not_carried("process.execCPUAffinity", process.exec_cpu_affinity().is_some())?;
    Ok(oci::Process {
        Terminal: process.terminal().unwrap_or_default(),
        ConsoleSize: process.console_size().map(console_to_wire).transpose()?.into(),
        User: Some(user_to_wire(process.user())?).into(),
        Args: items(process.args()).to_vec(),
        Env: items(process.env()).to_vec(),
        Cwd: path_to_wire("process.cwd", process.cwd())?,
        Capabilities: process.capabilities().as_ref().map(capabilities::to_wire).into(),
        Rlimits: each(items(process.rlimits()), |rlimit| Ok(rlimit_to_wire(rlimit)))?,
        NoNewPrivileges: process.no_new_privileges().unwrap_or_default(),
        ApparmorProfile: process.apparmor_profile().clone().unwrap_or_default(),
        OOMScoreAdj: process.oom_score_adj().unwrap_or_default().into(),
        SelinuxLabel: process.selinux_label().clone().unwrap_or_default(),
        ..Default::default()
    })
}

fn console_from_wire(wire: &oci::Box) -> Result<runtime::Box, SpecError> {
    runtime::BoxBuilder::default()
        .height(wire.Height)
        .width(wire.Width)
        .build()
        .map_err(SpecError::model("process.consoleSize"))
}

fn console_to_wire(console: runtime::Box) -> Result<oci::Box, SpecError> {
    Ok(oci::Box {
        Height: narrow("process.consoleSize.height", console.height())?,
        Width: narrow("process.consoleSize.width", console.width())?,
        ..Default::default()
    })
}

fn user_from_wire(wire: &oci::User) -> runtime::User {
    let mut user = runtime::User::default();
    user.set_uid(wire.UID)
        .set_gid(wire.GID)
        .set_additional_gids(plain(&wire.AdditionalGids))
        .set_username(text(&wire.Username));
    user
}

fn user_to_wire(user: &runtime::User) -> Result<oci::User, SpecError> {
    not_carried("process.user.umask", user.umask().is_some())?;
    Ok(oci::User {
        UID: user.uid(),
        GID: user.gid(),
        AdditionalGids: items(user.additional_gids()).to_vec(),
        Username: user.username().clone().unwrap_or_default(),
        ..Default::default()
    })
}

fn rlimit_from_wire(wire: &oci::POSIXRlimit) -> Result<runtime::PosixRlimit, SpecError> {
    runtime::PosixRlimitBuilder::default()
        .typ(name::<PosixRlimitType>("process.rlimits.type", &wire.Type)?)
        .hard(wire.Hard)
        .soft(wire.Soft)
        .build()
        .map_err(SpecError::model("process.rlimits"))
}

fn rlimit_to_wire(rlimit: &runtime::PosixRlimit) -> oci::POSIXRlimit {
    oci::POSIXRlimit {
        Type: rlimit.typ().to_string(),
        Hard: rlimit.hard(),
        Soft: rlimit.soft(),
        ..Default::default()
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn json(wire: &oci::Process) -> serde_json::Value {
        serde_json::to_value(from_wire(wire).unwrap()).unwrap()
    }

    /// Also what an empty argument list, absent capabilities and a false flag come out as.
    #[test]
    fn an_empty_process_holds_nothing_but_a_score() {
        let empty = json!({"user": {"uid": 0, "gid": 0}, "cwd": "", "oomScoreAdj": 0});
        assert_eq!(json(&oci::Process::default()), empty);
    }

    #[test]
    fn a_whole_process_survives_both_ways() {
        let wire = oci::Process {
            Terminal: true,
            ConsoleSize: Some(oci::Box { Height: 24, Width: 80, ..Default::default() }).into(),
            User: Some(oci::User {
                UID: 1000,
                GID: 100,
                AdditionalGids: vec![5, 0],
                Username: "user".into(),
                ..Default::default()
            })
            .into(),
            Args: vec!["sh".into(), String::new()],
            Env: vec!["A=1".into(), "A=2".into(), "odd".into()],
            Cwd: "/w".into(),
            Capabilities: Some(oci::LinuxCapabilities::default()).into(),
            Rlimits: vec![oci::POSIXRlimit {
                Type: "RLIMIT_NOFILE".into(),
                Hard: u64::MAX,
                Soft: 0,
                ..Default::default()
            }],
            NoNewPrivileges: true,
            ApparmorProfile: "profile".into(),
            OOMScoreAdj: -999,
            SelinuxLabel: "label".into(),
            ..Default::default()
        };
        let process = from_wire(&wire).unwrap();
        assert_eq!(process.no_new_privileges(), Some(true));
        assert_eq!(process.user().username().as_deref(), Some("user"));
        assert_eq!(to_wire(&process).unwrap(), wire);
    }

    #[test]
    fn every_rlimit_of_the_kernel_is_known() {
        for kind in [
            "CPU",
            "FSIZE",
            "DATA",
            "STACK",
            "CORE",
            "RSS",
            "NPROC",
            "NOFILE",
            "MEMLOCK",
            "AS",
            "LOCKS",
            "SIGPENDING",
            "MSGQUEUE",
            "NICE",
            "RTPRIO",
            "RTTIME",
        ] {
            let wire =
                oci::POSIXRlimit { Type: format!("RLIMIT_{kind}"), Hard: 2, Soft: 1, ..Default::default() };
            assert_eq!(rlimit_to_wire(&rlimit_from_wire(&wire).unwrap()), wire);
        }
    }

    #[test]
    fn an_unknown_rlimit_is_refused_by_name() {
        let rlimit = oci::POSIXRlimit { Type: "RLIMIT_FUN".into(), ..Default::default() };
        let wire = oci::Process { Rlimits: vec![rlimit], ..Default::default() };
        let message = from_wire(&wire).unwrap_err().to_string();
        assert_eq!(message, "process.rlimits.type: unknown name \"RLIMIT_FUN\"");
    }

    #[test]
    fn a_score_that_does_not_fit_is_refused() {
        let wire = oci::Process { OOMScoreAdj: 1 << 32, ..Default::default() };
        assert!(matches!(from_wire(&wire), Err(SpecError::OutOfRange { value: 0x1_0000_0000, .. })));
    }

    #[test]
    fn what_the_wire_lacks_is_refused_by_name() {
        let mut process = from_wire(&oci::Process::default()).unwrap();
        process.user_mut().set_umask(Some(0o22));
        assert!(matches!(to_wire(&process), Err(SpecError::NotCarried { field: "process.user.umask" })));
        process.user_mut().set_umask(None);
        process.set_scheduler(Some(runtime::Scheduler::default()));
        assert!(matches!(to_wire(&process), Err(SpecError::NotCarried { field: "process.scheduler" })));
    }
}
