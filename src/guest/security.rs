//! The file systems of the kernel's security modules: how policies are loaded, and how one sees what is loaded.

use std::path::Path;

use nix::errno::Errno;
use nix::mount::MsFlags;

use super::mount::{MountError, MountOptions, mount};

/// Where they belong. The kernel makes the directory if it has the file system, that of SELinux if it runs it.
const PLACES: [(&str, &str); 2] = [("securityfs", "/sys/kernel/security"), ("selinuxfs", "/sys/fs/selinux")];

/// Mounts those that there are, and that are not mounted yet.
///
/// # Errors
///
/// The first that can't be mounted. The others are.
pub fn mount_file_systems() -> Result<(), MountError> {
    let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC;
    let all = PLACES.map(|(name, place)| {
        let place = Path::new(place);
        let mounted = mount(name, place, name, &MountOptions { flags, ..MountOptions::default() });
        match mounted.as_ref().err().and_then(MountError::raw_os_error).map(Errno::from_raw) {
            // No such module, or somebody has mounted it.
            Some(Errno::ENOENT | Errno::ENODEV | Errno::EBUSY) => Ok(()),
            _ => mounted,
        }
    });
    // Each by itself: with the kernel locked down, the first can't be mounted, and the other can.
    all.into_iter().collect()
}

/// Whether labels mean something: SELinux runs, and has a policy. Without one it takes any label for its own first
/// context, and confines nobody. That context then is a single word (security/selinux/ss/services.c,
/// `security_sid_to_context_core`).
pub fn has_selinux_policy(selinuxfs: &Path) -> bool {
    let context = std::fs::read(selinuxfs.join("initial_contexts/kernel"));
    context.is_ok_and(|context| context.contains(&b':'))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_first_context_that_is_one_word_is_no_policys() {
        let dir = tempfile::tempdir().unwrap();
        assert!(!has_selinux_policy(dir.path()), "no SELinux");
        let contexts = dir.path().join("initial_contexts");
        std::fs::create_dir(&contexts).unwrap();
        for (context, has_policy) in [("kernel", false), ("system_u:system_r:kernel_t:s0", true)] {
            std::fs::write(contexts.join("kernel"), context).unwrap();
            assert_eq!(has_selinux_policy(dir.path()), has_policy, "{context}");
        }
    }
}
