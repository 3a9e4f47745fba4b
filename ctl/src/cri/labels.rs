//! Labels of security modules, and what is hidden: AppArmor, SELinux, masked and read-only paths.
//!
//! A label is sent to the agent as asked for; where the guest can't apply it the agent refuses the container. A
//! privileged container gets none of it.

use nakai_protocols::oci;

use super::CriError;
use super::config::{LinuxContainerSecurityContext, ProfileType, SeLinuxOption};

/// What containerd's CRI plugin calls its own profile.
const DEFAULT_PROFILE: &str = "cri-containerd.apparmor.d";

/// Writes labels and paths of `security` to the specification.
///
/// # Errors
///
/// A profile of no known form, or an incomplete label.
pub(super) fn apply(spec: &mut oci::Spec, security: &LinuxContainerSecurityContext) -> Result<(), CriError> {
    let profile = apparmor(security)?;
    let label = security.selinux_options.as_ref().map(selinux).transpose()?.flatten();
    let linux = spec.Linux.mut_or_insert_default();
    if security.privileged {
        linux.MaskedPaths.clear();
        linux.ReadonlyPaths.clear();
        return Ok(());
    }
    if let Some(paths) = &security.masked_paths {
        linux.MaskedPaths = paths.clone();
    }
    if let Some(paths) = &security.readonly_paths {
        linux.ReadonlyPaths = paths.clone();
    }
    let process = spec.Process.mut_or_insert_default();
    process.ApparmorProfile = profile;
    if let Some((label, mounts)) = label {
        process.SelinuxLabel = label;
        linux.MountLabel = mounts;
    }
    Ok(())
}

/// The profile's name; empty for none.
fn apparmor(security: &LinuxContainerSecurityContext) -> Result<String, CriError> {
    let named = |name: &str| match name {
        "" => Err(CriError::field("apparmor", "Localhost without a localhost_ref")),
        name => Ok(name.strip_prefix("localhost/").unwrap_or(name).to_owned()),
    };
    match &security.apparmor {
        Some(profile) => match profile.profile_type {
            ProfileType::RuntimeDefault => Ok(DEFAULT_PROFILE.to_owned()),
            ProfileType::Unconfined => Ok(String::new()),
            ProfileType::Localhost => named(&profile.localhost_ref),
        },
        None => match security.apparmor_profile.as_str() {
            "" | "unconfined" => Ok(String::new()),
            "runtime/default" => Ok(DEFAULT_PROFILE.to_owned()),
            other if other.starts_with("localhost/") => named(other),
            other => Err(CriError::field(
                "apparmor_profile",
                format!("{other:?} is none of runtime/default, unconfined, localhost/NAME"),
            )),
        },
    }
}

/// The labels of the process and of its files; none where nothing is asked for.
fn selinux(options: &SeLinuxOption) -> Result<Option<(String, String)>, CriError> {
    let SeLinuxOption { user, role, kind, level } = options;
    let parts = [user, role, kind, level];
    if parts.iter().all(|part| part.is_empty()) {
        return Ok(None);
    }
    if [user, role, kind].iter().any(|part| part.is_empty()) {
        return Err(CriError::field("selinux_options", "user, role and type are needed together"));
    }
    let level = if level.is_empty() { "s0" } else { level };
    Ok(Some((format!("{user}:{role}:{kind}:{level}"), format!("system_u:object_r:container_file_t:{level}"))))
}
