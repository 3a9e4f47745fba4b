//! One virtual machine with one sandbox for all scenarios that share: a thread of its own runs them in turn.
//!
//! It boots for the first of them. An agent that no longer answers afterwards fails the scenario, and the next one
//! gets a new machine.

use std::path::Path;
use std::sync::mpsc::{self, Receiver, Sender};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::Duration;

use libtest_mimic::Failed;
use nakai_ctl::Client;
use nakai_ctl::sandbox::GUEST_SHARE;
use nakai_ctl::vm::Vm;
use tempfile::TempDir;

use super::context::{Ctx, Hooks, MachineSide, Parts, Roots};
use super::guest_view::GuestView;
use super::{Fallible, Images, QUIET_MILLISECONDS, STREAM_PORT, Scenario};

/// How long an agent may take to say that it is alive.
const CHECK_LIMIT: Duration = Duration::from_secs(120);

struct Order {
    scenario: Arc<Scenario>,
    answer: Sender<Result<(), Failed>>,
}

/// The thread, once there is something to do.
pub(crate) struct SharedVm {
    images: Images,
    worker: Mutex<Option<(Sender<Order>, JoinHandle<()>)>>,
}

impl SharedVm {
    pub(crate) fn new(images: Images) -> Self {
        Self { images, worker: Mutex::new(None) }
    }

    /// Runs a scenario when its turn comes.
    pub(crate) fn run(&self, scenario: Arc<Scenario>) -> Result<(), Failed> {
        let (answer, answered) = mpsc::channel();
        {
            let mut worker = self.worker.lock().unwrap();
            let (orders, _) = worker.get_or_insert_with(|| {
                let (orders, receiver) = mpsc::channel();
                let images = self.images.clone();
                (orders, std::thread::spawn(move || work(&images, &receiver)))
            });
            let _ = orders.send(Order { scenario, answer });
        }
        answered.recv().unwrap_or_else(|_| Err("the thread of the VM has ended".into()))
    }

    /// Ends the machine.
    pub(crate) fn stop(&self) {
        if let Some((orders, thread)) = self.worker.lock().unwrap().take() {
            drop(orders);
            let _ = thread.join();
        }
    }
}

fn work(images: &Images, orders: &Receiver<Order>) {
    let runtime = super::runtime();
    let mut machine: Option<Machine> = None;
    // Why there is no machine: it will not be tried again and again.
    let mut hopeless: Option<String> = None;
    let mut number = 0;
    while let Ok(Order { scenario, answer }) = orders.recv() {
        number += 1;
        let result = runtime.block_on(async {
            if let Some(error) = &hopeless {
                return Err(error.into());
            }
            let running = match &mut machine {
                Some(running) => running,
                None => match Machine::boot(images).await {
                    Ok(booted) => machine.insert(booted),
                    Err(error) => return Err(hopeless.insert(error.to_string()).as_str().into()),
                },
            };
            let (outcome, alive) = running.run(images, &scenario, number).await;
            if !alive {
                machine = None;
            }
            outcome
        });
        let _ = answer.send(result);
    }
}

struct Machine {
    client: Client,
    view: Arc<GuestView>,
    vm: Vm,
    share: TempDir,
    files: TempDir,
}

impl Machine {
    async fn boot(images: &Images) -> Fallible<Self> {
        let share = share(images)?;
        let mut config = images.vm(share.path())?;
        config.cmdline.push(format!("agent.passfd_listener_port={STREAM_PORT}"));
        config.cmdline.push(format!("agent.stream_quiet_time={QUIET_MILLISECONDS}"));
        let vm = Vm::start(&config, |_| {}).await?;
        let client = vm.client().await?;
        let machine = Self { client, view: Arc::new(GuestView::of_vm()), vm, share, files: files(images)? };
        super::create_sandbox(&machine.context(images, "first".to_owned()), true).await?;
        Ok(machine)
    }

    fn context(&self, images: &Images, prefix: String) -> Ctx {
        context(
            images,
            &self.vm,
            self.client.clone(),
            [self.share.path(), self.files.path()],
            self.view.clone(),
            prefix,
        )
    }

    /// The outcome, and whether the agent lives.
    async fn run(&self, images: &Images, scenario: &Scenario, number: u32) -> (Result<(), Failed>, bool) {
        let ctx = self.context(images, format!("v{number}"));
        let outcome = super::drive_in_sandbox(scenario, &ctx).await;
        let alive = self.client.within(CHECK_LIMIT).check().await;
        let alive = alive.map_err(|error| format!("the agent is gone afterwards: {error}").into());
        let is_alive = alive.is_ok();
        let result = outcome.and(alive).map_err(|error| super::failed(&error, &self.vm.console_tail()));
        (result, is_alive)
    }
}

/// A new directory to share with a guest.
pub(super) fn share(images: &Images) -> Fallible<TempDir> {
    Ok(tempfile::Builder::new().prefix("share-").tempdir_in(images.directory()?)?)
}

/// A new directory for the images of a machine's disks.
pub(super) fn files(images: &Images) -> Fallible<TempDir> {
    Ok(tempfile::Builder::new().prefix("machine-").tempdir_in(images.directory()?)?)
}

/// `directories` are those that [`share`] and [`files`] have made.
pub(super) fn context(
    images: &Images,
    vm: &Vm,
    client: Client,
    directories: [&Path; 2],
    view: Arc<GuestView>,
    prefix: String,
) -> Ctx {
    let [share, files] = directories.map(Path::to_owned);
    Ctx::new(Parts {
        client,
        address: vm.address().clone(),
        prefix,
        images: images.clone(),
        roots: Roots { host: share, guest: GUEST_SHARE.trim_end_matches('/').to_owned() },
        view,
        hooks: Hooks(super::own_vm::HOOKS.to_owned()),
        machine: Some(MachineSide {
            qmp: vm.qmp_socket(),
            files,
            console: vm.run_directory().join("console.log"),
        }),
    })
}
