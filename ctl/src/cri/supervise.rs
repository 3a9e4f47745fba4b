//! Staying with a running container: its output into the log, its health checks, its restarts, its removal.
//!
//! A log that can't be written is no reason to end a program, nor to let it wait: what it prints is taken from it all
//! the same, and lost.

use std::pin::Pin;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt as _};
use ttrpc::Code;

use super::CriError;
use super::engine::Engine;
use super::extras::{HealthCheck, pause};
use super::log::LogStream;
use super::log_file::LogFile;
use crate::state::{Action, ContainerRecord, ContainerState, Event, Health};
use crate::stdio::{Output, StdioError, finish, pump_input};

/// Where output goes beside the log, and where input comes from.
#[derive(Default)]
pub struct Console {
    /// Standard input; without it the process reads the end at once.
    pub stdin: Option<Box<dyn AsyncRead + Send + Unpin>>,
    /// Output is written to this program's own, too.
    pub echo: bool,
}

impl std::fmt::Debug for Console {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Console").field("echo", &self.echo).finish_non_exhaustive()
    }
}

/// Stays with a container that has been started until it has ended for good; gives its last status.
///
/// # Errors
///
/// A stream breaks, the agent goes away, or the container can't be made again.
pub async fn supervise(engine: &Engine, id: &str, mut console: Console) -> Result<i32, CriError> {
    // Unless the caller, or who has started this process, has it already.
    let _turn = engine.state().try_attend(id);
    let mut last_pause = None;
    loop {
        let began = Instant::now();
        let status = once(engine, &engine.record(id)?, &mut console).await?;
        let_oom_kill_come(engine, id, status).await;
        engine.state().journal().note(&Event::new(id, Action::Die).exit_code(status));
        // Another client may have removed it meanwhile.
        let Some(record) = engine.change(id, |record| record.stop(status)).await? else { return Ok(status) };
        let extras = &record.order.extras;
        if !extras.restart.again(status, record.restarts, record.stopped) {
            if extras.auto_remove {
                engine.remove(id).await?;
            }
            return Ok(status);
        }
        let length = pause(last_pause, began.elapsed());
        last_pause = Some(length);
        tokio::time::sleep(length).await;
        if !start_again(engine, id).await? {
            return Ok(status);
        }
    }
}

/// The agent tells of a kill for want of memory before it tells of the end that comes of it, but by another call, which
/// another client may have made: the note of it may come a little later.
async fn let_oom_kill_come(engine: &Engine, id: &str, status: i32) {
    const POLL: Duration = Duration::from_millis(10);
    const POLLS: u32 = 50;
    let may_come = |record: &ContainerRecord| {
        let limit = record.order.config.linux.resources.memory_limit_in_bytes;
        status == 128_i32.saturating_add(libc::SIGKILL) && limit > 0 && !record.oom_killed && !record.stopped
    };
    for _ in 0..POLLS {
        if !engine.state().container(id).is_some_and(|record| may_come(&record)) {
            return;
        }
        tokio::time::sleep(POLL).await;
    }
}

/// Makes a container anew under its name and starts it, unless it has been stopped, removed or started meanwhile.
async fn start_again(engine: &Engine, id: &str) -> Result<bool, CriError> {
    let lock = engine.lock(id).await?;
    let again = async {
        let is_to = |record: &ContainerRecord| !record.stopped && !record.lives();
        let Some(mut record) = engine.state().container(id).filter(is_to) else { return Ok(false) };
        record.restarts = record.restarts.saturating_add(1);
        engine.run_again(&mut record, Action::Restart).await.map(|()| true)
    };
    let again = again.await;
    engine.state().unlock(id, lock);
    again
}

/// One run of the container's program.
async fn once(engine: &Engine, record: &ContainerRecord, console: &mut Console) -> Result<i32, CriError> {
    let client = engine.client();
    let id = record.id.as_str();
    let log = match &record.log {
        Some(path) => match LogFile::open(path, record.order.extras.log_limits) {
            Ok(file) => Some(Arc::new(Mutex::new(file))),
            Err(error) => {
                note_lost(engine, id, &format!("{}: {error}", path.display()));
                None
            }
        },
        None => None,
    };
    let stream = |output| log.clone().map(|file| LogStream::new(file, output));
    let tty = record.order.config.tty;
    let outputs = async {
        let stderr = async {
            if tty {
                Ok(())
            } else {
                pump(engine, id, Output::Stderr, stream(Output::Stderr), console.echo).await
            }
        };
        tokio::try_join!(pump(engine, id, Output::Stdout, stream(Output::Stdout), console.echo), stderr)
    };
    // The input of a container that was asked for with `stdin` stays open for others to attach to.
    let keeps_open = record.order.config.stdin && !record.order.config.stdin_once;
    let stdin = console.stdin.take();
    let input = async {
        match stdin {
            Some(stdin) => drop(pump_input(client, id, id, stdin).await),
            None if !keeps_open && !tty => drop(client.close_stdin(id, id).await),
            None => {}
        }
        std::future::pending::<()>().await;
    };
    let exit = async { Ok::<_, CriError>(client.wait_process(id, id).await?) };
    tokio::select! {
        ended = async { tokio::try_join!(outputs, exit) } => Ok(ended?.1),
        () = input => Ok(0),
        error = health(engine, record) => Err(error),
    }
}

fn note_lost(engine: &Engine, id: &str, reason: &str) {
    engine.state().journal().note(&Event::new(id, Action::Log).detail(reason));
}

/// Copies one output to its end.
async fn pump(
    engine: &Engine,
    id: &str,
    output: Output,
    mut log: Option<LogStream<LogFile>>,
    echo: bool,
) -> Result<(), CriError> {
    const CHUNK: u32 = 32 << 10;
    let mut own: Option<Pin<Box<dyn AsyncWrite + Send>>> = match (echo, output) {
        (false, _) => None,
        (true, Output::Stdout) => Some(Box::pin(tokio::io::stdout())),
        (true, Output::Stderr) => Some(Box::pin(tokio::io::stderr())),
    };
    let mut is_lost = false;
    loop {
        let data = match output {
            Output::Stdout => engine.client().read_stdout(id, id, CHUNK).await?,
            Output::Stderr => engine.client().read_stderr(id, id, CHUNK).await?,
        };
        if let Some(own) = &mut own {
            let local = |source| StdioError::Local { stream: "output", source };
            own.write_all(&data).await.map_err(local)?;
            own.flush().await.map_err(local)?;
        }
        if let Some(log) = &mut log {
            let written = if data.is_empty() { log.end() } else { log.take(&data) };
            if let Err(error) = written
                && !std::mem::replace(&mut is_lost, true)
            {
                note_lost(engine, id, &error.to_string());
            }
        }
        if data.is_empty() {
            return Ok(());
        }
    }
}

/// Runs the check at its interval, for ever; returns only what it can't note.
async fn health(engine: &Engine, record: &ContainerRecord) -> CriError {
    let Some(check) = &record.order.extras.health else { return std::future::pending().await };
    let (began, mut failures) = (Instant::now(), 0_u32);
    for number in 0_u64.. {
        tokio::time::sleep(check.interval).await;
        match engine.state().container(&record.id).map(|record| record.state) {
            // Frozen, it can't answer.
            Some(ContainerState::Paused) => continue,
            Some(_) => {}
            None => break,
        }
        // None: the container is ending, or is frozen and that is not noted yet.
        let Some(healthy) = probe(engine, &record.id, check, number).await else { continue };
        if let Err(error) = note_health(engine, &record.id, check, healthy, began, &mut failures).await {
            return error;
        }
    }
    std::future::pending().await
}

async fn note_health(
    engine: &Engine,
    id: &str,
    check: &HealthCheck,
    healthy: bool,
    began: Instant,
    failures: &mut u32,
) -> Result<(), CriError> {
    let Some(before) = engine.state().container(id).and_then(|record| record.health) else { return Ok(()) };
    let starting = before == Health::Starting && began.elapsed() < check.start_period;
    *failures = if healthy || starting { 0 } else { failures.saturating_add(1) };
    let now = match before {
        _ if healthy => Health::Healthy,
        _ if *failures >= check.retries.max(1) => Health::Unhealthy,
        before => before,
    };
    if now != before {
        engine.change(id, |record| record.health = Some(now)).await?;
        engine.state().journal().note(&Event::new(id, Action::Health).detail(now.to_string()));
    }
    Ok(())
}

/// One run of the check: whether it has succeeded within its time. None: the container takes no more processes.
async fn probe(engine: &Engine, id: &str, check: &HealthCheck, number: u64) -> Option<bool> {
    let client = engine.client();
    let exec = format!("health-{number}");
    let process = engine.process(id, &check.command, false);
    match client.exec_process(id, &exec, process).await {
        Ok(()) => {}
        Err(error) if error.code == Code::FAILED_PRECONDITION || error.connection_lost => return None,
        // No such program in the image: the check fails.
        Err(_) => return Some(false),
    }
    match tokio::time::timeout(check.timeout, finish(client, id, &exec, b"")).await {
        Ok(Ok(finished)) => Some(finished.status == 0),
        Ok(Err(_)) => Some(false),
        Err(_) => {
            let _ = client.signal_process(id, &exec, libc::SIGKILL.unsigned_abs()).await;
            // So that the agent forgets it.
            let limit = Duration::from_secs(10);
            let _ = client.within(limit).wait_process(id, &exec).await;
            Some(false)
        }
    }
}
