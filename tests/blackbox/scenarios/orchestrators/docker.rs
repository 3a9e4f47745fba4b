//! Docker's flags, seen from inside.

use nakai_ctl::docker::CommandLine;

use super::bench::Bench;
use super::{Check, Group, Section, check, group};
use crate::harness::{Ctx, Fallible, Outcome, Scenario, scenario};

pub(super) fn groups() -> Vec<Group> {
    let disk = group(
        Section::Docker,
        scenario!(docker_disk_limit).vm_only(),
        &[],
        &[(
            "`--storage-opt size=`",
            "writing more to the root filesystem ends with ENOSPC, and the image stays as it was",
        )],
    );
    let here = Scenario { in_vm: false, ..scenario!(docker_flags) };
    // A host's root may have a capability less.
    let privileged = scenario!(docker_privileged).vm_only();
    let v1 = scenario!(docker_limits_on_cgroup_v1)
        .own_agent()
        .vm_only()
        .kernel_parameter("agent.unified_cgroup_hierarchy=0");
    vec![
        group(Section::Docker, v1, ON_V1, &[]),
        group(Section::Docker, here, FLAGS, &[]),
        group(Section::Docker, privileged, PRIVILEGED, &[]),
        disk,
    ]
}

const FLAGS: &[Check] = &[
    check("`-e`, `-w`", "environment and working directory", "echo $A; pwd", &["1\n/tmp"]),
    check("`--user`, `--group-add`", "user and groups by name", "id -u; id -G", &["1000\n1000 1 7"]),
    check("default seccomp filter", "`Seccomp: 2`", "grep ^Seccomp: /proc/self/status | cut -f 2", &["2"]),
    check(
        "`--security-opt no-new-privileges`",
        "`NoNewPrivs: 1`",
        "grep NoNewPrivs /proc/self/status | cut -f 2",
        &["1"],
    ),
    check(
        "`--cap-drop`, `--cap-add`",
        "the bounding set",
        "grep CapBnd /proc/self/status | cut -f 2",
        &["0000000000003000"],
    ),
    check(
        "`--read-only`",
        "writing to the root fails",
        "touch /x",
        &["touch: /x: Read-only file system", "touch: /x: Permission denied"],
    ),
    check(
        "`--tmpfs`",
        "a filesystem in memory",
        "grep -c ' /scratch tmpfs .*size=1024k' /proc/mounts",
        &["1"],
    ),
    check(
        "`--shm-size`",
        "`/dev/shm` of that size",
        "df -k /dev/shm | tail -n 1 | awk '{ print $2 }'",
        &["2048"],
    ),
    check("`-v`", "the host's directory", "cat /volume/file", &["text"]),
    check(
        "`--mount type=bind,readonly`",
        "writing fails",
        "touch /ro/x",
        &["touch: /ro/x: Read-only file system"],
    ),
    check("`--ulimit`", "the limit", "ulimit -n", &["77"]),
    check("`--sysctl`", "the parameter", "cat /proc/sys/kernel/msgmax", &["4098"]),
    check("`--device`", "the node", "stat -c %t:%T /dev/mine", &["1:7"]),
    check(
        "`--pid`",
        "a PID namespace of its own",
        "until grep -x sleep /proc/1/comm; do sleep 0.01; done",
        &["sleep"],
    ),
    check("`--network none`", "nothing but the loopback interface", "grep -c : /proc/net/dev", &["1"]),
    check("`--oom-score-adj`", "`/proc/self/oom_score_adj`", "cat /proc/self/oom_score_adj", &["400"]),
    check(
        "`--cpus`",
        "the quota",
        "cd /sys/fs/cgroup; cat cpu.max 2>/dev/null || cat cpu/cpu.cfs_quota_us",
        &["50000 100000", "50000"],
    ),
    check(
        "`--memory`",
        "the limit",
        "cd /sys/fs/cgroup; cat memory.max 2>/dev/null || cat memory/memory.limit_in_bytes",
        &["67108864"],
    ),
    check(
        "`--cpuset-cpus`",
        "the CPUs",
        "cd /sys/fs/cgroup; cat cpuset.cpus 2>/dev/null || cat cpuset/cpuset.cpus",
        &["0"],
    ),
    check(
        "`--cpuset-mems`",
        "the memory nodes",
        "cd /sys/fs/cgroup; cat cpuset.mems 2>/dev/null || cat cpuset/cpuset.mems",
        &["0"],
    ),
    check(
        "`--pids-limit`",
        "the limit",
        "cd /sys/fs/cgroup; cat pids.max 2>/dev/null || cat pids/pids.max",
        &["60"],
    ),
];

pub(super) fn order(bench: &Bench, flags: &str, command: &[&str]) -> Fallible<nakai_ctl::cri::Order> {
    order_of(bench, &flags.split_whitespace().collect::<Vec<_>>(), command)
}

/// What a line of `nakai-ctl run` asks for.
pub(super) fn order_of(bench: &Bench, flags: &[&str], command: &[&str]) -> Fallible<nakai_ctl::cri::Order> {
    let image = bench.image.display().to_string();
    let parent = format!("--cgroup-parent=/nakai-{}", bench.ctx.prefix());
    let words = [&*parent].into_iter().chain(flags.iter().copied()).chain([&*image]);
    let line = CommandLine::read(words.chain(command.iter().copied()))?;
    Ok(line.order(&format!("{}-docker", bench.ctx.prefix()))?)
}

async fn docker_flags(ctx: Ctx) -> Outcome {
    let bench = Bench::new(&ctx)?;
    let volume = bench.volume("volume")?;
    std::fs::write(volume.join("file"), "text\n")?;
    let volume = volume.display();
    let flags = format!(
        "-e A=1 -w /tmp --user app --group-add daemon --group-add 7 --security-opt no-new-privileges --cap-drop ALL \
         --cap-add NET_ADMIN --cap-add cap_net_raw --read-only --tmpfs /scratch:size=1m --shm-size 2m \
         -v {volume}:/volume --mount type=bind,src={volume},dst=/ro,readonly --ulimit nofile=77 \
         --sysctl kernel.msgmax=4098 --device /dev/full:/dev/mine:r --network none --oom-score-adj 400 --cpus 0.5 \
         --memory 64m --cpuset-cpus 0 --cpuset-mems 0 --pids-limit 60"
    );
    bench.prove_apart(&order(&bench, &flags, &["sleep", "1000000"])?, FLAGS).await
}

const ON_V1: &[Check] = &[
    check(
        "`--cpus` on cgroup v1",
        "the quota",
        "cat /sys/fs/cgroup/cpu*/cpu.cfs_quota_us | head -n 1",
        &["50000"],
    ),
    check(
        "`--memory` on cgroup v1",
        "the limit",
        "cat /sys/fs/cgroup/memory/memory.limit_in_bytes",
        &["67108864"],
    ),
    check("`--cpuset-cpus` on cgroup v1", "the CPUs", "cat /sys/fs/cgroup/cpuset/cpuset.cpus", &["0"]),
    check("`--pids-limit` on cgroup v1", "the limit", "cat /sys/fs/cgroup/pids/pids.max", &["60"]),
];

async fn docker_limits_on_cgroup_v1(ctx: Ctx) -> Outcome {
    let bench = Bench::new(&ctx)?;
    let flags = "--cpus 0.5 --memory 64m --cpuset-cpus 0 --pids-limit 60";
    let order = order(&bench, flags, &["sleep", "1000000"])?;
    assert!(bench.engine.need_sandbox(&order.pod).await?);
    bench.prove(&order, ON_V1).await
}

const PRIVILEGED: &[Check] = &[
    check(
        "`--privileged`",
        "all capabilities, no filter, sysfs to write to, every device",
        "grep -E 'CapEff|^Seccomp:' /proc/self/status | cut -f 2; grep -c ' /sys sysfs rw' /proc/mounts; \
         mknod /dev/own c 1 11 && : < /dev/own && echo opened",
        &["000001ffffffffff\n0\n1\nopened"],
    ),
    check(
        "`--entrypoint`",
        "the program, with the arguments behind the image",
        "until grep -x sleep /proc/1/comm; do sleep 0.01; done",
        &["sleep"],
    ),
];

async fn docker_privileged(ctx: Ctx) -> Outcome {
    let bench = Bench::new(&ctx)?;
    bench.prove(&order(&bench, "--privileged --entrypoint sleep", &["1000000"])?, PRIVILEGED).await
}

async fn docker_disk_limit(ctx: Ctx) -> Outcome {
    let bench = Bench::new(&ctx)?;
    let order = order(&bench, "--storage-opt size=4m", &["sleep", "1000000"])?;
    let record = bench.start(&order).await?;
    // What is freed can be used again when the file system has written its journal.
    let script = "dd if=/dev/zero of=/big bs=64k count=128 2>&1 | grep -o 'No space left on device'; rm /big; \
                  until (echo small > /small) 2> /dev/null; do sync; sleep 0.1; done; cat /small";
    assert_eq!(bench.sh(&record.id, script).await?, "No space left on device\nsmall\n");
    bench.remove(&record.id).await?;
    assert!(!bench.image.join("small").exists());
    Ok(())
}
