//! Which hooks run, and who runs them.
//!
//! The guest's own (found in its hook directory: prestart, poststart and poststop) follow the spec's. libcontainer runs
//! prestart, createRuntime and createContainer; poststart and poststop are taken out, as the agent starts and deletes by
//! itself. The guest's own fail no container: as one made for one kind of pod meets all of them.
//!
//! Those that nobody would end by giving a call up get a limit if they have none: a host's poststart and poststop hooks,
//! whose failure changes nothing, its startContainer hooks, which are init's, and the guest's own, of which the host
//! knows nothing.

use oci_spec::runtime::{Hook, Hooks};

use super::SpecError;

/// How long such a hook may take, in seconds, if it does not say so itself.
const LIMIT: i64 = 10;

/// The name by which the agent's program runs the guest's prestart hooks: see `worker::guest_hooks`.
pub const GUEST_HOOKS: &str = "nakai-guest-hooks";

/// Appends the guest's hooks and takes out the poststart and poststop lists.
pub(super) fn apply(hooks: &mut Hooks, guest: Option<&Hooks>) -> Result<(Vec<Hook>, Vec<Hook>), SpecError> {
    let added = |get: fn(&Hooks) -> &Option<Vec<Hook>>| limited(guest.and_then(|g| get(g).clone()));
    let mut prestart = merge("hooks.prestart", hooks.prestart_mut().take(), None)?;
    prestart.extend(one_for_all(merge("hooks.prestart", None, added(Hooks::prestart))?)?);
    let runtime = merge("hooks.createRuntime", hooks.create_runtime_mut().take(), None)?;
    let container = merge("hooks.createContainer", hooks.create_container_mut().take(), None)?;
    let start = merge("hooks.startContainer", hooks.start_container_mut().take(), None)?;
    let poststart = merge("hooks.poststart", hooks.poststart_mut().take(), added(Hooks::poststart))?;
    let poststop = merge("hooks.poststop", hooks.poststop_mut().take(), added(Hooks::poststop))?;
    let (poststart, poststop) = (limited(Some(poststart)), limited(Some(poststop)));
    let or_none = |list: Vec<Hook>| (!list.is_empty()).then_some(list);
    hooks.set_prestart(or_none(prestart)).set_create_runtime(or_none(runtime));
    hooks.set_create_container(or_none(container)).set_start_container(limited(or_none(start)));
    Ok((poststart.unwrap_or_default(), poststop.unwrap_or_default()))
}

/// The hook that runs all of these, and does not fail.
fn one_for_all(hooks: Vec<Hook>) -> Result<Option<Hook>, SpecError> {
    if hooks.is_empty() {
        return Ok(None);
    }
    let list = serde_json::to_string(&hooks).map_err(|error| SpecError::Invalid {
        field: "hooks.prestart",
        value: error.to_string(),
        reason: "the guest's own can't be encoded",
    })?;
    let mut hook = Hook::default();
    hook.set_path("/proc/self/exe".into()).set_args(Some(vec![GUEST_HOOKS.to_owned(), list]));
    Ok(Some(hook))
}

/// Gives a limit to those that have none.
fn limited(hooks: Option<Vec<Hook>>) -> Option<Vec<Hook>> {
    let mut hooks = hooks?;
    for hook in hooks.iter_mut().filter(|hook| hook.timeout().unwrap_or_default() == 0) {
        hook.set_timeout(Some(LIMIT));
    }
    Some(hooks)
}

/// No section at all where nothing is left in it.
pub(super) fn or_none(hooks: Hooks) -> Option<Hooks> {
    (hooks != Hooks::default()).then_some(hooks)
}

fn merge(
    field: &'static str,
    spec: Option<Vec<Hook>>,
    guest: Option<Vec<Hook>>,
) -> Result<Vec<Hook>, SpecError> {
    let mut all: Vec<Hook> = spec.into_iter().chain(guest).flatten().collect();
    for hook in &mut all {
        if !hook.path().is_absolute() {
            return Err(SpecError::RelativePath { field, path: hook.path().clone() });
        }
        match hook.timeout() {
            // The wire's way to say none.
            Some(0) => {
                hook.set_timeout(None);
            }
            Some(seconds) if seconds < 0 => {
                return Err(SpecError::Invalid {
                    field,
                    value: seconds.to_string(),
                    reason: "a negative timeout",
                });
            }
            _ => {}
        }
    }
    Ok(all)
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn paths(hooks: &[Hook]) -> Vec<&str> {
        hooks.iter().map(|h| h.path().to_str().unwrap()).collect()
    }

    fn parse(hooks: Value) -> Hooks {
        serde_json::from_value(hooks).unwrap()
    }

    #[test]
    fn the_guests_hooks_follow_the_specs_and_the_agents_are_taken_out() {
        let mut hooks = parse(json!({
            "prestart": [{"path": "/a"}], "createContainer": [{"path": "/b", "timeout": 0}],
            "startContainer": [{"path": "/s"}, {"path": "/t", "timeout": 60}],
            "poststart": [{"path": "/c", "timeout": 0}], "poststop": [{"path": "/d", "timeout": 60}]
        }));
        let guest = parse(json!({
            "prestart": [{"path": "/g1"}], "poststart": [{"path": "/g2"}], "poststop": [{"path": "/g3"}]
        }));
        let (poststart, poststop) = apply(&mut hooks, Some(&guest)).unwrap();
        let list = r#"[{"path":"/g1","timeout":10}]"#;
        assert_eq!(
            serde_json::to_value(&hooks).unwrap(),
            json!({
                "prestart": [{"path": "/a"}, {"path": "/proc/self/exe", "args": [GUEST_HOOKS, list]}],
                "createContainer": [{"path": "/b"}],
                "startContainer": [{"path": "/s", "timeout": 10}, {"path": "/t", "timeout": 60}]
            })
        );
        assert_eq!(paths(&poststart), ["/c", "/g2"]);
        assert_eq!(paths(&poststop), ["/d", "/g3"]);
        for hook in poststart.iter().chain(&poststop) {
            let expected = if hook.path().ends_with("d") { 60 } else { 10 };
            assert_eq!(hook.timeout(), Some(expected), "{hook:?}");
        }
    }

    #[test]
    fn a_guests_hooks_alone_make_a_section_and_nothing_makes_none() {
        let mut hooks = Hooks::default();
        apply(&mut hooks, Some(&parse(json!({"prestart": [{"path": "/g"}]})))).unwrap();
        assert!(or_none(hooks).is_some());
        let mut hooks = parse(json!({"prestart": [], "poststop": [{"path": "/d"}]}));
        apply(&mut hooks, None).unwrap();
        assert_eq!(or_none(hooks), None);
    }

    #[test]
    fn a_relative_path_and_a_negative_timeout_are_refused() {
        for hook in [json!({"path": "bin/x"}), json!({"path": ""}), json!({"path": "/x", "timeout": -1})] {
            let error = apply(&mut parse(json!({"poststop": [hook]})), None).unwrap_err();
            assert!(error.to_string().contains("hooks.poststop"), "{error}");
        }
    }
}
