//! CPUs and memory that come on trees of files.

use std::fs;
use std::path::PathBuf;
use std::sync::Arc;

use nix::errno::Errno;
use slog::{Discard, o};

use super::*;
use crate::device::sysfs::Tree;
use crate::device::{Drivers, Node, Nodes};

const LONG: Duration = Duration::from_secs(60);
const SHORT: Duration = Duration::from_millis(10);

struct Nothing;

impl Nodes for Nothing {
    fn look(&self, _: &std::path::Path) -> Result<Node, Errno> {
        Err(Errno::ENOENT)
    }
}

impl Drivers for Nothing {
    fn load(&self, _: &str) -> Result<(), String> {
        Ok(())
    }
}

struct Guest {
    dir: tempfile::TempDir,
}

impl Guest {
    fn new() -> Self {
        let guest = Self { dir: tempfile::tempdir().unwrap() };
        for name in ["cpu/cpu0", "cpu/cpufreq", "cpu/cpuidle", "memory"] {
            fs::create_dir_all(guest.path(name)).unwrap();
        }
        fs::write(guest.path("cpu/present"), "0-1\n").unwrap();
        fs::write(guest.path("cpu/possible"), "0-3\n").unwrap();
        guest
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join("devices/system").join(name)
    }

    fn cpu(&self, number: u32, online: &str) {
        self.appear(&format!("cpu/cpu{number}"), "online", online);
    }

    fn block(&self, number: u32, state: &str) {
        self.appear(&format!("memory/memory{number}"), "state", state);
    }

    /// A directory with one file, whole from the first moment on: who looks may look at any time.
    fn appear(&self, name: &str, file: &str, text: &str) {
        let unseen = tempfile::tempdir_in(self.dir.path()).unwrap();
        fs::write(unseen.path().join(file), text).unwrap();
        fs::rename(unseen.keep(), self.path(name)).unwrap();
    }

    fn read(&self, name: &str) -> String {
        fs::read_to_string(self.path(name)).unwrap()
    }

    fn devices(&self) -> Devices {
        let tree = Tree::new(self.dir.path(), self.dir.path(), Arc::new(Nothing));
        let log = Logger::root(Discard, o!());
        Devices::assemble(tree, Uevents::new(), Arc::new(Nothing), LONG, log, None)
    }
}

fn event(action: &str, subsystem: &str, devpath: &str) -> Uevent {
    let text = format!("{action}@{devpath}\0ACTION={action}\0DEVPATH={devpath}\0SUBSYSTEM={subsystem}\0");
    Uevent::parse(text.as_bytes()).unwrap()
}

fn run(test: impl Future<Output = ()>) {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(test);
}

#[test]
fn as_many_cpus_come_online_as_are_asked_for() {
    run(async {
        let guest = Guest::new();
        let devices = guest.devices();
        // cpu0 is always online.
        devices.online_cpus(1, SHORT).await.unwrap();
        guest.cpu(10, "0\n");
        guest.cpu(2, "1\n");
        guest.cpu(9, "0\n");
        devices.online_cpus(2, SHORT).await.unwrap();
        assert_eq!(
            (guest.read("cpu/cpu9/online"), guest.read("cpu/cpu10/online")),
            ("0\n".into(), "0\n".into())
        );
        devices.online_cpus(3, LONG).await.unwrap();
        assert_eq!(
            (guest.read("cpu/cpu9/online"), guest.read("cpu/cpu10/online")),
            ("1\n".into(), "0\n".into())
        );
        devices.online_cpus(5, SHORT).await.unwrap_err();
        assert!(guest.read("cpu/cpu10/online").starts_with('1'), "what is there is taken");
    });
}

#[test]
fn a_cpu_that_comes_later_is_waited_for() {
    run(async {
        let guest = Guest::new();
        let devices = guest.devices();
        let waiting = tokio::spawn({
            let devices = devices.clone();
            async move { devices.online_cpus(2, LONG).await }
        });
        // Only its own subscription can be heard by an event: publish when it is there.
        while devices.uevents().listeners() == 0 {
            tokio::task::yield_now().await;
        }
        guest.cpu(1, "0\n");
        devices.uevents().publish(Notice::Event(event("add", "cpu", "/devices/system/cpu/cpu1").into()));
        waiting.await.unwrap().unwrap();
        assert!(guest.read("cpu/cpu1/online").starts_with('1'));
    });
}

#[test]
fn cpus_that_do_not_come_are_told_with_what_there_is() {
    run(async {
        let guest = Guest::new();
        let error = guest.devices().online_cpus(3, SHORT).await.unwrap_err().to_string();
        assert_eq!(error, "1 of 3 CPUs online after 10ms; the guest has CPUs 0-1 of at most 0-3");
    });
}

#[test]
fn memory_comes_online_on_request_and_by_its_event() {
    run(async {
        let guest = Guest::new();
        let devices = guest.devices();
        guest.block(0, "online\n");
        guest.block(8, "offline\n");
        guest.block(9, "going-offline\n");
        devices.online_memory().await.unwrap();
        assert!(guest.read("memory/memory8/state").starts_with("online"));
        assert_eq!(guest.read("memory/memory9/state"), "going-offline\n");

        let log = Logger::root(Discard, o!());
        let _watch = MemoryWatch::start(guest.dir.path(), devices.uevents(), log);
        guest.block(10, "offline\n");
        guest.block(11, "offline\n");
        let add = |block: &str| event("add", "memory", &format!("/devices/system/memory/{block}"));
        devices.uevents().publish(Notice::Scanned);
        devices.uevents().publish(Notice::Event(add("memory10").into()));
        while !guest.read("memory/memory10/state").starts_with("online") {
            tokio::task::yield_now().await;
        }
        assert_eq!(guest.read("memory/memory11/state"), "offline\n", "nobody said that it is there");
        devices.uevents().publish(Notice::Look);
        while !guest.read("memory/memory11/state").starts_with("online") {
            tokio::task::yield_now().await;
        }
    });
}

#[test]
fn only_a_memory_block_is_taken_for_one() {
    for (event, expected) in [
        (event("add", "memory", "/devices/system/memory/memory32"), Some("memory32")),
        (event("online", "memory", "/devices/system/memory/memory32"), None),
        (event("remove", "memory", "/devices/system/memory/memory32"), None),
        (event("add", "cpu", "/devices/system/memory/memory32"), None),
        (event("add", "memory", "/devices/system/memory/../cpu0"), None),
        (event("add", "memory", "/devices/system/memory/memory1/../x"), None),
        (event("add", "memory", "/devices/system/memory/memory"), None),
    ] {
        assert_eq!(block_of(&event).as_deref(), expected, "{event:?}");
    }
}

#[test]
fn memory_is_probed_where_the_kernel_wants_it() {
    run(async {
        let guest = Guest::new();
        let error = guest.devices().probe_memory(vec![1 << 32]).await.unwrap_err();
        assert!(matches!(error, DeviceError::NoMemoryProbe { .. }), "{error}");
        assert!(error.to_string().contains("memory/probe"), "{error}");
        fs::write(guest.path("memory/probe"), "").unwrap();
        guest.block(32, "offline\n");
        guest.devices().probe_memory(vec![1 << 32]).await.unwrap();
        assert_eq!(guest.read("memory/probe"), "0x100000000");
        assert!(guest.read("memory/memory32/state").starts_with("online"), "it comes online");
    });
}
