//! What a container may do with device nodes: also those that it makes itself.

use nakai_ctl::SpecBuilder;
use nakai_protocols::oci;
use ttrpc::Code;

use crate::harness::expect::refused;
use crate::harness::{Ctx, Outcome, Scenario, scenario};

pub(crate) fn scenarios() -> Vec<Scenario> {
    vec![
        scenario!(only_the_usual_devices_can_be_opened),
        scenario!(a_rule_opens_one_device_for_reading_only),
        scenario!(the_guests_memory_is_nobodys),
        scenario!(a_node_may_be_anywhere_in_the_root),
        scenario!(the_guests_dev_is_seen_and_nothing_made_in_it),
    ]
}

/// Opens a serial line and a memory device that the container makes itself.
const PROBE: &str = "cd /tmp; rm -f tty null; mknod tty c 4 64; (: < tty) 2>&1 | grep -o 'not permitted'; \
                     mknod null c 1 3 && echo data > null && echo written; \
                     head -c 3 /dev/zero | wc -c; : < /dev/full && : < /dev/urandom && echo opened";

pub(super) async fn only_the_usual_devices_can_be_opened(ctx: Ctx) -> Outcome {
    let container = ctx.idle(|spec| spec).await?;
    let expected = "not permitted\nwritten\n3\nopened";
    assert_eq!(container.sh(PROBE).await?, expected, "an exec'd process");
    let init = ctx.run(|spec| spec.args(["sh", "-c", PROBE])).await?;
    assert_eq!(String::from_utf8_lossy(&init.stdout).trim(), expected, "init");
    Ok(())
}

async fn a_rule_opens_one_device_for_reading_only(ctx: Ctx) -> Outcome {
    let container = ctx.idle(|spec| spec.add_device_rule(true, "c", 4, 64, "rm")).await?;
    // There may be no such line; but then that is what the kernel says.
    let probe = "cd /tmp; rm -f k; mknod k c 4 64; (: < k) 2>&1 | grep -c 'not permitted'; \
                 (: > k) 2>&1 | grep -c 'not permitted'";
    assert_eq!(container.sh(&format!("{probe}; true")).await?, "0\n1");
    Ok(())
}

/// Whoever may open all devices does not get the memory that the agent is in.
async fn the_guests_memory_is_nobodys(ctx: Ctx) -> Outcome {
    let privileged = |spec: SpecBuilder| {
        spec.add_device_rule(true, "a", -1, -1, "rwm").capabilities([
            "CAP_MKNOD",
            "CAP_SYS_RAWIO",
            "CAP_DAC_OVERRIDE",
        ])
    };
    let container = ctx.idle(privileged).await?;
    let probe = "cd /tmp; for n in 1 2 4; do (mknod m$n c 1 $n && : < m$n) 2>&1 | grep -o 'not permitted'; done; \
                 mknod loops c 10 237; (: < loops) 2>&1 | grep -c 'not permitted'; : < /dev/full && echo opened";
    assert_eq!(container.sh(probe).await?, "not permitted\nnot permitted\nnot permitted\n0\nopened");
    Ok(())
}

/// A privileged pod's `hostPath` of `/dev`: what the specification mounts there lies on it, and the rules hold.
async fn the_guests_dev_is_seen_and_nothing_made_in_it(ctx: Ctx) -> Outcome {
    // A place for message queues is made if there is none.
    let names = "ls $PROC/$SERVER/root/dev | grep -v mqueue";
    let before = ctx.guest_sh(names).await?;
    let bound = |spec: SpecBuilder| {
        spec.edit(|spec| {
            for mount in spec.Mounts.iter_mut().filter(|mount| mount.destination == "/dev") {
                mount.type_ = "bind".to_owned();
                mount.source = "/dev".to_owned();
                mount.options = ["rbind", "rprivate"].map(str::to_owned).to_vec();
            }
        })
    };
    let container = ctx.idle(bound).await?;
    // On a host others may be at work there.
    if !ctx.is_host() {
        assert_eq!(container.sh("ls /dev | grep -v mqueue").await?, before.trim_end());
        assert_eq!(ctx.guest_sh(names).await?, before);
    }
    assert_eq!(container.sh("stat -c %t:%T /dev/null; ls /dev/pts").await?, "1:3\nptmx");
    assert_eq!(container.sh(PROBE).await?, "not permitted\nwritten\n3\nopened");
    container.remove().await?;
    // Also with a terminal, which is the container's console.
    let look = "stat -c %t:%T /dev/console /dev/pts/0; tty";
    let terminal = ctx.container(|spec| bound(spec).terminal(true).args(["sh", "-c", look]))?;
    terminal.create().await?;
    terminal.start().await?;
    let seen = String::from_utf8(terminal.finish(b"").await?.stdout)?;
    assert_eq!(seen.replace('\r', ""), "88:0\n88:0\n/dev/pts/0\n");
    terminal.remove().await?;
    Ok(())
}

/// As raw block volumes have it: on the image, also if that is read-only, and in a volume.
async fn a_node_may_be_anywhere_in_the_root(ctx: Ctx) -> Outcome {
    let node = |path: &str| oci::LinuxDevice {
        Path: path.into(),
        Type: "c".into(),
        Major: 1,
        Minor: 5,
        FileMode: 0o640,
        GID: 7,
        ..Default::default()
    };
    let container = ctx.container(|spec| {
        spec.args(["sleep", "1000000"])
            .readonly_rootfs(true)
            .mount("/volume", "volume", "tmpfs", &["size=16k"])
            .add_device(node("/opt/deep/zero"))
            .add_device(node("/volume/zero"))
    })?;
    container.create().await?;
    container.start().await?;
    let look = "for n in /opt/deep/zero /volume/zero; do stat -c '%F %t:%T %a %g' $n; head -c 2 $n | od -An -tx1; done";
    let one = "character special file 1:5 640 7\n 00 00";
    assert_eq!(container.sh(look).await?, format!("{one}\n{one}"));
    container.remove().await?;
    let taken = ctx.container(|spec| spec.add_device(node("/etc/passwd")))?;
    refused(taken.create().await, Code::INVALID_ARGUMENT, &["/etc/passwd"]);
    Ok(())
}
