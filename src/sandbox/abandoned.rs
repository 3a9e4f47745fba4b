//! What an agent has left that was killed with its server: by its records the next one in the same state directory
//! knows it, ends it, and gives it back.
//!
//! Nothing of it goes on: nobody holds its pipes, and nobody would hear of its processes' ends.

use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use slog::{error, info, warn};

use super::create::blocking;
use super::{Sandbox, pidfd};

impl Sandbox {
    /// Ends the sandbox that another agent has left, if it has left one.
    pub async fn clear_abandoned(&self) {
        let environment = self.environment();
        let (records, pinned) =
            (environment.records.clone(), environment.config.state_dir.join("namespaces/pid"));
        let logger = environment.logger.clone();
        let found = blocking(move || {
            if records.is_empty() {
                return Ok(false);
            }
            // The pause process: nobody holds it any more.
            if let Err(error) = end_namespace(&pinned) {
                warn!(logger, "the shared PID namespace is not ended"; "error" => %error);
            }
            Ok(true)
        });
        if !matches!(found.await, Ok(true)) {
            return;
        }
        info!(environment.logger, "an agent that was killed has left a sandbox, which is ended");
        self.recover(super::Holds::default()).await;
        if let Err(error) = self.destroy().await {
            error!(environment.logger, "not all of it is gone"; "error" => %error);
        }
    }
}

/// Kills all processes in the PID namespace that is pinned at `path`, if one is, and it is not our own.
fn end_namespace(path: &Path) -> io::Result<()> {
    let pinned = match fs::metadata(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        other => other?,
    };
    let name = format!("pid:[{}]", pinned.ino());
    let is_in =
        |process: &Path| fs::read_link(process.join("ns/pid")).is_ok_and(|link| link == Path::new(&name));
    if is_in(Path::new("/proc/self")) {
        return Ok(());
    }
    for process in fs::read_dir("/proc")?.flatten() {
        let pid: Option<i32> = process.file_name().to_str().and_then(|name| name.parse().ok());
        let Some(pid) = pid else { continue };
        // What is open stays the same process; only then it is looked at.
        if let Ok(opened) = pidfd::open(pid)
            && is_in(&process.path())
        {
            let _ended_meanwhile = pidfd::send_signal(&opened, libc::SIGKILL.unsigned_abs());
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ones_own_namespace_and_none_at_all_are_left_alone() {
        end_namespace(Path::new("/proc/self/ns/pid")).unwrap();
        end_namespace(Path::new("/no/such/namespace")).unwrap();
    }
}
