//! Who a container's process is: by number, or by a name that the container's own files must know.
//!
//! As containerd does: a name is looked up in the image's `/etc/passwd`, its groups in `/etc/group`; a number that
//! the files don't know is fine and has group 0. Nothing is created. [`Accounts`] reads the files without leaving
//! the root filesystem, whatever links the image has there.

use std::fs::File;
use std::io::{self, Read as _};
use std::path::{Path, PathBuf};

use nix::fcntl::{OFlag, OpenHow, ResolveFlag, openat2};

use super::CriError;
use super::config::{LinuxContainerSecurityContext, SupplementalGroupsPolicy};

/// The most that is read of an image's file.
const FILE_LIMIT: u64 = 4 << 20;

/// The text of an image's user and group files.
#[derive(Clone, Debug, Default)]
pub struct Accounts {
    /// `/etc/passwd`
    pub passwd: String,
    /// `/etc/group`
    pub group: String,
}

/// Whose the process is.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct User {
    /// User.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// All further groups; the first is `gid`, so that nobody gets rights by giving a group up.
    pub groups: Vec<u32>,
}

impl Accounts {
    /// Reads the files beneath `root`; one that is not there is empty.
    ///
    /// # Errors
    ///
    /// One is there and can't be read.
    pub fn read(root: &Path) -> Result<Self, CriError> {
        let file =
            |name: &str| read_beneath(root, name).map_err(CriError::io(format!("{}/{name}", root.display())));
        Ok(Self { passwd: file("etc/passwd")?, group: file("etc/group")? })
    }

    /// Reads the files that `layers` show, the lowest first, without laying them on each other: the topmost that has a
    /// file, or hides it, counts. A link from one layer into another is not followed.
    ///
    /// # Errors
    ///
    /// One is there and can't be read.
    pub fn of_layers(layers: &[PathBuf]) -> Result<Self, CriError> {
        let file = |name: &str| {
            let has = |layer: &&PathBuf| {
                let there = |path: &str| layer.join(path).symlink_metadata().ok();
                // A whiteout is a node, and so is one of the directory.
                there(name).is_some() || there("etc").is_some_and(|etc| !etc.is_dir())
            };
            let Some(layer) = layers.iter().rev().find(has) else { return Ok(String::new()) };
            match read_beneath(layer, name) {
                Err(error) if layer.join(name).is_file() => {
                    Err(CriError::io(format!("{}/{name}", layer.display()))(error))
                }
                read => Ok(read.unwrap_or_default()),
            }
        };
        Ok(Self { passwd: file("etc/passwd")?, group: file("etc/group")? })
    }

    fn user(&self, wanted: impl Fn(&str, u32) -> bool) -> Option<(&str, u32, u32)> {
        self.passwd.lines().find_map(|line| {
            let mut fields = line.split(':');
            let name = fields.next()?;
            let uid = fields.nth(1)?.parse().ok()?;
            let gid = fields.next()?.parse().ok()?;
            wanted(name, uid).then_some((name, uid, gid))
        })
    }

    /// Name, id and members of the groups.
    fn groups(&self) -> impl Iterator<Item = (&str, u32, &str)> {
        self.group.lines().filter_map(|line| {
            let mut fields = line.split(':');
            let name = fields.next()?;
            let gid = fields.nth(1)?.parse().ok()?;
            Some((name, gid, fields.next().unwrap_or("")))
        })
    }

    /// The number of a group by its number or name; `field` is who asks.
    pub(super) fn group(&self, text: &str, field: &str) -> Result<u32, CriError> {
        let by_name = self.groups().find(|(name, ..)| *name == text).map(|(_, gid, _)| gid);
        let missing = || CriError::field(field, format!("the container's /etc/group has no group {text:?}"));
        text.parse().ok().or(by_name).ok_or_else(missing)
    }
}

fn read_beneath(root: &Path, name: &str) -> io::Result<String> {
    let directory = File::open(root)?;
    let how = OpenHow::new()
        .flags(OFlag::O_RDONLY | OFlag::O_CLOEXEC | OFlag::O_NONBLOCK | OFlag::O_NOCTTY)
        .resolve(ResolveFlag::RESOLVE_IN_ROOT | ResolveFlag::RESOLVE_NO_MAGICLINKS);
    let file = match openat2(&directory, name, how) {
        Ok(file) => File::from(file),
        Err(nix::errno::Errno::ENOENT) => return Ok(String::new()),
        Err(errno) => return Err(errno.into()),
    };
    if !file.metadata()?.is_file() {
        return Err(io::Error::other("not a regular file"));
    }
    let mut bytes = Vec::new();
    file.take(FILE_LIMIT).read_to_end(&mut bytes)?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

/// Whose a container's process is to be where CRI's fields don't say it.
#[derive(Clone, Copy, Debug)]
pub struct Otherwise<'a> {
    /// Who says it, for messages.
    pub who: &'a str,
    /// A user, and a group behind a colon; nothing is root.
    pub user: &'a str,
}

/// Whose a container's process is to be.
///
/// # Errors
///
/// A name that the files don't have, a group without a user, a number that is none, or root where that is
/// forbidden.
pub fn resolve(
    security: &LinuxContainerSecurityContext,
    otherwise: Otherwise<'_>,
    accounts: &Accounts,
) -> Result<User, CriError> {
    let by_name = !security.run_as_username.is_empty();
    if security.run_as_group.is_some() && security.run_as_user.is_none() && !by_name {
        return Err(CriError::field("run_as_group", "a group without run_as_user or run_as_username"));
    }
    let (field, text) = match security.run_as_user {
        Some(uid) => ("run_as_user", id("run_as_user", uid)?.to_string()),
        None if by_name => ("run_as_username", security.run_as_username.clone()),
        None => (otherwise.who, otherwise.user.to_owned()),
    };
    let (user, group) = match text.split_once(':') {
        Some((user, group)) => (user, Some(group)),
        None => (text.as_str(), None),
    };
    // A number of CRI's is one, even if the image has a user of such a name.
    let by_number = security.run_as_user.is_some();
    let (name, uid, own_gid) = look_up(accounts, user, field, by_number)?;
    let gid = match (security.run_as_group, group) {
        (Some(gid), _) => id("run_as_group", gid)?,
        (None, Some(group)) => accounts.group(group, field)?,
        (None, None) => own_gid,
    };
    if security.run_as_non_root && uid == 0 {
        return Err(CriError::field("run_as_non_root", format!("{field} is root")));
    }
    let mut groups = vec![gid];
    if security.supplemental_groups_policy == SupplementalGroupsPolicy::Merge
        && let Some(name) = name
    {
        let member = |members: &str| members.split(',').any(|member| member == name);
        groups.extend(accounts.groups().filter(|(.., members)| member(members)).map(|(_, gid, _)| gid));
    }
    for &gid in &security.supplemental_groups {
        groups.push(id("supplemental_groups", gid)?);
    }
    let mut seen = std::collections::BTreeSet::new();
    groups.retain(|gid| seen.insert(*gid));
    Ok(User { uid, gid, groups })
}

/// Name, user and group of a name or number; nothing is root.
fn look_up<'a>(
    accounts: &'a Accounts,
    user: &str,
    field: &str,
    by_number: bool,
) -> Result<(Option<&'a str>, u32, u32), CriError> {
    if let Some((name, uid, gid)) = accounts.user(|name, _| !by_number && name == user) {
        return Ok((Some(name), uid, gid));
    }
    let uid = match user {
        "" => 0,
        number => number.parse().map_err(|_| {
            CriError::field(field, format!("the container's /etc/passwd has no user {user:?}"))
        })?,
    };
    Ok(match accounts.user(|_, other| other == uid) {
        Some((name, uid, gid)) => (Some(name), uid, gid),
        None => (None, uid, 0),
    })
}

fn id(field: &str, number: i64) -> Result<u32, CriError> {
    u32::try_from(number).map_err(|_| CriError::field(field, format!("{number} is not an id of 32 bits")))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn accounts() -> Accounts {
        Accounts {
            passwd: "root:x:0:0::/root:/bin/sh\nweb:x:33:34::/:/bin/sh\n7:x:70:70::/:/bin/sh\nbad\n".into(),
            group: "root:x:0:\nwww:x:34:\naudio:x:29:web,other\nvideo:x:44:other\n".into(),
        }
    }

    fn of(edit: impl FnOnce(&mut LinuxContainerSecurityContext), image: &str) -> Result<User, String> {
        let mut security = LinuxContainerSecurityContext::default();
        edit(&mut security);
        let otherwise = Otherwise { who: "the image's user", user: image };
        resolve(&security, otherwise, &accounts()).map_err(|error| error.to_string())
    }

    fn user(uid: u32, gid: u32, more: &[u32]) -> Result<User, String> {
        Ok(User { uid, gid, groups: [&[gid], more].concat() })
    }

    #[test]
    fn names_come_from_the_image_and_numbers_need_not() {
        assert_eq!(of(|_| (), ""), user(0, 0, &[]));
        assert_eq!(of(|_| (), "web"), user(33, 34, &[29]));
        assert_eq!(of(|_| (), "web:video"), user(33, 44, &[29]));
        assert_eq!(of(|_| (), "1000:1001"), user(1000, 1001, &[]));
        assert_eq!(of(|s| s.run_as_user = Some(33), ""), user(33, 34, &[29]));
        assert_eq!(of(|s| s.run_as_user = Some(1000), "web"), user(1000, 0, &[]));
        assert_eq!(
            (of(|s| s.run_as_user = Some(7), ""), of(|_| (), "7")),
            (user(7, 0, &[]), user(70, 70, &[]))
        );
        assert_eq!(of(|s| s.run_as_username = "web".into(), ""), user(33, 34, &[29]));
        let strict = |s: &mut LinuxContainerSecurityContext| {
            s.run_as_username = "web".into();
            s.run_as_group = Some(5);
            s.supplemental_groups = vec![6, 5, 7];
            s.supplemental_groups_policy = SupplementalGroupsPolicy::Strict;
        };
        assert_eq!(of(strict, ""), user(33, 5, &[6, 7]));
    }

    #[test]
    fn what_can_not_be_is_named() {
        for (result, words) in [
            (of(|s| s.run_as_group = Some(5), ""), "run_as_group: a group without"),
            (of(|s| s.run_as_username = "nobody".into(), ""), "run_as_username: the container's /etc/passwd"),
            (of(|s| s.run_as_user = Some(-1), ""), "run_as_user: -1"),
            (of(|_| (), "web:nogroup"), "no group \"nogroup\""),
            (of(|s| s.run_as_non_root = true, ""), "run_as_non_root: the image's user is root"),
            (
                of(
                    |s| {
                        s.run_as_non_root = true;
                        s.run_as_username = "root".into();
                    },
                    "web",
                ),
                "run_as_username is root",
            ),
        ] {
            assert!(result.as_ref().is_err_and(|error| error.contains(words)), "{words}: {result:?}");
        }
    }

    #[test]
    fn of_layers_the_topmost_counts() {
        let root = tempfile::tempdir().unwrap();
        let layers: Vec<_> = ["low", "middle", "top"].map(|name| root.path().join(name)).into();
        for layer in &layers {
            std::fs::create_dir_all(layer.join("etc")).unwrap();
        }
        std::fs::write(layers[0].join("etc/passwd"), "low:x:1:1::/:").unwrap();
        std::fs::write(layers[0].join("etc/group"), "low:x:1:").unwrap();
        std::fs::write(layers[1].join("etc/passwd"), "middle:x:2:2::/:").unwrap();
        // A pipe can be made by anybody, and is no file either.
        nix::unistd::mkfifo(&layers[2].join("etc/group"), nix::sys::stat::Mode::S_IRUSR).unwrap();
        let accounts = Accounts::of_layers(&layers).unwrap();
        assert_eq!((&*accounts.passwd, &*accounts.group), ("middle:x:2:2::/:", ""));
    }

    #[test]
    fn links_in_the_image_stay_in_it() {
        let root = tempfile::tempdir().unwrap();
        let etc = root.path().join("etc");
        std::fs::create_dir(&etc).unwrap();
        std::os::unix::fs::symlink("/etc/real", etc.join("passwd")).unwrap();
        std::fs::write(etc.join("real"), "mine:x:5:5::/:").unwrap();
        std::os::unix::fs::symlink("../../../../../../etc/group", etc.join("group")).unwrap();
        // The way up ends at the image's root, where the link is found again.
        assert!(Accounts::read(root.path()).unwrap_err().to_string().contains("etc/group"));
        std::fs::remove_file(etc.join("group")).unwrap();
        let accounts = Accounts::read(root.path()).unwrap();
        assert_eq!((&*accounts.passwd, &*accounts.group), ("mine:x:5:5::/:", ""));
    }
}
