//! The five capability sets, `capabilities(7)`.
//!
//! A message without names means five empty sets: the process keeps nothing. No message at all
//! means that nothing is said. Names are taken with and without `CAP_` and in either case, as
//! container engines do, and given back as `CAP_NAME` in alphabetical order: the model's sets have no
//! order and hold a name once.
//!
//! A name that this list does not have can't be granted. The specification (`config.md`, process) wants a warning then
//! and no failure, so it is left out, and [`unknown`] tells of it.

use std::collections::BTreeSet;

use oci_spec::runtime;

use super::SpecError;
use super::value::blank;
use crate::oci;

/// All of them, without `CAP_`: `linux/capability.h` as of Linux 5.9, in the order of the numbers.
pub const CAPABILITIES: [&str; 41] = [
    "CHOWN",
    "DAC_OVERRIDE",
    "DAC_READ_SEARCH",
    "FOWNER",
    "FSETID",
    "KILL",
    "SETGID",
    "SETUID",
    "SETPCAP",
    "LINUX_IMMUTABLE",
    "NET_BIND_SERVICE",
    "NET_BROADCAST",
    "NET_ADMIN",
    "NET_RAW",
    "IPC_LOCK",
    "IPC_OWNER",
    "SYS_MODULE",
    "SYS_RAWIO",
    "SYS_CHROOT",
    "SYS_PTRACE",
    "SYS_PACCT",
    "SYS_ADMIN",
    "SYS_BOOT",
    "SYS_NICE",
    "SYS_RESOURCE",
    "SYS_TIME",
    "SYS_TTY_CONFIG",
    "MKNOD",
    "LEASE",
    "AUDIT_WRITE",
    "AUDIT_CONTROL",
    "SETFCAP",
    "MAC_OVERRIDE",
    "MAC_ADMIN",
    "SYSLOG",
    "WAKE_ALARM",
    "BLOCK_SUSPEND",
    "AUDIT_READ",
    "PERFMON",
    "BPF",
    "CHECKPOINT_RESTORE",
];

pub(super) fn from_wire(wire: &oci::LinuxCapabilities) -> Result<runtime::LinuxCapabilities, SpecError> {
    let mut capabilities: runtime::LinuxCapabilities = blank("process.capabilities", "{}")?;
    capabilities
        .set_bounding(Some(set(&wire.Bounding)))
        .set_effective(Some(set(&wire.Effective)))
        .set_inheritable(Some(set(&wire.Inheritable)))
        .set_permitted(Some(set(&wire.Permitted)))
        .set_ambient(Some(set(&wire.Ambient)));
    Ok(capabilities)
}

/// The names in any of the sets that no capability has, each once.
pub(super) fn unknown(wire: &oci::LinuxCapabilities) -> BTreeSet<&str> {
    let sets = [&wire.Bounding, &wire.Effective, &wire.Inheritable, &wire.Permitted, &wire.Ambient];
    let names = sets.into_iter().flatten().map(String::as_str);
    names.filter(|name| capability(name).is_none()).collect()
}

pub(super) fn to_wire(capabilities: &runtime::LinuxCapabilities) -> oci::LinuxCapabilities {
    oci::LinuxCapabilities {
        Bounding: names(capabilities.bounding()),
        Effective: names(capabilities.effective()),
        Inheritable: names(capabilities.inheritable()),
        Permitted: names(capabilities.permitted()),
        Ambient: names(capabilities.ambient()),
        ..Default::default()
    }
}

fn set(names: &[String]) -> runtime::Capabilities {
    names.iter().filter_map(|name| capability(name)).collect()
}

fn capability(name: &str) -> Option<runtime::Capability> {
    let upper = name.to_ascii_uppercase();
    upper.strip_prefix("CAP_").unwrap_or(&upper).parse().ok()
}

fn names(set: &Option<runtime::Capabilities>) -> Vec<String> {
    let mut names: Vec<String> = set.iter().flatten().map(|capability| format!("CAP_{capability}")).collect();
    names.sort_unstable();
    names
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    #[test]
    fn every_capability_of_the_kernel_is_known() {
        let wire = oci::LinuxCapabilities {
            Bounding: CAPABILITIES.iter().map(|name| format!("CAP_{name}")).collect(),
            ..Default::default()
        };
        let capabilities = from_wire(&wire).unwrap();
        assert_eq!(capabilities.bounding().as_ref().map(HashSet::len), Some(CAPABILITIES.len()));
        let mut expected = wire;
        expected.Bounding.sort();
        assert_eq!(to_wire(&capabilities), expected);
    }

    #[test]
    fn a_message_without_names_is_five_empty_sets() {
        let capabilities = from_wire(&oci::LinuxCapabilities::default()).unwrap();
        let json = serde_json::to_value(&capabilities).unwrap();
        let empty = serde_json::json!({
            "bounding": [], "effective": [], "inheritable": [], "permitted": [], "ambient": []
        });
        assert_eq!(json, empty);
    }

    #[test]
    fn each_set_keeps_its_place() {
        let one = |name: &str| vec![format!("CAP_{name}")];
        let wire = oci::LinuxCapabilities {
            Bounding: one("CHOWN"),
            Effective: one("KILL"),
            Inheritable: one("SETGID"),
            Permitted: one("SETUID"),
            Ambient: one("BPF"),
            ..Default::default()
        };
        assert_eq!(to_wire(&from_wire(&wire).unwrap()), wire);
    }

    #[test]
    fn spellings_of_a_name() {
        for spelling in ["CAP_SYS_ADMIN", "SYS_ADMIN", "cap_sys_admin", "Sys_Admin"] {
            assert_eq!(capability(spelling), Some(runtime::Capability::SysAdmin), "{spelling}");
        }
    }

    #[test]
    fn an_unknown_name_is_left_out_and_told() {
        let odd = ["", "ALL", "CAP_", "CAP_CAP_KILL", "CAP_FLY"];
        let names = || ["CAP_KILL"].iter().chain(&odd).map(|name| (*name).to_owned()).collect();
        let wire = oci::LinuxCapabilities { Ambient: names(), Bounding: names(), ..Default::default() };
        assert!(unknown(&wire).into_iter().eq(odd));
        let kill = runtime::Capabilities::from([runtime::Capability::Kill]);
        let capabilities = from_wire(&wire).unwrap();
        assert_eq!(capabilities.ambient().as_ref(), Some(&kill));
        assert_eq!(capabilities.bounding().as_ref(), Some(&kill));
    }
}
