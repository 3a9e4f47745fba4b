//! The debug console.

use nakai_ctl::connect::Stream;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use crate::harness::context::SHELL_LIMIT;
use crate::harness::{Ctx, Fallible, Outcome, Scenario, scenario};

/// As shims ask for it.
const PARAMETERS: &str = "agent.debug_console agent.debug_console_vport=1026";
const PORT: u32 = 1026;

pub(crate) fn scenarios() -> Vec<Scenario> {
    vec![scenario!(shells_wait_on_the_debug_port).vm_only().own_agent().kernel_parameter(PARAMETERS)]
}

/// Types a script into a shell, and reads until the shell has ended.
async fn typed(mut shell: Box<dyn Stream>, script: &str) -> Fallible<String> {
    shell.write_all(script.as_bytes()).await?;
    let mut output = Vec::new();
    tokio::time::timeout(SHELL_LIMIT, shell.read_to_end(&mut output)).await??;
    Ok(String::from_utf8_lossy(&output).into_owned())
}

/// There is no sandbox yet: it is for finding out why. Two who debug don't see each other.
async fn shells_wait_on_the_debug_port(ctx: Ctx) -> Outcome {
    let first = ctx.connect(PORT).await?;
    let second = ctx.connect(PORT).await?;
    let output = typed(second, "test -t 0 && echo terminal=$((40 + 2))\nexit\n").await?;
    assert!(output.contains("terminal=42"), "{output}");
    let output = typed(first, "echo pid=$((1 + 1)).\nexit\n").await?;
    assert!(output.contains("pid=2."), "{output}");
    Ok(())
}
