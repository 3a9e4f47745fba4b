//! What a container leaves for whoever asks why it ended: its termination log, and its network counters.

use std::collections::HashMap;
use std::fs::File;
use std::io::{self, Read};
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::fcntl::OFlag;
use nix::sys::stat::Mode;
use oci_spec::runtime::{LinuxNamespaceType, Mount, Spec};

use super::container::Container;
use super::create::blocking;
use super::error::SandboxError;
use crate::guest::beneath::{BeneathError, Root};
use crate::guest::bulkhead::Bulkhead;
use crate::guest::kata_dir::base_of;
use crate::guest::net_dev::{self, OwnTraffic, Traffic};

/// Where in the container Kubernetes wants the log: the value is the destination of a mount.
const LOG_ANNOTATION: &str = "io.kubernetes.container.terminationMessagePath";
/// Its name in the bundle, if the host has none for it.
pub(super) const LOG_FILE: &str = "termination-log";
/// As much as Kubernetes keeps.
const LOG_LIMIT: u64 = 4096;

/// Where in the guest the container's termination log is, by the specification as the host sent it.
pub(super) fn termination_log(spec: &Spec) -> Option<PathBuf> {
    let annotations: Option<&HashMap<String, String>> = spec.annotations().as_ref();
    let wanted = annotations?.get(LOG_ANNOTATION).filter(|path| !path.is_empty())?;
    let mounts = spec.mounts().as_ref()?;
    let mount = mounts.iter().rev().find(|mount| Mount::destination(mount) == Path::new(wanted))?;
    mount.source().clone()
}

/// With a file for the termination log, if the host has none for the guest.
pub(super) async fn with_termination_log(
    mut spec: Box<Spec>,
    kata_dir: &Path,
    bundle: &Path,
) -> Result<Box<Spec>, SandboxError> {
    if termination_log(&spec).is_none() {
        return Ok(spec);
    }
    let (kata_dir, bundle) = (kata_dir.to_owned(), bundle.to_owned());
    blocking(move || {
        provide_termination_log(&mut spec, &kata_dir, &bundle)?;
        Ok(spec)
    })
    .await
}

/// Puts an empty file in the place of a termination log that is the host's own: a shim without a shared file system
/// leaves its path as it is, and only asks what has been written. Blocks.
fn provide_termination_log(spec: &mut Spec, kata_dir: &Path, bundle: &Path) -> Result<(), SandboxError> {
    let Some(source) = termination_log(spec) else { return Ok(()) };
    // What the host shares is there, or is missed by name.
    if source.starts_with(base_of(kata_dir, &source)) || source.exists() {
        return Ok(());
    }
    let file = bundle.join(LOG_FILE);
    let write = || {
        std::fs::write(&file, "")?;
        std::fs::set_permissions(&file, std::fs::Permissions::from_mode(0o666))
    };
    write().map_err(SandboxError::file("make", &file))?;
    for mount in spec.mounts_mut().iter_mut().flatten() {
        if mount.source().as_ref() == Some(&source) {
            mount.set_source(Some(file.clone()));
        }
    }
    Ok(())
}

/// Whether the container has another network than the guest's.
pub(super) fn has_own_network(spec: &Spec) -> bool {
    let namespaces = spec.linux().as_ref().and_then(|linux| linux.namespaces().as_ref());
    namespaces.into_iter().flatten().any(|namespace| namespace.typ() == LinuxNamespaceType::Network)
}

impl Container {
    /// What the container wrote to its termination log: at most `LOG_LIMIT` bytes, with a mark for what is no
    /// UTF-8. Nothing if there is no such file.
    ///
    /// # Errors
    /// [`SandboxError::NoTerminationLog`], and [`SandboxError::File`] for what is not a file beneath `base`, the
    /// directory that the host shares.
    pub async fn read_termination_log(
        &self,
        base: &Path,
        bulkhead: &Bulkhead,
    ) -> Result<String, SandboxError> {
        let log = self.description.termination_log.clone();
        let log = log.ok_or_else(|| SandboxError::NoTerminationLog(self.id().clone()))?;
        let (base, path) = (base_of(base, &log), log.clone());
        let read = bulkhead.run(&path, move || {
            read_beneath(&base, &log).map_err(SandboxError::file("read the termination log", &log))
        });
        read.await.unwrap_or(Err(SandboxError::TaskEnded("a look at the termination log")))
    }

    /// What the interfaces that the container sees received and sent; `own` are the guest's. Blocks.
    ///
    /// # Errors
    /// [`SandboxError::File`].
    pub fn traffic(&self, own: &OwnTraffic) -> Result<Vec<Traffic>, SandboxError> {
        let read = if self.description.own_network {
            let read = net_dev::of_process(self.init.pid());
            // Only as long as it has not ended the pid was its own; what had a network of its own has none then.
            if self.init.exit_status().is_some() { Ok(Vec::new()) } else { read }
        } else {
            own.read()
        };
        read.map_err(SandboxError::file("read", Path::new("net/dev")))
    }
}

fn read_beneath(base: &Path, log: &Path) -> io::Result<String> {
    let outside = || io::Error::new(io::ErrorKind::InvalidInput, format!("not beneath {}", base.display()));
    let relative = log.strip_prefix(base).map_err(|_| outside())?;
    // A pipe or a device is opened without waiting, and then not read.
    let flags = OFlag::O_RDONLY | OFlag::O_NONBLOCK | OFlag::O_NOCTTY;
    let opened = Root::open(base).and_then(|root| root.open_path(relative, flags, Mode::empty()));
    let file = match opened {
        Ok(fd) => File::from(fd),
        Err(BeneathError::Climbs { .. }) => return Err(outside()),
        Err(error) if error.raw_os_error() == Some(Errno::ENOENT as i32) => return Ok(String::new()),
        Err(error) => return Err(io::Error::other(error)),
    };
    if !file.metadata()?.is_file() {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "not a regular file"));
    }
    let mut bytes = Vec::new();
    file.take(LOG_LIMIT).read_to_end(&mut bytes)?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::symlink;

    use serde_json::json;

    use super::*;

    fn spec(annotation: &str, mounts: serde_json::Value) -> Spec {
        serde_json::from_value(json!({
            "ociVersion": "1.0.2",
            "annotations": {LOG_ANNOTATION: annotation},
            "mounts": mounts,
            "linux": {"namespaces": [{"type": "network"}]},
        }))
        .unwrap()
    }

    #[test]
    fn the_log_is_the_source_of_the_mount_that_the_annotation_names() {
        let log = json!({"destination": "/dev/termination-log", "type": "bind", "source": "/share/log"});
        let other = json!({"destination": "/data", "type": "bind", "source": "/share/data"});
        let mounts = json!([other, log]);
        let found = termination_log(&spec("/dev/termination-log", mounts.clone()));
        assert_eq!(found.as_deref(), Some(Path::new("/share/log")));
        for wrong in ["", "/elsewhere", "/share/log"] {
            assert_eq!(termination_log(&spec(wrong, mounts.clone())), None, "{wrong:?}");
        }
        assert_eq!(termination_log(&Spec::default()), None);
        assert!(has_own_network(&spec("", json!([]))));
    }

    #[test]
    fn a_log_of_the_hosts_becomes_one_of_the_guests() {
        let (base, bundle) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let of = |source: &Path| {
            let log = json!({"destination": "/log", "type": "bind", "source": source, "options": ["bind"]});
            let mut spec = spec("/log", json!([log]));
            provide_termination_log(&mut spec, base.path(), bundle.path()).unwrap();
            termination_log(&spec).unwrap()
        };
        let there = bundle.path().join("there");
        fs::write(&there, "").unwrap();
        for same in [&there, &base.path().join("shared/missing")] {
            assert_eq!(of(same), *same);
        }
        let made = of(Path::new("/var/lib/kubelet/pods/p/containers/c/0"));
        assert_eq!(made, bundle.path().join(LOG_FILE));
        assert_eq!(fs::metadata(&made).unwrap().permissions().mode() & 0o777, 0o666);
    }

    #[test]
    fn a_log_is_cut_and_never_fails_for_what_is_in_it() {
        let base = tempfile::tempdir().unwrap();
        let log = base.path().join("log");
        assert_eq!(read_beneath(base.path(), &log).unwrap(), "", "no file, no message");
        fs::write(&log, "out of luck").unwrap();
        assert_eq!(read_beneath(base.path(), &log).unwrap(), "out of luck");
        fs::write(&log, vec![b'x'; 5000]).unwrap();
        assert_eq!(read_beneath(base.path(), &log).unwrap().len(), 4096);
        fs::write(&log, b"a\xffb").unwrap();
        assert_eq!(read_beneath(base.path(), &log).unwrap(), "a\u{fffd}b");
    }

    #[test]
    fn nothing_outside_of_the_shared_directory_is_read() {
        let base = tempfile::tempdir().unwrap();
        fs::create_dir(base.path().join("dir")).unwrap();
        symlink("/etc/passwd", base.path().join("link")).unwrap();
        nix::unistd::mkfifo(&base.path().join("fifo"), Mode::S_IRWXU).unwrap();
        for path in ["/etc/passwd", "relative"] {
            let error = read_beneath(base.path(), Path::new(path)).unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::InvalidInput, "{path}");
        }
        for name in ["../x", "dir", "fifo"] {
            let error = read_beneath(base.path(), &base.path().join(name)).unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::InvalidInput, "{name}");
        }
        // The link leads to a file of that name beneath the directory: there is none.
        assert_eq!(read_beneath(base.path(), &base.path().join("link")).unwrap(), "");
    }
}
