//! What a storage is not turned into by its words, and what goes with it.

use std::fs;

use super::drivers::options;
use super::*;

/// With these words the kernel heeds neither the driver nor its source: any path of the guest would be shown.
#[test]
fn no_driver_can_be_turned_into_a_bind_mount_of_the_guest() {
    run(async |guest, storages| {
        for driver in ["ephemeral", "overlayfs", "virtio-fs", "blk", "scsi", "mmioblk", "nvdimm"] {
            for word in ["bind", "rbind", "remount"] {
                let mut wire = guest.request(driver, "/dev/vda", "v");
                options(&mut wire, &["ro", word]);
                let message = refused(&storages, &wire).await;
                assert!(message.contains("options") && message.contains(word), "{driver}: {message:?}");
            }
        }
        fs::create_dir(guest.path("source")).unwrap();
        let mut wire = guest.request("bind", guest.path("source").to_str().unwrap(), "v");
        options(&mut wire, &["remount"]);
        assert!(refused(&storages, &wire).await.contains("remount"));
        fs::remove_dir(guest.path("source")).unwrap();
        assert_eq!(guest.calls().iter().filter(|call| call.starts_with("mount")).count(), 0);
        guest.assert_clean();
        let mut wire = guest.request("ephemeral", "tmpfs", "v");
        let _there = attach(&storages, &wire).await.unwrap();
        options(&mut wire, &["remount", "bind", "ro"]);
        let error = storages.remount_ephemeral(StorageRequest::try_from(&wire).unwrap()).await.unwrap_err();
        assert!(error.to_string().contains("bind"), "{error}");
    });
}

/// An overlay would show whatever its options name, a procfs the guest's own.
#[test]
fn a_disk_has_a_filesystem_that_is_on_disks() {
    run(async |guest, storages| {
        for fstype in ["overlay", "proc", "tmpfs"] {
            let mut wire = guest.request("blk", "/dev/vda", "v");
            fstype.clone_into(&mut wire.fstype);
            options(&mut wire, &["lowerdir=/etc:/usr"]);
            let message = refused(&storages, &wire).await;
            assert!(message.contains(fstype) && message.contains("no block device"), "{message:?}");
        }
        guest.assert_clean();
    });
}

#[test]
fn what_a_container_left_mounted_in_a_local_directory_goes_with_it() {
    run(async |guest, storages| {
        let handle = attach(&storages, &guest.request("local", "local", "v")).await.unwrap();
        guest.pretend_mounted("v/left");
        handle.release().await.unwrap();
        storages.release_all(LONG).await.unwrap();
        guest.assert_clean();
    });
}
