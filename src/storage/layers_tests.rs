//! Which ordinary storages a stack of layers becomes.

use std::path::Path;

use nakai_protocols::agent;

use super::layers::unfold;
use super::{StorageError, StorageRequest};
use crate::ids::ContainerId;

fn layer(source: &str, fstype: &str, options: &[&str]) -> StorageRequest {
    let mut options: Vec<String> = options.iter().map(|option| (*option).to_owned()).collect();
    options.push("X-kata.multi-layer=true".to_owned());
    let wire = agent::Storage {
        driver: "blk".to_owned(),
        source: source.to_owned(),
        fstype: fstype.to_owned(),
        options,
        mount_point: "/k/c/rootfs".to_owned(),
        ..Default::default()
    };
    StorageRequest::try_from(&wire).unwrap()
}

/// Driver, source, mount point, options and driver options in a line.
fn unfolded(storages: Vec<StorageRequest>) -> Result<Vec<String>, StorageError> {
    let all = unfold(Path::new("/k"), &ContainerId::try_from("c").unwrap(), storages)?;
    let line = |s: &StorageRequest| {
        format!(
            "{} {} {} {} {}",
            s.driver,
            s.source,
            s.mount_point,
            s.options.join(","),
            s.driver_options.join(",")
        )
    };
    Ok(all.iter().map(line).collect())
}

#[test]
fn layers_lie_on_each_other_in_their_order() {
    let other = StorageRequest::try_from(&agent::Storage {
        driver: "local".to_owned(),
        mount_point: "/k/other".to_owned(),
        ..Default::default()
    });
    let storages = vec![
        other.unwrap(),
        layer("01", "ext4", &["noatime", "X-kata.overlay-upper", "X-kata.mkdir.path={{ mount 0 }}/etc:0755"]),
        StorageRequest { driver: "erofs.multi-layer".to_owned(), ..layer("0:2", "erofs", &[]) },
        layer("/dev/vdc", "erofs", &["X-kata.overlay-lower"]),
    ];
    let up = "/k/c/multi-layer/upper";
    assert_eq!(
        unfolded(storages).unwrap(),
        [
            "local  /k/other  ".to_owned(),
            format!("blk 01 {up} noatime "),
            "scsi 0:2 /k/c/multi-layer/0 ro ".to_owned(),
            "blk /dev/vdc /k/c/multi-layer/1 ro ".to_owned(),
            format!(
                "overlayfs overlay /k/c/rootfs lowerdir=/k/c/multi-layer/0:/k/c/multi-layer/1,\
                 upperdir={up}/upper,workdir={up}/work keep_directory={up}/upper,keep_directory={up}/work,\
                 keep_directory={up}/etc"
            ),
        ]
    );
}

#[test]
fn partitions_of_one_disk_are_sorted() {
    let part = |number: &str| {
        let number = format!("X-kata.partition-number={number}");
        layer("/dev/vda", "erofs", &["X-kata.gpt-partitioned=true", &number, "X-kata.dmverity.roothash=ab"])
    };
    let all = unfolded(vec![part("10"), part("2")]).unwrap();
    assert_eq!(
        all[0],
        "blk /dev/vda /k/c/multi-layer/0 ro X-kata.partition-number=2,X-kata.dmverity.roothash=ab"
    );
    assert_eq!(
        all[1],
        "blk /dev/vda /k/c/multi-layer/1 ro X-kata.partition-number=10,X-kata.dmverity.roothash=ab"
    );
    assert!(
        all[2]
            .ends_with("lowerdir=/k/c/multi-layer/0:/k/c/multi-layer/1,io.katacontainers.fs-opt.overlay-rw ")
    );
    assert!(unfolded(vec![part("0")]).is_err());
}

#[test]
fn many_layers_are_taken_together() {
    let all =
        unfolded((0..49).map(|number| layer(&format!("{number:02x}"), "erofs", &[])).collect()).unwrap();
    assert_eq!(all.len(), 49 + 2 + 1);
    assert!(all[49].starts_with("overlayfs overlay /k/c/multi-layer/g0 lowerdir=/k/c/multi-layer/0:"));
    assert!(all[50].ends_with(":/k/c/multi-layer/47 "));
    let top =
        "overlayfs overlay /k/c/rootfs lowerdir=/k/c/multi-layer/g0:/k/c/multi-layer/g1:/k/c/multi-layer/48,";
    assert!(all[51].starts_with(top), "{}", all[51]);
}

#[test]
fn what_makes_no_root_is_refused() {
    let upper = || layer("01", "ext4", &["X-kata.overlay-upper"]);
    let lower = |option: &str| layer("02", "erofs", &[option]);
    let cases = [
        (vec![upper()], "no lower layer"),
        (vec![upper(), upper(), lower("ro")], "upper layer already"),
        (vec![lower("X-kata.new=1")], "X-kata.new"),
        (
            vec![layer("01", "ext4", &["X-kata.overlay-upper", "X-kata.mkdir.path=/etc"]), lower("ro")],
            "mkdir.path",
        ),
        (vec![StorageRequest { driver: "virtio-fs".to_owned(), ..lower("ro") }], "virtio-fs"),
    ];
    for (storages, named) in cases {
        let message = unfolded(storages).unwrap_err().to_string();
        assert!(message.contains(named), "{message:?} does not name {named:?}");
    }
}
