//! What a host changes about mounts that are there.

use nakai_ctl::{CallError, sandbox};
use nakai_protocols::agent::{RemoveStaleVirtiofsShareMountsRequest, Storage, UpdateEphemeralMountsRequest};
use ttrpc::Code;

use crate::harness::expect::refused;
use crate::harness::{Ctx, Outcome, Scenario, scenario};

pub(crate) fn scenarios() -> Vec<Scenario> {
    vec![
        scenario!(an_ephemeral_mount_gets_another_size).own_agent(),
        scenario!(only_ephemeral_mounts_that_are_there_are_changed),
        scenario!(a_look_at_the_shares_always_succeeds),
    ]
}

fn ephemeral(mount_point: &str, options: &[&str]) -> Storage {
    Storage {
        driver: "ephemeral".into(),
        source: "tmpfs".into(),
        fstype: "tmpfs".into(),
        mount_point: mount_point.into(),
        options: options.iter().map(|option| (*option).to_owned()).collect(),
        ..Default::default()
    }
}

async fn remount(ctx: &Ctx, storage: Storage) -> Result<(), CallError> {
    let request = UpdateEphemeralMountsRequest { storages: vec![storage], ..Default::default() };
    let answer = ctx.client().agent().update_ephemeral_mounts(ctx.client().context(), &request).await;
    answer.map(drop).map_err(|error| CallError::new("UpdateEphemeralMounts", "", error))
}

/// Such a mount stays until the sandbox goes.
async fn an_ephemeral_mount_gets_another_size(ctx: Ctx) -> Outcome {
    ctx.client().create_sandbox(&sandbox::request("resized", "resized", !ctx.is_host())).await?;
    let container = ctx.container(|spec| spec.args(["sleep", "1000000"]))?;
    let place = format!("/run/kata-containers/sandbox/ephemeral/{}", container.id);
    let container = container.edit(|spec| spec.mount("/cache", &place, "bind", &["bind", "rw"]));
    let mut request = container.request();
    request.storages = vec![ephemeral(&place, &["size=1m"])];
    ctx.client().create_container_with(&request).await?;
    container.start().await?;
    let size = "df -k /cache | tail -n 1 | awk '{ print $2 }'";
    assert_eq!(container.sh(size).await?, "1024");
    container.sh("echo kept > /cache/file").await?;
    remount(&ctx, ephemeral(&place, &["remount", "size=2m"])).await?;
    assert_eq!(container.sh(size).await?, "2048");
    assert_eq!(container.sh("cat /cache/file").await?, "kept");
    remount(&ctx, ephemeral(&place, &[])).await?;
    container.remove().await?;
    Ok(())
}

async fn only_ephemeral_mounts_that_are_there_are_changed(ctx: Ctx) -> Outcome {
    let place = "/run/kata-containers/sandbox/nowhere";
    let storage = ephemeral(place, &["remount", "size=3m"]);
    refused(remount(&ctx, storage.clone()).await, Code::NOT_FOUND, &[place]);
    let local = Storage { driver: "local".into(), ..storage.clone() };
    refused(remount(&ctx, local).await, Code::INVALID_ARGUMENT, &["local"]);
    let outside = Storage { mount_point: "/tmp".into(), ..storage };
    refused(remount(&ctx, outside).await, Code::INVALID_ARGUMENT, &["/tmp"]);
    Ok(())
}

async fn a_look_at_the_shares_always_succeeds(ctx: Ctx) -> Outcome {
    let (client, request) = (ctx.client(), RemoveStaleVirtiofsShareMountsRequest::new());
    for _ in 0..3 {
        client.agent().remove_stale_virtiofs_share_mounts(client.context(), &request).await?;
    }
    Ok(())
}
