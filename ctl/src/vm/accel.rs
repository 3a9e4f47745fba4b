//! Whether KVM works here.
//!
//! A device node that opens is no proof. Seen on a nested host: the kernel's real-mode code runs and
//! prints, and the guest hangs at the switch to protected mode. So the kernel is booted with KVM and
//! no root filesystem for a few seconds, and only if it gets to the panic that this must end in is KVM
//! used. The answer is kept per host kernel in the user's cache directory.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use super::config::Accel;
use super::console::Console;
use super::keeper::Keeper;

/// How long a kernel may take to its panic; with KVM it needs about one second.
const PROBE_TIME: Duration = Duration::from_secs(8);

/// Decides between KVM and TCG.
pub(crate) async fn use_kvm(accel: Accel, qemu: &Path, kernel: &Path, progress: &dyn Fn(&str)) -> bool {
    match (accel, std::env::var("NAKAI_ACCEL").as_deref()) {
        (Accel::Kvm, _) | (Accel::Auto, Ok("kvm")) => return true,
        (Accel::Tcg, _) | (Accel::Auto, Ok("tcg")) => return false,
        (Accel::Auto, _) => {}
    }
    if fs::OpenOptions::new().read(true).write(true).open("/dev/kvm").is_err() {
        return false;
    }
    let cache = cache_file();
    match cache.as_deref().map(fs::read_to_string) {
        Some(Ok(answer)) if answer == "works\n" => return true,
        Some(Ok(answer)) if answer == "hangs\n" => return false,
        _ => {}
    }
    progress("trying whether a kernel boots with KVM");
    // What could not be tried is not remembered.
    let Some(works) = probe(qemu, kernel).await else { return false };
    if let Some(cache) = cache {
        // Without the cache the next start probes again.
        let _ = cache.parent().map(fs::create_dir_all);
        let _ = fs::write(cache, if works { "works\n" } else { "hangs\n" });
    }
    works
}

/// `~/.cache/nakai/kvm-<release of the host's kernel>`.
fn cache_file() -> Option<PathBuf> {
    let directory = match std::env::var_os("XDG_CACHE_HOME").filter(|dir| !dir.is_empty()) {
        Some(dir) => PathBuf::from(dir),
        None => PathBuf::from(std::env::var_os("HOME")?).join(".cache"),
    };
    let name = nix::sys::utsname::uname().ok()?;
    let release = name.release().to_string_lossy().replace('/', "_");
    Some(directory.join("nakai").join(format!("kvm-{release}")))
}

/// Boots `kernel` with KVM and no root; tells whether it got to its panic. None: it wasn't tried.
async fn probe(qemu: &Path, kernel: &Path) -> Option<bool> {
    let directory = tempfile::tempdir().ok()?;
    let keeper = Keeper::new().ok()?;
    let mut command = Command::new(qemu);
    command
        .args(["-machine", "q35,accel=kvm", "-cpu", "host", "-m", "256M", "-nodefaults", "-no-user-config"])
        .args(["-display", "none", "-no-reboot", "-serial", "stdio"])
        .args(["-append", "console=ttyS0 panic=-1", "-kernel"])
        .arg(kernel)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::null());
    let output = keeper.spawn(command).ok()?.stdout?;
    let panicked = Arc::new(AtomicBool::new(false));
    let seen = Arc::clone(&panicked);
    let on_line = Box::new(move |line: &str| {
        seen.fetch_or(line.contains("Kernel panic"), Ordering::Relaxed);
    });
    let console = Console::read(output, &directory.path().join("console"), on_line).ok()?;
    // With -no-reboot the panic ends QEMU; a hang ends at the time limit.
    let _ = tokio::time::timeout(PROBE_TIME, console.wait(|_| false)).await;
    Some(panicked.load(Ordering::Relaxed))
}
