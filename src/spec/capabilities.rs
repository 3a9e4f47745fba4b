//! Capability sets, made explicit.
//!
//! libcontainer leaves a set alone that the spec does not have, so that the process keeps the agent's: every
//! set is always given, empty where the host gave none. And it knows nothing of the filter that is loaded
//! after it: without `noNewPrivileges`, seccomp(2) needs CAP_SYS_ADMIN, and taking that away again needs
//! CAP_SETPCAP, so both are left for the executor, who sets the real ones last.

use oci_spec::runtime::{Capabilities, Capability, LinuxCapabilities};

/// All five sets, with what capabilities(7) does not allow taken out of the ambient one: libcontainer would
/// fail there, runc warns.
pub(super) fn complete(given: Option<&LinuxCapabilities>, warnings: &mut Vec<String>) -> LinuxCapabilities {
    let set = |get: fn(&LinuxCapabilities) -> &Option<Capabilities>| -> Capabilities {
        given.and_then(|caps| get(caps).clone()).unwrap_or_default()
    };
    let permitted = set(LinuxCapabilities::permitted);
    let inheritable = set(LinuxCapabilities::inheritable);
    let (ambient, excess): (Capabilities, Capabilities) = set(LinuxCapabilities::ambient)
        .into_iter()
        .partition(|cap| permitted.contains(cap) && inheritable.contains(cap));
    if !excess.is_empty() {
        let mut names: Vec<String> = excess.iter().map(|cap| format!("CAP_{cap}")).collect();
        names.sort();
        let names = names.join(" ");
        warnings.push(format!("ambient {names} left out: neither permitted nor inheritable"));
    }
    build(
        set(LinuxCapabilities::bounding),
        set(LinuxCapabilities::effective),
        inheritable,
        permitted,
        ambient,
    )
}

/// The same with what the executor needs to load a filter.
pub(super) fn with_seccomp_loader(real: &LinuxCapabilities) -> LinuxCapabilities {
    let wider = |set: &Option<Capabilities>| -> Capabilities {
        let mut set = set.clone().unwrap_or_default();
        set.extend([Capability::SysAdmin, Capability::Setpcap]);
        set
    };
    build(
        wider(real.bounding()),
        wider(real.effective()),
        real.inheritable().clone().unwrap_or_default(),
        wider(real.permitted()),
        real.ambient().clone().unwrap_or_default(),
    )
}

fn build(
    bounding: Capabilities,
    effective: Capabilities,
    inheritable: Capabilities,
    permitted: Capabilities,
    ambient: Capabilities,
) -> LinuxCapabilities {
    // The default has capabilities in it; every set is replaced.
    let mut caps = LinuxCapabilities::default();
    caps.set_bounding(Some(bounding)).set_effective(Some(effective)).set_inheritable(Some(inheritable));
    caps.set_permitted(Some(permitted)).set_ambient(Some(ambient));
    caps
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn parse(caps: serde_json::Value) -> LinuxCapabilities {
        serde_json::from_value(caps).unwrap()
    }

    #[test]
    fn nothing_given_is_nothing_allowed() {
        let nothing =
            json!({"bounding": [], "effective": [], "inheritable": [], "permitted": [], "ambient": []});
        for given in [None, Some(parse(json!({})))] {
            let caps = complete(given.as_ref(), &mut Vec::new());
            assert_eq!(serde_json::to_value(caps).unwrap(), nothing);
        }
    }

    #[test]
    fn an_ambient_capability_that_the_kernel_would_refuse_is_left_out() {
        let mut warnings = Vec::new();
        let caps = complete(
            Some(&parse(json!({"permitted": ["CAP_KILL", "CAP_CHOWN"], "inheritable": ["CAP_KILL"],
                "ambient": ["CAP_KILL", "CAP_CHOWN"]}))),
            &mut warnings,
        );
        assert_eq!(caps.ambient().clone().unwrap(), Capabilities::from([Capability::Kill]));
        assert_eq!(warnings, ["ambient CAP_CHOWN left out: neither permitted nor inheritable"]);
    }

    #[test]
    fn loading_a_filter_needs_two_more_in_three_sets() {
        let real = complete(Some(&parse(json!({"bounding": ["CAP_KILL"]}))), &mut Vec::new());
        let wider = with_seccomp_loader(&real);
        let two = Capabilities::from([Capability::SysAdmin, Capability::Setpcap]);
        for set in [wider.effective(), wider.permitted()] {
            assert_eq!(set.clone().unwrap(), two);
        }
        assert_eq!(wider.bounding().clone().unwrap().len(), 3);
        for set in [wider.inheritable(), wider.ambient()] {
            assert!(set.clone().unwrap().is_empty());
        }
    }
}
