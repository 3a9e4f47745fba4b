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
