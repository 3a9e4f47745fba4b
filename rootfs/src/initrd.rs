//! The guest's root: the agent, the kernel modules it needs, and busybox for a shell and for hooks.
//!
//! ```text
//! /init -> /usr/bin/nakai                 the agent, the kernel's first process
//! /usr/bin/kata-agent -> nakai            the name that operators and their tools look for
//! /bin /sbin /usr/bin /usr/sbin           busybox and a link for each applet
//! /lib/modules/RELEASE/kernel/...         modules, not compressed
//! /lib/modules/RELEASE/modules.dep        what needs what, of the carried modules
//! /lib/modules/RELEASE/modules.builtin    what needs no file
//! /etc/{passwd,group,resolv.conf}         root alone; the last is empty, to bind a sandbox's own on
//! /dev/{console,null}                     until devtmpfs is mounted: the kernel opens the console for /init
//! /proc /sys /run /tmp /root /mnt /var    mount points; /var/run -> /run
//! ```

use std::io::Write;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use flate2::{Compression as Level, GzBuilder};

use crate::busybox::{Busybox, BusyboxError};
use crate::cpio;
use crate::elf;
use crate::files::{self, FilesError};
use crate::kernel::{Kernel, KernelError};
use crate::modules::{Modules, ModulesError, plain};
use crate::tree::{Tree, TreeError};

/// Modules that every image carries, with what they need: the transports and disks of a virtual machine, and the
/// file systems that containers' roots are made of; and what passes devices on to containers. Each is loaded when
/// something needs it.
pub const MODULES: [&str; 14] = [
    "virtio_pci",
    "virtio_blk",
    "vmw_vsock_virtio_transport",
    "virtiofs",
    "overlay",
    "virtio_scsi",
    "sd_mod",
    "nd_pmem",
    "nfit",
    "virtio_net",
    "erofs",
    "dm_verity",
    "vfio_pci",
    "vfio_iommu_type1",
];

const AGENT: &str = "usr/bin/nakai";
const AGENT_ALIAS: &str = "usr/bin/kata-agent";

/// An initrd that can't be built.
#[derive(Debug, thiserror::Error)]
pub enum InitrdError {
    /// Reading a part or writing the result.
    #[error(transparent)]
    Files(#[from] FilesError),
    /// The kernel.
    #[error(transparent)]
    Kernel(#[from] KernelError),
    /// Its modules.
    #[error(transparent)]
    Modules(#[from] ModulesError),
    /// busybox.
    #[error(transparent)]
    Busybox(#[from] BusyboxError),
    /// Something that can't be where it was asked for.
    #[error(transparent)]
    Tree(#[from] TreeError),
    /// An agent that could not start in the guest.
    #[error("{}: is not static, it asks for {interpreter}: build it with `cargo build-agent`", path.display())]
    DynamicAgent {
        /// The agent.
        path: PathBuf,
        /// The dynamic linker it wants.
        interpreter: String,
    },
    /// A part of 4 GiB or more.
    #[error("the archive can't hold {0}")]
    Archive(#[source] std::io::Error),
}

/// How an initrd is compressed.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Compression {
    /// Not at all: the fastest to boot, above all without KVM.
    #[default]
    None,
    /// gzip, the one that every kernel can unpack.
    Gzip,
}

/// A further file, on the command line `SOURCE:DESTINATION[:MODE]` with an octal mode.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ExtraFile {
    /// The file on this machine.
    pub source: PathBuf,
    /// Its path in the image.
    pub destination: String,
    /// Its permission bits; if none are given, 755 for a file that its owner may execute and 644 for another.
    pub mode: Option<u32>,
}

/// Text that is no [`ExtraFile`].
#[derive(Debug, thiserror::Error)]
#[error("{0:?} is not SOURCE:DESTINATION or SOURCE:DESTINATION:MODE with an octal mode")]
pub struct ExtraFileError(String);

impl FromStr for ExtraFile {
    type Err = ExtraFileError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let error = || ExtraFileError(text.to_owned());
        let (source, destination, mode) = match text.split(':').collect::<Vec<_>>()[..] {
            [source, destination] => (source, destination, None),
            [source, destination, mode] => {
                let mode = u32::from_str_radix(mode, 8).ok().filter(|mode| *mode <= 0o7777);
                (source, destination, Some(mode.ok_or_else(error)?))
            }
            _ => return Err(error()),
        };
        if source.is_empty() || destination.is_empty() {
            return Err(error());
        }
        Ok(Self { source: source.into(), destination: destination.into(), mode })
    }
}

impl ExtraFile {
    fn add_to(&self, tree: &mut Tree) -> Result<(), InitrdError> {
        use std::os::unix::fs::PermissionsExt;
        let read = |source| FilesError::Read { path: self.source.clone(), source };
        let own_mode = std::fs::metadata(&self.source).map_err(read)?.permissions().mode();
        let default_mode = if own_mode & 0o100 == 0 { 0o644 } else { 0o755 };
        let content = files::read(&self.source)?;
        Ok(tree.file(&self.destination, self.mode.unwrap_or(default_mode), content)?)
    }
}

/// Collects what goes into an initrd.
#[derive(Debug, Clone)]
pub struct Builder {
    agent: PathBuf,
    kernel: Kernel,
    busybox: Busybox,
    modules: Vec<String>,
    extra: Vec<ExtraFile>,
    compression: Compression,
}

impl Builder {
    /// An initrd for `kernel` with [`MODULES`], in which `agent` is the first process.
    pub fn new(agent: impl Into<PathBuf>, kernel: Kernel, busybox: Busybox) -> Self {
        let modules = MODULES.iter().map(|&name| name.to_owned()).collect();
        Self { agent: agent.into(), kernel, busybox, modules, extra: vec![], compression: Compression::None }
    }

    /// Adds a module, with what it needs.
    pub fn module(mut self, name: impl Into<String>) -> Self {
        self.modules.push(name.into());
        self
    }

    /// Leaves out all modules named so far, [`MODULES`] included.
    pub fn no_modules(mut self) -> Self {
        self.modules.clear();
        self
    }

    /// Adds a file, for instance a hook.
    pub fn file(mut self, file: ExtraFile) -> Self {
        self.extra.push(file);
        self
    }

    /// Sets the compression.
    pub fn compression(mut self, compression: Compression) -> Self {
        self.compression = compression;
        self
    }

    /// The files of the guest's root.
    pub fn tree(&self) -> Result<Tree, InitrdError> {
        let mut tree = Tree::new();
        skeleton(&mut tree)?;
        self.busybox.add_to(&mut tree)?;
        self.add_agent(&mut tree)?;
        self.add_modules(&mut tree)?;
        self.extra.iter().try_for_each(|file| file.add_to(&mut tree))?;
        Ok(tree)
    }

    /// The initrd. The same inputs give the same bytes.
    pub fn build(&self) -> Result<Vec<u8>, InitrdError> {
        let tree = self.tree()?;
        let mut archive = Vec::new();
        match self.compression {
            Compression::None => cpio::write(&tree, &mut archive).map_err(InitrdError::Archive)?,
            Compression::Gzip => gzip(&tree, &mut archive).map_err(InitrdError::Archive)?,
        }
        Ok(archive)
    }

    /// Builds the initrd into a file, which is replaced in one step.
    pub fn write(&self, path: &Path) -> Result<(), InitrdError> {
        Ok(files::write(path, &self.build()?)?)
    }

    fn add_agent(&self, tree: &mut Tree) -> Result<(), InitrdError> {
        let program = files::read(&self.agent)?;
        if let Some(interpreter) = elf::interpreter(&program) {
            return Err(InitrdError::DynamicAgent { path: self.agent.clone(), interpreter });
        }
        tree.file(AGENT, 0o755, program)?;
        tree.symlink(AGENT_ALIAS, "nakai")?;
        Ok(tree.symlink("init", &format!("/{AGENT}"))?)
    }

    fn add_modules(&self, tree: &mut Tree) -> Result<(), InitrdError> {
        let dir = format!("lib/modules/{}", self.kernel.release);
        let modules = Modules::open(&self.kernel.modules)?;
        let paths = modules.closure(&self.modules)?;
        for path in &paths {
            tree.file(&format!("{dir}/{}", plain(path)), 0o644, modules.read(path)?)?;
        }
        tree.file(&format!("{dir}/modules.dep"), 0o644, modules.dependencies(&paths))?;
        Ok(tree.file(&format!("{dir}/modules.builtin"), 0o644, modules.builtin_list()?)?)
    }
}

/// Directories, device nodes and the files of `/etc`.
fn skeleton(tree: &mut Tree) -> Result<(), TreeError> {
    for path in ["dev", "etc", "mnt", "proc", "run", "sys", "var"] {
        tree.directory(path, 0o755)?;
    }
    tree.directory("root", 0o700)?;
    tree.directory("tmp", 0o1777)?;
    tree.symlink("var/run", "/run")?;
    tree.char_device("dev/console", 0o600, 5, 1)?;
    tree.char_device("dev/null", 0o666, 1, 3)?;
    tree.file("etc/passwd", 0o644, "root:x:0:0:root:/root:/bin/sh\n")?;
    tree.file("etc/group", 0o644, "root:x:0:\n")?;
    tree.file("etc/resolv.conf", 0o644, "")
}

fn gzip(tree: &Tree, output: &mut Vec<u8>) -> std::io::Result<()> {
    let mut encoder = GzBuilder::new().mtime(0).write(output, Level::best());
    cpio::write(tree, &mut encoder)?;
    encoder.finish()?.flush()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cpio::tests::parse;
    use crate::tree::Kind;
    use crate::{busybox, modules};
    use std::io::Read;
    use std::os::unix::fs::PermissionsExt;

    /// A builder over sample inputs in `dir`, with the sample's modules instead of the real ones.
    fn sample(dir: &Path) -> Builder {
        let kernel =
            Kernel { image: dir.join("vmlinuz"), release: "6.1.0-9".into(), modules: dir.join("modules") };
        modules::tests::sample(&kernel.modules);
        std::fs::write(dir.join("agent"), "#!/bin/sh\n").unwrap();
        Builder::new(dir.join("agent"), kernel, busybox::tests::sample()).no_modules().module("virtiofs")
    }

    #[test]
    fn the_guest_starts_the_agent_and_finds_its_modules() {
        let dir = tempfile::tempdir().unwrap();
        let tree = parse(&sample(dir.path()).build().unwrap());
        assert_eq!(tree.get("init").unwrap().kind, Kind::Symlink("/usr/bin/nakai".into()));
        assert_eq!(tree.get("usr/bin/nakai").unwrap().mode, 0o755);
        assert_eq!(tree.get("usr/bin/kata-agent").unwrap().kind, Kind::Symlink("nakai".into()));
        assert_eq!(tree.get("dev/console").unwrap().kind, Kind::CharDevice { major: 5, minor: 1 });
        assert_eq!(tree.get("bin/sh").unwrap().kind, Kind::Symlink("/bin/busybox".into()));
        let modules: Vec<_> =
            tree.entries().filter_map(|(path, _)| path.strip_prefix("lib/modules/6.1.0-9/")).collect();
        let files: Vec<_> = modules.into_iter().filter(|path| path.contains('.')).collect();
        let expected = [
            "kernel/fs/fuse/fuse.ko",
            "kernel/fs/fuse/virtiofs.ko",
            "kernel/virtio/virtio.ko",
            "kernel/virtio/virtio_ring.ko",
            "modules.builtin",
            "modules.dep",
        ];
        assert_eq!(files, expected);
    }

    #[test]
    fn the_same_inputs_give_the_same_bytes() {
        let (one, other) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        for compression in [Compression::None, Compression::Gzip] {
            let build = |dir: &Path| sample(dir).compression(compression).build().unwrap();
            // Other places, inodes, times and modes of the inputs make no difference.
            let first = build(one.path());
            std::fs::set_permissions(one.path().join("agent"), PermissionsExt::from_mode(0o600)).unwrap();
            assert!(first == build(one.path()));
            assert!(first == build(other.path()));
        }
    }

    #[test]
    fn gzip_holds_the_same_archive() {
        let dir = tempfile::tempdir().unwrap();
        let builder = sample(dir.path());
        let plain = builder.build().unwrap();
        let packed = builder.compression(Compression::Gzip).build().unwrap();
        let mut unpacked = Vec::new();
        flate2::read::GzDecoder::new(&packed[..]).read_to_end(&mut unpacked).unwrap();
        assert!(packed.len() < plain.len());
        assert_eq!(unpacked, plain);
    }

    #[test]
    fn further_files_have_the_mode_asked_for_or_a_usual_one() {
        let dir = tempfile::tempdir().unwrap();
        let hook = dir.path().join("hook");
        std::fs::write(&hook, "#!/bin/sh\n").unwrap();
        let build = |destination: &str| {
            let file = format!("{}:{destination}", hook.display()).parse().unwrap();
            sample(dir.path()).file(file).tree()
        };
        let mode = |destination: &str, path: &str| build(destination).unwrap().get(path).unwrap().mode;
        assert_eq!(mode("/usr/share/hooks/a", "usr/share/hooks/a"), 0o644);
        assert_eq!(mode("a:4711", "a"), 0o4711);
        std::fs::set_permissions(&hook, PermissionsExt::from_mode(0o700)).unwrap();
        assert_eq!(mode("a", "a"), 0o755);
        assert_eq!(build("/init").unwrap_err().to_string(), "init is in the image already");
    }

    #[test]
    fn texts_that_are_no_extra_file() {
        for text in ["", "a", "a:", ":b", "a:b:", "a:b:9", "a:b:10000", "a:b:644:c"] {
            text.parse::<ExtraFile>().unwrap_err();
        }
    }

    #[test]
    fn a_dynamic_agent_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let program = std::fs::read("/bin/true").unwrap();
        if elf::interpreter(&program).is_some() {
            let builder = sample(dir.path());
            std::fs::write(dir.path().join("agent"), program).unwrap();
            let error = builder.build().unwrap_err().to_string();
            assert!(error.contains("agent: is not static, it asks for /"), "{error}");
        }
    }
}
