//! Setters of [`SpecBuilder`] for cgroup limits and devices.

use nakai_protocols::oci;

use super::SpecBuilder;

/// The CFS period that runtimes use, in microseconds.
const CPU_PERIOD: u64 = 100_000;

impl SpecBuilder {
    /// Changes the resources as a whole.
    #[must_use]
    pub fn resources(self, edit: impl FnOnce(&mut oci::LinuxResources)) -> Self {
        self.edit(|spec| edit(spec.Linux.mut_or_insert_default().Resources.mut_or_insert_default()))
    }

    /// The cgroup of the container, below the root or as systemd's `slice:prefix:name`.
    #[must_use]
    pub fn cgroups_path(self, path: &str) -> Self {
        self.edit(|spec| path.clone_into(&mut spec.Linux.mut_or_insert_default().CgroupsPath))
    }

    /// Memory limit in bytes.
    #[must_use]
    pub fn memory_limit(self, bytes: i64) -> Self {
        self.resources(|resources| resources.Memory.mut_or_insert_default().Limit = bytes)
    }

    /// Memory and swap together in bytes, as the OCI specification counts them.
    #[must_use]
    pub fn memory_swap(self, bytes: i64) -> Self {
        self.resources(|resources| resources.Memory.mut_or_insert_default().Swap = bytes)
    }

    /// CPU time in CPUs: 0.5 is half of one.
    #[must_use]
    #[expect(clippy::cast_possible_truncation, reason = "a saturating cast of a count of CPUs")]
    pub fn cpus(self, cpus: f64) -> Self {
        self.cpu_quota((cpus * CPU_PERIOD as f64) as i64, CPU_PERIOD)
    }

    /// CFS quota and period in microseconds.
    #[must_use]
    pub fn cpu_quota(self, quota: i64, period: u64) -> Self {
        self.resources(|resources| {
            let cpu = resources.CPU.mut_or_insert_default();
            (cpu.Quota, cpu.Period) = (quota, period);
        })
    }

    /// CPU shares, 2 to 262144.
    #[must_use]
    pub fn cpu_shares(self, shares: u64) -> Self {
        self.resources(|resources| resources.CPU.mut_or_insert_default().Shares = shares)
    }

    /// The CPUs and memory nodes that may be used, in list format (cpuset(7)).
    #[must_use]
    pub fn cpuset(self, cpus: &str, mems: &str) -> Self {
        self.resources(|resources| {
            let cpu = resources.CPU.mut_or_insert_default();
            (cpu.Cpus, cpu.Mems) = (cpus.to_owned(), mems.to_owned());
        })
    }

    /// How many processes and threads there may be.
    #[must_use]
    pub fn pids_limit(self, limit: i64) -> Self {
        self.resources(|resources| resources.Pids.mut_or_insert_default().Limit = limit)
    }

    /// A device rule, behind the ones that are there. `kind` is `a`, `b` or `c`; -1 for a number
    /// means all.
    #[must_use]
    pub fn add_device_rule(self, allow: bool, kind: &str, major: i64, minor: i64, access: &str) -> Self {
        let rule = oci::LinuxDeviceCgroup {
            Allow: allow,
            Type: kind.to_owned(),
            Major: major,
            Minor: minor,
            Access: access.to_owned(),
            ..Default::default()
        };
        self.resources(|resources| resources.Devices.push(rule))
    }
}
