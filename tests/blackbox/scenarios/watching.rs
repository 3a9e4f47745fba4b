//! Volumes of which the container sees what the host changes in them later.

use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::Path;
use std::time::Duration;

use nakai_ctl::sandbox::{self, GUEST_SHARE};
use nakai_protocols::agent::{FSGroup, Storage};
use nakai_protocols::types::FSGroupChangePolicy;

use super::mounts::remount;
use super::recovery::crash;
use crate::harness::{Ctx, Outcome, Scenario, scenario};

pub(crate) fn scenarios() -> Vec<Scenario> {
    vec![
        scenario!(a_watched_volume_follows_the_host).vm_only().own_agent(),
        scenario!(any_number_of_keys_is_followed).vm_only().own_agent(),
        scenario!(a_volume_without_room_for_a_copy_is_bound).vm_only().own_agent(),
    ]
}

/// For the first copy of a large volume, on a slow machine.
const COPY_LIMIT: Duration = Duration::from_secs(300);

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

/// Each version as a whole, and where it has been it still is for somebody who has just read the link.
async fn any_number_of_keys_is_followed(ctx: Ctx) -> Outcome {
    ctx.client().create_sandbox(&sandbox::request("many", "many", true)).await?;
    let container = ctx.container(|spec| spec.args(["sleep", "1000000"]))?;
    let (map, guest_map) = ctx.directory(&container, "map")?;
    // Of each there is a link and a file.
    let number = std::env::var("NAKAI_KEYS").ok().and_then(|text| text.parse().ok()).unwrap_or(2_100_usize);
    let last = number - 1;
    let keys: Vec<String> = (0..number).map(|number| format!("key-{number}")).collect();
    let keys: Vec<&str> = keys.iter().map(String::as_str).collect();
    publish(&map, 1, &keys)?;
    let from = format!("{GUEST_SHARE}watchable/map");
    let container = container.edit(|spec| spec.mount("/map", &from, "bind", &["rbind", "rprivate", "ro"]));
    let mut request = container.request();
    request.storages.push(watched(&guest_map, "map"));
    ctx.client().within(COPY_LIMIT).create_container_with(&request).await?;
    container.start().await?;
    let kinds = format!(
        "ls /map | wc -l; cat /map/key-0 /map/key-{last}; grep ' /map ' /proc/mounts | cut -d' ' -f2-3"
    );
    assert_eq!(container.sh(&kinds).await?, format!("{number}\n11/map tmpfs"));
    publish(&map, 2, &keys)?;
    // No key is missing at any moment, and none is new while another is old.
    let look = format!(
        "until [ \"$seen\" = 22 ]; do seen=$(cd /map; cat key-0 key-{last}) || exit 1; \
         case $seen in 11 | 12 | 22) ;; *) echo $seen; exit 1 ;; esac; sleep 0.1; done; ls /map | wc -l"
    );
    assert_eq!(container.sh(&look).await?, number.to_string());
    container.sh_until("ls -d /map/..v*", "/map/..v2").await?;
    container.remove().await?;
    Ok(())
}

/// Then it is the share itself that the container sees. Those with room for a copy have one, in the group that is wanted.
async fn a_volume_without_room_for_a_copy_is_bound(ctx: Ctx) -> Outcome {
    ctx.client().create_sandbox(&sandbox::request("narrow", "narrow", true)).await?;
    let container = ctx.container(|spec| spec.args(["sleep", "1000000"]))?;
    let (small, guest_small) = ctx.directory(&container, "small")?;
    fs::write(small.join("file"), "1")?;
    fs::set_permissions(small.join("file"), PermissionsExt::from_mode(0o600))?;
    let (large, guest_large) = ctx.directory(&container, "large")?;
    fs::write(large.join("file"), "1")?;
    fs::write(large.join("block"), vec![1; 1 << 20])?;

    let group = FSGroup {
        group_id: 4321,
        group_change_policy: FSGroupChangePolicy::Always.into(),
        ..Default::default()
    };
    let first = container.edit(|spec| {
        let from = format!("{GUEST_SHARE}watchable/small");
        spec.mount("/small", &from, "bind", &["rbind", "rprivate", "ro"])
    });
    let mut request = first.request();
    request.storages.push(Storage { fs_group: Some(group).into(), ..watched(&guest_small, "small") });
    ctx.client().create_container_with(&request).await?;
    first.start().await?;
    let state = "cat /small/file; stat -c ' %g %a' /small/file";
    assert_eq!(first.sh(state).await?, "1 4321 660");
    fs::write(small.join("file"), "another")?;
    first.sh_until(state, "another 4321 660").await?;

    let watchable = Storage {
        driver: "ephemeral".into(),
        fstype: "tmpfs".into(),
        mount_point: format!("{GUEST_SHARE}watchable"),
        options: vec!["remount".into(), "size=64k".into()],
        ..Default::default()
    };
    remount(&ctx, watchable).await?;
    let second = ctx.container(|spec| {
        let from = format!("{GUEST_SHARE}watchable/large");
        spec.args(["sleep", "1000000"]).mount("/large", &from, "bind", &["rbind", "rprivate", "ro"])
    })?;
    let mut request = second.request();
    request.storages.push(watched(&guest_large, "large"));
    ctx.client().create_container_with(&request).await?;
    second.start().await?;
    assert_eq!(second.sh("cat /large/file; stat -c ' %s' /large/block").await?, "1 1048576");
    fs::write(large.join("file"), "another")?;
    second.sh_until("cat /large/file", "another").await?;
    second.remove().await?;
    first.remove().await?;
    Ok(())
}
