//! A storage as the host asks for it, checked. What a field means is the driver's business; here a field only
//! has to be usable at all. Whether the mount point is in an allowed place is checked when it is attached.

use std::path::PathBuf;

use nakai_protocols::{agent, types};
use nix::unistd::Gid;

use super::StorageError;
use crate::ids::GuestPath;

/// Which files get a volume's group.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FsGroupPolicy {
    /// All of them, each time.
    Always,
    /// None if the volume's root directory already has the group and its permissions.
    OnRootMismatch,
}

/// The group that a volume's files are given to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FsGroup {
    /// The group.
    pub gid: Gid,
    /// When to go through the files.
    pub policy: FsGroupPolicy,
}

/// A storage to attach, from the wire's `Storage` message.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StorageRequest {
    /// Name of the driver.
    pub driver: String,
    /// What only the driver reads: `key=value` or plain words.
    pub driver_options: Vec<String>,
    /// What is mounted: a tag, a device, a PCI path, a directory.
    pub source: String,
    /// As which filesystem.
    pub fstype: String,
    /// Mount options, one or, separated by commas, several in each.
    pub options: Vec<String>,
    /// Where. It is also the storage's name: two requests with the same one mean the same storage.
    pub mount_point: GuestPath,
    /// Who owns the files.
    pub fs_group: Option<FsGroup>,
    /// The storage outlives its last user and goes with the sandbox.
    pub shared: bool,
}

/// The drivers of disks.
pub(super) const BLOCK_DRIVERS: [&str; 4] = ["blk", "mmioblk", "nvdimm", "scsi"];
/// The filesystem type of a bind mount.
pub(super) const BIND: &str = "bind";

/// Where a disk's node is, for a container to have.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LentNode {
    /// Its path in the guest.
    pub path: PathBuf,
    /// Whether it is only to be read.
    pub read_only: bool,
}

impl TryFrom<&agent::Storage> for StorageRequest {
    type Error = StorageError;

    fn try_from(wire: &agent::Storage) -> Result<Self, StorageError> {
        let mount_point = GuestPath::try_from(wire.mount_point.as_str())
            .map_err(|cause| StorageError::MountPoint { driver: wire.driver.clone(), cause })?;
        let refuse = |field, reason: String| StorageError::Field {
            mount_point: mount_point.as_path().to_owned(),
            field,
            reason,
        };
        if wire.driver.is_empty() {
            return Err(refuse("driver", "it is empty".to_owned()));
        }
        let texts = [("source", &wire.source), ("fstype", &wire.fstype)].into_iter();
        let options = wire.options.iter().map(|option| ("options", option));
        let driver_options = wire.driver_options.iter().map(|option| ("driver_options", option));
        for (field, text) in texts.chain(options).chain(driver_options) {
            if text.contains('\0') {
                return Err(refuse(field, format!("{text:?} has a NUL byte in it")));
            }
        }
        let fs_group = wire
            .fs_group
            .as_ref()
            .map(|group| fs_group(group).map_err(|reason| refuse("fs_group", reason)))
            .transpose()?;
        Ok(Self {
            driver: wire.driver.clone(),
            driver_options: wire.driver_options.clone(),
            source: wire.source.clone(),
            fstype: wire.fstype.clone(),
            options: wire.options.clone(),
            mount_point,
            fs_group,
            shared: wire.shared,
        })
    }
}

/// chown(2) takes it for "as it is".
const NOBODY: u32 = u32::MAX;

fn fs_group(wire: &agent::FSGroup) -> Result<FsGroup, String> {
    let policy = match wire.group_change_policy.enum_value() {
        Ok(types::FSGroupChangePolicy::Always) => FsGroupPolicy::Always,
        Ok(types::FSGroupChangePolicy::OnRootMismatch) => FsGroupPolicy::OnRootMismatch,
        Err(number) => return Err(format!("unknown change policy {number}")),
    };
    if wire.group_id == NOBODY {
        return Err(format!("{} is no group id", wire.group_id));
    }
    Ok(FsGroup { gid: Gid::from_raw(wire.group_id), policy })
}

impl StorageRequest {
    /// The mount options one by one. A comma that belongs to a value is written `\,`.
    pub(super) fn split_options(&self) -> impl Iterator<Item = &str> {
        self.options
            .iter()
            .flat_map(|options| split_unescaped(options, ','))
            .filter(|option| !option.is_empty())
    }

    /// The last value of a mount option written `key=value`.
    pub(super) fn option<'a>(&'a self, key: &str) -> Option<&'a str> {
        self.split_options().filter_map(|option| option.strip_prefix(key)?.strip_prefix('=')).last()
    }

    /// The mount options without those that are not for the kernel.
    pub(super) fn options_without(&self, drop: impl Fn(&str) -> bool) -> Vec<String> {
        self.split_options().filter(|option| !drop(option)).map(str::to_owned).collect()
    }

    /// Whether the mount is asked to be read-only.
    pub(super) fn read_only(&self) -> bool {
        self.split_options().filter(|option| matches!(*option, "ro" | "rw")).last() == Some("ro")
    }

    /// The device node, if this storage is a raw block volume.
    pub fn lent_node(&self) -> Option<LentNode> {
        let is_node = self.fstype == BIND && BLOCK_DRIVERS.contains(&self.driver.as_str());
        is_node.then(|| LentNode { path: self.target(), read_only: self.read_only() })
    }

    /// The group named by the option `fsgid=`.
    pub(super) fn fsgid(&self) -> Result<Option<Gid>, StorageError> {
        let parse = |text: &str| {
            let gid = text.parse().ok().filter(|gid| *gid != NOBODY);
            gid.map(Gid::from_raw)
                .ok_or_else(|| self.refuse("options", format!("fsgid={text} is no group id")))
        };
        self.option("fsgid").map(parse).transpose()
    }

    /// The permissions named by the option `mode=`, octal.
    pub(super) fn mode(&self) -> Result<Option<u32>, StorageError> {
        let parse = |text: &str| {
            let mode = u32::from_str_radix(text, 8).ok().filter(|mode| *mode <= 0o7777);
            mode.ok_or_else(|| self.refuse("options", format!("mode={text} is no octal file mode")))
        };
        self.option("mode").map(parse).transpose()
    }

    /// Refuses the words that make another mount of it than the driver's: with `bind` the kernel heeds no type and takes
    /// any path of the guest for the source, with `remount` it changes what others have mounted.
    pub(super) fn refuse_other_mounts(&self, fstype: &str, options: &[String]) -> Result<(), StorageError> {
        let word = options.iter().find(|option| match option.as_str() {
            "bind" | "rbind" => fstype != BIND,
            option => option == "remount",
        });
        match word {
            Some(word) => Err(self.refuse("options", format!("{word} is not for the type {fstype:?}"))),
            None => Ok(()),
        }
    }

    /// The error for a field that this driver can't use.
    pub(super) fn refuse(&self, field: &'static str, reason: impl Into<String>) -> StorageError {
        StorageError::Field { mount_point: self.target(), field, reason: reason.into() }
    }

    /// The error for something that this driver can't do.
    pub(super) fn unsupported(&self, what: impl Into<String>) -> StorageError {
        StorageError::Unsupported {
            driver: self.driver.clone(),
            mount_point: self.target(),
            what: what.into(),
        }
    }

    /// The mount point, for messages.
    pub(super) fn target(&self) -> PathBuf {
        self.mount_point.as_path().to_owned()
    }
}

/// Splits at `separator`, except where a backslash stands before it. The backslashes stay.
pub(super) fn split_unescaped(text: &str, separator: char) -> impl Iterator<Item = &str> {
    let mut escaped = false;
    text.split(move |c: char| {
        let split = c == separator && !escaped;
        escaped = c == '\\' && !escaped;
        split
    })
}

#[cfg(test)]
mod tests {
    use protobuf::{EnumOrUnknown, MessageField};

    use super::*;

    fn wire() -> agent::Storage {
        agent::Storage {
            driver: "blk".to_owned(),
            source: "02/03".to_owned(),
            fstype: "ext4".to_owned(),
            options: vec!["ro,mode=1777".to_owned(), r"lowerdir=/a\,b:/c".to_owned()],
            mount_point: "/run//x/".to_owned(),
            ..Default::default()
        }
    }

    #[test]
    fn a_request_names_its_mount_point_without_redundant_slashes() {
        let request = StorageRequest::try_from(&wire()).unwrap();
        assert_eq!(request.mount_point.to_string(), "/run/x");
        assert_eq!(request.fs_group, None);
    }

    #[test]
    fn options_are_found_wherever_they_are_written() {
        let request = StorageRequest::try_from(&wire()).unwrap();
        let options: Vec<_> = request.split_options().collect();
        assert_eq!(options, ["ro", "mode=1777", r"lowerdir=/a\,b:/c"]);
        assert!(request.read_only());
        assert_eq!(request.mode().unwrap(), Some(0o1777));
        assert_eq!(request.fsgid().unwrap(), None);
    }

    #[test]
    fn unusable_fields_are_refused_by_name() {
        type Change = fn(&mut agent::Storage);
        let cases: [(Change, &str); 7] = [
            (|s| s.mount_point.clear(), "mount point"),
            (|s| s.mount_point = "/run/../etc".to_owned(), "mount point"),
            (|s| s.driver.clear(), "driver"),
            (|s| s.source.push('\0'), "source"),
            (|s| s.options.push("a\0".to_owned()), "options"),
            (
                |s| {
                    let policy = EnumOrUnknown::from_i32(7);
                    let group =
                        agent::FSGroup { group_id: 1, group_change_policy: policy, ..Default::default() };
                    s.fs_group = MessageField::some(group);
                },
                "unknown change policy 7",
            ),
            (
                |s| {
                    s.fs_group =
                        MessageField::some(agent::FSGroup { group_id: u32::MAX, ..Default::default() })
                },
                "4294967295 is no group id",
            ),
        ];
        for (change, named) in cases {
            let mut storage = wire();
            change(&mut storage);
            let message = StorageRequest::try_from(&storage).unwrap_err().to_string();
            assert!(message.contains(named), "{message:?} does not name {named:?}");
        }
    }

    #[test]
    fn numbers_in_options_are_checked() {
        for bad in
            ["mode=9", "mode=", "mode=10000", "fsgid=x", "fsgid=-1", "fsgid=4294967295", "fsgid=4294967296"]
        {
            let mut storage = wire();
            storage.options = vec![bad.to_owned()];
            let request = StorageRequest::try_from(&storage).unwrap();
            let message = request.mode().and_then(|_| request.fsgid()).unwrap_err().to_string();
            assert!(message.contains(bad), "{message:?} does not name {bad:?}");
        }
    }
}
