//! The Rust shim (runtime-rs): it names init by nothing, closes the input by writing nothing, leaves paths of the
//! host's in shared namespaces, and ends by stopping the machine.

use std::time::Duration;

use nakai_ctl::sandbox;
use nakai_protocols::agent::CreateContainerRequest;
use nakai_protocols::oci::Spec;
use ttrpc::Code;

use super::spec::{self, Place};
use super::{Stream, copy, network, online, wait};
use crate::harness::expect::refused;
use crate::harness::{Ctx, Outcome};

async fn create(ctx: &Ctx, id: &str, spec: Spec) -> Outcome {
    let request =
        CreateContainerRequest { container_id: id.to_owned(), OCI: Some(spec).into(), ..Default::default() };
    Ok(ctx.client().create_container_with(&request).await?)
}

/// What it does to end a process: it takes NOT_FOUND for success.
async fn stop(ctx: &Ctx, id: &str) -> Outcome {
    match ctx.client().signal_process(id, "", libc::SIGKILL.unsigned_abs()).await {
        Err(error) if error.code != Code::NOT_FOUND => Err(error.into()),
        _ => Ok(()),
    }
}

pub(super) async fn a_pod_by_the_rust_shim(ctx: Ctx) -> Outcome {
    let (client, pod) = (ctx.client(), format!("{}-rs", ctx.prefix()));
    client.check().await?;
    network(client).await?;
    let mut request = sandbox::request(&pod, "pod-host", !ctx.is_host());
    request.dns = vec!["nameserver 192.0.2.53".to_owned()];
    client.create_sandbox(&request).await?;
    client.guest_details().await?;

    ctx.make_root(&pod)?;
    let place = |name, id: &str| Place { pod: &pod, name, cgroups_path: ctx.cgroup(id) };
    let pause = spec::pause(&ctx, &pod, &place("", &pod));
    create(&ctx, &pod, pause.build()).await?;
    client.start_container(&pod).await?;
    let end = wait(client, &pod, "");

    // With a terminal, whose size comes after the start.
    let shell = format!("{pod}-shell");
    ctx.make_root(&shell)?;
    let (host, guest) = spec::files_of(&ctx, &shell)?;
    let script = "stty -echo; read line; stty size; echo got $line; exit 4";
    let spec = spec::workload(&shell, &ctx.guest_root(&shell), &place("shell", &shell)).terminal(true);
    let spec = spec::joining(spec::with_files(spec, &host, &guest)?).args(["sh", "-c", script]);
    if !ctx.is_host() {
        online(client, 1, false).await?;
    }
    create(&ctx, &shell, spec.build()).await?;
    client.start_container(&shell).await?;
    client.tty_win_resize(&shell, "", 24, 80).await?;
    let (output, status) = (copy(client, &shell, "", Stream::Stdout), wait(client, &shell, ""));
    client.write_stdin(&shell, "", b"hello\n".to_vec()).await?;
    let output = String::from_utf8(output.await??)?;
    assert!(output.ends_with("24 80\r\ngot hello\r\n"), "{output:?}");
    assert_eq!(status.await??, 4);
    stop(&ctx, &shell).await?;
    client.within(Duration::from_secs(60)).remove_container(&shell).await?;
    refused(client.wait_process(&shell, "").await, Code::NOT_FOUND, &[&shell]);
    stop(&ctx, &shell).await?;

    let (exec, script) = ("exec-1", "cat; exit 6");
    let late = client.signal_process(&pod, exec, libc::SIGKILL.unsigned_abs()).await;
    refused(late, Code::NOT_FOUND, &[exec]);
    let mut process = spec::exec_process(&["sh", "-c", script], false);
    process.User = Default::default();
    client.exec_process(&pod, exec, process).await?;
    let (output, status) = (copy(client, &pod, exec, Stream::Stdout), wait(client, &pod, exec));
    client.write_stdin(&pod, exec, b"in".to_vec()).await?;
    client.write_stdin(&pod, exec, Vec::new()).await?;
    assert_eq!((output.await??, status.await??), (b"in".to_vec(), 6));

    // It asks for a removal within ten seconds, as containerd gives it.
    stop(&ctx, &pod).await?;
    assert_eq!(end.await??, 137);
    let request = nakai_protocols::agent::RemoveContainerRequest {
        container_id: pod.clone(),
        timeout: 60,
        ..Default::default()
    };
    client.agent().remove_container(client.context(), &request).await?;
    Ok(())
}
