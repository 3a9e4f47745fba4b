//! What machines leave behind whose `vm start` was killed: records, notebooks with what containers had of this host,
//! and run directories. Whoever meets them cleans up, so nothing waits for a service of its own.
//!
//! A run directory is taken for left when the lock in it is free, a notebook when its machine's keeper is gone, too: of
//! a keeper in another PID namespace only the one is seen from here, of one with another temporary directory only the
//! other.

use std::fs;
use std::path::Path;

use crate::state::{State, VmRecord};
use crate::vm::{remove_run_directories_left, remove_run_directory, run_directory_is_held};
use crate::vms::Registry;

/// Cleans up after this user's machines that were killed.
pub fn sweep() {
    // Those with a name are cleaned up when they are looked at.
    drop(Registry::of_user().list());
    sweep_in(&State::base(), &std::env::temp_dir());
}

fn sweep_in(notebooks: &Path, runs: &Path) {
    for entry in fs::read_dir(notebooks).into_iter().flatten().flatten() {
        let notebook = State::at(entry.path());
        if let Some(vm) = notebook.vm().filter(has_ended) {
            notebook.forget();
            if let Some(run) = &vm.run {
                remove_run_directory(run);
            }
        }
    }
    // Those of machines that had not booted yet.
    remove_run_directories_left(runs);
}

fn has_ended(vm: &VmRecord) -> bool {
    let held = vm.run.as_deref().is_none_or(run_directory_is_held);
    !held && vm.keeper.as_deref().is_some_and(|keeper| crate::connect::pid_of(keeper).is_none())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::address::Address;
    use crate::cri::Holdings;
    use crate::nets::Function;
    use crate::nets::function::{FunctionOrder, HostFunction};
    use crate::state::ContainerRecord;
    use crate::vm::RunDirectory;

    /// A process that is none.
    const GONE: &str = "1@1";

    fn notebook(base: &Path, name: &str, run: &Path, keeper: &str) -> State {
        let state = State::in_directory(base, &Address::Unix(name.into()));
        let (run, keeper) = (Some(run.to_owned()), Some(keeper.to_owned()));
        state.note_vm(&VmRecord { share: "/s".into(), qmp: None, run, keeper }).unwrap();
        let its = HostFunction { address: format!("function of {name}"), ..HostFunction::default() };
        let function = Function::claimed(&FunctionOrder::default(), &its);
        let holdings = Holdings { functions: vec![function], ..Holdings::default() };
        state.note_container(&ContainerRecord { holdings, ..ContainerRecord::new("web") }).unwrap();
        state
    }

    #[test]
    fn what_a_killed_machine_had_is_free_again_and_no_other_loses_anything() {
        let (base, runs) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let mine = crate::connect::process(std::process::id().cast_signed()).unwrap();
        let [held, left, booting] =
            ["held", "left", "booting"].map(|_| RunDirectory::within(runs.path()).unwrap());
        let [left, booting] = [left, booting].map(RunDirectory::abandon);
        fs::write(left.join("console.log"), "x").unwrap();
        let other = runs.path().join("nakai-vm-of-another-program");
        fs::create_dir(&other).unwrap();

        let lives = notebook(base.path(), "lives", held.path(), &mine);
        let elsewhere = notebook(base.path(), "elsewhere", Path::new("/nonexistent"), &mine);
        let in_other_pids = notebook(base.path(), "in-other-pids", held.path(), GONE);
        let killed = notebook(base.path(), "killed", &left, GONE);
        sweep_in(base.path(), runs.path());
        for state in [&lives, &elsewhere, &in_other_pids] {
            assert!(state.container("web").is_some(), "{state:?}");
        }
        assert!(killed.container("web").is_none() && killed.vm().is_none());
        assert!(held.path().exists() && other.exists());
        assert!(!left.exists() && !booting.exists());
        // The machine that has ended, with its run directory, is nobody's to guard.
        drop(held);
        sweep_in(base.path(), runs.path());
        assert!(in_other_pids.vm().is_none() && lives.vm().is_some());
    }
}
