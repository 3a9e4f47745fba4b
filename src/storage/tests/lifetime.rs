//! Who holds a storage for how long, and what stays behind: nothing.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::time::Duration;

use tokio::sync::Semaphore;

use super::*;

/// Lets every task get as far as it can.
async fn settle() {
    for _ in 0..100 {
        tokio::task::yield_now().await;
    }
}

/// Waits until the background has done its work. The bound is for a test that would fail.
async fn eventually(what: &str, condition: impl Fn() -> bool) {
    let waited = tokio::time::timeout(Duration::from_secs(20), async {
        while !condition() {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    });
    assert!(waited.await.is_ok(), "never came: {what}");
}

#[test]
fn the_last_user_takes_it_down() {
    run(async |guest, storages| {
        let wire = guest.request("virtio-fs", "tag", "a/b");
        let first = attach(&storages, &wire).await.unwrap();
        let again = agent::Storage { mount_point: format!("{}/", wire.mount_point), ..wire.clone() };
        let second = attach(&storages, &again).await.unwrap();
        assert_eq!(guest.mounted().len(), 1);
        first.release().await.unwrap();
        assert_eq!(guest.mounted().len(), 1);
        second.release().await.unwrap();
        guest.assert_clean();
        assert_eq!(storages.mount_points().len(), 0);
    });
}

#[test]
fn a_directory_that_was_there_before_stays() {
    run(async |guest, storages| {
        fs::create_dir_all(guest.path("a/b")).unwrap();
        attach(&storages, &guest.request("virtio-fs", "tag", "a/b")).await.unwrap().release().await.unwrap();
        assert!(guest.path("a/b").is_dir());
    });
}

#[test]
fn a_place_is_not_shared_by_two_storages() {
    run(async |guest, storages| {
        let _first = attach(&storages, &guest.request("blk", "/dev/vda", "v")).await.unwrap();
        let message = refused(&storages, &guest.request("blk", "/dev/vdb", "v")).await;
        assert!(message.contains("/dev/vda") && message.contains("/dev/vdb"), "{message:?}");
        refused(&storages, &guest.request("virtio-fs", "/dev/vda", "v")).await;
    });
}

#[test]
fn an_unknown_driver_is_named_and_leaves_nothing() {
    run(async |guest, storages| {
        let message = refused(&storages, &guest.request("9p", "x", "v")).await;
        assert!(message.contains("\"9p\"") && message.contains("virtio-fs"), "{message:?}");
        assert_eq!(storages.mount_points().len(), 0);
        let _works = attach(&storages, &guest.request("virtio-fs", "x", "v")).await.unwrap();
    });
}

#[test]
fn places_outside_and_planted_links_are_refused() {
    run(async |guest, storages| {
        for place in ["/", "/proc", "/etc/passwd", "/run/kata-containers-x/y"] {
            let wire =
                agent::Storage { mount_point: place.to_owned(), ..guest.request("virtio-fs", "x", "") };
            let message = refused(&storages, &wire).await;
            assert!(message.contains(&guest.dir.path().display().to_string()), "{message:?}");
        }
        symlink("/tmp", guest.path("out")).unwrap();
        refused(&storages, &guest.request("virtio-fs", "x", "out/v")).await;
        refused(&storages, &guest.request("virtio-fs", "x", "out")).await;
        assert_eq!(guest.calls().iter().filter(|call| call.starts_with("mount")).count(), 0);
        assert_eq!(storages.mount_points().len(), 0);
    });
}

#[test]
fn every_failing_step_leaves_nothing_and_can_be_retried() {
    run(async |guest, storages| {
        guest.devices.add_permits(3);
        for step in ["find", "load", "mount"] {
            guest.fail(step, "no such luck");
            let message = refused(&storages, &guest.request("blk", "01", "a/b/c")).await;
            assert!(message.contains("no such luck"), "{message:?}");
            guest.succeed(step);
            guest.assert_clean();
            assert_eq!(storages.mount_points().len(), 0);
        }
        let _works = attach(&storages, &guest.request("blk", "01", "a/b/c")).await.unwrap();
    });
}

#[test]
fn who_comes_second_waits_and_shares_the_outcome() {
    run(async |guest, storages| {
        let wire = guest.request("blk", "01", "v");
        let both = async || {
            tokio::join!(attach(&storages, &wire), attach(&storages, &wire), async {
                settle().await;
                guest.devices.add_permits(1);
            })
        };
        guest.fail("mount", "bad superblock");
        let (first, second, ()) = both().await;
        for outcome in [first, second] {
            assert!(outcome.unwrap_err().to_string().contains("bad superblock"));
        }
        guest.assert_clean();
        guest.succeed("mount");
        let (first, second, ()) = both().await;
        assert_eq!(guest.mounted().len(), 1);
        first.unwrap().release().await.unwrap();
        assert_eq!(guest.mounted().len(), 1);
        second.unwrap().release().await.unwrap();
        guest.assert_clean();
    });
}

#[test]
fn one_that_waits_for_its_device_keeps_no_other_waiting() {
    run(async |guest, storages| {
        let slow = tokio::spawn({
            let (storages, wire) = (storages.clone(), guest.request("blk", "01", "slow"));
            async move { attach(&storages, &wire).await }
        });
        settle().await;
        let _fast = attach(&storages, &guest.request("virtio-fs", "x", "fast")).await.unwrap();
        assert!(!slow.is_finished());
        guest.devices.add_permits(1);
        let _slow = slow.await.unwrap().unwrap();
    });
}

#[test]
fn a_caller_that_goes_away_leaves_nothing() {
    run(async |guest, storages| {
        let caller = tokio::spawn({
            let (storages, wire) = (storages.clone(), guest.request("blk", "01", "v"));
            async move { attach(&storages, &wire).await }
        });
        settle().await;
        caller.abort();
        assert!(caller.await.unwrap_err().is_cancelled());
        // Also if the device never comes.
        eventually("an empty table", || storages.mount_points().is_empty()).await;
        guest.assert_clean();
        // Nor does half an image stay, which may take long to come.
        let caller = tokio::spawn({
            let (storages, wire) =
                (storages.clone(), guest.request("image_guest_pull", "image", "c1/rootfs"));
            async move { attach(&storages, &wire).await }
        });
        eventually("the beginning of an image", || guest.path("c1/rootfs/etc").exists()).await;
        caller.abort();
        assert!(caller.await.unwrap_err().is_cancelled());
        eventually("an empty table", || storages.mount_points().is_empty()).await;
        guest.assert_clean();
        // And a handle that is dropped is taken back too.
        drop(attach(&storages, &guest.request("virtio-fs", "x", "v")).await.unwrap());
        eventually("an empty table", || storages.mount_points().is_empty()).await;
        guest.assert_clean();
    });
}

/// Who waits is told, and what comes in spite of that goes before anybody else has the place.
#[test]
fn what_the_hub_mounts_too_late_goes() {
    run(async |guest, storages| {
        fs::create_dir(guest.path("c1")).unwrap();
        let wire = guest.request("image_guest_pull", "image", "c1/rootfs");
        let hub = Arc::new(Semaphore::new(0));
        *guest.late.lock().unwrap() = Some(Arc::clone(&hub));
        guest.fail("pull", "it takes too long");
        assert!(refused(&storages, &wire).await.contains("it takes too long"));
        assert_eq!(storages.mount_points(), [guest.path("c1/rootfs")]);

        guest.succeed("pull");
        guest.devices.add_permits(1);
        let next = tokio::spawn({
            let (storages, wire) = (storages.clone(), wire.clone());
            async move { attach(&storages, &wire).await }
        });
        settle().await;
        assert!(!next.is_finished());
        hub.add_permits(1);
        let next = next.await.unwrap().unwrap();
        assert!(!guest.path("c1/rootfs/late").exists(), "it is not its own image");
        assert_eq!(guest.mounted(), [Path::new("c1/rootfs")]);
        next.release().await.unwrap();
        assert_eq!(fs::read_dir(guest.path("c1")).unwrap().count(), 0);
        assert_eq!(guest.mounted(), [""; 0].map(PathBuf::from));
    });
}

#[test]
fn the_place_can_be_taken_again_while_it_is_being_left() {
    run(async |guest, storages| {
        let wire = guest.request("virtio-fs", "x", "v");
        let first = attach(&storages, &wire).await.unwrap();
        let (released, second) = tokio::join!(first.release(), attach(&storages, &wire));
        released.unwrap();
        assert_eq!(guest.mounted().len(), 1);
        second.unwrap().release().await.unwrap();
        guest.assert_clean();
    });
}

#[test]
fn what_is_shared_stays_for_the_sandbox() {
    run(async |guest, storages| {
        let shared = agent::Storage { shared: true, ..guest.request("blk", "/dev/vda", "v") };
        for wire in [shared, guest.request("ephemeral", "tmpfs", "e")] {
            attach(&storages, &wire).await.unwrap().undo().await.unwrap();
            guest.assert_clean();
            attach(&storages, &wire).await.unwrap().release().await.unwrap();
            assert_eq!(guest.mounted().len(), 1, "{} did not outlive its user", wire.driver);
            attach(&storages, &wire).await.unwrap().undo().await.unwrap();
            assert_eq!(guest.mounted().len(), 1, "a failed create took away data that another had used");
            storages.release_all(LONG).await.unwrap();
            guest.assert_clean();
        }
    });
}

#[test]
fn everything_goes_in_reverse_order_whoever_holds_it() {
    run(async |guest, storages| {
        let outer = attach(&storages, &guest.request("virtio-fs", "x", "a")).await.unwrap();
        let _inner = attach(&storages, &guest.request("blk", "/dev/vda", "a/b/c")).await.unwrap();
        storages.release_all(LONG).await.unwrap();
        let calls = guest.calls();
        let unmounts: Vec<_> = calls.iter().filter(|call| call.starts_with("unmount")).collect();
        assert_eq!(unmounts, ["unmount a/b/c", "unmount a"]);
        guest.assert_clean();
        // A handle from before has no hold on a later storage at the same place.
        let _new = attach(&storages, &guest.request("virtio-fs", "x", "a")).await.unwrap();
        outer.release().await.unwrap();
        assert_eq!(guest.mounted().len(), 1);
    });
}

#[test]
fn a_busy_mount_is_reported_and_tried_again() {
    run(async |guest, storages| {
        let wire = guest.request("blk", "/dev/vda", "v");
        let handle = attach(&storages, &wire).await.unwrap();
        guest.fail("unmount", "busy");
        let message = handle.release().await.unwrap_err().to_string();
        assert!(message.contains("busy"), "{message:?}");
        let message = storages.release_all(LONG).await.unwrap_err().to_string();
        assert!(message.contains("1 storages") && message.contains("busy"), "{message:?}");
        let again = attach(&storages, &wire).await.unwrap();
        assert_eq!(guest.mounted().len(), 1, "it was mounted on top of itself");
        guest.succeed("unmount");
        again.release().await.unwrap();
        guest.assert_clean();
    });
}

/// Neither one that is being mounted nor one that is being unmounted, on a share that does not answer.
#[test]
fn those_that_hang_keep_no_other_from_being_released() {
    run(async |guest, storages| {
        let _last_to_go = attach(&storages, &guest.request("virtio-fs", "x", "last")).await.unwrap();
        let _unmounting = attach(&storages, &guest.request("virtio-fs", "x", "unmounting")).await.unwrap();
        let hanging = guest.hang(["mounting", "unmounting"]);
        let mounting = tokio::spawn({
            let (storages, wire) = (storages.clone(), guest.request("virtio-fs", "x", "mounting"));
            async move { attach(&storages, &wire).await }
        });
        settle().await;
        let message = storages.release_all(Duration::from_millis(400)).await.unwrap_err().to_string();
        for what in ["/mounting is not released after ", "/unmounting is not released after "] {
            assert!(message.contains(what), "{what:?}: {message:?}");
        }
        eventually("the end of the last", || guest.mounted() == [Path::new("unmounting")]).await;
        drop(hanging);
        mounting.abort();
        eventually("an empty table", || storages.mount_points().is_empty()).await;
        guest.assert_clean();
    });
}

#[test]
fn what_a_container_left_mounted_in_a_volume_goes_with_it_but_no_storage_does() {
    run(async |guest, storages| {
        let outer = attach(&storages, &guest.request("virtio-fs", "x", "v")).await.unwrap();
        let inner = attach(&storages, &guest.request("blk", "/dev/vda", "v/inner")).await.unwrap();
        for left in ["v/left", "v/inner/left"] {
            guest.pretend_mounted(left);
        }
        let message = outer.release().await.unwrap_err().to_string();
        assert!(message.contains("busy"), "{message:?}");
        assert_eq!(guest.mounted(), ["v", "v/inner", "v/inner/left"].map(std::path::PathBuf::from));
        inner.release().await.unwrap();
        assert_eq!(guest.mounted(), [std::path::PathBuf::from("v")]);
        storages.release_all(LONG).await.unwrap();
        guest.assert_clean();
    });
}

#[test]
fn what_others_put_into_a_directory_of_ours_is_reported_not_removed() {
    run(async |guest, storages| {
        let handle = attach(&storages, &guest.request("virtio-fs", "x", "v")).await.unwrap();
        fs::write(guest.path("v/beneath"), "").unwrap();
        let message = handle.release().await.unwrap_err().to_string();
        assert!(message.contains("removing") && message.contains("ENOTEMPTY"), "{message:?}");
        assert!(guest.path("v/beneath").exists());
        assert_eq!(storages.mount_points().len(), 0);
    });
}
