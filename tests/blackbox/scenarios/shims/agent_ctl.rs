//! The tool with which developers drive an agent by hand: a sandbox of which only the id is named, and a container of
//! an OCI bundle with a network of its own.

use nakai_ctl::{SpecBuilder, sandbox};
use nakai_protocols::agent::{CreateSandboxRequest, RemoveContainerRequest};
use nakai_protocols::oci::LinuxResources;
use ttrpc::Code;

use crate::harness::expect::{refused, succeeded};
use crate::harness::{Ctx, Outcome};

fn template(spec: SpecBuilder) -> SpecBuilder {
    spec.private_shm()
        .without_mount("/sys/fs/cgroup")
        .readonly_rootfs(true)
        .env("TERM", "xterm")
        .namespaces([("pid", ""), ("network", ""), ("ipc", ""), ("uts", ""), ("mount", "")])
        .edit(|spec| {
            spec.Version = "1.1.0-rc.1-test".to_owned();
            spec.Annotations.clear();
            spec.Process.mut_or_insert_default().Rlimits.clear();
            let linux = spec.Linux.mut_or_insert_default();
            linux.Resources = Some(LinuxResources::new()).into();
            linux.MaskedPaths.clear();
            linux.ReadonlyPaths.clear();
        })
}

pub(super) async fn a_developers_tool_makes_a_container(ctx: Ctx) -> Outcome {
    let client = ctx.client();
    // Only a root filesystem in the guest is a matter of the test's own.
    let storages = if ctx.is_host() { Vec::new() } else { vec![sandbox::share_storage()] };
    let request = CreateSandboxRequest { sandbox_id: "18234".to_owned(), storages, ..Default::default() };
    let container = ctx.container(|spec| template(spec).args(["sh", "-c", "ls /sys/class/net; exit 2"]))?;
    // There is nothing to make it in.
    refused(container.create().await, Code::FAILED_PRECONDITION, &["sandbox"]);
    client.create_sandbox(&request).await?;
    container.create().await?;
    container.start().await?;
    let finished = container.finish(b"").await?;
    assert_eq!((finished.status, &*finished.stdout), (2, &b"lo\n"[..]), "a network of its own");
    // Its own template of a container, which has no process at all; and a command without words.
    let bare = ctx.container(|spec| template(spec).edit(|spec| spec.Process = None.into()))?;
    bare.create().await?;
    bare.start().await?;
    let shell = succeeded(bare.finish(b"pwd; id -u; echo $TERM; ulimit -n\n").await?);
    assert_eq!(shell, "/\n0\nxterm\n1024");
    let idle = ctx.idle(template).await?;
    let mut process = idle.process(["sh"]);
    process.Args.clear();
    ctx.client().exec_process(&idle.id, "x", process).await?;
    ctx.client().write_stdin(&idle.id, "x", b"exit 7\n".to_vec()).await?;
    assert_eq!(ctx.client().wait_process(&idle.id, "x").await?, 7);
    // A connection for each command.
    let another = ctx.another_client().await?;
    let request = RemoveContainerRequest { container_id: container.id.clone(), ..Default::default() };
    another.agent().remove_container(another.context(), &request).await?;
    another.destroy_sandbox().await?;
    Ok(())
}
