//! Pure edits of an OCI runtime spec: what the host asks for becomes what can be carried out in this guest.
//!
//! Two entries, [`prepare`] for a container and [`prepare_exec`] for a further process in one. Each takes
//! the wire's spec and what is known of the guest ([`Facts`]). One file per subject, one function per edit.
//!
//! Init is made in one of two ways: by the worker's own code, which nearly all specifications allow (`own_init`,
//! `own_mounts`, `own_cgroups`); or by libcontainer, which then gets the spec without what it can't do or does wrong.
//! That is beside it for others to carry out. Where these files name libcontainer, they mean the second way.
//!
//! Invariants:
//! - no I/O: every rule is a table test;
//! - what leaves here passes libcontainer's own validator;
//! - no namespace, cgroup or sysctl path of the host's making reaches the kernel unchecked;
//! - what can't be done is refused by name ([`SpecError`]). What is left out because it has no meaning in
//!   this guest is told in `warnings`. Nothing is dropped in silence.
//!
//! Sources: the OCI runtime specification 1.2 (`config.md`, `config-linux.md`); runc where that is vague.

mod capabilities;
mod cdi;
mod cgroups_path;
mod cpuset;
mod device_rules;
mod devices;
mod error;
mod facts;
mod hidden;
mod hooks;
mod io_devices;
mod labels;
mod late_limits;
mod memory;
mod mounts;
mod namespaces;
mod own_cgroups;
mod own_init;
mod own_mounts;
mod pci_env;
mod prepared;
mod process;
mod propagation;
mod rlimits;
mod seccomp;
mod sysctl;
mod unheeded;
mod user_namespace;
mod validate;

#[cfg(test)]
mod tests;

use std::path::Path;

use libcontainer::validator::Validator;
use oci_spec::runtime::{Linux, LinuxDeviceCgroup, Process, Root, Spec};

pub use capabilities::CapabilitySets;
pub use cdi::{CdiEdits, CdiNode};
pub use cpuset::{CpuSet, CpuSetError, narrow_to_online};
pub use device_rules::{MEMORY, default_rules};
pub use devices::{AddedDevice, DeviceKind, DeviceNumber, DeviceUpdate, LentDevice};
pub use error::SpecError;
pub use facts::{CgroupVersion, Facts, PidNamespace, SharedNamespaces};
pub use hidden::{OutsideNode, WorkingDirectory};
pub use hooks::GUEST_HOOKS;
pub use labels::Profiles;
pub use own_cgroups::{CgroupMount, OwnCgroups};
pub use own_init::OwnInit;
pub use own_mounts::{MountAttributes, Mounted, OwnMount, OwnMounts, Tie};
pub use prepared::{ConsoleSize, ExecFacts, LateProcess, NamespaceId, Prepared, PreparedExec};
pub use process::set_home;
pub use propagation::{MountPropagation, Propagation};
pub use seccomp::SeccompProfile;
pub use sysctl::Sysctl;
pub use user_namespace::{UserNamespace, map_text};

/// Turns the spec of a CreateContainer request into a launch that libcontainer and the worker can do.
///
/// # Errors
/// [`SpecError`], naming the field and its value, for what is malformed, forbidden or can't be done here.
pub fn prepare(spec: Spec, facts: &Facts) -> Result<Prepared, SpecError> {
    let mut spec = spec;
    let mut warnings = Vec::new();
    validate::spec(&mut spec)?;
    let mut linux: Linux = spec.linux_mut().take().ok_or(SpecError::Missing { field: "linux" })?;
    // Hosts that send none (kata-agent-ctl) get the model's own: a shell in "/", with few rights.
    let process: Process = spec.process_mut().take().unwrap_or_default();
    set_rootfs(&mut spec, &facts.rootfs)?;

    let layout = namespaces::apply(&mut linux, &facts.shared, facts.cgroup_version)?;
    if !layout.own_uts {
        // Joined by path: libcontainer sets the names of a new namespace only, and these are the sandbox's.
        spec.set_hostname(None).set_domainname(None);
    }
    let users = user_namespace::check(&mut linux)?;
    let sandbox_sysctls = sysctl::split(&mut linux, layout.own_network, users.is_some())?;
    let (cgroup_path, unit) =
        cgroups_path::resolve(linux.cgroups_path().as_deref(), &facts.container_id, facts.systemd)?;
    linux.set_cgroups_path(Some(cgroup_path.clone()));
    if let Some(users) = &users {
        users.map_devices(&mut linux)?;
        spec.mounts_mut().as_mut().map_or(Ok(()), |mounts| users.map_options(mounts))?;
    }
    let outside = devices::apply(&mut linux, device_rules::is_privileged(&process), facts)?;
    cpuset::apply(&mut linux, &facts.online_cpus, facts.online_mems.as_ref(), &mut warnings)?;
    memory::apply(&mut linux, facts.cgroup_version, facts.swap_accounting, &mut warnings)?;
    unheeded::warn(&linux, facts.cgroup_version, &mut warnings);
    let mut limits = late_limits::take(&mut linux, facts.cgroup_version);
    let device_rules = device_rules_of(&linux);
    let copy_up = mounts::take_copy_up(&mut spec)?;
    let mut propagation = mounts::apply(&mut spec, &mut linux, &mut warnings)?;
    let read_only_dev = mounts::take_read_only_dev(&mut spec);
    let mounts = spec.mounts().as_deref().unwrap_or_default();
    let outside_nodes = hidden::outside_nodes(mounts, outside);
    let plain_cwd = process::without_climbs(process.cwd());
    let working_directory = hidden::working_directory(mounts, &plain_cwd);
    labels::mount_label(&mut spec, &mut linux, facts.selinux, &mut warnings);
    let mut hooks = spec.hooks_mut().take().unwrap_or_default();
    let (poststart, poststop) = hooks::apply(&mut hooks, facts.hooks.as_ref())?;
    spec.set_hooks(hooks::or_none(hooks));

    let own_cgroups = own_cgroups::take(&mut spec, &mut linux, facts.stand_in.as_deref(), &mut limits);
    let has_cgroup = facts.cgroup_version == CgroupVersion::V2 && unit.is_none();
    let has_hooks = !poststart.is_empty() || !poststop.is_empty();
    let can_limit = own_cgroups.is_some() || has_cgroup && own_cgroups::can_write_limits(&linux);
    let unusual = [
        (has_hooks, "hooks"),
        (!copy_up.is_empty(), "tmpcopyup"),
        (!can_limit, "limits or a cgroup that it makes"),
    ];
    let unusual = unusual.into_iter().find_map(|(is_there, name)| is_there.then_some(name));
    let unusual = unusual.or_else(|| own_init::unusual(&spec, &linux, &process));
    let mut take_all = || own_mounts::take_all(&mut spec, &linux, has_cgroup, &propagation);
    let all_mounts = if unusual.is_none() { take_all() } else { None };
    if users.is_some() && all_mounts.is_none() {
        let what = unusual.unwrap_or("a mount that it makes");
        return Err(SpecError::Unsupported {
            field: format!("linux.namespaces: user, with {what},"),
            reason: "libcontainer would have to make it",
        });
    }
    let own_init = all_mounts.is_some();
    if own_init && own_mounts::is_shared(&linux) {
        // libcontainer has it shared with the guest; here it is by itself until then.
        propagation.insert(0, MountPropagation::of_root(Propagation::Shared));
    }
    let working_directory = if own_init { WorkingDirectory::Seen(plain_cwd) } else { working_directory };
    if own_init {
        own_cgroups::take_limits(&mut linux, &mut limits);
    } else {
        mounts::refuse_bound_dev(&spec)?;
    }
    let own_mounts =
        all_mounts.or_else(|| own_mounts::take(&mut spec, &linux, has_cgroup, !copy_up.is_empty()));
    mounts::refuse_topmost_links(&spec)?;
    let start_hooks = spec.hooks_mut().as_mut().and_then(|hooks| hooks.start_container_mut().take());
    let seccomp = seccomp::take(&mut linux)?;
    let inherited = ExecFacts { users, ..ExecFacts::of_guest(facts, seccomp) };
    let mut edited = process::prepare(process, &inherited, &mut warnings)?;
    let cwd = edited.process.cwd().clone();
    if let WorkingDirectory::InMemory(_) = working_directory {
        edited.late.cwd = Some(cwd.clone());
        edited.process.set_cwd("/".into());
    }
    spec.set_linux(Some(linux)).set_process(Some(edited.process));
    Validator::validate_spec(&spec).map_err(|source| SpecError::Validator { source: Box::new(source) })?;
    let linux = spec.linux().as_ref().filter(|_| !own_init);
    Ok(Prepared {
        cwd,
        working_directory,
        device_directories: linux.map(devices::directories).unwrap_or_default(),
        outside_nodes,
        exec: inherited.with_container(&edited.late, edited.capabilities, spec.process().as_ref()),
        spec,
        late: edited.late,
        sandbox_sysctls,
        cgroup_path,
        unit,
        device_rules,
        limits,
        own_cgroups,
        own_mounts,
        own_init,
        terminal: edited.terminal,
        console_size: edited.console_size,
        copy_up,
        propagation,
        read_only_dev,
        start_hooks: start_hooks.unwrap_or_default(),
        poststart,
        poststop,
        warnings,
    })
}

/// Turns the process of an ExecProcess request into one that libcontainer and the worker can launch in the
/// container that `container` (from [`Prepared::exec`]) describes.
///
/// The process brings its own user, arguments, environment and working directory. What it leaves out is the
/// container's: capabilities, rlimits, oom_score_adj, AppArmor profile, SELinux label. The container's
/// seccomp filter always holds, and so does its `noNewPrivileges`.
///
/// # Errors
/// [`SpecError`], naming the field and its value.
pub fn prepare_exec(process: Process, container: &ExecFacts) -> Result<PreparedExec, SpecError> {
    let mut warnings = Vec::new();
    let edited = process::prepare(process, container, &mut warnings)?;
    Ok(PreparedExec {
        process: edited.process,
        late: edited.late,
        terminal: edited.terminal,
        console_size: edited.console_size,
        warnings,
    })
}

fn device_rules_of(linux: &Linux) -> Vec<LinuxDeviceCgroup> {
    linux.resources().as_ref().and_then(|resources| resources.devices().clone()).unwrap_or_default()
}

/// The root is where the agent assembled it, not where the host thought.
fn set_rootfs(spec: &mut Spec, rootfs: &Path) -> Result<(), SpecError> {
    if !rootfs.is_absolute() {
        return Err(SpecError::RelativePath { field: "root.path", path: rootfs.to_owned() });
    }
    let readonly = spec.root().as_ref().and_then(Root::readonly);
    let mut root = Root::default();
    root.set_path(rootfs.to_owned()).set_readonly(Some(readonly.unwrap_or(false)));
    spec.set_root(Some(root));
    Ok(())
}
