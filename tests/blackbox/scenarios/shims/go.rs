//! The Go shim (virtcontainers): it names init by the container's id, closes the input by CloseStdin, looks for words
//! in errors, and ends with DestroySandbox.

use nakai_ctl::sandbox;
use nakai_protocols::agent::{
    CreateContainerRequest, CreateSandboxRequest, KernelModule, RemoveContainerRequest,
    RemoveStaleVirtiofsShareMountsRequest, Storage,
};
use nakai_protocols::oci::{LinuxCPU, LinuxMemory, LinuxResources, Spec};
use ttrpc::Code;

use super::spec::{self, Place};
use super::{NO_DEVICES, Stream, copy, network, online, oom_event, update, wait};
use crate::harness::expect::refused;
use crate::harness::{Ctx, Fallible, Outcome};

/// The pod's user, by which the kubelet names its cgroup.
const POD: &str = "pod11112222_3333_4444_5555_666677778888";

/// A volume in memory, with the group that the pod's files have.
const SCRATCH: &str = "/run/kata-containers/sandbox/ephemeral/scratch";

fn sandbox_request(ctx: &Ctx, id: &str) -> CreateSandboxRequest {
    let mut request = sandbox::request(id, "pod-host", !ctx.is_host());
    for storage in request.storages.iter_mut().filter(|storage| storage.driver == "virtio-fs") {
        storage.options = vec!["nodev".to_owned()];
    }
    request.dns = vec!["search default.svc".to_owned(), "nameserver 192.0.2.53".to_owned()];
    request.guest_hook_path = "/usr/share/oci/hooks".to_owned();
    if !ctx.is_host() {
        let overlay = KernelModule { name: "overlay".to_owned(), ..Default::default() };
        request.kernel_modules = vec![overlay];
    }
    request
}

async fn create(ctx: &Ctx, id: &str, spec: Spec, storages: Vec<Storage>) -> Outcome {
    let request = CreateContainerRequest {
        container_id: id.to_owned(),
        exec_id: id.to_owned(),
        devices: NO_DEVICES,
        storages,
        OCI: Some(spec).into(),
        ..Default::default()
    };
    Ok(ctx.client().create_container_with(&request).await?)
}

/// What the shim does when containerd asks it to stop and delete a container whose end it has seen, or not.
async fn stop_and_remove(ctx: &Ctx, id: &str) -> Outcome {
    ctx.client().signal_process(id, "", libc::SIGKILL.unsigned_abs()).await?;
    // Asked again for good measure; what comes of it is not looked at.
    let _ = ctx.client().wait_process(id, id).await;
    let request = RemoveContainerRequest { container_id: id.to_owned(), ..Default::default() };
    ctx.client().agent().remove_container(ctx.client().context(), &request).await?;
    let look = RemoveStaleVirtiofsShareMountsRequest::new();
    ctx.client().agent().remove_stale_virtiofs_share_mounts(ctx.client().context(), &look).await?;
    Ok(())
}

/// By the filter, or already for want of a capability.
const REFUSED: &str = "mount: permission denied (are you root?)";

/// An exec with a terminal: made, resized, written to, waited for, and signalled too late.
async fn exec(ctx: &Ctx, id: &str) -> Outcome {
    let client = ctx.client();
    let exec = "0b1d1a66-40a5-4a3a-9d1f-2b1c7c3e6f10";
    let script = "stty -echo; stty size; id -G; grep -E '^(Seccomp|NoNewPrivs|CapBnd):' /proc/self/status | cut -f 2; \
                  cat /proc/self/oom_score_adj; mount -t tmpfs none /tmp; read line; echo got $line; exit 5";
    client.exec_process(id, exec, spec::exec_process(&["sh", "-c", script], true)).await?;
    client.tty_win_resize(id, exec, 24, 80).await?;
    let (output, status) = (copy(client, id, exec, Stream::Stdout), wait(client, id, exec));
    client.write_stdin(id, exec, b"hello\n".to_vec()).await?;
    let output = String::from_utf8(output.await??)?;
    assert_eq!(status.await??, 5);
    // The size may have come too late to be seen, and the input so early that it was echoed.
    for line in ["1000 2000", "00000000a80425fb", "1", "2", "985", REFUSED, "got hello"] {
        assert!(output.lines().any(|seen| seen.trim_end() == line), "{line:?} is not in {output:?}");
    }
    // By these words the shim knows that there is nothing to kill.
    let late = client.signal_process(id, exec, libc::SIGTERM.unsigned_abs()).await;
    refused(late, Code::NOT_FOUND, &["ESRCH: No such process"]);
    Ok(())
}

/// An exec with pipes, whose input is closed.
async fn piped_exec(ctx: &Ctx, id: &str) -> Outcome {
    let (client, exec) = (ctx.client(), "5c9b3a51-86c7-46b9-8a57-3a9e9f7f3a11");
    let script = "cat; echo done >&2; exit 3";
    client.exec_process(id, exec, spec::exec_process(&["sh", "-c", script], false)).await?;
    let output = copy(client, id, exec, Stream::Stdout);
    let errors = copy(client, id, exec, Stream::Stderr);
    assert_eq!(client.write_stdin(id, exec, b"through".to_vec()).await?, 7);
    client.close_stdin(id, exec).await?;
    assert_eq!((output.await??, errors.await??), (b"through".to_vec(), b"done\n".to_vec()));
    assert_eq!(wait(client, id, exec).await??, 3);
    Ok(())
}

fn scratch(group: u32) -> Storage {
    Storage {
        driver: "ephemeral".to_owned(),
        source: "tmpfs".to_owned(),
        fstype: "tmpfs".to_owned(),
        mount_point: SCRATCH.to_owned(),
        options: vec![format!("fsgid={group}")],
        ..Default::default()
    }
}

/// The container that does the pod's work: made, started, looked at, changed, and used.
async fn workload(ctx: &Ctx, pod: &str) -> Fallible<String> {
    let (client, id) = (ctx.client(), format!("{pod}-app"));
    ctx.make_root(&id)?;
    let (host, guest) = spec::files_of(ctx, &id)?;
    // This one by the file system's own paths, as a host without systemd arranges them.
    let place =
        Place { pod, name: "app", cgroups_path: ctx.cgroup(&format!("kubepods/burstable/{POD}/{id}")) };
    let script = "cat /etc/hostname; hostname; tail -n 1 /etc/resolv.conf; echo warning >&2; \
                  stat -c %g:%a /scratch; printf why > /dev/termination-log; read line; exit 7";
    let spec = spec::workload(&id, &ctx.guest_root(&id), &place).args(["sh", "-c", script]).mount(
        "/scratch",
        SCRATCH,
        "bind",
        &["rbind", "rprivate", "rw"],
    );
    let spec = spec::with_files(spec, &host, &guest)?;
    create(ctx, &id, spec.build(), vec![scratch(2000)]).await?;
    client.start_container(&id).await?;
    let output = copy(client, &id, &id, Stream::Stdout);
    let errors = copy(client, &id, &id, Stream::Stderr);

    exec(ctx, &id).await?;
    piped_exec(ctx, &id).await?;
    let resources = LinuxResources {
        CPU: Some(LinuxCPU { Shares: 512, Quota: 50_000, Period: 100_000, ..Default::default() }).into(),
        Memory: Some(LinuxMemory { Limit: 96 << 20, Swap: 96 << 20, ..Default::default() }).into(),
        ..Default::default()
    };
    update(client, &id, resources).await?;
    let stats = client.stats_container(&id).await?;
    assert!(stats.cgroup_stats.cpu_stats.cpu_usage.total_usage > 0, "{stats}");
    assert_eq!(stats.cgroup_stats.memory_stats.usage.limit, 96 << 20, "{stats}");

    client.write_stdin(&id, &id, b"end\n".to_vec()).await?;
    let (output, errors) = (String::from_utf8(output.await??)?, errors.await??);
    assert_eq!(client.wait_process(&id, &id).await?, 7);
    assert_eq!(errors, b"warning\n");
    assert_eq!(output, "pod-host\npod-host\nnameserver 192.0.2.53\n2000:3777\n");
    assert_eq!(std::fs::read_to_string(host.join("termination-log"))?, "why");
    let late = client.signal_process(&id, &id, libc::SIGTERM.unsigned_abs()).await;
    refused(late, Code::NOT_FOUND, &["ESRCH: No such process"]);
    Ok(id)
}

pub(super) async fn a_pod_by_the_go_shim(ctx: Ctx) -> Outcome {
    let (client, pod) = (ctx.client(), format!("{}-go", ctx.prefix()));
    client.check().await?;
    network(client).await?;
    client.create_sandbox(&sandbox_request(&ctx, &pod)).await?;
    assert!(client.guest_details().await?.agent_details.supports_seccomp);

    ctx.make_root(&pod)?;
    let slice = format!("nakai-{}.slice", ctx.prefix());
    let cgroups_path = format!("{slice}:cri-containerd:{pod}");
    let place = Place { pod: &pod, name: "", cgroups_path };
    create(&ctx, &pod, spec::pause(&ctx, &pod, &place).build(), Vec::new()).await?;
    online(client, 1, true).await?;
    if !ctx.is_host() {
        online(client, 0, false).await?;
    }
    client.start_container(&pod).await?;
    let oom = oom_event(client);
    let end = wait(client, &pod, &pod);
    let output = copy(client, &pod, &pod, Stream::Stdout);

    let app = workload(&ctx, &pod).await?;
    stop_and_remove(&ctx, &app).await?;
    assert!(!end.is_finished() && !oom.is_finished(), "the pod lives");
    stop_and_remove(&ctx, &pod).await?;
    assert_eq!((end.await??, output.await??), (137, Vec::new()));
    client.destroy_sandbox().await?;
    assert!(oom.await?.is_err(), "nobody is killed any more");
    Ok(())
}
