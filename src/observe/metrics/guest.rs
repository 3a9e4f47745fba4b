//! The guest: load, tasks, CPUs, memory, disks, network interfaces, filesystems, from `/proc`
//! (proc_loadavg(5) and its neighbours; Documentation/admin-guide/iostats.rst).

use std::fs;
use std::path::Path;

use nix::unistd::{SysconfVar, sysconf};

use super::numbers;
use super::text::Text;

const CPU: [&str; 10] =
    ["user", "nice", "system", "idle", "iowait", "irq", "softirq", "steal", "guest", "guest_nice"];

const NET: [&str; 16] = [
    "recv_bytes",
    "recv_packets",
    "recv_errs",
    "recv_drop",
    "recv_fifo",
    "recv_frame",
    "recv_compressed",
    "recv_multicast",
    "sent_bytes",
    "sent_packets",
    "sent_errs",
    "sent_drop",
    "sent_fifo",
    "sent_colls",
    "sent_carrier",
    "sent_compressed",
];

const DISK: [&str; 17] = [
    "reads",
    "merged",
    "sectors_read",
    "time_reading",
    "writes",
    "writes_merged",
    "sectors_written",
    "time_writing",
    "in_progress",
    "time_in_progress",
    "weighted_time_in_progress",
    "discards",
    "discards_merged",
    "sectors_discarded",
    "time_discarding",
    "flushes",
    "time_flushing",
];

/// A filesystem that can be written to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Filesystem {
    /// Where it is mounted.
    pub mount: String,
    /// What is mounted.
    pub device: String,
    /// Total, used and available bytes.
    pub bytes: [u64; 3],
    /// Total, used and available inodes.
    pub inodes: [u64; 3],
}

pub(super) fn collect(text: &mut Text, proc: &Path) {
    let read = |name: &str| fs::read_to_string(proc.join(name)).unwrap_or_default();
    load(text, &read("loadavg"));
    cpus(text, &read("stat"));
    let mut family = text.gauge("kata_guest_vm_stat", "Guest virtual memory statistics.");
    for line in read("vmstat").lines() {
        let item = line.split(' ').next().unwrap_or_default();
        numbers(line, 1).for_each(|value| family.sample(&[("item", item)], value));
    }
    let mut family = text.gauge("kata_guest_netdev_stat", "Guest net devices statistics.");
    for (name, line) in read("net/dev").lines().filter_map(|line| line.rsplit_once(':')) {
        for (item, value) in NET.iter().zip(numbers(line, 0)) {
            family.sample(&[("interface", name.trim()), ("item", item)], value);
        }
    }
    let mut family = text.gauge("kata_guest_diskstat", "Disks statistics in system.");
    for line in read("diskstats").lines() {
        let Some(name) = line.split_whitespace().nth(2) else { continue };
        for (item, value) in DISK.iter().zip(numbers(line, 3)) {
            family.sample(&[("disk", name), ("item", item)], value);
        }
    }
    memory(text, &read("meminfo"));
}

/// `0.20 0.18 0.12 1/80 11206`.
fn load(text: &mut Text, loadavg: &str) {
    let mut words = loadavg.split_whitespace();
    let mut family = text.gauge("kata_guest_load", "Guest system load.");
    for item in ["load1", "load5", "load15"] {
        if let Some(value) = words.next().filter(|word| word.parse::<f64>().is_ok()) {
            family.sample(&[("item", item)], value);
        }
    }
    let tasks = words.next().and_then(|tasks| tasks.split_once('/'));
    let mut family = text.gauge("kata_guest_tasks", "Guest system load.");
    for (item, value) in tasks.into_iter().flat_map(|(cur, max)| [("cur", cur), ("max", max)]) {
        if let Ok(value) = value.parse::<u64>() {
            family.sample(&[("item", item)], value);
        }
    }
}

/// In milliseconds, of all and of each.
fn cpus(text: &mut Text, stat: &str) {
    let ticks = sysconf(SysconfVar::CLK_TCK).ok().flatten().and_then(|ticks| u64::try_from(ticks).ok());
    let mut family = text.gauge("kata_guest_cpu_time", "Guest CPU statistics.");
    for line in stat.lines().filter_map(|line| line.strip_prefix("cpu")) {
        let number = line.split(' ').next().filter(|number| !number.is_empty()).unwrap_or("total");
        let skip = usize::from(number != "total");
        for (item, value) in CPU.iter().zip(numbers(line, skip)) {
            let millis = value.saturating_mul(1000).checked_div(ticks.unwrap_or(100)).unwrap_or(0);
            family.sample(&[("cpu", number), ("item", item)], millis);
        }
    }
}

/// In bytes.
fn memory(text: &mut Text, meminfo: &str) {
    let mut family = text.gauge("kata_guest_meminfo", "Statistics about memory usage in the system.");
    for (name, value) in meminfo.lines().filter_map(|line| line.split_once(':')) {
        let Some(number) = numbers(value, 0).next() else { continue };
        let factor = if value.trim_end().ends_with(" kB") { 1024 } else { 1 };
        family.sample(&[("item", &snake_case(name))], number.saturating_mul(factor));
    }
}

/// The kernel's name of an amount of memory, as the Kata agent writes it.
fn snake_case(name: &str) -> String {
    match name {
        "Percpu" => return "per_cpu".to_owned(),
        "AnonHugePages" => return "anon_hugepages".to_owned(),
        "ShmemHugePages" => return "shmem_hugepages".to_owned(),
        "DirectMap4k" => return "direct_map_4k".to_owned(),
        "DirectMap2M" => return "direct_map_2M".to_owned(),
        "DirectMap4M" => return "direct_map_4M".to_owned(),
        "DirectMap1G" => return "direct_map_1G".to_owned(),
        _ => {}
    }
    // `HugePages_Total` is two words, `Active(anon)` too.
    let name = name.replace("HugePages", "Hugepages");
    let mut snake = String::with_capacity(name.len().saturating_add(4));
    let mut was_lower = false;
    for c in name.chars() {
        match c {
            '(' | '_' => snake.push('_'),
            ')' => {}
            c => {
                // `SReclaimable` and `KReclaimable`: one letter is a word.
                if c.is_ascii_uppercase() && was_lower {
                    snake.push('_');
                }
                snake.push(c.to_ascii_lowercase());
            }
        }
        was_lower = c.is_ascii_lowercase();
    }
    for (glued, apart) in
        [("sreclaimable", "s_reclaimable"), ("sunreclaim", "s_unreclaim"), ("kreclaimable", "k_reclaimable")]
    {
        if snake == glued {
            return apart.to_owned();
        }
    }
    snake
}

pub(super) fn filesystems(text: &mut Text, filesystems: &[Filesystem]) {
    type Part = fn(&Filesystem) -> [u64; 3];
    let parts: [(&'static str, &'static str, Part); 2] = [
        ("kata_guest_filesystem_bytes", "Bytes of filesystems.", |fs| fs.bytes),
        ("kata_guest_filesystem_inodes", "Inodes of filesystems.", |fs| fs.inodes),
    ];
    for (name, help, part) in parts {
        let mut family = text.gauge(name, help);
        for filesystem in filesystems {
            for (item, value) in ["total", "used", "available"].into_iter().zip(part(filesystem)) {
                let labels = [("mount", &*filesystem.mount), ("device", &*filesystem.device), ("item", item)];
                family.sample(&labels, value);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_has_the_names_of_the_kata_agent() {
        for (kernel, kata) in [
            ("MemTotal", "mem_total"),
            ("SwapCached", "swap_cached"),
            ("Active(anon)", "active_anon"),
            ("Inactive(file)", "inactive_file"),
            ("SReclaimable", "s_reclaimable"),
            ("SUnreclaim", "s_unreclaim"),
            ("KReclaimable", "k_reclaimable"),
            ("KernelStack", "kernel_stack"),
            ("NFS_Unstable", "nfs_unstable"),
            ("WritebackTmp", "writeback_tmp"),
            ("CommitLimit", "commit_limit"),
            ("Committed_AS", "committed_as"),
            ("VmallocTotal", "vmalloc_total"),
            ("Percpu", "per_cpu"),
            ("AnonHugePages", "anon_hugepages"),
            ("ShmemHugePages", "shmem_hugepages"),
            ("ShmemPmdMapped", "shmem_pmd_mapped"),
            ("HugePages_Total", "hugepages_total"),
            ("HugePages_Rsvd", "hugepages_rsvd"),
            ("Hugepagesize", "hugepagesize"),
            ("Hugetlb", "hugetlb"),
            ("DirectMap4k", "direct_map_4k"),
            ("DirectMap2M", "direct_map_2M"),
        ] {
            assert_eq!(snake_case(kernel), kata);
        }
    }

    #[test]
    fn what_the_kernel_tells_becomes_numbers() {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir(dir.path().join("net")).unwrap();
        for (name, content) in [
            ("loadavg", "0.20 0.18 0.12 1/80 11206\n"),
            ("stat", "cpu  100 0 50 1 2 3 4 5 6 7\ncpu0 100 0 50 1 2 3 4 5 6 7\nintr 1 2\n"),
            ("vmstat", "nr_free_pages 7\nodd\n"),
            ("net/dev", "Inter-| Receive\n face |bytes\n  eth0: 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16\n"),
            ("diskstats", " 254 0 vda 1 2 3 4 5 6 7 8 9 10 11\n"),
            ("meminfo", "MemTotal:  2 kB\nHugePages_Free: 3\nNone: x\n"),
        ] {
            fs::write(dir.path().join(name), content).unwrap();
        }
        let mut text = Text::default();
        collect(&mut text, dir.path());
        let text = text.finish();
        for line in [
            "kata_guest_load{item=\"load15\"} 0.12",
            "kata_guest_tasks{item=\"max\"} 80",
            "kata_guest_cpu_time{cpu=\"total\",item=\"user\"} 1000",
            "kata_guest_cpu_time{cpu=\"0\",item=\"guest_nice\"} 70",
            "kata_guest_vm_stat{item=\"nr_free_pages\"} 7",
            "kata_guest_netdev_stat{interface=\"eth0\",item=\"recv_bytes\"} 1",
            "kata_guest_netdev_stat{interface=\"eth0\",item=\"sent_compressed\"} 16",
            "kata_guest_diskstat{disk=\"vda\",item=\"weighted_time_in_progress\"} 11",
            "kata_guest_meminfo{item=\"mem_total\"} 2048",
            "kata_guest_meminfo{item=\"hugepages_free\"} 3",
        ] {
            assert!(text.lines().any(|other| other == line), "{line} is not in:\n{text}");
        }
        assert!(!text.contains("odd") && !text.contains("none") && !text.contains("discards"));
    }

    #[test]
    fn nothing_to_read_is_nothing_to_tell() {
        let mut text = Text::default();
        collect(&mut text, Path::new("/nowhere"));
        assert_eq!(text.finish(), "");
    }
}
