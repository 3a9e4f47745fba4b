//! Storages that need no device of their own: a directory, a bind of it, an overlay over it.

use nakai_ctl::sandbox::{self, shm_storage};
use nakai_protocols::agent::{CreateContainerRequest, Storage, VolumeStatsRequest};
use ttrpc::Code;

use super::recovery::crash_with;
use crate::harness::expect::refused;
use crate::harness::{Container, Ctx, Fallible, Outcome, Scenario, scenario};

pub(crate) fn scenarios() -> Vec<Scenario> {
    vec![
        scenario!(a_directory_is_bound_and_laid_over).own_agent(),
        scenario!(a_creation_that_ends_with_its_server_takes_nothing_of_the_others).ends_its_agent(),
        scenario!(a_host_without_root_has_its_paths_elsewhere).own_agent(),
        scenario!(a_pod_whose_images_the_guest_pulls_has_the_guests_pause_image).own_agent().vm_only(),
    ]
}

/// `local` makes a directory, `bind` shows it elsewhere, and `overlayfs` takes what is written for itself.
async fn a_directory_is_bound_and_laid_over(ctx: Ctx) -> Outcome {
    let mut wanted = sandbox::request("layers", "layers", !ctx.is_host());
    // The share is the same to the guest, whoever serves it.
    for share in wanted.storages.iter_mut().filter(|storage| storage.driver == "virtio-fs") {
        share.driver = "virtio-fs-nydus".into();
    }
    assert_eq!(wanted.storages.iter().any(|storage| storage.driver == "virtio-fs-nydus"), !ctx.is_host());
    ctx.client().create_sandbox(&wanted).await?;
    let base = "/run/kata-containers/sandbox/storage";
    let place = |name: &str| format!("{base}/{name}");
    let storage = |driver: &str, source: String, fstype: &str, name: &str| Storage {
        driver: driver.into(),
        source,
        fstype: fstype.into(),
        mount_point: place(name),
        ..Default::default()
    };
    let local = Storage { options: vec!["mode=0750".into()], ..storage("local", String::new(), "", "local") };
    let bind = Storage { options: vec!["bind".into()], ..storage("bind", place("local"), "bind", "bound") };
    // The upper directory is another filesystem's: a root in memory can be one, a share can't.
    let upper = ["upper", "work"].map(|name| Storage { ..storage("local", String::new(), "", name) });
    let options = ["lowerdir", "upperdir", "workdir"].into_iter().zip(["local", "upper", "work"]);
    let options = options.map(|(option, name)| format!("{option}={}", place(name))).collect();
    let overlay = Storage { options, ..storage("overlayfs", "overlay".into(), "overlay", "merged") };

    let container = ctx.container(|spec| spec.args(["sleep", "1000000"]))?;
    let container = container.edit(|spec| {
        let seen = [("/local", "local"), ("/bound", "bound"), ("/merged", "merged")];
        seen.into_iter().fold(spec, |spec, (to, name)| spec.mount(to, &place(name), "bind", &["bind", "rw"]))
    });
    let mut request = container.request();
    request.storages.extend([local, bind].into_iter().chain(upper).chain([overlay]));
    ctx.client().create_container_with(&request).await?;
    container.start().await?;
    assert_eq!(container.sh("stat -c %a /local").await?, "750");
    assert_eq!(container.sh("echo kept > /local/file; cat /bound/file").await?, "kept");
    let written = "echo upper > /merged/new; cat /merged/new; ls /local/new 2>/dev/null || echo apart";
    assert_eq!(container.sh(written).await?, "upper\napart");
    assert_eq!(container.sh("grep -c ' /merged overlay ' /proc/mounts").await?, "1");
    container.remove().await?;
    for (driver, source, fstype, word) in [
        ("ephemeral", "/etc", "tmpfs", "bind"),
        ("overlayfs", "/", "overlay", "rbind"),
        ("ephemeral", "tmpfs", "tmpfs", "remount"),
    ] {
        let guests_own =
            Storage { options: vec![word.into()], ..storage(driver, source.into(), fstype, "guest") };
        let mut request = container.request();
        request.storages.push(guests_own);
        let made = ctx.client().create_container_with(&request).await;
        refused(made, Code::INVALID_ARGUMENT, &["options", word]);
    }
    an_image_needs_the_hub_that_pulls_it(&ctx).await
}

/// There is none here: the error says where it was looked for, and nothing is left.
async fn an_image_needs_the_hub_that_pulls_it(ctx: &Ctx) -> Outcome {
    let container = ctx.container(|spec| spec)?;
    let before = ctx.inventory().await?;
    let mut request = container.request();
    request.storages.push(Storage {
        driver: "image_guest_pull".into(),
        source: "registry.example/image:1".into(),
        fstype: "overlay".into(),
        mount_point: format!("/run/kata-containers/{}/rootfs", container.id),
        driver_options: vec!["image_guest_pull={\"metadata\":{}}".into()],
        ..Default::default()
    });
    let error = ctx.client().create_container_with(&request).await.err().ok_or("an image without a hub")?;
    for word in
        ["registry.example/image:1", "no confidential data hub at /run/confidential-containers/cdh.sock"]
    {
        assert!(error.message.contains(word), "{word:?} is not in: {error}");
    }
    ctx.returns_to(&before).await
}

/// The host has no image for it. What the guest's bundle names runs as the bundle says, in a root in which there is room
/// for what is mounted.
async fn a_pod_whose_images_the_guest_pulls_has_the_guests_pause_image(ctx: Ctx) -> Outcome {
    ctx.client().create_sandbox(&sandbox::request("pulling", "pulling", true)).await?;
    let bundle = "$PROC/1/root/pause_bundle";
    let config = r#"{"ociVersion": "1.0.0", "process": {"terminal": true, "user": {"uid": 65535, "gid": 65535},
        "args": ["/busybox", "sleep", "1000000"], "env": ["PATH=/"], "cwd": "/"}}"#;
    let root = format!("mkdir -p {bundle}/rootfs; cp $PROC/1/root/bin/busybox {bundle}/rootfs");
    ctx.guest_sh(&format!("{root}; cat > {bundle}/config.json << 'END'\n{config}\nEND")).await?;
    let before = ctx.inventory().await?;
    let container = ctx.container(|spec| spec.args(["/pause"]).readonly_rootfs(true))?;
    let mut request = container.request();
    let root = format!("/run/kata-containers/{}/rootfs", container.id);
    request.OCI.mut_or_insert_default().Root.mut_or_insert_default().Path.clone_from(&root);
    let metadata = r#"{"metadata":{"io.kubernetes.cri.container-type":"sandbox"}}"#;
    request.storages.push(Storage {
        driver: "image_guest_pull".into(),
        source: "pause".into(),
        fstype: "overlay".into(),
        mount_point: root,
        driver_options: vec![format!("image_guest_pull={metadata}")],
        ..Default::default()
    });
    ctx.client().create_container_with(&request).await?;
    container.start().await?;
    // Its arguments, user and terminal.
    let script = "until /busybox grep -qx busybox /proc/1/comm; do /busybox sleep 0.01; done; \
                  /busybox tr '\\0' ' ' < /proc/1/cmdline; /busybox stat -c %u:%g /proc/1; /busybox cut -d ' ' -f 7 /proc/1/stat";
    let seen = String::from_utf8(container.exec(["/busybox", "sh", "-c", script]).await?.stdout)?;
    assert_eq!(seen, "/busybox sleep 1000000 65535:65535\n0\n");
    container.remove().await?;
    ctx.returns_to(&before).await
}

/// A shim whose VMM runs as a user has that user's directory in all its paths, also in the guest.
async fn a_host_without_root_has_its_paths_elsewhere(ctx: Ctx) -> Outcome {
    let moved = |path: &str| path.replace("/run/kata-containers", "/run/user/4242/run/kata-containers");
    let mut wanted = sandbox::request("rootless", "rootless", !ctx.is_host());
    wanted.storages.iter_mut().for_each(|storage| storage.mount_point = moved(&storage.mount_point));
    ctx.client().create_sandbox(&wanted).await?;
    let memory = wanted.storages.last().ok_or("no storage")?.mount_point.clone();

    let container = ctx.container(|spec| {
        spec.args(["sleep", "1000000"]).mount("/memory", &memory, "bind", &["bind", "rw"])
    })?;
    let mut request = container.request();
    let spec = request.OCI.mut_or_insert_default();
    // What this host shares is where it is.
    let prefix = if ctx.is_host() { "/run/kata-containers/sandbox/" } else { "/run/kata-containers/" };
    let root = &mut spec.Root.mut_or_insert_default().Path;
    let paths = spec.Mounts.iter_mut().map(|mount| &mut mount.source).chain([root]);
    paths.filter(|path| path.starts_with(prefix)).for_each(|path| *path = moved(path));
    ctx.client().create_container_with(&request).await?;
    container.start().await?;
    let seen = "echo kept > /memory/file; grep -c ' /memory tmpfs ' /proc/mounts";
    assert_eq!(container.sh(seen).await?, "1");
    let request = VolumeStatsRequest { volume_guest_path: memory, ..Default::default() };
    let stats = ctx.client().agent().get_volume_stats(ctx.client().context(), &request).await?;
    assert!(stats.usage.iter().all(|usage| usage.used > 0), "{stats:?}");
    container.remove().await?;
    let outside = Storage { mount_point: "/run/user/0/run/kata-containers/x".into(), ..shm_storage() };
    let mut request = container.request();
    request.storages.push(outside);
    refused(ctx.client().create_container_with(&request).await, Code::INVALID_ARGUMENT, &["/run/user/0/"]);
    Ok(())
}

/// Volumes that a pod's containers share, of which one was being made.
async fn a_creation_that_ends_with_its_server_takes_nothing_of_the_others(ctx: Ctx) -> Outcome {
    ctx.client().create_sandbox(&sandbox::request("shared", "shared", !ctx.is_host())).await?;
    let place = |driver| format!("/run/kata-containers/sandbox/{driver}/shared");
    let volumes = [("local", "local"), ("ephemeral", "tmpfs")].map(|(driver, fstype)| Storage {
        driver: driver.into(),
        source: fstype.into(),
        fstype: fstype.into(),
        mount_point: place(driver),
        ..Default::default()
    });
    let with_volumes = |ctx: &Ctx| -> Fallible<(Container, CreateContainerRequest)> {
        let container = ctx.container(|spec| {
            let spec = spec.args(["sleep", "1000000"]);
            let seen = ["local", "ephemeral"].into_iter();
            seen.fold(spec, |spec, driver| {
                spec.mount(&format!("/{driver}"), &place(driver), "bind", &["rbind", "rw"])
            })
        })?;
        let mut request = container.request();
        request.storages.extend(volumes.clone());
        Ok((container, request))
    };
    let read = "cat /local/file /ephemeral/file";
    let (first, request) = with_volumes(&ctx)?;
    ctx.client().create_container_with(&request).await?;
    first.start().await?;
    assert_eq!(first.sh(&format!("echo 1 > /local/file; echo 2 > /ephemeral/file; {read}")).await?, "1\n2");
    let ctx = crash_with(&ctx, volumes.clone()).await?;
    let first = first.over(&ctx);
    assert_eq!(first.sh(read).await?, "1\n2", "the volumes of the one that runs on");
    let (another, request) = with_volumes(&ctx)?;
    ctx.client().create_container_with(&request).await?;
    another.start().await?;
    assert_eq!(another.sh(read).await?, "1\n2", "the next one's");
    first.remove().await?;
    assert_eq!(another.sh(read).await?, "1\n2", "the last one's");
    another.remove().await?;
    ctx.client().destroy_sandbox().await?;
    Ok(())
}
