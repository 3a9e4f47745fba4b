//! A dummy cgroup directory for libcontainer, where the agent itself makes the real cgroups: it has a file
//! `cgroup.procs`, and whatever is written there is lost. The server makes and removes it; see `spec::own_cgroups`.

use std::io;
use std::path::{Path, PathBuf};

use crate::ids::ContainerId;

/// Where all of them are, in the agent's directory.
pub const DIRECTORY: &str = "stand-ins";

const PROCS: &str = "cgroup.procs";

/// Where it is; `state_root` is where libcontainer keeps its state.
pub fn path(state_root: &Path, container: &ContainerId) -> PathBuf {
    state_root.with_file_name(DIRECTORY).join(container.as_str())
}

/// Makes it.
///
/// # Errors
/// What the file system says.
pub fn make(directory: &Path) -> io::Result<()> {
    std::fs::create_dir_all(directory)?;
    match std::os::unix::fs::symlink("/dev/null", directory.join(PROCS)) {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(()),
        other => other,
    }
}

/// Removes it, if it is there.
///
/// # Errors
/// What the file system says.
pub fn remove(directory: &Path) -> io::Result<()> {
    match std::fs::remove_file(directory.join(PROCS)).and_then(|()| std::fs::remove_dir(directory)) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_is_put_there_stays_where_he_is() {
        let root = tempfile::tempdir().unwrap();
        let directory = path(&root.path().join("containers"), &ContainerId::try_from("a").unwrap());
        make(&directory).unwrap();
        make(&directory).unwrap();
        std::fs::write(directory.join(PROCS), "1").unwrap();
        assert_eq!(std::fs::read_to_string(directory.join(PROCS)).unwrap(), "");
        remove(&directory).unwrap();
        remove(&directory).unwrap();
        assert!(!directory.exists());
    }
}
