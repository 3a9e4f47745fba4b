//! systemd with the libraries that it needs, and nothing else: unpacked from packages, installed nowhere.
//!
//! It becomes the first process of a container in tests: there the agent is a service, and asks systemd for cgroups.

use std::path::{Path, PathBuf};

use crate::cache::Cache;
use crate::command::{CommandError, PAUSES, command, retry, run};
use crate::files::{self, FilesError};

/// The program, from the tree's root.
pub const PROGRAM: &str = "lib/systemd/systemd";

/// What systemd's package depends on for its installation, not to run.
const SUPERFLUOUS: [&str; 7] =
    ["libc6-dev", "libdebian-installer", "libnewt", "libslang", "libtextwrap", "libreadline", "libbz2"];
/// Where newer packages have their files, and older ones don't.
const FOLDERS: [&str; 4] = ["bin", "sbin", "lib", "lib64"];

/// Documents, which are half of it, and programs that look at a machine's disks and kernel at each start and reload.
const UNWANTED: [&str; 5] = [
    "usr/share/doc",
    "usr/share/man",
    "usr/share/locale",
    "lib/systemd/system-generators",
    "lib/systemd/system-environment-generators",
];

/// A tree that can't be made.
#[derive(Debug, thiserror::Error)]
pub enum SystemdError {
    /// Reading or writing the tree.
    #[error(transparent)]
    Files(#[from] FilesError),
    /// Asking apt, downloading or unpacking.
    #[error(transparent)]
    Command(#[from] CommandError),
    /// The packages do not have it.
    #[error("{} is not among the packages' files", .0.display())]
    NoProgram(PathBuf),
}

/// The unpacked tree. Only the first call for a cache needs a network.
///
/// # Errors
/// [`SystemdError`].
pub fn fetch(cache: &Cache) -> Result<PathBuf, SystemdError> {
    cache.get_or_make("systemd/tree", unpack)
}

fn unpack(work: &Path, tree: &Path) -> Result<(), SystemdError> {
    files::create_dir(tree)?;
    let depends = run(command("apt-cache")
        .args(["depends", "--recurse", "--important", "--no-conflicts", "--no-breaks", "--no-replaces"])
        .args(["--no-enhances", "systemd"]))?;
    let names: Vec<&str> = needed(&depends).collect();
    let debs = work.join("debs");
    files::create_dir(&debs)?;
    retry(&PAUSES, |_| run(command("apt-get").arg("download").args(&names).current_dir(&debs)))?;
    for deb in files::list(&debs)? {
        run(command("dpkg").arg("-x").arg(debs.join(deb)).arg(tree))?;
    }
    for folder in FOLDERS {
        let path = tree.join(folder);
        if !path.exists() {
            std::os::unix::fs::symlink(Path::new("usr").join(folder), &path)
                .map_err(|source| FilesError::Write { path, source })?;
        }
    }
    for folder in UNWANTED {
        let path = tree.join(folder);
        if path.exists() {
            std::fs::remove_dir_all(&path).map_err(|source| FilesError::Write { path, source })?;
        }
    }
    let program = tree.join(PROGRAM);
    if program.exists() { Ok(()) } else { Err(SystemdError::NoProgram(program)) }
}

/// systemd and the libraries among all packages that `apt-cache depends --recurse` names: those at the beginning of a
/// line. (Others are dependencies, and virtual packages in brackets.)
fn needed(depends: &str) -> impl Iterator<Item = &str> {
    let is_needed = |name: &&str| {
        (name.starts_with("lib") || name.starts_with("zlib") || *name == "systemd")
            && !SUPERFLUOUS.iter().any(|prefix| name.starts_with(prefix))
            // Another architecture's.
            && !name.contains(':')
    };
    depends.lines().filter(is_needed)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn libraries_are_needed_and_installers_are_not() {
        let depends = "\
systemd
  PreDepends: libblkid1
 |Depends: default-logind
  Depends: <logind>
    libpam-systemd
libblkid1
libblkid1:i386
dpkg
libnewt0.52
zlib1g
<default-dbus-system-bus>
";
        assert_eq!(needed(depends).collect::<Vec<_>>(), ["systemd", "libblkid1", "zlib1g"]);
    }
}
