//! Kernel modules, loaded by finit_module(2) with what they depend on: a guest image needs no modprobe.
//!
//! What depends on what stands in `modules.dep`, which depmod(8) made when the image was built; what a module asks for
//! only once it runs (as ext4 for its checksum), in `modules.softdep`. They are read
//! for each load rather than kept: loads are few, and on a full distribution's image the files are large.
//!
//! Invariants: a name is a single path component (it may come from the host), and only files that
//! `modules.dep` lists are loaded. One load at a time, so that two callers who need the same module both find
//! it ready when their call is over. Built in, loaded before, or loaded meanwhile by somebody else: all fine.

use std::ffi::CString;
use std::fs::File;
use std::io::{self, BufRead as _, BufReader};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use nix::errno::Errno;
use nix::kmod::{ModuleInitFlags, finit_module};

/// `MODULE_INIT_COMPRESSED_FILE` of linux/module.h, since Linux 5.17.
const COMPRESSED: ModuleInitFlags = ModuleInitFlags::from_bits_retain(4);

/// Why a module is not there.
#[derive(Debug, thiserror::Error)]
pub enum ModuleError {
    /// A name that can't be one.
    #[error("module name {name:?} must be one file name")]
    Name {
        /// What was given.
        name: String,
    },
    /// A parameter that can't be one.
    #[error("module {name}: parameter {parameter:?} holds a NUL byte")]
    Parameter {
        /// The module.
        name: String,
        /// What was given.
        parameter: String,
    },
    /// An index file can't be read.
    #[error("module {name}: {path}: {source}", path = path.display())]
    Index {
        /// The module that was wanted.
        name: String,
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// No such module.
    #[error("module {name}: not found beneath {root}", root = root.display())]
    NotFound {
        /// The module.
        name: String,
        /// Where the kernel's modules are.
        root: PathBuf,
    },
    /// The module's file can't be opened.
    #[error("module {name}: open {file}: {source}", file = file.display())]
    Open {
        /// The module that was wanted.
        name: String,
        /// The file, perhaps of a module it depends on.
        file: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The kernel refuses the module.
    #[error("module {name}: load {file}: {source}{hint}", file = file.display(), hint = hint(source, file))]
    Load {
        /// The module that was wanted.
        name: String,
        /// The file, perhaps of a module it depends on.
        file: PathBuf,
        /// Why.
        source: io::Error,
    },
}

/// What the error number of a finit_module(2) usually means.
fn hint(error: &io::Error, file: &Path) -> &'static str {
    match error.raw_os_error().map(Errno::from_raw) {
        Some(Errno::EOPNOTSUPP | Errno::EINVAL | Errno::ENOEXEC) if is_compressed(file) => {
            ", does the kernel decompress modules (CONFIG_MODULE_DECOMPRESS)?"
        }
        Some(Errno::ENOEXEC) => ", was it built for this kernel?",
        Some(Errno::EKEYREJECTED | Errno::ENOKEY) => ", its signature is not accepted",
        Some(Errno::ENOENT) => ", a symbol or a parameter is unknown: see the kernel's log",
        Some(Errno::ENODEV) => ", its device is not there",
        Some(Errno::EPERM) => ", loading modules is forbidden here",
        _ => "",
    }
}

/// The modules of a kernel.
#[derive(Debug)]
pub struct Modules {
    root: PathBuf,
    proc: PathBuf,
    sys: PathBuf,
    loading: Mutex<()>,
}

impl Modules {
    /// The modules beneath `root`, which is `/lib/modules/<release>`.
    pub fn new(root: PathBuf) -> Self {
        Self::with_trees(root, "/proc".into(), "/sys".into())
    }

    /// The modules of the kernel that runs.
    pub fn of_this_kernel() -> Self {
        // uname can't fail; if it did, nothing would be found and the errors would say where.
        let release = nix::sys::utsname::uname().map(|name| name.release().to_owned()).unwrap_or_default();
        Self::new(Path::new("/lib/modules").join(release))
    }

    /// As [`Modules::new`], with other places for `/proc` and `/sys`.
    pub fn with_trees(root: PathBuf, proc: PathBuf, sys: PathBuf) -> Self {
        Self { root, proc, sys, loading: Mutex::new(()) }
    }

    /// Loads `name` with `params` (each `key=value` or `key`), after what it depends on.
    ///
    /// A module that is there already keeps the parameters it has. `-` and `_` in names are the same. An
    /// alias of the module does as well, if it has no wildcards.
    ///
    /// # Errors
    ///
    /// [`ModuleError`].
    pub fn load(&self, name: &str, params: &[String]) -> Result<(), ModuleError> {
        check_name(name)?;
        let params = parameters(name, params)?;
        let _one_at_a_time = self.loading.lock().unwrap_or_else(PoisonError::into_inner);
        if self.is_there(name) {
            return Ok(());
        }
        let Some(files) = self.files_for(name)? else {
            let not_found = || ModuleError::NotFound { name: name.to_owned(), root: self.root.clone() };
            return if self.is_built_in(name) { Ok(()) } else { Err(not_found()) };
        };
        for wish in files.iter().filter_map(|file| stem(file)).flat_map(|module| self.wishes(module)) {
            // It may be built in, or not be needed here.
            for file in self.files_for(&wish).ok().flatten().unwrap_or_default() {
                let _ = self.insert(&wish, &file, c"");
            }
        }
        let wanted = files.len().saturating_sub(1);
        for (n, file) in files.iter().enumerate() {
            self.insert(name, file, if n == wanted { &params } else { c"" })?;
        }
        Ok(())
    }

    /// Makes sure that the kernel knows the file system `fstype`, if need be by loading the module of that
    /// name or alias.
    ///
    /// # Errors
    ///
    /// [`ModuleError`].
    pub fn load_filesystem(&self, fstype: &str) -> Result<(), ModuleError> {
        // `fuse.name` is the file system `fuse`, as for mount(2).
        let fstype = fstype.split_once('.').map_or(fstype, |(fstype, _)| fstype);
        check_name(fstype)?;
        let path = self.proc.join("filesystems");
        let known = std::fs::read_to_string(&path).map_err(|source| index_error(fstype, &path, source))?;
        if known.lines().any(|line| line.split_whitespace().next_back() == Some(fstype)) {
            return Ok(());
        }
        match self.load(fstype, &[]) {
            Err(ModuleError::NotFound { .. }) => match self.load(&format!("fs-{fstype}"), &[]) {
                Err(ModuleError::NotFound { root, .. }) => {
                    Err(ModuleError::NotFound { name: fstype.to_owned(), root })
                }
                done => done,
            },
            done => done,
        }
    }

    /// Whether the kernel shows the module, loaded or built in (with parameters).
    fn is_there(&self, name: &str) -> bool {
        self.sys.join("module").join(normal(name)).exists()
    }

    fn is_built_in(&self, name: &str) -> bool {
        // No such file: nothing is known to be built in.
        std::fs::read_to_string(self.root.join("modules.builtin"))
            .is_ok_and(|list| list.lines().any(|path| is_module(path, name)))
    }

    /// The files to load for `name`, in that order. `None`: it is not in `modules.dep`.
    fn files_for(&self, name: &str) -> Result<Option<Vec<PathBuf>>, ModuleError> {
        if let Some(files) = self.dependencies(name, name)? {
            return Ok(Some(files));
        }
        match self.alias(name) {
            Some(module) => self.dependencies(name, &module),
            None => Ok(None),
        }
    }

    fn dependencies(&self, wanted: &str, module: &str) -> Result<Option<Vec<PathBuf>>, ModuleError> {
        let path = self.root.join("modules.dep");
        let file = File::open(&path).map_err(|source| index_error(wanted, &path, source))?;
        for line in BufReader::new(file).lines() {
            let line = line.map_err(|source| index_error(wanted, &path, source))?;
            let Some((file, needs)) = line.split_once(':') else { continue };
            if is_module(file, module) {
                // depmod lists what is needed last first.
                let files = needs.split_whitespace().rev().chain([file]);
                return Ok(Some(files.map(|file| self.root.join(file)).collect()));
            }
        }
        Ok(None)
    }

    /// The module that `modules.alias` knows by another name.
    fn alias(&self, name: &str) -> Option<String> {
        let file = File::open(self.root.join("modules.alias")).ok()?;
        BufReader::new(file).lines().map_while(Result::ok).find_map(|line| {
            let mut words = line.split_whitespace();
            let matches = words.next() == Some("alias") && words.next().map(normal) == Some(normal(name));
            words.next().filter(|_| matches).map(str::to_owned)
        })
    }

    /// What should be loaded before `module`: `softdep module pre: ... post: ...` (modprobe.d(5)).
    fn wishes(&self, module: &str) -> Vec<String> {
        let Ok(file) = File::open(self.root.join("modules.softdep")) else { return Vec::new() };
        let mut wishes = Vec::new();
        for line in BufReader::new(file).lines().map_while(Result::ok) {
            let mut words = line.split_whitespace();
            if words.next() == Some("softdep") && words.next().map(normal) == Some(normal(module)) {
                let before =
                    words.skip_while(|word| *word != "pre:").skip(1).take_while(|word| *word != "post:");
                wishes.extend(before.filter(|name| check_name(name).is_ok()).map(str::to_owned));
            }
        }
        wishes
    }

    fn insert(&self, name: &str, file: &Path, params: &std::ffi::CStr) -> Result<(), ModuleError> {
        if stem(file).is_some_and(|module| self.is_there(module)) {
            return Ok(());
        }
        let open = File::open(file).map_err(|source| ModuleError::Open {
            name: name.to_owned(),
            file: file.to_owned(),
            source,
        })?;
        let flags = if is_compressed(file) { COMPRESSED } else { ModuleInitFlags::empty() };
        match finit_module(open, params, flags) {
            Ok(()) | Err(Errno::EEXIST) => Ok(()),
            Err(errno) => {
                Err(ModuleError::Load { name: name.to_owned(), file: file.to_owned(), source: errno.into() })
            }
        }
    }
}

fn index_error(name: &str, path: &Path, source: io::Error) -> ModuleError {
    ModuleError::Index { name: name.to_owned(), path: path.to_owned(), source }
}

fn check_name(name: &str) -> Result<(), ModuleError> {
    let harmless = |c: char| !c.is_control() && !c.is_whitespace() && c != '/';
    if name.is_empty() || name == "." || name == ".." || !name.chars().all(harmless) {
        return Err(ModuleError::Name { name: name.to_owned() });
    }
    Ok(())
}

/// The parameters as finit_module(2) takes them: one text, parted by blanks.
fn parameters(name: &str, params: &[String]) -> Result<CString, ModuleError> {
    CString::new(params.join(" ")).map_err(|_| ModuleError::Parameter {
        name: name.to_owned(),
        parameter: params.iter().find(|text| text.contains('\0')).cloned().unwrap_or_default(),
    })
}

fn normal(name: &str) -> String {
    name.replace('-', "_")
}

/// The module's name in `kernel/fs/fuse/virtiofs.ko.xz`.
fn stem(file: &Path) -> Option<&str> {
    file.file_name()?.to_str()?.split_once(".ko").map(|(stem, _)| stem)
}

fn is_module(file: &str, name: &str) -> bool {
    stem(Path::new(file)).is_some_and(|stem| normal(stem) == normal(name))
}

fn is_compressed(file: &Path) -> bool {
    file.extension().is_some_and(|extension| extension != "ko")
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    struct Fixture {
        dir: tempfile::TempDir,
        modules: Modules,
    }

    fn fixture() -> Fixture {
        let dir = tempfile::tempdir().unwrap();
        let (root, proc, sys) = (dir.path().join("lib"), dir.path().join("proc"), dir.path().join("sys"));
        for path in [&root, &proc, &sys.join("module/vsock")] {
            fs::create_dir_all(path).unwrap();
        }
        let dep = "kernel/net/vsock.ko:\n\
                   kernel/net/vmw_vsock_virtio_transport.ko: kernel/net/common.ko kernel/net/vsock.ko\n\
                   kernel/fs/isofs/isofs.ko.xz:\n\
                   kernel/drivers/dm-mod.ko: kernel/drivers/b.ko kernel/drivers/a.ko\n";
        fs::write(root.join("modules.dep"), dep).unwrap();
        fs::write(root.join("modules.builtin"), "kernel/fs/ext4/ext4.ko\nkernel/fs/x-y.ko\n").unwrap();
        fs::write(root.join("modules.alias"), "# Aliases\nalias fs-iso9660 isofs\nalias pci:v* x\n").unwrap();
        fs::write(proc.join("filesystems"), "nodev\tproc\nnodev\tfuse\n\text4\n").unwrap();
        let modules = Modules::with_trees(root, proc, sys);
        Fixture { dir, modules }
    }

    fn names(files: Option<Vec<PathBuf>>) -> Vec<String> {
        files.unwrap().iter().map(|file| stem(file).unwrap().to_owned()).collect()
    }

    #[test]
    fn what_a_module_needs_comes_first() {
        let Fixture { dir: _dir, modules } = fixture();
        assert_eq!(names(modules.files_for("dm_mod").unwrap()), ["a", "b", "dm-mod"]);
        assert_eq!(names(modules.files_for("vmw-vsock_virtio-transport").unwrap()).len(), 3);
        assert_eq!(names(modules.files_for("fs-iso9660").unwrap()), ["isofs"]);
        assert_eq!(modules.files_for("virtiofs").unwrap(), None);
    }

    #[test]
    fn what_a_module_wishes_is_known() {
        let Fixture { dir, modules } = fixture();
        assert_eq!(modules.wishes("isofs"), [""; 0]);
        let soft = "# Soft dependencies\nsoftdep x_y pre: crc32c ../evil lz-4 post: later\nsoftdep b post: a\n\
                    softdep x-y pre: sha1\n";
        fs::write(dir.path().join("lib/modules.softdep"), soft).unwrap();
        assert_eq!(modules.wishes("x-y"), ["crc32c", "lz-4", "sha1"]);
        assert_eq!(modules.wishes("b"), [""; 0]);
    }

    #[test]
    fn what_is_there_is_fine() {
        let Fixture { dir: _dir, modules } = fixture();
        for name in ["vsock", "ext4", "x_y", "x-y"] {
            modules.load(name, &["a=1".to_owned()]).unwrap();
        }
        for fstype in ["proc", "ext4", "fuse.sshfs"] {
            modules.load_filesystem(fstype).unwrap();
        }
    }

    #[test]
    fn errors_name_the_module_and_where_it_was_looked_for() {
        let Fixture { dir, modules } = fixture();
        let root = dir.path().join("lib");
        let error = modules.load_filesystem("virtiofs").unwrap_err().to_string();
        assert_eq!(error, format!("module virtiofs: not found beneath {}", root.display()));
        let error = modules.load("isofs", &[]).unwrap_err().to_string();
        let file = root.join("kernel/fs/isofs/isofs.ko.xz");
        assert_eq!(
            error,
            format!("module isofs: open {}: No such file or directory (os error 2)", file.display())
        );
        fs::remove_file(root.join("modules.dep")).unwrap();
        let error = modules.load("isofs", &[]).unwrap_err().to_string();
        assert!(error.contains("modules.dep: No such file"), "{error}");
    }

    #[test]
    fn names_and_parameters_are_checked() {
        let Fixture { dir: _dir, modules } = fixture();
        for name in ["", ".", "..", "a/b", "../a", "a b", "a\n", "a\0"] {
            assert!(matches!(modules.load(name, &[]), Err(ModuleError::Name { .. })), "{name:?}");
            assert!(matches!(modules.load_filesystem(name), Err(ModuleError::Name { .. })), "{name:?}");
        }
        let error = modules.load("isofs", &["a=1".to_owned(), "b\0".to_owned()]).unwrap_err().to_string();
        assert_eq!(error, "module isofs: parameter \"b\\0\" holds a NUL byte");
    }

    #[test]
    fn refusals_come_with_a_hint() {
        let load = |file: &str, errno: Errno| {
            ModuleError::Load { name: "m".into(), file: file.into(), source: errno.into() }.to_string()
        };
        assert!(load("/m.ko.xz", Errno::EOPNOTSUPP).ends_with("(CONFIG_MODULE_DECOMPRESS)?"));
        assert!(load("/m.ko", Errno::ENOEXEC).ends_with("was it built for this kernel?"));
        assert_eq!(load("/m.ko", Errno::EIO), "module m: load /m.ko: Input/output error (os error 5)");
    }
}
