//! `run` and `exec`.

use std::time::{SystemTime, UNIX_EPOCH};

use nakai_ctl::vm::VmConfig;
use nakai_ctl::{Address, Client, SpecBuilder};

use super::args::{ExecOptions, ProcessOptions, RunOptions};
use super::error::CliError;
use super::process::{attend, unless_interrupted};
use super::state::ContainerRecord;
use super::target::{self, Rootfs, Target};

/// Runs a container; its status is ours.
pub(crate) async fn run(address: Option<&Address>, options: &RunOptions) -> Result<u8, CliError> {
    check_terminal(&options.process)?;
    let target = unless_interrupted(find_target(address, options)).await?;
    let id = options.id.clone().unwrap_or_else(|| made_up("c"));
    let result = run_at(&target, &id, options).await;
    if let (Err(CliError::Call(error)), Some(tail)) = (&result, target.console_tail())
        && error.connection_lost
    {
        eprintln!("nakai-ctl: last lines of the VM's console:\n{tail}");
    }
    result
}

async fn find_target(address: Option<&Address>, options: &RunOptions) -> Result<Target, CliError> {
    match (address, &options.kernel, &options.initrd) {
        (Some(address), ..) => Target::at(address, options.share.clone()).await,
        (None, Some(_), Some(_)) if options.detach || options.keep => {
            Err(CliError::NeedsAddress { what: if options.detach { "--detach" } else { "--keep" } })
        }
        (None, Some(kernel), Some(initrd)) => {
            let config = VmConfig { share: options.share.clone(), ..VmConfig::new(kernel, initrd) };
            Target::boot(&config).await
        }
        _ => Err(CliError::NoTarget),
    }
}

async fn run_at(target: &Target, id: &str, options: &RunOptions) -> Result<u8, CliError> {
    let rootfs = unless_interrupted(async {
        target.need_sandbox(id).await?;
        target.rootfs(&options.rootfs, id).await
    })
    .await?;
    let spec = spec(id, &rootfs.path, options).build();
    target.client.create_container(id, spec).await?;
    // From here on there is a container to remove, whatever happens.
    let result = live(target, id, options).await;
    if (options.detach || options.keep) && result.is_ok() {
        note(target, id, options, rootfs)?;
        return result;
    }
    let removed = target.client.remove_container(id).await;
    drop(rootfs);
    // Why it did not run tells more than why it can't be removed.
    let status = result?;
    removed?;
    Ok(status)
}

async fn live(target: &Target, id: &str, options: &RunOptions) -> Result<u8, CliError> {
    target.client.start_container(id).await?;
    if options.detach {
        println!("{id}");
        return Ok(0);
    }
    attend(&target.client, id, id, options.process.interactive, options.process.tty).await
}

/// Notes a container that outlives this command; its root filesystem stays shared.
fn note(target: &Target, id: &str, options: &RunOptions, rootfs: Rootfs) -> Result<(), CliError> {
    let created = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |time| time.as_secs());
    let shared = rootfs.shared.is_some();
    if let Some(shared) = rootfs.shared {
        shared.keep();
    }
    let Some(state) = &target.state else { return Ok(()) };
    let record = ContainerRecord {
        id: id.to_owned(),
        args: options.args.clone(),
        rootfs: options.rootfs.clone(),
        created,
        share: target.share().filter(|_| shared).map(Into::into),
    };
    state.note_container(&record).map_err(CliError::io(format!("note of container {id}")))
}

fn spec(id: &str, root: &str, options: &RunOptions) -> SpecBuilder {
    let hostname = options.hostname.as_deref().unwrap_or(id);
    let mut spec = process_spec(SpecBuilder::new(id, root), &options.process, &options.args)
        .hostname(hostname)
        .readonly_rootfs(options.read_only);
    if let Some(bytes) = options.memory {
        spec = spec.memory_limit(bytes);
    }
    if let Some(cpus) = options.cpus {
        spec = spec.cpus(cpus);
    }
    if let Some(pids) = options.pids {
        spec = spec.pids_limit(pids);
    }
    spec
}

fn process_spec(spec: SpecBuilder, options: &ProcessOptions, args: &[String]) -> SpecBuilder {
    let spec = spec.args(args).cwd(&options.workdir).user(options.user.uid, options.user.gid, []);
    options.env.iter().fold(spec.terminal(options.tty), |spec, entry| match entry.split_once('=') {
        Some((name, value)) => spec.env(name, value),
        None => match std::env::var(entry) {
            Ok(value) => spec.env(entry, &value),
            Err(_) => spec,
        },
    })
}

/// Runs a further process in a container; its status is ours.
pub(crate) async fn exec(address: Option<&Address>, options: &ExecOptions) -> Result<u8, CliError> {
    check_terminal(&options.process)?;
    let client: Client = target::client(address).await?;
    let exec = made_up("exec");
    let process = process_spec(SpecBuilder::new(&options.id, ""), &options.process, &options.args).process();
    client.exec_process(&options.id, &exec, process).await?;
    attend(&client, &options.id, &exec, options.process.interactive, options.process.tty).await
}

/// A terminal that nobody types at would wait for keys for ever.
fn check_terminal(options: &ProcessOptions) -> Result<(), CliError> {
    use std::io::IsTerminal as _;
    let missing = options.tty && options.interactive && !std::io::stdin().is_terminal();
    if missing { Err(CliError::NoTerminal) } else { Ok(()) }
}

/// A name that is not taken.
fn made_up(prefix: &str) -> String {
    let time = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |time| time.as_micros());
    format!("{prefix}-{:x}-{:x}", std::process::id(), time & 0xffff_ffff)
}

#[cfg(test)]
mod tests {
    use super::super::args::{Cli, Command};
    use super::*;
    use clap::Parser as _;

    #[test]
    fn options_reach_the_specification() {
        let line = "nakai-ctl run -t -e A=1 -e PATH=/x -u 7 -w /srv --rootfs /r --hostname h --memory 64M \
                    --cpus 2 --pids 9 --read-only echo hi";
        let Command::Run(options) = Cli::try_parse_from(line.split_whitespace()).unwrap().command else {
            panic!()
        };
        let spec = spec("web", "/guest", &options).build();
        assert_eq!(spec.Process.Args, ["echo", "hi"]);
        assert_eq!(spec.Process.Env, ["TERM=xterm", "A=1", "PATH=/x"]);
        assert_eq!((spec.Process.User.UID, &*spec.Process.Cwd), (7, "/srv"));
        assert_eq!((&*spec.Hostname, &*spec.Root.Path, spec.Root.Readonly), ("h", "/guest", true));
        let resources = &spec.Linux.Resources;
        assert_eq!((resources.Memory.Limit, resources.CPU.Quota), (64 << 20, 200_000));
        assert_eq!(resources.Pids.Limit, 9);
        assert!(spec.Process.Terminal);
    }
}
