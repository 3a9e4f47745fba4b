//! System call filters: the runtime's default one, none, or a file of the host's.
//!
//! The default allows what ordinary programs need (`seccomp_default.json`), a further part with each capability that
//! the container has, and answers the rest with EPERM. Where arguments decide it is told here: no new namespaces by
//! clone(2), no vsock, which leads to the agent's port and out of the VM, and only harmless personalities. socketcall(2),
//! which old 32-bit C libraries make sockets with, hides its arguments from a filter and is refused.

use std::collections::BTreeMap;
use std::path::Path;

use nakai_protocols::oci::{LinuxSeccomp, LinuxSeccompArg, LinuxSyscall};
use oci_spec::runtime;
use serde::Deserialize;

use super::CriError;
use super::config::{ProfileType, SecurityProfile};

/// All `CLONE_NEW…` flags of clone(2): mount, UTS, IPC, user, PID, network, cgroup.
const NEW_NAMESPACES: u64 = 0x7E02_0000;
/// `AF_VSOCK`
const VSOCK: u64 = 40;
/// What personality(2) may be called with: Linux, Linux on 32 bits, with old kernel versions, and a question.
const PERSONALITIES: [u64; 5] = [0, 8, 0x2_0000, 0x2_0008, 0xffff_ffff];

#[derive(Deserialize)]
struct Table {
    always: Vec<String>,
    with: BTreeMap<String, Vec<String>>,
}

/// What a container asks for.
///
/// # Errors
///
/// A profile that is not there, or is none.
pub fn filter(
    profile: Option<&SecurityProfile>,
    legacy: &str,
    privileged: bool,
    capabilities: &[String],
) -> Result<Option<LinuxSeccomp>, CriError> {
    if privileged {
        return Ok(None);
    }
    match profile {
        Some(profile) => match profile.profile_type {
            ProfileType::RuntimeDefault => default(capabilities).map(Some),
            ProfileType::Unconfined => Ok(None),
            ProfileType::Localhost => localhost(&profile.localhost_ref).map(Some),
        },
        None => match legacy {
            "" | "unconfined" => Ok(None),
            "runtime/default" | "docker/default" => default(capabilities).map(Some),
            other => match other.strip_prefix("localhost/") {
                Some(path) => localhost(path).map(Some),
                None => Err(CriError::field(
                    "seccomp_profile_path",
                    format!("{other:?} is none of runtime/default, unconfined, localhost/PATH"),
                )),
            },
        },
    }
}

/// The runtime's own filter, for a process with `capabilities`.
///
/// # Errors
///
/// The table is broken, which a test excludes.
pub fn default(capabilities: &[String]) -> Result<LinuxSeccomp, CriError> {
    let table: Table = serde_json::from_str(include_str!("seccomp_default.json"))
        .map_err(|source| CriError::Json { what: "the default filter".to_owned(), source })?;
    let mut names = table.always;
    let granted = table.with.iter().filter(|(capability, _)| capabilities.contains(capability));
    names.extend(granted.flat_map(|(_, names)| names.clone()));
    names.sort();
    names.dedup();
    let has = |name: &str| names.iter().any(|other| other == name);
    let mut special = vec![rule(&["socket"], argument("SCMP_CMP_NE", VSOCK, 0))];
    special.extend(PERSONALITIES.map(|value| rule(&["personality"], argument("SCMP_CMP_EQ", value, 0))));
    if !has("clone") {
        special.push(rule(&["clone"], argument("SCMP_CMP_MASKED_EQ", NEW_NAMESPACES, 0)));
    }
    if !has("clone3") {
        // Its flags are behind a pointer. C libraries fall back to clone(2) when there is no such call.
        let none = u32::try_from(libc::ENOSYS).unwrap_or_default();
        let names = vec!["clone3".to_owned()];
        special.push(LinuxSyscall {
            Names: names,
            Action: "SCMP_ACT_ERRNO".to_owned(),
            errnoret: none,
            ..Default::default()
        });
    }
    let all = LinuxSyscall { Names: names, Action: "SCMP_ACT_ALLOW".to_owned(), ..Default::default() };
    Ok(LinuxSeccomp {
        DefaultAction: "SCMP_ACT_ERRNO".to_owned(),
        Architectures: ["SCMP_ARCH_X86_64", "SCMP_ARCH_X86", "SCMP_ARCH_X32"].map(str::to_owned).to_vec(),
        Syscalls: std::iter::once(all).chain(special).collect(),
        ..Default::default()
    })
}

fn rule(names: &[&str], argument: LinuxSeccompArg) -> LinuxSyscall {
    LinuxSyscall {
        Names: names.iter().map(|&name| name.to_owned()).collect(),
        Action: "SCMP_ACT_ALLOW".to_owned(),
        Args: vec![argument],
        ..Default::default()
    }
}

fn argument(op: &str, value: u64, value_two: u64) -> LinuxSeccompArg {
    LinuxSeccompArg { Value: value, ValueTwo: value_two, Op: op.to_owned(), ..Default::default() }
}

/// A filter in the OCI specification's words, from a file.
fn localhost(path: &str) -> Result<LinuxSeccomp, CriError> {
    let what = format!("seccomp profile {path}");
    if !Path::new(path).is_absolute() {
        return Err(CriError::field("seccomp", format!("localhost_ref {path:?} is not an absolute path")));
    }
    let text = std::fs::read_to_string(path).map_err(CriError::io(&what))?;
    let filter: runtime::LinuxSeccomp =
        serde_json::from_str(&text).map_err(|source| CriError::Json { what: what.clone(), source })?;
    let mut linux = runtime::Linux::default();
    linux.set_seccomp(Some(filter));
    let mut spec = runtime::Spec::default();
    spec.set_linux(Some(linux));
    let wire =
        nakai_protocols::spec::to_wire(&spec).map_err(|error| CriError::field(what, error.to_string()))?;
    Ok(wire.Linux.Seccomp.clone().unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn allowed(filter: &LinuxSeccomp, name: &str) -> bool {
        filter.Syscalls.iter().any(|rule| {
            rule.Args.is_empty() && rule.Action == "SCMP_ACT_ALLOW" && rule.Names.iter().any(|n| n == name)
        })
    }

    #[test]
    fn the_default_depends_on_capabilities() {
        let plain = default(&[]).unwrap();
        for name in ["read", "openat", "execve", "ptrace", "mq_open", "futex"] {
            assert!(allowed(&plain, name), "{name}");
        }
        for name in ["mount", "unshare", "keyctl", "bpf", "io_uring_setup", "clone", "reboot"] {
            assert!(!allowed(&plain, name), "{name}");
        }
        // 32-bit code has a second way to a socket, whose arguments are behind a pointer.
        for name in ["socket", "socketcall"] {
            assert!(!allowed(&plain, name), "{name}");
        }
        let admin = default(&["CAP_SYS_ADMIN".to_owned()]).unwrap();
        assert!(allowed(&admin, "mount") && allowed(&admin, "clone3") && !allowed(&admin, "reboot"));
    }

    #[test]
    fn profiles_are_chosen_or_refused_by_name() {
        let of = |legacy: &str| filter(None, legacy, false, &[]);
        assert!(of("").unwrap().is_none() && of("unconfined").unwrap().is_none());
        assert!(of("runtime/default").unwrap().is_some());
        assert!(filter(None, "runtime/default", true, &[]).unwrap().is_none());
        assert!(of("complain").unwrap_err().to_string().contains("localhost/PATH"));
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(
            &file,
            r#"{"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [{"names": ["mkdir"], "action": "SCMP_ACT_ERRNO"}]}"#,
        )
        .unwrap();
        let read = of(&format!("localhost/{}", file.path().display())).unwrap().unwrap();
        assert_eq!(read.Syscalls[0].Names, ["mkdir"]);
        assert!(of("localhost//not/there").unwrap_err().to_string().contains("/not/there"));
    }
}
