//! The guest's kernel, from a distribution's package that is unpacked and never installed.
//!
//! A meta package (`linux-image-cloud-amd64`) depends on the package of one version; Ubuntu's depends on a second
//! one for the modules. They come through apt as this machine is configured, and `depmod` adds `modules.dep`.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use crate::cache::Cache;
use crate::command::{CommandError, PAUSES, command, retry, run};
use crate::files::{self, FilesError};

/// Meta packages of small kernels for virtual machines, Debian's and Ubuntu's.
const META_PACKAGES: [&str; 2] = ["linux-image-cloud-amd64", "linux-image-virtual"];
/// What the packages with the files are called, before the version.
const FILE_PACKAGES: [&str; 2] = ["linux-image-", "linux-modules-"];

/// A kernel that can't be got or used.
#[derive(Debug, thiserror::Error)]
pub enum KernelError {
    /// Reading or writing the unpacked tree.
    #[error(transparent)]
    Files(#[from] FilesError),
    /// Asking apt, downloading, unpacking or listing modules.
    #[error(transparent)]
    Command(#[from] CommandError),
    /// apt has none of the packages.
    #[error("apt knows no kernel package, looked for {wanted}: its lists may be missing (`apt-get update`)")]
    NoPackage {
        /// The names looked for.
        wanted: String,
    },
    /// The package depends on no kernel.
    #[error("package {package} depends on no linux-image package")]
    NoVersion {
        /// The meta package.
        package: String,
    },
    /// The unpacked packages do not have exactly one kernel.
    #[error("{}: expected one file boot/vmlinuz-*, found {found:?}", dir.display())]
    NoImage {
        /// Where they were unpacked.
        dir: PathBuf,
        /// The names in `boot`.
        found: Vec<String>,
    },
}

/// An unpacked kernel.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Kernel {
    /// The bootable image.
    pub image: PathBuf,
    /// Its release, as uname(2) tells it.
    pub release: String,
    /// The folder `lib/modules/RELEASE`.
    pub modules: PathBuf,
}

impl Kernel {
    /// The kernel of a tree in which kernel packages were unpacked.
    pub fn open(dir: &Path) -> Result<Self, KernelError> {
        let boot = files::list(&dir.join("boot"))?;
        let releases: Vec<&str> = boot.iter().filter_map(|name| name.strip_prefix("vmlinuz-")).collect();
        let [release] = releases[..] else {
            return Err(KernelError::NoImage { dir: dir.into(), found: boot });
        };
        Ok(Self {
            image: dir.join("boot").join(format!("vmlinuz-{release}")),
            release: release.to_owned(),
            modules: dir.join("lib/modules").join(release),
        })
    }
}

/// The kernel of a meta package (the first that apt knows of the usual ones, if none is given). Only the first call
/// for a cache needs a network.
pub fn fetch(cache: &Cache, package: Option<&str>) -> Result<Kernel, KernelError> {
    let wanted: Vec<&str> = package.map_or(META_PACKAGES.to_vec(), |package| vec![package]);
    if let Some(cached) = wanted.iter().map(|name| cache.path(&entry(name))).find(|dir| dir.exists()) {
        return Kernel::open(&cached);
    }
    let known =
        |name: &&str| run(command("apt-cache").args(["show", name])).is_ok_and(|text| !text.is_empty());
    let package = wanted
        .iter()
        .copied()
        .find(known)
        .ok_or_else(|| KernelError::NoPackage { wanted: wanted.join(", ") })?;
    let dir = cache.get_or_make(&entry(package), |work, tree| unpack(package, work, tree))?;
    Kernel::open(&dir)
}

/// Forgets cached kernels, so that the next [`fetch`] takes the newest version that apt knows.
pub fn forget(cache: &Cache) -> Result<(), KernelError> {
    Ok(cache.remove("kernel")?)
}

/// The name in the cache.
fn entry(package: &str) -> String {
    format!("kernel/{package}")
}

fn unpack(package: &str, work: &Path, tree: &Path) -> Result<(), KernelError> {
    files::create_dir(tree)?;
    for name in file_packages(package)? {
        let download = work.join(&name);
        files::create_dir(&download)?;
        retry(&PAUSES, |_| run(command("apt-get").args(["download", &name]).current_dir(&download)))?;
        for deb in files::list(&download)? {
            run(command("dpkg").arg("-x").arg(download.join(deb)).arg(tree))?;
        }
    }
    // Newer packages have their modules under usr, and depmod looks in either place.
    if !tree.join("lib").exists() {
        std::os::unix::fs::symlink("usr/lib", tree.join("lib"))
            .map_err(|source| FilesError::Write { path: tree.join("lib"), source })?;
    }
    let release = Kernel::open(tree)?.release;
    // Debian keeps depmod out of a user's PATH.
    let path = format!("{}:/usr/sbin:/sbin", std::env::var("PATH").unwrap_or_default());
    run(command("depmod").env("PATH", path).arg("-b").arg(tree).arg(release))?;
    Ok(())
}

/// The packages with files that a meta package stands for.
fn file_packages(package: &str) -> Result<BTreeSet<String>, KernelError> {
    let mut found = BTreeSet::new();
    let mut to_ask = vec![package.to_owned()];
    while let Some(asked) = to_ask.pop() {
        let depends = run(command("apt-cache").args(["depends", "--important", &asked]))?;
        for name in versioned(&depends) {
            if found.insert(name.to_owned()) {
                to_ask.push(name.to_owned());
            }
        }
    }
    if found.is_empty() { Err(KernelError::NoVersion { package: package.into() }) } else { Ok(found) }
}

/// The versioned kernel packages among the dependencies that `apt-cache depends` prints.
fn versioned(depends: &str) -> impl Iterator<Item = &str> {
    depends.lines().filter_map(|line| {
        // A bar marks an alternative.
        let (_, name) = line.trim_start_matches([' ', '|']).split_once("Depends: ")?;
        let version = FILE_PACKAGES.iter().find_map(|prefix| name.strip_prefix(prefix))?;
        version.starts_with(|first: char| first.is_ascii_digit()).then_some(name)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versioned_packages_are_found_among_dependencies() {
        let depends = "\
linux-image-virtual
  Depends: linux-image-6.8.0-60-generic
 |Depends: linux-modules-6.8.0-60-generic
  PreDepends: kmod
  Depends: linux-image-extra
  Depends: <linux-initramfs-tool>
    dracut
";
        let names: Vec<_> = versioned(depends).collect();
        assert_eq!(names, ["linux-image-6.8.0-60-generic", "linux-modules-6.8.0-60-generic"]);
    }

    #[test]
    fn a_cached_kernel_needs_no_network() {
        let dir = tempfile::tempdir().unwrap();
        let tree = dir.path().join("kernel/linux-image-cloud-amd64");
        std::fs::create_dir_all(tree.join("boot")).unwrap();
        std::fs::write(tree.join("boot/config-6.1.0-9-cloud-amd64"), "").unwrap();
        let cache = Cache::new(dir.path());
        let error = fetch(&cache, None).unwrap_err().to_string();
        assert!(error.ends_with("found [\"config-6.1.0-9-cloud-amd64\"]"), "{error}");
        std::fs::write(tree.join("boot/vmlinuz-6.1.0-9-cloud-amd64"), "").unwrap();
        let kernel = fetch(&cache, None).unwrap();
        assert_eq!(kernel.release, "6.1.0-9-cloud-amd64");
        assert_eq!(kernel.image, tree.join("boot/vmlinuz-6.1.0-9-cloud-amd64"));
        assert_eq!(kernel.modules, tree.join("lib/modules/6.1.0-9-cloud-amd64"));
        forget(&cache).unwrap();
        assert!(!tree.exists());
    }
}
