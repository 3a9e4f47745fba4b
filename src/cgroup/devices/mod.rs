//! The device rules of cgroup v2: a program that the kernel asks about each device.
//!
//! On v1 the rules are written into the files of the devices controller, by libcontainer unless the agent makes the
//! cgroups. v2 has no such files (cgroup-v2.rst, "Device controller"); libcontainer, as it is built here, does nothing
//! there.
//!
//! Invariants
//! - Rules that can't be enforced are an error, never left out.
//! - A program holds for the cgroup and all below it, beside those of the cgroups above: a device has to be
//!   allowed by all of them. It lives as long as the cgroup. The last one is kept for the next container, which
//!   has mostly the same rules.

mod attach;
mod instruction;
mod program;
#[cfg(test)]
mod tests;

pub use attach::AttachError;
pub use program::ProgramError;

use super::{Cgroup, CgroupError, Hierarchy};
use oci_spec::runtime::LinuxDeviceCgroup;

impl Cgroup {
    /// Enforces device rules, complete and in order: the last one that matches decides, and what none
    /// matches is denied. Devices that are open stay open.
    ///
    /// The rules add to those that were enforced here before; they do not replace them.
    ///
    /// # Errors
    /// [`CgroupError::NotFound`], [`CgroupError::DeviceRules`] if they can't be said in a program,
    /// [`CgroupError::DeviceProgram`] if the kernel does not take that.
    pub fn enforce_devices(&self, rules: &[LinuxDeviceCgroup]) -> Result<(), CgroupError> {
        let Hierarchy::V2 { mount_point } = &*self.hierarchy else { return self.write_rules(rules) };
        let path = || self.path.clone();
        let program =
            program::compile(rules).map_err(|source| CgroupError::DeviceRules { path: path(), source })?;
        let dir = self.open_at(mount_point)?.ok_or_else(|| self.not_found())?;
        attach::enforce(&program, dir.fd())
            .map_err(|source| CgroupError::DeviceProgram { path: path(), source })
    }

    /// On v1 each rule is a line in the words of the specification.
    fn write_rules(&self, rules: &[LinuxDeviceCgroup]) -> Result<(), CgroupError> {
        let dir = self.open_v1("devices")?.ok_or(CgroupError::NoController { controller: "devices" })?;
        for rule in rules {
            let file = if rule.allow() { "devices.allow" } else { "devices.deny" };
            if !dir.write(file, &rule.to_string())? {
                return Err(self.not_found());
            }
        }
        Ok(())
    }
}
