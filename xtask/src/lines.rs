//! The rule on file length: a file holds one idea.

use std::path::{Path, PathBuf};

/// A Rust file must not have more lines.
const LIMIT: usize = 500;
/// Folders in which nobody writes by hand.
const PASSED_OVER: [&str; 3] = [".git", ".cache", "target"];

/// The Rust files under `dir` that are too long, with their lines.
pub(crate) fn too_long(dir: &Path) -> std::io::Result<Vec<(PathBuf, usize)>> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(dir)? {
        let entry = entry?;
        let path = entry.path();
        if entry.file_type()?.is_dir() {
            if !PASSED_OVER.iter().any(|name| entry.file_name() == *name) {
                found.extend(too_long(&path)?);
            }
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            let lines = std::fs::read_to_string(&path)?.lines().count();
            if lines > LIMIT {
                found.push((path, lines));
            }
        }
    }
    found.sort();
    Ok(found)
}
