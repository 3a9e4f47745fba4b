//! A real distribution's root file system for containers: the minimal Debian (or Ubuntu) that debootstrap makes.
//!
//! The release is this machine's own, or Debian 12 on a machine of another kind, and it comes from the mirror that
//! this machine's apt uses. Needs root, for the owners of the files and the chroot in which packages are set up.

use std::path::{Path, PathBuf};

use crate::cache::Cache;
use crate::command::{CommandError, PAUSES, command, retry, run};
use crate::files::{self, FilesError};

/// The release where the machine's own is not known.
const DEFAULT_SUITE: &str = "bookworm";
/// What debootstrap leaves that no container needs: package lists, downloads and logs.
const SUPERFLUOUS: [&str; 3] = ["var/lib/apt/lists", "var/cache/apt", "var/log"];

/// A root that can't be made.
#[derive(Debug, thiserror::Error)]
pub enum DebianError {
    /// Reading or writing a file.
    #[error(transparent)]
    Files(#[from] FilesError),
    /// Asking apt, bootstrapping, packing or unpacking.
    #[error(transparent)]
    Command(#[from] CommandError),
}

/// A tar archive of the root of a release (this machine's, if none is given). Only the first call for a cache needs
/// a network, and about a minute.
pub fn fetch(cache: &Cache, suite: Option<&str>) -> Result<PathBuf, DebianError> {
    let suite = suite.map_or_else(own_suite, str::to_owned);
    cache.get_or_make(&format!("debian/{suite}.tar"), |work, archive| bootstrap(&suite, work, archive))
}

/// Unpacks a root into a folder that is made for it. A folder that is there already is left as it is.
pub fn unpack(archive: &Path, dir: &Path) -> Result<(), DebianError> {
    let name = dir.file_name().map_or("root".into(), |name| name.to_string_lossy());
    let parent = dir.parent().unwrap_or(dir);
    Cache::new(parent).get_or_make::<DebianError>(&name, |_, product| {
        files::create_dir(product)?;
        let options = ["--extract", "--numeric-owner", "--same-permissions", "--file"];
        run(command("tar").args(options).arg(archive).arg("--directory").arg(product))?;
        Ok(())
    })?;
    Ok(())
}

fn bootstrap(suite: &str, work: &Path, archive: &Path) -> Result<(), DebianError> {
    // Debian keeps it, and the tools it calls, out of a user's PATH.
    let path = format!("{}:/usr/sbin:/sbin", std::env::var("PATH").unwrap_or_default());
    let proxy = apt_proxy()?.map(|proxy| ("http_proxy", proxy));
    let mirror = apt_mirror(suite)?;
    let root = retry(&PAUSES, |number| {
        let root = work.join(format!("root-{number}"));
        let mut debootstrap = command("debootstrap");
        debootstrap.env("PATH", &path).envs(proxy.clone());
        run(debootstrap.args(["--variant=minbase", suite]).arg(&root).args(&mirror))?;
        Ok(root)
    })?;
    for path in SUPERFLUOUS {
        empty(&root.join(path))?;
    }
    let options = ["--create", "--sort=name", "--numeric-owner", "--file"];
    run(command("tar").args(options).arg(archive).arg("--directory").arg(&root).arg("."))?;
    Ok(())
}

/// Removes what is in a folder, not the folder.
fn empty(dir: &Path) -> Result<(), FilesError> {
    for name in files::list(dir)? {
        let path = dir.join(name);
        let removed =
            if path.is_dir() { std::fs::remove_dir_all(&path) } else { std::fs::remove_file(&path) };
        removed.map_err(|source| FilesError::Write { path, source })?;
    }
    Ok(())
}

/// The release that this machine runs.
fn own_suite() -> String {
    let text = std::fs::read_to_string("/etc/os-release").unwrap_or_default();
    codename(&text).unwrap_or(DEFAULT_SUITE).to_owned()
}

/// The release's name in os-release(5).
fn codename(os_release: &str) -> Option<&str> {
    let value = os_release.lines().find_map(|line| line.strip_prefix("VERSION_CODENAME="))?;
    Some(value.trim_matches('"')).filter(|name| !name.is_empty())
}

/// The mirror that this machine's apt has a release from; debootstrap has a default for none.
fn apt_mirror(suite: &str) -> Result<Option<String>, CommandError> {
    let format = "$(COMPONENT) $(CODENAME) $(REPO_URI)";
    let targets = run(command("apt-get").args(["indextargets", "--format", format, "Identifier: Packages"]))?;
    Ok(mirror_of(suite, &targets).map(str::to_owned))
}

/// The first line of a release's main component with an address that debootstrap can read.
fn mirror_of<'a>(suite: &str, targets: &'a str) -> Option<&'a str> {
    targets.lines().find_map(|line| {
        let address = line.strip_prefix("main ")?.strip_prefix(suite)?.strip_prefix(' ')?;
        ["http:", "https:", "file:"].iter().any(|scheme| address.starts_with(scheme)).then_some(address)
    })
}

/// The proxy that this machine's apt goes through.
fn apt_proxy() -> Result<Option<String>, CommandError> {
    let text = run(command("apt-config").args(["dump", "--format", "%v%n", "Acquire::http::Proxy"]))?;
    let proxy = text.lines().next().unwrap_or_default().trim();
    Ok((!proxy.is_empty() && proxy != "DIRECT").then(|| proxy.to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_release_of_the_machine() {
        assert_eq!(codename("ID=debian\nVERSION_CODENAME=trixie\n"), Some("trixie"));
        assert_eq!(codename("VERSION_CODENAME=\"noble\"\n"), Some("noble"));
        assert_eq!(codename("ID=arch\n"), None);
        assert_eq!(codename("VERSION_CODENAME=\n"), None);
    }

    #[test]
    fn the_mirror_is_the_releases_own() {
        let targets = "\
main bookworm-updates http://mirror.example/debian/
contrib bookworm http://mirror.example/contrib/
main bookworm mirror+file:/etc/apt/mirrors
main bookworm http://mirror.example/debian/
main bookworm http://other.example/debian/
";
        assert_eq!(mirror_of("bookworm", targets), Some("http://mirror.example/debian/"));
        assert_eq!(mirror_of("book", targets), None);
        assert_eq!(mirror_of("trixie", targets), None);
    }

    #[test]
    fn an_archive_is_unpacked_once() {
        let dir = tempfile::tempdir().unwrap();
        let (from, to) = (dir.path().join("from"), dir.path().join("to/root"));
        files::write(&from.join("etc/debian_version"), b"12").unwrap();
        let archive = dir.path().join("a.tar");
        run(command("tar").args(["-C", from.to_str().unwrap(), "-cf", archive.to_str().unwrap(), "."]))
            .unwrap();
        unpack(&archive, &to).unwrap();
        std::fs::write(to.join("mine"), "").unwrap();
        unpack(&archive, &to).unwrap();
        assert_eq!(files::list(&to).unwrap(), ["etc", "mine"]);
    }

    #[test]
    fn a_folder_is_emptied_and_kept() {
        let dir = tempfile::tempdir().unwrap();
        files::write(&dir.path().join("a/b"), b"").unwrap();
        files::write(&dir.path().join("c"), b"").unwrap();
        empty(dir.path()).unwrap();
        assert!(files::list(dir.path()).unwrap().is_empty());
    }
}
