//! What a container finds mounted, and where: the same whoever makes the mounts.
//!
//! Most mounts are made by the agent before libcontainer; with `tmpcopyup` in it, a specification is left to libcontainer
//! alone. So the two ways can be held against each other.

use std::os::unix::fs::PermissionsExt as _;

use nakai_ctl::SpecBuilder;
use nakai_protocols::oci;
use ttrpc::Code;

use crate::harness::expect::{refused, succeeded};
use crate::harness::{Ctx, Fallible, Outcome, Scenario, scenario};

pub(crate) fn scenarios() -> Vec<Scenario> {
    vec![
        scenario!(a_pods_container_finds_the_same_both_ways),
        scenario!(a_privileged_container_finds_the_same_both_ways),
        scenario!(a_bare_container_finds_the_same_both_ways),
        scenario!(namespaces_of_its_own_are_the_same_both_ways),
        scenario!(mounts_lie_on_each_other_in_their_order),
        scenario!(links_of_the_image_lead_mounts_no_further_than_its_root),
        scenario!(what_links_of_the_image_lead_to_is_made_for_mounts),
        scenario!(a_memory_filesystem_has_the_permissions_of_what_it_covers),
        scenario!(words_of_a_bind_mount_undo_those_of_its_source).vm_only(),
        scenario!(a_read_only_dev_is_furnished_first),
        scenario!(a_working_directory_is_made_where_links_and_mounts_lead),
        scenario!(mounts_of_a_container_are_not_the_guests),
    ]
}

/// The mount table without what differs from one container to the next: numbers, and the container's own name; and
/// without what the guest and libcontainer call the tree of cgroups. In the order of the places: the order in which they
/// came to be can't be told by a program.
const MOUNT_TABLE: &str = "sed -e 's/^[0-9]* [0-9]* [0-9]*:[0-9]* //' -e 's/\\(shared\\|master\\):[0-9]*/\\1/g' \
    -e \"s|$NAME|NAME|g\" -e 's/ - cgroup2 [^ ]* / - cgroup2 /' /proc/self/mountinfo | sort";
/// All nodes and links of `/dev`, the links' targets, and what else is to be seen of filesystems.
const NODES: &str = "for f in $(find /dev -maxdepth 1 | sort); do stat -c '%N %a %u %g %t:%T %F' $f; done; \
    stat -c '%n %a %u %g %t:%T' /dev/pts/* /dev/shm /dev/mqueue; ls -a /dev/mqueue; \
    df -k /dev /dev/shm /run 2> /dev/null | awk '{ print $1, $2, $NF }'; \
    echo x > /dev/null && head -c 3 /dev/zero | od -c; \
    for f in /proc/sys/kernel/domainname /sys/kernel/x /proc/sysrq-trigger /x /run/x; do \
    (: > $f) && echo \"$f can be written\"; done; \
    ls /proc/scsi /sys/firmware; cat /proc/self/cgroup; \
    ls /sys/fs/cgroup | sort";

/// What a container of that specification finds, and the same where libcontainer makes all mounts.
async fn both_ways(ctx: &Ctx, edit: impl Fn(SpecBuilder) -> SpecBuilder) -> Fallible<(String, String)> {
    let mut found = Vec::new();
    for last in ["size=16k", "tmpcopyup"] {
        let container =
            ctx.idle(|spec| edit(spec).mount("/last", "last", "tmpfs", &[last, "size=16k"])).await?;
        let script = format!("exec 2>&1; NAME={}; {MOUNT_TABLE}; {NODES}", container.id);
        found.push(container.sh(&script).await?.replace(&container.id, "NAME"));
        container.remove().await?;
    }
    let (theirs, ours) = (found.pop().unwrap_or_default(), found.pop().unwrap_or_default());
    Ok((ours, theirs))
}

fn same(ours: &str, theirs: &str) {
    assert_eq!(ours.lines().collect::<Vec<_>>(), theirs.lines().collect::<Vec<_>>());
}

async fn a_pods_container_finds_the_same_both_ways(ctx: Ctx) -> Outcome {
    let (files, volume) = ctx.directory(&ctx.container(|spec| spec)?, "volume")?;
    std::fs::write(files.join("hosts"), "127.0.0.1 localhost\n")?;
    let hosts = format!("{volume}/hosts");
    let edit = |spec: SpecBuilder| {
        spec.readonly_rootfs(true)
            .mount("/etc/hosts", &hosts, "bind", &["rbind", "rprivate", "ro"])
            .mount("/volume", &volume, "bind", &["rbind", "rslave", "rw", "nosuid"])
            .mount("/rro", &volume, "bind", &["rbind", "rro", "rnosuid", "noatime"])
            .mount(
                "/run",
                "tmpfs",
                "tmpfs",
                &["rw", "nosuid", "noexec", "strictatime", "mode=700", "size=32k"],
            )
    };
    let (ours, theirs) = both_ways(&ctx, edit).await?;
    same(&ours, &theirs);
    for line in [
        "/dev/ptmx' -> 'pts/ptmx' 777 0 0 0:0 symbolic link",
        "/dev/fd' -> '/proc/self/fd' 777 0 0 0:0 symbolic link",
        "/dev/urandom 666 0 0 1:9 character special file",
        "/run/x can be written",
        "/run rw,nosuid,noexec",
        "tmpfs 32 /run",
    ] {
        assert!(ours.contains(line), "{line:?} is not in:\n{ours}");
    }
    assert!(!ours.contains("/x can be written\n/run"), "the root is read-only:\n{ours}");
    Ok(())
}

async fn a_privileged_container_finds_the_same_both_ways(ctx: Ctx) -> Outcome {
    let edit = |spec: SpecBuilder| {
        spec.capabilities(["CAP_SYS_ADMIN", "CAP_MKNOD", "CAP_NET_ADMIN", "CAP_DAC_OVERRIDE"])
            .masked_paths([] as [&str; 0])
            .readonly_paths([] as [&str; 0])
            .private_shm()
            .mount("/sys", "sysfs", "sysfs", &["nosuid", "noexec", "nodev", "rw"])
            .mount("/sys/fs/cgroup", "cgroup", "cgroup", &["nosuid", "noexec", "nodev", "relatime", "rw"])
    };
    let (ours, theirs) = both_ways(&ctx, edit).await?;
    same(&ours, &theirs);
    assert!(ours.contains("/proc/sys/kernel/domainname can be written"), "{ours}");
    Ok(())
}

async fn a_bare_container_finds_the_same_both_ways(ctx: Ctx) -> Outcome {
    let edit = |spec: SpecBuilder| {
        let bare = ["/dev/pts", "/dev/shm", "/dev/mqueue", "/sys/fs/cgroup", "/sys"];
        bare.into_iter().fold(spec, |spec, mount| spec.without_mount(mount))
    };
    let (ours, theirs) = both_ways(&ctx, edit).await?;
    same(&ours, &theirs);
    Ok(())
}

async fn namespaces_of_its_own_are_the_same_both_ways(ctx: Ctx) -> Outcome {
    let own = [("ipc", ""), ("uts", ""), ("mount", ""), ("network", ""), ("cgroup", "")];
    let (ours, theirs) = both_ways(&ctx, |spec| spec.namespaces(own)).await?;
    same(&ours, &theirs);
    // Of the network that the container is in, and of no other.
    let links = ctx.output("ls /sys/class/net", |spec| spec.namespaces(own)).await?;
    assert_eq!(links, "lo");
    Ok(())
}

async fn mounts_lie_on_each_other_in_their_order(ctx: Ctx) -> Outcome {
    let container = ctx.container(|spec| spec.args(["sleep", "1000000"]))?;
    let (files, volume) = ctx.directory(&container, "ordered")?;
    std::fs::write(files.join("file"), "of the volume\n")?;
    let container = container.edit(|spec| {
        spec.mount("/a", "first", "tmpfs", &["size=16k"])
            .mount("/a/b", &volume, "bind", &["rbind"])
            .mount("/a/b/c", "third", "tmpfs", &["size=16k"])
            .mount("/hidden/below", &volume, "bind", &["rbind"])
            .mount("/hidden", "over", "tmpfs", &["size=16k"])
            .mount("/proc/meminfo", &format!("{volume}/file"), "bind", &["bind", "ro"])
            .mount("/file/deep", &format!("{volume}/file"), "bind", &["bind", "ro"])
    });
    container.create().await?;
    container.start().await?;
    let seen = "ls /a /a/b; ls /hidden | wc -l; cat /proc/meminfo /file/deep; \
        grep -c ' /a/b/c tmpfs ' /proc/mounts; (: > /file/deep) 2>&1 | grep -o 'Read-only'";
    let expected = "/a:\nb\n\n/a/b:\nc\nfile\n0\nof the volume\nof the volume\n1\nRead-only";
    assert_eq!(container.sh(seen).await?, expected);
    container.remove().await?;
    Ok(())
}

/// As images have it, `/var/run` is a link; but none may lead into the guest, nor a mount into procfs.
async fn links_of_the_image_lead_mounts_no_further_than_its_root(ctx: Ctx) -> Outcome {
    let edit = |spec: SpecBuilder| {
        spec.args(["sh", "-c", "ls -d /run/secrets/token /etc/nakai-inside/x; stat -c %F /run/secrets/token"])
            .mount("/var/run/secrets/token", "token", "tmpfs", &["size=16k"])
            .mount("/climbs/x", "climbs", "tmpfs", &["size=16k"])
    };
    let container = ctx.container(edit)?;
    let link = std::os::unix::fs::symlink::<&str, std::path::PathBuf>;
    let _ = std::fs::remove_dir_all(container.file("/var/run"));
    std::fs::create_dir_all(container.file("/var"))?;
    link("/run", container.file("/var/run"))?;
    link("../../../../../../../../etc/nakai-inside", container.file("/climbs"))?;
    std::fs::create_dir_all(container.file("/etc/nakai-inside"))?;
    container.create().await?;
    container.start().await?;
    let seen = succeeded(container.finish(b"").await?);
    assert_eq!(seen, "/etc/nakai-inside/x\n/run/secrets/token\ndirectory");
    assert_eq!(
        ctx.guest_sh("ls -d $PROC/$SUPERVISOR/root/etc/nakai-inside 2> /dev/null || echo none").await?.trim(),
        "none"
    );
    for target in ["/proc", "/"] {
        let container = ctx.container(|spec| spec.mount("/to/x", "none", "tmpfs", &["size=16k"]))?;
        std::fs::create_dir_all(container.file("/to"))?;
        link(target, container.file("/to/x"))?;
        refused(container.create().await, Code::INVALID_ARGUMENT, &["/to/x", "link"]);
    }
    Ok(())
}

/// Images are made without what is mounted at run time: `/var/run` leads to a `/run` that is not there.
async fn what_links_of_the_image_lead_to_is_made_for_mounts(ctx: Ctx) -> Outcome {
    let container = ctx.container(|spec| {
        let script = "pwd -P; cat /etc/hosts; awk '$2 ~ \"^/gone\" { print $2 }' /proc/mounts";
        spec.args(["sh", "-c", script]).cwd("/link/app")
    })?;
    let (files, volume) = ctx.directory(&container, "dangling")?;
    std::fs::write(files.join("hosts"), "of the volume\n")?;
    let container = container.edit(|spec| {
        spec.mount("/link/secrets/token", "token", "tmpfs", &["size=16k"]).mount(
            "/etc/hosts",
            &format!("{volume}/hosts"),
            "bind",
            &["rbind", "ro"],
        )
    });
    let link = std::os::unix::fs::symlink::<&str, std::path::PathBuf>;
    std::fs::create_dir_all(container.file("/etc"))?;
    let _ = std::fs::remove_file(container.file("/etc/hosts"));
    for (target, name) in [("gone", "/link"), ("/jump/etc/hosts", "/etc/hosts"), ("gone/../gone/2", "/jump")]
    {
        link(target, container.file(name))?;
    }
    container.create().await?;
    container.start().await?;
    let seen = succeeded(container.finish(b"").await?);
    assert_eq!(seen, "/gone/app\nof the volume\n/gone/secrets/token\n/gone/2/etc/hosts");
    Ok(())
}

/// As runc has it, and the kernel's default where nothing is covered. With a hook the mounts are libcontainer's.
async fn a_memory_filesystem_has_the_permissions_of_what_it_covers(ctx: Ctx) -> Outcome {
    for last in ["size=16k", "tmpcopyup"] {
        let container = ctx.container(|spec| {
            let script = "stat -c %a /covered /missing /own; grep -o ' /covered .*mode=[0-7]*' /proc/mounts | \
                grep -o 'mode.*'";
            ["/covered", "/missing"]
                .into_iter()
                .fold(spec, |spec, to| spec.mount(to, "tmpfs", "tmpfs", &["nosuid"]))
                .mount("/own", "tmpfs", "tmpfs", &["mode=750"])
                .mount("/last", "tmpfs", "tmpfs", &[last])
                .args(["sh", "-c", script])
        })?;
        for (name, mode) in [("/covered", 0o1710), ("/own", 0o700)] {
            std::fs::create_dir(container.file(name))?;
            std::fs::set_permissions(container.file(name), std::fs::Permissions::from_mode(mode))?;
        }
        container.create().await?;
        container.start().await?;
        let seen = succeeded(container.finish(b"").await?);
        assert_eq!(seen, "1710\n1777\n750\nmode=1710", "{last}");
        container.remove().await?;
    }
    Ok(())
}

/// The guest's `/sys` is mounted so that nothing in it can be run, nor be a device.
async fn words_of_a_bind_mount_undo_those_of_its_source(ctx: Ctx) -> Outcome {
    let edit = |spec: SpecBuilder| {
        spec.mount("/x/same", "/sys", "bind", &["rbind", "rprivate"]).mount(
            "/x/other",
            "/sys",
            "bind",
            &["rbind", "rprivate", "exec", "suid", "ro"],
        )
    };
    let script = "awk '$2 ~ \"^/x/(same|other)$\" { print $4 }' /proc/mounts | cut -d , -f 1-4";
    let seen = ctx.output(script, edit).await?;
    let lines: Vec<&str> = seen.lines().collect();
    let has =
        |line: usize, word: &str| lines.get(line).is_some_and(|line| line.split(',').any(|one| one == word));
    assert!(has(0, "rw") && has(0, "nosuid") && has(0, "noexec") && has(0, "nodev"), "{seen}");
    assert!(has(1, "ro") && !has(1, "nosuid") && !has(1, "noexec") && has(1, "nodev"), "{seen}");
    Ok(())
}

async fn a_read_only_dev_is_furnished_first(ctx: Ctx) -> Outcome {
    let edit = |spec: SpecBuilder| {
        let dev = ["nosuid", "strictatime", "mode=755", "size=65536k", "ro"];
        let spec = spec.edit(|spec| {
            for mount in spec.Mounts.iter_mut().filter(|mount| mount.destination == "/dev") {
                mount.options = dev.map(str::to_owned).to_vec();
            }
        });
        spec.add_device(oci::LinuxDevice {
            Path: "/dev/own".into(),
            Type: "c".into(),
            Major: 1,
            Minor: 5,
            ..Default::default()
        })
    };
    let (ours, theirs) = both_ways(&ctx, edit).await?;
    same(&ours, &theirs);
    assert!(
        ours.lines().any(|line| line.starts_with("/dev ro,nosuid") || line.contains(" /dev ro,nosuid")),
        "{ours}"
    );
    let script = "mkdir /dev/x 2>&1 | grep -o 'Read-only'; head -c 1 /dev/own | wc -c; echo > /dev/null && : > /dev/shm/x && echo done";
    assert_eq!(ctx.output(script, edit).await?, "Read-only\n1\ndone");
    Ok(())
}

/// The image's `/var/run` is a link, and what is at its end a memory filesystem or a volume.
async fn a_working_directory_is_made_where_links_and_mounts_lead(ctx: Ctx) -> Outcome {
    for (cwd, expected) in [
        ("/link/app", "/memory/app"),
        ("/other-link/deep/app", "/volume/deep/app"),
        ("/link/../plain", "/plain"),
    ] {
        let container = ctx.container(|spec| spec.args(["pwd", "-P"]).cwd(cwd))?;
        let (files, volume) = ctx.directory(&container, "volume")?;
        let container = container.edit(|spec| {
            spec.mount("/memory", "memory", "tmpfs", &["size=16k"]).mount(
                "/volume",
                &volume,
                "bind",
                &["rbind", "rw"],
            )
        });
        std::os::unix::fs::symlink("memory", container.file("/link"))?;
        std::os::unix::fs::symlink("/volume", container.file("/other-link"))?;
        container.create().await?;
        container.start().await?;
        assert_eq!(succeeded(container.finish(b"").await?), expected, "{cwd}");
        assert_eq!(files.join("deep/app").exists(), cwd.contains("deep"), "{cwd}");
        container.remove().await?;
    }
    Ok(())
}

async fn mounts_of_a_container_are_not_the_guests(ctx: Ctx) -> Outcome {
    let look =
        "grep -c ' inside-of-one ' $PROC/$SERVER/mountinfo $PROC/1/mountinfo | cut -d : -f 2 | sort -u";
    let container = ctx.idle(|spec| spec.mount("/x", "inside-of-one", "tmpfs", &["size=16k"])).await?;
    assert_eq!(container.sh("grep -c '^inside-of-one /x ' /proc/mounts").await?, "1");
    assert_eq!(ctx.guest_sh(&format!("{look}; true")).await?.trim(), "0");
    container.remove().await?;
    let failing = ctx.container(|spec| {
        spec.args(["/no/such/program"]).mount("/x", "inside-of-one", "tmpfs", &["size=16k"])
    })?;
    refused(failing.create().await, Code::NOT_FOUND, &["/no/such/program"]);
    assert_eq!(ctx.guest_sh(&format!("{look}; true")).await?.trim(), "0");
    Ok(())
}
