//! A privileged look at the agent's side: shell scripts that see its processes, mounts, cgroups and `/run`.
//!
//! On the host that is an ordinary shell; in a VM it is a container with the guest's `/proc`, `/run` and
//! `/sys/fs/cgroup` bound into it. Scripts find them in variables:
//!
//! | variable                | what                                                     |
//! |-------------------------|----------------------------------------------------------|
//! | `PROC` `RUN` `CGROUP`   | the guest's `/proc`, `/run` and `/sys/fs/cgroup`         |
//! | `SUPERVISOR` `SERVER`   | the pids of the agent's two processes                    |
//! | `PREFIX`                | what the ids of the scenario begin with                  |

use std::process::Command;

use nakai_ctl::stdio::finish;
use tokio::sync::OnceCell;

use super::Fallible;
use super::context::{Ctx, SHELL_LIMIT};

/// The guest's own busybox, which runs its tools from the same file: from the shared directory they are slow.
const SHELL: &str = "/guest/proc/1/root/bin/busybox";

/// The server is one of the supervisor's children, and not always the same.
const FIND_SERVER: &str = r#"for child in $(cat $PROC/$SUPERVISOR/task/*/children); do
    [ "$(cat $PROC/$child/comm 2> /dev/null)" != nakai-server ] || SERVER=$child
done"#;

/// How long a script on this host may take at most.
const HOST_SECONDS: &str = "300";

/// Whose side is looked at.
pub(crate) enum GuestView {
    Host { supervisor: u32 },
    Vm { observer: OnceCell<String> },
}

impl GuestView {
    pub(crate) fn of_vm() -> Self {
        Self::Vm { observer: OnceCell::new() }
    }

    /// Runs a shell script with the variables above and returns what it printed.
    pub(crate) async fn sh(&self, ctx: &Ctx, script: &str) -> Fallible<String> {
        match self {
            Self::Host { supervisor } => on_host(*supervisor, ctx.prefix(), script),
            Self::Vm { observer } => {
                let id = observer.get_or_try_init(|| create_observer(ctx)).await?;
                let prefix = ctx.prefix();
                let setup = format!(
                    "PROC=/guest/proc RUN=/guest/run CGROUP=/guest/cgroup PREFIX={prefix} SUPERVISOR=1\n\
                     {FIND_SERVER}\n"
                );
                let args = [SHELL, "sh", "-c", &format!("{setup}{script}")];
                let process = ctx.observer_spec(id).args(args).process();
                let exec = ctx.fresh_exec_id();
                ctx.client().exec_process(id, &exec, process).await?;
                let finished =
                    tokio::time::timeout(SHELL_LIMIT, finish(ctx.client(), id, &exec, b"")).await??;
                if finished.status != 0 {
                    let words = String::from_utf8_lossy(&finished.stderr).into_owned();
                    return Err(format!("{script}: status {}: {words}", finished.status).into());
                }
                let text = String::from_utf8(finished.stdout)?;
                Ok(text.strip_suffix('\n').unwrap_or(&text).to_owned())
            }
        }
    }
}

fn on_host(supervisor: u32, prefix: &str, script: &str) -> Fallible<String> {
    // It holds the thread: nothing else would end one that waits for what does not come.
    let output = Command::new("timeout")
        .args(["--signal=KILL", HOST_SECONDS, "sh", "-c", &format!("{FIND_SERVER}\n{script}")])
        .env("PROC", "/proc")
        .env("RUN", format!("/proc/{supervisor}/root/run"))
        .env("CGROUP", "/sys/fs/cgroup")
        .env("PREFIX", prefix)
        .env("SUPERVISOR", supervisor.to_string())
        .output()?;
    if !output.status.success() {
        let words = String::from_utf8_lossy(&output.stderr);
        return Err(format!("{script}: {}: {words}", output.status).into());
    }
    Ok(String::from_utf8(output.stdout)?)
}

async fn create_observer(ctx: &Ctx) -> Fallible<String> {
    let id = "observer".to_owned();
    ctx.make_root(&id)?;
    let spec = ctx.observer_spec(&id).args(["sleep", "1000000"]).build();
    ctx.client().create_container(&id, spec).await?;
    ctx.client().start_container(&id).await?;
    Ok(id)
}
