//! What the next server takes down of a storage that one was attaching when it died.

use std::fs;
use std::path::Path;

use super::*;
use crate::records::Records;

fn copy(from: &Path, to: &Path) {
    for kind in ["storages", "used"] {
        fs::create_dir_all(to.join(kind)).unwrap();
        for file in fs::read_dir(from.join(kind)).unwrap() {
            let file = file.unwrap();
            fs::copy(file.path(), to.join(kind).join(file.file_name())).unwrap();
        }
    }
}

/// The calls of a server that follows one which died just before it mounted this.
fn calls_after_a_death(wire: impl Fn(&FakeGuest) -> agent::Storage + Send) -> (Arc<FakeGuest>, Vec<String>) {
    let (there, seen) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let guest = FakeGuest::new();
    let records = Records::new(there.path().to_owned());
    records.prepare(&["storages", "used"]).unwrap();
    let (from, to) = (there.path().to_owned(), seen.path().to_owned());
    *guest.before_mount.lock().unwrap() = Some(Box::new(move || copy(&from, &to)));
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let calls = runtime.block_on(async {
        let first = guest.storages_with(Some(Arc::new(records)));
        std::mem::forget(attach(&first, &wire(&guest)).await.unwrap());
        let before = guest.calls().len();
        let next = guest.storages_with(Some(Arc::new(Records::new(seen.path().to_owned()))));
        next.recover().await.unwrap();
        assert_eq!(next.mount_points().len(), 1, "it was not on record");
        next.release_unused().await;
        assert_eq!(next.mount_points().len(), 0);
        guest.calls().split_off(before)
    });
    assert_eq!(fs::read_dir(seen.path().join("storages")).unwrap().count(), 0, "a record is left");
    (guest, calls)
}

#[test]
fn huge_pages_go_back_to_the_guest() {
    let (_, calls) = calls_after_a_death(|guest| agent::Storage {
        fstype: "hugetlbfs".to_owned(),
        options: vec!["pagesize=2M,size=8M".to_owned()],
        ..guest.request("ephemeral", "nodev", "huge")
    });
    assert_eq!(calls, ["give back 4 of 2048"]);
}

#[test]
fn a_device_that_checks_is_removed() {
    let options = ["-enabled=true", ".roothash=ab", ".hashoffset=4096"];
    let options = options.map(|option| format!("X-kata.dmverity{option}")).to_vec();
    let (_, calls) = calls_after_a_death(|guest| agent::Storage {
        driver_options: options.clone(),
        ..guest.request("blk", "/dev/vda", "v")
    });
    assert_eq!(calls, ["remove checked"]);
}

#[test]
fn directories_go_with_what_was_put_in_them() {
    let (guest, _) = calls_after_a_death(|guest| {
        let option = |key: &str| format!("{key}{}", guest.path("c1/upper").display());
        agent::Storage {
            driver_options: vec![option("io.katacontainers.volume.overlayfs.create_directory=")],
            options: vec![option("upperdir="), option("lowerdir=")],
            ..guest.request("overlayfs", "overlay", "merged")
        }
    });
    assert!(!guest.path("c1/upper").exists());
}

/// Nor if the user goes away while it is written down.
#[test]
fn a_volume_that_was_used_stays_though_nobody_could_note_it() {
    run(async |guest, _| {
        let directory = tempfile::tempdir().unwrap();
        let records = Records::new(directory.path().to_owned());
        records.prepare(&["storages"]).unwrap();
        fs::write(directory.path().join("used"), "in the way").unwrap();
        let storages = guest.storages_with(Some(Arc::new(records)));
        let wire = guest.request("ephemeral", "tmpfs", "e");
        attach(&storages, &wire).await.unwrap().release().await.unwrap_err();
        // Who asks next finds it, and does not wait for it to be taken down.
        let _next = attach(&storages, &wire).await.unwrap();
        let mounts = guest.calls().iter().filter(|call| call.starts_with("mount")).count();
        assert_eq!(mounts, 1, "the data is lost");
    });
}
