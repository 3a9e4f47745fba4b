//! What tests of several modules need: to mount, which a plain user may not, and a directory that is hard to remove.

use std::fs::File;
use std::path::Path;
use std::process::Command;

use nix::fcntl::{OFlag, openat};
use nix::sys::stat::{Mode, mkdirat};

use crate::tree::by_descriptor;

/// Set to a test's name in the process that it has for itself.
const INSIDE: &str = "NAKAI_TEST_MAY_MOUNT";

/// Runs a test in a process with a mount namespace of its own, in which it is root: for a plain user, in a user
/// namespace. Where that can't be had the test fails. `module` and `name` are the test's own.
pub(crate) fn where_it_may_mount(module: &str, name: &str, test: impl FnOnce()) {
    let name = format!("{}::{name}", module.split_once("::").unwrap().1);
    if std::env::var_os(INSIDE).is_some_and(|inside| *inside == *name) {
        return test();
    }
    let mut command = Command::new("unshare");
    if !nix::unistd::geteuid().is_root() {
        command.arg("--map-root-user");
    }
    command.args(["--mount", "--"]).arg(std::env::current_exe().unwrap());
    let output = command.args([&name, "--exact", "--nocapture"]).env(INSIDE, &name).output().unwrap();
    let said =
        [output.stdout, output.stderr].map(|text| String::from_utf8_lossy(&text).into_owned()).concat();
    // A name that no test has runs none, and that is no failure to the harness.
    assert!(output.status.success() && said.contains("1 passed"), "{name}: {said}");
}

/// Makes so many levels below a directory, more than a path can say, with a file in each.
pub(crate) fn deepen(top: &Path, levels: usize) {
    let mut at = File::open(top).unwrap();
    for _ in 0..levels {
        mkdirat(&at, "d", Mode::S_IRWXU).unwrap();
        File::create(by_descriptor(&at).join("file")).unwrap();
        at = openat(&at, "d", OFlag::O_RDONLY | OFlag::O_CLOEXEC, Mode::empty()).unwrap().into();
    }
}
