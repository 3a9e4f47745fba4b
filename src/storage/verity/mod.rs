//! dm-verity: a disk of which every block that is read is checked against a tree of hashes, whose root the host (and
//! its policy) names. The tree lies behind the data on the same disk.
//!
//! Here is what is pure: the options, the superblock that may stand before the tree, and the table for the kernel.
//! Sources: the kernel's admin-guide/device-mapper/verity, and cryptsetup's "dm-verity on-disk specification".

mod device_mapper;

use std::fs::File;
use std::io;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::Path;

use nix::sys::stat::{major, minor};

pub(super) use device_mapper::{create, remove};

use super::StorageError;
use super::request::StorageRequest;

/// What the driver options for it begin with.
pub(super) const PREFIX: &str = "X-kata.dmverity";
const MAGIC: &[u8] = b"verity\0\0";
/// Another one each time that it is read (random(4)).
const UUIDS: &str = "/proc/sys/kernel/random/uuid";
const SUPERBLOCK: usize = 512;
const SECTOR: u64 = 512;
/// The largest block that the kernel takes is a page.
const BLOCKS: std::ops::RangeInclusive<u64> = 512..=65_536;

/// Why there is no checked disk.
#[derive(Debug, thiserror::Error)]
pub(super) enum VerityError {
    /// The disk's tree can't be read.
    #[error("hash tree of {device}: {source}")]
    Read {
        /// The disk.
        device: String,
        /// The kernel's reason.
        source: io::Error,
    },
    /// The disk's superblock makes no sense.
    #[error("hash tree of {device}: {reason}")]
    Superblock {
        /// The disk.
        device: String,
        /// What is wrong.
        reason: &'static str,
    },
    /// The device mapper refused.
    #[error("device mapper, {step} {name}: {source}")]
    Mapper {
        /// What was asked.
        step: &'static str,
        /// The device's name.
        name: String,
        /// The kernel's reason.
        source: nix::errno::Errno,
    },
    /// The kernel makes no names up.
    #[error("a name for the device: {UUIDS}: {0}")]
    Name(#[source] io::Error),
    /// The kernel has no device mapper, or it can't be reached.
    #[error("no device mapper: {control}: {source}")]
    Absent {
        /// Its node.
        control: String,
        /// The kernel's reason.
        source: io::Error,
    },
}

/// What the host says of the tree.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Verity {
    root: String,
    offset: u64,
    algorithm: String,
    salt: String,
    version: u64,
    data_block: u64,
    hash_block: u64,
    superblock: bool,
}

/// A name that no other device has: one disk may be read through several, and one that is still in use for a moment
/// keeps its name as long. It begins as with other agents of this protocol: who looks for such devices looks for that.
pub(super) fn new_name() -> Result<String, VerityError> {
    let uuid = std::fs::read_to_string(UUIDS).map_err(VerityError::Name)?;
    Ok(format!("kata-verity-{}", uuid.trim()))
}

/// A table for the device mapper.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Table {
    pub(super) sectors: u64,
    pub(super) parameters: String,
}

impl Verity {
    /// What the request's driver options ask for, if they do.
    pub(super) fn wanted(request: &StorageRequest) -> Result<Option<Self>, StorageError> {
        let option = |key: &str| {
            let value = |option: &String| {
                option.strip_prefix(PREFIX)?.strip_prefix(key)?.strip_prefix('=').map(str::to_owned)
            };
            request.driver_options.iter().rev().find_map(value)
        };
        if option("-enabled").as_deref() != Some("true") {
            return Ok(None);
        }
        let refuse =
            |key: &str, reason: &str| request.refuse("driver_options", format!("{PREFIX}{key} {reason}"));
        let number = |key: &str, default: u64| match option(key) {
            Some(text) => text.parse().map_err(|_| refuse(key, "is no number")),
            None => Ok(default),
        };
        let hex = |key: &str| {
            let text = option(key).unwrap_or_default();
            let is_hex =
                text.len() % 2 == 0 && text.len() <= 512 && text.bytes().all(|b| b.is_ascii_hexdigit());
            if is_hex { Ok(text) } else { Err(refuse(key, "is no hexadecimal text")) }
        };
        let verity = Self {
            root: hex(".roothash")?,
            offset: number(".hashoffset", 0)?,
            algorithm: option(".algorithm").unwrap_or_else(|| "sha256".to_owned()),
            salt: if option(".salt").as_deref() == Some("-") { String::new() } else { hex(".salt")? },
            version: number(".hashtype", 1)?,
            data_block: number(".blocksize", 4096)?,
            hash_block: number(".hashsize", 4096)?,
            superblock: option(".no-superblock").as_deref() != Some("true"),
        };
        let word =
            |text: &str| !text.is_empty() && text.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-');
        let checks = [
            (!verity.root.is_empty(), ".roothash", "is missing"),
            (verity.offset != 0, ".hashoffset", "is missing"),
            (word(&verity.algorithm), ".algorithm", "is no name"),
            (is_block(verity.data_block), ".blocksize", "is no size of blocks"),
            (is_block(verity.hash_block), ".hashsize", "is no size of blocks"),
        ];
        match checks.into_iter().find(|(is_good, ..)| !is_good) {
            Some((_, key, reason)) => Err(refuse(key, reason)),
            None => Ok(Some(verity)),
        }
    }

    /// The table for a disk.
    pub(super) fn table(&self, device: &str) -> Result<Table, VerityError> {
        let failed = |source| VerityError::Read { device: device.to_owned(), source };
        let file = File::open(Path::new(device)).map_err(failed)?;
        let number = file.metadata().map_err(failed)?.rdev();
        let number = (major(number), minor(number));
        let mut block = [0; SUPERBLOCK];
        if self.superblock {
            file.read_exact_at(&mut block, self.offset).map_err(failed)?;
        }
        self.table_of(number, &block)
            .map_err(|reason| VerityError::Superblock { device: device.to_owned(), reason })
    }

    /// With a superblock, what that says counts: none of it can make wrong data right.
    fn table_of(&self, (major, minor): (u64, u64), block: &[u8; SUPERBLOCK]) -> Result<Table, &'static str> {
        let mut tree = self.clone();
        let (blocks, start) = if self.superblock && block.starts_with(MAGIC) {
            let blocks = tree.read(block).ok_or("its superblock can't be read")?;
            let behind = tree.offset.saturating_add(u64::try_from(SUPERBLOCK).unwrap_or(SECTOR));
            (blocks, behind.div_ceil(tree.hash_block))
        } else {
            (tree.offset / tree.data_block, tree.offset / tree.hash_block)
        };
        let sectors = blocks.checked_mul(tree.data_block / SECTOR).filter(|sectors| *sectors > 0);
        let Self { root, algorithm, version, data_block, hash_block, .. } = &tree;
        let salt = if tree.salt.is_empty() { "-" } else { &tree.salt };
        let device = format!("{major}:{minor}");
        Ok(Table {
            sectors: sectors.ok_or("it has no data before it")?,
            parameters: format!(
                "{version} {device} {device} {data_block} {hash_block} {blocks} {start} {algorithm} {root} {salt}"
            ),
        })
    }

    /// Takes over what a superblock says, and returns the number of data blocks.
    fn read(&mut self, block: &[u8; SUPERBLOCK]) -> Option<u64> {
        let field = |at: usize, length: usize| block.get(at..at.checked_add(length)?);
        let number = |at: usize, length: usize| {
            let mut bytes = [0; 8];
            bytes.get_mut(..length)?.copy_from_slice(field(at, length)?);
            Some(u64::from_le_bytes(bytes))
        };
        self.version = number(12, 4)?;
        let algorithm = field(32, 32)?.split(|byte| *byte == 0).next()?;
        let algorithm = std::str::from_utf8(algorithm).ok()?;
        algorithm.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-').then_some(())?;
        self.algorithm = algorithm.to_owned();
        (self.data_block, self.hash_block) = (number(64, 4)?, number(68, 4)?);
        (is_block(self.data_block) && is_block(self.hash_block)).then_some(())?;
        let salt = usize::try_from(number(80, 2)?).ok().filter(|size| *size <= 256)?;
        self.salt = field(88, salt)?.iter().map(|byte| format!("{byte:02x}")).collect();
        number(72, 8)
    }
}

fn is_block(size: u64) -> bool {
    BLOCKS.contains(&size) && size.is_power_of_two()
}

#[cfg(test)]
mod tests {
    use nakai_protocols::agent;

    use super::*;

    fn verity(options: &[&str]) -> Result<Option<Verity>, StorageError> {
        let wire = agent::Storage {
            driver: "blk".to_owned(),
            mount_point: "/run/x".to_owned(),
            driver_options: options.iter().map(|option| format!("{PREFIX}{option}")).collect(),
            ..Default::default()
        };
        Verity::wanted(&StorageRequest::try_from(&wire).unwrap())
    }

    #[test]
    fn a_tree_without_superblock_is_described_by_options() {
        let options = ["-enabled=true", ".roothash=ab", ".hashoffset=8192", ".salt=-", ".no-superblock=true"];
        let table = verity(&options).unwrap().unwrap().table_of((254, 2), &[0; SUPERBLOCK]).unwrap();
        let parameters = "1 254:2 254:2 4096 4096 2 2 sha256 ab -";
        assert_eq!(table, Table { sectors: 16, parameters: parameters.to_owned() });
        assert_eq!(verity(&["-enabled=false", ".roothash=ab"]).unwrap(), None);
        assert_eq!(verity(&[]).unwrap(), None);
    }

    #[test]
    fn no_two_devices_have_one_name() {
        let (one, two) = (new_name().unwrap(), new_name().unwrap());
        assert_ne!(one, two);
        assert!(one.starts_with("kata-verity-") && one.len() < 64, "{one:?}");
    }

    #[test]
    fn a_superblock_describes_its_tree() {
        let mut block = [0; SUPERBLOCK];
        block[..8].copy_from_slice(MAGIC);
        (block[8], block[12], block[72], block[80]) = (1, 1, 9, 2);
        block[32..38].copy_from_slice(b"sha512");
        block[64..66].copy_from_slice(&1024_u16.to_le_bytes());
        block[68..70].copy_from_slice(&4096_u16.to_le_bytes());
        block[88..90].copy_from_slice(&[0xab, 0x0c]);
        let verity = verity(&["-enabled=true", ".roothash=ff", ".hashoffset=12288"]).unwrap().unwrap();
        let table = verity.table_of((8, 0), &block).unwrap();
        assert_eq!(
            (table.sectors, table.parameters.as_str()),
            (18, "1 8:0 8:0 1024 4096 9 4 sha512 ff ab0c")
        );
        block[64] = 1;
        assert!(verity.table_of((8, 0), &block).is_err());
    }

    #[test]
    fn what_makes_no_table_is_refused() {
        for bad in [
            [".roothash=", ".hashoffset=4096"],
            [".roothash=xy", ".hashoffset=4096"],
            [".roothash=ab", ".hashoffset=x"],
            [".roothash=ab", ".blocksize=4096"],
            [".roothash=ab", ".hashoffset=4096\0.blocksize=1000"],
            [".roothash=ab", ".hashoffset=4096\0.algorithm=sha256 1"],
        ] {
            let mut options = vec!["-enabled=true"];
            options.extend(bad.iter().flat_map(|words| words.split('\0')));
            verity(&options).unwrap_err();
        }
    }
}
