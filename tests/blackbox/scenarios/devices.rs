//! What a container may do with device nodes: also those that it makes itself.

use nakai_ctl::SpecBuilder;

use crate::harness::{Ctx, Outcome, Scenario, scenario};

pub(crate) fn scenarios() -> Vec<Scenario> {
    vec![
        scenario!(only_the_usual_devices_can_be_opened),
        scenario!(a_rule_opens_one_device_for_reading_only),
        scenario!(the_guests_memory_is_nobodys),
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
    let probe = "cd /tmp; for n in 1 2 4; do mknod m$n c 1 $n; (: < m$n) 2>&1 | grep -o 'not permitted'; done; \
                 mknod loops c 10 237; (: < loops) 2>&1 | grep -c 'not permitted'; : < /dev/full && echo opened";
    assert_eq!(container.sh(probe).await?, "not permitted\nnot permitted\nnot permitted\n0\nopened");
    Ok(())
}
