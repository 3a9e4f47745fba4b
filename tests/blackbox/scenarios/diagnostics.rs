//! What a container tells about itself: its termination log and its network counters.

use nakai_ctl::CallError;
use nakai_protocols::agent::GetDiagnosticDataRequest;
use ttrpc::Code;

use crate::harness::expect::refused;
use crate::harness::{Ctx, Fallible, Outcome, Scenario, scenario};

pub(crate) fn scenarios() -> Vec<Scenario> {
    vec![
        scenario!(a_termination_log_is_read),
        scenario!(a_termination_log_of_the_hosts_is_the_guests),
        scenario!(only_the_log_of_the_shared_directory_is_read),
        scenario!(network_counters_are_the_sandboxs_own).vm_only(),
        scenario!(a_network_of_its_own_is_told),
    ]
}

const ANNOTATION: &str = "io.kubernetes.container.terminationMessagePath";

async fn data(ctx: &Ctx, id: &str, log_type: &str) -> Result<String, CallError> {
    let request = GetDiagnosticDataRequest {
        log_type: log_type.to_owned(),
        container_id: id.to_owned(),
        ..Default::default()
    };
    let answer = ctx.client().agent().get_diagnostic_data(ctx.client().context(), &request).await;
    answer.map(|answer| answer.data).map_err(|error| CallError::new("GetDiagnosticData", id, error))
}

async fn a_termination_log_is_read(ctx: Ctx) -> Outcome {
    let container = ctx.container(|spec| spec)?;
    // Where the host shares files, as a shim does.
    let log = if ctx.is_host() {
        let log = format!("/run/kata-containers/{}-log", container.id);
        ctx.guest_sh(&format!(": > ${{RUN}}{}", log.strip_prefix("/run").unwrap_or_default())).await?;
        log
    } else {
        let (host, guest) = ctx.directory(&container, "logs")?;
        std::fs::write(host.join("log"), "")?;
        format!("{guest}/log")
    };
    let container = container.edit(|spec| {
        spec.mount("/dev/termination-log", &log, "bind", &["bind", "rw"])
            .annotation(ANNOTATION, "/dev/termination-log")
            .args(["sh", "-c", "printf 'out of luck' > /dev/termination-log"])
    });
    container.create().await?;
    assert_eq!(data(&ctx, &container.id, "termination_log").await?, "");
    container.start().await?;
    assert_eq!(container.wait().await?, 0);
    assert_eq!(data(&ctx, &container.id, "termination_log").await?, "out of luck");
    refused(data(&ctx, &container.id, "core").await, Code::INVALID_ARGUMENT, &["core", "termination_log"]);
    container.remove().await?;
    if ctx.is_host() {
        ctx.guest_sh(&format!("rm ${{RUN}}{}", log.strip_prefix("/run").unwrap_or_default())).await?;
    }
    Ok(())
}

/// The host shares no files: it has left its own path where it was.
async fn a_termination_log_of_the_hosts_is_the_guests(ctx: Ctx) -> Outcome {
    let container = ctx.container(|spec| {
        let log = "/var/lib/kubelet/pods/of-the-host/containers/app/0";
        spec.mount("/dev/termination-log", log, "bind", &["rbind", "rprivate", "rw"])
            .annotation(ANNOTATION, "/dev/termination-log")
            .args(["sh", "-c", "printf 'out of luck' > /dev/termination-log"])
    })?;
    container.create().await?;
    assert_eq!(data(&ctx, &container.id, "termination_log").await?, "");
    container.start().await?;
    assert_eq!(container.wait().await?, 0);
    assert_eq!(data(&ctx, &container.id, "termination_log").await?, "out of luck");
    container.remove().await?;
    if !ctx.is_host() {
        // Nobody writes there for a test.
        return Ok(());
    }
    // What has failed behind it, where the host has put files, leaves them as they were.
    let fails = ctx.container(|spec| {
        let spec = spec.mount("/dev/termination-log", "/of/the/host", "bind", &["rbind", "rw"]);
        spec.annotation(ANNOTATION, "/dev/termination-log").cgroups_path("/../up")
    })?;
    ctx.guest_sh(&format!(
        "mkdir -p $RUN/kata-containers/{0}; echo > $RUN/kata-containers/{0}/of-the-host",
        fails.id
    ))
    .await?;
    let before = ctx.inventory().await?;
    refused(fails.create().await, Code::INVALID_ARGUMENT, &["cgroupsPath"]);
    ctx.returns_to(&before).await?;
    ctx.guest_sh(&format!("rm -r $RUN/kata-containers/{}", fails.id)).await?;
    Ok(())
}

async fn only_the_log_of_the_shared_directory_is_read(ctx: Ctx) -> Outcome {
    refused(data(&ctx, "nobody", "termination_log").await, Code::NOT_FOUND, &["nobody"]);
    let plain = ctx.idle(|spec| spec).await?;
    refused(data(&ctx, &plain.id, "termination_log").await, Code::NOT_FOUND, &[&plain.id]);
    let sly = ctx
        .idle(|spec| {
            spec.mount("/log", "/proc/self/status", "bind", &["bind"]).annotation(ANNOTATION, "/log")
        })
        .await?;
    refused(data(&ctx, &sly.id, "termination_log").await, Code::INVALID_ARGUMENT, &["/proc/self/status"]);
    Ok(())
}

async fn names(ctx: &Ctx, id: &str) -> Fallible<Vec<String>> {
    let stats = ctx.client().stats_container(id).await?;
    Ok(stats.network_stats.into_iter().map(|interface| interface.name).collect())
}

async fn network_counters_are_the_sandboxs_own(ctx: Ctx) -> Outcome {
    let container = ctx.idle(|spec| spec).await?;
    let seen = ctx.guest_sh("tail -n +3 $PROC/$SERVER/net/dev | cut -d : -f 1").await?;
    let expected: Vec<&str> = seen.split_whitespace().collect();
    assert_eq!(names(&ctx, &container.id).await?, expected);
    Ok(())
}

async fn a_network_of_its_own_is_told(ctx: Ctx) -> Outcome {
    let own = ctx
        .idle(|spec| {
            spec.capabilities("CAP_NET_ADMIN CAP_NET_RAW".split(' ')).edit(|spec| {
                let namespaces = &mut spec.Linux.mut_or_insert_default().Namespaces;
                namespaces.retain(|namespace| namespace.Type != "network");
                namespaces.push(nakai_protocols::oci::LinuxNamespace {
                    Type: "network".into(),
                    ..Default::default()
                });
            })
        })
        .await?;
    own.sh("ping -c 1 127.0.0.1 > /dev/null").await?;
    let stats = ctx.client().stats_container(&own.id).await?;
    let lo = stats.network_stats.iter().find(|interface| interface.name == "lo").ok_or("no loopback")?;
    assert!(lo.rx_packets >= 2 && lo.rx_packets == lo.tx_packets, "{lo}");
    own.signal(libc::SIGKILL).await?;
    own.wait().await?;
    assert_eq!(names(&ctx, &own.id).await?, Vec::<String>::new());
    Ok(())
}
