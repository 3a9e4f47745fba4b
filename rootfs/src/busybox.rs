//! busybox: the guest's shell and tools, and a small root file system for containers.
//!
//! The program is the distribution's `busybox-static`; what it can do is asked from itself.

use std::path::{Path, PathBuf};

use crate::command::{CommandError, command, run};
use crate::elf;
use crate::files::{self, FilesError};
use crate::tree::{Entry, Kind, Tree, TreeError};

/// Where distributions install it.
const PLACES: [&str; 2] = ["/bin/busybox", "/usr/bin/busybox"];
/// Where it is in an image.
const IN_IMAGE: &str = "bin/busybox";
/// Applets that are left out: in an image something else is the first process.
const LEFT_OUT: [&str; 2] = ["init", "linuxrc"];

/// The uid and gid of the user `app` in [`root`].
pub const APP: u32 = 1000;

const PASSWD: &str = "\
root:x:0:0:root:/root:/bin/sh
daemon:x:1:1:daemon:/usr/sbin:/bin/false
app:x:1000:1000:app:/home/app:/bin/sh
nobody:x:65534:65534:nobody:/nonexistent:/bin/false
";

const GROUP: &str = "\
root:x:0:
daemon:x:1:
app:x:1000:
nogroup:x:65534:
";

/// A busybox that can't be used.
#[derive(Debug, thiserror::Error)]
pub enum BusyboxError {
    /// Reading the program, or writing a root.
    #[error(transparent)]
    Files(#[from] FilesError),
    /// Asking the program for its applets.
    #[error(transparent)]
    Command(#[from] CommandError),
    /// There is none on this machine.
    #[error("no busybox here, looked for {}: install the package busybox-static", PLACES.join(" and "))]
    Missing,
    /// It needs a C library, which an image does not have.
    #[error("{}: is not static, it asks for {interpreter}: install the package busybox-static", path.display())]
    Dynamic {
        /// The program.
        path: PathBuf,
        /// The dynamic linker it wants.
        interpreter: String,
    },
    /// Two things in one place.
    #[error(transparent)]
    Tree(#[from] TreeError),
}

/// A static busybox.
#[derive(Debug, Clone)]
pub struct Busybox {
    program: Vec<u8>,
    /// Relative paths, as `bin/sh`.
    applets: Vec<String>,
}

impl Busybox {
    /// This machine's.
    pub fn find() -> Result<Self, BusyboxError> {
        let path = PLACES.iter().map(Path::new).find(|path| path.exists()).ok_or(BusyboxError::Missing)?;
        Self::open(path)
    }

    /// The one at a path.
    pub fn open(path: &Path) -> Result<Self, BusyboxError> {
        let program = files::read(path)?;
        if let Some(interpreter) = elf::interpreter(&program) {
            return Err(BusyboxError::Dynamic { path: path.into(), interpreter });
        }
        let list = run(command(&path.to_string_lossy()).arg("--list-full"))?;
        Ok(Self { program, applets: applets(&list) })
    }

    /// The paths of the applets, relative to a root.
    pub fn applets(&self) -> &[String] {
        &self.applets
    }

    /// Puts the program and a link for each applet into a tree.
    pub fn add_to(&self, tree: &mut Tree) -> Result<(), TreeError> {
        tree.file(IN_IMAGE, 0o755, self.program.as_slice())?;
        self.applets.iter().try_for_each(|applet| tree.symlink(applet, &format!("/{IN_IMAGE}")))
    }
}

/// The applets in what `busybox --list-full` prints.
fn applets(list: &str) -> Vec<String> {
    let wanted = |path: &&str| {
        let name = path.rsplit_once('/').map_or(*path, |(_, name)| name);
        !path.is_empty() && *path != IN_IMAGE && !LEFT_OUT.contains(&name)
    };
    list.lines().map(str::trim).filter(wanted).map(str::to_owned).collect()
}

/// A root file system for containers: the users root, daemon, app ([`APP`]) and nobody (65534), and all tools.
pub fn root(busybox: &Busybox) -> Result<Tree, TreeError> {
    let mut tree = Tree::new();
    busybox.add_to(&mut tree)?;
    for path in ["dev", "etc", "home", "mnt", "proc", "run", "sys", "usr/lib", "var/log"] {
        tree.directory(path, 0o755)?;
    }
    for (path, mode) in [("root", 0o700), ("tmp", 0o1777), ("var/tmp", 0o1777)] {
        tree.directory(path, mode)?;
    }
    tree.insert("home/app", Entry { kind: Kind::Directory, mode: 0o755, owner: (APP, APP) })?;
    tree.symlink("var/run", "/run")?;
    tree.file("etc/passwd", 0o644, PASSWD)?;
    tree.file("etc/group", 0o644, GROUP)?;
    tree.file("etc/hosts", 0o644, "127.0.0.1 localhost\n::1 localhost\n")?;
    // Places where the agent binds its own.
    tree.file("etc/hostname", 0o644, "")?;
    tree.file("etc/resolv.conf", 0o644, "")?;
    Ok(tree)
}

/// Writes [`root`] into a folder.
pub fn write_root(busybox: &Busybox, dir: &Path) -> Result<(), BusyboxError> {
    Ok(root(busybox)?.write_to(dir)?)
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// One that needs no program on the machine.
    pub(crate) fn sample() -> Busybox {
        Busybox {
            program: b"busybox".to_vec(),
            applets: applets("bin/busybox\nbin/sh\nsbin/init\nusr/bin/env\n"),
        }
    }

    #[test]
    fn applets_are_all_but_the_first_process_and_the_program() {
        let list = "bin/ash\nbin/busybox\nlinuxrc\nsbin/init\nusr/bin/[[\n\nusr/sbin/chroot\n";
        assert_eq!(applets(list), ["bin/ash", "usr/bin/[[", "usr/sbin/chroot"]);
    }

    #[test]
    fn a_container_root_has_tools_users_and_their_homes() {
        let tree = root(&sample()).unwrap();
        assert_eq!(tree.get("bin/sh").unwrap().kind, Kind::Symlink("/bin/busybox".into()));
        assert_eq!(tree.get("bin/busybox").unwrap().mode, 0o755);
        assert_eq!(tree.get("home/app").unwrap().owner, (APP, APP));
        assert_eq!(tree.get("tmp").unwrap().mode, 0o1777);
        for user in PASSWD.lines().map(|line| line.split(':').collect::<Vec<_>>()) {
            assert_eq!(user.len(), 7, "{user:?}");
            let group = GROUP.lines().any(|line| line.split(':').nth(2) == Some(user[3]));
            assert!(group, "{user:?} has no group");
        }
    }

    #[test]
    fn a_dynamic_busybox_is_refused() {
        let program = Path::new("/bin/true");
        if elf::interpreter(&files::read(program).unwrap()).is_some() {
            let error = Busybox::open(program).unwrap_err().to_string();
            assert!(error.starts_with("/bin/true: is not static, it asks for /"), "{error}");
        }
    }
}
