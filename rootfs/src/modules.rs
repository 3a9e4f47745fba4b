//! A kernel's module folder: which modules there are, and which others each of them needs.
//!
//! Reads what depmod(8) writes: `modules.dep` has a line `path: path...` per module, with what it needs behind the
//! colon, and `modules.builtin` the paths of those that are part of the kernel itself.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use crate::command::{CommandError, command, run_bytes};
use crate::files::{self, FilesError};

/// How a distribution may compress modules, and what unpacks them to standard output. An image has them plain: the
/// guest has no time to unpack and need not know how.
const COMPRESSIONS: [(&str, [&str; 2]); 3] =
    [(".xz", ["xz", "-dc"]), (".zst", ["zstd", "-dcq"]), (".gz", ["gzip", "-dc"])];

/// A module folder that can't be used.
#[derive(Debug, thiserror::Error)]
pub enum ModulesError {
    /// Reading the folder's lists or a module.
    #[error(transparent)]
    Files(#[from] FilesError),
    /// A line of `modules.dep` without a colon.
    #[error("{}: line {line:?} has no colon", path.display())]
    Line {
        /// The file.
        path: PathBuf,
        /// The line.
        line: String,
    },
    /// A module that the kernel does not have, neither as a file nor built in.
    #[error("{}: the kernel has no module {name}", dir.display())]
    Unknown {
        /// The module.
        name: String,
        /// The module folder.
        dir: PathBuf,
    },
    /// Unpacking a compressed module.
    #[error(transparent)]
    Unpack(#[from] CommandError),
}

/// The modules of one kernel release.
#[derive(Debug)]
pub struct Modules {
    dir: PathBuf,
    /// By name: the path under `dir`, and the paths of what it needs.
    loadable: BTreeMap<String, (String, Vec<String>)>,
    builtin: BTreeSet<String>,
}

impl Modules {
    /// Reads the lists of `dir`, a folder `lib/modules/RELEASE`.
    pub fn open(dir: &Path) -> Result<Self, ModulesError> {
        let path = dir.join("modules.dep");
        let mut loadable = BTreeMap::new();
        for line in files::read_text(&path)?.lines() {
            let (module, needs) = line
                .split_once(':')
                .ok_or_else(|| ModulesError::Line { path: path.clone(), line: line.into() })?;
            let needs = needs.split_whitespace().map(str::to_owned).collect();
            loadable.insert(name_of(module), (module.to_owned(), needs));
        }
        let builtin = builtin_list(dir)?.lines().map(name_of).collect();
        Ok(Self { dir: dir.into(), loadable, builtin })
    }

    /// Paths of the modules and of all that they need, in an order in which they can be loaded. A name may have `-`
    /// for `_`. Built-in modules need no file and are left out.
    pub fn closure<S: AsRef<str>>(&self, names: &[S]) -> Result<Vec<&str>, ModulesError> {
        let mut order = Vec::new();
        let mut seen = BTreeSet::new();
        for name in names {
            self.visit(&name_of(name.as_ref()), &mut seen, &mut order)?;
        }
        Ok(order)
    }

    fn visit<'a>(
        &'a self,
        name: &str,
        seen: &mut BTreeSet<String>,
        order: &mut Vec<&'a str>,
    ) -> Result<(), ModulesError> {
        let Some((path, needs)) = self.loadable.get(name) else {
            if self.builtin.contains(name) {
                return Ok(());
            }
            return Err(ModulesError::Unknown { name: name.into(), dir: self.dir.clone() });
        };
        if !seen.insert(name.into()) {
            return Ok(());
        }
        // modules.dep names what has to be loaded first last.
        for need in needs.iter().rev() {
            self.visit(&name_of(need), seen, order)?;
        }
        order.push(path);
        Ok(())
    }

    /// The module at a path that [`Self::closure`] gave, not compressed.
    pub fn read(&self, path: &str) -> Result<Vec<u8>, ModulesError> {
        let file = self.dir.join(path);
        match COMPRESSIONS.iter().find(|(suffix, _)| path.ends_with(suffix)) {
            Some((_, [program, option])) => Ok(run_bytes(command(program).arg(option).arg(file))?),
            None => Ok(files::read(&file)?),
        }
    }

    /// A `modules.dep` of the given modules alone, for plain files.
    pub fn dependencies(&self, paths: &[&str]) -> String {
        let lines: BTreeSet<String> = paths.iter().filter_map(|path| self.line(path)).collect();
        lines.into_iter().collect()
    }

    /// The kernel's own `modules.builtin`, empty where it has none.
    pub fn builtin_list(&self) -> Result<String, ModulesError> {
        Ok(builtin_list(&self.dir)?)
    }

    fn line(&self, path: &str) -> Option<String> {
        let (path, needs) = self.loadable.get(&name_of(path))?;
        let needs: String = needs.iter().map(|need| format!(" {}", plain(need))).collect();
        Some(format!("{}:{needs}\n", plain(path)))
    }
}

fn builtin_list(dir: &Path) -> Result<String, FilesError> {
    let path = dir.join("modules.builtin");
    if path.exists() { files::read_text(&path) } else { Ok(String::new()) }
}

/// The path without the suffix of a compression.
pub fn plain(path: &str) -> &str {
    COMPRESSIONS.iter().find_map(|(suffix, _)| path.strip_suffix(suffix)).unwrap_or(path)
}

/// The name of the module at a path: no folder, no suffix, `_` for `-`, as the kernel has it.
fn name_of(path: &str) -> String {
    let file = path.rsplit_once('/').map_or(path, |(_, file)| file);
    let file = plain(file);
    file.strip_suffix(".ko").unwrap_or(file).replace('-', "_")
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// The shape of a real one: what is needed in reverse order of loading, dashes in file names, compressed files.
    pub(crate) const DEP: &str = "\
kernel/fs/fuse/virtiofs.ko: kernel/fs/fuse/fuse.ko kernel/virtio/virtio.ko kernel/virtio/virtio_ring.ko
kernel/fs/fuse/fuse.ko:
kernel/virtio/virtio.ko:
kernel/virtio/virtio_ring.ko: kernel/virtio/virtio.ko
kernel/virtio/virtio_pci.ko.xz: kernel/virtio/virtio_ring.ko kernel/virtio/virtio.ko
kernel/net/vsock/virtio-vsock.ko:
kernel/a/ring_a.ko: kernel/a/ring_b.ko
kernel/a/ring_b.ko: kernel/a/ring_a.ko
";

    pub(crate) fn sample(dir: &Path) {
        std::fs::create_dir_all(dir).unwrap();
        std::fs::write(dir.join("modules.dep"), DEP).unwrap();
        std::fs::write(dir.join("modules.builtin"), "kernel/fs/ext4/ext4.ko\n").unwrap();
        for line in DEP.lines() {
            let path = dir.join(line.split_once(':').unwrap().0);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(&path, format!("module {line}")).unwrap();
        }
    }

    fn closure(names: &[&str]) -> Result<Vec<String>, ModulesError> {
        let dir = tempfile::tempdir().unwrap();
        sample(dir.path());
        let modules = Modules::open(dir.path())?;
        modules.closure(names).map(|paths| paths.into_iter().map(str::to_owned).collect())
    }

    #[test]
    fn what_is_needed_comes_first_and_once() {
        let paths = closure(&["virtiofs", "virtio_pci", "virtio-pci"]).unwrap();
        let expected = [
            "kernel/virtio/virtio.ko",
            "kernel/virtio/virtio_ring.ko",
            "kernel/fs/fuse/fuse.ko",
            "kernel/fs/fuse/virtiofs.ko",
            "kernel/virtio/virtio_pci.ko.xz",
        ];
        assert_eq!(paths, expected);
    }

    #[test]
    fn dashes_built_ins_and_circles() {
        assert_eq!(closure(&["virtio_vsock"]).unwrap(), ["kernel/net/vsock/virtio-vsock.ko"]);
        assert!(closure(&["ext4"]).unwrap().is_empty());
        assert_eq!(closure(&["ring_a"]).unwrap(), ["kernel/a/ring_b.ko", "kernel/a/ring_a.ko"]);
    }

    #[test]
    fn an_unknown_module_is_named() {
        let error = closure(&["virtiofs", "nvme"]).unwrap_err().to_string();
        assert!(error.ends_with(": the kernel has no module nvme"), "{error}");
    }

    #[test]
    fn the_list_of_some_modules_names_plain_files() {
        let dir = tempfile::tempdir().unwrap();
        sample(dir.path());
        let modules = Modules::open(dir.path()).unwrap();
        let paths = modules.closure(&["virtio_pci"]).unwrap();
        assert_eq!(
            modules.dependencies(&paths),
            "kernel/virtio/virtio.ko:\n\
             kernel/virtio/virtio_pci.ko: kernel/virtio/virtio_ring.ko kernel/virtio/virtio.ko\n\
             kernel/virtio/virtio_ring.ko: kernel/virtio/virtio.ko\n"
        );
    }

    #[test]
    fn a_compressed_module_is_unpacked() {
        let dir = tempfile::tempdir().unwrap();
        sample(dir.path());
        std::fs::write(dir.path().join("a.ko"), "plain").unwrap();
        crate::command::run(command("gzip").arg(dir.path().join("a.ko"))).unwrap();
        let modules = Modules::open(dir.path()).unwrap();
        assert_eq!(modules.read("a.ko.gz").unwrap(), b"plain");
    }
}
