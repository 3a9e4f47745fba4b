//! Containers with users of their own: what they are inside, and that they are nobody in the guest.

use std::os::unix::fs::{MetadataExt, lchown};
use std::path::Path;

use nakai_ctl::SpecBuilder;
use nakai_ctl::spec::HookKind;
use nakai_protocols::oci;
use ttrpc::Code;

use crate::harness::expect::{refused, succeeded};
use crate::harness::{Container, Ctx, Fallible, Outcome, Scenario, scenario};

pub(crate) fn scenarios() -> Vec<Scenario> {
    vec![
        scenario!(root_is_nobody_in_the_guest),
        scenario!(what_it_creates_belongs_to_its_ids_outside),
        scenario!(another_user_is_one_of_its_own),
        scenario!(its_terminals_are_its_own),
        scenario!(mounts_are_its_own_and_none_can_be_undone),
        scenario!(it_is_confined_as_others_are),
        scenario!(it_is_paused_measured_and_killed_as_others_are),
        scenario!(what_can_not_be_is_refused_by_name).host_only(),
    ]
}

/// The first of its ids in the guest.
const FIRST: u32 = 100_000;
const SIZE: u32 = 65_536;

fn mapping(inside: u32, outside: u32, size: u32) -> oci::LinuxIDMapping {
    oci::LinuxIDMapping { ContainerID: inside, HostID: outside, Size: size, ..Default::default() }
}

fn with_users(spec: SpecBuilder, uids: &[(u32, u32, u32)], gids: &[(u32, u32, u32)]) -> SpecBuilder {
    let namespaces = [("ipc", ""), ("uts", ""), ("mount", ""), ("user", "")];
    let all = |ranges: &[(u32, u32, u32)]| ranges.iter().map(|(a, b, c)| mapping(*a, *b, *c)).collect();
    spec.namespaces(namespaces).edit(|spec| {
        let linux = spec.Linux.mut_or_insert_default();
        (linux.UIDMappings, linux.GIDMappings) = (all(uids), all(gids));
    })
}

fn users(spec: SpecBuilder) -> SpecBuilder {
    with_users(spec, &[(0, FIRST, SIZE)], &[(0, FIRST, SIZE)])
}

/// What a host does that unpacks an image for such a container.
fn shift(path: &Path) -> Fallible<()> {
    lchown(path, Some(FIRST), Some(FIRST))?;
    if path.symlink_metadata()?.is_dir() {
        for entry in std::fs::read_dir(path)? {
            shift(&entry?.path())?;
        }
    }
    Ok(())
}

/// A container whose root is its own, with a volume, in which there is a file of root's of the guest.
async fn idle(ctx: &Ctx, edit: impl FnOnce(SpecBuilder) -> SpecBuilder) -> Fallible<Container> {
    let container = ctx.container(users)?;
    shift(&container.root)?;
    let (volume, guest) = ctx.directory(&container, "volume")?;
    std::fs::write(volume.join("of-the-guest"), "secret\n")?;
    lchown(&volume, Some(FIRST), Some(FIRST))?;
    let container = container
        .edit(|spec| edit(spec.mount("/volume", &guest, "bind", &["rbind"]).args(["sleep", "1000000"])));
    container.create().await?;
    container.start().await?;
    // A container is started when its init has been told to go on.
    container.sh_until("cat /proc/1/comm", "sleep").await?;
    Ok(container)
}

/// What each line of a script comes to: nothing but its number is printed of those that succeed.
async fn successes(container: &Container, lines: &[&str]) -> Fallible<Vec<usize>> {
    let tried = lines.iter().enumerate().map(|(number, line)| format!("({line}) && echo ok {number}\n"));
    let seen = container.sh(&format!("exec 2> /dev/null\n{}:", tried.collect::<String>())).await?;
    Ok(seen.lines().filter_map(|line| line.strip_prefix("ok ")?.parse().ok()).collect())
}

const ALL: [&str; 9] = [
    "CAP_SYS_ADMIN",
    "CAP_DAC_OVERRIDE",
    "CAP_CHOWN",
    "CAP_FOWNER",
    "CAP_MKNOD",
    "CAP_SYS_RESOURCE",
    "CAP_SYS_BOOT",
    "CAP_SYS_MODULE",
    "CAP_SYS_PTRACE",
];

async fn root_is_nobody_in_the_guest(ctx: Ctx) -> Outcome {
    let container = idle(&ctx, |spec| spec.capabilities(ALL).readonly_paths(["/nowhere"])).await?;
    // Of init and of a further process.
    for of in ["1", "self"] {
        let map = format!("tr -s ' ' < /proc/{of}/uid_map; tr -s ' ' < /proc/{of}/gid_map");
        let line = format!(" 0 {FIRST} {SIZE}");
        assert_eq!(container.sh(&map).await?, format!("{line}\n{line}"));
        let status = format!("awk '/^(Uid|Gid|Groups)/ {{ print $2 }}' /proc/{of}/status");
        assert_eq!(container.sh(&status).await?, "0\n0\n", "and no other group");
    }
    let link = "readlink /proc/1/ns/user; readlink /proc/self/ns/user";
    let seen = container.sh(link).await?;
    let (init, exec) = seen.split_once('\n').ok_or("two links")?;
    assert_eq!(init, exec);
    let guests = ctx.guest_sh("readlink $PROC/$SERVER/ns/user").await?;
    assert_ne!(guests.trim(), init);
    assert_eq!(
        container.sh("id -u; id -g; stat -c %u:%g / /volume/of-the-guest").await?,
        "0\n0\n0:0\n65534:65534"
    );
    // Of the kernel, it may read what anybody may.
    assert_ne!(container.sh("cat /proc/sys/kernel/panic").await?, "");
    // Nothing that would do harm to this host, were it allowed.
    let forbidden = [
        "value=$(cat /proc/sys/kernel/panic); echo $value > /proc/sys/kernel/panic",
        ": >> /proc/sysrq-trigger",
        "hostname mine",
        "mknod /volume/node c 1 3",
        "echo lost >> /volume/of-the-guest",
        "chmod 600 /volume/of-the-guest",
        "chown 0 /volume/of-the-guest",
        "touch /volume/mine; chown 65536 /volume/mine",
        "mount -t proc proc /mnt",
        "mount -t sysfs sysfs /mnt",
        "mount -o remount,rw /sys",
    ];
    let done = successes(&container, &forbidden).await?;
    assert!(done.is_empty(), "{:?}", done.iter().map(|number| forbidden[*number]).collect::<Vec<_>>());
    let volume = container.root.with_file_name("volume");
    assert_eq!(std::fs::read_to_string(volume.join("of-the-guest"))?, "secret\n");
    container.remove().await?;
    Ok(())
}

async fn what_it_creates_belongs_to_its_ids_outside(ctx: Ctx) -> Outcome {
    let node = oci::LinuxDevice {
        Path: "/dev/own".into(),
        Type: "c".into(),
        Major: 1,
        Minor: 5,
        FileMode: 0o640,
        UID: 3,
        GID: 7,
        ..Default::default()
    };
    let container = idle(&ctx, |spec| {
        spec.add_device(node)
            .cwd("/not/there/yet")
            .mount("/memory", "tmpfs", "tmpfs", &["mode=750", "uid=4", "gid=5"])
            .mount("/plain", "tmpfs", "tmpfs", &["mode=700"])
    })
    .await?;
    container.sh("umask 022; mkdir /volume/d; echo x > /volume/d/f; chown 5:6 /volume/d/f").await?;
    let volume = container.root.with_file_name("volume");
    for (path, owner) in [("d", (FIRST, FIRST)), ("d/f", (FIRST + 5, FIRST + 6)), ("of-the-guest", (0, 0))] {
        let seen = volume.join(path).symlink_metadata()?;
        assert_eq!((seen.uid(), seen.gid()), owner, "{path}");
    }
    // What has been made for it is its own.
    let seen = container
        .sh("stat -c '%n %u %g %a' /dev /dev/null /dev/own /memory /plain /not/there/yet; \
             touch /plain/x /dev/x x && echo done")
        .await?;
    let expected = "/dev 0 0 755\n/dev/null 0 0 666\n/dev/own 3 7 640\n/memory 4 5 750\n/plain 0 0 700\n\
                    /not/there/yet 0 0 755\ndone";
    assert_eq!(seen, expected);
    let devices = "echo lost > /dev/null; head -c 3 /dev/zero | wc -c; head -c 3 /dev/urandom | wc -c; \
                   ls /dev/fd/0 /dev/shm /dev/mqueue | head -n 1; touch /dev/shm/$$ && rm /dev/shm/$$";
    assert_eq!(container.sh(devices).await?, "3\n3\n/dev/fd/0");
    container.remove().await?;
    Ok(())
}

async fn another_user_is_one_of_its_own(ctx: Ctx) -> Outcome {
    let script = "id -u; id -g; id -G; echo again > /dev/stdout; cat /dev/stdin; cat /volume/of-the-guest; \
                  touch /volume/refused 2> /dev/null || echo refused; grep ^CapEff /proc/self/status";
    let container = idle(&ctx, |spec| spec.capabilities(["CAP_KILL"]).user(1000, 1001, [7, 8])).await?;
    let expected = "1000\n1001\n1001 7 8\nagain\nsecret\nrefused\nCapEff:\t0000000000000000";
    assert_eq!(container.sh(script).await?, expected);
    let user = |uid| oci::User { UID: uid, GID: 0, ..Default::default() };
    let mut process = container.process(["sh", "-c", "id -u; touch /volume/made && echo made"]);
    process.User = Some(user(0)).into();
    assert_eq!(succeeded(container.exec_process(process.clone()).await?), "0\nmade");
    process.User = Some(user(SIZE)).into();
    let refusal = ctx.client().exec_process(&container.id, "bad", process).await;
    refused(refusal, Code::INVALID_ARGUMENT, &["process.user.uid", "65536"]);
    container.remove().await?;

    let init = ctx.container(|spec| {
        users(spec).user(1000, 1001, [7]).args(["sh", "-c", "id -u; echo again > /dev/stdout"])
    })?;
    shift(&init.root)?;
    init.create().await?;
    init.start().await?;
    assert_eq!(succeeded(init.finish(b"").await?), "1000\nagain");
    init.remove().await?;
    Ok(())
}

async fn its_terminals_are_its_own(ctx: Ctx) -> Outcome {
    let script = "stat -L -c '%u %g' /proc/self/fd/0; echo again > /dev/tty; tty > /dev/null && echo named; \
                  ls -l /dev/console | cut -c 1";
    let expected = |user| format!("{user} 5\r\nagain\r\nnamed\r\nc\r\n");
    for user in [0, 1000] {
        let container = ctx.container(|spec| {
            users(spec).user(user, user, []).terminal(true).args(["sh", "-c", &format!("{script}; read end")])
        })?;
        shift(&container.root)?;
        container.create().await?;
        container.start().await?;
        assert_eq!(read(&ctx, &container, "", expected(user).len()).await?, expected(user));
        let mut process = container.process(["sh", "-c", script]);
        process.Terminal = true;
        ctx.client().exec_process(&container.id, "tty", process).await?;
        assert_eq!(read(&ctx, &container, "tty", expected(user).len()).await?, expected(user));
        assert_eq!(ctx.client().wait_process(&container.id, "tty").await?, 0);
        ctx.client().write_stdin(&container.id, "", b"\n".to_vec()).await?;
        assert_eq!(container.wait().await?, 0);
        container.remove().await?;
    }
    Ok(())
}

/// So much of a terminal's output.
async fn read(ctx: &Ctx, container: &Container, exec: &str, len: usize) -> Fallible<String> {
    let mut seen = Vec::new();
    while seen.len() < len {
        let data = ctx.client().read_stdout(&container.id, exec, 1000).await?;
        if data.is_empty() {
            break;
        }
        seen.extend_from_slice(&data);
    }
    Ok(String::from_utf8(seen)?)
}

async fn mounts_are_its_own_and_none_can_be_undone(ctx: Ctx) -> Outcome {
    let edit = |spec: SpecBuilder| {
        spec.capabilities(["CAP_SYS_ADMIN"]).mount("/fixed", "tmpfs", "tmpfs", &["ro", "nosuid"])
    };
    let container = idle(&ctx, edit).await?;
    let seen = container.sh("wc -c < /proc/keys; ls -A /sys/firmware | wc -l").await?;
    let allowed = [
        "mount -t tmpfs mine /mnt && touch /mnt/x && umount /mnt",
        "mount -o bind /volume /mnt && umount /mnt",
    ];
    assert_eq!(successes(&container, &allowed).await?, [0, 1]);
    let forbidden = [
        "umount /proc/keys",
        "umount -l /sys/firmware",
        "umount /fixed",
        "mount -o remount,rw /fixed; touch /fixed/x",
        "mount -o remount,bind,rw /fixed; touch /fixed/x",
        "mount -o remount,bind,rw /proc/sys && : >> /proc/sys/kernel/panic",
        "mount -o remount,bind,rw /sys/fs/cgroup; mkdir /sys/fs/cgroup/mine",
    ];
    let done = successes(&container, &forbidden).await?;
    assert!(done.is_empty(), "{:?}", done.iter().map(|number| forbidden[*number]).collect::<Vec<_>>());
    assert_eq!(container.sh("wc -c < /proc/keys; ls -A /sys/firmware | wc -l").await?, seen);
    container.remove().await?;
    Ok(())
}

async fn it_is_confined_as_others_are(ctx: Ctx) -> Outcome {
    let syscall = |name: &str| oci::LinuxSyscall {
        Names: vec![name.into()],
        Action: "SCMP_ACT_ERRNO".into(),
        errnoret: 38,
        ..Default::default()
    };
    let filter = oci::LinuxSeccomp {
        DefaultAction: "SCMP_ACT_ALLOW".into(),
        Syscalls: vec![syscall("sethostname")],
        ..Default::default()
    };
    let look = "grep -E '^(Cap|Seccomp:|NoNewPrivs)' /proc/1/status; ulimit -n; cat /proc/1/oom_score_adj; \
                cat /proc/sys/user/max_pid_namespaces";
    for no_new_privileges in [true, false] {
        let edit = |spec: SpecBuilder| {
            spec.capabilities(["CAP_CHOWN", "CAP_KILL"])
                .seccomp(filter.clone())
                .no_new_privileges(no_new_privileges)
                .rlimit("RLIMIT_NOFILE", 300, 400)
                .oom_score_adj(321)
                .sysctl("user.max_pid_namespaces", "77")
        };
        let container = idle(&ctx, edit).await?;
        let none = "0000000000000000";
        let given = "0000000000000021";
        let expected = format!(
            "CapInh:\t{none}\nCapPrm:\t{given}\nCapEff:\t{given}\nCapBnd:\t{given}\nCapAmb:\t{none}\n\
             NoNewPrivs:\t{}\nSeccomp:\t2\n300\n321\n77",
            u8::from(no_new_privileges)
        );
        assert_eq!(container.sh(look).await?, expected);
        assert_eq!(container.sh(&look.replace("/proc/1", "/proc/self")).await?, expected);
        assert_eq!(container.sh("hostname x 2>&1 | grep -c 'not implemented'").await?, "1");
        container.remove().await?;
    }
    Ok(())
}

async fn it_is_paused_measured_and_killed_as_others_are(ctx: Ctx) -> Outcome {
    let before = ctx.inventory().await?;
    let container = idle(&ctx, |spec| spec).await?;
    assert!(ctx.client().stats_container(&container.id).await?.cgroup_stats.is_some());
    ctx.client().pause_container(&container.id).await?;
    ctx.client().resume_container(&container.id).await?;
    assert_eq!(container.sh("kill -0 1 && echo there").await?, "there");
    container.signal(9).await?;
    assert_eq!(container.wait().await?, 137);
    container.remove().await?;
    ctx.returns_to(&before).await
}

type Edit = fn(SpecBuilder) -> SpecBuilder;

async fn what_can_not_be_is_refused_by_name(ctx: Ctx) -> Outcome {
    const GOOD: [(u32, u32, u32); 1] = [(0, FIRST, SIZE)];
    let cases: [(Edit, &[&str]); 13] = [
        (|spec| with_users(spec, &[], &GOOD), &["linux.uidMappings"]),
        (|spec| with_users(spec, &GOOD, &[]), &["linux.gidMappings"]),
        (|spec| with_users(spec, &[(0, 5, 0)], &GOOD), &["linux.uidMappings", "hostID 5, size 0"]),
        (|spec| with_users(spec, &GOOD, &[(0, u32::MAX, 1)]), &["linux.gidMappings", "beyond the last id"]),
        (|spec| with_users(spec, &[(0, 9, 2), (1, 99, 1)], &GOOD), &["linux.uidMappings", "overlaps"]),
        (|spec| with_users(spec, &[(1, 9, 2)], &GOOD), &["linux.uidMappings", "0 is not"]),
        (|spec| users(spec).namespaces([("user", "/proc/1/ns/user")]), &["/proc/1/ns/user"]),
        (|spec| users(spec).namespaces([("mount", "")]), &["linux.uidMappings"]),
        (|spec| users(spec).user(SIZE, 0, []), &["process.user.uid", "65536"]),
        (|spec| users(spec).user(0, 0, [SIZE]), &["process.user.additionalGids", "65536"]),
        (|spec| users(spec).mount("/m", "tmpfs", "tmpfs", &["uid=65536"]), &["mounts.options", "65536"]),
        (|spec| users(spec).mount("/m", "tmpfs", "tmpfs", &["tmpcopyup"]), &["user", "tmpcopyup"]),
        (
            |spec| users(spec).hook(HookKind::Poststart, "/bin/true", ["true"], 0),
            &["linux.namespaces: user", "hooks"],
        ),
    ];
    for (edit, words) in cases {
        refused(ctx.container(edit)?.create().await, Code::INVALID_ARGUMENT, words);
    }
    Ok(())
}
