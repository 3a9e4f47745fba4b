//! `vm start`: a VM in the foreground.

use nakai_ctl::vm::{Vm, VmConfig};

use super::args::VmOptions;
use super::error::CliError;
use super::process::{interrupted, unless_interrupted};
use super::state::{State, VmRecord};
use super::target::seconds;

/// Boots the VM, prints its address to standard output and stays until ^C or the VM's end.
pub(crate) async fn start(options: &VmOptions) -> Result<u8, CliError> {
    let config = VmConfig {
        memory: options.memory,
        cpus: options.cpus,
        share: options.share.clone(),
        console: options.console.clone(),
        cmdline: options.append.clone(),
        ..VmConfig::new(&options.kernel, &options.initrd)
    };
    let progress = |step: &str| eprintln!("nakai-ctl: {step}");
    let vm = unless_interrupted(async { Ok(Vm::start(&config, progress).await?) }).await?;
    let state = State::of(vm.address());
    let noted = state.note_vm(&VmRecord { share: vm.share().to_owned() });
    noted.map_err(CliError::io("note of the VM"))?;
    eprintln!("nakai-ctl: the agent serves after {}; ^C stops the VM", seconds(vm.boot_time()));
    eprintln!("nakai-ctl: shared directory {}", vm.share().display());
    println!("{}", vm.address());
    let end = tokio::select! {
        result = interrupted() => result.map(|()| 0),
        () = vm.ended() => Err(CliError::VmEnded { tail: vm.console_tail() }),
    };
    state.forget();
    end
}
