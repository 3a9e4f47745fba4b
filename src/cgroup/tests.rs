//! Hierarchies as text, cgroups as directories with the files that a kernel would put there.

use super::*;
use nakai_protocols::agent::{BlkioStatsEntry, CgroupStats};
use proptest::prelude::*;
use protobuf::Message as _;
use std::collections::BTreeMap;
use std::fs;
use tempfile::TempDir;

const V2_MOUNTS: &str = "\
22 27 0:20 / /sys rw,nosuid - sysfs sysfs rw
28 22 0:25 / /sys/fs/cgroup rw,nosuid,nodev,noexec,relatime shared:4 - cgroup2 cgroup2 rw,nsdelegate
40 28 0:41 / /sys/fs/cgroup/net_cls rw,relatime - cgroup cgroup rw,net_cls
";

const V1_MOUNTS: &str = "\
31 23 0:28 / /sys/fs/cgroup ro - tmpfs tmpfs ro,mode=755
32 31 0:29 / /sys/fs/cgroup/cpu,cpuacct rw,relatime shared:9 master:2 - cgroup cgroup rw,cpu,cpuacct
35 31 0:32 / /sys/fs/cgroup/memory rw,relatime - cgroup cgroup rw,memory
37 31 0:34 / /sys/fs/cgroup/odd\\040place\\134 rw - cgroup cgroup rw,freezer,xattr,release_agent=/x
40 31 0:37 / /sys/fs/cgroup/systemd rw,relatime - cgroup cgroup rw,xattr,name=systemd
41 31 0:38 / /sys/fs/cgroup/unified rw,relatime - cgroup2 cgroup2 rw
50 99 0:32 /pod/one /run/rootfs/sys/fs/cgroup/memory ro - cgroup cgroup rw,memory
";

fn v1(controllers: &[(&str, &str)]) -> Hierarchy {
    let controllers = controllers.iter().map(|(name, path)| ((*name).to_owned(), path.into())).collect();
    Hierarchy::V1 { controllers }
}

#[test]
fn hierarchies_are_told_from_mountinfo() {
    let v2 = |mount_point: &str| Hierarchy::V2 { mount_point: mount_point.into() };
    assert_eq!(Hierarchy::detect(V2_MOUNTS).unwrap(), v2("/sys/fs/cgroup"));
    let elsewhere =
        "30 20 0:30 / /cg2 rw - cgroup2 none rw\n31 20 0:31 / /sd rw - cgroup none rw,name=systemd\n";
    assert_eq!(Hierarchy::detect(elsewhere).unwrap(), v2("/cg2"));
    assert_eq!(
        Hierarchy::detect(V1_MOUNTS).unwrap(),
        v1(&[
            ("cpu", "/sys/fs/cgroup/cpu,cpuacct"),
            ("cpuacct", "/sys/fs/cgroup/cpu,cpuacct"),
            ("memory", "/sys/fs/cgroup/memory"),
            ("freezer", "/sys/fs/cgroup/odd place\\"),
            ("name=systemd", "/sys/fs/cgroup/systemd"),
        ])
    );
    for nothing in
        ["", "\n", "22 27 0:20 / /sys rw - sysfs sysfs rw", "1 - cgroup2", "- cgroup cgroup rw,memory"]
    {
        assert!(matches!(Hierarchy::detect(nothing), Err(CgroupError::NoHierarchy)), "{nothing:?}");
    }
}

#[test]
fn a_cgroup_is_below_the_root_of_its_hierarchy() {
    let hierarchy = Arc::new(Hierarchy::V2 { mount_point: "/nowhere".into() });
    let at = |path: &str| Cgroup::new(hierarchy.clone(), path.into()).map(|cgroup| cgroup.path().to_owned());
    assert_eq!(at("/pod/one").unwrap(), Path::new("pod/one"));
    assert_eq!(at("pod//one/.").unwrap(), Path::new("pod/one"));
    for bad in ["", "/", ".", "..", "/pod/..", "pod/../../other"] {
        assert!(matches!(at(bad), Err(CgroupError::BadPath { .. })), "{bad:?}");
    }
}

/// A hierarchy in a temporary directory with the container `pod/one`.
/// As a host reads them.
pub(super) fn decoded(cgroup: &Cgroup, kept: &KeptFiles) -> Result<CgroupStats, CgroupError> {
    Ok(CgroupStats::parse_from_bytes(&cgroup.stats(kept)?).unwrap())
}

pub(super) struct Fixture {
    pub(super) root: TempDir,
    pub(super) cgroup: Cgroup,
}

const V1_TREES: [&str; 7] = ["blkio", "cpu", "cpuacct", "freezer", "hugetlb", "memory", "pids"];

impl Fixture {
    pub(super) fn v2(files: &[(&str, &str)]) -> Self {
        let root = TempDir::new().unwrap();
        let hierarchy = Hierarchy::V2 { mount_point: root.path().to_owned() };
        Self::with(root, hierarchy, "pod/one", files)
    }

    /// Each file by `controller/file`.
    pub(super) fn v1(files: &[(&str, &str)]) -> Self {
        let root = TempDir::new().unwrap();
        let mount = |name: &&str| ((*name).to_owned(), root.path().join(name));
        let hierarchy = Hierarchy::V1 { controllers: V1_TREES.iter().map(mount).collect() };
        let below = |(name, text): &(&str, &str)| {
            let (controller, file) = name.split_once('/').unwrap();
            (format!("{controller}/pod/one/{file}"), (*text).to_owned())
        };
        let files: Vec<_> = files.iter().map(below).collect();
        let files: Vec<_> = files.iter().map(|(name, text)| (name.as_str(), text.as_str())).collect();
        Self::with(root, hierarchy, "", &files)
    }

    fn with(root: TempDir, hierarchy: Hierarchy, below: &str, files: &[(&str, &str)]) -> Self {
        for (name, text) in files {
            let path = root.path().join(below).join(name);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(&path, text).unwrap();
            fs::write(path.with_file_name("cgroup.procs"), "").unwrap();
        }
        for (name, text) in files.iter().filter(|(name, _)| name.ends_with("cgroup.procs")) {
            fs::write(root.path().join(below).join(name), text).unwrap();
        }
        let cgroup = Cgroup::new(Arc::new(hierarchy), "/pod/one".into()).unwrap();
        Self { root, cgroup }
    }

    fn stats(&self) -> Result<CgroupStats, CgroupError> {
        decoded(&self.cgroup, &KeptFiles::default())
    }

    fn text(&self, file: &str) -> String {
        fs::read_to_string(self.root.path().join(file)).unwrap()
    }
}

fn rows(entries: &[BlkioStatsEntry]) -> Vec<(u64, u64, &str, u64)> {
    entries.iter().map(|e| (e.major, e.minor, e.op.as_str(), e.value)).collect()
}

const V2_FILES: [(&str, &str); 20] = [
    (
        "cpu.stat",
        "usage_usec 5000000\nuser_usec 3000000\nsystem_usec 2000000\nnice_usec 0\n\
        nr_periods 40\nnr_throttled 7\nthrottled_usec 1234\nnr_bursts 0\nburst_usec 0\n",
    ),
    ("memory.current", "1048576\n"),
    ("memory.peak", "2097152\n"),
    ("memory.max", "max\n"),
    ("memory.events", "low 0\nhigh 0\nmax 3\noom 1\noom_kill 1\noom_group_kill 0\n"),
    ("memory.stat", "anon 1000\nfile 2000\nkernel 300\nfile_mapped 40\ninactive_file 500\npgfault 6\n"),
    ("memory.swap.current", "4096\n"),
    ("memory.swap.max", "8192\n"),
    ("memory.swap.events", "high 0\nmax 2\nfail 0\n"),
    ("pids.current", "5\n"),
    ("pids.max", "100\n"),
    (
        "io.stat",
        "8:0 rbytes=4096 wbytes=8192 rios=1 wios=2 dbytes=0 dios=0\n\
        259:1048575 rbytes=1 cost.usage=4\n253:0 \nunknown rbytes=3\n",
    ),
    ("hugetlb.2MB.current", "4194304\n"),
    ("hugetlb.2MB.max", "max\n"),
    ("hugetlb.2MB.events", "max 9\n"),
    ("hugetlb.2MB.rsvd.current", "7\n"),
    ("hugetlb.1GB.current", "0\n"),
    ("cgroup.events", "populated 0\nfrozen 0\n"),
    ("cgroup.freeze", "0\n"),
    ("cpu.pressure", "some avg10=0.00 avg60=0.00 avg300=0.00 total=0\n"),
];

#[test]
fn statistics_of_v2() {
    let stats = Fixture::v2(&V2_FILES).stats().unwrap();
    let cpu = &stats.cpu_stats;
    assert_eq!(cpu.cpu_usage.total_usage, 5_000_000_000);
    assert_eq!(cpu.cpu_usage.usage_in_usermode, 3_000_000_000);
    assert_eq!(cpu.cpu_usage.usage_in_kernelmode, 2_000_000_000);
    assert!(cpu.cpu_usage.percpu_usage.is_empty());
    let throttling = &cpu.throttling_data;
    assert_eq!(
        (throttling.periods, throttling.throttled_periods, throttling.throttled_time),
        (40, 7, 1_234_000)
    );

    let memory = &stats.memory_stats;
    let data = |m: &nakai_protocols::agent::MemoryData| (m.usage, m.max_usage, m.failcnt, m.limit);
    assert_eq!(data(&memory.usage), (1_048_576, 2_097_152, 3, i64::MAX as u64));
    assert_eq!(data(&memory.swap_usage), (4096, 0, 2, 8192));
    assert_eq!(data(&memory.kernel_usage), (300, 0, 0, i64::MAX as u64));
    assert_eq!(memory.cache, 2000);
    assert!(memory.use_hierarchy);
    // What a shim takes for the working set, by the names of either host.
    for (key, value) in [
        ("anon", 1000),
        ("inactive_file", 500),
        ("total_inactive_file", 500),
        ("total_rss", 1000),
        ("total_cache", 2000),
        ("total_mapped_file", 40),
        ("pgfault", 6),
    ] {
        assert_eq!(memory.stats.get(key), Some(&value), "{key}");
    }

    assert_eq!((stats.pids_stats.current, stats.pids_stats.limit), (5, 100));
    let blkio = &stats.blkio_stats;
    assert_eq!(
        rows(&blkio.io_service_bytes_recursive),
        [
            (8, 0, "read", 4096),
            (8, 0, "write", 8192),
            (8, 0, "rios", 1),
            (8, 0, "wios", 2),
            (8, 0, "dbytes", 0),
            (8, 0, "dios", 0),
            (259, 1_048_575, "read", 1),
        ]
    );
    assert_eq!(
        rows(&blkio.io_serviced_recursive),
        [(8, 0, "read", 1), (8, 0, "write", 2), (8, 0, "discard", 0)]
    );
    let huge: BTreeMap<_, _> =
        stats.hugetlb_stats.iter().map(|(k, v)| (k.as_str(), (v.usage, v.failcnt))).collect();
    assert_eq!(huge, BTreeMap::from([("1GB", (0, 0)), ("2MB", (4_194_304, 9))]));
}

const V1_FILES: [(&str, &str); 29] = [
    ("cpuacct/cpuacct.usage", "5000000000\n"),
    ("cpuacct/cpuacct.usage_percpu", "2000000000 3000000000 \n"),
    ("cpuacct/cpuacct.stat", "user 300\nsystem 200\n"),
    ("cpu/cpu.stat", "nr_periods 40\nnr_throttled 7\nthrottled_time 1234000\n"),
    ("memory/memory.usage_in_bytes", "1048576\n"),
    ("memory/memory.max_usage_in_bytes", "2097152\n"),
    ("memory/memory.failcnt", "3\n"),
    ("memory/memory.limit_in_bytes", "9223372036854771712\n"),
    ("memory/memory.memsw.usage_in_bytes", "10\n"),
    ("memory/memory.memsw.max_usage_in_bytes", "11\n"),
    ("memory/memory.memsw.failcnt", "12\n"),
    ("memory/memory.memsw.limit_in_bytes", "13\n"),
    ("memory/memory.kmem.usage_in_bytes", "20\n"),
    ("memory/memory.kmem.failcnt", "22\n"),
    ("memory/memory.use_hierarchy", "1\n"),
    ("memory/memory.stat", "cache 2000\nrss 1000\ntotal_cache 2001\ntotal_inactive_file 500\n"),
    ("pids/pids.current", "5\n"),
    ("pids/pids.max", "max\n"),
    ("blkio/blkio.bfq.io_service_bytes_recursive", "Total 0\n"),
    (
        "blkio/blkio.throttle.io_service_bytes_recursive",
        "8:0 Read 4096\n8:0 Write 0\n8:0 Sync 1\n8:0 Async 2\n8:0 Discard 3\n8:0 Total 4096\nTotal 4096\n",
    ),
    ("blkio/blkio.bfq.io_serviced_recursive", "253:70000 Read 1\nTotal 1\n"),
    ("blkio/blkio.throttle.io_serviced", "8:0 Read 99\nTotal 99\n"),
    ("blkio/blkio.time_recursive", "8:0 77\n"),
    ("blkio/blkio.sectors_recursive", "8:0 78\n"),
    ("hugetlb/hugetlb.2MB.usage_in_bytes", "1\n"),
    ("hugetlb/hugetlb.2MB.max_usage_in_bytes", "2\n"),
    ("hugetlb/hugetlb.2MB.failcnt", "3\n"),
    ("hugetlb/hugetlb.2MB.rsvd.usage_in_bytes", "4\n"),
    ("freezer/freezer.state", "THAWED\n"),
];

#[test]
fn statistics_of_v1() {
    let stats = Fixture::v1(&V1_FILES).stats().unwrap();
    let usage = &stats.cpu_stats.cpu_usage;
    assert_eq!(usage.total_usage, 5_000_000_000);
    assert_eq!(usage.percpu_usage, [2_000_000_000, 3_000_000_000]);
    assert_eq!((usage.usage_in_usermode, usage.usage_in_kernelmode), (3_000_000_000, 2_000_000_000));
    let throttling = &stats.cpu_stats.throttling_data;
    assert_eq!(
        (throttling.periods, throttling.throttled_periods, throttling.throttled_time),
        (40, 7, 1_234_000)
    );

    let memory = &stats.memory_stats;
    let data = |m: &nakai_protocols::agent::MemoryData| (m.usage, m.max_usage, m.failcnt, m.limit);
    assert_eq!(data(&memory.usage), (1_048_576, 2_097_152, 3, 9_223_372_036_854_771_712));
    assert_eq!(data(&memory.swap_usage), (10, 11, 12, 13));
    assert_eq!(data(&memory.kernel_usage), (20, 0, 22, 0));
    assert_eq!((memory.cache, memory.use_hierarchy), (2001, true));
    assert_eq!(memory.stats.get("total_inactive_file"), Some(&500));

    assert_eq!((stats.pids_stats.current, stats.pids_stats.limit), (5, 0));
    let blkio = &stats.blkio_stats;
    assert_eq!(
        rows(&blkio.io_service_bytes_recursive),
        [
            (8, 0, "read", 4096),
            (8, 0, "write", 0),
            (8, 0, "sync", 1),
            (8, 0, "async", 2),
            (8, 0, "discard", 3),
            (8, 0, "total", 4096),
        ]
    );
    assert_eq!(rows(&blkio.io_serviced_recursive), [(253, 70_000, "read", 1)]);
    assert_eq!(rows(&blkio.io_time_recursive), [(8, 0, "", 77)]);
    assert_eq!(rows(&blkio.sectors_recursive), [(8, 0, "", 78)]);
    assert!(blkio.io_merged_recursive.is_empty());
    let huge = &stats.hugetlb_stats["2MB"];
    assert_eq!((stats.hugetlb_stats.len(), huge.usage, huge.max_usage, huge.failcnt), (1, 1, 2, 3));
}

#[test]
fn what_the_kernel_does_not_have_is_left_out() {
    let bare = Fixture::v2(&[("cpu.stat", "usage_usec 1\nuser_usec 1\nsystem_usec 0\n")]).stats().unwrap();
    assert_eq!(bare.cpu_stats.cpu_usage.total_usage, 1000);
    assert!(bare.cpu_stats.throttling_data.is_none());
    let no_swap = Fixture::v2(&[("memory.stat", "file 1\n"), ("memory.current", "1\n")]).stats().unwrap();
    assert_eq!((no_swap.memory_stats.usage.usage, no_swap.memory_stats.usage.limit), (1, i64::MAX as u64));
    assert!(no_swap.memory_stats.swap_usage.is_none() && no_swap.memory_stats.kernel_usage.is_none());
    let pids = Fixture::v1(&[("pids/pids.current", "2\n")]).stats().unwrap();
    for stats in [bare, pids] {
        assert!(
            stats.memory_stats.is_none() && stats.blkio_stats.is_none() && stats.hugetlb_stats.is_empty()
        );
    }
}

#[test]
fn a_cgroup_that_is_gone_has_no_statistics_and_needs_no_clean_up() {
    for fixture in [Fixture::v2(&[]), Fixture::v1(&[])] {
        let cgroup = &fixture.cgroup;
        assert!(
            matches!(cgroup.stats(&KeptFiles::default()), Err(CgroupError::NotFound { path }) if path == Path::new("pod/one"))
        );
        assert!(matches!(cgroup.freeze(Duration::ZERO), Err(CgroupError::NotFound { .. })));
        assert_eq!(cgroup.pids().unwrap(), Vec::<i32>::new());
        assert!(cgroup.wait_empty(Duration::MAX).unwrap());
        cgroup.kill_all().unwrap();
        cgroup.remove().unwrap();
    }
}

#[test]
fn processes_of_sub_cgroups_count_and_those_out_of_sight_do_not() {
    let files = [
        ("cgroup.procs", "10\n0\n11\n"),
        ("inner/cgroup.procs", "12\n"),
        ("inner/deep/cgroup.procs", "13\n"),
    ];
    let fixture = Fixture::v2(&files);
    let mut pids = fixture.cgroup.pids().unwrap();
    pids.sort_unstable();
    assert_eq!(pids, [10, 11, 12, 13]);
}

#[test]
fn v2_is_asked_for_what_it_can_do() {
    let running = Fixture::v2(&[
        ("cgroup.kill", ""),
        ("cgroup.freeze", "0"),
        ("cgroup.events", "populated 1\nfrozen 0\n"),
    ]);
    assert!(!running.cgroup.wait_empty(Duration::from_millis(5)).unwrap());
    running.cgroup.kill_all().unwrap();
    assert_eq!(running.text("pod/one/cgroup.kill"), "1");

    // A freezer that does not get there is let go again.
    let error = running.cgroup.freeze(Duration::from_millis(5)).unwrap_err();
    assert_eq!(error.to_string(), r#"cgroup "pod/one" is not frozen after 5 ms"#);
    assert_eq!(running.text("pod/one/cgroup.freeze"), "0");

    let frozen = Fixture::v2(&[("cgroup.freeze", "0"), ("cgroup.events", "populated 1\nfrozen 1\n")]);
    frozen.cgroup.freeze(Duration::ZERO).unwrap();
    assert_eq!(frozen.text("pod/one/cgroup.freeze"), "1");
}

#[test]
fn v1_freezes_by_its_own_controller() {
    let fixture = Fixture::v1(&[("freezer/freezer.state", "THAWED")]);
    fixture.cgroup.freeze(Duration::ZERO).unwrap();
    assert_eq!(fixture.text("freezer/pod/one/freezer.state"), "FROZEN");
    fixture.cgroup.thaw(Duration::ZERO).unwrap();
    assert_eq!(fixture.text("freezer/pod/one/freezer.state"), "THAWED");
    let without = Arc::new(v1(&[("memory", "/nowhere")]));
    let error = Cgroup::new(without, "one".into()).unwrap().freeze(Duration::ZERO).unwrap_err();
    assert!(matches!(error, CgroupError::NoController { controller: "freezer" }), "{error}");
}

#[test]
fn removal_reaches_every_hierarchy_and_all_below_but_nothing_above() {
    let root = TempDir::new().unwrap();
    let controllers = ["freezer", "memory"].map(|name| (name.to_owned(), root.path().join(name)));
    for tree in ["freezer", "memory"] {
        fs::create_dir_all(root.path().join(tree).join("pod/one/a/b/c")).unwrap();
        fs::create_dir_all(root.path().join(tree).join("pod/one/d")).unwrap();
    }
    let hierarchy = Arc::new(Hierarchy::V1 { controllers: controllers.into() });
    let cgroup = Cgroup::new(hierarchy, "pod/one".into()).unwrap();
    cgroup.remove().unwrap();
    cgroup.remove().unwrap();
    for tree in ["freezer", "memory"] {
        let left: Vec<_> = fs::read_dir(root.path().join(tree).join("pod")).unwrap().collect();
        assert!(left.is_empty(), "{left:?}");
    }
}

#[test]
fn nesting_is_followed_only_so_far() {
    let root = TempDir::new().unwrap();
    let mut path = root.path().join("one");
    (0..=MAX_DEPTH).for_each(|_| path.push("x"));
    fs::create_dir_all(&path).unwrap();
    let hierarchy = Arc::new(Hierarchy::V2 { mount_point: root.path().to_owned() });
    let cgroup = Cgroup::new(hierarchy, "one".into()).unwrap();
    assert!(matches!(cgroup.pids(), Err(CgroupError::TooDeep { .. })));
    assert!(matches!(cgroup.remove(), Err(CgroupError::TooDeep { .. })));
    fs::remove_dir(&path).unwrap();
    cgroup.remove().unwrap();
}

fn garbage() -> impl Strategy<Value = String> {
    let word = prop_oneof![
        "[a-z_.]{0,9}",
        "-?[0-9]{1,25}",
        "[0-9]{1,6}:[0-9]{1,9}",
        "[rwd](bytes|ios)=[0-9x]{0,21}",
        Just("max".to_owned()),
        Just("Total".to_owned()),
        "\\PC{0,6}"
    ];
    let line = prop::collection::vec((word, prop_oneof![Just(" "), Just("\n"), Just("\t"), Just("")]), 0..30);
    line.prop_map(|words| words.into_iter().map(|(word, blank)| word + blank).collect())
}

fn stats_of_garbage(
    files: &[(&str, &str)],
    texts: &[String],
    build: fn(&[(&str, &str)]) -> Fixture,
) -> CgroupStats {
    let files: Vec<_> =
        files.iter().zip(texts.iter().cycle()).map(|((name, _), text)| (*name, text.as_str())).collect();
    build(&files).stats().unwrap()
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn garbage_in_files_is_no_error(texts in prop::collection::vec(garbage(), 1..10)) {
        let v2 = stats_of_garbage(&V2_FILES, &texts, Fixture::v2);
        prop_assert!(v2.cpu_stats.is_some() && v2.memory_stats.is_some());
        let v1 = stats_of_garbage(&V1_FILES, &texts, Fixture::v1);
        prop_assert!(v1.memory_stats.is_some());
    }

    #[test]
    fn any_mountinfo_has_an_answer(text in garbage(), line in "[0-9 ]{0,9}/\\PC{0,30} - cgroup2? \\PC{0,30}") {
        let _ = Hierarchy::detect(&text);
        let _ = Hierarchy::detect(&line);
    }
}
