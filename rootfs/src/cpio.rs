//! A [`Tree`] as a cpio archive of the "newc" form, which is what the kernel unpacks into its first root.
//!
//! Everything that is not in the tree is fixed: modification times are 0, inode numbers count from 1 in path order.
//! Source: the kernel's Documentation/driver-api/early-userspace/buffer-format.rst.

use std::io::{self, Write};

use crate::tree::{Entry, Kind, Tree};

const MAGIC: &str = "070701";
const TRAILER: &str = "TRAILER!!!";
/// Headers with names, and contents, start at multiples of this.
const ALIGNMENT: usize = 4;

/// Writes the archive.
pub fn write(tree: &Tree, output: impl Write) -> io::Result<()> {
    let mut archive = Archive { output, inode: 0 };
    for (path, entry) in tree.entries() {
        archive.entry(path, entry)?;
    }
    let trailer = Header { nlink: 1, ..Header::default() };
    archive.record(TRAILER, &trailer, &[])?;
    archive.output.flush()
}

/// The fields that differ between entries; the rest of a header is zero.
#[derive(Default)]
struct Header {
    inode: u32,
    mode: u32,
    owner: (u32, u32),
    nlink: u32,
    device: (u32, u32),
}

struct Archive<W> {
    output: W,
    inode: u32,
}

impl<W: Write> Archive<W> {
    fn entry(&mut self, path: &str, entry: &Entry) -> io::Result<()> {
        self.inode += 1;
        // The file types of inode(7).
        let (file_type, nlink, device, content): (u32, u32, (u32, u32), &[u8]) = match &entry.kind {
            Kind::Directory => (0o040_000, 2, (0, 0), &[]),
            Kind::File(content) => (0o100_000, 1, (0, 0), content),
            Kind::Symlink(target) => (0o120_000, 1, (0, 0), target.as_bytes()),
            Kind::CharDevice { major, minor } => (0o020_000, 1, (*major, *minor), &[]),
        };
        let mode = file_type | entry.mode;
        let header = Header { inode: self.inode, mode, owner: entry.owner, nlink, device };
        self.record(path, &header, content)
    }

    fn record(&mut self, name: &str, header: &Header, content: &[u8]) -> io::Result<()> {
        let too_long = |_| io::Error::new(io::ErrorKind::FileTooLarge, format!("{name}: 4 GiB or more"));
        let size = u32::try_from(content.len()).map_err(too_long)?;
        let name_size = u32::try_from(name.len() + 1).map_err(too_long)?;
        let (uid, gid) = header.owner;
        let (major, minor) = header.device;
        let mtime = 0;
        let fields = [
            header.inode,
            header.mode,
            uid,
            gid,
            header.nlink,
            mtime,
            size,
            0,
            0,
            major,
            minor,
            name_size,
            0,
        ];
        let mut head = MAGIC.to_owned();
        for field in fields {
            head.push_str(&format!("{field:08x}"));
        }
        head.push_str(name);
        head.push('\0');
        self.aligned(head.as_bytes())?;
        self.aligned(content)
    }

    fn aligned(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.output.write_all(bytes)?;
        let padding = bytes.len().next_multiple_of(ALIGNMENT) - bytes.len();
        self.output.write_all(&[0; ALIGNMENT][..padding])
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// What the archive holds, read back the way the kernel does.
    pub(crate) fn parse(archive: &[u8]) -> Tree {
        let mut tree = Tree::new();
        let mut rest = archive;
        loop {
            assert_eq!(&rest[..6], MAGIC.as_bytes());
            let field = |index: usize| {
                let digits = std::str::from_utf8(&rest[6 + index * 8..][..8]).unwrap();
                u32::from_str_radix(digits, 16).unwrap()
            };
            let (size, name_size) = (field(6) as usize, field(11) as usize);
            let head = (110 + name_size).next_multiple_of(ALIGNMENT);
            let name = std::str::from_utf8(&rest[110..110 + name_size - 1]).unwrap();
            let content = rest[head..head + size].to_vec();
            if name == TRAILER {
                assert_eq!(rest.len(), head);
                return tree;
            }
            assert_eq!(field(5), 0, "modification time of {name}");
            let kind = match field(1) & 0o170_000 {
                0o040_000 => Kind::Directory,
                0o100_000 => Kind::File(content),
                0o120_000 => Kind::Symlink(String::from_utf8(content).unwrap()),
                0o020_000 => Kind::CharDevice { major: field(9), minor: field(10) },
                other => panic!("type {other:o} of {name}"),
            };
            tree.insert(name, Entry { kind, mode: field(1) & 0o7777, owner: (field(2), field(3)) }).unwrap();
            rest = &rest[(head + size).next_multiple_of(ALIGNMENT)..];
        }
    }

    #[test]
    fn what_is_written_can_be_read_back() {
        let mut tree = Tree::new();
        tree.directory("tmp", 0o1777).unwrap();
        tree.symlink("init", "/usr/bin/nakai").unwrap();
        tree.char_device("dev/console", 0o600, 5, 1).unwrap();
        for size in 0..9_usize {
            tree.file(&format!("files/{}", "n".repeat(size + 1)), 0o4755, vec![b'x'; size]).unwrap();
        }
        let app = Entry { kind: Kind::Directory, mode: 0o755, owner: (1000, 1000) };
        tree.insert("home/app", app).unwrap();
        let mut archive = Vec::new();
        write(&tree, &mut archive).unwrap();
        assert_eq!(parse(&archive), tree);
    }

    #[test]
    fn the_header_is_as_the_kernel_documents_it() {
        let mut tree = Tree::new();
        tree.file("a", 0o644, "hello").unwrap();
        let mut archive = Vec::new();
        write(&tree, &mut archive).unwrap();
        let expected = "070701\
            00000001000081a400000000000000000000000100000000\
            000000050000000000000000000000000000000000000002\
            00000000a\0hello\0\0\0";
        assert_eq!(std::str::from_utf8(&archive[..expected.len()]).unwrap(), expected);
    }
}
