//! `run` and `exec`: all front ends' containers are run here, once they are an order.

use std::path::PathBuf;
use std::time::{SystemTime, UNIX_EPOCH};

use nakai_ctl::Address;
use nakai_ctl::cri::extras::RootKind;
use nakai_ctl::cri::supervise::{Console, supervise};
use nakai_ctl::cri::users::User;
use nakai_ctl::cri::{Engine, Order};
use nakai_ctl::docker::by_flag;
use nakai_ctl::state::ContainerRecord;
use nakai_ctl::vm::VmConfig;

use super::args::{DiskSize, ExecOptions, OwnVm, RunOptions};
use super::attend;
use super::error::CliError;
use super::input::Input;
use super::process::{self, exit_code};
use super::say::{say, tell};
use super::signals::{Signals, unless_interrupted};
use super::target::{self, Target};

/// What becomes of a container that is run.
#[derive(Clone, Copy, Debug)]
pub(crate) struct How {
    pub(crate) detach: bool,
    pub(crate) keep: bool,
    pub(crate) interactive: bool,
}

impl How {
    /// It outlives the command.
    fn stays(self) -> bool {
        self.detach || self.keep
    }
}

/// `run`
pub(crate) async fn run(address: Option<&Address>, options: &RunOptions) -> Result<u8, CliError> {
    let (interactive, tty) = (options.flags.interactive, options.flags.tty);
    if !options.detach {
        check_terminal(interactive, tty)?;
    }
    let order = order(options, &made_up("c"))?;
    let how = How { detach: options.detach, keep: options.keep, interactive };
    let ended = run_order(address, options.share.clone(), &options.vm, order, how).await;
    ended.map_err(|error| match error {
        CliError::Cri(error) => CliError::Cri(by_flag(error)),
        other => other,
    })
}

/// What the options ask for: a container that is called `id` where they don't name it.
pub(crate) fn order(options: &RunOptions, id: &str) -> Result<Order, CliError> {
    let (root, image, args) = match (&options.rootfs, &options.image, options.args.split_first()) {
        (Some(path), ..) => (RootKind::Itself, path.display().to_string(), options.args.as_slice()),
        (None, Some(image), _) => (RootKind::Image, image.clone(), options.args.as_slice()),
        (None, None, Some((option, _))) if option.starts_with('-') => {
            return Err(CliError::NoOption(option.clone()));
        }
        // As Docker has it.
        (None, None, Some((image, args))) => (RootKind::Image, image.clone(), args),
        (None, None, None) => return Err(CliError::NoImage),
    };
    let mut order = options.flags.order(&image, args, id)?;
    order.extras.root = match options.root_disk {
        Some(DiskSize::Fit) => RootKind::Disk(None),
        Some(DiskSize::Bytes(size)) => RootKind::Disk(Some(size)),
        None if options.root_layers => RootKind::Layers,
        None => root,
    };
    // Somebody may attach to a detached one later, and more than once.
    order.config.stdin_once = order.config.stdin && !options.detach;
    Ok(order)
}

/// Creates a container, starts it and stays with it, or leaves it running; its status is ours.
pub(crate) async fn run_order(
    address: Option<&Address>,
    share: Option<PathBuf>,
    vm: &OwnVm,
    mut order: Order,
    how: How,
) -> Result<u8, CliError> {
    let target = match (address, &vm.kernel, &vm.initrd) {
        (Some(address), ..) => Target::at(address, share).await?,
        (None, Some(_), Some(_)) if how.stays() => {
            return Err(CliError::NeedsAddress { what: if how.detach { "--detach" } else { "--keep" } });
        }
        (None, Some(kernel), Some(initrd)) => {
            let config = VmConfig { share, ..VmConfig::new(kernel, initrd) };
            unless_interrupted(Target::boot(&config)).await?
        }
        _ => return Err(CliError::NoTarget),
    };
    if how.stays() {
        keep_log(&target.engine, &mut order);
    }
    let result = run_at(&target, &order, how).await;
    if let (Err(error), Some(tail)) = (&result, target.console_tail())
        && error.connection_lost()
    {
        tell!("last lines of the VM's console:\n{tail}");
    }
    result
}

/// Has the output of a container that outlives this command kept, where the order does not say where: nobody else
/// would read it, and the container would wait for that when the pipe is full.
pub(crate) fn keep_log(engine: &Engine, order: &mut Order) {
    if let (true, Some(id)) = (order.pod.log_directory.is_empty(), &order.id) {
        order.pod.log_directory = engine.state().place("logs", id).display().to_string();
    }
}

/// Creates a container, in a sandbox that is made if there is none. A signal that comes before undoes it.
pub(crate) async fn create(
    engine: &Engine,
    order: &Order,
    stays: bool,
    signals: &mut Signals,
) -> Result<ContainerRecord, CliError> {
    let (tell, told) = tokio::sync::oneshot::channel();
    let create = engine.create_unless(order, stays, async {
        if told.await.is_err() {
            std::future::pending::<()>().await;
        }
    });
    let interrupted = async {
        signals.end().await;
        tell!("interrupted: what has been done is undone; once more, and it is left for rm");
        let _ = tell.send(());
        signals.end().await;
    };
    let created = tokio::select! {
        biased;
        created = create => created?,
        () = interrupted => return Err(CliError::Interrupted),
    };
    let (record, warnings) = created;
    for warning in warnings {
        tell!("{warning}");
    }
    Ok(record)
}

async fn run_at(target: &Target, order: &Order, how: How) -> Result<u8, CliError> {
    let mut engine = target.engine.clone();
    target.need_share(order)?;
    let mut signals = Signals::forwarded()?;
    let record = create(&engine, order, how.stays(), &mut signals).await?;
    let id = record.id.as_str();
    if signals.is_ended().await {
        engine.remove(id).await?;
        return Err(CliError::Interrupted);
    }
    let result = live(target, &mut engine, &record, how, &mut signals).await;
    let stays = if result.is_ok() { how.stays() } else { how.stays() && has_failed(&engine, id) };
    // A VM of its own takes the container with it; an auto-removed one is gone already.
    if stays || engine.record(id).is_err() || (target.ends() && result.is_ok()) {
        return result;
    }
    let removed = engine.remove(id).await;
    // Why it did not run tells more than why it can't be removed.
    let status = result?;
    removed?;
    Ok(status)
}

/// What was to stay stays as a failure, for a person to see.
fn has_failed(engine: &Engine, id: &str) -> bool {
    engine.record(id).is_ok_and(|record| record.state.word() == "error")
}

/// Starts a container and stays with it, if need be by another connection, which `engine` has then.
async fn live(
    target: &Target,
    engine: &mut Engine,
    record: &ContainerRecord,
    how: How,
    signals: &mut Signals,
) -> Result<u8, CliError> {
    let id = record.id.as_str();
    let turn = engine.state().try_attend(id);
    engine.start(id).await?;
    if how.detach {
        attend::leave(&target.address, id, turn)?;
        say!("{id}");
        return Ok(0);
    }
    // A VM of its own is gone with its connection.
    let address = (!target.ends()).then_some(&target.address);
    let input = how.interactive.then(Input::of_program);
    loop {
        let stdin = input.clone().map(|input| Box::new(input) as _);
        let console = Console { stdin, echo: true };
        let work = async {
            tokio::select! {
                ended = supervise(engine, id, console) => Ok(ended?),
                // Kills that nobody asks for would be told of a later container of the name.
                never = engine.note_oom_kills() => Ok(never.map(|()| 0)?),
            }
        };
        let (interactive, terminal) = (how.interactive, record.order.config.tty);
        let user = process::User { interactive, terminal, signals: &mut *signals };
        let ended = process::beside(engine.client(), id, id, user, work).await;
        match attend::again_after(&ended, address, engine, id, input.as_ref()).await {
            Some(again) => *engine = again,
            None => return noted(engine, id, ended).await,
        }
    }
}

/// The end of a container that was stayed with. Why that did not work is on record.
pub(crate) async fn noted(engine: &Engine, id: &str, ended: Result<i32, CliError>) -> Result<u8, CliError> {
    match ended {
        Ok(status) => Ok(exit_code(status)),
        // It may be gone with the machine, and all notes with it.
        Err(error) if engine.record(id).is_err() => Err(error),
        Err(error) => {
            engine.change(id, |record| record.fail(&error)).await?;
            Err(error)
        }
    }
}

/// Runs a further process in a container; its status is ours.
pub(crate) async fn exec(address: Option<&Address>, options: &ExecOptions) -> Result<u8, CliError> {
    check_terminal(options.interactive, options.tty)?;
    let engine = target::engine(address).await?;
    let (id, exec) = (options.id.as_str(), made_up("exec"));
    let mut process = engine.process(id, &options.args, options.tty);
    if let Some(asked) = &options.user {
        let User { uid, gid, groups } = engine.user(id, asked)?;
        let user = process.User.mut_or_insert_default();
        (user.UID, user.GID, user.AdditionalGids) = (uid, gid, groups);
    }
    if let Some(directory) = &options.workdir {
        process.Cwd.clone_from(directory);
    }
    for entry in &options.env {
        let own = || std::env::var(entry).ok().map(|value| (entry.clone(), value));
        let given = entry.split_once('=').map(|(name, value)| (name.to_owned(), value.to_owned()));
        if let Some((name, value)) = given.or_else(own) {
            let prefix = format!("{name}=");
            process.Env.retain(|entry| !entry.starts_with(&prefix));
            process.Env.push(prefix + &value);
        }
    }
    engine.exec(id, &exec, process).await?;
    let mut engine = engine;
    let input = options.interactive.then(Input::of_program);
    loop {
        let ended = process::attend(engine.client(), id, &exec, input.clone(), options.tty).await;
        match attend::again_after(&ended, address, &engine, id, input.as_ref()).await {
            Some(again) => engine = again,
            None => return ended,
        }
    }
}

/// A terminal that nobody types at would wait for keys for ever.
pub(super) fn check_terminal(interactive: bool, tty: bool) -> Result<(), CliError> {
    use std::io::IsTerminal as _;
    let missing = tty && interactive && !std::io::stdin().is_terminal();
    if missing { Err(CliError::NoTerminal) } else { Ok(()) }
}

/// A name that is not taken.
pub(super) fn made_up(prefix: &str) -> String {
    let time = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |time| time.as_micros());
    format!("{prefix}-{:x}-{:x}", std::process::id(), time & 0xffff_ffff)
}

#[cfg(test)]
mod tests {
    use super::super::args::{Cli, Command};
    use super::*;
    use clap::Parser as _;

    fn of(line: &str) -> Result<Order, String> {
        let words = format!("nakai-ctl run {line}");
        let cli = Cli::try_parse_from(words.split_whitespace()).map_err(|error| error.to_string())?;
        let Command::Run(options) = cli.command else { panic!("{line}") };
        order(&options, "made-up").map_err(|error| error.to_string())
    }

    #[test]
    fn options_reach_the_order() {
        let order =
            of("-t -e A=1 -u 7 -w /srv --rootfs /r --hostname h --memory 64M --cpus 2 --pids 9 --read-only \
                        --id box echo hi")
            .unwrap();
        let config = &order.config;
        assert_eq!((config.args.join(" "), &*config.working_dir), ("echo hi".to_owned(), "/srv"));
        assert_eq!((&*config.image.image, order.extras.root), ("/r", RootKind::Itself));
        assert_eq!((order.id.as_deref(), &*order.pod.hostname), (Some("box"), "h"));
        let resources = &config.linux.resources;
        assert_eq!((resources.memory_limit_in_bytes, resources.cpu_quota), (64 << 20, 200_000));
        assert_eq!((order.extras.pids_limit, order.extras.user.as_deref()), (Some(9), Some("7")));
        assert!(config.tty && config.linux.security_context.readonly_rootfs && order.extras.image_health);
    }

    #[test]
    fn a_root_comes_by_three_words() {
        let words = |order: &Order| (order.config.image.image.clone(), order.config.args.join(" "));
        let image = of("--image /i -it run --rm").unwrap();
        assert_eq!(words(&image), ("/i".to_owned(), "run --rm".to_owned()));
        assert!(image.config.stdin && image.config.stdin_once && !image.extras.auto_remove);
        let docker = of("-d -i --rm --privileged /i sh").unwrap();
        assert_eq!(words(&docker), ("/i".to_owned(), "sh".to_owned()));
        assert!(docker.config.stdin && !docker.config.stdin_once && docker.extras.auto_remove);
        let root = |line: &str| of(line).unwrap().extras.root;
        assert_eq!(root("--image /i --root-disk=64M"), RootKind::Disk(Some(64 << 20)));
        assert_eq!(
            (root("--root-disk /i"), root("--root-layers /i")),
            (RootKind::Disk(None), RootKind::Layers)
        );
        for (line, message) in [
            ("", "no image"),
            ("--detech /i sh", "--detech is no option"),
            ("--rootfs /r --image /i sh", "cannot be used with"),
            ("--rootfs /r --root-disk sh", "cannot be used with"),
            ("--root-disk --root-layers /i", "cannot be used with"),
            ("--rm --restart always /i", "--rm"),
            ("--rootfs /r --memory -1 sh", "--memory"),
            ("--rootfs /r --cpus 0 sh", "--cpus"),
        ] {
            let error = of(line).unwrap_err();
            assert!(error.contains(message), "{line}: {error}");
        }
    }
}
