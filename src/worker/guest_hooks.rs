//! The guest's own prestart hooks, which fail nothing.
//!
//! libcontainer fails a container with any of its hooks. So what it runs as the last one is this program, by the name
//! [`GUEST_HOOKS`] and with the hooks as its argument: it runs them in their order, says on its standard error which have
//! failed, and ends well. What they say themselves is no error of the container's: it goes with the warning only.

use std::collections::HashMap;
use std::io::Read as _;
use std::os::fd::AsFd as _;
use std::path::PathBuf;

use libcontainer::container::{ContainerStatus, State};
use nix::sys::memfd::{MFdFlags, memfd_create};
use oci_spec::runtime::Hook;
use serde::Deserialize;

use super::{chain, sys};
use crate::spec::GUEST_HOOKS;

/// Begins a line that holds a warning as a JSON string.
pub(super) const WARNING_MARK: &str = "nakai-warning:";

/// How much of a hook's words is told, in bytes.
const MAX_WORDS: usize = 600;

/// What of the state on standard input is told on.
#[derive(Deserialize)]
struct Given {
    id: String,
    pid: Option<i32>,
    bundle: PathBuf,
    annotations: Option<HashMap<String, String>>,
}

/// Runs the hooks and ends, if this program was started for that.
pub fn run_if_asked() {
    let mut args = std::env::args_os();
    if args.next().is_none_or(|name| name != GUEST_HOOKS) {
        return;
    }
    let hooks = args.next().unwrap_or_default();
    if let Err(error) = run(&hooks.to_string_lossy()) {
        warn(&mut std::io::stderr(), &format!("the guest's own hooks: {error}"));
    }
    sys::exit_now(0)
}

fn run(hooks: &str) -> std::io::Result<()> {
    let hooks: Vec<Hook> = serde_json::from_str(hooks)?;
    let mut given = String::new();
    std::io::stdin().read_to_string(&mut given)?;
    let given: Given = serde_json::from_str(&given)?;
    let mut state = State::new(&given.id, ContainerStatus::Creating, given.pid, given.bundle.clone());
    state.annotations = given.annotations;
    let mut report = std::fs::File::from(std::io::stderr().as_fd().try_clone_to_owned()?);
    for hook in hooks {
        let words = memfd_create("nakai-hook", MFdFlags::MFD_CLOEXEC)?;
        nix::unistd::dup2_stderr(&words)?;
        let (path, one) = (hook.path().display().to_string(), vec![hook]);
        let ran = libcontainer::hooks::run_hooks(Some(&one), Some(&state), Some(&given.bundle), None, None);
        if let Err(error) = ran {
            let mut bytes = [0; MAX_WORDS];
            let len = nix::sys::uio::pread(&words, &mut bytes, 0).unwrap_or(0);
            let said = String::from_utf8_lossy(bytes.get(..len).unwrap_or_default());
            warn(
                &mut report,
                format!("the guest's own hook {path}: {}: {said}", chain(&error))
                    .trim_end_matches([' ', ':', '\n']),
            );
        }
    }
    Ok(())
}

/// A hook of the specification's may not have ended its last line.
fn warn(report: &mut impl std::io::Write, text: &str) {
    if let Ok(json) = serde_json::to_string(text) {
        let _ = writeln!(report, "\n{WARNING_MARK}{json}");
    }
}
