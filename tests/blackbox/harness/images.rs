//! What the tests are given: the agent, the guest's kernel and initrd, a container's root filesystem.

use std::fs;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _, symlink};
use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};

use nakai_ctl::vm::VmConfig;
use nakai_rootfs::busybox::{self, Busybox};
use tempfile::TempDir;

use super::Fallible;

const HINT: &str = "`make test` builds it and sets the variable; `-- host::` runs what needs no VM";

/// The inputs; cheap to clone.
#[derive(Clone)]
pub(crate) struct Images(Arc<Inner>);

struct Inner {
    agent: PathBuf,
    kernel: Option<PathBuf>,
    initrd: Option<PathBuf>,
    given_root: Option<PathBuf>,
    /// Everything that this run makes lies in here, so that roots can share files by hard links.
    directory: OnceLock<Result<TempDir, String>>,
    root: OnceLock<Result<PathBuf, String>>,
}

impl Images {
    pub(crate) fn of_environment() -> Self {
        let path = |name| std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
        Self(Arc::new(Inner {
            agent: path("NAKAI_AGENT").unwrap_or_else(|| env!("CARGO_BIN_EXE_nakai").into()),
            kernel: path("NAKAI_KERNEL"),
            initrd: path("NAKAI_INITRD"),
            given_root: path("NAKAI_BUSYBOX_ROOT"),
            directory: OnceLock::new(),
            root: OnceLock::new(),
        }))
    }

    pub(crate) fn agent(&self) -> &Path {
        &self.0.agent
    }

    pub(crate) fn initrd(&self) -> Fallible<&Path> {
        Ok(self.0.initrd.as_deref().ok_or_else(|| format!("NAKAI_INITRD is not set: {HINT}"))?)
    }

    /// A VM that shares `directory` with its guest.
    pub(crate) fn vm(&self, directory: &Path) -> Fallible<VmConfig> {
        let kernel = self.0.kernel.as_deref().ok_or_else(|| format!("NAKAI_KERNEL is not set: {HINT}"))?;
        let mut config = VmConfig::new(kernel, self.initrd()?);
        config.share = Some(directory.to_owned());
        config.cmdline.push("agent.log=debug".to_owned());
        Ok(config)
    }

    /// The directory of this run.
    pub(crate) fn directory(&self) -> Fallible<&Path> {
        // A socket's path has 107 bytes at most, and 60 are for what is made in here.
        let parent = Some(std::env::temp_dir()).filter(|dir| dir.as_os_str().len() < 40);
        let parent = parent.unwrap_or_else(|| "/tmp".into());
        let make = || {
            let made = tempfile::Builder::new().prefix("nakai-").tempdir_in(&parent);
            made.map_err(|error| format!("{}: {error}", parent.display()))
        };
        let directory = self.0.directory.get_or_init(make).as_ref();
        Ok(directory.map_err(|error| format!("directory for the tests: {error}"))?.path())
    }

    /// The root filesystem that [`Images::copy_root`] copies.
    fn root(&self) -> Fallible<&Path> {
        let root = self.0.root.get_or_init(|| {
            let path = self.directory().map_err(|error| error.to_string())?.join("busybox-root");
            match &self.0.given_root {
                Some(given) => copy_by_another(given, &path)
                    .map_err(|error| format!("copy {}: {error}", given.display()))?,
                None => {
                    let busybox = Busybox::find().map_err(|error| error.to_string())?;
                    busybox::write_root(&busybox, &path).map_err(|error| error.to_string())?;
                }
            }
            Ok(path)
        });
        Ok(root.as_deref().map_err(Clone::clone)?)
    }

    /// Makes a root filesystem at `target` that is the caller's to change.
    pub(crate) fn copy_root(&self, target: &Path) -> Fallible<()> {
        Ok(copy_tree(self.root()?, target)?)
    }
}

/// Copies a tree in a process of its own. A program that this one has open for writing could not be run for a while: what
/// another thread starts at that moment has it open, too.
fn copy_by_another(source: &Path, target: &Path) -> Fallible<()> {
    let copied = std::process::Command::new("cp").arg("-a").args([source, target]).output()?;
    if !copied.status.success() {
        return Err(String::from_utf8_lossy(&copied.stderr).into());
    }
    Ok(())
}

/// Copies a tree with modes and owners. Programs are shared: containers don't write to those.
fn copy_tree(source: &Path, target: &Path) -> std::io::Result<()> {
    let metadata = fs::symlink_metadata(source)?;
    if metadata.is_symlink() {
        return symlink(fs::read_link(source)?, target);
    }
    if !metadata.is_dir() {
        if metadata.mode() & 0o111 != 0 {
            return fs::hard_link(source, target);
        }
        fs::copy(source, target)?;
    } else {
        fs::create_dir(target)?;
        for entry in fs::read_dir(source)? {
            let entry = entry?;
            copy_tree(&entry.path(), &target.join(entry.file_name()))?;
        }
    }
    if nix::unistd::geteuid().is_root() {
        std::os::unix::fs::chown(target, Some(metadata.uid()), Some(metadata.gid()))?;
    }
    fs::set_permissions(target, fs::Permissions::from_mode(metadata.mode()))
}
