//! Volumes of which the container sees what the host changes in them later.

use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::Path;

use nakai_ctl::sandbox::{self, GUEST_SHARE};
use nakai_protocols::agent::Storage;

use super::recovery::crash;
use crate::harness::{Ctx, Outcome, Scenario, scenario};

pub(crate) fn scenarios() -> Vec<Scenario> {
    vec![scenario!(a_watched_volume_follows_the_host).vm_only().own_agent()]
}

fn watched(source: &str, name: &str) -> Storage {
    Storage {
        driver: "watchable-bind".into(),
        source: source.into(),
        fstype: "bind".into(),
        mount_point: format!("{GUEST_SHARE}watchable/{name}"),
        ..Default::default()
    }
}

/// What Kubernetes does: a directory for each version, and one link that changes.
fn publish(volume: &Path, version: u32, keys: &[&str]) -> Outcome {
    let directory = volume.join(format!("..v{version}"));
    fs::create_dir(&directory)?;
    for key in keys {
        fs::write(directory.join(key), version.to_string())?;
    }
    let old = fs::read_link(volume.join("..data"));
    symlink(format!("..v{version}"), volume.join("..data_tmp"))?;
    fs::rename(volume.join("..data_tmp"), volume.join("..data"))?;
    for key in keys {
        let link = volume.join(key);
        if !link.is_symlink() {
            symlink(format!("..data/{key}"), link)?;
        }
    }
    if let Ok(old) = old {
        fs::remove_dir_all(volume.join(old))?;
    }
    Ok(())
}

/// A version is seen as a whole; plain directories and files are followed as well.
async fn a_watched_volume_follows_the_host(ctx: Ctx) -> Outcome {
    ctx.client().create_sandbox(&sandbox::request("watching", "watching", true)).await?;
    let container = ctx.container(|spec| spec.args(["sleep", "1000000"]))?;
    let (map, guest_map) = ctx.directory(&container, "map")?;
    let (plain, guest_plain) = ctx.directory(&container, "plain")?;
    publish(&map, 1, &["a", "b"])?;
    fs::write(plain.join("file"), "1")?;
    fs::write(plain.join("script"), "#!/bin/sh\necho runs")?;
    fs::set_permissions(plain.join("script"), PermissionsExt::from_mode(0o755))?;
    let storages = [
        watched(&guest_map, "map"),
        watched(&guest_plain, "plain"),
        watched(&format!("{guest_plain}/file"), "single"),
    ];
    let container = container.edit(|spec| {
        let seen = [("/map", "map"), ("/plain", "plain"), ("/single", "single")];
        seen.into_iter().fold(spec, |spec, (to, name)| {
            spec.mount(to, &format!("{GUEST_SHARE}watchable/{name}"), "bind", &["rbind", "rprivate", "ro"])
        })
    });
    let mut request = container.request();
    request.storages.extend(storages);
    ctx.client().create_container_with(&request).await?;
    container.start().await?;
    assert_eq!(container.sh("cat /map/a /map/b /plain/file /single; /plain/script").await?, "1111runs");

    // Each version is looked at until the next is there, and never a mixture of two.
    for version in 2..5 {
        publish(&map, version, &["a", "b", "c"])?;
        let look = format!(
            "until [ \"$(cat /map/c 2>/dev/null)\" = {version} ]; do \
             (cd /map/..data/ 2>/dev/null && a=$(cat a 2>/dev/null) && b=$(cat b 2>/dev/null) && [ $a != $b ] && echo mixed); \
             done; cat /map/a /map/b"
        );
        assert_eq!(container.sh(&look).await?, format!("{version}{version}"));
    }
    container.sh_until("echo $(ls -A /map)", "..data ..v4 a b c").await?;

    // The next server goes on with it.
    let ctx = crash(&ctx).await?;
    let container = container.over(&ctx);
    publish(&map, 5, &["a", "b"])?;
    assert_eq!(container.sh("until [ \"$(cat /map/a)\" = 5 ]; do sleep 0.1; done; cat /map/b").await?, "5");

    fs::write(plain.join("file"), "another")?;
    fs::create_dir_all(plain.join("new/deep"))?;
    fs::write(plain.join("new/deep/file"), "deep")?;
    fs::set_permissions(plain.join("new"), PermissionsExt::from_mode(0o711))?;
    symlink("/etc/passwd", plain.join("link"))?;
    fs::remove_file(plain.join("script"))?;
    // A plain directory does not change as a whole: the guest may see some of it before the rest.
    let look = "cat /plain/file /single /plain/new/deep/file; stat -c %a /plain/new; readlink /plain/link; ls /plain";
    container
        .sh_until(&format!("({look}) 2>&1"), "anotheranotherdeep711\n/etc/passwd\nfile\nlink\nnew")
        .await?;
    container.remove().await?;
    let all = format!("{GUEST_SHARE}watchable");
    let left = ctx.output("ls -A /all", |spec| spec.mount("/all", &all, "bind", &["bind", "ro"])).await?;
    assert_eq!(left, "", "copies are left");
    Ok(())
}
