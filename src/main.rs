//! The agent's program: wiring only.
//!
//! The process that starts is the supervisor. It prepares the root when it is PID 1, forks the server, and
//! supervises until the sandbox is gone; then the guest powers off, or the service exits. So it does when the first
//! server can't boot.

use std::path::Path;
use std::process::exit;

use nakai::config::{Command, help, parse_args};
use nakai::guest::boot::Mode;
use nakai::guest::{power, rlimit, root};
use nakai::observe::console;
use nakai::server;
use nakai::supervisor::{Ended, ExitStatus, Supervisor};
use nakai::worker;

fn main() {
    worker::run_guest_hooks_if_asked();
    let mode = Mode::of_this_process();
    let is_init = mode == Mode::Init;
    let overrides = match parse_args(std::env::args().skip(1), is_init) {
        Ok(Command::Run(overrides)) => overrides,
        Ok(Command::Help) => leave(&help()),
        Ok(Command::Version) => leave(&server::version()),
        Err(error) => {
            console::say(format_args!("{error}; see --help"));
            exit(2)
        }
    };
    if let Err(error) = prepare(is_init) {
        fail(is_init, &error);
    }
    // Supervisor and server hold descriptors for each process. Workers get the limit back that there was.
    let open_files = rlimit::raise_open_files(Path::new("/proc"))
        .inspect_err(|error| console::say(format_args!("the limit of open files stays: {error}")));
    if is_init && let Err(error) = rlimit::allow_many_open_files(Path::new("/proc")) {
        console::say(format_args!("containers get no more than a million open files: {error}"));
    }
    let server = |ends, generation| server::run(ends, &overrides, mode, generation);
    match Supervisor::new(server, open_files.ok()).and_then(Supervisor::run) {
        Ok(Ended::ShutDown) if is_init => power::power_off(),
        Ok(Ended::ShutDown) => exit(0),
        Ok(Ended::Server(status)) => server_ended(is_init, status),
        Err(error) => fail(is_init, &error),
    }
}

/// As PID 1 the root is made one that containers can leave; else orphans of containers must come to us.
fn prepare(is_init: bool) -> Result<(), Box<dyn std::error::Error>> {
    if is_init {
        root::prepare()?;
        // A guest that runs out of memory shall lose a container, never its agent (proc_pid_oom_score_adj(5)).
        std::fs::write("/proc/self/oom_score_adj", "-1000")?;
    } else {
        nix::sys::prctl::set_child_subreaper(true)?;
    }
    Ok(())
}

/// The server has said why on the console or in the log. A guest without it is of no use.
fn server_ended(is_init: bool, status: ExitStatus) -> ! {
    if status == ExitStatus::Code(0) && !is_init {
        exit(0)
    }
    console::say(format_args!("the server ended: {status:?}"));
    if is_init { power::power_off() } else { exit(status.code()) }
}

fn fail(is_init: bool, error: &dyn std::fmt::Display) -> ! {
    if is_init {
        power::boot_failed(error)
    }
    console::say(format_args!("{error}"));
    exit(1)
}

#[expect(clippy::print_stdout, reason = "what was asked for on the command line")]
fn leave(text: &str) -> ! {
    println!("{}", text.trim_end());
    exit(0)
}
