//! The table of mounts (proc_pid_mountinfo(5)).

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

/// The mount points below `directory`, in the order of mounting.
pub(crate) fn below(directory: &Path) -> io::Result<Vec<PathBuf>> {
    let table = fs::read_to_string("/proc/self/mountinfo")?;
    let points = table.lines().filter_map(|line| line.split(' ').nth(4)).map(unescaped);
    Ok(points.filter(|point| point != directory && point.starts_with(directory)).collect())
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

/// The upper directory of the overlay that is mounted at `point` and on top there.
pub(crate) fn overlay_upper(point: &Path) -> Option<PathBuf> {
    let table = fs::read_to_string("/proc/self/mountinfo").ok()?;
    upper_in(&table, point)
}

fn upper_in(table: &str, point: &Path) -> Option<PathBuf> {
    let mut lines = table.lines().rev().filter_map(|line| line.split_once(" - "));
    let (_, kind) =
        lines.find(|(place, _)| place.split(' ').nth(4).map(unescaped).as_deref() == Some(point))?;
    let options = kind.strip_prefix("overlay ")?.split(' ').nth(1)?;
    options.split(',').find_map(|option| option.strip_prefix("upperdir=")).map(unescaped)
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
    fn the_upper_directory_of_the_last_mount_is_found() {
        let line = |point: &str, kind: &str| format!("36 35 98:0 / {point} rw - {kind} rw,{kind}\n");
        let over = r"37 35 0:44 / /a\040b rw,nodev shared:1 - overlay overlay rw,lowerdir=/l,upperdir=/x\040y/u,workdir=/w";
        let table = [line("/", "ext4"), line(r"/a\040b", "tmpfs"), over.to_owned()].concat();
        assert_eq!(upper_in(&table, Path::new("/a b")), Some("/x y/u".into()));
        assert_eq!(upper_in(&table, Path::new("/")), None);
        assert_eq!(upper_in(&table, Path::new("/c")), None);
        assert_eq!(
            lowers_in(&table.replace("lowerdir=/l", "lowerdir=/l:/m")),
            ["/l", "/m"].map(PathBuf::from)
        );
    }
}
