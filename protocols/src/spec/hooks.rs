//! Hooks: six lists of commands. Each list goes to the list of its own name.
//!
//! A time-out is in seconds; 0 on the wire is none. The specification wants a given one above zero.

use oci_spec::runtime;

use super::SpecError;
use super::value::{each, items, list, path_to_wire, plain};
use crate::oci;

pub(super) fn from_wire(wire: &oci::Hooks) -> Result<runtime::Hooks, SpecError> {
    let mut hooks = runtime::Hooks::default();
    hooks
        .set_prestart(list(&wire.Prestart, hook_from_wire)?)
        .set_create_runtime(list(&wire.CreateRuntime, hook_from_wire)?)
        .set_create_container(list(&wire.CreateContainer, hook_from_wire)?)
        .set_start_container(list(&wire.StartContainer, hook_from_wire)?)
        .set_poststart(list(&wire.Poststart, hook_from_wire)?)
        .set_poststop(list(&wire.Poststop, hook_from_wire)?);
    Ok(hooks)
}

pub(super) fn to_wire(hooks: &runtime::Hooks) -> Result<oci::Hooks, SpecError> {
    Ok(oci::Hooks {
        Prestart: each(items(hooks.prestart()), hook_to_wire)?,
        CreateRuntime: each(items(hooks.create_runtime()), hook_to_wire)?,
        CreateContainer: each(items(hooks.create_container()), hook_to_wire)?,
        StartContainer: each(items(hooks.start_container()), hook_to_wire)?,
        Poststart: each(items(hooks.poststart()), hook_to_wire)?,
        Poststop: each(items(hooks.poststop()), hook_to_wire)?,
        ..Default::default()
    })
}

fn hook_from_wire(wire: &oci::Hook) -> Result<runtime::Hook, SpecError> {
    let timeout = match wire.Timeout {
        0 => None,
        seconds => Some(positive(seconds)?),
    };
    let mut hook = runtime::Hook::default();
    hook.set_path(wire.Path.as_str().into())
        .set_args(plain(&wire.Args))
        .set_env(plain(&wire.Env))
        .set_timeout(timeout);
    Ok(hook)
}

fn hook_to_wire(hook: &runtime::Hook) -> Result<oci::Hook, SpecError> {
    Ok(oci::Hook {
        Path: path_to_wire("hooks.path", hook.path())?,
        Args: items(hook.args()).to_vec(),
        Env: items(hook.env()).to_vec(),
        Timeout: hook.timeout().map_or(Ok(0), positive)?,
        ..Default::default()
    })
}

fn positive(seconds: i64) -> Result<i64, SpecError> {
    if seconds > 0 { Ok(seconds) } else { Err(SpecError::out_of_range("hooks.timeout", seconds)) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hook(path: &str) -> Vec<oci::Hook> {
        vec![oci::Hook { Path: path.into(), Timeout: 5, ..Default::default() }]
    }

    #[test]
    fn each_list_keeps_its_place() {
        let wire = oci::Hooks {
            Prestart: hook("/prestart"),
            Poststart: hook("/poststart"),
            Poststop: hook("/poststop"),
            CreateRuntime: hook("/createRuntime"),
            CreateContainer: hook("/createContainer"),
            StartContainer: hook("/startContainer"),
            ..Default::default()
        };
        let hooks = from_wire(&wire).unwrap();
        let json = serde_json::to_value(&hooks).unwrap();
        for name in
            ["prestart", "poststart", "poststop", "createRuntime", "createContainer", "startContainer"]
        {
            assert_eq!(json[name][0]["path"], format!("/{name}"));
            assert_eq!(json[name].as_array().unwrap().len(), 1);
        }
        assert_eq!(to_wire(&hooks).unwrap(), wire);
    }

    #[test]
    fn poststop_does_not_come_from_poststart() {
        let wire = oci::Hooks { Poststart: hook("/started"), ..Default::default() };
        assert_eq!(from_wire(&wire).unwrap().poststop(), &None);
    }

    #[test]
    fn timeouts_are_absent_positive_or_refused() {
        for (seconds, expected) in [(0, Some(None)), (7, Some(Some(7))), (-1, None), (i64::MIN, None)] {
            let wire = oci::Hook { Path: "/h".into(), Timeout: seconds, ..Default::default() };
            assert_eq!(hook_from_wire(&wire).ok().map(|hook| hook.timeout()), expected, "{seconds}");
        }
    }
}
