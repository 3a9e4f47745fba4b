//! What calls cost: time, and bytes a second.

use std::time::{Duration, Instant};

use nakai_protocols::oci;
use tokio::task::JoinSet;

use super::figures::Figures;
use super::stream::Streams;
use super::subject::Subject;
use super::{Fallible, scale};

const MIB: f64 = 1024.0 * 1024.0;
/// Bytes moved for one sample of a stream.
const STREAM: usize = 64 << 20;
const STREAM_SLOW: usize = 8 << 20;

pub(crate) async fn measure(subject: &Subject, name: &'static str, figures: &mut Figures) -> Fallible<()> {
    let slow = subject.first_check > Duration::from_secs(1);
    let repeat = if slow { 10 } else { 40 };
    let stream = if slow { STREAM_SLOW } else { STREAM };
    for _ in 0..repeat {
        let begin = Instant::now();
        subject.client.check().await?;
        figures.add(name, "Check", "us", begin.elapsed().as_secs_f64() * 1e6);
    }
    lifecycles(subject, name, figures, repeat).await?;
    hold(subject).await?;
    for i in 0..repeat {
        let begin = Instant::now();
        scale::exec_true(subject, "hold", &format!("e{i}")).await?;
        figures.add(name, "exec + wait", "ms", ms(begin));
        let begin = Instant::now();
        subject.client.stats_container("hold").await?;
        figures.add(name, "StatsContainer", "ms", ms(begin));
    }
    for (figure, len) in [("stdout, 64 KiB reads", 64 << 10), ("stdout, 1 MiB reads", 1 << 20)] {
        figures.add(name, figure, "MiB/s", read(subject, len, stream).await?);
    }
    figures.add(name, "echo, 32 KiB writes", "MiB/s", echo(subject, stream / 2).await?);
    subject.client.signal_process("hold", "", 9).await?;
    subject.client.wait_process("hold", "").await?;
    subject.client.remove_container("hold").await?;
    Ok(())
}

fn ms(begin: Instant) -> f64 {
    begin.elapsed().as_secs_f64() * 1e3
}

async fn hold(subject: &Subject) -> Fallible<()> {
    subject.client.create_container("hold", subject.spec("hold").args(["sleep", "1000000"]).build()).await?;
    Ok(subject.client.start_container("hold").await?)
}

/// `true` from create to remove, without a seccomp profile and with one that is like docker's.
async fn lifecycles(
    subject: &Subject,
    name: &'static str,
    figures: &mut Figures,
    repeat: usize,
) -> Fallible<()> {
    // The first is not counted: modules are loaded, caches filled.
    lifecycle(subject, "warm", false).await?;
    let before = super::footprint::cpu(subject).await?;
    for i in 0..repeat {
        let [create, start, wait, remove] = lifecycle(subject, &format!("life{i}"), false).await?;
        figures.add(name, "create", "ms", create);
        figures.add(name, "start", "ms", start);
        figures.add(name, "wait", "ms", wait);
        figures.add(name, "remove", "ms", remove);
        figures.add(name, "create + start + wait + remove", "ms", create + start + wait + remove);
    }
    let spent = super::footprint::cpu(subject).await? - before;
    figures.add(name, "CPU of a lifecycle", "ms", spent / repeat as f64);
    for i in 0..repeat {
        let steps = lifecycle(subject, &format!("filter{i}"), true).await?;
        figures.add(name, "the same with seccomp", "ms", steps.iter().sum());
    }
    Ok(())
}

async fn lifecycle(subject: &Subject, id: &str, seccomp: bool) -> Fallible<[f64; 4]> {
    let client = &subject.client;
    let mut spec = subject.spec(id).args(["true"]);
    if seccomp {
        spec = spec.edit(|spec| {
            spec.Linux.mut_or_insert_default().Seccomp = Some(docker_like_profile()).into();
        });
    }
    let spec = spec.build();
    let begin = Instant::now();
    client.create_container(id, spec).await?;
    let create = ms(begin);
    let begin = Instant::now();
    client.start_container(id).await?;
    let start = ms(begin);
    let begin = Instant::now();
    client.wait_process(id, "").await?;
    let wait = ms(begin);
    let begin = Instant::now();
    client.remove_container(id).await?;
    Ok([create, start, wait, ms(begin)])
}

/// More than two hundred names allowed on three architectures, all else refused.
fn docker_like_profile() -> oci::LinuxSeccomp {
    let names = include_str!("syscalls.txt").split_whitespace().map(str::to_owned).collect();
    let allow = oci::LinuxSyscall { Names: names, Action: "SCMP_ACT_ALLOW".to_owned(), ..Default::default() };
    oci::LinuxSeccomp {
        DefaultAction: "SCMP_ACT_ERRNO".to_owned(),
        Architectures: ["SCMP_ARCH_X86_64", "SCMP_ARCH_X86", "SCMP_ARCH_X32"].map(str::to_owned).to_vec(),
        Syscalls: vec![allow],
        ..Default::default()
    }
}

/// MiB a second of a process that writes as fast as it can.
async fn read(subject: &Subject, len: u32, bytes: usize) -> Fallible<f64> {
    let exec = format!("read{len}");
    let script = format!("dd if=/dev/zero bs=1048576 count={} 2>/dev/null", bytes >> 20);
    let mut streams = Streams::of(&subject.address).await?;
    let process = subject.spec("hold").args(["sh", "-c", &script]).process();
    subject.client.exec_process("hold", &exec, process).await?;
    // From the first answer on, so that the start of the process does not count.
    let (mut begin, mut first, mut seen) = (Instant::now(), 0, 0);
    let note = |data| {
        if seen == 0 {
            (begin, first) = (Instant::now(), data);
        }
        seen += data;
    };
    streams.read(("hold", &exec), len, bytes, note).await?;
    if seen < bytes {
        return Err(format!("the stream ended after {seen} of {bytes} bytes").into());
    }
    let rate = (seen - first) as f64 / MIB / begin.elapsed().as_secs_f64();
    subject.client.wait_process("hold", &exec).await?;
    Ok(rate)
}

/// MiB a second through `cat`, written and read at once.
async fn echo(subject: &Subject, bytes: usize) -> Fallible<f64> {
    const WRITE: usize = 32 << 10;
    let mut streams = Streams::of(&subject.address).await?;
    let process = subject.spec("hold").args(["cat"]).process();
    subject.client.exec_process("hold", "echo", process).await?;
    let begin = Instant::now();
    let seen = streams.echo(("hold", "echo"), bytes, WRITE).await?;
    let rate = seen as f64 / MIB / begin.elapsed().as_secs_f64();
    if seen < bytes {
        return Err(format!("echo: {seen} of {bytes} bytes came back").into());
    }
    subject.client.wait_process("hold", "echo").await?;
    Ok(rate)
}

/// Creates and starts `count` containers at once; how long it took, in ms.
pub(crate) async fn start_many(subject: &Subject, count: usize) -> Fallible<f64> {
    let begin = Instant::now();
    let mut tasks = JoinSet::new();
    for i in 0..count {
        let client = subject.client.clone();
        let id = format!("many{i}");
        let spec = subject.spec(&id).args(["sleep", "1000000"]).build();
        tasks.spawn(async move {
            client.create_container(&id, spec).await?;
            client.start_container(&id).await
        });
    }
    while let Some(done) = tasks.join_next().await {
        done??;
    }
    Ok(ms(begin))
}
