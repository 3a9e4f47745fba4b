//! Labels of security modules.
//!
//! A process label that the guest's kernel can't apply is refused, for the container would run unconfined.
//! Empty ones, and AppArmor's `unconfined`, ask for nothing. The worker applies both kinds (`worker::user`); where
//! libcontainer makes init, that applies AppArmor's.
//!
//! One kind of AppArmor profile is another matter. An engine on a host with AppArmor names its own default profile
//! for every container, whether or not anybody asked for it, and shims pass the name on. It is about the host: where
//! the guest has no profile of that name it is left out, with a warning. Refused, no such host could run a container.
//! Other profiles are left out in the same way if the agent is configured so ([`Profiles::required`]).

use std::collections::BTreeSet;

use oci_spec::runtime::{Linux, Process, Spec};
use serde::{Deserialize, Serialize};

use super::SpecError;

/// The profiles that containerd, Docker, CRI-O and nerdctl name by themselves.
const ENGINE_DEFAULTS: [&str; 4] =
    ["cri-containerd.apparmor.d", "docker-default", "crio-default", "nerdctl-default"];

/// File systems of which every mount is a new instance, so that each can be given a context.
const OWN_FILE_SYSTEMS: [&str; 5] = ["tmpfs", "ramfs", "devpts", "hugetlbfs", "overlay"];

/// Prefix of Podman's default profile, which the version follows.
const PODMAN_DEFAULT: &str = "containers-default-";

/// What the guest has of AppArmor.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Profiles {
    /// The names of those that are loaded; none where the kernel does not run AppArmor.
    pub loaded: BTreeSet<String>,
    /// Whether a profile that somebody has chosen must be one of them.
    pub required: bool,
}

/// Takes the SELinux label out of `process`; `inherited` where it brings none.
pub(super) fn selinux(
    process: &mut Process,
    inherited: Option<&str>,
    available: bool,
) -> Result<Option<String>, SpecError> {
    let own = process.selinux_label().clone().filter(|label| !label.is_empty());
    process.set_selinux_label(None);
    let label = own.or_else(|| inherited.map(str::to_owned));
    match label {
        Some(label) if !available => {
            Err(SpecError::NoSecurityModule { field: "process.selinuxLabel", label, module: "SELinux" })
        }
        Some(label) if label.contains('\0') => Err(SpecError::Invalid {
            field: "process.selinuxLabel",
            value: label,
            reason: "it has a NUL byte",
        }),
        label => Ok(label),
    }
}

/// Leaves the AppArmor profile in `process` only when it is one of those loaded in the guest; `inherited` where the
/// process brings none.
pub(super) fn apparmor(
    process: &mut Process,
    inherited: Option<&str>,
    profiles: &Profiles,
    warnings: &mut Vec<String>,
) -> Result<(), SpecError> {
    let own = process.apparmor_profile().clone().filter(|profile| !profile.is_empty());
    let profile = own.or_else(|| inherited.map(str::to_owned)).filter(|profile| profile != "unconfined");
    process.set_apparmor_profile(None);
    match profile {
        Some(profile) if profiles.loaded.contains(&profile) => {
            process.set_apparmor_profile(Some(profile));
        }
        Some(profile) if is_engine_default(&profile) => warnings.push(format!(
            "process.apparmorProfile {profile:?} left out: it is the host's engine's own, and the guest has none of \
             that name"
        )),
        Some(profile) if !profiles.required => warnings.push(format!(
            "process.apparmorProfile {profile:?} left out: no such profile is loaded in the guest, and none is required"
        )),
        Some(label) => {
            return Err(SpecError::NoAppArmorProfile { field: "process.apparmorProfile", label });
        }
        None => {}
    }
    Ok(())
}

fn is_engine_default(profile: &str) -> bool {
    ENGINE_DEFAULTS.contains(&profile) || profile.starts_with(PODMAN_DEFAULT)
}

/// Takes the mount label out, and gives it to the file systems that are the container's own: libcontainer gives it to
/// nearly all, and the kernel refuses another label for a file system that is mounted elsewhere already, such as the
/// sandbox's message queues or the cgroups. Where there are no labels it is left out with a warning: nothing is less
/// confined for want of one.
pub(super) fn mount_label(spec: &mut Spec, linux: &mut Linux, available: bool, warnings: &mut Vec<String>) {
    let label = linux.mount_label().clone().filter(|label| !label.is_empty());
    linux.set_mount_label(None);
    let Some(label) = label else { return };
    if !available {
        warnings.push(format!(
            "linux.mountLabel {label:?} left out: the guest's kernel does not run SELinux, or without a policy"
        ));
        return;
    }
    for mount in spec.mounts_mut().iter_mut().flatten() {
        let mut options = mount.options().clone().unwrap_or_default();
        let is_labelled = options.iter().any(|option| option.starts_with("context="));
        if mount.typ().as_deref().is_some_and(|kind| OWN_FILE_SYSTEMS.contains(&kind)) && !is_labelled {
            options.push(format!("context={label}"));
            mount.set_options(Some(options));
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn process(extra: serde_json::Value) -> Process {
        let mut value = json!({"user": {}, "cwd": "/"});
        value.as_object_mut().unwrap().extend(extra.as_object().unwrap().clone());
        serde_json::from_value(value).unwrap()
    }

    #[test]
    fn selinux_labels_are_taken_out_or_refused() {
        let labelled = || process(json!({"selinuxLabel": "a:b:c:s0"}));
        let mut with = labelled();
        assert_eq!(selinux(&mut with, None, true).unwrap().as_deref(), Some("a:b:c:s0"));
        assert!(with.selinux_label().is_none());
        assert!(selinux(&mut labelled(), None, false).unwrap_err().to_string().contains("a:b:c:s0"));
        assert_eq!(selinux(&mut process(json!({"selinuxLabel": ""})), None, false).unwrap(), None);
        let inherited = selinux(&mut process(json!({})), Some("x:y:z:s0"), true).unwrap();
        assert_eq!(inherited.as_deref(), Some("x:y:z:s0"));
    }

    #[test]
    fn apparmor_profiles_stay_are_left_out_or_refused() {
        let default = "cri-containerd.apparmor.d";
        for (profile, inherited, loaded, expected, warned) in [
            (json!({"apparmorProfile": "p"}), None, &["p"][..], Ok(Some("p")), 0),
            (json!({"apparmorProfile": "p"}), None, &["q"], Err(()), 0),
            (json!({"apparmorProfile": "p"}), None, &[], Err(()), 0),
            (json!({"apparmorProfile": ""}), None, &[], Ok(None), 0),
            (json!({"apparmorProfile": "unconfined"}), None, &[], Ok(None), 0),
            (json!({"apparmorProfile": "unconfined"}), Some("p"), &["p"], Ok(None), 0),
            (json!({}), Some("p"), &["p"], Ok(Some("p")), 0),
            (json!({}), None, &["p"], Ok(None), 0),
            (json!({"apparmorProfile": default}), None, &[default], Ok(Some(default)), 0),
            (json!({"apparmorProfile": default}), None, &["p"], Ok(None), 1),
            (json!({"apparmorProfile": "containers-default-0.50.1"}), None, &[], Ok(None), 1),
            (json!({"apparmorProfile": "docker-default-not"}), None, &[], Err(()), 0),
        ] {
            let mut process = process(profile);
            let loaded = loaded.iter().map(|&name| name.to_owned()).collect();
            let mut profiles = Profiles { loaded, required: true };
            let (mut warnings, mut lenient) = (Vec::new(), process.clone());
            let result = apparmor(&mut process, inherited, &profiles, &mut warnings);
            assert_eq!(result.map(|()| process.apparmor_profile().as_deref()).map_err(|_| ()), expected);
            assert_eq!(warnings.len(), warned);
            // Not required: what would be refused is left out, and the warning has its name.
            let (mut warnings, name) = (Vec::new(), format!("{:?}", lenient.apparmor_profile()));
            profiles.required = false;
            apparmor(&mut lenient, inherited, &profiles, &mut warnings).unwrap();
            assert_eq!(lenient.apparmor_profile().as_deref(), expected.unwrap_or_default());
            assert_eq!(warnings.len(), warned + usize::from(expected.is_err()), "{name}: {warnings:?}");
        }
    }

    #[test]
    fn a_mount_label_is_for_the_containers_own_file_systems() {
        let mounts = json!([
            {"destination": "/a", "type": "tmpfs", "options": ["ro"]},
            {"destination": "/b", "type": "devpts"},
            {"destination": "/c", "type": "mqueue", "options": ["ro"]},
            {"destination": "/d", "type": "bind", "options": ["bind"]},
            {"destination": "/e", "type": "tmpfs", "options": ["context=mine"]},
        ]);
        let plain = [vec!["ro"], vec![], vec!["ro"], vec!["bind"], vec!["context=mine"]];
        let mut labelled = plain.clone();
        labelled[0].push("context=u:r:t:s0:c1,c2");
        labelled[1].push("context=u:r:t:s0:c1,c2");
        for (available, expected, warned) in [(true, labelled, 0), (false, plain, 1)] {
            let mut warnings = Vec::new();
            let mut spec: Spec =
                serde_json::from_value(json!({"ociVersion": "1.1.0", "mounts": mounts})).unwrap();
            let mut linux: Linux = serde_json::from_value(json!({"mountLabel": "u:r:t:s0:c1,c2"})).unwrap();
            mount_label(&mut spec, &mut linux, available, &mut warnings);
            assert!(linux.mount_label().is_none());
            assert_eq!(warnings.len(), warned);
            let options = |mount: &oci_spec::runtime::Mount| mount.options().clone().unwrap_or_default();
            let options: Vec<_> = spec.mounts().iter().flatten().map(options).collect();
            assert_eq!(options, expected);
        }
    }
}
