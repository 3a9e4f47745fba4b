//! The vhost-user daemons beside QEMU: virtiofsd and, without `/dev/vhost-vsock`, a vsock device.

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use super::VmError;
use super::keeper::Keeper;
use super::qemu::Vsock;
use super::tools::{VHOST_DEVICE_VSOCK, VIRTIOFSD};

/// How long a daemon may take to listen.
const LISTEN_TIMEOUT: Duration = Duration::from_secs(60);

/// How often it is looked whether it does.
const LISTEN_POLL: Duration = Duration::from_millis(5);

/// Starts the vsock device. With the host kernel's there is nothing to start but a context id to
/// choose; else `host` becomes the host's end of hybrid vsock.
pub(crate) async fn start_vsock(keeper: &Keeper, run: &Path, host: &Path) -> Result<Vsock, VmError> {
    if fs::OpenOptions::new().read(true).write(true).open("/dev/vhost-vsock").is_ok() {
        return Ok(Vsock::Kernel(random_cid()));
    }
    let program = VHOST_DEVICE_VSOCK.find()?;
    let socket = run.join("vsock.sock");
    let mut command = Command::new(program);
    command.args(["--guest-cid", "3", "--socket"]).arg(&socket).arg("--uds-path").arg(host);
    start(keeper, VHOST_DEVICE_VSOCK.name, command, run, &socket).await?;
    Ok(Vsock::User(socket))
}

/// A context id that no other VM of this host is likely to have: there is no registry, and QEMU
/// refuses one that is taken. 0 to 2 are reserved (vsock(7)).
fn random_cid() -> u32 {
    use std::hash::{BuildHasher as _, Hasher as _};
    let random = std::collections::hash_map::RandomState::new().build_hasher().finish();
    // The mask makes the cast exact, and keeps away from VMADDR_CID_ANY.
    u32::try_from(random & 0x3fff_ffff).unwrap_or(0).saturating_add(3)
}

/// Starts virtiofsd for `share`.
pub(crate) async fn start_virtiofsd(keeper: &Keeper, run: &Path, share: &Path) -> Result<PathBuf, VmError> {
    let program = VIRTIOFSD.find()?;
    let socket = run.join("fs.sock");
    let mut path = std::ffi::OsString::from("--socket-path=");
    path.push(&socket);
    let mut command = Command::new(&program);
    command.arg(path);
    let root = nix::unistd::geteuid().is_root();
    if is_rust_virtiofsd(&program) {
        command.arg("--shared-dir").arg(share).arg("--announce-submounts");
        command.args(["--sandbox", if root { "chroot" } else { "none" }]);
    } else {
        let mut source = std::ffi::OsString::from("source=");
        source.push(share);
        command.arg("-o").arg(source).args(["-o", "sandbox=chroot", "-o", "announce_submounts"]);
    }
    start(keeper, VIRTIOFSD.name, command, run, &socket).await?;
    Ok(socket)
}

/// QEMU's old daemon in C and its successor in Rust share a name and little of their options.
fn is_rust_virtiofsd(program: &Path) -> bool {
    let output = Command::new(program).arg("--help").stdin(Stdio::null()).output();
    output.is_ok_and(|output| {
        let text = [output.stdout, output.stderr].concat();
        text.windows(12).any(|window| window == b"--shared-dir")
    })
}

/// Starts a daemon, its output into `<run>/<name>.log`, and waits until it listens on `socket`.
async fn start(
    keeper: &Keeper,
    name: &'static str,
    mut command: Command,
    run: &Path,
    socket: &Path,
) -> Result<(), VmError> {
    let failed = |source| VmError::Start { program: name, source };
    let log_path = run.join(format!("{name}.log"));
    let log = File::create(&log_path).map_err(failed)?;
    command.stdin(Stdio::null()).stdout(log.try_clone().map_err(failed)?).stderr(log);
    let pid = keeper.spawn(command).map_err(failed)?.pid;
    let deadline = tokio::time::Instant::now() + LISTEN_TIMEOUT;
    // No event tells that another process's socket listens (the file is there before that), and
    // connecting to see would take the one connection that these daemons accept.
    while !listens(socket).map_err(failed)? {
        let problem = match keeper.exited(pid) {
            Some(status) => status.to_string(),
            None if tokio::time::Instant::now() > deadline => "it does not listen".to_owned(),
            None => {
                tokio::time::sleep(LISTEN_POLL).await;
                continue;
            }
        };
        let log = fs::read(&log_path).unwrap_or_default();
        let log = String::from_utf8_lossy(&log).trim_end().to_owned();
        return Err(VmError::Daemon { program: name, problem, log });
    }
    Ok(())
}

/// Whether some process listens on the unix socket: its line in `/proc/net/unix` has the flag
/// `__SO_ACCEPTCON` (proc_net(5)).
fn listens(socket: &Path) -> io::Result<bool> {
    let table = fs::read_to_string("/proc/net/unix")?;
    let path = socket.to_string_lossy();
    Ok(table.lines().any(|line| line.ends_with(&*path) && line.split(' ').nth(3) == Some("00010000")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn listening_is_seen_only_while_it_is_true() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("daemon.sock");
        assert!(!listens(&path).unwrap());
        let listener = std::os::unix::net::UnixListener::bind(&path).unwrap();
        assert!(listens(&path).unwrap());
        drop(listener);
        // A program that another test is just starting has it too, until its execve.
        let begin = std::time::Instant::now();
        while listens(&path).unwrap() {
            assert!(begin.elapsed().as_secs() < 60, "it still listens");
            std::thread::yield_now();
        }
    }

    #[tokio::test]
    async fn a_daemon_that_ends_shows_its_last_words() {
        let dir = tempfile::tempdir().unwrap();
        let keeper = Keeper::new().unwrap();
        let mut command = Command::new("sh");
        command.args(["-c", "echo no such directory; exit 1"]);
        let error =
            start(&keeper, "virtiofsd", command, dir.path(), &dir.path().join("s")).await.unwrap_err();
        assert_eq!(error.to_string(), "virtiofsd: exit status: 1: no such directory");
    }
}
