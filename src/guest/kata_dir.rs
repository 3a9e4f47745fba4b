//! Where the host's paths in the guest are: beneath `kata_dir`.
//!
//! A host whose VMM runs as a user (Kata's `rootless`) keeps its own files beneath that user's runtime directory, and
//! asks for paths of the same form in the guest: `/run/user/UID/run/kata-containers/...`. The number is another one for
//! each sandbox, so both forms are taken at any time.

use std::path::{Component, Path, PathBuf};

/// The directory in which the other form begins.
pub const RUN: &str = "/run";

/// The directory of the other form that `path` is beneath.
pub fn of_user(path: &Path) -> Option<PathBuf> {
    let mut parts = path.strip_prefix(RUN).ok()?.components();
    let mut next = || match parts.next() {
        Some(Component::Normal(part)) => part.to_str(),
        _ => None,
    };
    let is_user = next()? == "user";
    let uid: u32 = next().filter(|uid| uid.bytes().all(|byte| byte.is_ascii_digit()))?.parse().ok()?;
    let is_kata = (next()?, next()?) == ("run", "kata-containers");
    let is_beneath = next().is_some();
    (is_user && uid != 0 && is_kata && is_beneath)
        .then(|| Path::new(RUN).join(format!("user/{uid}/run/kata-containers")))
}

/// The directory that a path of the host's is to be beneath.
pub fn base_of(kata_dir: &Path, path: &Path) -> PathBuf {
    of_user(path).unwrap_or_else(|| kata_dir.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_users_directory_is_another_base() {
        let share = Path::new("/run/user/1000/run/kata-containers/shared/containers");
        let base = Path::new("/run/user/1000/run/kata-containers");
        assert_eq!(of_user(share).as_deref(), Some(base));
        assert_eq!(base_of(Path::new("/kata"), share), base);
        assert_eq!(base_of(Path::new("/kata"), Path::new("/kata/x")), Path::new("/kata"));
        for other in [
            "/run/user/0/run/kata-containers/x",
            "/run/user/01000x/run/kata-containers/x",
            "/run/user/+1/run/kata-containers/x",
            "/run/user//run/kata-containers/x",
            "/run/user/1000/run/kata-containers",
            "/run/user/1000/kata-containers/x",
            "/run/user/1000/run/kata-containers-2/x",
            "/run/users/1000/run/kata-containers/x",
            "/run/kata-containers/x",
            "/home/user/1000/run/kata-containers/x",
        ] {
            assert_eq!(of_user(Path::new(other)), None, "{other}");
        }
    }
}
