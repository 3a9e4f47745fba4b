//! `/proc/self/mountinfo`, parsed (proc_pid_mountinfo(5)).
//!
//! Total: a line that does not have the documented form is left out, and nothing panics. Blanks in paths,
//! which the kernel writes as octal escapes, are decoded.

use std::ffi::OsString;
use std::io;
use std::os::unix::ffi::OsStringExt as _;
use std::path::{Path, PathBuf};

/// This process's mounts.
const PATH: &str = "/proc/self/mountinfo";

/// One mount.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MountInfo {
    /// The mount's id, unique among those that exist.
    pub id: u64,
    /// The id of the mount it stands on.
    pub parent: u64,
    /// Major number of the file system's device.
    pub major: u32,
    /// Minor number of the file system's device.
    pub minor: u32,
    /// Which directory or file of the file system is mounted.
    pub root: PathBuf,
    /// Where it is mounted, as seen from this process's root.
    pub mount_point: PathBuf,
    /// The options of this mount: `ro`, `nosuid`, ...
    pub options: String,
    /// The optional fields, parted by blanks: `shared:7`, `master:3`, ... Empty for a private mount.
    pub propagation: String,
    /// The kind of file system.
    pub fstype: String,
    /// What was mounted: a device, a tag, or any word.
    pub source: String,
    /// The options of the file system.
    pub super_options: String,
}

/// All mounts that `text` lists, a mount that covers another one after it.
pub fn parse(text: &[u8]) -> Vec<MountInfo> {
    text.split(|byte| *byte == b'\n').filter_map(parse_line).collect()
}

/// This process's mounts.
///
/// # Errors
///
/// `/proc` is not mounted.
pub fn read() -> io::Result<Vec<MountInfo>> {
    std::fs::read(PATH).map(|text| parse(&text))
}

/// The mounts at `path` and beneath it, in the order in which to unmount them: the last one first.
///
/// # Errors
///
/// As [`read`].
pub fn mounts_beneath(path: &Path) -> io::Result<Vec<MountInfo>> {
    Ok(beneath(read()?, path))
}

/// Whether something is mounted exactly at `path`, which must be without symbolic links.
///
/// # Errors
///
/// As [`read`].
pub fn is_mount_point(path: &Path) -> io::Result<bool> {
    Ok(read()?.iter().any(|mount| mount.mount_point == path))
}

fn beneath(mut mounts: Vec<MountInfo>, path: &Path) -> Vec<MountInfo> {
    mounts.retain(|mount| mount.mount_point.starts_with(path));
    mounts.reverse();
    mounts
}

fn parse_line(line: &[u8]) -> Option<MountInfo> {
    let mut fields = line.split(|byte| *byte == b' ');
    let id = number(fields.next()?)?;
    let parent = number(fields.next()?)?;
    let (major, minor) =
        text(fields.next()?).split_once(':').and_then(|(a, b)| Some((a.parse().ok()?, b.parse().ok()?)))?;
    let root = path(fields.next()?);
    let mount_point = path(fields.next()?);
    let options = text(fields.next()?);
    let mut optional: Vec<String> = Vec::new();
    loop {
        match fields.next()? {
            b"-" => break,
            field => optional.push(text(field)),
        }
    }
    let fstype = text(fields.next()?);
    let source = text(fields.next()?);
    let super_options = text(fields.next()?);
    let propagation = optional.join(" ");
    Some(MountInfo {
        id,
        parent,
        major,
        minor,
        root,
        mount_point,
        options,
        propagation,
        fstype,
        source,
        super_options,
    })
}

fn number(field: &[u8]) -> Option<u64> {
    std::str::from_utf8(field).ok()?.parse().ok()
}

fn text(field: &[u8]) -> String {
    String::from_utf8_lossy(&unescape(field)).into_owned()
}

fn path(field: &[u8]) -> PathBuf {
    PathBuf::from(OsString::from_vec(unescape(field)))
}

/// Decodes `\ooo`. A backslash that begins no escape stays.
fn unescape(field: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(field.len());
    let mut rest = field;
    while let Some((first, tail)) = rest.split_first() {
        let escape = if *first == b'\\' { tail.split_at_checked(3) } else { None };
        match escape.and_then(|(digits, after)| Some((octal(digits)?, after))) {
            Some((byte, after)) => {
                out.push(byte);
                rest = after;
            }
            None => {
                out.push(*first);
                rest = tail;
            }
        }
    }
    out
}

fn octal(digits: &[u8]) -> Option<u8> {
    digits.iter().all(u8::is_ascii_digit).then_some(())?;
    u8::from_str_radix(std::str::from_utf8(digits).ok()?, 8).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &[u8] = b"\
22 1 0:20 / / rw,relatime shared:1 - rootfs rootfs rw
23 22 0:21 / /run rw,nosuid,nodev shared:2 master:7 - tmpfs tmpfs rw,size=10k
24 23 8:1 /a\\040b /run/with\\040blank\\134 ro - ext4 /dev/sda1 rw
25 23 0:30 / /run-not-beneath rw - tmpfs none rw
half a line
26 23 0:31 / /run/x rw - tmpfs  rw
";

    #[test]
    fn fields_are_found() {
        let mounts = parse(TEXT);
        assert_eq!(mounts.len(), 5);
        assert_eq!(
            mounts[2],
            MountInfo {
                id: 24,
                parent: 23,
                major: 8,
                minor: 1,
                root: "/a b".into(),
                mount_point: "/run/with blank\\".into(),
                options: "ro".into(),
                propagation: String::new(),
                fstype: "ext4".into(),
                source: "/dev/sda1".into(),
                super_options: "rw".into(),
            }
        );
        assert_eq!(mounts[1].propagation, "shared:2 master:7");
        assert_eq!(mounts[4].source, "", "a source may be empty");
    }

    #[test]
    fn beneath_means_whole_components_and_innermost_first() {
        let found = beneath(parse(TEXT), Path::new("/run"));
        let points: Vec<_> = found.iter().map(|mount| mount.mount_point.to_str().unwrap()).collect();
        assert_eq!(points, ["/run/x", "/run/with blank\\", "/run"]);
    }

    #[test]
    fn escapes() {
        for (field, decoded) in [
            (&b"a\\040b\\011\\012\\134"[..], &b"a b\t\n\\"[..]),
            (b"\\", b"\\"),
            (b"\\04", b"\\04"),
            (b"\\999", b"\\999"),
            (b"\\+12", b"\\+12"),
            (b"\\777", b"\\777"),
            (b"\\377", b"\xff"),
        ] {
            assert_eq!(unescape(field), decoded);
        }
    }

    #[test]
    fn this_process_has_mounts() {
        assert!(is_mount_point(Path::new("/proc")).unwrap());
        assert!(!is_mount_point(Path::new("/proc/self")).unwrap());
    }

    /// Writes a field as the kernel does (seq_escape of fs/proc_namespace.c).
    fn escape(field: &[u8]) -> Vec<u8> {
        let one = |byte: &u8| match byte {
            b' ' | b'\t' | b'\n' | b'\\' | b'#' => format!("\\{byte:03o}").into_bytes(),
            _ => vec![*byte],
        };
        field.iter().flat_map(one).collect()
    }

    fn write(mount: &MountInfo) -> Vec<u8> {
        let MountInfo { id, parent, major, minor, root, mount_point, options, propagation, .. } = mount;
        let path = |path: &PathBuf| escape(path.as_os_str().as_encoded_bytes());
        let blank = |text: &str| if text.is_empty() { String::new() } else { format!(" {text}") };
        [
            format!("{id} {parent} {major}:{minor} ").into_bytes(),
            path(root),
            b" ".to_vec(),
            path(mount_point),
            format!(" {options}{} - ", blank(propagation)).into_bytes(),
            escape(mount.fstype.as_bytes()),
            b" ".to_vec(),
            escape(mount.source.as_bytes()),
            format!(" {}\n", mount.super_options).into_bytes(),
        ]
        .concat()
    }

    fn any_mount() -> impl proptest::strategy::Strategy<Value = MountInfo> {
        use proptest::prelude::*;
        let path = || prop::collection::vec(any::<u8>().prop_filter("no NUL", |byte| *byte != 0), 0..12);
        let path = move || {
            path().prop_map(|bytes| PathBuf::from(OsString::from_vec([b"/".to_vec(), bytes].concat())))
        };
        let numbers = (any::<u64>(), any::<u64>(), any::<u32>(), any::<u32>());
        let tags = prop::sample::select(vec!["", "shared:1", "shared:7 master:3", "unbindable"]);
        let words = ("[a-z0-9=,]{1,12}", "[a-z0-9.]{1,8}", "[ -~]{0,12}", "[a-z0-9=,]{1,12}");
        (numbers, path(), path(), tags, words).prop_map(|(numbers, root, mount_point, tags, words)| {
            let ((id, parent, major, minor), (options, fstype, source, super_options)) = (numbers, words);
            let propagation = tags.to_owned();
            MountInfo {
                id,
                parent,
                major,
                minor,
                root,
                mount_point,
                options,
                propagation,
                fstype,
                source,
                super_options,
            }
        })
    }

    proptest::proptest! {
        #[test]
        fn what_the_kernel_writes_is_read(mounts in proptest::collection::vec(any_mount(), 0..4)) {
            let text: Vec<u8> = mounts.iter().flat_map(write).collect();
            proptest::prop_assert_eq!(parse(&text), mounts);
        }

        #[test]
        fn never_panics(text: Vec<u8>) {
            parse(&text);
            unescape(&text);
        }

        #[test]
        fn lines_of_any_fields_never_panic(text in "([0-9]{1,20} ){2}[0-9:]{0,9} [ -~]{0,40}( -)?( [a-z\\\\0-9]{0,4}){0,4}") {
            parse(text.as_bytes());
        }
    }
}
