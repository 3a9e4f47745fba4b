//! What a container's init is and what it is kept from: the same whoever makes it.
//!
//! Nearly all are made without libcontainer; with `tmpcopyup` in it, a specification is left to libcontainer. So the two
//! ways can be held against each other, on an image that has links where paths are to be covered.

use std::os::unix::fs::symlink;
use std::path::Path;

use nakai_ctl::SpecBuilder;
use nakai_protocols::oci;
use tokio::time::Instant;
use ttrpc::Code;

use crate::harness::context::SHELL_LIMIT;
use crate::harness::expect::{refused, succeeded};
use crate::harness::{Ctx, Fallible, Outcome, Scenario, scenario};

pub(crate) fn scenarios() -> Vec<Scenario> {
    vec![
        scenario!(it_is_confined_the_same_both_ways),
        scenario!(a_user_is_confined_the_same_both_ways),
        scenario!(its_terminal_is_the_same_both_ways),
        scenario!(what_is_mounted_in_its_dev_stays),
        scenario!(an_image_with_a_link_for_procfs_is_refused),
        scenario!(it_waits_for_its_start_and_holds_nothing_of_the_guests),
    ]
}

/// What init finds of itself, of what it may not see and of what it may not write to. Where a path to be covered is a
/// link, libcontainer mounts on the link, and the agent on what it leads to. libcontainer takes the rights to execute
/// from what is read-only, too.
const LOOK: &str = "exec 2>&1
    umask; id; hostname; env | sort; pwd; ulimit -n
    cat /proc/self/oom_score_adj /proc/sys/net/ipv4/ip_forward
    ls -l /proc/self/fd 2> /dev/null | sed 's/.* \\([0-9]* -> \\)/\\1/; s/^l.* //; s/[0-9]*\\]/]/; s/proc.*/proc/'
    grep -E '^(Uid|Gid|Groups|Cap|NoNewPrivs|Seccomp|SigBlk|SigIgn)' /proc/self/status
    sed -e 's/^[0-9]* [0-9]* [0-9]*:[0-9]* //' -e 's/master:[0-9]*/master/' -e 's/ - cgroup2 [^ ]* / - cgroup2 /' \
        -e '/ \\/\\(linked\\|target\\) /d' -e '/ \\/\\(target-\\|linked-\\)*fixed /s/nosuid,nodev,noexec,//' \
        /proc/self/mountinfo | sort
    for f in file linked by-parent/target kept dangling; do echo $f; cat /$f; stat -L -c '%F %t:%T' /$f; done
    for d in directory linked-directory nested/deep /sys/firmware; do echo $d; ls -A /$d; (: > /$d/x) && echo written; done
    for d in fixed/x linked-fixed/x free/x; do (: > /$d) && echo \"$d written\"; done
    stat -c '%n %F %a %u %g %t:%T' /dev/own /dev/deep/own /dev/null; echo lost > /dev/null
    ls /proc/kcore /proc/keys -l | cut -c 1; wc -c < /proc/keys; (echo 1 > /proc/sys/kernel/panic) && echo written
    touch /free/made && stat -c %a /free/made";

fn furnish(root: &Path) -> Fallible<()> {
    for directory in
        ["directory", "target-directory", "parent", "nested/deep", "fixed", "target-fixed", "free"]
    {
        std::fs::create_dir_all(root.join(directory))?;
        std::fs::write(root.join(directory).join("inside"), "")?;
    }
    for file in ["file", "target", "parent/target", "kept"] {
        std::fs::write(root.join(file), format!("of the image: {file}\n"))?;
    }
    for (target, link) in [
        ("/target", "linked"),
        ("parent", "by-parent"),
        ("target-directory", "linked-directory"),
        ("../../target-fixed", "linked-fixed"),
        ("/nowhere", "dangling"),
    ] {
        symlink(target, root.join(link))?;
    }
    Ok(())
}

fn confined(spec: SpecBuilder) -> SpecBuilder {
    let node = |path: &str| oci::LinuxDevice {
        Path: path.into(),
        Type: "c".into(),
        Major: 1,
        Minor: 5,
        FileMode: 0o640,
        UID: 3,
        GID: 7,
        ..Default::default()
    };
    let masked =
        ["/file", "/linked", "/by-parent/target", "/dangling", "/kept/below", "/missing/below", "/directory"]
            .into_iter()
            .chain([
                "/linked-directory",
                "/nested/deep",
                "/nested/deep/inside",
                "/sys/firmware",
                "/proc/kcore",
                "/proc/keys",
            ]);
    spec.namespaces([("ipc", ""), ("uts", ""), ("mount", ""), ("network", ""), ("cgroup", "")])
        .masked_paths(masked)
        .readonly_paths(["/fixed", "/linked-fixed", "/missing", "/proc/sys", "/proc/sysrq-trigger"])
        .sysctl("net.ipv4.ip_forward", "1")
        .add_device(node("/dev/own"))
        .add_device(node("/dev/deep/own"))
        .oom_score_adj(321)
        .rlimit("RLIMIT_NOFILE", 512, 1024)
        .cwd("/free")
        .env("LAST", "one")
}

/// What a container of that specification prints, and the same where libcontainer makes all of it.
async fn both_ways(
    ctx: &Ctx,
    script: &str,
    edit: impl Fn(SpecBuilder) -> SpecBuilder,
) -> Fallible<(String, String)> {
    let mut found = Vec::new();
    for last in ["size=16k", "tmpcopyup"] {
        let container = ctx.container(|spec| {
            edit(spec).args(["sh", "-c", script]).mount("/last", "last", "tmpfs", &[last, "size=16k"])
        })?;
        furnish(&container.file("/"))?;
        container.create().await?;
        container.start().await?;
        found.push(succeeded(container.finish(b"").await?).replace(&container.id, "NAME"));
        container.remove().await?;
    }
    let (theirs, ours) = (found.pop().unwrap_or_default(), found.pop().unwrap_or_default());
    assert_eq!(ours.lines().collect::<Vec<_>>(), theirs.lines().collect::<Vec<_>>());
    Ok((ours, theirs))
}

async fn it_is_confined_the_same_both_ways(ctx: Ctx) -> Outcome {
    let (seen, _) = both_ways(&ctx, LOOK, confined).await?;
    for line in [
        "file\ncharacter special file 1:3",
        "linked\ncharacter special file 1:3",
        "by-parent/target\ncharacter special file 1:3",
        "kept\nof the image: kept",
        "free/x written",
        "/dev/deep/own character special file 640 3 7 1:5",
    ] {
        assert!(seen.contains(line), "{line:?} is not in:\n{seen}");
    }
    for line in ["fixed/x written", "linked-fixed/x written", "inside"] {
        assert!(!seen.lines().any(|seen| seen == line), "{line:?} is in:\n{seen}");
    }
    let container = ctx.container(|spec| confined(spec).args(["cat", "/target", "/linked"]))?;
    furnish(&container.file("/"))?;
    container.create().await?;
    container.start().await?;
    assert_eq!(succeeded(container.finish(b"").await?), "", "what a link leads to is covered");
    container.remove().await?;
    Ok(())
}

async fn a_user_is_confined_the_same_both_ways(ctx: Ctx) -> Outcome {
    let edit = |spec: SpecBuilder| {
        confined(spec)
            .readonly_rootfs(true)
            .user(1000, 1001, [5, 6])
            .no_new_privileges(true)
            .capabilities(["CAP_NET_BIND_SERVICE"])
    };
    let (seen, _) = both_ways(&ctx, &format!("{LOOK}; true"), edit).await?;
    assert!(seen.contains("uid=1000(app) gid=1001") && seen.contains("Groups:\t5 6"), "{seen}");
    assert!(!seen.contains("written"), "{seen}");
    Ok(())
}

async fn its_terminal_is_the_same_both_ways(ctx: Ctx) -> Outcome {
    let script = "tty; stat -c '%n %F %t:%T %u' /dev/console /dev/pts/0; echo shown > /dev/console; \
        grep ' /dev/console ' /proc/self/mountinfo | sed 's/^[0-9]* [0-9]* [0-9]*:[0-9]* //'; \
        ls -l /proc/self/fd 2> /dev/null | sed 's/.* \\([0-9]* -> \\)/\\1/; s/^l.* //; s/[0-9]*\\]/]/; s/proc.*/proc/'; \
        (: < /dev/tty) && echo controlled";
    let (seen, _) = both_ways(&ctx, script, |spec| spec.terminal(true).user(7, 7, [])).await?;
    for line in ["/dev/pts/0", "shown", "controlled", "/dev/console character special file 88:0 7"] {
        assert!(seen.contains(line), "{line:?} is not in:\n{seen}");
    }
    Ok(())
}

async fn what_is_mounted_in_its_dev_stays(ctx: Ctx) -> Outcome {
    let container = ctx
        .created(|spec| {
            spec.mount("/dev/random", "/dev/urandom", "bind", &["rbind"])
                .mount("/dev/ptmx", "/dev/null", "bind", &["bind"])
                .mount("/dev/stdout", "/dev/zero", "bind", &["bind"])
                .args(["stat", "-c", "%n %t:%T", "/dev/random", "/dev/ptmx", "/dev/stdout", "/dev/full"])
        })
        .await?;
    container.start().await?;
    let seen = succeeded(container.finish(b"").await?);
    assert_eq!(seen.trim(), "/dev/random 1:9\n/dev/ptmx 1:3\n/dev/stdout 1:5\n/dev/full 1:7");
    container.remove().await?;
    Ok(())
}

async fn an_image_with_a_link_for_procfs_is_refused(ctx: Ctx) -> Outcome {
    for place in ["proc", "sys"] {
        let container = ctx.container(|spec| spec)?;
        let (link, elsewhere) = (container.file(place), container.file("elsewhere"));
        let _ = std::fs::remove_dir_all(&link);
        std::fs::create_dir_all(elsewhere)?;
        symlink("elsewhere", link)?;
        refused(container.create().await, Code::INVALID_ARGUMENT, &[place, "link"]);
    }
    Ok(())
}

async fn it_waits_for_its_start_and_holds_nothing_of_the_guests(ctx: Ctx) -> Outcome {
    let container = ctx.created(|spec| spec.args(["echo", "started"])).await?;
    let cgroup = ctx.cgroup(&container.id);
    let look = format!(
        "for p in $PROC/[0-9]*; do grep -q '{cgroup}$' $p/cgroup 2> /dev/null || continue; \
         for f in $p/fd/*; do readlink $f; done | sed 's/:.*//' | sort | uniq -c | sed 's/^ *//'; done; true"
    );
    // It says that it is ready, and then lets go of the rest.
    let deadline = Instant::now() + SHELL_LIMIT;
    loop {
        let held = ctx.guest_sh(&look).await?;
        let lines: Vec<_> = held.trim().lines().collect();
        if lines.len() == 2 && lines.contains(&"3 pipe") && held.contains(&container.id) {
            break;
        }
        assert!(Instant::now() < deadline, "not its gate and three pipes: {held}");
    }
    // Who has started the agent may have had some ignored, and they may come as soon as it is started.
    let ignored = format!(
        "for p in $PROC/[0-9]*; do grep -q '{cgroup}$' $p/cgroup 2> /dev/null || continue; \
         sed -n 's/^SigIgn:[^0-9a-f]*//p' $p/status; done; true"
    );
    assert_eq!(ctx.guest_sh(&ignored).await?.trim(), "0000000000001000", "SIGPIPE alone");
    container.start().await?;
    assert_eq!(succeeded(container.finish(b"").await?), "started");
    container.remove().await?;
    Ok(())
}
