//! Plans for both versions as tables, and writes into directories that look like cgroups.

use super::*;
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::fs;
use std::sync::Arc;
use tempfile::TempDir;

fn resources(json: Value) -> LinuxResources {
    serde_json::from_value(json).unwrap()
}

/// What would be written, `file=value` in order, where the files have these texts.
fn plan(v2: bool, files: &[(&str, &str)], asked: Value) -> Result<Vec<String>, String> {
    let files: BTreeMap<&str, &str> = files.iter().copied().collect();
    let read = |_: &str, file: &str| Ok(files.get(file).map(|text| (*text).to_owned()));
    let mut plan = Plan { v2, read: &read, writes: Vec::new() };
    plan.resources(&resources(asked)).map_err(|error| error.to_string())?;
    Ok(plan.writes.iter().map(|write| format!("{}={}", write.file, write.value)).collect())
}

fn memory_v1(limit: &str, swap: &str, asked: Value) -> Result<Vec<String>, String> {
    let files = [("memory.limit_in_bytes", limit), ("memory.memsw.limit_in_bytes", swap)];
    let files = if swap.is_empty() { &files[..1] } else { &files };
    plan(false, files, json!({ "memory": asked }))
}

const NONE_V1: &str = "9223372036854771712\n";

#[test]
fn on_v1_memory_and_swap_change_in_the_order_that_the_kernel_takes() {
    let swap_first = ["memory.memsw.limit_in_bytes", "memory.limit_in_bytes"];
    let limit_first = ["memory.limit_in_bytes", "memory.memsw.limit_in_bytes"];
    for (limit, swap, asked, order) in [
        ("100\n", "100\n", (200, 200), swap_first),
        ("200\n", "200\n", (100, 100), limit_first),
        ("200\n", "300\n", (100, 250), swap_first),
        ("100\n", "150\n", (120, -1), swap_first),
        (NONE_V1, NONE_V1, (100, 100), limit_first),
        ("100\n", "100\n", (-1, -1), swap_first),
    ] {
        let written = memory_v1(limit, swap, json!({"limit": asked.0, "swap": asked.1})).unwrap();
        let files: Vec<_> = written.iter().map(|write| write.split_once('=').unwrap().0).collect();
        assert_eq!(files, order, "{limit:?} {swap:?} {asked:?}");
    }
    let alone = memory_v1("100", "100", json!({"limit": -1})).unwrap();
    assert_eq!(alone, ["memory.memsw.limit_in_bytes=-1", "memory.limit_in_bytes=-1"]);
    let lower = memory_v1("100", "100", json!({"limit": 50, "reservation": -1})).unwrap();
    assert_eq!(lower, ["memory.limit_in_bytes=50", "memory.soft_limit_in_bytes=-1"]);
}

#[test]
fn memory_that_makes_no_sense_is_refused_before_anything_is_written() {
    for (limit, swap, asked, named) in [
        ("100", "100", json!({"limit": 200}), "memory.limit of 200: above"),
        ("100", "100", json!({"swap": 50}), "memory.swap of 50"),
        ("100", "100", json!({"limit": 60, "swap": 50}), "less than the memory of 60"),
        (NONE_V1, NONE_V1, json!({"swap": 50}), "less than the memory of max"),
        ("100", "100", json!({"limit": -2}), "-2"),
        ("100", "100", json!({"reservation": -9}), "-9"),
        ("100", "100", json!({"swappiness": 101}), "swappiness"),
    ] {
        let error = memory_v1(limit, swap, asked.clone()).unwrap_err();
        assert!(error.contains(named), "{asked}: {error}");
    }
    for (now, asked) in [
        ("100", json!({"limit": 60, "swap": 50})),
        ("100", json!({"swap": 50})),
        ("max", json!({"swap": 50})),
        ("100", json!({"limit": -1, "swap": 50})),
        ("100", json!({"swap": -2})),
    ] {
        assert!(plan(true, &[("memory.max", now)], json!({"memory": asked.clone()})).is_err(), "{asked}");
    }
}

#[test]
fn on_v2_swap_is_what_is_more_than_memory() {
    for (asked, expected) in [
        (json!({"limit": 100, "swap": 150}), vec!["memory.swap.max=50", "memory.max=100"]),
        (json!({"limit": 100, "swap": 100}), vec!["memory.swap.max=0", "memory.max=100"]),
        (json!({"limit": 100, "swap": -1}), vec!["memory.swap.max=max", "memory.max=100"]),
        (json!({"limit": 100}), vec!["memory.max=100"]),
        (json!({"limit": -1}), vec!["memory.swap.max=max", "memory.max=max"]),
        (json!({"swap": 90}), vec!["memory.swap.max=10"]),
        (json!({"reservation": 7, "swappiness": 60, "kernel": 5}), vec!["memory.low=7"]),
        (json!({"reservation": -1}), vec!["memory.low=max"]),
        (json!({}), vec![]),
    ] {
        let written = plan(true, &[("memory.max", "80\n")], json!({"memory": asked.clone()})).unwrap();
        assert_eq!(written, expected, "{asked}");
    }
}

#[test]
fn cpu_time_and_sets() {
    let asked =
        json!({"cpu": {"shares": 1024, "quota": 50000, "period": 100000, "cpus": "0-1", "mems": "0"}});
    assert_eq!(
        plan(false, &[], asked.clone()).unwrap(),
        [
            "cpu.shares=1024",
            "cpu.cfs_period_us=100000",
            "cpu.cfs_quota_us=50000",
            "cpuset.cpus=0-1",
            "cpuset.mems=0"
        ]
    );
    assert_eq!(
        plan(true, &[], asked).unwrap(),
        ["cpu.weight=100", "cpu.max=50000 100000", "cpuset.cpus=0-1", "cpuset.mems=0"]
    );
    for (asked, v1, v2) in [
        (json!({"quota": -1}), "cpu.cfs_quota_us=-1", "cpu.max=max"),
        (json!({"quota": 7}), "cpu.cfs_quota_us=7", "cpu.max=7"),
        (json!({"period": 9}), "cpu.cfs_period_us=9", "cpu.max=123 9"),
        (json!({"quota": -1, "period": 9}), "cpu.cfs_period_us=9", "cpu.max=max 9"),
        (json!({"shares": 2}), "cpu.shares=2", "cpu.weight=1"),
        (json!({"shares": 262144}), "cpu.shares=262144", "cpu.weight=10000"),
        (json!({"shares": u64::MAX}), "cpu.shares=18446744073709551615", "cpu.weight=10000"),
    ] {
        let files = [("cpu.max", "123 100000\n")];
        assert_eq!(plan(false, &files, json!({"cpu": asked.clone()})).unwrap()[0], v1);
        assert_eq!(plan(true, &files, json!({"cpu": asked})).unwrap(), [v2]);
    }
}

#[test]
fn processes_and_huge_pages() {
    for (limit, word) in [(5, "5"), (-1, "max"), (0, "max")] {
        for v2 in [false, true] {
            let written = plan(v2, &[], json!({"pids": {"limit": limit}})).unwrap();
            assert_eq!(written, [format!("pids.max={word}")]);
        }
    }
    let asked = |size: &str| json!({"hugepageLimits": [{"pageSize": size, "limit": 8}]});
    assert_eq!(
        plan(false, &[("cgroup.procs", "")], asked("2MB")).unwrap(),
        ["hugetlb.2MB.limit_in_bytes=8", "hugetlb.2MB.rsvd.limit_in_bytes=8"]
    );
    assert_eq!(
        plan(true, &[("cgroup.controllers", "cpu hugetlb\n")], asked("1GB")).unwrap(),
        ["hugetlb.1GB.max=8", "hugetlb.1GB.rsvd.max=8"]
    );
    assert!(plan(true, &[("cgroup.controllers", "cpu\n")], asked("1GB")).is_err());
    assert!(plan(false, &[], asked("1GB")).is_err());
    for size in ["", "2", "MB", "2M", "2B", "2MMB", "2MB/../x", "../2MB", "2TB"] {
        assert!(plan(false, &[("cgroup.procs", "")], asked(size)).is_err(), "{size:?}");
    }
}

#[test]
fn block_io() {
    let asked = json!({"blockIO": {
        "weight": 1000,
        "weightDevice": [{"major": 8, "minor": 0, "weight": 10}],
        "throttleReadBpsDevice": [{"major": 8, "minor": 0, "rate": 100}],
        "throttleWriteIOPSDevice": [{"major": 8, "minor": 16, "rate": 0}],
    }});
    let rates_v1 = ["blkio.throttle.read_bps_device=8:0 100", "blkio.throttle.write_iops_device=8:16 0"];
    let rates_v2 = ["io.max=8:0 rbps=100", "io.max=8:16 wiops=max"];
    for (v2, file, weights, rates) in [
        (false, "blkio.weight", ["blkio.weight=1000", "blkio.weight_device=8:0 10"], rates_v1),
        (false, "", ["blkio.bfq.weight=1000", "blkio.bfq.weight_device=8:0 10"], rates_v1),
        (true, "io.bfq.weight", ["io.bfq.weight=1000", "io.bfq.weight=8:0 10"], rates_v2),
        (true, "", ["io.weight=10000", "io.weight=8:0 1"], rates_v2),
    ] {
        let written = plan(v2, &[(file, "")], asked.clone()).unwrap();
        assert_eq!(written, [weights, rates].concat());
    }
    assert!(plan(true, &[], json!({"blockIO": {"leafWeight": 10}})).is_err());
    assert!(plan(false, &[], json!({"blockIO": {"weight": 9}})).is_err());
}

/// A container `one` with these files, `controller/file` on v1.
fn cgroup(v2: bool, files: &[(&str, &str)]) -> (TempDir, Cgroup) {
    let root = TempDir::new().unwrap();
    let mut controllers = BTreeMap::new();
    for (name, text) in files {
        let (controller, file) = name.split_once('/').unwrap_or(("", name));
        let dir = root.path().join(controller).join("one");
        fs::create_dir_all(&dir).unwrap();
        fs::write(dir.join(file), text).unwrap();
        controllers.insert(controller.to_owned(), root.path().join(controller));
    }
    let mount_point = root.path().to_owned();
    let hierarchy = if v2 { Hierarchy::V2 { mount_point } } else { Hierarchy::V1 { controllers } };
    let cgroup = Cgroup::new(Arc::new(hierarchy), "one".into()).unwrap();
    (root, cgroup)
}

fn text(root: &TempDir, file: &str) -> String {
    fs::read_to_string(root.path().join(file)).unwrap()
}

#[test]
fn an_update_reaches_the_files() {
    let (root, v1) = cgroup(false, &[("pids/pids.max", ""), ("cpu/cpu.shares", "")]);
    v1.update(&resources(json!({"pids": {"limit": 7}, "cpu": {"shares": 9}}))).unwrap();
    assert_eq!(
        (text(&root, "pids/one/pids.max"), text(&root, "cpu/one/cpu.shares")),
        ("7".into(), "9".into())
    );
    let (root, v2) = cgroup(true, &[("memory.max", ""), ("cgroup.procs", "")]);
    v2.update(&resources(json!({"memory": {"limit": 5, "swap": 5}}))).unwrap();
    assert_eq!(text(&root, "one/memory.max"), "5", "without swap accounting there is no swap to limit");
    v2.update(&resources(json!({}))).unwrap();
}

#[test]
fn what_is_not_there_is_named_and_the_rest_taken_back() {
    let (root, v2) = cgroup(true, &[("memory.max", "1"), ("cgroup.procs", "")]);
    let error = v2.update(&resources(json!({"memory": {"limit": 2}, "pids": {"limit": 3}}))).unwrap_err();
    assert!(matches!(&error, CgroupError::NoSuchLimit { file, .. } if file == "pids.max"), "{error}");
    assert_eq!(text(&root, "one/memory.max"), "1");
    let error = v2.update(&resources(json!({"memory": {"limit": 2, "swap": 3}}))).unwrap_err();
    assert!(matches!(&error, CgroupError::NoSuchLimit { file, .. } if file == "memory.swap.max"), "{error}");
    assert!(v2.update(&resources(json!({"cpu": {"realtimeRuntime": 3}}))).is_err());

    fs::remove_dir_all(root.path().join("one")).unwrap();
    let error = v2.update(&resources(json!({}))).unwrap_err();
    assert!(matches!(error, CgroupError::NotFound { .. }), "{error}");
}

#[test]
fn a_rate_is_taken_back_for_its_own_device() {
    let rates = json!({"throttleReadBpsDevice": [{"major": 8, "minor": 16, "rate": 5}]});
    let asked = resources(json!({"blockIO": rates, "pids": {"limit": 3}, "hugepageLimits": []}));
    let no_limit = "8:16 rbps=max wbps=max riops=max wiops=max";
    let others = "8:0 rbps=7 wbps=max riops=max wiops=max";
    let before = "8:16 rbps=9 wbps=max riops=max wiops=max";
    for (old, taken_back) in [("", no_limit), (others, no_limit), (&*format!("{others}\n{before}\n"), before)]
    {
        assert_eq!(way_back_of(true, &asked, old), ["io.max", taken_back]);
    }
    for (old, taken_back) in [("", "8:16 0"), ("8:0 7\n8:16 9\n", "8:16 9")] {
        assert_eq!(way_back_of(false, &asked, old), ["blkio.throttle.read_bps_device", taken_back]);
    }
}

fn way_back_of(v2: bool, asked: &LinuxResources, old: &str) -> [String; 2] {
    let read = |_: &str, _: &str| Ok(None);
    let mut plan = Plan { v2, read: &read, writes: Vec::new() };
    plan.resources(asked).unwrap();
    let write = plan.writes.iter().find(|write| write.controller == "blkio").unwrap();
    [write.file.clone(), way_back(write, old.to_owned()).unwrap()]
}
