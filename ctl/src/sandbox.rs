//! What a shim sends before the first container: the request for the sandbox.

use nakai_protocols::agent::{CreateSandboxRequest, Storage};

/// Where the guest mounts the directory that it shares with the host, with a slash at its end as
/// shims send it.
pub const GUEST_SHARE: &str = "/run/kata-containers/shared/containers/";

/// The virtio-fs tag of that directory.
pub const SHARE_TAG: &str = "kataShared";

/// Size of `/dev/shm`, which all containers of the sandbox share, in bytes.
const SHM_SIZE: u64 = 64 << 20;

/// The request for sandbox `id`: shared memory and, if `shared`, the virtio-fs mount that
/// containers' root filesystems come from.
pub fn request(id: &str, hostname: &str, shared: bool) -> CreateSandboxRequest {
    let mut storages = Vec::with_capacity(2);
    if shared {
        storages.push(share_storage());
    }
    storages.push(shm_storage());
    CreateSandboxRequest {
        sandbox_id: id.to_owned(),
        hostname: hostname.to_owned(),
        storages,
        ..Default::default()
    }
}

/// The virtio-fs storage that is mounted at [`GUEST_SHARE`].
pub fn share_storage() -> Storage {
    Storage {
        driver: "virtio-fs".to_owned(),
        source: SHARE_TAG.to_owned(),
        fstype: "virtiofs".to_owned(),
        mount_point: GUEST_SHARE.to_owned(),
        ..Default::default()
    }
}

/// The sandbox's shared memory.
pub fn shm_storage() -> Storage {
    let options = ["noexec", "nosuid", "nodev", "mode=1777"].map(str::to_owned);
    Storage {
        driver: "ephemeral".to_owned(),
        source: "shm".to_owned(),
        fstype: "tmpfs".to_owned(),
        options: options.into_iter().chain([format!("size={SHM_SIZE}")]).collect(),
        mount_point: "/run/kata-containers/sandbox/shm".to_owned(),
        ..Default::default()
    }
}

/// Where the guest sees the root filesystem that [`crate::rootfs::SharedRootfs`] shares for a
/// container.
pub fn guest_rootfs(container: &str) -> String {
    format!("{GUEST_SHARE}{container}/rootfs")
}
