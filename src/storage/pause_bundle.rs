//! The guest image's own pause container, for hosts that have the guest pull its images itself: they have no image to
//! hand over for a sandbox's own container. It is an OCI bundle, of which the process is taken and the program that it
//! runs; the root is a directory of the container's, in which places can be made for what is mounted.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use nix::fcntl::OFlag;
use nix::sys::stat::{Mode, fchmod, fstat};
use oci_spec::runtime::{Process, Spec};

use super::StorageError;
use super::places::fd_path;
use super::request::StorageRequest;
use crate::guest::beneath::{BeneathError, Root};
use crate::guest::tree;

/// Where Kata's guest images have it.
const PATH: &str = "/pause_bundle";
/// Driver option: what the host knows of the image, as JSON.
const METADATA: &str = "image_guest_pull=";
/// The driver.
pub(super) const DRIVER: &str = "image_guest_pull";

/// The bundle in the guest's image.
#[derive(Debug)]
pub struct PauseBundle {
    path: PathBuf,
}

impl PauseBundle {
    /// The one of this guest.
    pub fn of_guest() -> Self {
        Self { path: PATH.into() }
    }

    /// Whether a storage is the root of the sandbox's own container. Container runtimes say so by an annotation, each
    /// by its own.
    ///
    /// # Errors
    ///
    /// [`StorageError::Field`].
    pub fn is_wanted(request: &StorageRequest) -> Result<bool, StorageError> {
        let metadata = request.driver_options.iter().find_map(|option| option.strip_prefix(METADATA));
        let Some(text) = metadata.filter(|_| request.driver == DRIVER) else { return Ok(false) };
        let metadata: serde_json::Value = serde_json::from_str(text)
            .map_err(|error| request.refuse("driver_options", format!("{METADATA} is no JSON: {error}")))?;
        let kinds = ["io.kubernetes.cri.container-type", "io.kubernetes.cri-o.ContainerType"];
        let is = |kind: &str| {
            metadata.pointer("/metadata").and_then(|all| all.get(kind)).is_some_and(|is| is == "sandbox")
        };
        Ok(kinds.into_iter().any(is))
    }

    /// Its process.
    ///
    /// # Errors
    ///
    /// [`StorageError::PauseImage`].
    pub fn process(&self) -> Result<Process, StorageError> {
        let path = self.path.join("config.json");
        let read = || -> io::Result<Spec> { Ok(serde_json::from_slice(&std::fs::read(&path)?)?) };
        let process = read().map_err(failed(&path))?.process().clone();
        process.ok_or_else(|| failed(&path)(io::Error::other("it has no process")))
    }

    /// Copies the program into `root`, an empty directory.
    pub(super) fn unpack(&self, root: &OwnedFd) -> Result<(), StorageError> {
        let process = self.process()?;
        let program = process.args().as_ref().and_then(|args| args.first()).map(Path::new);
        let Some(program) = program.filter(|program| program.is_absolute()) else {
            let cause = io::Error::other("args[0] is not the path of a program");
            return Err(failed(&self.path.join("config.json"))(cause));
        };
        copy(&self.path.join("rootfs"), root, program).map_err(failed(&self.path.join("rootfs")))
    }
}

fn failed(path: &Path) -> impl FnOnce(io::Error) -> StorageError {
    move |error| StorageError::PauseImage { path: path.to_owned(), cause: Arc::new(error) }
}

/// Copies one file from beneath a directory to beneath another one, with its permissions.
fn copy(from: &Path, to: &OwnedFd, path: &Path) -> io::Result<()> {
    let other = |error: BeneathError| io::Error::other(error);
    let flags = OFlag::O_RDONLY | OFlag::O_NONBLOCK | OFlag::O_CLOEXEC;
    let source =
        Root::open(from).and_then(|root| root.open_path(path, flags, Mode::empty())).map_err(other)?;
    let stat = fstat(&source)?;
    if tree::file_type(&stat) != nix::libc::S_IFREG {
        return Err(io::Error::other(format!("{} is no file", path.display())));
    }
    let to = Root::open(&fd_path(to.as_fd())).map_err(other)?;
    to.create_dir(path.parent().unwrap_or(path), 0o755).map_err(other)?;
    let flags = OFlag::O_WRONLY | OFlag::O_CREAT | OFlag::O_TRUNC | OFlag::O_CLOEXEC;
    let target = to.open_path(path, flags, Mode::S_IRWXU).map_err(other)?;
    fchmod(&target, Mode::from_bits_truncate(stat.st_mode & 0o755))?;
    io::copy(&mut File::from(source), &mut File::from(target)).map(drop)
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::{PermissionsExt as _, symlink};

    use serde_json::json;

    use super::*;

    struct Guest {
        directory: tempfile::TempDir,
        bundle: PauseBundle,
        root: OwnedFd,
    }

    impl Guest {
        fn with(config: &str) -> Self {
            let directory = tempfile::tempdir().unwrap();
            let path = directory.path().join("bundle");
            fs::create_dir_all(path.join("rootfs/usr/bin")).unwrap();
            fs::create_dir(directory.path().join("root")).unwrap();
            fs::write(path.join("config.json"), config).unwrap();
            let root = File::open(directory.path().join("root")).unwrap().into();
            Self { directory, bundle: PauseBundle { path }, root }
        }

        fn file(&self, path: &str) -> PathBuf {
            self.directory.path().join(path)
        }
    }

    fn config(program: &str) -> String {
        let process = json!({"cwd": "/", "user": {"uid": 65535, "gid": 65535}, "args": [program, "-w"]});
        json!({"ociVersion": "1.0.0", "process": process}).to_string()
    }

    #[test]
    fn the_program_that_the_bundle_names_comes_into_the_root() {
        let guest = Guest::with(&config("/usr/bin/pod"));
        fs::write(guest.file("bundle/rootfs/usr/bin/pod"), "program").unwrap();
        let permissions = fs::Permissions::from_mode(0o755);
        fs::set_permissions(guest.file("bundle/rootfs/usr/bin/pod"), permissions).unwrap();
        fs::write(guest.file("bundle/rootfs/other"), "other").unwrap();
        guest.bundle.unpack(&guest.root).unwrap();
        assert_eq!(fs::read_to_string(guest.file("root/usr/bin/pod")).unwrap(), "program");
        assert_eq!(fs::metadata(guest.file("root/usr/bin/pod")).unwrap().permissions().mode() & 0o777, 0o755);
        assert!(!guest.file("root/other").exists());
        assert_eq!(guest.bundle.process().unwrap().user().uid(), 65535);
    }

    #[test]
    fn a_bundle_that_cannot_be_used_is_named() {
        let empty = json!({"ociVersion": "1.0.0"}).to_string();
        for (config, words) in [
            (config("/usr/bin/none"), "/bundle/rootfs: open usr/bin/none"),
            (config("pod"), "/bundle/config.json: args[0] is not the path"),
            (config("/usr/bin"), "/bundle/rootfs: /usr/bin is no file"),
            (empty, "/bundle/config.json: it has no process"),
            ("{".to_owned(), "/bundle/config.json: EOF"),
        ] {
            let guest = Guest::with(&config);
            let message = guest.bundle.unpack(&guest.root).unwrap_err().to_string();
            assert!(message.contains(words), "{message:?} does not tell {words:?}");
        }
    }

    /// A link in the guest's image leads no further than the bundle.
    #[test]
    fn a_link_leads_to_no_program_of_the_guests() {
        let guest = Guest::with(&config("/usr/bin/pod"));
        symlink("/../../../bin/sh", guest.file("bundle/rootfs/usr/bin/pod")).unwrap();
        guest.bundle.unpack(&guest.root).unwrap_err();
    }
}
