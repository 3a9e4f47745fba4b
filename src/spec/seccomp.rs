//! The seccomp filter: checked, and taken out of the spec.
//!
//! libcontainer loads it for a container's first process only, not for a further one, and builds it anew each
//! time. The worker's executor loads it for both. A profile has hundreds of names, of which nobody but the compiler needs
//! one: it is kept as text ([`SeccompProfile`]).

use std::sync::Arc;

use oci_spec::runtime::{Linux, LinuxSeccomp, LinuxSeccompAction as Action, LinuxSeccompFilterFlag as Flag};

use serde::{Deserialize, Deserializer, Serialize, Serializer};

use super::SpecError;

/// A profile in its JSON. The same profile is the same text.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct SeccompProfile(Arc<str>);

impl SeccompProfile {
    fn new(profile: &LinuxSeccomp) -> Self {
        // Writing what has names and numbers only to memory does not fail.
        Self(serde_json::to_string(profile).unwrap_or_default().into())
    }

    /// How long the text is.
    #[expect(clippy::len_without_is_empty, reason = "none is empty")]
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// The profile itself.
    ///
    /// # Errors
    /// The text is none.
    pub fn parse(&self) -> Result<LinuxSeccomp, serde_json::Error> {
        serde_json::from_str(&self.0)
    }
}

impl From<&str> for SeccompProfile {
    fn from(text: &str) -> Self {
        Self(text.into())
    }
}

impl Serialize for SeccompProfile {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&self.0)
    }
}

impl<'de> Deserialize<'de> for SeccompProfile {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer).map(|text| Self(text.into()))
    }
}

/// Takes the filter out of `linux`.
pub(super) fn take(linux: &mut Linux) -> Result<Option<SeccompProfile>, SpecError> {
    let Some(mut seccomp) = linux.seccomp_mut().take() else { return Ok(None) };
    // About who waits for an answer to a notification. The kernel refuses it where there are none (seccomp(2)).
    if let Some(mut flags) = seccomp.flags().clone() {
        flags.retain(|flag| *flag != Flag::SeccompFilterFlagWaitKillableRecv);
        seccomp.set_flags(Some(flags).filter(|flags| !flags.is_empty()));
    }
    let unsupported = |field: &str| {
        Err(SpecError::Unsupported {
            field: field.to_owned(),
            reason: "nobody in the guest answers notifications",
        })
    };
    if seccomp.listener_path().as_ref().is_some_and(|path| !path.as_os_str().is_empty()) {
        return unsupported("linux.seccomp.listenerPath");
    }
    let rules = seccomp.syscalls().as_deref().unwrap_or_default();
    if seccomp.default_action() == Action::ScmpActNotify
        || rules.iter().any(|rule| rule.action() == Action::ScmpActNotify)
    {
        return unsupported("linux.seccomp: SCMP_ACT_NOTIFY");
    }
    // Allows everything, always: no filter, so that the process does not pay for one.
    let idle = seccomp.default_action() == Action::ScmpActAllow
        && rules.iter().all(|rule| rule.action() == Action::ScmpActAllow);
    Ok((!idle).then(|| SeccompProfile::new(&seccomp)))
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn run(seccomp: Value) -> Result<Option<LinuxSeccomp>, SpecError> {
        let mut linux: Linux = serde_json::from_value(json!({ "seccomp": seccomp })).unwrap();
        let taken = take(&mut linux)?;
        assert!(linux.seccomp().is_none(), "it is left in the spec");
        let kept = taken.map(|profile| serde_json::to_string(&profile).unwrap());
        let read = kept.map(|text| serde_json::from_str::<SeccompProfile>(&text).unwrap());
        Ok(read.map(|profile| profile.parse().unwrap()))
    }

    #[test]
    fn a_filter_is_taken_out_unchanged() {
        let filter = json!({"defaultAction": "SCMP_ACT_ERRNO", "architectures": ["SCMP_ARCH_X86_64"],
            "syscalls": [{"names": ["mkdir"], "action": "SCMP_ACT_ERRNO", "errnoRet": 1}]});
        assert_eq!(serde_json::to_value(run(filter.clone()).unwrap()).unwrap(), filter);
        assert_eq!(run(json!(null)).unwrap(), None);
    }

    #[test]
    fn a_flag_for_notifications_means_nothing_without_them() {
        let filter = |flags: Value| {
            json!({"defaultAction": "SCMP_ACT_ERRNO", "flags": flags,
                "syscalls": [{"names": ["mkdir"], "action": "SCMP_ACT_ALLOW"}]})
        };
        let flags = |given: Value| run(filter(given)).unwrap().unwrap().flags().clone();
        let wait = "SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV";
        assert_eq!(flags(json!([wait])), None);
        let log = Some(vec![Flag::SeccompFilterFlagLog]);
        assert_eq!(flags(json!([wait, "SECCOMP_FILTER_FLAG_LOG"])), log);
    }

    #[test]
    fn a_filter_that_allows_everything_is_none() {
        assert_eq!(run(json!({"defaultAction": "SCMP_ACT_ALLOW"})).unwrap(), None);
    }

    #[test]
    fn notifications_are_refused_by_name() {
        for filter in [
            json!({"defaultAction": "SCMP_ACT_ALLOW", "listenerPath": "/run/l.sock"}),
            json!({"defaultAction": "SCMP_ACT_NOTIFY"}),
            json!({"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [{"names": ["mkdir"], "action": "SCMP_ACT_NOTIFY"}]}),
        ] {
            assert!(matches!(run(filter), Err(SpecError::Unsupported { .. })));
        }
    }
}
