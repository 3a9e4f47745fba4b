//! Swap space: swapon(2). The host has written the signature (`mkswap`); the agent never formats anything.

#![expect(unsafe_code, reason = "swapon(2) is in neither the standard library nor nix")]

use std::ffi::CString;
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::libc;

/// Why something is not swap.
#[derive(Debug, thiserror::Error)]
#[error("use {path} as swap: {source}{hint}", path = path.display(), hint = hint(*source))]
pub struct SwapError {
    /// The device or file.
    pub path: PathBuf,
    /// What the kernel said.
    pub source: Errno,
}

fn hint(error: Errno) -> &'static str {
    match error {
        Errno::EINVAL => ", it has no swap signature (mkswap), or is full of holes",
        Errno::ENOSYS => ", the kernel has no swap (CONFIG_SWAP)",
        _ => "",
    }
}

/// Lets the kernel swap to a device or file. One that it swaps to already is fine. Blocks.
///
/// # Errors
///
/// [`SwapError`].
pub fn swap_on(path: &Path) -> Result<(), SwapError> {
    let failed = |source| SwapError { path: path.to_owned(), source };
    let name = CString::new(path.as_os_str().as_bytes()).map_err(|_| failed(Errno::EINVAL))?;
    // SAFETY: the pointer is to a text that ends with NUL and outlives the call, which only reads it.
    match Errno::result(unsafe { libc::swapon(name.as_ptr(), 0) }) {
        Ok(_) => Ok(()),
        Err(Errno::EBUSY) if is_in_use(path, &std::fs::read_to_string("/proc/swaps").unwrap_or_default()) => {
            Ok(())
        }
        Err(source) => Err(failed(source)),
    }
}

/// Whether `/proc/swaps` lists the path: a heading, then a line for each that begins with its path (proc(5)).
fn is_in_use(path: &Path, swaps: &str) -> bool {
    let mut paths = swaps.lines().skip(1).filter_map(|line| line.split_whitespace().next());
    path.to_str().is_some_and(|path| paths.any(|known| known == path))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_swap_is_known() {
        let swaps =
            "Filename\tType\tSize\tUsed\tPriority\n/dev/vda partition 65532 0 -2\n/dev/vdb1 file 1 0 -3\n";
        assert!(is_in_use(Path::new("/dev/vda"), swaps));
        assert!(!is_in_use(Path::new("/dev/vdb"), swaps));
        assert!(!is_in_use(Path::new("Filename"), swaps));
        assert!(!is_in_use(Path::new("/dev/vda"), ""));
    }

    #[test]
    fn what_is_no_swap_is_named() {
        let missing = swap_on(Path::new("/nowhere/swap")).unwrap_err();
        assert!(missing.to_string().starts_with("use /nowhere/swap as swap: "), "{missing}");
        let error = SwapError { path: "/dev/vda".into(), source: Errno::EINVAL }.to_string();
        assert!(error.contains("mkswap"), "{error}");
    }
}
