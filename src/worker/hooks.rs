//! Running hooks in the guest's own namespaces: poststart and poststop.

use libcontainer::container::{ContainerStatus, State};

use super::chain;
use super::job::{Failure, FailureKind, RunHooksJob};
use super::report::Report;

/// Runs all hooks in their order; a failure does not keep the later ones from running and is reported at the
/// end (runtime-spec, "Lifecycle": failing poststart and poststop hooks are logged and the rest goes on).
pub(super) fn run(job: &RunHooksJob, report: &Report) -> Result<(), Failure> {
    let status = if job.running { ContainerStatus::Running } else { ContainerStatus::Stopped };
    let mut state = State::new(&job.id, status, job.pid, job.bundle.clone());
    state.annotations = Some(job.annotations.clone());
    let mut failures = Vec::new();
    for hook in &job.hooks {
        let one = vec![hook.clone()];
        if let Err(error) =
            libcontainer::hooks::run_hooks(Some(&one), Some(&state), Some(&job.bundle), None, None)
        {
            failures.push(format!("{}: {}", hook.path().display(), chain(&error)));
        }
    }
    if failures.is_empty() {
        return Ok(());
    }
    Err(report.failure(FailureKind::Hook, &format!("hook {}", failures.join("; hook "))))
}
