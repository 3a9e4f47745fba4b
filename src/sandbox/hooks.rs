//! The guest's own OCI hooks: executable files in a directory of the guest image.
//!
//! CreateSandbox may name a directory. Each regular, executable file in its `prestart`, `poststart` and
//! `poststop` becomes a hook of every container of the sandbox, in the order of the names; symbolic links are
//! passed over, so that a file runs under the name and with the rights that the image's author gave it. The
//! hook gets its file name and the hook's type as arguments and no environment.
//!
//! Failure behaviour: none of it fails a sandbox. What can't be read or used is logged and left out, and the
//! lists are bounded. The calls block: not for an async thread.

use std::io::ErrorKind;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use oci_spec::runtime::{Hook, Hooks};
use slog::{Logger, warn};

/// The most hooks of one type that are run for a container.
pub const MAX_HOOKS: usize = 64;

/// The most directory entries that are looked at for one type.
const MAX_ENTRIES: usize = 1024;

/// The hooks in `dir`, or `None` when there are none.
pub fn scan(dir: &Path, log: &Logger) -> Option<Hooks> {
    let list = |kind: &str| Some(scan_kind(&dir.join(kind), kind, log)).filter(|hooks| !hooks.is_empty());
    let mut hooks = Hooks::default();
    hooks.set_prestart(list("prestart")).set_poststart(list("poststart")).set_poststop(list("poststop"));
    (hooks != Hooks::default()).then_some(hooks)
}

fn scan_kind(dir: &Path, kind: &str, log: &Logger) -> Vec<Hook> {
    let entries = match std::fs::read_dir(dir) {
        Ok(entries) => entries,
        Err(error) => {
            if error.kind() != ErrorKind::NotFound {
                warn!(log, "guest hooks can't be read"; "dir" => %dir.display(), "error" => %error);
            }
            return Vec::new();
        }
    };
    let mut names = Vec::new();
    for entry in entries.take(MAX_ENTRIES) {
        match entry.and_then(|entry| Ok((entry.metadata()?, entry.file_name()))) {
            // The metadata of a directory entry is the link's own, not its target's.
            Ok((metadata, name)) if metadata.is_file() && metadata.permissions().mode() & 0o111 != 0 => {
                match name.into_string() {
                    Ok(name) => names.push(name),
                    Err(name) => {
                        warn!(log, "guest hook left out: its name is not UTF-8";
                            "dir" => %dir.display(), "name" => name.to_string_lossy().into_owned());
                    }
                }
            }
            Ok(_) => {}
            Err(error) => {
                warn!(log, "guest hook can't be looked at"; "dir" => %dir.display(), "error" => %error);
            }
        }
    }
    names.sort_unstable();
    if names.len() > MAX_HOOKS {
        warn!(log, "guest hooks left out: too many";
            "dir" => %dir.display(), "found" => names.len(), "kept" => MAX_HOOKS);
        names.truncate(MAX_HOOKS);
    }
    names.into_iter().map(|name| hook(dir, name, kind)).collect()
}

fn hook(dir: &Path, name: String, kind: &str) -> Hook {
    let mut hook = Hook::default();
    hook.set_path(dir.join(&name)).set_args(Some(vec![name, kind.to_owned()]));
    hook
}

#[cfg(test)]
mod tests {
    use std::ffi::OsStr;
    use std::fs;
    use std::os::unix::ffi::OsStrExt;
    use std::os::unix::fs::symlink;

    use serde_json::json;

    use super::*;

    fn log() -> Logger {
        Logger::root(slog::Discard, slog::o!())
    }

    fn file(path: &Path, mode: u32) {
        fs::write(path, "#!/bin/sh\n").unwrap();
        fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
    }

    #[test]
    fn executable_files_become_hooks_in_the_order_of_their_names() {
        let dir = tempfile::tempdir().unwrap();
        let prestart = dir.path().join("prestart");
        fs::create_dir_all(prestart.join("directory")).unwrap();
        fs::create_dir(dir.path().join("poststart")).unwrap();
        for name in ["20-b", "10-a"] {
            file(&prestart.join(name), 0o755);
        }
        file(&prestart.join("readme"), 0o644);
        file(&prestart.join(OsStr::from_bytes(b"\xff")), 0o755);
        symlink("10-a", prestart.join("05-link")).unwrap();
        let path = |name: &str| prestart.join(name).display().to_string();
        assert_eq!(
            serde_json::to_value(scan(dir.path(), &log())).unwrap(),
            json!({"prestart": [
                {"path": path("10-a"), "args": ["10-a", "prestart"]},
                {"path": path("20-b"), "args": ["20-b", "prestart"]}
            ]})
        );
    }

    #[test]
    fn nothing_there_is_no_hooks_and_no_failure() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(scan(dir.path(), &log()), None);
        assert_eq!(scan(&dir.path().join("missing"), &log()), None);
        fs::write(dir.path().join("poststop"), "not a directory").unwrap();
        assert_eq!(scan(dir.path(), &log()), None);
    }

    #[test]
    fn the_list_is_bounded() {
        let dir = tempfile::tempdir().unwrap();
        let poststop = dir.path().join("poststop");
        fs::create_dir(&poststop).unwrap();
        for number in 0..=MAX_HOOKS {
            file(&poststop.join(format!("{number:03}")), 0o700);
        }
        let hooks = scan(dir.path(), &log()).unwrap().poststop().clone().unwrap();
        assert_eq!(hooks.len(), MAX_HOOKS);
        assert!(hooks[0].path().ends_with("000"));
    }
}
