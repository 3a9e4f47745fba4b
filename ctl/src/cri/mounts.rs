//! A container's mounts: what the host lends it, and files of the pod.
//!
//! The guest sees nothing of the host but the shared directory. So each path is first bound into that directory
//! ([`Bind`], done by [`super::volumes`]), and the specification names the guest's side of it. An agent on this
//! host has no shared directory and is given the path itself.

use std::path::{Path, PathBuf};

use nakai_protocols::oci;

use super::CriError;
use super::config::{ContainerConfig, Mount, MountPropagation};
use crate::sandbox::GUEST_SHARE;

/// How the host's paths come to the agent.
#[derive(Clone, Debug)]
pub enum Places {
    /// The agent is a process of this host, and sees them. Files of ours lie in this directory.
    Local(PathBuf),
    /// Through this directory, which is the guest's [`GUEST_SHARE`].
    Shared(PathBuf),
}

/// A path of the host to be seen in the shared directory.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Bind {
    /// What.
    pub source: PathBuf,
    /// Where on this host.
    pub target: PathBuf,
    /// Writing through it is refused on this side too.
    pub readonly: bool,
    /// Mounts below it come with it, and those made later.
    pub recursive: bool,
}

impl Places {
    /// Where this host keeps what belongs to `container`, and how the agent sees it.
    pub fn directory(&self, container: &str) -> (PathBuf, String) {
        match self {
            Self::Local(directory) => {
                let own = directory.join(container);
                let seen = own.display().to_string();
                (own, seen)
            }
            Self::Shared(share) => (share.join(container), format!("{GUEST_SHARE}{container}")),
        }
    }

    /// The directory on this host in which it lies, for all containers.
    pub fn host(&self) -> &Path {
        match self {
            Self::Local(directory) | Self::Shared(directory) => directory,
        }
    }

    /// How the agent sees the `number`th path of `container`, and what has to be bound for that.
    fn lend(&self, container: &str, number: usize, path: &Path, mount: &Mount) -> (String, Option<Bind>) {
        match self {
            Self::Local(_) => (path.display().to_string(), None),
            Self::Shared(_) => {
                let (host, guest) = self.directory(container);
                let bind = Bind {
                    source: path.to_owned(),
                    target: host.join("mounts").join(number.to_string()),
                    readonly: mount.readonly,
                    recursive: mount.propagation != MountPropagation::Private,
                };
                (format!("{guest}/mounts/{number}"), Some(bind))
            }
        }
    }
}

/// Adds the configuration's mounts to the specification; returns what has to be bound, and warnings.
///
/// # Errors
///
/// A mount that can't be carried out, with its index.
pub(super) fn apply(
    spec: &mut oci::Spec,
    config: &ContainerConfig,
    places: &Places,
    container: &str,
) -> Result<(Vec<Bind>, Vec<String>), CriError> {
    let mut order: Vec<(usize, &Mount)> = config.mounts.iter().enumerate().collect();
    // What is mounted deeper comes later, as containerd has it.
    order.sort_by_key(|(_, mount)| Path::new(&mount.container_path).components().count());
    let (mut binds, mut warnings) = (Vec::new(), Vec::new());
    for (number, mount) in order {
        let refuse = |reason: &str| Err(CriError::field(format!("mounts[{number}]"), reason));
        if mount.image.is_some() {
            return refuse("image: an image as a volume is not supported");
        }
        if !mount.uid_mappings.is_empty() || !mount.gid_mappings.is_empty() {
            return refuse("uidMappings, gidMappings: id-mapped mounts are not supported by the agent");
        }
        if !mount.container_path.starts_with('/') {
            return refuse("container_path: not an absolute path");
        }
        if !mount.host_path.starts_with('/') {
            return refuse("host_path: not an absolute path");
        }
        if mount.recursive_read_only && !mount.readonly {
            return refuse("recursive_read_only: only together with readonly");
        }
        if mount.recursive_read_only && mount.propagation != MountPropagation::Private {
            return refuse("recursive_read_only: only with private propagation");
        }
        if mount.selinux_relabel {
            warnings.push(format!(
                "mounts[{number}].selinux_relabel: files get no label where there is no SELinux"
            ));
        }
        let (source, bind) = places.lend(container, number, Path::new(&mount.host_path), mount);
        binds.extend(bind);
        spec.Mounts.retain(|other| other.destination != mount.container_path);
        spec.Mounts.push(oci::Mount {
            destination: mount.container_path.clone(),
            source,
            type_: "bind".to_owned(),
            options: options(mount).into_iter().map(str::to_owned).collect(),
            ..Default::default()
        });
    }
    root_propagation(spec, config);
    Ok((binds, warnings))
}

fn options(mount: &Mount) -> Vec<&'static str> {
    let access = match (mount.readonly, mount.recursive_read_only) {
        (true, true) => "rro",
        (true, false) => "ro",
        (false, _) => "rw",
    };
    let propagation = match mount.propagation {
        MountPropagation::Private => "rprivate",
        MountPropagation::HostToContainer => "rslave",
        MountPropagation::Bidirectional => "rshared",
    };
    vec!["rbind", propagation, access]
}

/// Mounts can only be as open as the root that they are in.
fn root_propagation(spec: &mut oci::Spec, config: &ContainerConfig) {
    let has = |wanted| config.mounts.iter().any(|mount| mount.propagation == wanted);
    let linux = spec.Linux.mut_or_insert_default();
    if has(MountPropagation::Bidirectional) {
        linux.RootfsPropagation = "rshared".to_owned();
    } else if has(MountPropagation::HostToContainer) {
        linux.RootfsPropagation = "rslave".to_owned();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mount(path: &str, edit: impl FnOnce(&mut Mount)) -> Mount {
        let mut mount = Mount { container_path: path.into(), host_path: "/srv".into(), ..Mount::default() };
        edit(&mut mount);
        mount
    }

    fn run(mounts: Vec<Mount>, places: &Places) -> Result<(oci::Spec, Vec<Bind>), String> {
        let mut spec = crate::SpecBuilder::new("web", "/root").build();
        let config = ContainerConfig { mounts, ..ContainerConfig::default() };
        let (binds, _) = apply(&mut spec, &config, places, "web").map_err(|error| error.to_string())?;
        Ok((spec, binds))
    }

    #[test]
    fn deeper_mounts_come_later_and_the_guests_side_is_named() {
        let mounts = vec![
            mount("/a/b", |m| m.readonly = true),
            mount("/a", |m| m.propagation = MountPropagation::HostToContainer),
            mount("/dev/shm", |_| ()),
        ];
        let (spec, binds) = run(mounts, &Places::Shared("/share".into())).unwrap();
        let last: Vec<_> =
            spec.Mounts.iter().skip(6).map(|m| (&*m.destination, &*m.source, m.options.join(","))).collect();
        let share = "/run/kata-containers/shared/containers/web/mounts";
        let expected = [
            ("/a", format!("{share}/1"), "rbind,rslave,rw"),
            ("/a/b", format!("{share}/0"), "rbind,rprivate,ro"),
            ("/dev/shm", format!("{share}/2"), "rbind,rprivate,rw"),
        ];
        assert_eq!(last.len(), 3);
        for (seen, expected) in last.iter().zip(&expected) {
            assert_eq!((seen.0, seen.1, &*seen.2), (expected.0, &*expected.1, expected.2));
        }
        assert_eq!(spec.Linux.RootfsPropagation, "rslave");
        assert_eq!(binds[1].target, Path::new("/share/web/mounts/0"));
        assert!(binds[1].readonly && !binds[1].recursive && binds[0].recursive);

        let (spec, binds) = run(vec![mount("/a", |_| ())], &Places::Local("/files".into())).unwrap();
        assert_eq!((&*spec.Mounts.last().unwrap().source, binds.len()), ("/srv", 0));
    }

    #[test]
    fn what_can_not_be_mounted_is_refused_by_name() {
        for (bad, words) in [
            (mount("a", |_| ()), "mounts[0]: container_path"),
            (mount("/a", |m| m.host_path.clear()), "host_path"),
            (mount("/a", |m| m.recursive_read_only = true), "recursive_read_only"),
            (mount("/a", |m| m.uid_mappings.push(Default::default())), "id-mapped"),
            (mount("/a", |m| m.image = Some(Default::default())), "image"),
        ] {
            let error = run(vec![bad], &Places::Local("/files".into())).unwrap_err();
            assert!(error.contains(words), "{error}");
        }
    }
}
