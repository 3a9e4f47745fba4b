//! Resource limits: checked, and taken out of the process.
//!
//! libcontainer sets them in its own half-made process, which a low RLIMIT_NOFILE then breaks; the worker's
//! executor sets them last.

use oci_spec::runtime::{PosixRlimit, Process};

use super::SpecError;

/// Takes the limits out of `process`; `inherited` where it brings none.
pub(super) fn take(process: &mut Process, inherited: &[PosixRlimit]) -> Result<Vec<PosixRlimit>, SpecError> {
    let limits = process.rlimits().clone().filter(|limits| !limits.is_empty());
    process.set_rlimits(None);
    let Some(limits) = limits else { return Ok(inherited.to_vec()) };
    for (index, limit) in limits.iter().enumerate() {
        if limits.iter().take(index).any(|other| other.typ() == limit.typ()) {
            return Err(SpecError::Duplicate { field: "process.rlimits", value: limit.typ().to_string() });
        }
        if limit.soft() > limit.hard() {
            return Err(SpecError::Invalid {
                field: "process.rlimits",
                value: format!("{} soft {} hard {}", limit.typ(), limit.soft(), limit.hard()),
                reason: "the soft limit is above the hard one",
            });
        }
    }
    Ok(limits)
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn run(rlimits: Value, inherited: &[PosixRlimit]) -> Result<Value, SpecError> {
        let mut process: Process =
            serde_json::from_value(json!({"user": {}, "cwd": "/", "rlimits": rlimits})).unwrap();
        let taken = take(&mut process, inherited)?;
        assert!(process.rlimits().is_none());
        Ok(serde_json::to_value(taken).unwrap())
    }

    #[test]
    fn limits_are_taken_out_and_inherited_when_there_are_none() {
        let nofile = json!([{"type": "RLIMIT_NOFILE", "hard": 9, "soft": 5}]);
        let container: Vec<PosixRlimit> = serde_json::from_value(nofile.clone()).unwrap();
        assert_eq!(run(nofile.clone(), &[]).unwrap(), nofile);
        for none in [json!(null), json!([])] {
            assert_eq!(run(none, &container).unwrap(), nofile);
        }
        let core = json!([{"type": "RLIMIT_CORE", "hard": u64::MAX, "soft": 0}]);
        assert_eq!(run(core.clone(), &container).unwrap(), core, "its own replace the container's");
    }

    #[test]
    fn limits_that_setrlimit_would_refuse_are_refused_by_name() {
        let twice =
            json!([{"type": "RLIMIT_AS", "hard": 1, "soft": 1}, {"type": "RLIMIT_AS", "hard": 2, "soft": 1}]);
        assert!(run(twice, &[]).unwrap_err().to_string().contains("RLIMIT_AS"));
        let above = json!([{"type": "RLIMIT_NPROC", "hard": 1, "soft": 2}]);
        assert!(run(above, &[]).unwrap_err().to_string().contains("RLIMIT_NPROC"));
    }
}
