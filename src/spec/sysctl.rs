//! Which sysctls a container may set, and who writes them.
//!
//! `net.*` belongs to the network namespace: the agent writes it in the sandbox's, and libcontainer in the
//! container's own where there is one. The IPC names and `kernel.domainname` are written by libcontainer from
//! inside the container (a shared namespace is changed for all who share it). `user.*` belongs to the container's user
//! namespace, if it has one. Everything else would change the guest's kernel for all, and is refused, as runc does.

use std::collections::HashMap;
use std::path::PathBuf;

use oci_spec::runtime::Linux;

use super::SpecError;

/// The names beside `fs.mqueue.*` that belong to an IPC namespace, see ipc_namespaces(7).
const IPC: [&str; 8] = [
    "kernel.msgmax",
    "kernel.msgmnb",
    "kernel.msgmni",
    "kernel.sem",
    "kernel.shmall",
    "kernel.shmmax",
    "kernel.shmmni",
    "kernel.shm_rmid_forced",
];

/// A sysctl that the agent writes itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Sysctl {
    /// Its name as given, for messages.
    pub name: String,
    /// Its file beneath `/proc/sys`: relative, with nothing in it that climbs.
    pub path: PathBuf,
    /// What to write.
    pub value: String,
}

/// Takes the names out of `linux.sysctl` that the agent writes in the sandbox's network namespace; sorted by
/// name.
pub(super) fn split(linux: &mut Linux, own_network: bool, own_users: bool) -> Result<Vec<Sysctl>, SpecError> {
    let mut kept = HashMap::new();
    let mut ours = Vec::new();
    for (name, value) in linux.sysctl().iter().flatten() {
        let parts = parts(name)?;
        let dotted = parts.join(".");
        if parts.first().is_some_and(|first| first == "net") && !own_network {
            let path = parts.iter().collect();
            ours.push(Sysctl { name: name.clone(), path, value: value.clone() });
            continue;
        }
        allowed(name, &dotted, own_users)?;
        if parts.iter().any(|part| part.contains('.')) {
            // libcontainer makes every dot a slash.
            return Err(SpecError::Sysctl { name: name.clone(), reason: "a dot within a part of the name" });
        }
        if kept.insert(dotted, value.clone()).is_some() {
            return Err(SpecError::Duplicate { field: "linux.sysctl", value: name.clone() });
        }
    }
    ours.sort_by(|a, b| a.path.cmp(&b.path));
    if let Some(twice) = ours.windows(2).find_map(|pair| match pair {
        [a, b] if a.path == b.path => Some(a.name.clone()),
        _ => None,
    }) {
        return Err(SpecError::Duplicate { field: "linux.sysctl", value: twice });
    }
    linux.set_sysctl((!kept.is_empty()).then_some(kept));
    Ok(ours)
}

/// The parts of a name. The first separator, '.' or '/', is the separator; the other one stands for itself
/// or, after a dot, for a dot, so that `net.ipv4.conf.eth0/100.mtu` and `net/ipv4/conf/eth0.100/mtu` are one
/// (sysctl(8)).
fn parts(name: &str) -> Result<Vec<String>, SpecError> {
    let slashes = name.chars().find(|c| matches!(c, '.' | '/')) == Some('/');
    let parts: Vec<String> = if slashes {
        name.split('/').map(str::to_owned).collect()
    } else {
        name.split('.').map(|part| part.replace('/', ".")).collect()
    };
    let harmless = |part: &String| !matches!(part.as_str(), "" | "." | "..") && !part.contains('\0');
    if parts.len() < 2 || !parts.iter().all(harmless) {
        return Err(SpecError::Sysctl { name: name.to_owned(), reason: "not the name of a sysctl" });
    }
    Ok(parts)
}

fn allowed(name: &str, dotted: &str, own_users: bool) -> Result<(), SpecError> {
    let refuse = |reason| Err(SpecError::Sysctl { name: name.to_owned(), reason });
    match dotted {
        "kernel.hostname" => refuse("the hostname has a field of its own"),
        "kernel.domainname" => Ok(()),
        _ if IPC.contains(&dotted) || dotted.starts_with("fs.mqueue.") || dotted.starts_with("net.") => {
            Ok(())
        }
        _ if dotted.starts_with("user.") && own_users => Ok(()),
        _ if dotted.starts_with("user.") => refuse("the container has no user namespace"),
        _ => refuse("it is not of a namespace of the container"),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn run(sysctl: Value, own_network: bool) -> Result<(Value, Vec<(String, String)>), SpecError> {
        let mut linux: Linux = serde_json::from_value(json!({ "sysctl": sysctl })).unwrap();
        let ours = split(&mut linux, own_network, false)?;
        let ours = ours.into_iter().map(|s| (s.path.to_str().unwrap().to_owned(), s.value)).collect();
        Ok((serde_json::to_value(linux.sysctl()).unwrap(), ours))
    }

    #[test]
    fn net_goes_to_the_sandbox_and_ipc_to_libcontainer() {
        let (kept, ours) = run(
            json!({"net.ipv4.ip_forward": "1", "kernel.shmmax": "9", "fs/mqueue/queues_max": "5",
                "net/core/somaxconn": "7", "kernel.domainname": "d"}),
            false,
        )
        .unwrap();
        assert_eq!(
            kept,
            json!({"kernel.shmmax": "9", "fs.mqueue.queues_max": "5", "kernel.domainname": "d"})
        );
        assert_eq!(
            ours,
            [("net/core/somaxconn".into(), "7".into()), ("net/ipv4/ip_forward".into(), "1".into())]
        );
    }

    #[test]
    fn net_stays_with_a_network_namespace_of_the_containers_own() {
        let (kept, ours) = run(json!({"net.ipv4.ip_forward": "1"}), true).unwrap();
        assert_eq!(kept, json!({"net.ipv4.ip_forward": "1"}));
        assert!(ours.is_empty());
    }

    #[test]
    fn an_interface_with_a_dot_keeps_it() {
        for name in ["net/ipv4/conf/eth0.100/forwarding", "net.ipv4.conf.eth0/100.forwarding"] {
            let (_, ours) = run(json!({name: "1"}), false).unwrap();
            assert_eq!(ours[0].0, "net/ipv4/conf/eth0.100/forwarding");
            assert!(run(json!({name: "1"}), true).is_err(), "libcontainer can't express it");
        }
    }

    #[test]
    fn what_is_not_the_containers_is_refused_by_name() {
        for name in [
            "kernel.hostname",
            "kernel.core_pattern",
            "vm.overcommit_memory",
            "user.max_user_namespaces",
            "fs.file-max",
            "kernel/core_pattern",
            "net",
            "",
            "net..ipv4",
            "net/../kernel/core_pattern",
            "net./.kernel",
            "fs.mqueue../.x",
            "/kernel/sem",
            "network.x",
        ] {
            let error = run(json!({name: "1"}), false).unwrap_err().to_string();
            assert!(error.contains(name), "{error}");
        }
    }

    #[test]
    fn limits_of_a_user_namespace_belong_to_the_containers_own() {
        let sysctl = json!({"sysctl": {"user.max_user_namespaces": "5"}});
        let mut linux: Linux = serde_json::from_value(sysctl.clone()).unwrap();
        assert!(split(&mut linux, false, true).unwrap().is_empty());
        assert_eq!(serde_json::to_value(linux).unwrap(), sysctl);
    }

    #[test]
    fn one_sysctl_under_two_names_is_refused() {
        for (a, b) in [("kernel.sem", "kernel/sem"), ("net.core.somaxconn", "net/core/somaxconn")] {
            assert!(matches!(run(json!({a: "1", b: "2"}), false), Err(SpecError::Duplicate { .. })));
        }
    }
}
