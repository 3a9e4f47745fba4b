//! Each driver: what it mounts, what it refuses, what it leaves.

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt};

use nix::unistd::getgid;

use super::*;

pub(super) fn options(wire: &mut agent::Storage, options: &[&str]) {
    wire.options = options.iter().map(|&option| option.to_owned()).collect();
}

fn has(calls: &[String], call: &str) -> bool {
    calls.iter().any(|c| c == call)
}

#[test]
fn a_share_is_mounted_by_its_tag() {
    run(async |guest, storages| {
        let mut wire = guest.request("virtio-fs", "kataShared", "shared/containers");
        options(&mut wire, &["nodev", "dax"]);
        let handle = attach(&storages, &wire).await.unwrap();
        assert_eq!(guest.calls(), ["load virtiofs", "mount kataShared shared/containers virtiofs nodev,dax"]);
        handle.release().await.unwrap();
        guest.assert_clean();
    });
}

#[test]
fn a_share_that_the_image_has_mounted_is_left_alone() {
    run(async |guest, storages| {
        fs::create_dir_all(guest.path("shared")).unwrap();
        guest.pretend_mounted("shared");
        let handle = attach(&storages, &guest.request("virtio-fs", "kataShared", "shared")).await.unwrap();
        handle.release().await.unwrap();
        assert_eq!(guest.calls(), [""; 0]);
        assert_eq!(guest.mounted().len(), 1);
    });
}

#[test]
fn memory_gets_all_the_options_it_was_asked_for() {
    run(async |guest, storages| {
        let mut wire = guest.request("ephemeral", "shm", "sandbox/shm");
        let gid = getgid();
        options(&mut wire, &["noexec", "mode=1777", "size=1m", &format!("fsgid={gid}")]);
        let _handle = attach(&storages, &wire).await.unwrap();
        assert!(has(&guest.calls(), "mount shm sandbox/shm tmpfs noexec,mode=1777,size=1m"));
        let root = fs::metadata(guest.path("sandbox/shm")).unwrap();
        assert_eq!((root.gid(), root.mode() & 0o2000), (gid.as_raw(), 0o2000));
    });
}

#[test]
fn memory_can_be_resized_only_while_it_is_there() {
    run(async |guest, storages| {
        let mut wire = guest.request("ephemeral", "tmpfs", "sandbox/ephemeral/v");
        let mut resize = wire.clone();
        options(&mut resize, &["remount", "size=2m", "fsgid=5"]);
        let resize = StorageRequest::try_from(&resize).unwrap();
        let error = storages.remount_ephemeral(resize.clone()).await.unwrap_err();
        assert!(matches!(error, StorageError::NotAttached { .. }), "{error}");
        options(&mut wire, &["noexec", "size=1m"]);
        let _handle = attach(&storages, &wire).await.unwrap();
        storages.remount_ephemeral(resize).await.unwrap();
        assert!(has(&guest.calls(), "mount tmpfs sandbox/ephemeral/v tmpfs remount,noexec,size=2m"));
    });
}

#[test]
fn a_local_directory_has_mode_and_group_and_goes_with_the_sandbox() {
    run(async |guest, storages| {
        let mut wire = guest.request("local", "local", "shared/local/v");
        options(&mut wire, &["mode=0777", &format!("fsgid={}", getgid())]);
        let handle = attach(&storages, &wire).await.unwrap();
        let mode = fs::metadata(guest.path("shared/local/v")).unwrap().permissions().mode();
        assert_eq!(mode & 0o7777, 0o2777);
        fs::write(guest.path("shared/local/v/data"), "x").unwrap();
        handle.release().await.unwrap();
        assert!(guest.path("shared/local/v/data").exists(), "its data did not survive its container");
        storages.release_all(LONG).await.unwrap();
        guest.assert_clean();
    });
}

#[test]
fn a_local_directory_that_was_there_stays() {
    run(async |guest, storages| {
        fs::create_dir_all(guest.path("v/inner")).unwrap();
        let _handle = attach(&storages, &guest.request("local", "", "v")).await.unwrap();
        storages.release_all(LONG).await.unwrap();
        assert!(guest.path("v/inner").exists());
    });
}

#[test]
fn a_device_is_waited_for_and_mounted() {
    run(async |guest, storages| {
        guest.devices.add_permits(2);
        let mut wire = guest.request("blk", "02/03", "sandbox/storage/v");
        options(&mut wire, &["ro"]);
        let _first = attach(&storages, &wire).await.unwrap();
        let _second = attach(&storages, &guest.request("scsi", "0:1", "s")).await.unwrap();
        let _third = attach(&storages, &guest.request("blk", "/dev/vda", "t")).await.unwrap();
        assert_eq!(
            guest.calls(),
            [
                "find blk 02/03",
                "load ext4",
                "mount /dev/vd-02-03 sandbox/storage/v ext4 ro",
                "find scsi 0:1",
                "load ext4",
                "mount /dev/vd-0-1 s ext4 ",
                "load ext4",
                "mount /dev/vda t ext4 ",
            ]
        );
    });
}

#[test]
fn only_block_devices_are_block_devices() {
    run(async |guest, storages| {
        let cases = [
            ("/dev/null", "/dev/null is a character device, not a block device"),
            ("/dev/shm", "/dev/shm is a directory, not a block device"),
            ("/dev/nowhere", "looking at /dev/nowhere: ENOENT"),
            ("/dev/../etc/passwd", "is not a path in /dev"),
        ];
        for (source, expected) in cases {
            let message = refused(&storages, &guest.request("blk", source, "v")).await;
            assert!(message.contains(expected), "{message:?}");
        }
        guest.assert_clean();
    });
}

#[test]
fn what_a_block_driver_cannot_do_is_refused_by_name() {
    run(async |guest, storages| {
        let cases: [(&str, &[&str], &str); 5] = [
            ("ext4", &["encryption_key=ephemeral"], "create_filesystem"),
            ("ext4", &["encryption_key=mine", "create_filesystem"], "encryption_key"),
            ("xfs", &["create_filesystem"], "xfs"),
            ("xfs", &["create_filesystem", "encryption_key=ephemeral"], "xfs"),
            (
                "ext4",
                &[
                    "create_filesystem",
                    "X-kata.dmverity-enabled=true",
                    "X-kata.dmverity.roothash=ab",
                    "X-kata.dmverity.hashoffset=4096",
                ],
                "hash",
            ),
        ];
        for (fstype, driver_options, named) in cases {
            let mut wire = guest.request("blk", "/dev/vda", "v");
            wire.fstype = fstype.to_owned();
            wire.driver_options = driver_options.iter().map(|option| (*option).to_owned()).collect();
            let message = refused(&storages, &wire).await;
            assert!(message.contains(named), "{message:?}");
        }
        assert_eq!(guest.calls(), [""; 0]);
    });
}

#[test]
fn a_disk_gets_its_file_system_before_it_is_mounted() {
    run(async |guest, storages| {
        let mut wire = guest.request("blk", "/dev/vda", "v");
        wire.driver_options = vec!["create_filesystem".to_owned()];
        attach(&storages, &wire).await.unwrap().release().await.unwrap();
        assert_eq!(guest.calls(), ["format /dev/vda", "load ext4", "mount /dev/vda v ext4 ", "unmount v"]);
        guest.fail("format", "it is not blank");
        let message = refused(&storages, &wire).await;
        assert!(message.contains("it is not blank") && message.contains("/v"), "{message:?}");
        guest.assert_clean();
    });
}

/// Whatever goes wrong: nothing is mounted in the clear, and no directory is there that could be taken for the volume.
#[test]
fn an_encrypted_volume_is_the_hubs_or_none() {
    run(async |guest, storages| {
        let mut wire = guest.request("blk", "/dev/vda", "deep/v");
        wire.driver_options = ["create_filesystem", "encryption_key=ephemeral"].map(str::to_owned).to_vec();
        options(&mut wire, &["nodev"]);
        guest.fail("hub", "no luks");
        assert!(refused(&storages, &wire).await.contains("no luks"));
        guest.assert_clean();
        guest.succeed("hub");
        guest.fail("nothing", "is mounted");
        assert!(refused(&storages, &wire).await.contains("has mounted nothing"));
        guest.assert_clean();
        guest.succeed("nothing");
        guest.fail("mount", "no such option");
        assert!(refused(&storages, &wire).await.contains("no such option"));
        guest.assert_clean();
        guest.succeed("mount");
        let before = guest.calls().len();
        attach(&storages, &wire).await.unwrap().release().await.unwrap();
        let calls = [
            "encrypt /dev/vda at deep/v",
            "mounted",
            "mount /dev/vda deep/v ext4 remount,nodev",
            "unmount deep/v",
        ];
        assert_eq!(guest.calls()[before..], calls);
        guest.assert_clean();
    });
}

#[test]
fn huge_pages_come_with_the_volume_and_go_with_it() {
    run(async |guest, storages| {
        let wire = agent::Storage {
            fstype: "hugetlbfs".to_owned(),
            options: vec!["pagesize=2097152,size=5M".to_owned(), "mode=1777".to_owned()],
            ..guest.request("ephemeral", "nodev", "h")
        };
        guest.fail("mount", "no such luck");
        refused(&storages, &wire).await;
        guest.succeed("mount");
        let all = [
            "reserve 3 of 2048",
            "load hugetlbfs",
            "mount nodev h hugetlbfs pagesize=2097152,size=5M,mode=1777",
        ];
        assert_eq!(guest.calls(), [all.as_slice(), &["give back 3 of 2048"]].concat());
        attach(&storages, &wire).await.unwrap().undo().await.unwrap();
        assert_eq!(guest.calls()[4..], [all.as_slice(), &["unmount h", "give back 3 of 2048"]].concat());
        for bad in ["size=5M", "pagesize=2M,size=50%", "pagesize=512"] {
            refused(&storages, &agent::Storage { options: vec![bad.to_owned()], ..wire.clone() }).await;
        }
        let _there = attach(&storages, &wire).await.unwrap();
        let mut resize = wire.clone();
        options(&mut resize, &["remount", "size=8M"]);
        for fstype in ["hugetlbfs", "tmpfs"] {
            resize.fstype = fstype.to_owned();
            let error = storages.remount_ephemeral(StorageRequest::try_from(&resize).unwrap()).await;
            let error = error.unwrap_err().to_string();
            assert!(error.contains("size=8M: a volume of huge pages keeps its size"), "{error}");
        }
        // What it has already it may be asked for.
        options(&mut resize, &["remount", "size=5120k"]);
        let calls = guest.calls().len();
        storages.remount_ephemeral(StorageRequest::try_from(&resize).unwrap()).await.unwrap();
        assert_eq!(guest.calls().len(), calls);
    });
}

#[test]
fn an_image_is_pulled_into_the_bundle() {
    run(async |guest, storages| {
        fs::create_dir(guest.path("c1")).unwrap();
        let mut wire = guest.request("image_guest_pull", "registry/image:1", "c1/rootfs");
        wire.driver_options = vec!["image_guest_pull={\"metadata\":{}}".to_owned()];
        guest.fail("pull", "no hub");
        assert!(refused(&storages, &wire).await.contains("registry/image:1 for "));
        assert_eq!(fs::read_dir(guest.path("c1")).unwrap().count(), 0, "half an image is left");
        guest.succeed("pull");
        guest.devices.add_permits(1);
        attach(&storages, &wire).await.unwrap().release().await.unwrap();
        assert_eq!(guest.calls()[1..], ["pull registry/image:1 c1", "unmount c1/rootfs"]);
        assert_eq!(fs::read_dir(guest.path("c1")).unwrap().count(), 0);
        let pause = r#"image_guest_pull={"metadata":{"io.kubernetes.cri.container-type":"sandbox"}}"#;
        wire.driver_options = vec![pause.to_owned()];
        assert!(refused(&storages, &wire).await.contains("/pause_bundle"));
        wire.driver_options = vec!["image_guest_pull={".to_owned()];
        refused(&storages, &wire).await;
    });
}

/// Whatever the reason is: what may have been there before is not removed with what has not come.
#[test]
fn where_it_cannot_be_looked_no_image_is_pulled() {
    run(async |guest, storages| {
        fs::create_dir_all(guest.path("c1/before")).unwrap();
        std::os::unix::fs::symlink("before", guest.path("c1/rootfs")).unwrap();
        guest.devices.add_permits(1);
        let wire = guest.request("image_guest_pull", "registry/image:1", "c1/rootfs");
        let message = refused(&storages, &wire).await;
        assert!(message.contains("looking at") && message.contains("ELOOP"), "{message:?}");
        assert_eq!(guest.calls(), [""; 0], "the hub is not asked");
        assert!(guest.path("c1/rootfs").is_dir());
    });
}

#[test]
fn what_the_go_shim_tells_itself_is_no_option_for_the_kernel() {
    run(async |guest, storages| {
        let mut wire = guest.request("blk", "/dev/vda", "v");
        options(&mut wire, &["rw", "io.katacontainers.fs-opt.block_device=file", "noatime"]);
        attach(&storages, &wire).await.unwrap().release().await.unwrap();
        assert_eq!(guest.calls()[1], "mount /dev/vda v ext4 rw,noatime");
    });
}

#[test]
fn a_checked_disk_goes_with_its_mount() {
    run(async |guest, storages| {
        let mut wire = guest.request("blk", "/dev/vda", "v");
        let options = ["-enabled=true", ".roothash=ab", ".hashoffset=4096"];
        wire.driver_options = options.map(|option| format!("X-kata.dmverity{option}")).to_vec();
        attach(&storages, &wire).await.unwrap().release().await.unwrap();
        let calls = [
            "verify /dev/vda as checked",
            "load ext4",
            "mount /dev/dm-7 v ext4 ",
            "unmount v",
            "remove checked",
        ];
        assert_eq!(guest.calls(), calls);
    });
}

/// A copy would be in the guest's memory, and take the containers' from them.
#[test]
fn what_is_too_large_to_be_copied_is_bound() {
    run(async |guest, storages| {
        let share = guest.path("share");
        fs::create_dir_all(share.join("large")).unwrap();
        for name in ["single", "large/sparse"] {
            fs::File::create(share.join(name)).unwrap().set_len(1 << 40).unwrap();
        }
        for name in ["large", "single"] {
            let wire = guest.request("watchable-bind", share.join(name).to_str().unwrap(), "c/watchable/v");
            let handle = attach(&storages, &wire).await.unwrap();
            let bound = format!("mount share/{name} c/watchable/v bind bind");
            assert_eq!(guest.calls().last(), Some(&bound));
            handle.release().await.unwrap();
            assert!(!guest.path("c/watchable/v").exists());
        }
    });
}

#[test]
fn what_the_host_changes_comes_into_the_copy() {
    run(async |guest, storages| {
        fs::create_dir(guest.path("share")).unwrap();
        fs::write(guest.path("share/key"), "one").unwrap();
        let wire = guest.request("watchable-bind", guest.path("share").to_str().unwrap(), "c/watchable/v");
        let handle = attach(&storages, &wire).await.unwrap();
        let copy = guest.path("c/watchable/v/key");
        assert_eq!(fs::read_to_string(&copy).unwrap(), "one");
        fs::write(guest.path("share/key"), "another").unwrap();
        let followed = async {
            while fs::read_to_string(&copy).unwrap() != "another" {
                tokio::time::sleep(std::time::Duration::from_millis(5)).await;
            }
        };
        assert!(tokio::time::timeout(std::time::Duration::from_secs(60), followed).await.is_ok());
        handle.release().await.unwrap();
        assert_eq!(fs::read_dir(guest.path("c/watchable")).unwrap().count(), 0);
        fs::remove_dir_all(guest.path("share")).unwrap();
        storages.release_all(LONG).await.unwrap();
        guest.assert_clean();
        let message = refused(&storages, &guest.request("watchable-bind", "/etc", "c/watchable/v")).await;
        assert!(message.contains("/etc"), "{message:?}");
        let message = refused(&storages, &guest.request("watchable-bind", "/etc", "c/other/v")).await;
        assert!(message.contains("watchable"), "{message:?}");
    });
}

#[test]
fn layers_are_stacked_in_directories_made_for_them() {
    run(async |guest, storages| {
        let mut wire = guest.request("overlayfs", "overlay", "shared/c1/rootfs");
        let upper = guest.path("shared/c1/up");
        let lower = ["a", "b"].map(|name| guest.path(name).display().to_string()).join(":");
        options(&mut wire, &[&format!("lowerdir={lower}"), &format!("upperdir={}", upper.display())]);
        wire.driver_options =
            vec![format!("io.katacontainers.volume.overlayfs.create_directory={}", upper.display())];
        let handle = attach(&storages, &wire).await.unwrap();
        assert!(has(
            &guest.calls(),
            "mount overlay shared/c1/rootfs overlay lowerdir=a:b,upperdir=shared/c1/up"
        ));
        fs::write(upper.join("written"), "").unwrap();
        handle.release().await.unwrap();
        guest.assert_clean();
    });
}

#[test]
fn a_container_can_have_an_upper_layer_of_its_own() {
    run(async |guest, storages| {
        let mut wire = guest.request("overlayfs", "overlay", "c1/rootfs");
        let lower = format!("lowerdir={}", guest.path("a").display());
        options(&mut wire, &["io.katacontainers.fs-opt.overlay-rw", &lower]);
        let handle = attach(&storages, &wire).await.unwrap();
        assert!(has(
            &guest.calls(),
            "mount overlay c1/rootfs overlay lowerdir=a,upperdir=c1/upper,workdir=c1/work"
        ));
        assert!(guest.path("c1/upper").is_dir());
        handle.release().await.unwrap();
        guest.assert_clean();
        let request = StorageRequest::try_from(&wire).unwrap();
        let error = storages.attach(request, None).await.unwrap_err();
        assert!(error.to_string().contains("container's storage only"), "{error}");
    });
}

#[test]
fn layers_elsewhere_are_refused() {
    run(async |guest, storages| {
        let good = guest.path("a").display().to_string();
        let elsewhere = ["upperdir=/etc", "workdir=/", "lowerdir=/", "lowerdir+=/etc"].map(str::to_owned);
        let bad = ["relative", "/etc", "/a/../b"].map(|bad| format!("lowerdir={good}:{bad}"));
        for option in elsewhere.iter().chain(&bad) {
            let mut wire = guest.request("overlayfs", "overlay", "o");
            options(&mut wire, &[option]);
            refused(&storages, &wire).await;
        }
        // As a container may plant one in a share.
        std::os::unix::fs::symlink("/etc", guest.path("link")).unwrap();
        for key in ["lowerdir", "upperdir"] {
            let mut wire = guest.request("overlayfs", "overlay", "o");
            options(&mut wire, &[&format!("{key}={}/x", guest.path("link").display())]);
            let message = refused(&storages, &wire).await;
            assert!(message.contains("a link is on the way"), "{message:?}");
        }
        fs::remove_file(guest.path("link")).unwrap();
        let mut wire = guest.request("overlayfs", "overlay", "o");
        wire.driver_options = vec!["io.katacontainers.volume.overlayfs.create_directory=/etc/x".to_owned()];
        refused(&storages, &wire).await;
        assert_eq!(guest.calls(), [""; 0]);
        guest.assert_clean();
    });
}

#[test]
fn a_bind_shows_a_directory_or_a_file_of_the_sandbox() {
    run(async |guest, storages| {
        fs::create_dir(guest.path("dir")).unwrap();
        fs::write(guest.path("file"), "").unwrap();
        let from = |name: &str| guest.path(name).to_str().unwrap().to_owned();
        let dir = attach(&storages, &guest.request("bind", &from("dir"), "to/dir")).await.unwrap();
        let mut wire = guest.request("bind", &from("file"), "to/file");
        options(&mut wire, &["rbind", "ro"]);
        let file = attach(&storages, &wire).await.unwrap();
        assert_eq!(guest.calls(), ["mount dir to/dir bind bind", "mount file to/file bind rbind,ro"]);
        assert!(guest.path("to/file").is_file());
        dir.release().await.unwrap();
        file.release().await.unwrap();
        assert!(!guest.path("to").exists());
        refused(&storages, &guest.request("bind", "/etc", "to/etc")).await;
    });
}

#[test]
fn a_volume_is_given_to_its_group_once_mounted() {
    run(async |guest, storages| {
        for (driver, source) in [("blk", "/dev/vda"), ("ephemeral", "tmpfs"), ("local", "")] {
            let mut wire = guest.request(driver, source, driver);
            let group = agent::FSGroup { group_id: getgid().as_raw(), ..Default::default() };
            wire.fs_group = protobuf::MessageField::some(group);
            let _handle = attach(&storages, &wire).await.unwrap();
            assert_eq!(fs::metadata(guest.path(driver)).unwrap().mode() & 0o7777, 0o2775, "{driver}");
        }
    });
}
