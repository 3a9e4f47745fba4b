//! Tests of the edits together.

use serde_json::{Value, json};

use super::*;
use crate::ids::ContainerId;

/// A guest with four CPUs, cgroup v2, no swap accounting and no security modules.
pub(super) fn facts() -> Facts {
    Facts {
        systemd: false,
        stand_in: None,
        container_id: ContainerId::try_from("c1").unwrap(),
        rootfs: "/run/kata-containers/c1/rootfs".into(),
        shared: SharedNamespaces {
            ipc: Some("/run/ns/ipc".into()),
            uts: Some("/run/ns/uts".into()),
            pid: PidNamespace::Own,
        },
        cgroup_version: CgroupVersion::V2,
        swap_accounting: false,
        online_cpus: "0-3".parse().unwrap(),
        online_mems: None,
        hooks: None,
        devices: Vec::new(),
        added_devices: Vec::new(),
        bound_devices: Vec::new(),
        lent_devices: Vec::new(),
        pci_map: std::collections::BTreeMap::new(),
        root_devices: Vec::new(),
        system_chars: Vec::new(),
        selinux: false,
        apparmor: Profiles { required: true, ..Profiles::default() },
    }
}

/// What a shim sends for a Kubernetes container.
fn pod_container() -> Value {
    json!({
        "ociVersion": "1.1.0",
        "process": {
            "user": {"uid": 1000, "gid": 1000, "additionalGids": [1000]},
            "args": ["/bin/app", "-v"],
            "env": ["PATH=/bin", "SECRET=x"],
            "cwd": "/srv",
            "capabilities": {"bounding": ["CAP_CHOWN"], "effective": ["CAP_CHOWN"], "permitted": ["CAP_CHOWN"]},
            "rlimits": [{"type": "RLIMIT_NOFILE", "hard": 1024, "soft": 512}],
            "oomScoreAdj": 985
        },
        "root": {"path": "/run/kata-containers/shared/containers/c1/rootfs", "readonly": true},
        "hostname": "pod-1",
        "mounts": [
            {"destination": "/proc", "type": "proc", "source": "proc", "options": ["nosuid", "noexec", "nodev"]},
            {"destination": "/dev", "type": "tmpfs", "source": "tmpfs", "options": ["nosuid", "mode=755"]},
            {"destination": "/sys/fs/cgroup", "type": "cgroup", "source": "cgroup", "options": ["ro"]},
            {"destination": "/etc/resolv.conf", "type": "bind", "source": "/run/r", "options": ["rbind", "rprivate", "ro"]}
        ],
        "annotations": {"io.katacontainers.pkg.oci.container_type": "pod_container"},
        "linux": {
            "sysctl": {"net.ipv4.ip_unprivileged_port_start": "0"},
            "resources": {"memory": {"limit": 1048576, "swap": 1048576}, "cpu": {"shares": 102, "cpus": ""}},
            "cgroupsPath": "kubepods-burstable.slice:cri-containerd:c1",
            "namespaces": [{"type": "ipc"}, {"type": "uts"}, {"type": "mount"}],
            "seccomp": {"defaultAction": "SCMP_ACT_ERRNO", "syscalls": [{"names": ["read"], "action": "SCMP_ACT_ALLOW"}]},
            "maskedPaths": ["/proc/kcore"],
            "readonlyPaths": ["/proc/sys"]
        }
    })
}

fn run(spec: Value, facts: &Facts) -> Result<Prepared, SpecError> {
    prepare(serde_json::from_value(spec).unwrap(), facts)
}

#[test]
fn a_kubernetes_container_is_prepared() {
    let out = run(pod_container(), &facts()).unwrap();
    let spec = serde_json::to_value(&out.spec).unwrap();
    assert_eq!(spec["root"], json!({"path": "/run/kata-containers/c1/rootfs", "readonly": true}));
    assert!(spec.get("hostname").is_none(), "the sandbox's UTS namespace is joined");
    assert_eq!(spec["linux"]["cgroupsPath"], "/kubepods-burstable.slice/cri-containerd/c1");
    assert_eq!(out.cgroup_path, Path::new("/kubepods-burstable.slice/cri-containerd/c1"));
    let limits = serde_json::to_value(&out.limits).unwrap();
    assert_eq!(limits, json!({"memory": {"limit": 1048576}, "cpu": {"shares": 102}}));
    assert!(spec["linux"].get("resources").is_none() && spec.get("mounts").is_none());
    assert!(out.own_init && out.own_mounts.is_some_and(|own| own.mounts.len() == 4));
    assert_eq!(spec["linux"]["maskedPaths"], json!(["/proc/kcore"]));
    assert!(spec["linux"].get("seccomp").is_none() && spec["linux"].get("sysctl").is_none());
    assert_eq!(out.sandbox_sysctls[0].path, Path::new("net/ipv4/ip_unprivileged_port_start"));
    assert_eq!(spec["process"]["oomScoreAdj"], 985);
    assert_eq!(spec["annotations"], pod_container()["annotations"]);
    assert_eq!(out.working_directory, WorkingDirectory::Seen("/srv".into()));
    assert_eq!(out.late.cwd, None);
    assert!(out.late.seccomp.is_some() && out.late.find_home && !out.terminal);
    assert_eq!(out.late.rlimits[0].soft(), 512);
    assert!(out.warnings.is_empty() && out.propagation.is_empty(), "{:?}", out.warnings);
}

#[test]
fn no_swap_is_not_libcontainers() {
    let out = run(pod_container(), &Facts { swap_accounting: true, ..facts() }).unwrap();
    let memory = json!({"limit": 1048576, "swap": 1048576});
    let limits = serde_json::to_value(&out.limits).unwrap();
    assert!(out.own_init && limits["memory"] == memory && limits.get("unified").is_none(), "{limits}");
}

#[test]
fn what_only_libcontainer_can_do_is_left_to_it() {
    let mut hooked = pod_container();
    hooked["hooks"] = json!({"poststop": [{"path": "/bin/true"}]});
    let mut odd = pod_container();
    odd["mounts"].as_array_mut().unwrap().push(json!({"destination": "/b", "type": "bpf", "source": "bpf"}));
    let mut limited = pod_container();
    limited["linux"]["resources"]["unified"] = json!({"memory.high": "1"});
    for spec in [hooked, odd, limited] {
        let out = run(spec, &facts()).unwrap();
        assert!(!out.own_init);
        assert!(out.spec.mounts().is_some() && out.spec.linux().as_ref().unwrap().resources().is_some());
    }
    let out = run(pod_container(), &Facts { cgroup_version: CgroupVersion::V1, ..facts() }).unwrap();
    assert!(!out.own_init, "the cgroups are libcontainer's");
}

#[test]
fn the_guests_dev_is_no_matter_for_libcontainer() {
    let mut bound = pod_container();
    bound["mounts"][1] =
        json!({"destination": "/dev", "type": "bind", "source": "/dev", "options": ["rbind", "rprivate"]});
    let out = run(bound.clone(), &facts()).unwrap();
    assert!(out.own_init && out.own_mounts.unwrap().binds_dev());
    assert!(!run(pod_container(), &facts()).unwrap().own_mounts.unwrap().binds_dev());
    bound["hooks"] = json!({"poststop": [{"path": "/bin/true"}]});
    let error = run(bound, &facts()).unwrap_err().to_string();
    assert!(error.contains("/dev") && error.contains("hooks"), "{error}");
}

#[test]
fn a_directory_that_libcontainer_cannot_enter_is_entered_later() {
    let mut spec = pod_container();
    let tmpfs = json!({"destination": "/scratch", "type": "tmpfs", "source": "tmpfs"});
    spec["mounts"].as_array_mut().unwrap().push(tmpfs);
    spec["process"]["cwd"] = json!("/scratch/a/../b");
    let out = run(spec.clone(), &facts()).unwrap();
    assert_eq!(out.working_directory, WorkingDirectory::Seen("/scratch/b".into()));
    assert_eq!(out.late.cwd, None, "an init of our own enters it");
    spec["hooks"] = json!({"poststop": [{"path": "/bin/true"}]});
    let out = run(spec, &facts()).unwrap();
    assert_eq!(out.working_directory, WorkingDirectory::InMemory("/scratch/b".into()));
    assert_eq!(out.late.cwd.as_deref(), Some(Path::new("/scratch/a/../b")));
    assert_eq!(out.spec.process().as_ref().unwrap().cwd(), Path::new("/"));
}

#[test]
fn the_least_spec_is_prepared() {
    let least =
        json!({"root": {"path": "/r"}, "linux": {}, "process": {"user": {}, "cwd": "", "args": ["sh"]}});
    for version in [CgroupVersion::V1, CgroupVersion::V2] {
        let out = run(least.clone(), &Facts { cgroup_version: version, ..facts() }).unwrap();
        assert_eq!(out.cgroup_path, Path::new("/c1"));
        assert_eq!(out.spec.root().as_ref().unwrap().readonly(), Some(false));
        assert!(out.spec.hooks().is_none());
    }
}

#[test]
fn preparing_what_was_prepared_changes_nothing() {
    let mut facts = facts();
    facts.shared = SharedNamespaces::default();
    let once = run(pod_container(), &facts).unwrap().spec;
    let mut twice = prepare(once.clone(), &facts).unwrap().spec;
    // The rules are wrapped again: the same meaning, a longer list. And no filter is left that would need
    // capabilities.
    let rules = once.linux().as_ref().unwrap().resources().clone();
    twice.linux_mut().as_mut().unwrap().set_resources(rules);
    assert_eq!(serde_json::to_value(twice).unwrap(), serde_json::to_value(once).unwrap());
}

#[test]
fn a_uts_namespace_of_its_own_keeps_the_hostname() {
    let mut facts = facts();
    facts.shared.uts = None;
    assert_eq!(run(pod_container(), &facts).unwrap().spec.hostname().as_deref(), Some("pod-1"));
}

#[test]
fn hooks_are_divided_between_libcontainer_and_the_agent() {
    let mut facts = facts();
    facts.hooks =
        serde_json::from_value(json!({"prestart": [{"path": "/h/pre"}], "poststop": [{"path": "/h/stop"}]}))
            .unwrap();
    let out = run(pod_container(), &facts).unwrap();
    // By the agent's own program: see `hooks`.
    let own = json!([GUEST_HOOKS, r#"[{"path":"/h/pre","timeout":10}]"#]);
    let prestart = json!({"prestart": [{"path": "/proc/self/exe", "args": own}]});
    assert_eq!(serde_json::to_value(out.spec.hooks()).unwrap(), prestart);
    assert_eq!(out.poststop.len(), 1);
    assert!(out.poststart.is_empty());
}

#[test]
fn each_missing_part_is_named() {
    for part in ["root", "linux"] {
        let mut spec = pod_container();
        spec.as_object_mut().unwrap().remove(part);
        let error = run(spec, &facts()).unwrap_err();
        assert!(matches!(error, SpecError::Missing { field } if field == part), "{error}");
    }
    let relative = Facts { rootfs: "rootfs".into(), ..facts() };
    assert!(matches!(run(pod_container(), &relative), Err(SpecError::RelativePath { .. })));
}

#[test]
fn what_only_libcontainers_validator_knows_is_refused_too() {
    let mut spec = pod_container();
    spec["process"]["ioPriority"] = json!({"class": "IOPRIO_CLASS_BE", "priority": 8});
    assert!(matches!(run(spec, &facts()), Err(SpecError::Validator { .. })));
}

fn exec(process: Value, container: &ExecFacts) -> PreparedExec {
    prepare_exec(serde_json::from_value(process).unwrap(), container).unwrap()
}

#[test]
fn a_further_process_takes_from_the_container_what_it_does_not_bring() {
    let mut spec = pod_container();
    spec["process"]["noNewPrivileges"] = json!(true);
    let container = run(spec, &facts()).unwrap().exec;
    let out = exec(json!({"user": {"uid": 0}, "cwd": "", "args": ["id"]}), &container);
    let process = serde_json::to_value(&out.process).unwrap();
    assert_eq!(process["cwd"], "/");
    assert_eq!(process["oomScoreAdj"], 985);
    assert_eq!(process["noNewPrivileges"], true);
    assert_eq!(out.late.early_capabilities.bounding, 1, "CAP_CHOWN");
    assert_eq!(process["env"], json!(["HOME=/"]), "the environment is not the container's");
    assert_eq!(out.late.rlimits[0].hard(), 1024);
    assert!(out.late.seccomp.is_some() && out.late.capabilities.is_none());
    assert_eq!(out.late.session_keyring, "_ses.c1");
}

#[test]
fn a_further_process_has_its_own_where_it_brings_some() {
    let container = run(pod_container(), &facts()).unwrap().exec;
    let out = exec(
        json!({"user": {"uid": 5, "gid": 6}, "cwd": "/tmp", "args": ["id"], "env": ["HOME=/h", "A=1"], "terminal": true,
            "consoleSize": {"height": 2, "width": 3}, "oomScoreAdj": 1,
            "capabilities": {"bounding": ["CAP_KILL"]}, "rlimits": [{"type": "RLIMIT_CORE", "hard": 0, "soft": 0}]}),
        &container,
    );
    assert_eq!(out.process.oom_score_adj(), Some(1));
    assert_eq!((out.late.uid, out.late.owner, out.late.rlimits.len()), (5, (5, 6), 1));
    assert_eq!(out.console_size, Some(ConsoleSize { rows: 2, cols: 3 }));
    assert!(out.terminal && !out.late.find_home);
    assert_eq!(out.late.capabilities.unwrap().bounding, 1 << 5, "CAP_KILL");
}

#[test]
fn what_only_the_worker_can_do_is_refused_by_name_where_libcontainer_does_it() {
    let mut spec = pod_container();
    let mount =
        json!({"destination": "/v", "type": "bind", "source": "/v", "options": ["rbind", "nosymfollow"]});
    spec["mounts"].as_array_mut().unwrap().push(mount);
    let out = run(spec.clone(), &facts()).unwrap();
    assert!(out.own_init);
    let v = |mount: &&OwnMount| mount.destination == Path::new("/v");
    let attributes = out.own_mounts.unwrap().mounts.iter().find(v).unwrap().attributes;
    assert_eq!((attributes.set, attributes.is_flat()), (libc::MOUNT_ATTR_NOSYMFOLLOW, true));
    spec["hooks"] = json!({"startContainer": [{"path": "/h"}]});
    let error = run(spec.clone(), &facts()).unwrap_err().to_string();
    assert!(error.contains("/v") && error.contains("nosymfollow"), "{error}");
    spec["mounts"].as_array_mut().unwrap().pop();
    let out = run(spec, &facts()).unwrap();
    assert_eq!(out.start_hooks.len(), 1);
    assert_eq!(out.spec.hooks().as_ref().unwrap().start_container(), &None);
}

#[test]
fn what_travels_as_json_arrives_as_it_was() {
    let out = run(pod_container(), &facts()).unwrap();
    let late: LateProcess = serde_json::from_str(&serde_json::to_string(&out.late).unwrap()).unwrap();
    let expected = LateProcess { seccomp: None, ..out.late.clone() };
    assert_eq!(late, expected, "the filter travels compiled");
    let exec: ExecFacts = serde_json::from_str(&serde_json::to_string(&out.exec).unwrap()).unwrap();
    assert_eq!(exec, out.exec);
    let spec: Spec = serde_json::from_str(&serde_json::to_string(&out.spec).unwrap()).unwrap();
    assert_eq!(spec, out.spec, "what libcontainer reads is what was prepared");
}
