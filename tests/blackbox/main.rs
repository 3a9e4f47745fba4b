//! Black-box tests: what a user of the agent sees, over the wire, and nothing else.
//!
//! Every scenario runs against the agent on this host (`host::…`: a unix socket, in namespaces of its own) and
//! against the agent in a virtual machine (`vm::…`: vsock), unless it says that it belongs to one of them. What a
//! scenario needs and can't have is a failure, never a skip. `make test` provides everything:
//!
//! | variable             | what                                                           |
//! |----------------------|----------------------------------------------------------------|
//! | `NAKAI_AGENT`        | the agent for the host, else the one that cargo has built      |
//! | `NAKAI_KERNEL`       | the guest's kernel                                             |
//! | `NAKAI_INITRD`       | the guest's initrd, with the agent in it                       |
//! | `NAKAI_BUSYBOX_ROOT` | a container's root filesystem, else one is made                |
//!
//! `cargo test --test blackbox -- host::signals` runs a part of them. The host's ones need root.

#![expect(clippy::disallowed_methods, reason = "these run on the host, where children are ours to wait for")]
#![expect(
    clippy::unwrap_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a panic is how a test fails"
)]

mod harness;
mod scenarios;

use std::process::ExitCode;
use std::sync::Arc;

use harness::reasons::Reasons;
use harness::shared_vm::SharedVm;
use harness::{Images, host, own_vm};
use libtest_mimic::{Arguments, Failed};

/// A look at a page of the documentation.
type Check = fn() -> Result<(), Failed>;

/// Scenarios wait more than they work; one of the threads feeds the shared VM.
const THREADS: usize = 4;

fn main() -> ExitCode {
    let mut arguments = Arguments::from_args();
    arguments.test_threads.get_or_insert(THREADS);
    harness::note_panics();
    // Containers' users read what is made here.
    nix::sys::stat::umask(nix::sys::stat::Mode::S_IWGRP | nix::sys::stat::Mode::S_IWOTH);
    let images = Images::of_environment();
    let vm = Arc::new(SharedVm::new(images.clone()));
    let reasons = Reasons::default();
    let mut trials = Vec::new();
    for scenario in scenarios::all() {
        let scenario = Arc::new(scenario);
        // The slow ones first, so that nothing is left to wait for alone at the end.
        if scenario.in_vm {
            let (scenario, vm, images) = (scenario.clone(), vm.clone(), images.clone());
            trials.push(reasons.trial(format!("vm::{}", scenario.name), move || {
                if scenario.own_agent { own_vm::run(&images, &scenario) } else { vm.run(scenario) }
            }));
        }
        if scenario.on_host {
            let (scenario, images) = (scenario.clone(), images.clone());
            let name = format!("host::{}", scenario.name);
            trials.push(reasons.trial(name, move || host::run(&images, &scenario)));
        }
    }
    let documents: [(&str, Check); 3] = [
        ("orchestrators_md", scenarios::page_is_up_to_date),
        ("coverage_md", scenarios::all_is_covered),
        ("faults_md", scenarios::faults_are_tested),
    ];
    trials.extend(documents.map(|(name, check)| reasons.trial(format!("docs::{name}"), check)));
    let conclusion = libtest_mimic::run(&arguments, trials);
    vm.stop();
    reasons.repeat();
    conclusion.exit_code()
}
