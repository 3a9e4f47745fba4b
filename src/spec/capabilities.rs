//! Capability sets, made explicit.
//!
//! libcontainer gets none: it would keep the agent's. The executor sets them, when libcontainer has done the rest and
//! before it looks at the program, every set, empty where the host gave none: with a third of the system calls that
//! libcontainer takes, which looks at each capability by itself. A filter without `noNewPrivileges` needs CAP_SYS_ADMIN
//! to be loaded, and taking that away again needs CAP_SETPCAP, so both are left then, and the real ones set last.

use oci_spec::runtime::{Capabilities, Capability, LinuxCapabilities};
use serde::{Deserialize, Serialize};

/// The sets as the kernel has them, a bit for each capability (capabilities(7)).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct CapabilitySets {
    /// What execve(2) may give at most.
    pub bounding: u64,
    /// What holds.
    pub effective: u64,
    /// What a program with file capabilities may inherit.
    pub inheritable: u64,
    /// What may be made to hold.
    pub permitted: u64,
    /// What a program without any keeps.
    pub ambient: u64,
}

impl From<&LinuxCapabilities> for CapabilitySets {
    fn from(sets: &LinuxCapabilities) -> Self {
        let bits = |set: &Option<Capabilities>| {
            set.iter().flatten().map(|capability| 1 << number(*capability)).fold(0, |all, bit: u64| all | bit)
        };
        Self {
            bounding: bits(sets.bounding()),
            effective: bits(sets.effective()),
            inheritable: bits(sets.inheritable()),
            permitted: bits(sets.permitted()),
            ambient: bits(sets.ambient()),
        }
    }
}

/// linux/capability.h.
fn number(capability: Capability) -> u8 {
    use Capability as C;
    match capability {
        C::Chown => 0,
        C::DacOverride => 1,
        C::DacReadSearch => 2,
        C::Fowner => 3,
        C::Fsetid => 4,
        C::Kill => 5,
        C::Setgid => 6,
        C::Setuid => 7,
        C::Setpcap => 8,
        C::LinuxImmutable => 9,
        C::NetBindService => 10,
        C::NetBroadcast => 11,
        C::NetAdmin => 12,
        C::NetRaw => 13,
        C::IpcLock => 14,
        C::IpcOwner => 15,
        C::SysModule => 16,
        C::SysRawio => 17,
        C::SysChroot => 18,
        C::SysPtrace => 19,
        C::SysPacct => 20,
        C::SysAdmin => 21,
        C::SysBoot => 22,
        C::SysNice => 23,
        C::SysResource => 24,
        C::SysTime => 25,
        C::SysTtyConfig => 26,
        C::Mknod => 27,
        C::Lease => 28,
        C::AuditWrite => 29,
        C::AuditControl => 30,
        C::Setfcap => 31,
        C::MacOverride => 32,
        C::MacAdmin => 33,
        C::Syslog => 34,
        C::WakeAlarm => 35,
        C::BlockSuspend => 36,
        C::AuditRead => 37,
        C::Perfmon => 38,
        C::Bpf => 39,
        C::CheckpointRestore => 40,
    }
}

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

    #[test]
    fn sets_are_bits_of_the_kernels_numbers() {
        let sets = parse(json!({
            "bounding": ["CAP_CHOWN", "CAP_CHECKPOINT_RESTORE"],
            "effective": ["CAP_SYS_ADMIN"],
            "permitted": ["CAP_SYS_ADMIN", "CAP_AUDIT_READ"],
            "inheritable": [],
        }));
        let expected = CapabilitySets {
            bounding: 1 | 1 << 40,
            effective: 1 << 21,
            permitted: 1 << 21 | 1 << 37,
            inheritable: 0,
            ambient: 0,
        };
        assert_eq!(CapabilitySets::from(&sets), expected);
    }

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
