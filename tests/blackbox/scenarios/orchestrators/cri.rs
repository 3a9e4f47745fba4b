//! A container's own configuration: process, user, privileges, mounts, devices, limits.

use std::os::unix::fs::PermissionsExt as _;

use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sys::stat::{Mode, SFlag, makedev, mknod};
use serde_json::json;

use super::bench::{Bench, image};
use super::user_namespaces::{USERS, cri_users_of_its_own};
use super::{Check, Group, Row, Section, check, group};
use crate::harness::{Ctx, Fallible, Outcome, scenario};

pub(super) fn groups() -> Vec<Group> {
    let section = Section::Kubernetes;
    vec![
        group(section, scenario!(cri_an_unprivileged_process), UNPRIVILEGED, &[]),
        group(section, scenario!(cri_a_root_process), ROOT, &[]),
        group(section, scenario!(cri_a_privileged_container).vm_only(), PRIVILEGED, &[]),
        // On this host a program that has just been copied may be open in what another trial starts, and can't be run.
        group(section, scenario!(cri_users_of_its_own).vm_only(), USERS, &[]),
        group(section, scenario!(cri_profiles), PROFILED, PROFILES),
        group(section, scenario!(cri_mounts_and_devices), MOUNTS, &[]),
        group(section, scenario!(cri_a_volume_of_a_group).host_only(), VOLUME_OF_A_GROUP, &[]),
        group(section, scenario!(cri_propagation).vm_only(), &[], PROPAGATION),
        group(section, scenario!(cri_limits), LIMITS, &[]),
        group(section, scenario!(cri_huge_pages).vm_only(), HUGE_PAGES, &[]),
        group(section, scenario!(cri_links_planted_in_the_share).vm_only(), &[], PLANTED),
    ]
}

const UNPRIVILEGED: &[Check] = &[
    check("`working_dir`", "the working directory", "pwd", &["/tmp"]),
    check("`envs`", "the environment, above the image's", "echo $A $B", &["own image"]),
    check("`run_as_user`, `run_as_group`", "uid and gid", "id -u; id -g", &["1000\n1001"]),
    check(
        "`supplemental_groups`, as which a pod's fsGroup comes too",
        "the groups, the user's own and the image's among them",
        "id -G | tr ' ' '\\n' | sort -n | tr '\\n' ' '",
        &["5 6 1001"],
    ),
    check("`no_new_privs`", "`NoNewPrivs: 1`", "grep NoNewPrivs /proc/self/status | cut -f 2", &["1"]),
    check(
        "`seccomp` RuntimeDefault",
        "`Seccomp: 2`; a new user namespace is denied",
        "grep ^Seccomp: /proc/self/status | cut -f 2; unshare -U true 2>&1 | grep -o 'Operation not permitted'",
        &["2\nOperation not permitted"],
    ),
    check(
        "`capabilities` drop ALL, add ambient",
        "all five sets have the one capability that was added",
        "grep ^Cap /proc/self/status | cut -f 2 | sort -u",
        &["0000000000000400"],
    ),
    check("`masked_paths`", "the file is empty", "wc -c < /proc/uptime", &["0"]),
    check(
        "`readonly_paths`",
        "it is mounted read-only",
        "grep ' /proc/sys ' /proc/mounts | cut -d ' ' -f 4 | cut -d , -f 1",
        &["ro"],
    ),
    check(
        "`namespace_options.pid` CONTAINER",
        "it is the first process",
        "until grep -x sleep /proc/1/comm; do sleep 0.01; done",
        &["sleep"],
    ),
    check(
        "`resources.oom_score_adj`",
        "`/proc/self/oom_score_adj`",
        "cat /proc/self/oom_score_adj",
        &["500"],
    ),
];

async fn cri_an_unprivileged_process(ctx: Ctx) -> Outcome {
    let bench = Bench::new(&ctx)?;
    let container = json!({
        "working_dir": "/tmp", "envs": [{"key": "A", "value": "own"}],
        "linux": {"resources": {"oom_score_adj": 500}, "security_context": {
            "run_as_user": {"value": 1000}, "run_as_group": {"value": 1001}, "supplemental_groups": [5, 6],
            "no_new_privs": true, "seccomp": {"profile_type": "RuntimeDefault"},
            "capabilities": {"drop_capabilities": ["ALL"], "add_ambient_capabilities": ["NET_BIND_SERVICE"]},
            "masked_paths": ["/proc/uptime"], "readonly_paths": ["/proc/sys", "/proc/fs"],
        }},
    });
    let mut order = bench.order(json!({}), container)?;
    order.image = image(&json!({"config": {"Env": ["A=image", "B=image"], "WorkingDir": "/"}}))?;
    bench.prove(&order, UNPRIVILEGED).await
}

const ROOT: &[Check] = &[
    check("no user", "root", "id -u; id -g", &["0\n0"]),
    check(
        "`capabilities` add and drop",
        "the usual ones with one more and one less",
        "grep -E 'Cap(Eff|Bnd)' /proc/self/status | cut -f 2 | sort -u",
        &["00000000a80435fa"],
    ),
    check("no `seccomp`", "`Seccomp: 0`", "grep ^Seccomp: /proc/self/status | cut -f 2", &["0"]),
    check(
        "`readonly_rootfs`",
        "writing to the root fails",
        "touch /x",
        &["touch: /x: Read-only file system"],
    ),
    check("no `masked_paths`", "containerd's usual ones are masked", "wc -c < /proc/keys", &["0"]),
    check(
        "no `readonly_paths`",
        "containerd's usual ones are read-only",
        "echo 1 > /proc/sys/kernel/shmmni",
        &["sh: can't create /proc/sys/kernel/shmmni: Read-only file system"],
    ),
    check(
        "`namespace_options.network` CONTAINER",
        "a network of its own, with nothing but the loopback interface",
        "grep -c : /proc/net/dev",
        &["1"],
    ),
];

async fn cri_a_root_process(ctx: Ctx) -> Outcome {
    let bench = Bench::new(&ctx)?;
    let container = json!({"linux": {"security_context": {
        "capabilities": {"add_capabilities": ["NET_ADMIN"], "drop_capabilities": ["CAP_CHOWN"]},
        "readonly_rootfs": true, "namespace_options": {"network": "CONTAINER"},
    }}});
    bench.prove_apart(&bench.order(json!({}), container)?, ROOT).await
}

const PROFILED: &[Check] = &[check(
    "`seccomp` Localhost",
    "the profile in the host's file is the filter: what it denies fails",
    "grep ^Seccomp: /proc/self/status | cut -f 2; mkdir /tmp/x",
    &["2\nmkdir: can't create directory '/tmp/x': Operation not permitted"],
)];

const PROFILES: &[Row] = &[
    ("`seccomp` Unconfined", "`Seccomp: 0`"),
    ("`apparmor` Unconfined", "the container runs without a profile"),
];

async fn cri_profiles(ctx: Ctx) -> Outcome {
    let bench = Bench::new(&ctx)?;
    let profile = bench.directory.path().join("profile.json");
    let denied = json!({"names": ["mkdir", "mkdirat"], "action": "SCMP_ACT_ERRNO", "errnoRet": 1});
    std::fs::write(&profile, json!({"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [denied]}).to_string())?;
    let security = |seccomp| json!({"linux": {"security_context": {"seccomp": seccomp}}});
    let localhost = security(json!({"profile_type": "Localhost", "localhost_ref": profile}));
    bench.prove(&bench.order(json!({}), localhost)?, PROFILED).await?;
    let mut open = security(json!({"profile_type": "Unconfined"}));
    open["linux"]["security_context"]["apparmor"] = json!({"profile_type": "Unconfined"});
    let record = bench.start(&bench.order(json!({}), open)?).await?;
    assert_eq!(bench.sh(&record.id, "grep ^Seccomp: /proc/self/status | cut -f 2").await?, "0\n");
    let profile =
        bench.sh(&record.id, "cat /proc/self/attr/current 2> /dev/null | grep -v unconfined").await?;
    assert_eq!(profile, "");
    bench.remove(&record.id).await
}

const PRIVILEGED: &[Check] = &[
    check(
        "`privileged`: capabilities",
        "all of them",
        "grep -E 'Cap(Eff|Prm|Bnd)' /proc/self/status | cut -f 2 | sort -u",
        &["000001ffffffffff"],
    ),
    check(
        "`privileged`: sensitive paths",
        "nothing in `/proc` and `/sys` is masked or read-only, whatever `masked_paths` says",
        "grep -E ' /(proc|sys)/' /proc/mounts | grep -v -c cgroup",
        &["0"],
    ),
    check(
        "`privileged`: sysfs and procfs",
        "both are mounted read-write",
        "grep -E ' /(proc|sys) ' /proc/mounts | cut -d ' ' -f 4 | cut -d , -f 1",
        &["rw\nrw"],
    ),
    check(
        "`privileged`: AppArmor",
        "a profile is not applied",
        "cat /proc/self/attr/current 2>&1 | grep -c wanted",
        &["0"],
    ),
    check(
        "`privileged`: SELinux",
        "a label is not applied",
        "cat /proc/self/attr/current 2>&1 | grep -c labelled_t",
        &["0"],
    ),
    check(
        "`privileged`: seccomp",
        "`Seccomp: 0`, whatever the profile",
        "grep ^Seccomp: /proc/self/status | cut -f 2",
        &["0"],
    ),
    check(
        "`privileged`: device cgroup",
        "a device that nobody named can be made and opened",
        "mknod /dev/own c 1 11 && : < /dev/own && echo opened",
        &["opened"],
    ),
    check(
        "`privileged`: devices",
        "the guest's own are there with its numbers and modes, but not its memory, in which the agent is",
        "stat -c '%t:%T %a' /dev/kmsg; [ $(find /dev -type c | wc -l) -gt 20 ] && echo many; \
         ls /dev/mem /dev/port 2>&1 | grep -c 'No such file'",
        &["1:b 644\nmany\n2", "1:b 600\nmany\n2"],
    ),
];

async fn cri_a_privileged_container(ctx: Ctx) -> Outcome {
    let bench = Bench::new(&ctx)?;
    let container = json!({"linux": {"security_context": {
        "privileged": true, "seccomp": {"profile_type": "RuntimeDefault"}, "masked_paths": ["/proc/keys"],
        "apparmor": {"profile_type": "Localhost", "localhost_ref": "wanted"},
        "selinux_options": {"user": "u", "role": "r", "type": "labelled_t", "level": "s0"},
    }}});
    let refused = bench.order(json!({}), container.clone())?;
    bench.refused(&refused, "whose security_context is privileged").await?;
    let pod = json!({"linux": {"security_context": {"privileged": true}}});
    bench.prove(&bench.order(pod, container)?, PRIVILEGED).await
}

const MOUNTS: &[Check] = &[
    check(
        "`mounts`",
        "the host's directory, to read and write",
        "cat /rw/file; echo more > /rw/new; cat /ro/new",
        &["text\nmore"],
    ),
    check(
        "`mounts.readonly`",
        "writing fails in the guest too",
        "touch /ro/x",
        &["touch: /ro/x: Read-only file system"],
    ),
    check("`mounts` of a file", "the file", "cat /etc/issue", &["text"]),
    check(
        "`mounts.recursive_read_only`",
        "writing fails",
        "touch /rro/x",
        &["touch: /rro/x: Read-only file system"],
    ),
    check(
        "`mounts.propagation`",
        "BIDIRECTIONAL is a shared mount, PRIVATE is none",
        "grep ' /shared ' /proc/self/mountinfo | grep -c shared:; grep ' /rw ' /proc/self/mountinfo | grep -c shared:",
        &["1\n0"],
    ),
    check(
        "`devices`",
        "a node with the guest's numbers",
        "stat -c '%F %t:%T' /dev/mine",
        &["character special file 1:b"],
    ),
    check(
        "`devices.permissions`",
        "reading is allowed, and nothing else",
        ": < /dev/mine && echo read; (: > /dev/mine) 2>&1 | grep -o 'not permitted'",
        &["read\nnot permitted"],
    ),
];

async fn cri_mounts_and_devices(ctx: Ctx) -> Outcome {
    let bench = Bench::new(&ctx)?;
    let volume = bench.volume("volume")?;
    std::fs::set_permissions(&volume, std::fs::Permissions::from_mode(0o755))?;
    std::fs::write(volume.join("file"), "text\n")?;
    let node = bench.directory.path().join("kmsg");
    mknod(&node, SFlag::S_IFCHR, Mode::from_bits_truncate(0o600), makedev(1, 11))?;
    let container = json!({
        "mounts": [
            {"container_path": "/rw", "host_path": volume},
            {"container_path": "/ro", "host_path": volume, "readonly": true},
            {"container_path": "/rro", "host_path": volume, "readonly": true, "recursive_read_only": true},
            {"container_path": "/shared", "host_path": volume, "propagation": "PROPAGATION_BIDIRECTIONAL"},
            {"container_path": "/etc/issue", "host_path": volume.join("file")},
        ],
        "devices": [{"container_path": "/dev/mine", "host_path": node, "permissions": "r"}],
        "linux": {"security_context": {"capabilities": {"add_capabilities": ["SYSLOG"]}}},
    });
    bench.prove(&bench.order(json!({}), container)?, MOUNTS).await
}

const VOLUME_OF_A_GROUP: &[Check] = &[check(
    "a pod's fsGroup, for which CRI has no field: the kubelet gives the volume to the group and the container the group",
    "a process of another user writes there, and what it writes is the group's",
    "id -u; stat -c '%g %a' /volume; echo x > /volume/new && stat -c %g /volume/new",
    &["1000\n4242 2770\n4242"],
)];

async fn cri_a_volume_of_a_group(ctx: Ctx) -> Outcome {
    let bench = Bench::new(&ctx)?;
    let volume = bench.volume("volume")?;
    std::os::unix::fs::chown(&volume, Some(0), Some(4242))?;
    std::fs::set_permissions(&volume, std::fs::Permissions::from_mode(0o2770))?;
    // Its own user looks for it by its path.
    std::fs::set_permissions(bench.directory.path(), std::fs::Permissions::from_mode(0o755))?;
    let container = json!({
        "mounts": [{"container_path": "/volume", "host_path": volume}],
        "linux": {"security_context": {"run_as_user": 1000, "supplemental_groups": [4242]}},
    });
    bench.prove(&bench.order(json!({}), container)?, VOLUME_OF_A_GROUP).await
}

const PROPAGATION: &[Row] = &[(
    "`mounts.propagation` HOST_TO_CONTAINER",
    "what the host mounts below it while the container runs is seen, and gone when it is unmounted",
)];

async fn cri_propagation(ctx: Ctx) -> Outcome {
    let bench = Bench::new(&ctx)?;
    let volume = bench.volume("volume")?;
    let below = bench.volume("volume/below")?;
    let none = None::<&str>;
    // Mounts come through where the host's side is shared.
    mount(Some(&volume), &volume, none, MsFlags::MS_BIND, none)?;
    mount(none, &volume, none, MsFlags::MS_SHARED, none)?;
    let container = json!({"mounts": [
        {"container_path": "/volume", "host_path": volume, "propagation": "PROPAGATION_HOST_TO_CONTAINER"},
    ]});
    let seen = async {
        let record = bench.start(&bench.order(json!({}), container)?).await?;
        mount(Some("later"), &below, Some("tmpfs"), MsFlags::empty(), none)?;
        std::fs::write(below.join("file"), "mounted later")?;
        bench.until_sh(&record.id, "cat /volume/below/file", "mounted later").await?;
        umount2(&below, MntFlags::MNT_DETACH)?;
        bench.until_sh(&record.id, "ls /volume/below | wc -l", "0\n").await?;
        bench.remove(&record.id).await
    };
    let seen: Outcome = seen.await;
    umount2(&volume, MntFlags::MNT_DETACH)?;
    seen
}

const HUGE_PAGES: &[Check] = &[check(
    "`resources.hugepage_limits`",
    "`hugetlb.2MB.max`",
    "cat /sys/fs/cgroup/hugetlb.2MB.max",
    &["4194304"],
)];

async fn cri_huge_pages(ctx: Ctx) -> Outcome {
    let bench = Bench::new(&ctx)?;
    let limits = json!([{"page_size": "2MB", "limit": 4 << 20}]);
    let container = json!({"linux": {"resources": {"hugepage_limits": limits}}});
    bench.prove(&bench.order(json!({}), container)?, HUGE_PAGES).await
}

const LIMITS: &[Check] = &[
    check(
        "`resources.cpu_quota`, `cpu_period`",
        "`cpu.max`, or `cpu.cfs_quota_us`",
        "cd /sys/fs/cgroup; cat cpu.max 2>/dev/null || cat cpu/cpu.cfs_quota_us",
        &["50000 100000", "50000"],
    ),
    check(
        "`resources.cpu_shares`",
        "`cpu.weight`, or `cpu.shares`",
        "cd /sys/fs/cgroup; cat cpu.weight 2>/dev/null || cat cpu/cpu.shares",
        &["20", "512", "59"],
    ),
    check(
        "`resources.memory_limit_in_bytes`",
        "`memory.max`, or `memory.limit_in_bytes`",
        "cd /sys/fs/cgroup; cat memory.max 2>/dev/null || cat memory/memory.limit_in_bytes",
        &["67108864"],
    ),
    check(
        "`resources.cpuset_cpus`",
        "`cpuset.cpus`",
        "cd /sys/fs/cgroup; cat cpuset.cpus 2>/dev/null || cat cpuset/cpuset.cpus",
        &["0"],
    ),
    check(
        "`resources.cpuset_mems`",
        "`cpuset.mems`",
        "cd /sys/fs/cgroup; cat cpuset.mems 2>/dev/null || cat cpuset/cpuset.mems",
        &["0"],
    ),
    check(
        "`resources.memory_swap_limit_in_bytes`",
        "`memory.swap.max`, which is without the memory, or `memory.memsw.limit_in_bytes`",
        "cd /sys/fs/cgroup; cat memory.swap.max 2>/dev/null || cat memory/memory.memsw.limit_in_bytes",
        &["33554432", "100663296"],
    ),
    check(
        "`resources.unified` memory.low",
        "`memory.low`, or `memory.soft_limit_in_bytes`",
        "cd /sys/fs/cgroup; cat memory.low 2>/dev/null || cat memory/memory.soft_limit_in_bytes",
        &["16777216"],
    ),
    check(
        "`resources.unified` pids.max",
        "`pids.max`",
        "cd /sys/fs/cgroup; cat pids.max 2>/dev/null || cat pids/pids.max",
        &["50"],
    ),
];

async fn cri_limits(ctx: Ctx) -> Outcome {
    let bench = Bench::new(&ctx)?;
    let container = json!({"linux": {"resources": {
        "cpu_quota": 50000, "cpu_period": 100_000, "cpu_shares": 512, "memory_limit_in_bytes": "67108864",
        "memory_swap_limit_in_bytes": 96 << 20, "cpuset_cpus": "0", "cpuset_mems": "0",
        "unified": {"pids.max": "50", "memory.low": "16777216"},
    }}});
    bench.prove(&bench.order(json!({}), container)?, LIMITS).await
}

const PLANTED: &[Row] = &[(
    "a container whose name a hostile guest has put links to the host's files under",
    "nothing is written or removed there, and the container is refused",
)];

/// Whoever has broken out in the guest sees all of the shared directory, and can put a link to the host's files where the
/// client's own are, or will be.
async fn cri_links_planted_in_the_share(ctx: Ctx) -> Outcome {
    let bench = Bench::new(&ctx)?;
    let (outside, volume) = (bench.volume("outside")?, bench.volume("volume")?);
    for name in ["resolv.conf", "0"] {
        std::fs::write(outside.join(name), "precious")?;
    }
    let untouched = || -> Outcome {
        let entries = std::fs::read_dir(&outside)?;
        let mut names = entries.map(|entry| Ok(entry?.file_name())).collect::<Fallible<Vec<_>>>()?;
        names.sort();
        assert_eq!(names, ["0", "resolv.conf"]);
        for name in names {
            assert_eq!(std::fs::read_to_string(outside.join(name))?, "precious");
        }
        Ok(())
    };
    let pod = json!({"dns_config": {"servers": ["192.0.2.1"]}});
    let lives = bench.start(&bench.order(pod.clone(), json!({}))?).await?.id;
    let share = bench.engine.share().ok_or("no share")?.to_owned();
    let victims = [("v0", ""), ("v1", "/files"), ("v2", "/rootfs"), ("v3", "/mounts")];
    let victims = victims.map(|(name, part)| (format!("{}-{name}", ctx.prefix()), part));
    let link = format!("ln -s {}", outside.display());
    let mut script = "cd $PROC/$SERVER/root/run/kata-containers/shared/containers".to_owned();
    for (id, part) in &victims {
        let directory = if part.is_empty() { String::new() } else { format!(" && mkdir {id}") };
        script += &format!("{directory} && {link} {id}{part}");
    }
    // One's own, which is removed later.
    script += &format!(" && mv {lives}/files {lives}/away && {link} {lives}/files");
    ctx.guest_sh(&script).await?;
    assert_eq!(std::fs::read_link(share.join(&lives).join("files"))?, outside);
    for (id, part) in &victims {
        assert_eq!(std::fs::read_link(share.join(format!("{id}{part}")))?, outside);
        let container = json!({"mounts": [{"container_path": "/volume", "host_path": volume}]});
        let mut order = bench.order(pod.clone(), container)?;
        order.id = Some(id.clone());
        assert!(bench.engine.create(&order).await.is_err(), "{id}{part} is made");
        untouched()?;
    }
    bench.remove(&lives).await?;
    untouched()?;
    // What is no longer the client's own is left where it is.
    for (id, part) in victims {
        std::fs::remove_file(share.join(format!("{id}{part}")))?;
        let _ = std::fs::remove_dir(share.join(id));
    }
    let own = share.join(&lives);
    std::fs::remove_file(own.join("files"))?;
    std::fs::remove_dir_all(own.join("away"))?;
    std::fs::remove_dir(own)?;
    Ok(())
}
