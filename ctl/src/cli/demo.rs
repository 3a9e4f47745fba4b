//! `demo`: a VM, a sandbox, two containers, told in plain words and with the time of every step.
//!
//! It shows and it checks: the containers' own view (their first process, host name, limits) must be
//! what was asked for, or the demo fails.

use std::path::Path;
use std::time::Instant;

use nakai_ctl::rootfs::SharedRootfs;
use nakai_ctl::vm::{Vm, VmConfig};
use nakai_ctl::{Client, SpecBuilder, stdio};

use super::args::DemoOptions;
use super::error::CliError;
use super::say::say;
use super::signals::unless_interrupted;
use super::target::seconds;

/// A container of the demo.
struct Container<'a> {
    id: &'a str,
    rootfs: &'a Path,
    about: &'a str,
    script: &'a str,
    spec: fn(SpecBuilder) -> SpecBuilder,
    /// Lines that its output must have.
    expected: &'a [&'a str],
}

const BUSYBOX_SCRIPT: &str = "\
echo \"kernel: $(uname -sr)\"
echo \"I am $(id -un 2>/dev/null || id -u) on $(hostname), and these are all processes that I see:\"
ps
echo \"mounts: $(grep -c . /proc/self/mounts)\"";

const DEBIAN_SCRIPT: &str = "\
cat /etc/os-release
echo \"hostname: $(cat /proc/sys/kernel/hostname)\"
echo \"pid 1: $(cat /proc/1/comm)\"
c=/sys/fs/cgroup
[ -e $c/memory.max ] || c=$c$(sed -n 's/^0:://p' /proc/self/cgroup)
for limit in memory.max cpu.max pids.max; do echo \"$limit: $(cat $c/$limit)\"; done";

/// Runs the demo; 0 only if all of it worked.
pub(crate) async fn demo(options: &DemoOptions) -> Result<u8, CliError> {
    unless_interrupted(show(options)).await
}

async fn show(options: &DemoOptions) -> Result<u8, CliError> {
    let begin = Instant::now();
    let config = VmConfig::new(&options.kernel, &options.initrd);
    headline(&format!("A virtual machine: {} MiB of memory, {} CPU", config.memory, config.cpus));
    let vm = Vm::start(&config, |step| say!("    {step}")).await?;
    let result = containers(&vm, options).await;
    if result.is_err() {
        say!("    the last lines of the VM's console were:\n{}", vm.console_tail());
    }
    let stopping = Instant::now();
    vm.stop();
    result?;
    headline(&format!(
        "All worked. The VM is stopped ({}); the whole took {}",
        seconds(stopping.elapsed()),
        seconds(begin.elapsed())
    ));
    Ok(0)
}

async fn containers(vm: &Vm, options: &DemoOptions) -> Result<(), CliError> {
    let connecting = Instant::now();
    let client = vm.client().await?;
    client.check().await?;
    let checked = vm.boot_time() + connecting.elapsed();
    say!("    from power-on to the agent's first answer: {}", seconds(checked));
    let version = client.version().await?;
    say!("    the agent is version {}, its protocol {}", version.agent_version, version.grpc_version);
    let creating = Instant::now();
    vm.create_sandbox(&client, "demo").await?;
    say!("    sandbox created in {}", seconds(creating.elapsed()));

    let busybox = Container {
        id: "busybox",
        rootfs: &options.busybox,
        about: "a shell from busybox, with no limits",
        script: BUSYBOX_SCRIPT,
        spec: |spec| spec,
        expected: &["I am root on demo, and these are all processes that I see:"],
    };
    let debian = Container {
        id: "debian",
        rootfs: &options.debian,
        about: "Debian, with 64 MiB of memory, half a CPU and 32 processes",
        script: DEBIAN_SCRIPT,
        spec: |spec| spec.memory_limit(64 << 20).cpus(0.5).pids_limit(32),
        expected: &[
            "hostname: demo",
            "pid 1: sh",
            "memory.max: 67108864",
            "cpu.max: 50000 100000",
            "pids.max: 32",
        ],
    };
    container(vm, &client, &busybox).await?;
    container(vm, &client, &debian).await
}

async fn container(vm: &Vm, client: &Client, container: &Container<'_>) -> Result<(), CliError> {
    let id = container.id;
    headline(&format!("Container {id}: {}", container.about));
    let rootfs = SharedRootfs::share(container.rootfs, vm.share(), id)?;
    let spec = SpecBuilder::new(id, rootfs.guest_path()).args(["sh", "-c", container.script]).hostname(id);
    let spec = (container.spec)(spec).build();

    let mut step = Instant::now();
    let mut lap = || seconds(std::mem::replace(&mut step, Instant::now()).elapsed());
    client.create_container(id, spec).await?;
    let created = lap();
    client.start_container(id).await?;
    let started = lap();
    let finished = stdio::finish(client, id, id, b"").await?;
    let ran = lap();
    client.remove_container(id).await?;
    let removed = lap();

    let output = String::from_utf8_lossy(&finished.stdout);
    for line in output.lines().chain(String::from_utf8_lossy(&finished.stderr).lines()) {
        say!("    | {line}");
    }
    say!("    created in {created}, started in {started}, ran for {ran}, removed in {removed}");
    if finished.status != 0 {
        return Err(CliError::Demo(format!("container {id} ended with status {}", finished.status)));
    }
    match container.expected.iter().find(|&&wanted| !output.lines().any(|line| line == wanted)) {
        Some(missing) => Err(CliError::Demo(format!("container {id} did not print {missing:?}"))),
        None => Ok(()),
    }
}

fn headline(text: &str) {
    say!("\n==> {text}");
}
