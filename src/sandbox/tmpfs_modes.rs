//! Memory filesystems that libcontainer mounts get the permissions of the directory that they cover, as with runc; those
//! that the worker mounts get them there (`worker::mounts`). libcontainer leaves it to the kernel, which takes 1777.

use std::path::Path;

use nix::fcntl::OFlag;
use nix::sys::stat::{Mode, fstat};
use oci_spec::runtime::{Mount, Spec};

use crate::guest::beneath::Root;
use crate::spec::OwnMounts;

/// Adds the option to those that have none and cover a directory of the root. Blocks.
pub(super) fn complete(spec: &mut Spec, own: Option<&OwnMounts>, rootfs: &Path) {
    let Some(mut mounts) = spec.mounts().clone() else { return };
    let mut before: Vec<_> =
        own.iter().flat_map(|own| &own.mounts).map(|mount| mount.destination.clone()).collect();
    for mount in &mut mounts {
        let destination = mount.destination().clone();
        // What lies in another mount is not the root's.
        if is_without_mode(mount)
            && !before.iter().any(|mount| destination.starts_with(mount))
            && let Some(mode) = mode_of(rootfs, &destination)
        {
            let mut options = mount.options().clone().unwrap_or_default();
            options.push(format!("mode={mode:o}"));
            mount.set_options(Some(options));
        }
        before.push(destination);
    }
    spec.set_mounts(Some(mounts));
}

fn is_without_mode(mount: &Mount) -> bool {
    let has_other = |option: &String| option == "bind" || option == "rbind" || option.starts_with("mode=");
    mount.typ().as_deref() == Some("tmpfs") && !mount.options().iter().flatten().any(has_other)
}

fn mode_of(rootfs: &Path, destination: &Path) -> Option<u32> {
    let flags = OFlag::O_PATH | OFlag::O_DIRECTORY;
    let covered = Root::open(rootfs).ok()?.open_path(destination, flags, Mode::empty()).ok()?;
    Some(fstat(&covered).ok()?.st_mode & 0o7777)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use serde_json::json;

    use super::*;

    #[test]
    fn what_covers_a_directory_looks_like_it() {
        let root = tempfile::tempdir().unwrap();
        let covered = root.path().join("covered");
        std::fs::create_dir(&covered).unwrap();
        std::fs::set_permissions(&covered, PermissionsExt::from_mode(0o1710)).unwrap();
        let mount =
            |to: &str, options: &[&str]| json!({"destination": to, "type": "tmpfs", "options": options});
        let mounts = json!([
            mount("/covered", &["ro"]),
            mount("/covered", &["ro"]),
            mount("/missing", &[]),
            mount("/covered", &["mode=700"]),
            mount("/covered", &["bind"]),
        ]);
        let mut spec = serde_json::from_value(json!({"ociVersion": "1.2.0", "mounts": mounts})).unwrap();
        complete(&mut spec, None, root.path());
        let options = |at: usize| spec.mounts().as_ref().unwrap()[at].options().clone().unwrap_or_default();
        assert_eq!(options(0), ["ro", "mode=1710"]);
        assert_eq!(
            [options(1), options(2), options(3), options(4)],
            [vec!["ro"], vec![], vec!["mode=700"], vec!["bind"]]
        );
    }
}
