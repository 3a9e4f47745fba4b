//! Compaction of the guest's free memory.

use super::job::{CompactJob, Failure};

/// Returns when the kernel is done, which may take minutes. A signal that kills ends it.
pub(super) fn run(job: &CompactJob) -> Result<(), Failure> {
    let written = std::fs::write(&job.trigger, "1");
    written.map_err(|error| Failure::internal(format!("{}: {error}", job.trigger.display())))
}
