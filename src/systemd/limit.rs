//! Limits of a cgroup as systemd's properties (systemd.resource-control(5)).
//!
//! systemd writes the files of every unit's cgroup, also what nobody has set, and writes them anew when it sees fit. So
//! it is told what is in force, and then writes the same. Files that it has no property for it leaves alone.

use super::wire::Writer;

/// "As much as there is", in systemd's words.
const INFINITY: u64 = u64::MAX;
/// systemd's word for `cpu.idle`.
const IDLE: u64 = 0;
const SECOND: u64 = 1_000_000;
/// Where v1 is, systemd may be too old to know of another one.
const USUAL_PERIOD: u64 = 100_000;
/// v1 says "no limit" by the largest number of bytes that whole pages have.
const NO_LIMIT: u64 = 1 << 62;

/// Files with one number, or `max`, and their properties. The last are v1's.
const NUMBERS: [(&str, &str); 11] = [
    ("memory.max", "MemoryMax"),
    ("memory.high", "MemoryHigh"),
    ("memory.low", "MemoryLow"),
    ("memory.min", "MemoryMin"),
    ("memory.swap.max", "MemorySwapMax"),
    ("pids.max", "TasksMax"),
    ("cpu.weight", "CPUWeight"),
    ("memory.limit_in_bytes", "MemoryLimit"),
    ("cpu.shares", "CPUShares"),
    ("blkio.weight", "BlockIOWeight"),
    ("blkio.bfq.weight", "BlockIOWeight"),
];

/// Files with a list of numbers.
const SETS: [(&str, &str); 2] = [("cpuset.cpus", "AllowedCPUs"), ("cpuset.mems", "AllowedMemoryNodes")];

/// A property and its value.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Limit {
    name: &'static str,
    value: Value,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Value {
    Number(u64),
    Word(&'static str),
    /// A bit for each member, the lowest first.
    Set(Vec<u8>),
}

impl Limit {
    /// No device may be opened.
    pub const NO_DEVICES: Self = Self { name: "DevicePolicy", value: Value::Word("strict") };

    pub(super) fn write(&self, list: &mut Writer) {
        list.structure().string(self.name);
        match &self.value {
            Value::Number(number) => list.signature("t").u64(*number),
            Value::Word(word) => list.signature("s").string(word),
            Value::Set(bytes) => list.signature("ay").array(1, |set| {
                for byte in bytes {
                    set.byte(*byte);
                }
            }),
        };
    }

    /// Those of a cgroup, of which `read` reads files; it has none of a controller that is off. A set that is empty is
    /// left out: it means all.
    pub fn in_force(read: impl Fn(&str) -> Option<String>) -> Vec<Self> {
        let mut limits = Vec::new();
        let mut push = |name, value| limits.push(Self { name, value });
        for (file, name) in NUMBERS {
            if let Some(number) = read(file).and_then(|text| number(text.trim())) {
                push(name, Value::Number(number));
            }
        }
        if let Some(weight) =
            read("io.weight").and_then(|text| number(text.lines().next()?.strip_prefix("default ")?))
        {
            push("IOWeight", Value::Number(weight));
        }
        let in_v1 = || Some(format!("{} {}", read("cpu.cfs_quota_us")?.trim(), read("cpu.cfs_period_us")?));
        let in_v2 = read("cpu.max");
        let is_v2 = in_v2.is_some();
        if let Some((quota, period)) = in_v2.or_else(in_v1).and_then(|text| quota(&text)) {
            push("CPUQuotaPerSecUSec", Value::Number(quota));
            if is_v2 || period != USUAL_PERIOD {
                push("CPUQuotaPeriodUSec", Value::Number(period));
            }
        }
        for (file, name) in SETS {
            if let Some(set) = read(file).map(|text| bits(&text)).filter(|set| !set.is_empty()) {
                push(name, Value::Set(set));
            }
        }
        if read("cpu.idle").is_some_and(|text| text.trim() == "1") {
            limits.retain(|limit| limit.name != "CPUWeight");
            limits.push(Self { name: "CPUWeight", value: Value::Number(IDLE) });
        }
        limits
    }
}

fn number(text: &str) -> Option<u64> {
    if matches!(text, "max" | "-1") {
        return Some(INFINITY);
    }
    text.parse().ok().map(|number| if number < NO_LIMIT { number } else { INFINITY })
}

/// `cpu.max`, and what v1 has in two files, has microseconds in each period, systemd in each second.
fn quota(text: &str) -> Option<(u64, u64)> {
    let (quota, period) = text.trim().split_once(' ')?;
    let period: u64 = period.parse().ok()?;
    let quota = match number(quota)? {
        INFINITY => INFINITY,
        quota => quota.checked_mul(SECOND)?.checked_div(period)?,
    };
    Some((quota, period))
}

/// The members of a list such as `0-3,8`.
fn bits(text: &str) -> Vec<u8> {
    let mut bytes = Vec::new();
    for range in text.trim().split(',').filter(|range| !range.is_empty()) {
        let (first, last) = range.split_once('-').unwrap_or((range, range));
        let (Ok(first), Ok(last)) = (first.parse::<u16>(), last.parse::<u16>()) else { continue };
        for member in first..=last {
            let place = usize::from(member / 8);
            if bytes.len() <= place {
                bytes.resize(place.saturating_add(1), 0);
            }
            if let Some(byte) = bytes.get_mut(place) {
                *byte |= 1 << (member % 8);
            }
        }
    }
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(files: &[(&str, &str)]) -> Vec<(&'static str, Value)> {
        let read =
            |name: &str| files.iter().find(|(file, _)| *file == name).map(|(_, text)| (*text).to_owned());
        Limit::in_force(read).into_iter().map(|limit| (limit.name, limit.value)).collect()
    }

    #[test]
    fn files_become_properties() {
        let files = [
            ("memory.max", "67108864\n"),
            ("memory.swap.max", "max\n"),
            ("pids.max", "32\n"),
            ("cpu.max", "50000 200000\n"),
            ("cpu.weight", "100\n"),
            ("cpu.idle", "0\n"),
            ("io.weight", "default 50\n8:0 70\n"),
            ("cpuset.cpus", "0-2,9\n"),
            ("cpuset.mems", "\n"),
        ];
        let expected = [
            ("MemoryMax", Value::Number(64 << 20)),
            ("MemorySwapMax", Value::Number(u64::MAX)),
            ("TasksMax", Value::Number(32)),
            ("CPUWeight", Value::Number(100)),
            ("IOWeight", Value::Number(50)),
            ("CPUQuotaPerSecUSec", Value::Number(250_000)),
            ("CPUQuotaPeriodUSec", Value::Number(200_000)),
            ("AllowedCPUs", Value::Set(vec![0b111, 0b10])),
        ];
        assert_eq!(of(&files), expected);
    }

    #[test]
    fn files_of_v1_become_properties_of_its_own() {
        let files = [
            ("memory.limit_in_bytes", "9223372036854771712\n"),
            ("pids.max", "max\n"),
            ("cpu.shares", "512\n"),
            ("cpu.cfs_quota_us", "50000\n"),
            ("cpu.cfs_period_us", "200000\n"),
            ("blkio.bfq.weight", "50\n"),
        ];
        let mut expected = vec![
            ("TasksMax", Value::Number(u64::MAX)),
            ("MemoryLimit", Value::Number(u64::MAX)),
            ("CPUShares", Value::Number(512)),
            ("BlockIOWeight", Value::Number(50)),
            ("CPUQuotaPerSecUSec", Value::Number(250_000)),
            ("CPUQuotaPeriodUSec", Value::Number(200_000)),
        ];
        assert_eq!(of(&files), expected);
        let files = [("cpu.cfs_quota_us", "-1\n"), ("cpu.cfs_period_us", "100000\n")];
        expected = vec![("CPUQuotaPerSecUSec", Value::Number(u64::MAX))];
        assert_eq!(of(&files), expected);
    }

    #[test]
    fn no_quota_and_no_weight_are_told_too() {
        let files = [("cpu.max", "max 100000\n"), ("cpu.weight", "0\n"), ("cpu.idle", "1\n")];
        let expected = [
            ("CPUQuotaPerSecUSec", Value::Number(u64::MAX)),
            ("CPUQuotaPeriodUSec", Value::Number(100_000)),
            ("CPUWeight", Value::Number(0)),
        ];
        assert_eq!(of(&files), expected);
        assert_eq!(of(&[("memory.max", "much"), ("cpu.max", "1 0")]), []);
    }
}
