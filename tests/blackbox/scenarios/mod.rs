//! The scenarios, a file per subject.

mod lifecycle;

use crate::harness::Scenario;

/// All of them.
pub(crate) fn all() -> Vec<Scenario> {
    [lifecycle::scenarios()].into_iter().flatten().collect()
}
