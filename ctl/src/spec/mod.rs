//! The specification of an ordinary container, as a Kata shim sends it.
//!
//! [`SpecBuilder`] starts from what containerd gives a container and the shim then edits for the
//! guest: namespaces without paths and without pid and network (the agent decides on pid, the VM is
//! the network namespace), `/dev/shm` bound from the sandbox's. Setters are chained, and a setter for
//! a list replaces it unless its name says `add`. [`SpecBuilder::edit`] reaches any field that has no
//! setter. No field is checked here: sending nonsense is what tests are for.

mod defaults;
mod resources;

use nakai_protocols::oci;

pub use defaults::{DEFAULT_CAPABILITIES, DEFAULT_MASKED_PATHS, DEFAULT_PATH, DEFAULT_READONLY_PATHS};

/// Which hook list a hook goes to.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum HookKind {
    /// `prestart`
    Prestart,
    /// `createRuntime`
    CreateRuntime,
    /// `createContainer`
    CreateContainer,
    /// `startContainer`
    StartContainer,
    /// `poststart`
    Poststart,
    /// `poststop`
    Poststop,
}

/// Builds a [`oci::Spec`].
#[derive(Clone, Debug)]
pub struct SpecBuilder {
    spec: oci::Spec,
}

impl SpecBuilder {
    /// An ordinary container `id` whose root filesystem the guest sees at `root`.
    pub fn new(id: &str, root: &str) -> Self {
        Self { spec: defaults::spec(id, root) }
    }

    /// Goes on from a specification.
    pub fn of(spec: oci::Spec) -> Self {
        Self { spec }
    }

    /// The specification.
    pub fn build(&self) -> oci::Spec {
        self.spec.clone()
    }

    /// The process alone, for `ExecProcess` into a container of this specification.
    pub fn process(&self) -> oci::Process {
        self.spec.Process.clone().unwrap_or_default()
    }

    /// Changes anything.
    #[must_use]
    pub fn edit(mut self, edit: impl FnOnce(&mut oci::Spec)) -> Self {
        edit(&mut self.spec);
        self
    }

    fn edit_process(self, edit: impl FnOnce(&mut oci::Process)) -> Self {
        self.edit(|spec| edit(spec.Process.mut_or_insert_default()))
    }

    fn edit_linux(self, edit: impl FnOnce(&mut oci::Linux)) -> Self {
        self.edit(|spec| edit(spec.Linux.mut_or_insert_default()))
    }

    /// The program and its arguments.
    #[must_use]
    pub fn args<S: Into<String>>(self, args: impl IntoIterator<Item = S>) -> Self {
        let args = strings(args);
        self.edit_process(|process| process.Args = args)
    }

    /// A variable of the environment; one of the same name is replaced.
    #[must_use]
    pub fn env(self, name: &str, value: &str) -> Self {
        let prefix = format!("{name}=");
        self.edit_process(|process| {
            process.Env.retain(|entry| !entry.starts_with(&prefix));
            process.Env.push(format!("{prefix}{value}"));
        })
    }

    /// The environment as it is to be, entries of any form.
    #[must_use]
    pub fn environment<S: Into<String>>(self, entries: impl IntoIterator<Item = S>) -> Self {
        let entries = strings(entries);
        self.edit_process(|process| process.Env = entries)
    }

    /// The working directory.
    #[must_use]
    pub fn cwd(self, cwd: &str) -> Self {
        self.edit_process(|process| cwd.clone_into(&mut process.Cwd))
    }

    /// User, group and additional groups.
    #[must_use]
    pub fn user(self, uid: u32, gid: u32, additional: impl IntoIterator<Item = u32>) -> Self {
        let additional = additional.into_iter().collect();
        self.edit_process(|process| {
            let user = process.User.mut_or_insert_default();
            (user.UID, user.GID, user.AdditionalGids) = (uid, gid, additional);
        })
    }

    /// The host name; an empty one leaves the sandbox's.
    #[must_use]
    pub fn hostname(self, hostname: &str) -> Self {
        self.edit(|spec| hostname.clone_into(&mut spec.Hostname))
    }

    /// Whether the process gets a terminal. `TERM` is set with it, as containerd does.
    #[must_use]
    pub fn terminal(self, terminal: bool) -> Self {
        let builder = self.edit_process(|process| process.Terminal = terminal);
        if terminal { builder.env("TERM", "xterm") } else { builder }
    }

    /// The bounding, effective and permitted capabilities (`CAP_…`); inheritable and ambient ones are
    /// left empty.
    #[must_use]
    pub fn capabilities<S: Into<String>>(self, names: impl IntoIterator<Item = S>) -> Self {
        let names = strings(names);
        self.edit_process(|process| process.Capabilities = Some(defaults::capabilities(&names)).into())
    }

    /// A resource limit such as `RLIMIT_NOFILE`; one of the same type is replaced.
    #[must_use]
    pub fn rlimit(self, kind: &str, soft: u64, hard: u64) -> Self {
        self.edit_process(|process| {
            process.Rlimits.retain(|limit| limit.Type != kind);
            let limit =
                oci::POSIXRlimit { Type: kind.to_owned(), Soft: soft, Hard: hard, ..Default::default() };
            process.Rlimits.push(limit);
        })
    }

    /// Whether the process may gain privileges by execve(2).
    #[must_use]
    pub fn no_new_privileges(self, on: bool) -> Self {
        self.edit_process(|process| process.NoNewPrivileges = on)
    }

    /// The OOM killer's preference, -1000 to 1000.
    #[must_use]
    pub fn oom_score_adj(self, score: i64) -> Self {
        self.edit_process(|process| process.OOMScoreAdj = score)
    }

    /// Whether the root filesystem is read-only.
    #[must_use]
    pub fn readonly_rootfs(self, readonly: bool) -> Self {
        self.edit(|spec| spec.Root.mut_or_insert_default().Readonly = readonly)
    }

    /// A mount; one at the same destination is replaced where it stands in the order.
    #[must_use]
    pub fn mount(self, destination: &str, source: &str, kind: &str, options: &[&str]) -> Self {
        let mount = defaults::mount(destination, source, kind, options);
        self.edit(|spec| match spec.Mounts.iter_mut().find(|old| old.destination == destination) {
            Some(old) => *old = mount,
            None => spec.Mounts.push(mount),
        })
    }

    /// Takes the mount at `destination` away.
    #[must_use]
    pub fn without_mount(self, destination: &str) -> Self {
        self.edit(|spec| spec.Mounts.retain(|mount| mount.destination != destination))
    }

    /// A `/dev/shm` of the container's own: for an agent whose sandbox was made without one.
    #[must_use]
    pub fn private_shm(self) -> Self {
        self.mount("/dev/shm", "shm", "tmpfs", &["nosuid", "noexec", "nodev", "mode=1777", "size=65536k"])
    }

    /// A kernel parameter, such as `net.ipv4.ip_forward`.
    #[must_use]
    pub fn sysctl(self, name: &str, value: &str) -> Self {
        self.edit_linux(|linux| {
            linux.Sysctl.insert(name.to_owned(), value.to_owned());
        })
    }

    /// The paths that the container can't see into.
    #[must_use]
    pub fn masked_paths<S: Into<String>>(self, paths: impl IntoIterator<Item = S>) -> Self {
        let paths = strings(paths);
        self.edit_linux(|linux| linux.MaskedPaths = paths)
    }

    /// The paths that the container can't write below.
    #[must_use]
    pub fn readonly_paths<S: Into<String>>(self, paths: impl IntoIterator<Item = S>) -> Self {
        let paths = strings(paths);
        self.edit_linux(|linux| linux.ReadonlyPaths = paths)
    }

    /// The system call filter.
    #[must_use]
    pub fn seccomp(self, filter: oci::LinuxSeccomp) -> Self {
        self.edit_linux(|linux| linux.Seccomp = Some(filter).into())
    }

    /// The namespaces by type; each is new, or joined where a path is given.
    #[must_use]
    pub fn namespaces<'a>(self, namespaces: impl IntoIterator<Item = (&'a str, &'a str)>) -> Self {
        let namespaces = namespaces.into_iter().map(defaults::namespace).collect();
        self.edit_linux(|linux| linux.Namespaces = namespaces)
    }

    /// A device node.
    #[must_use]
    pub fn add_device(self, device: oci::LinuxDevice) -> Self {
        self.edit_linux(|linux| linux.Devices.push(device))
    }

    /// A program to run at a point of the container's life.
    #[must_use]
    pub fn hook<S: Into<String>>(
        self,
        kind: HookKind,
        path: &str,
        args: impl IntoIterator<Item = S>,
        timeout: i64,
    ) -> Self {
        let hook =
            oci::Hook { Path: path.to_owned(), Args: strings(args), Timeout: timeout, ..Default::default() };
        self.edit(|spec| {
            let hooks = spec.Hooks.mut_or_insert_default();
            match kind {
                HookKind::Prestart => hooks.Prestart.push(hook),
                HookKind::CreateRuntime => hooks.CreateRuntime.push(hook),
                HookKind::CreateContainer => hooks.CreateContainer.push(hook),
                HookKind::StartContainer => hooks.StartContainer.push(hook),
                HookKind::Poststart => hooks.Poststart.push(hook),
                HookKind::Poststop => hooks.Poststop.push(hook),
            }
        })
    }

    /// An annotation.
    #[must_use]
    pub fn annotation(self, name: &str, value: &str) -> Self {
        self.edit(|spec| {
            spec.Annotations.insert(name.to_owned(), value.to_owned());
        })
    }
}

fn strings<S: Into<String>>(items: impl IntoIterator<Item = S>) -> Vec<String> {
    items.into_iter().map(Into::into).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn builder() -> SpecBuilder {
        SpecBuilder::new("web", "/run/kata-containers/shared/containers/web/rootfs")
    }

    #[test]
    fn default_is_what_a_shim_sends() {
        let spec = builder().build();
        assert_eq!(spec.Root.Path, "/run/kata-containers/shared/containers/web/rootfs");
        let namespaces: Vec<_> = spec.Linux.Namespaces.iter().map(|n| (&*n.Type, &*n.Path)).collect();
        assert_eq!(namespaces, [("ipc", ""), ("uts", ""), ("mount", "")]);
        let destinations: Vec<_> = spec.Mounts.iter().map(|m| &*m.destination).collect();
        let expected = ["/proc", "/dev", "/dev/pts", "/dev/shm", "/dev/mqueue", "/sys", "/sys/fs/cgroup"];
        assert_eq!(destinations, expected);
        assert_eq!(spec.Linux.CgroupsPath, "/nakai/web");
        assert_eq!(spec.Process.Capabilities.Bounding, DEFAULT_CAPABILITIES);
        assert!(spec.Process.Capabilities.Ambient.is_empty());
        let rule = &spec.Linux.Resources.Devices;
        assert_eq!((rule.len(), rule[0].Allow, &*rule[0].Access), (1, false, "rwm"));
        assert_eq!((&*spec.Process.Cwd, &*spec.Process.Args), ("/", &["sh".to_owned()][..]));
    }

    #[test]
    fn setters_reach_their_fields() {
        let spec = builder()
            .args(["top", "-b"])
            .env("PATH", "/bin")
            .env("A", "1")
            .env("A", "2")
            .cwd("/srv")
            .user(7, 8, [9, 10])
            .hostname("box")
            .terminal(true)
            .rlimit("RLIMIT_NOFILE", 1, 2)
            .readonly_rootfs(true)
            .sysctl("net.ipv4.ip_forward", "1")
            .hook(HookKind::StartContainer, "/hook", ["hook"], 3)
            .annotation("a", "b")
            .namespaces([("uts", ""), ("ipc", "/ns/ipc")])
            .build();
        let process = &spec.Process;
        assert_eq!(process.Args, ["top", "-b"]);
        assert_eq!(process.Env, ["PATH=/bin", "A=2", "TERM=xterm"]);
        assert_eq!((process.User.UID, process.User.GID), (7, 8));
        assert_eq!(process.User.AdditionalGids, [9, 10]);
        assert_eq!(process.Rlimits.len(), 1);
        assert_eq!((process.Rlimits[0].Soft, process.Rlimits[0].Hard), (1, 2));
        assert!(process.Terminal && spec.Root.Readonly);
        assert_eq!((&*process.Cwd, &*spec.Hostname), ("/srv", "box"));
        assert_eq!(spec.Linux.Sysctl["net.ipv4.ip_forward"], "1");
        assert_eq!(spec.Hooks.StartContainer[0].Args, ["hook"]);
        assert_eq!(spec.Annotations["a"], "b");
        assert_eq!(spec.Linux.Namespaces[1].Path, "/ns/ipc");
    }

    #[test]
    fn a_mount_replaces_the_one_at_its_place_and_keeps_the_order() {
        let spec = builder().private_shm().mount("/data", "/srv", "bind", &["rbind", "ro"]).build();
        let shm = spec.Mounts.iter().position(|m| m.destination == "/dev/shm").unwrap();
        assert_eq!((shm, &*spec.Mounts[shm].type_), (3, "tmpfs"));
        assert_eq!(spec.Mounts.last().unwrap().options, ["rbind", "ro"]);
        assert_eq!(builder().without_mount("/sys").build().Mounts.len(), 6);
    }

    #[test]
    fn limits_are_written_and_keep_each_other() {
        let spec = builder().memory_limit(64 << 20).cpus(0.5).pids_limit(20).cpuset("0-1", "").build();
        let resources = &spec.Linux.Resources;
        assert_eq!(resources.Memory.Limit, 64 << 20);
        assert_eq!((resources.CPU.Quota, resources.CPU.Period), (50_000, 100_000));
        assert_eq!((&*resources.CPU.Cpus, resources.Pids.Limit), ("0-1", 20));
        assert_eq!(resources.Devices.len(), 1);
    }
}
