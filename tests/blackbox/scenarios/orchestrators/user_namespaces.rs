//! A container with users of its own: `userns_options`.

use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _, chown};

use serde_json::json;

use super::bench::Bench;
use super::{Check, check};
use crate::harness::{Ctx, Outcome};

pub(super) const USERS: &[Check] = &[
    check(
        "`namespace_options.userns_options` POD, with one mapping of users and one of groups",
        "root in a user namespace of the container's own, with these ids; other containers of the pod have others of their \
         own",
        "tr -s ' ' < /proc/self/uid_map; tr -s ' ' < /proc/self/gid_map; id -u",
        &[" 0 100000 65536\n 0 200000 65536\n0"],
    ),
    check(
        "`image`, with `userns_options`",
        "its files are copied for the container and are its own; volumes are as they are",
        "stat -c %u:%g / /bin/busybox /volume; touch /made && stat -c %u:%g /made",
        &["0:0\n0:0\n1:2\n0:0"],
    ),
    check(
        "`capabilities`, with `userns_options`",
        "hold for what is the container's own; its network and host name are the pod's, and are not",
        "hostname mine; mount -t tmpfs mine /mnt && echo mounted",
        &["hostname: sethostname: Operation not permitted\nmounted"],
    ),
];

/// Files outside have the ids that are mapped.
pub(super) async fn cri_users_of_its_own(ctx: Ctx) -> Outcome {
    let bench = Bench::new(&ctx)?;
    let volume = bench.volume("mapped")?;
    chown(&volume, Some(100_001), Some(200_002))?;
    std::fs::set_permissions(&volume, std::fs::Permissions::from_mode(0o777))?;
    let ids = |host_id: u32| json!([{"host_id": host_id, "container_id": 0, "length": 65536}]);
    let users = json!({"mode": "POD", "uids": ids(100_000), "gids": ids(200_000)});
    let container = json!({
        "mounts": [{"container_path": "/volume", "host_path": volume}],
        "linux": {"security_context": {
            "namespace_options": {"userns_options": users}, "capabilities": {"add_capabilities": ["SYS_ADMIN"]},
        }},
    });
    let order = bench.order(json!({}), container)?;
    let record = bench.start(&order).await?;
    bench.look(&record.id, USERS).await?;
    assert_eq!(bench.sh(&record.id, "touch /volume/made; chown 5:6 /volume/made").await?, "");
    let made = volume.join("made").symlink_metadata()?;
    assert_eq!((made.uid(), made.gid()), (100_005, 200_006));
    bench.remove(&record.id).await
}
