//! The table of mounts (proc_pid_mountinfo(5)).

use std::fs;
use std::io;
use std::os::fd::{AsFd, AsRawFd as _};
use std::path::{Path, PathBuf};

/// A mount.
#[derive(Debug, Eq, PartialEq)]
pub(crate) struct Mounted {
    /// Where.
    pub(crate) point: PathBuf,
    /// What is written to, if it is an overlay.
    pub(crate) upper: Option<PathBuf>,
}

/// What is mounted below `directory`, in the order of mounting.
pub(crate) fn below(directory: &Path) -> io::Result<Vec<Mounted>> {
    let table = fs::read_to_string("/proc/self/mountinfo")?;
    let mounts = table.lines().filter_map(mounted).map(|(_, mounted)| mounted);
    let below = |point: &Path| point != directory && point.starts_with(directory);
    Ok(mounts.filter(|mounted| below(&mounted.point)).collect())
}

/// The lower directories of all overlays.
pub(crate) fn overlay_lowers() -> Vec<PathBuf> {
    lowers_in(&fs::read_to_string("/proc/self/mountinfo").unwrap_or_default())
}

fn lowers_in(table: &str) -> Vec<PathBuf> {
    let overlays = table.lines().filter_map(|line| line.split_once(" - overlay ")?.1.split(' ').nth(1));
    let lowers = overlays.filter_map(|options| options.split(',').find_map(|o| o.strip_prefix("lowerdir=")));
    lowers.flat_map(|paths| paths.split(':')).map(unescaped).collect()
}

/// The upper directory of the overlay that something opened is on; none if it is on no overlay.
pub(crate) fn overlay_upper(opened: &impl AsFd) -> io::Result<Option<PathBuf>> {
    let info = fs::read_to_string(format!("/proc/self/fdinfo/{}", opened.as_fd().as_raw_fd()))?;
    let id = info.lines().find_map(|line| line.strip_prefix("mnt_id:")).unwrap_or_default().trim();
    Ok(upper_in(&fs::read_to_string("/proc/self/mountinfo")?, id))
}

fn upper_in(table: &str, id: &str) -> Option<PathBuf> {
    table.lines().filter_map(mounted).find(|(other, _)| *other == id)?.1.upper
}

/// A line of the table, and the number of its mount.
fn mounted(line: &str) -> Option<(&str, Mounted)> {
    let (place, kind) = line.split_once(" - ")?;
    let options = kind.strip_prefix("overlay ").and_then(|rest| rest.split(' ').nth(1)).unwrap_or_default();
    let upper = options.split(',').find_map(|option| option.strip_prefix("upperdir=")).map(unescaped);
    let mut fields = place.split(' ');
    let (id, point) = (fields.next()?, fields.nth(3).map(unescaped)?);
    Some((id, Mounted { point, upper }))
}

/// Undoes the table's `\040` for space, tab, line-feed and backslash.
fn unescaped(field: &str) -> PathBuf {
    let escapes = [(r"\040", " "), (r"\011", "\t"), (r"\012", "\n"), (r"\134", "\\")];
    PathBuf::from(escapes.iter().fold(field.to_owned(), |text, (from, to)| text.replace(from, to)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_overlays_directories_are_found() {
        let line = |point: &str, kind: &str| format!("36 35 98:0 / {point} rw - {kind} rw,{kind}\n");
        let over = r"37 35 0:44 / /a\040b rw,nodev shared:1 - overlay overlay rw,lowerdir=/l,upperdir=/x\040y/u,workdir=/w";
        let table = [line("/", "ext4"), line(r"/a\040b", "tmpfs"), over.to_owned()].concat();
        assert_eq!(upper_in(&table, "37"), Some("/x y/u".into()));
        assert_eq!(upper_in(&table, "36"), None);
        assert_eq!(upper_in(&table, "3"), None);
        let (_, mount) = mounted(over).unwrap();
        assert_eq!(mount, Mounted { point: "/a b".into(), upper: Some("/x y/u".into()) });
        assert_eq!(
            lowers_in(&table.replace("lowerdir=/l", "lowerdir=/l:/m")),
            ["/l", "/m"].map(PathBuf::from)
        );
    }
}
