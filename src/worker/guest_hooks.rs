//! The guest's own prestart hooks, which fail nothing.
//!
//! libcontainer fails a container with any of its hooks. So what it runs as the last one is this program, by the name
//! [`GUEST_HOOKS`] and with the hooks as its argument: it runs them in their order, says on its standard error which have
//! failed, and ends well. What they say themselves is no error of the container's: it goes with the warning only.

use std::io::Read as _;
use std::os::fd::AsFd as _;

use libcontainer::container::{ContainerStatus, State};
use nix::sys::memfd::{MFdFlags, memfd_create};
use oci_spec::runtime::Hook;
use serde_json::Value;

use super::{chain, sys};
use crate::spec::GUEST_HOOKS;

/// Begins a line that holds a warning as a JSON string.
pub(super) const WARNING_MARK: &str = "nakai-warning:";

/// How much of a hook's words is told, in bytes.
const MAX_WORDS: usize = 600;

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
    let hooks: Vec<Hook> = serde_json::from_slice(hooks.as_bytes())?;
    let mut given = String::new();
    std::io::stdin().read_to_string(&mut given)?;
    let state = state(&serde_json::from_str(&given)?);
    let mut report = std::fs::File::from(std::io::stderr().as_fd().try_clone_to_owned()?);
    for hook in hooks {
        let words = memfd_create("nakai-hook", MFdFlags::MFD_CLOEXEC)?;
        nix::unistd::dup2_stderr(&words)?;
        let (path, one) = (hook.path().display().to_string(), vec![hook]);
        let ran = libcontainer::hooks::run_hooks(Some(&one), Some(&state), Some(&state.bundle), None, None);
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

/// The state that was told, to be told on.
fn state(given: &Value) -> State {
    let text = |key: &str| given.get(key).and_then(Value::as_str).unwrap_or_default();
    let pid = given.get("pid").and_then(Value::as_i64).and_then(|pid| i32::try_from(pid).ok());
    let mut state = State::new(text("id"), ContainerStatus::Creating, pid, text("bundle").into());
    let annotations = given.get("annotations").and_then(Value::as_object).into_iter().flatten();
    let own = |(key, value): (&String, &Value)| Some((key.clone(), value.as_str()?.to_owned()));
    state.annotations = Some(annotations.filter_map(own).collect());
    state
}

/// A hook of the specification's may not have ended its last line.
fn warn(report: &mut dyn std::io::Write, text: &str) {
    if let Ok(json) = serde_json::to_string(text) {
        let _ = writeln!(report, "\n{WARNING_MARK}{json}");
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn the_state_is_told_on() {
        let given = json!({
            "ociVersion": "1.0.2", "id": "c1", "status": "creating", "pid": 7, "bundle": "/b",
            "annotations": {"mine": "value"}
        });
        let told = state(&given);
        assert_eq!((told.id.as_str(), told.pid, told.bundle.as_path()), ("c1", Some(7), "/b".as_ref()));
        assert_eq!(told.annotations.unwrap()["mine"], "value");
    }
}
