//! The debug console: a shell in the guest for whoever debugs it. Off by default, because whoever reaches it is
//! root there.
//!
//! On a vsock port each connection gets a shell on a terminal of its own, which ends with the connection. Without a
//! port there is one shell on `/dev/console`, and another one when it ends. It depends on nothing but the
//! supervisor, so that it is there when the rest is stuck.

mod relay;
mod sys;

use std::fs::OpenOptions;
use std::io;
use std::os::fd::{AsFd as _, AsRawFd, OwnedFd};
use std::os::unix::fs::OpenOptionsExt as _;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::pty::openpty;
use nix::sys::socket::{
    AddressFamily, Backlog, SockFlag, SockType, VsockAddr, accept4, bind, listen, socket,
};
use slog::{Logger, info, warn};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

use crate::config::Config;
use crate::supervisor::client::{LaunchError, Launcher, Listed, Port, StartedProcess};
use crate::vsock;
use crate::worker::job::{Job, ShellJob};

/// The shells that are looked for, the one of a debugging image first.
const SHELLS: [&str; 3] = ["/run/kata-extensions/devkit/bin/devkit-sh", "/bin/bash", "/bin/sh"];
/// The terminal of the machine.
const TERMINAL: &str = "/dev/console";
/// Connections that wait for their shells.
const BACKLOG: i32 = 8;
/// How long nothing is accepted when something has run out.
const RECOVERY: Duration = Duration::from_millis(500);
/// A shell on the machine's terminal that ends sooner than this gets no successor: nobody is there.
const LIFE: Duration = Duration::from_secs(1);

/// Why there is no shell.
#[derive(Debug, thiserror::Error)]
enum ConsoleError {
    #[error("debug console: {step}: {source}")]
    Io { step: &'static str, source: io::Error },
    #[error("debug console: {0}")]
    Launch(#[from] LaunchError),
}

fn io_error<E: Into<io::Error>>(step: &'static str) -> impl FnOnce(E) -> ConsoleError {
    move |error| ConsoleError::Io { step, source: error.into() }
}

/// Offers the console, if the configuration wants one: when this returns, the port is open. What fails is logged,
/// and the guest serves without.
pub fn start(config: &Config, launcher: Launcher, listed: &mut Listed, logger: Logger) {
    if !config.debug_console {
        return;
    }
    warn!(logger, "whoever reaches the debug console is root"; "port" => config.debug_console_vport);
    let open = |port| {
        let listener = launcher.listener(Port::Console, listed, || open_port(port))?;
        sys::register(listener, Interest::READABLE).map_err(io_error("watch the port"))
    };
    let listener = match config.debug_console_vport.map(open).transpose() {
        Ok(listener) => listener,
        Err(error) => return warn!(logger, "no debug console"; "error" => %error),
    };
    tokio::spawn(async move {
        let served = match listener {
            Some(listener) => serve_port(&listener, &launcher, &logger).await,
            None => serve_terminal(&launcher, &logger).await,
        };
        if let Err(error) = served {
            warn!(logger, "no debug console"; "error" => %error);
        }
    });
}

fn open_port(port: u32) -> Result<OwnedFd, ConsoleError> {
    let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
    let listener =
        socket(AddressFamily::Vsock, SockType::Stream, flags, None).map_err(io_error("make a socket"))?;
    bind(listener.as_raw_fd(), &VsockAddr::new(libc::VMADDR_CID_ANY, port)).map_err(io_error("bind it"))?;
    listen(&listener, Backlog::new(BACKLOG).map_err(io_error("listen"))?).map_err(io_error("listen"))?;
    Ok(listener)
}

async fn serve_port(listener: &AsyncFd<OwnedFd>, launcher: &Launcher, logger: &Logger) -> ! {
    loop {
        let connection = match listener.async_io(Interest::READABLE, accept).await {
            Ok(Some(connection)) => connection,
            Ok(None) => continue,
            // Of descriptors, or of memory: there will be some again, of which no event tells, and this is wanted
            // most when things go wrong. The connection that waits keeps the port ready: without a pause this would
            // go round and round.
            Err(error) => {
                warn!(logger, "no connection to the debug console can be accepted"; "error" => %error);
                tokio::time::sleep(RECOVERY).await;
                continue;
            }
        };
        let (launcher, logger) = (launcher.clone(), logger.clone());
        tokio::spawn(async move {
            if let Err(error) = serve_connection(connection, &launcher).await {
                warn!(logger, "no shell for a connection"; "error" => %error);
            }
        });
    }
}

/// `None` for whoever has gone again, and for all but the host: a container's process would be root of the guest.
fn accept(listener: &OwnedFd) -> io::Result<Option<OwnedFd>> {
    match accept4(listener.as_raw_fd(), SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK) {
        Ok(fd) => {
            let connection = crate::supervisor::own(fd);
            Ok(vsock::is_from_the_host(connection.as_fd()).then_some(connection))
        }
        Err(Errno::ECONNABORTED | Errno::EINTR) => Ok(None),
        Err(errno) => Err(errno.into()),
    }
}

/// One shell, for as long as the connection and the shell last.
async fn serve_connection(connection: OwnedFd, launcher: &Launcher) -> Result<(), ConsoleError> {
    let pty = openpty(None, None).map_err(io_error("make a terminal"))?;
    launch(launcher, pty.slave).await?;
    // At its end the master is closed, and the terminal's processes get a hang-up.
    relay::relay(connection, pty.master).await.map_err(io_error("relay"))
}

async fn serve_terminal(launcher: &Launcher, logger: &Logger) -> Result<(), ConsoleError> {
    loop {
        let terminal = OpenOptions::new().read(true).write(true).custom_flags(libc::O_NOCTTY).open(TERMINAL);
        let terminal = terminal.map_err(io_error("open /dev/console"))?;
        let started = Instant::now();
        let mut shell = launch(launcher, terminal.into()).await?;
        let _ = shell.exit.wait_for(Option::is_some).await;
        if started.elapsed() < LIFE {
            info!(logger, "the shell on /dev/console ended at once, and gets no successor");
            return Ok(());
        }
    }
}

async fn launch(launcher: &Launcher, terminal: OwnedFd) -> Result<StartedProcess, ConsoleError> {
    let job = ShellJob { shells: SHELLS.map(str::to_owned).to_vec() };
    let launched = launcher.launch(&Job::Shell(job), vec![terminal]).await?;
    launched.process.ok_or(ConsoleError::Launch(LaunchError::SupervisorGone))
}
