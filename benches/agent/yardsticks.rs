//! Programs that make a container by themselves: `crun run`, `runc run`, and unshare(1) as the floor.
//!
//! Each runs some containers one after the other from a shell; a sample is the mean of those.

use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Instant;

use nakai_ctl::SpecBuilder;
use nakai_protocols::spec::from_wire;

use super::Fallible;
use super::figures::Figures;

const REPEAT: u32 = 20;

pub(crate) fn measure(root: &Path, figures: &mut Figures) -> Fallible<()> {
    let root = fs::canonicalize(root)?;
    let bundle = tempfile::Builder::new().prefix("nakai-bench-").tempdir()?;
    let spec = SpecBuilder::new("yardstick", &root.display().to_string())
        .private_shm()
        .args(["true"])
        .edit(|spec| spec.Linux.mut_or_insert_default().CgroupsPath = "/nakai-bench/yardstick".to_owned());
    let spec = from_wire(&spec.build())?;
    fs::write(bundle.path().join("config.json"), serde_json::to_vec(&spec)?)?;
    let bundle = bundle.path().display();
    for runtime in ["crun", "runc"] {
        let command = format!("{runtime} run -b {bundle} nakai-bench-$i");
        figures.add(runtime, "create + start + wait + remove", "ms", each(&command)?);
    }
    let command = format!(
        "unshare --mount --ipc --uts --pid --fork --root={} --mount-proc=/proc /bin/true",
        root.display()
    );
    figures.add("unshare", "create + start + wait + remove", "ms", each(&command)?);
    Ok(())
}

/// Milliseconds of one run of `command`.
///
/// On a hybrid hierarchy crun takes the unified one that is mounted beside the others, and fails.
fn each(command: &str) -> Fallible<f64> {
    let script = format!(
        "umount /sys/fs/cgroup/unified 2>/dev/null; echo ready; read go; i=0
         while [ $i -lt {REPEAT} ]; do i=$((i+1)); {command} || exit 1; done"
    );
    let mut child = Command::new("unshare")
        .args(["--mount", "sh", "-c", &script])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()?;
    let mut ready = [0; 6];
    std::io::Read::read_exact(child.stdout.as_mut().ok_or("no stdout")?, &mut ready)?;
    let begin = Instant::now();
    drop(child.stdin.take());
    let output = child.wait_with_output()?;
    let spent = begin.elapsed().as_secs_f64() * 1e3;
    if !output.status.success() {
        return Err(format!("{command}: {}", String::from_utf8_lossy(&output.stderr)).into());
    }
    Ok(spent / f64::from(REPEAT))
}
