//! `run` and `exec`.

use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use nakai_ctl::image::{Image, ImageConfig, Store};
use nakai_ctl::state::{Action, ContainerRecord, ContainerState, Lock, State};
use nakai_ctl::vm::VmConfig;
use nakai_ctl::{Address, SpecBuilder};

use nakai_protocols::agent::CreateContainerRequest;

use super::args::{DiskSize, ExecOptions, ProcessOptions, RunOptions, User};
use super::error::CliError;
use super::monitor;
use super::process::{attend, unless_interrupted};
use super::target::{self, Rootfs, Target};

/// Runs a container; its status is ours.
pub(crate) async fn run(address: Option<&Address>, options: &RunOptions) -> Result<u8, CliError> {
    check_terminal(options.process.interactive, options.process.tty)?;
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

/// One container from its creation to its end, on record all the while.
async fn run_at(target: &Target, id: &str, options: &RunOptions) -> Result<u8, CliError> {
    let book = Book { state: target.state.as_ref(), id };
    let lock = unless_interrupted(book.reserve(options)).await?;
    let rootfs = match book.step(Action::Create, create(target, id, options)).await {
        Ok(rootfs) => rootfs,
        Err(error) => {
            book.failed(&error, options, lock)?;
            return Err(error);
        }
    };
    // From here on there is a container to remove, whatever happens.
    let start = async { Ok(target.client.start_container(id).await?) };
    if let Err(error) = book.step(Action::Start, start).await {
        // Why it did not start tells more than why it can't be removed.
        let _ = target.client.remove_container(id).await;
        rootfs.release().await;
        book.failed(&error, options, lock)?;
        return Err(error);
    }
    book.note(|record| {
        record.run();
        record.share.clone_from(&rootfs.directory);
        record.disk.clone_from(&rootfs.disk);
    })?;
    if options.detach {
        keep(rootfs);
        monitor::start(&target.address, id)?;
        println!("{id}");
        return Ok(0);
    }
    drop(lock);
    let result = attend(&target.client, id, id, options.process.interactive, options.process.tty).await;
    if let Ok(status) = result {
        book.died(i32::from(status)).await?;
    }
    if options.keep && result.is_ok() {
        keep(rootfs);
        return result;
    }
    let lock = book.lock().await?;
    let removed = book.step(Action::Remove, async { Ok(target.client.remove_container(id).await?) }).await;
    rootfs.release().await;
    book.forget(lock);
    // Why it did not run tells more than why it can't be removed.
    let status = result?;
    removed?;
    Ok(status)
}

async fn create(target: &Target, id: &str, options: &RunOptions) -> Result<Rootfs, CliError> {
    let made = unless_interrupted(async {
        target.need_sandbox(id).await?;
        let Some(reference) = &options.image else {
            let path = options.rootfs.as_deref().unwrap_or(Path::new(""));
            return Ok((target.rootfs(path, id).await?, ImageConfig::default()));
        };
        let image = open_image(target, id, reference.clone()).await?;
        let config = image.config.clone();
        let rootfs = match options.root_disk {
            None => target.image_rootfs(image, id).await?,
            Some(DiskSize::Fit) => target.image_disk(image, id, None).await?,
            Some(DiskSize::Bytes(size)) => target.image_disk(image, id, Some(size)).await?,
        };
        Ok((rootfs, config))
    });
    let (rootfs, config) = made.await?;
    let create = async {
        let spec = spec(id, &rootfs.path, options, &config)?.build();
        let storages = rootfs.disk.iter().map(|disk| disk.storage(id)).collect();
        let request = CreateContainerRequest {
            container_id: id.to_owned(),
            exec_id: id.to_owned(),
            OCI: Some(spec).into(),
            storages,
            ..Default::default()
        };
        Ok(target.client.create_container_with(&request).await?)
    };
    match create.await {
        Ok(()) => Ok(rootfs),
        Err(error) => {
            rootfs.release().await;
            Err(error)
        }
    }
}

/// Reads and unpacks an image, which is a step that is told.
async fn open_image(target: &Target, id: &str, reference: String) -> Result<Image, CliError> {
    let opening = tokio::task::spawn_blocking(move || Image::open(&reference, &Store::of_user()));
    let opening = async { Ok(opening.await.map_err(|error| CliError::io("image")(error.into()))??) };
    match &target.state {
        Some(state) => state.journal().step(id, Action::Image, opening).await,
        None => opening.await,
    }
}

/// Leaves a root filesystem shared beyond this command.
fn keep(rootfs: Rootfs) {
    if let Some(shared) = rootfs.shared {
        shared.keep();
    }
}

/// The record of the container of this command; in a VM of its own there is none.
struct Book<'a> {
    state: Option<&'a State>,
    id: &'a str,
}

impl Book<'_> {
    async fn lock(&self) -> Result<Option<Lock>, CliError> {
        match self.state {
            Some(state) => Ok(Some(target::lock(state, self.id).await?)),
            None => Ok(None),
        }
    }

    /// Takes the container's name. A failed one may be tried again.
    async fn reserve(&self, options: &RunOptions) -> Result<Option<Lock>, CliError> {
        let lock = self.lock().await?;
        let Some(state) = self.state else { return Ok(lock) };
        match state.container(self.id).map(|record| record.state) {
            None | Some(ContainerState::Error { .. }) => {}
            Some(taken) => {
                return Err(CliError::Taken { id: self.id.to_owned(), state: taken.to_string() });
            }
        }
        let image = options.image.as_ref().map(PathBuf::from);
        let (args, rootfs) = (options.args.clone(), options.rootfs.clone().or(image).unwrap_or_default());
        let record = ContainerRecord { args, rootfs, ..ContainerRecord::new(self.id) };
        state.note_container(&record).map_err(self.unnoted())?;
        Ok(lock)
    }

    async fn step<T>(
        &self,
        action: Action,
        step: impl Future<Output = Result<T, CliError>>,
    ) -> Result<T, CliError> {
        match self.state {
            Some(state) => state.journal().step(self.id, action, step).await,
            None => step.await,
        }
    }

    fn note(&self, change: impl FnOnce(&mut ContainerRecord)) -> Result<(), CliError> {
        let noted = self.state.map_or(Ok(()), |state| state.change_container(self.id, change));
        noted.map_err(self.unnoted())
    }

    /// What was to stay stays as a failure, for a person to see; another's container leaves no trace.
    fn failed(&self, error: &CliError, options: &RunOptions, lock: Option<Lock>) -> Result<(), CliError> {
        let another = matches!(error, CliError::Call(error) if error.code == ttrpc::Code::ALREADY_EXISTS);
        if (options.detach || options.keep) && !another {
            return self.note(|record| record.fail(error));
        }
        self.forget(lock);
        Ok(())
    }

    async fn died(&self, code: i32) -> Result<(), CliError> {
        match self.state {
            Some(state) => monitor::died(state, self.id, code).await,
            None => Ok(()),
        }
    }

    fn forget(&self, lock: Option<Lock>) {
        if let Some(state) = self.state {
            state.forget_container(self.id);
        }
        if let Some(lock) = lock {
            lock.remove();
        }
    }

    fn unnoted(&self) -> impl FnOnce(std::io::Error) -> CliError {
        CliError::io(format!("note of container {}", self.id))
    }
}

/// The container that the options ask for, above what its image says.
fn spec(id: &str, root: &str, options: &RunOptions, image: &ImageConfig) -> Result<SpecBuilder, CliError> {
    let hostname = options.hostname.as_deref().unwrap_or(id);
    let reference = || options.image.clone().unwrap_or_default();
    let rest = if options.args.is_empty() { &image.cmd } else { &options.args };
    let args: Vec<String> = image.entrypoint.iter().chain(rest).cloned().collect();
    if args.is_empty() {
        return Err(CliError::NoProgram { image: reference() });
    }
    let mut spec = SpecBuilder::new(id, root);
    for (name, value) in image.env.iter().filter_map(|entry| entry.split_once('=')) {
        spec = spec.env(name, value);
    }
    if !image.working_dir.is_empty() {
        spec = spec.cwd(&image.working_dir);
    }
    if options.process.user.is_none() && !image.user.is_empty() {
        let user = image.user.parse::<User>();
        let user = user.map_err(|_| CliError::ImageUser { image: reference(), user: image.user.clone() })?;
        spec = spec.user(user.uid, user.gid, []);
    }
    let mut spec =
        process_spec(spec, &options.process, &args).hostname(hostname).readonly_rootfs(options.read_only);
    if let Some(bytes) = options.memory {
        spec = spec.memory_limit(bytes);
    }
    if let Some(cpus) = options.cpus {
        spec = spec.cpus(cpus);
    }
    if let Some(pids) = options.pids {
        spec = spec.pids_limit(pids);
    }
    Ok(spec)
}

fn process_spec(spec: SpecBuilder, options: &ProcessOptions, args: &[String]) -> SpecBuilder {
    let mut spec = spec.args(args);
    if let Some(directory) = &options.workdir {
        spec = spec.cwd(directory);
    }
    if let Some(User { uid, gid }) = options.user {
        spec = spec.user(uid, gid, []);
    }
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
    check_terminal(options.process.interactive, options.process.tty)?;
    let (client, state) = target::known(address).await?;
    let exec = made_up("exec");
    let process = process_spec(SpecBuilder::new(&options.id, ""), &options.process, &options.args).process();
    let lock = target::lock(&state, &options.id).await?;
    let start = client.exec_process(&options.id, &exec, process);
    let started = state.journal().step(&options.id, Action::Exec, start).await;
    state.unlock(&options.id, lock);
    started?;
    attend(&client, &options.id, &exec, options.process.interactive, options.process.tty).await
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

    #[test]
    fn options_reach_the_specification() {
        let line = "nakai-ctl run -t -e A=1 -e PATH=/x -u 7 -w /srv --rootfs /r --hostname h --memory 64M \
                    --cpus 2 --pids 9 --read-only echo hi";
        let Command::Run(options) = Cli::try_parse_from(line.split_whitespace()).unwrap().command else {
            panic!()
        };
        let spec = spec("web", "/guest", &options, &ImageConfig::default()).unwrap().build();
        assert_eq!(spec.Process.Args, ["echo", "hi"]);
        assert_eq!(spec.Process.Env, ["TERM=xterm", "A=1", "PATH=/x"]);
        assert_eq!((spec.Process.User.UID, &*spec.Process.Cwd), (7, "/srv"));
        assert_eq!((&*spec.Hostname, &*spec.Root.Path, spec.Root.Readonly), ("h", "/guest", true));
        let resources = &spec.Linux.Resources;
        assert_eq!((resources.Memory.Limit, resources.CPU.Quota), (64 << 20, 200_000));
        assert_eq!(resources.Pids.Limit, 9);
        assert!(spec.Process.Terminal);
    }

    #[test]
    fn an_image_says_what_the_options_don_t() {
        let image = ImageConfig {
            entrypoint: vec!["/init".to_owned()],
            cmd: vec!["serve".to_owned()],
            env: vec!["A=image".to_owned(), "B=image".to_owned()],
            user: "7:8".to_owned(),
            working_dir: "/srv".to_owned(),
            ..ImageConfig::default()
        };
        let spec = |line: &str, image: &ImageConfig| {
            let line = format!("nakai-ctl run --image i {line}");
            let Command::Run(options) = Cli::try_parse_from(line.split_whitespace()).unwrap().command else {
                panic!()
            };
            Ok::<_, String>(
                spec("web", "/g", &options, image)
                    .map_err(|error| error.to_string())?
                    .build()
                    .Process
                    .unwrap(),
            )
        };
        let process = spec("-e A=1", &image).unwrap();
        assert_eq!(process.Args, ["/init", "serve"]);
        assert!(process.Env.contains(&"A=1".to_owned()) && process.Env.contains(&"B=image".to_owned()));
        assert_eq!((process.User.UID, process.User.GID, &*process.Cwd), (7, 8, "/srv"));
        let process = spec("-u 9 -w / run", &image).unwrap();
        assert_eq!((process.Args.join(" "), process.User.UID, &*process.Cwd), ("/init run".into(), 9, "/"));
        let error = spec("", &ImageConfig::default()).unwrap_err();
        assert_eq!(error, "image i: it names no program: give one");
        let named = ImageConfig { user: "web".to_owned(), ..image };
        assert!(spec("", &named).unwrap_err().contains(r#"its user "web" is a name"#));
    }
}
