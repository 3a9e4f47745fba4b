//! startContainer hooks: in the container, by its init, between its start and its program.
//!
//! libcontainer would run them, and nobody would hear how that went. Here init says it into a fifo that the server reads
//! from the moment it lets init go (`sandbox::start`): words are a failure, and the fifo's end without any is the
//! program, or init's own end.

use std::collections::HashMap;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use libcontainer::container::{ContainerStatus, State};
use oci_spec::runtime::Hook;

use super::chain;
use super::init::gate::make_fifo;
use super::job::{CreateJob, Failure, FailureKind, start_words};

/// What is to be run, and where to say how it went.
#[derive(Debug)]
pub(super) struct StartHooks {
    hooks: Vec<Hook>,
    state: State,
    /// Closed by execve(2), and by that of each hook.
    words: OwnedFd,
}

impl StartHooks {
    /// Nothing where there are none. To be called before init is forked, which inherits the fifo.
    pub(super) fn prepare(job: &CreateJob) -> Result<Option<Self>, Failure> {
        if job.start_hooks.is_empty() {
            return Ok(None);
        }
        let words = make_fifo(&start_words(&job.state_root, &job.id))?;
        let mut state = State::new(&job.id, ContainerStatus::Created, None, job.bundle.clone());
        state.annotations = Some(job.annotations.clone());
        Ok(Some(Self { hooks: job.start_hooks.clone(), state, words }))
    }

    /// All that has to be open while they run.
    pub(super) fn words(&self) -> BorrowedFd<'_> {
        self.words.as_fd()
    }

    /// Runs all in their order, up to one that fails. `environment` is for those that have none.
    pub(super) fn run(&self, environment: &[String]) -> Result<(), Failure> {
        let environment = environment.iter().filter_map(|variable| variable.split_once('='));
        let environment: HashMap<_, _> =
            environment.map(|(name, value)| (name.to_owned(), value.to_owned())).collect();
        // As init sees itself.
        let state = State { pid: i32::try_from(std::process::id()).ok(), ..self.state.clone() };
        for hook in &self.hooks {
            let one = vec![hook.clone()];
            libcontainer::hooks::run_hooks(Some(&one), Some(&state), None, None, Some(&environment))
                .map_err(|error| self.tell(hook, &chain(&error)))?;
        }
        Ok(())
    }

    fn tell(&self, hook: &Hook, cause: &str) -> Failure {
        let message = format!("startContainer hook {}: {cause}", hook.path().display());
        let failure = Failure { kind: FailureKind::Hook, message }.brief();
        if let Ok(words) = serde_json::to_vec(&failure) {
            let _ = nix::unistd::write(&self.words, &words);
        }
        failure
    }
}
