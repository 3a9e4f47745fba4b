//! `vm`: a machine in the foreground, or with a name and a keeper of its own.

use std::io::Write as _;
use std::process::Stdio;
use std::time::Duration;

use nakai_ctl::state::{State, VmRecord};
use nakai_ctl::sweep::sweep;
use nakai_ctl::time;
use nakai_ctl::vm::{Vm, VmConfig};
use nakai_ctl::vms::Registry;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde::{Deserialize, Serialize};
use tokio::io::{AsyncBufReadExt as _, AsyncRead, BufReader};

use super::args::VmOptions;
use super::error::CliError;
use super::say::{say, tell};
use super::signals::{Signals, unless_interrupted};
use super::target::seconds;

/// How long a guest may take to end by itself: emulated, on a busy host, it is slow.
const DESTROY_LIMIT: Duration = Duration::from_secs(40);

/// How long a keeper may take to end its machine before it is killed: longer than its guest may.
const END_LIMIT: Duration = Duration::from_secs(60);

/// What a keeper tells the command that started it, a line each.
#[derive(Debug, Deserialize, Serialize)]
#[serde(rename_all = "lowercase")]
enum Report {
    Step(String),
    Ready(String),
    Failed(String),
}

/// `vm start`
pub(crate) async fn start(options: &VmOptions) -> Result<u8, CliError> {
    if !options.keeper {
        sweep();
    }
    match &options.name {
        Some(name) if options.keeper => keep(name, options).await,
        Some(name) => detach(name).await,
        None => foreground(options).await,
    }
}

/// Boots the VM, prints its address to standard output and stays until ^C or the VM's end.
async fn foreground(options: &VmOptions) -> Result<u8, CliError> {
    let mut signals = Signals::ending()?;
    let (vm, state) = boot(options, &mut signals, |step| tell!("{step}")).await?;
    tell!("the agent serves after {}; ^C stops the VM", seconds(vm.boot_time()));
    tell!("shared directory {}", vm.share().display());
    say!("{}", vm.address());
    let end = until_its_end(&vm, &mut signals).await;
    if end.is_ok() {
        destroy_sandbox(&vm).await;
    }
    state.forget();
    end
}

async fn boot(
    options: &VmOptions,
    signals: &mut Signals,
    progress: impl Fn(&str),
) -> Result<(Vm, State), CliError> {
    let config = VmConfig {
        memory: options.memory,
        cpus: options.cpus,
        hotplug_ports: options.ports,
        share: options.share.clone(),
        console: options.console.clone(),
        cmdline: options.append.clone(),
        ..VmConfig::new(&options.kernel, &options.initrd)
    };
    let vm = signals.unless(async { Ok(Vm::start(&config, progress).await?) }).await?;
    let state = State::of(vm.address());
    let record = VmRecord::kept(vm.share().to_owned(), vm.qmp_socket(), vm.run_directory().to_owned());
    if let Err(error) = state.note_vm(&record) {
        state.forget();
        return Err(CliError::io("note of the VM")(error));
    }
    Ok((vm, state))
}

async fn until_its_end(vm: &Vm, signals: &mut Signals) -> Result<u8, CliError> {
    tokio::select! {
        () = signals.end() => Ok(0),
        () = vm.ended() => Err(CliError::VmEnded { tail: vm.console_tail() }),
    }
}

/// Starts a keeper and waits until its machine's agent serves.
async fn detach(name: &str) -> Result<u8, CliError> {
    let registry = Registry::of_user();
    registry.check_free(name)?;
    let failed = || CliError::io(format!("keeper of VM {name}"));
    let program = std::env::current_exe().map_err(failed())?;
    let mut command = tokio::process::Command::new(program);
    command.args(std::env::args_os().skip(1)).arg("--keeper");
    // It has a log when it has the name.
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::null());
    let mut keeper = command.spawn().map_err(failed())?;
    let reports = keeper.stdout.take().ok_or_else(|| failed()(std::io::ErrorKind::BrokenPipe.into()))?;
    let ready = unless_interrupted(until_ready(name, reports)).await;
    match &ready {
        Ok(address) => say!("{address}"),
        Err(_) => {
            end(&mut keeper).await;
            sweep();
        }
    }
    ready.map(|_| 0)
}

/// Has a keeper end its machine, if it has not yet.
async fn end(keeper: &mut tokio::process::Child) {
    if let Some(pid) = keeper.id().and_then(|pid| i32::try_from(pid).ok()) {
        // Not reaped, so the number is its own.
        let _ = kill(Pid::from_raw(pid), Signal::SIGTERM);
    }
    if tokio::time::timeout(END_LIMIT, keeper.wait()).await.is_err() {
        let _ = keeper.kill().await;
    }
}

async fn until_ready(name: &str, reports: impl AsyncRead + Unpin) -> Result<String, CliError> {
    let mut reports = BufReader::new(reports).lines();
    let failed = |problem: String| CliError::Keeper { name: name.to_owned(), problem };
    while let Some(line) = reports.next_line().await.map_err(|error| failed(error.to_string()))? {
        match serde_json::from_str(&line).map_err(|error| failed(error.to_string()))? {
            Report::Step(step) => tell!("{step}"),
            Report::Ready(address) => return Ok(address),
            Report::Failed(problem) => return Err(failed(problem)),
        }
    }
    let said = Registry::of_user().log_tail(name);
    Err(failed(if said.is_empty() { "it has ended".to_owned() } else { format!("it has ended: {said}") }))
}

/// A parent that is gone hears nothing, and that is all.
fn report(report: &Report) {
    if let Ok(mut line) = serde_json::to_string(report) {
        line.push('\n');
        let mut stdout = std::io::stdout();
        let _ = stdout.write_all(line.as_bytes()).and_then(|()| stdout.flush());
    }
}

/// The keeper: holds the machine until it is told to end it, or it ends.
async fn keep(name: &str, options: &VmOptions) -> Result<u8, CliError> {
    // No terminal's signals. It fails only for a leader of a process group, which has none either.
    let _ = nix::unistd::setsid();
    let registry = Registry::of_user();
    let end = async {
        let (mut record, lock) = registry.reserve(name, options.memory, options.cpus)?;
        let end = match registry.new_log(name).and_then(|log| Ok(nix::unistd::dup2_stderr(log)?)) {
            Ok(()) => keep_reserved(&registry, &mut record, options).await,
            Err(error) => Err(CliError::io(format!("log of VM {name}"))(error)),
        };
        registry.forget(name);
        // Why a machine ended that had booted, nobody else is told.
        if end.is_ok() || record.address.is_none() {
            registry.forget_log(name);
        }
        lock.remove();
        end
    };
    let end = end.await;
    if let Err(error) = &end {
        report(&Report::Failed(error.to_string()));
    }
    end
}

async fn keep_reserved(
    registry: &Registry,
    record: &mut nakai_ctl::vms::NamedVm,
    options: &VmOptions,
) -> Result<u8, CliError> {
    let mut signals = Signals::ending()?;
    let (vm, state) = boot(options, &mut signals, |step| report(&Report::Step(step.to_owned()))).await?;
    record.address = Some(vm.address().to_string());
    record.run = Some(vm.run_directory().to_owned());
    let end = match registry.note(record) {
        Ok(()) => {
            report(&Report::Step(format!("the agent serves after {}", seconds(vm.boot_time()))));
            report(&Report::Ready(vm.address().to_string()));
            // The directory that it was started in is not its business.
            let _ = std::env::set_current_dir("/");
            until_its_end(&vm, &mut signals).await
        }
        Err(error) => Err(error.into()),
    };
    if end.is_ok() {
        destroy_sandbox(&vm).await;
    }
    vm.stop();
    state.forget();
    end
}

/// Lets the guest end by itself: containers are killed and unmounted, disks are written, the machine powers off. One
/// that does not is ended all the same.
async fn destroy_sandbox(vm: &Vm) {
    let destroy = async {
        let client = vm.client().await.ok()?;
        // Without a sandbox it refuses, and nothing is lost.
        client.within(DESTROY_LIMIT).destroy_sandbox().await.ok()?;
        vm.ended().await;
        Some(())
    };
    let _ = tokio::time::timeout(DESTROY_LIMIT, destroy).await;
}

/// `vm ls`
pub(crate) fn ls() -> Result<u8, CliError> {
    sweep();
    say!("{:<16} {:<8} {:<8} {:<10} {:<8} ADDRESS", "NAME", "STATE", "PID", "CONTAINERS", "UPTIME");
    for vm in Registry::of_user().list() {
        let state = if vm.address.is_some() { "running" } else { "booting" };
        let pid = vm.pid().map_or_else(|| "-".to_owned(), |pid| pid.to_string());
        let address = vm.address.as_ref().and_then(|address| address.parse().ok());
        let containers = address.as_ref().map_or(0, |address| State::of(address).containers().len());
        let uptime = format!("{} s", time::seconds_now().saturating_sub(vm.started));
        let address = vm.address.as_deref().unwrap_or("-");
        say!("{:<16} {state:<8} {pid:<8} {containers:<10} {uptime:<8} {address}", vm.name);
    }
    Ok(0)
}

/// `vm stop`
pub(crate) async fn stop(names: &[String], all: bool) -> Result<u8, CliError> {
    let registry = Registry::of_user();
    sweep();
    let names = if all { registry.list().into_iter().map(|vm| vm.name).collect() } else { names.to_vec() };
    let mut ended = Ok(0);
    for name in names {
        // One that does not end keeps no other from it.
        ended = ended.and(registry.stop(&name).await.map(|()| 0).map_err(CliError::from));
    }
    ended
}
